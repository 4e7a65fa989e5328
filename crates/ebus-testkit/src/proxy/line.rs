//! Several proxies as one: the network between one client and all nodes of a broker.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use super::{Proxy, Route};

/// The network between one client and all nodes of a broker: a proxy for each of them, with the same faults at once.
///
/// A clone is the same line; its ports are free when the last one is dropped.
#[derive(Debug, Clone)]
pub struct Line(Vec<Proxy>);

impl Line {
    /// Starts a proxy for every route.
    ///
    /// # Errors
    /// `AddrInUse` when somebody uses one of the ports; then none of them is taken.
    pub fn open<'r>(routes: impl IntoIterator<Item = &'r Route>) -> io::Result<Self> {
        let routes = routes.into_iter();
        routes.map(|route| Proxy::start_at(route.port, &*route.upstream)).collect::<io::Result<_>>().map(Self)
    }

    /// Opens the first of these ways that nobody uses; `None` when all are in use.
    ///
    /// # Errors
    /// When a proxy cannot be started for another reason.
    pub fn first_free<'r>(ways: impl IntoIterator<Item = &'r [Route]>) -> io::Result<Option<Self>> {
        for routes in ways {
            match Self::open(routes) {
                Ok(line) => return Ok(Some(line)),
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// Starts a proxy on a free port for every server; `host:port` each.
    ///
    /// # Errors
    /// Those of [`Proxy::start`].
    pub fn to<S: Into<String>>(upstreams: impl IntoIterator<Item = S>) -> io::Result<Self> {
        upstreams.into_iter().map(|upstream| Proxy::start(upstream)).collect::<io::Result<_>>().map(Self)
    }

    /// What `Bus::connect` takes: all nodes, by this line.
    pub fn url(&self, scheme: &str) -> String {
        let nodes: Vec<_> = self.addresses().iter().map(SocketAddr::to_string).collect();
        format!("{scheme}://{}", nodes.join(","))
    }

    /// Where clients reach the nodes.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.0.iter().map(Proxy::addr).collect()
    }

    /// The proxies of the nodes, in the order of the routes.
    pub fn proxies(&self) -> &[Proxy] {
        &self.0
    }

    /// [`Proxy::cut`] for all nodes.
    pub fn cut(&self) {
        self.0.iter().for_each(Proxy::cut);
    }

    /// [`Proxy::stall`] for all nodes.
    pub fn stall(&self) {
        self.0.iter().for_each(Proxy::stall);
    }

    /// [`Proxy::mute`] for all nodes.
    pub fn mute(&self) {
        self.0.iter().for_each(Proxy::mute);
    }

    /// [`Proxy::heal`] for all nodes.
    pub fn heal(&self) {
        self.0.iter().for_each(Proxy::heal);
    }

    /// [`Proxy::cut_for`] for all nodes.
    ///
    /// # Cancel safety
    /// That of [`Proxy::cut_for`].
    pub async fn cut_for(&self, time: Duration) {
        let healed = Healed(self);
        self.cut();
        tokio::time::sleep(time).await;
        drop(healed);
    }
}

/// Heals when dropped.
struct Healed<'l>(&'l Line);

impl Drop for Healed<'_> {
    fn drop(&mut self) {
        self.0.heal();
    }
}
