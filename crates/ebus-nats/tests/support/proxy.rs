//! A TCP proxy whose connections can be cut: trouble for the clients behind it and for nobody else.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, copy};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// Forwards to one server.
#[derive(Debug, Clone)]
pub(crate) struct Proxy {
    address: SocketAddr,
    state: Arc<watch::Sender<State>>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct State {
    /// Connections of an earlier number are cut.
    generation: u64,
    /// New ones are let through.
    open: bool,
    /// What the server says is held back.
    mute: bool,
}

impl Proxy {
    /// Listens on a port of its own, within the runtime of the caller.
    pub(crate) async fn start(upstream: String) -> std::io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let (state, watched) = watch::channel(State { generation: 0, open: true, mute: false });
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let (upstream, mut watched) = (upstream.clone(), watched.clone());
                tokio::spawn(async move {
                    let now = *watched.borrow();
                    if !now.open {
                        return;
                    }
                    let Ok(mut server) = TcpStream::connect(&upstream).await else { return };
                    // Without it small messages wait for each other.
                    let _ = (client.set_nodelay(true), server.set_nodelay(true));
                    let (mut from_client, mut to_client) = client.split();
                    let (mut from_server, mut to_server) = server.split();
                    let mut muted = watched.clone();
                    tokio::select! {
                        _ = copy(&mut from_client, &mut to_server) => {}
                        _ = speak(&mut from_server, &mut to_client, &mut muted) => {}
                        _ = watched.wait_for(|state| state.generation != now.generation) => {}
                    }
                });
            }
        });
        Ok(Self { address, state: Arc::new(state) })
    }

    pub(crate) fn url(&self) -> String {
        format!("nats://{}", self.address)
    }

    /// Cuts all connections, and refuses new ones for a while.
    pub(crate) async fn cut(&self, refuse: Duration) {
        self.state.send_modify(|state| {
            *state = State { generation: state.generation + 1, open: false, mute: false };
        });
        tokio::time::sleep(refuse).await;
        self.state.send_modify(|state| state.open = true);
    }

    /// Requests reach the server and answers do not come back for a while; then all connections are cut.
    pub(crate) async fn mute_and_cut(&self, mute: Duration) {
        self.state.send_modify(|state| state.mute = true);
        tokio::time::sleep(mute).await;
        self.cut(Duration::from_millis(10)).await;
    }
}

/// Hands on what the server says, unless it is muted.
async fn speak(
    server: &mut ReadHalf<'_>,
    client: &mut WriteHalf<'_>,
    state: &mut watch::Receiver<State>,
) -> std::io::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let count = server.read(&mut buffer).await?;
        if count == 0 || state.wait_for(|state| !state.mute).await.is_err() {
            return Ok(());
        }
        client.write_all(&buffer[..count]).await?;
    }
}
