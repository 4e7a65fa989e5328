//! Each fault as a client and a server see it, on plain sockets.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use super::{Line, Proxy, Route};

/// Long enough for a local byte, and for a slow machine.
const SOON: Duration = Duration::from_secs(10);
/// What does not come in this time is held back.
const A_WHILE: Duration = Duration::from_millis(150);

/// A server that says back what it hears, and its address.
fn echo() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            thread::spawn(move || {
                let mut buffer = [0; 1024];
                while let Ok(count @ 1..) = stream.read(&mut buffer) {
                    if stream.write_all(&buffer[..count]).is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

fn connect(proxy: &Proxy) -> TcpStream {
    let stream = TcpStream::connect(proxy.addr()).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream
}

fn said_back(stream: &mut TcpStream, text: &str) {
    stream.write_all(text.as_bytes()).unwrap();
    heard(stream, text);
}

fn heard(stream: &mut TcpStream, text: &str) {
    let mut buffer = vec![0; text.len()];
    stream.read_exact(&mut buffer).unwrap();
    assert_eq!(buffer, text.as_bytes());
}

fn hears_nothing(stream: &mut TcpStream) {
    stream.set_read_timeout(Some(A_WHILE)).unwrap();
    let heard = stream.read(&mut [0; 1]);
    assert!(matches!(&heard, Err(error) if error.kind() == ErrorKind::WouldBlock), "{heard:?}");
    stream.set_read_timeout(Some(SOON)).unwrap();
}

fn is_reset(stream: &mut TcpStream) {
    let heard = stream.read(&mut [0; 1]);
    assert!(matches!(&heard, Err(error) if error.kind() == ErrorKind::ConnectionReset), "{heard:?}");
}

#[test]
fn bytes_pass_both_ways_and_an_end_passes_one_way() {
    let proxy = Proxy::start(echo()).unwrap();
    let mut client = connect(&proxy);
    said_back(&mut client, "hello");
    client.write_all(b"last").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    heard(&mut client, "last");
    assert_eq!(client.read(&mut [0; 1]).unwrap(), 0, "an end, not a reset");
}

#[test]
fn a_cut_resets_what_is_open_and_what_comes_until_it_is_healed() {
    let proxy = Proxy::start(echo()).unwrap();
    let mut client = connect(&proxy);
    said_back(&mut client, "hello");
    proxy.cut();
    is_reset(&mut client);
    is_reset(&mut connect(&proxy));
    proxy.heal();
    said_back(&mut connect(&proxy), "hello again");
}

#[test]
fn a_cut_that_is_healed_at_once_still_resets() {
    let proxy = Proxy::start(echo()).unwrap();
    let mut client = connect(&proxy);
    said_back(&mut client, "hello");
    proxy.cut();
    proxy.heal();
    is_reset(&mut client);
}

#[test]
fn a_cut_reaches_the_server_too() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let proxy = Proxy::start(listener.local_addr().unwrap().to_string()).unwrap();
    let mut client = connect(&proxy);
    let (mut server, _) = listener.accept().unwrap();
    server.set_read_timeout(Some(SOON)).unwrap();
    client.write_all(b"x").unwrap();
    heard(&mut server, "x");
    proxy.cut();
    is_reset(&mut server);
}

#[test]
fn while_stalled_nothing_passes_and_nothing_is_lost() {
    let proxy = Proxy::start(echo()).unwrap();
    let mut old = connect(&proxy);
    said_back(&mut old, "before");
    proxy.stall();
    let mut new = connect(&proxy);
    old.write_all(b"during").unwrap();
    new.write_all(b"during").unwrap();
    hears_nothing(&mut old);
    hears_nothing(&mut new);
    proxy.heal();
    heard(&mut old, "during");
    heard(&mut new, "during");
}

#[test]
fn an_end_does_not_pass_while_stalled() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let proxy = Proxy::start(listener.local_addr().unwrap().to_string()).unwrap();
    let client = connect(&proxy);
    let (mut server, _) = listener.accept().unwrap();
    proxy.stall();
    drop(client);
    hears_nothing(&mut server);
    proxy.heal();
    assert_eq!(server.read(&mut [0; 1]).unwrap(), 0);
}

#[test]
fn what_is_stalled_can_be_cut() {
    let proxy = Proxy::start(echo()).unwrap();
    let mut old = connect(&proxy);
    said_back(&mut old, "before");
    proxy.stall();
    let mut new = connect(&proxy);
    new.write_all(b"during").unwrap();
    hears_nothing(&mut new);
    proxy.cut();
    is_reset(&mut old);
    is_reset(&mut new);
}

#[test]
fn while_muted_the_server_hears_and_the_client_does_not() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let proxy = Proxy::start(listener.local_addr().unwrap().to_string()).unwrap();
    let mut client = connect(&proxy);
    let (mut server, _) = listener.accept().unwrap();
    server.set_read_timeout(Some(SOON)).unwrap();
    proxy.mute();
    client.write_all(b"ask").unwrap();
    heard(&mut server, "ask");
    server.write_all(b"answer").unwrap();
    hears_nothing(&mut client);
    proxy.heal();
    heard(&mut client, "answer");
}

