//! Where a proxy of a server is to listen: a server may advertise that port instead of its own.

use std::fmt;
use std::str::FromStr;

/// From a local port to a server.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Route {
    /// The local port that a client connects to.
    pub port: u16,
    /// The server behind it, `host:port`.
    pub upstream: String,
}

impl Route {
    /// From `port` to `upstream`.
    pub fn new(port: u16, upstream: impl Into<String>) -> Self {
        Self { port, upstream: upstream.into() }
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.port, self.upstream)
    }
}

impl FromStr for Route {
    type Err = String;

    /// Reads `<port>=<host:port>`.
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no route; write <port>=<host>:<port>");
        let (port, upstream) = text.split_once('=').ok_or_else(wrong)?;
        let port = port.parse().map_err(|_| wrong())?;
        if upstream.contains(':') { Ok(Self::new(port, upstream)) } else { Err(wrong()) }
    }
}
