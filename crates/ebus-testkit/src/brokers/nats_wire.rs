//! How a nats-server says that it can be used.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// Whether the server greets its clients and has JetStream. It greets only when its storage is recovered.
pub(crate) fn probe_client(address: SocketAddr) -> Result<(), String> {
    let greeting = greeting(address).map_err(|error| error.to_string())?;
    if greeting.starts_with("INFO ") && greeting.contains("\"jetstream\":true") {
        return Ok(());
    }
    Err(format!("not a nats-server with JetStream: {}", greeting.trim_end()))
}

fn greeting(address: SocketAddr) -> io::Result<String> {
    let stream = TcpStream::connect_timeout(&address, ANSWER_WITHIN)?;
    stream.set_read_timeout(Some(ANSWER_WITHIN))?;
    let mut line = String::new();
    BufReader::new(stream.take(64 * 1024)).read_line(&mut line)?;
    Ok(line)
}

/// Whether the server's own health check passes: in a cluster, when it has found the leader and caught up with it.
pub(crate) fn probe_health(monitor: SocketAddr) -> Result<(), String> {
    let answer = get(monitor, "/healthz").map_err(|error| error.to_string())?;
    if answer.starts_with("HTTP/1.1 200") || answer.starts_with("HTTP/1.0 200") {
        return Ok(());
    }
    Err(answer.lines().last().unwrap_or("no answer").to_owned())
}

/// Whether JetStream's leader sees this many nodes, itself among them, and none behind. Only the leader knows.
pub(crate) fn probe_peers(monitors: &[SocketAddr], nodes: usize) -> Result<(), String> {
    for monitor in monitors {
        let answer = get(*monitor, "/jsz").unwrap_or_default();
        if answer.matches("\"current\": true").count() + 1 >= nodes {
            return Ok(());
        }
    }
    Err(format!("no leader sees {nodes} nodes"))
}

fn get(address: SocketAddr, path: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, ANSWER_WITHIN)?;
    stream.set_read_timeout(Some(ANSWER_WITHIN))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n")?;
    let mut answer = String::new();
    stream.take(1 << 20).read_to_string(&mut answer)?;
    Ok(answer)
}
