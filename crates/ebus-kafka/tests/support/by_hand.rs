//! A commit that no client library makes: any bytes as its metadata, or none.

use std::io::{Error, Read, Write};
use std::net::TcpStream;

fn text(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend((bytes.len() as i16).to_be_bytes());
    out.extend(bytes);
}

/// OffsetCommit, version 2, for a group without members; `None` is null.
pub(crate) fn commit_by_hand(
    bootstrap: &str,
    group: &str,
    (topic, partition): (&str, i32),
    offset: i64,
    metadata: Option<&[u8]>,
) -> Result<(), Error> {
    let mut body = Vec::new();
    body.extend([0, 8, 0, 2, 0, 0, 0, 7]);
    text(&mut body, b"old");
    text(&mut body, group.as_bytes());
    body.extend((-1i32).to_be_bytes());
    text(&mut body, b"");
    body.extend((-1i64).to_be_bytes());
    body.extend(1i32.to_be_bytes());
    text(&mut body, topic.as_bytes());
    body.extend(1i32.to_be_bytes());
    body.extend(partition.to_be_bytes());
    body.extend(offset.to_be_bytes());
    match metadata {
        Some(metadata) => text(&mut body, metadata),
        None => body.extend((-1i16).to_be_bytes()),
    }
    let mut stream = TcpStream::connect(bootstrap)?;
    stream.write_all(&(body.len() as i32).to_be_bytes())?;
    stream.write_all(&body)?;
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let mut answer = vec![0; i32::from_be_bytes(length) as usize];
    stream.read_exact(&mut answer)?;
    // The last of it is the error of the only partition.
    match answer.last_chunk::<2>() {
        Some([0, 0]) => Ok(()),
        code => Err(Error::other(format!("the broker refused it: {code:?}"))),
    }
}
