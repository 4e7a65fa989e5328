//! Takes connections, and hands bytes on between the two sides of each.

use std::net::TcpListener;
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::state::{State, Way, is_cut, may_pass};

/// What one direction of a connection holds at most while it is stalled; the rest waits in the buffers of the kernel.
const BUFFER: usize = 64 << 10;

/// Takes connections until the proxy is dropped; then all of them are reset.
pub(super) async fn accept(listener: TcpListener, upstream: Arc<str>, mut state: watch::Receiver<State>) {
    let Ok(listener) = tokio::net::TcpListener::from_std(listener) else { return };
    let mut open = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((client, _)) => { open.spawn(connection(client, upstream.clone(), state.clone())); }
                // Too many open files, or the client has gone: the next one may do.
                Err(_) => tokio::task::yield_now().await,
            },
            changed = state.changed() => if changed.is_err() { break },
            Some(_) = open.join_next() => {}
        }
    }
    // Each sees by itself that the proxy is gone, and resets what it holds.
    while open.join_next().await.is_some() {}
}

async fn connection(mut client: TcpStream, upstream: Arc<str>, state: watch::Receiver<State>) {
    let cuts = state.borrow().cuts;
    let cut = is_cut(state.clone(), cuts);
    tokio::pin!(cut);
    let connected = async {
        // As in a network partition the client may think that it is connected; nobody hears it.
        let passes = may_pass(&mut state.clone(), Way::Request).await;
        if passes { TcpStream::connect(&*upstream).await.ok() } else { None }
    };
    let server = tokio::select! {
        () = &mut cut => None,
        server = connected => server,
    };
    let Some(mut server) = server else { return reset(client) };
    // Without it small messages wait for each other.
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let ended = {
        let (mut from_client, mut to_client) = client.split();
        let (mut from_server, mut to_server) = server.split();
        let both = async {
            tokio::try_join!(
                hand_on(&mut from_client, &mut to_server, state.clone(), Way::Request),
                hand_on(&mut from_server, &mut to_client, state.clone(), Way::Answer),
            )
        };
        tokio::select! {
            () = &mut cut => false,
            both = both => both.is_ok(),
        }
    };
    if !ended {
        reset(client);
        reset(server);
    }
}

/// Hands on what one side says, to its end.
async fn hand_on(
    from: &mut ReadHalf<'_>,
    to: &mut WriteHalf<'_>,
    mut state: watch::Receiver<State>,
    way: Way,
) -> std::io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        let count = from.read(&mut buffer).await?;
        if !may_pass(&mut state, way).await {
            return Err(std::io::ErrorKind::ConnectionAborted.into());
        }
        if count == 0 {
            // The other direction may still have much to say.
            return to.shutdown().await;
        }
        to.write_all(&buffer[..count]).await?;
    }
}

/// Closes without a farewell: the other side gets a reset, not an end of stream.
fn reset(stream: TcpStream) {
    let _ = stream.set_zero_linger();
}
