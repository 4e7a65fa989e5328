//! A TCP proxy with faults: trouble for the clients behind it and for nobody else.
//!
//! The promises hold while the network does not: connections break, requests are stored and their answers lost, a member cannot
//! be told from a dead one. A server that stops shows little of that, and shows it to everybody at once. Behind a proxy one
//! client has trouble, and the others can be asked what became of it.
//!
//! | Fault | What a client sees |
//! |---|---|
//! | [`cut`](Proxy::cut) | its connections are reset, and every new one at once |
//! | [`stall`](Proxy::stall) | its connections stay open and not a byte passes; new ones are accepted, and silent: a network partition |
//! | [`mute`](Proxy::mute) | the server receives what it says, and no answer comes back |
//! | [`heal`](Proxy::heal) | all is well again; after a stall what was held back passes, as TCP's repetitions do |
//!
//! A client that is behind a proxy which is cut and never healed is dead to the broker, as after a SIGKILL: no word of farewell
//! comes through, whatever its destructors do.
//!
//! A broker that tells clients its own address (Kafka) must be told the proxy's: its listener advertises a port that is free, and
//! [`Proxy::start_at`] takes that port. Several nodes behind one link are several proxies: [`Line`].

mod line;
mod relay;
mod state;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::watch;

pub use crate::route::Route;
pub use line::Line;
use state::{Flow, State};

/// Forwards connections to one server, and breaks them on request.
///
/// It runs on a thread of its own, so it outlives the runtime in which it was started. A clone is the same proxy; when the last
/// one is dropped, its connections are reset and its port is free.
#[derive(Clone)]
pub struct Proxy(Arc<Inner>);

struct Inner {
    address: SocketAddr,
    upstream: Arc<str>,
    state: Option<watch::Sender<State>>,
    thread: Option<JoinHandle<()>>,
}

impl Proxy {
    /// Listens on a free local port and forwards to `upstream`, `host:port`.
    ///
    /// # Errors
    /// When no port or thread can be had. That the server does not answer is no error: its clients are refused, until it does.
    pub fn start(upstream: impl Into<String>) -> io::Result<Self> {
        Self::start_at(0, upstream)
    }

    /// Listens on this local port, which a server may advertise.
    ///
    /// # Errors
    /// `AddrInUse` when somebody has the port: that is how two processes agree on who uses it.
    pub fn start_at(port: u16, upstream: impl Into<String>) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let upstream: Arc<str> = upstream.into().into();
        let (state, watched) = watch::channel(State::default());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let forwarded = upstream.clone();
        let thread = std::thread::Builder::new()
            .name(format!("proxy-{}", address.port()))
            .spawn(move || runtime.block_on(relay::accept(listener, forwarded, watched)))?;
        Ok(Self(Arc::new(Inner { address, upstream, state: Some(state), thread: Some(thread) })))
    }

    /// Where clients reach it.
    pub fn addr(&self) -> SocketAddr {
        self.0.address
    }

    /// Where clients reach it, as `Bus::connect` takes it: `nats://127.0.0.1:40123`.
    pub fn url(&self, scheme: &str) -> String {
        format!("{scheme}://{}", self.0.address)
    }

    /// Resets all connections, on both sides, and every new one, until [`heal`](Self::heal). What is on its way is lost.
    pub fn cut(&self) {
        self.set(Flow::Cut);
    }

    /// Lets nothing pass in either direction until [`heal`](Self::heal). Connections stay open, and new ones are accepted.
    pub fn stall(&self) {
        self.set(Flow::Stalled);
    }

    /// Lets requests pass and holds answers back, until [`heal`](Self::heal). With a [`cut`](Self::cut) after it, answers are lost
    /// of requests that were obeyed.
    pub fn mute(&self) {
        self.set(Flow::Muted);
    }

    /// Ends the fault. What was held back passes now; what was cut stays cut, and may connect again.
    pub fn heal(&self) {
        self.set(Flow::Open);
    }

    /// Is cut for a while.
    ///
    /// # Cancel safety
    /// Dropped before its end, it is healed at once.
    pub async fn cut_for(&self, time: Duration) {
        self.cut();
        let _healed = Healed(self);
        tokio::time::sleep(time).await;
    }

    /// Is stalled for a while.
    ///
    /// # Cancel safety
    /// Dropped before its end, it is healed at once.
    pub async fn stall_for(&self, time: Duration) {
        self.stall();
        let _healed = Healed(self);
        tokio::time::sleep(time).await;
    }

    fn set(&self, flow: Flow) {
        // The sender is there until the last proxy is dropped.
        if let Some(state) = &self.0.state {
            state.send_modify(|state| state.change(flow));
        }
    }
}

/// Heals when dropped.
struct Healed<'p>(&'p Proxy);

impl Drop for Healed<'_> {
    fn drop(&mut self) {
        self.0.heal();
    }
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let flow = self.0.state.as_ref().map(|state| state.borrow().flow);
        f.debug_struct("Proxy")
            .field("address", &self.0.address)
            .field("upstream", &self.0.upstream)
            .field("flow", &flow)
            .finish()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // The thread ends when its state has no owner; waiting for it makes the port free for the next.
        drop(self.state.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