#[test]
fn a_server_that_is_away_is_a_reset_and_its_return_is_seen() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let proxy = Proxy::start(address.to_string()).unwrap();
    is_reset(&mut connect(&proxy));
    let listener = TcpListener::bind(address).unwrap();
    let mut client = connect(&proxy);
    client.write_all(b"x").unwrap();
    heard(&mut listener.accept().unwrap().0, "x");
}

#[test]
fn dropping_the_last_proxy_resets_its_connections_and_frees_its_port() {
    let upstream = echo();
    let proxy = Proxy::start(upstream.clone()).unwrap();
    let other = proxy.clone();
    let (mut client, port) = (connect(&proxy), proxy.addr().port());
    drop(proxy);
    said_back(&mut client, "a clone is the same proxy");
    let taken = Proxy::start_at(port, upstream.clone());
    assert!(matches!(&taken, Err(error) if error.kind() == ErrorKind::AddrInUse), "{taken:?}");
    other.stall();
    drop(other);
    is_reset(&mut client);
    said_back(&mut connect(&Proxy::start_at(port, upstream).unwrap()), "its port is free");
}

#[test]
fn it_outlives_the_runtime_it_was_started_in() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let proxy = runtime.block_on(async { Proxy::start(echo()).unwrap() });
    drop(runtime);
    said_back(&mut connect(&proxy), "hello");
}

#[tokio::test]
async fn a_cut_for_a_while_is_healed_when_its_future_is_dropped() {
    let proxy = Proxy::start(echo()).unwrap();
    let mut client = connect(&proxy);
    said_back(&mut client, "hello");
    assert!(tokio::time::timeout(A_WHILE, proxy.cut_for(SOON)).await.is_err());
    is_reset(&mut client);
    said_back(&mut connect(&proxy), "healed");
}

#[test]
fn a_line_has_the_same_fault_on_all_routes_and_takes_all_ports_or_none() {
    let line = Line::to([echo(), echo()]).unwrap();
    let mut clients: Vec<_> = line.proxies().iter().map(connect).collect();
    clients.iter_mut().for_each(|client| said_back(client, "hello"));
    line.cut();
    clients.iter_mut().for_each(is_reset);
    let taken = line.addresses()[0].port();
    let free = Proxy::start(echo()).unwrap().addr().port();
    assert!(Line::open(&[Route::new(free, echo()), Route::new(taken, echo())]).is_err());
    let ways = [vec![Route::new(free, echo()), Route::new(taken, echo())], vec![Route::new(free, echo())]];
    let other = Line::first_free(ways.iter().map(Vec::as_slice)).unwrap().unwrap();
    assert_eq!(other.addresses().len(), 1, "the second way");
    assert!(Line::first_free(ways.iter().map(Vec::as_slice)).unwrap().is_none());
}

#[test]
fn a_route_is_read_as_it_is_written() {
    let route = Route::new(21_000, "127.0.0.1:21001");
    assert_eq!(route.to_string().parse(), Ok(route));
    for wrong in ["", "21000", "21000=", "x=127.0.0.1:1", "70000=a:1", "1=nowhere"] {
        assert!(wrong.parse::<Route>().is_err(), "{wrong}");
    }
}
