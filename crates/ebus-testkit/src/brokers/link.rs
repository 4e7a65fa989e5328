//! The way to a server that can be cut: what a test needs to put itself between one client and all nodes.
//!
//! A Kafka broker tells its clients the address at which it wants to be found, so a proxy in front of it is passed by after the first
//! request. Hence a link: a listener of its own on every node, that is advertised at a port where nobody listens, until a test
//! starts its proxies there. Whoever has these ports has the link: it is for one client at a time, over all processes.

use std::fmt;
use std::str::FromStr;

use crate::route::Route;

/// A way to a server, through proxies that the test starts.
///
/// With the feature `proxy`, `Line::open(link.routes())` starts them; that it fails with `AddrInUse` says that somebody else uses
/// this link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    routes: Vec<Route>,
}

impl Link {
    pub(crate) fn new(routes: Vec<Route>) -> Self {
        Self { routes }
    }

    /// For each node, where its proxy is to listen and what is behind it.
    pub fn routes(&self) -> &[Route] {
        &self.routes
    }

    /// What `Bus::connect` takes, once the proxies are there: `kafka://127.0.0.1:21005`.
    pub fn url(&self, scheme: &str) -> String {
        let nodes: Vec<_> = self.routes.iter().map(|route| format!("127.0.0.1:{}", route.port)).collect();
        format!("{scheme}://{}", nodes.join(","))
    }

    /// Reads links as [`show_all`](Self::show_all) writes them.
    ///
    /// # Errors
    /// Says which part is no route.
    pub fn read_all(text: &str) -> Result<Vec<Self>, String> {
        text.split(';').filter(|link| !link.is_empty()).map(str::parse).collect()
    }

    /// Writes links into one line: `21005=127.0.0.1:21004;21007=127.0.0.1:21006`.
    pub fn show_all(links: &[Self]) -> String {
        links.iter().map(ToString::to_string).collect::<Vec<_>>().join(";")
    }
}

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let routes: Vec<_> = self.routes.iter().map(ToString::to_string).collect();
        f.write_str(&routes.join(","))
    }
}

impl FromStr for Link {
    type Err = String;

    /// Reads the routes of all nodes, with commas between them.
    fn from_str(text: &str) -> Result<Self, String> {
        text.split(',').map(str::parse).collect::<Result<_, _>>().map(Self::new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_read_as_they_are_written() {
        let two = |first: u16| {
            Link::new(vec![Route::new(first, "127.0.0.1:1"), Route::new(first + 1, "127.0.0.1:2")])
        };
        let links = [two(21_000), two(21_002)];
        assert_eq!(
            Link::show_all(&links),
            "21000=127.0.0.1:1,21001=127.0.0.1:2;21002=127.0.0.1:1,21003=127.0.0.1:2"
        );
        assert_eq!(Link::read_all(&Link::show_all(&links)).as_deref(), Ok(&links[..]));
        assert_eq!(Link::read_all(""), Ok(Vec::new()));
        assert!(Link::read_all("21000=127.0.0.1:1;nonsense").is_err());
        assert_eq!(links[0].url("kafka"), "kafka://127.0.0.1:21000,127.0.0.1:21001");
    }
}
