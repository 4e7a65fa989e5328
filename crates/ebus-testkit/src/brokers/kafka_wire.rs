//! The two requests of Kafka's protocol that tell whether a broker can be used.
//!
//! A broker that accepts connections may not know its cluster yet, and one that does may still have to make its offsets
//! topic: the first consumer of a test would pay for that with a rebalance.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

/// A broker that is up answers in milliseconds; one that is starting may accept and stay silent.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

const METADATA: (i16, i16) = (3, 8);
const FIND_COORDINATOR: (i16, i16) = (10, 2);

/// Whether the broker knows `nodes` brokers and a controller, and, with `coordinator`, can lead groups.
pub(crate) fn probe(address: SocketAddr, nodes: usize, coordinator: bool) -> Result<(), String> {
    let mut stream =
        TcpStream::connect_timeout(&address, ANSWER_WITHIN).map_err(|error| error.to_string())?;
    let answer = ask(&mut stream, nodes, coordinator);
    answer.map_err(|error| error.to_string())?
}

fn ask(stream: &mut TcpStream, nodes: usize, coordinator: bool) -> io::Result<Result<(), String>> {
    stream.set_read_timeout(Some(ANSWER_WITHIN))?;
    // No topics; do not create any; no authorized operations, twice.
    let metadata = request(stream, METADATA, &[0, 0, 0, 0, 0, 0, 0])?;
    let (known, controller) =
        brokers(&metadata).ok_or_else(|| io::Error::other("metadata not understood"))?;
    if known < nodes || controller < 0 {
        return Ok(Err(format!("it knows {known} of {nodes} brokers and the controller {controller}")));
    }
    if coordinator {
        let answer = request(stream, FIND_COORDINATOR, b"\x00\x05ready\x00")?;
        let mut reader = Reader(&answer);
        let error = reader.i32().and_then(|_throttled_for| reader.i16());
        if error != Some(0) {
            return Ok(Err(format!("no group coordinator yet: error code {error:?}")));
        }
    }
    Ok(Ok(()))
}

fn request(stream: &mut TcpStream, (api, version): (i16, i16), body: &[u8]) -> io::Result<Vec<u8>> {
    let mut message = Vec::new();
    message.extend(api.to_be_bytes());
    message.extend(version.to_be_bytes());
    message.extend(1_i32.to_be_bytes());
    message.extend(b"\x00\x04ebus");
    message.extend(body);
    let length = i32::try_from(message.len()).map_err(io::Error::other)?;
    stream.write_all(&length.to_be_bytes())?;
    stream.write_all(&message)?;
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let length = usize::try_from(i32::from_be_bytes(length)).map_err(io::Error::other)?;
    if !(4..=1 << 20).contains(&length) {
        return Err(io::Error::other(format!("an answer of {length} bytes: this is not Kafka")));
    }
    let mut answer = vec![0; length];
    stream.read_exact(&mut answer)?;
    Ok(answer.split_off(4)) // after the correlation id
}

/// The number of brokers and the controller's id in a metadata answer.
fn brokers(answer: &[u8]) -> Option<(usize, i32)> {
    let mut reader = Reader(answer);
    reader.i32()?; // throttled for
    let count = reader.i32()?;
    for _ in 0..count {
        reader.i32()?; // node id
        reader.string()?; // host
        reader.i32()?; // port
        reader.string()?; // rack
    }
    reader.string()?; // cluster id
    Some((usize::try_from(count).ok()?, reader.i32()?))
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, tail) = self.0.split_first_chunk()?;
        self.0 = tail;
        Some(*head)
    }

    fn i16(&mut self) -> Option<i16> {
        self.take().map(i16::from_be_bytes)
    }

    fn i32(&mut self) -> Option<i32> {
        self.take().map(i32::from_be_bytes)
    }

    /// Passes over a string; its length is -1 when there is none.
    fn string(&mut self) -> Option<()> {
        let length = usize::try_from(self.i16()?).unwrap_or(0);
        self.0 = self.0.get(length..)?;
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::brokers;

    #[test]
    fn a_metadata_answer_is_read_and_a_short_one_is_refused() {
        let answer = b"\0\0\0\0\0\0\0\x01\0\0\0\x01\0\x01h\0\0\x23\x84\xff\xff\0\x02id\0\0\0\x01";
        assert_eq!(brokers(answer), Some((1, 1)));
        assert_eq!(brokers(&answer[..answer.len() - 1]), None);
    }
}
