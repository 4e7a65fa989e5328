//! The launchers of ebus-testkit on real servers: what the tests of every backend stand on.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use ebus_testkit::brokers::{
    BrokerError, Home, KafkaConfig, NatsConfig, Need, Server, launch_kafka, launch_nats, private_trial,
};
use ebus_testkit::proxy::Line;
use libtest_mimic::{Arguments, Failed, Trial};

fn main() {
    let args = Arguments::from_args();
    // As the child of `a_killed_owner_leaves_no_server_behind`: own a server until killed.
    if std::env::var_os("EBUS_TEST_OWN_A_SERVER").is_some() {
        own_a_server();
    }
    let trials = vec![
        trial("kafka_keeps_its_port_and_data_over_stop_and_kill", Need::Kafka, |home| {
            keeps_port_and_data(launch_kafka(&home, KafkaConfig::default())?)
        }),
        trial("nats_keeps_its_port_and_data_over_stop_and_kill", Need::Nats, |home| {
            keeps_port_and_data(launch_nats(&home, NatsConfig::default())?)
        }),
        trial("a_kafka_link_leads_through_its_proxy_and_belongs_to_one", Need::Kafka, |home| {
            link_belongs_to_one(&launch_kafka(&home, KafkaConfig::default().with_links(2))?)
        }),
        trial("three_kafka_nodes_survive_the_loss_of_one", Need::Kafka, |home| {
            survives_the_loss_of_one(launch_kafka(&home, KafkaConfig::default().with_nodes(3))?)
        }),
        trial("three_nats_nodes_survive_the_loss_of_one", Need::Nats, |home| {
            survives_the_loss_of_one(launch_nats(&home, NatsConfig::default().with_nodes(3))?)
        }),
        trial("a_server_that_cannot_start_says_why", Need::Nats, |home| {
            let error = launch_nats(&home, NatsConfig::default().with_extra("no_such_option: 1"));
            let text = error.map(drop).map_err(|error| error.to_string());
            check(matches!(&text, Err(text) if text.contains("no_such_option")), format!("{text:?}"))
        }),
        trial("a_frozen_server_answers_nobody_until_it_is_thawed", Need::Nats, |home| {
            let mut server = launch_nats(&home, NatsConfig::default())?;
            server.freeze()?;
            check(!greets(server.addresses()[0]), "a frozen server answered")?;
            server.thaw()?;
            check(greets(server.addresses()[0]), "a thawed server did not answer")
        }),
        trial("a_stream_outlives_a_killed_nats", Need::Nats, |home| {
            let mut server = launch_nats(&home, NatsConfig::default())?;
            let address = server.addresses()[0];
            let made = nats_request(address, "$JS.API.STREAM.CREATE.s", r#"{"name":"s","subjects":["s"]}"#)?;
            check(!made.contains("\"error\""), made)?;
            server.kill()?;
            server.start()?;
            let found = nats_request(address, "$JS.API.STREAM.INFO.s", "")?;
            check(!found.contains("\"error\""), found)
        }),
        trial("a_killed_owner_leaves_no_server_behind", Need::Nats, killed_owner),
        trial("a_stream_of_three_replicas_can_be_made_at_once", Need::Nats, |home| {
            let server = launch_nats(&home, NatsConfig::default().with_nodes(3))?;
            let body = r#"{"name":"s","subjects":["s"],"num_replicas":3}"#;
            let answer = nats_request(server.addresses()[0], "$JS.API.STREAM.CREATE.s", body)?;
            check(!answer.contains("\"error\""), answer)
        }),
    ];
    libtest_mimic::run(&args, trials).exit();
}

fn trial(name: &str, need: Need, run: fn(Home) -> Result<(), Failed>) -> Trial {
    private_trial(name, need, run)
}

fn check(holds: bool, otherwise: impl Into<String>) -> Result<(), Failed> {
    if holds { Ok(()) } else { Err(Failed::from(otherwise.into())) }
}

fn keeps_port_and_data(mut server: Server) -> Result<(), Failed> {
    let (address, dir) = (server.addresses()[0], server.dir().to_owned());
    check(accepts(address), "does not accept")?;
    server.stop()?;
    check(!accepts(address), "accepts after stop")?;
    server.start()?;
    server.kill()?;
    check(!accepts(address), "accepts after kill")?;
    server.start()?;
    server.start()?; // does nothing
    server.restart()?;
    check(accepts(address) && server.addresses() == [address], "has moved")?;
    check(server.node(0).is_some_and(|node| node.log().exists()), "has no log")?;
    drop(server);
    check(!accepts(address) && !dir.exists(), "left something behind")
}

fn survives_the_loss_of_one(mut server: Server) -> Result<(), Failed> {
    let node = server.node(0).ok_or("no node")?;
    node.kill()?;
    node.start()?;
    server.restart()?;
    check(server.nodes().iter_mut().all(|node| node.is_running()), "a node is missing")
}

fn link_belongs_to_one(server: &Server) -> Result<(), Failed> {
    let links = server.links();
    check(links.len() == 2 && server.link(2).is_none(), format!("{links:?}"))?;
    for link in &links {
        let line = Line::open(link.routes())?;
        check(line.url("kafka") == link.url("kafka"), format!("{line:?} {link:?}"))?;
        // What a client is told leads it back to the proxy.
        check(kafka_advertises(line.addresses()[0])? == line.addresses(), "leads around its proxy")?;
        check(Line::open(link.routes()).is_err(), "two have the same link")?;
    }
    check(kafka_advertises(server.addresses()[0])? == server.addresses(), "its own listener has moved")
}

/// The addresses of brokers in a metadata answer of Kafka.
fn kafka_advertises(address: SocketAddr) -> Result<Vec<SocketAddr>, Failed> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    // Metadata, version 1: correlation 1, client "x", no topics.
    stream.write_all(b"\0\0\0\x0f\0\x03\0\x01\0\0\0\x01\0\x01x\0\0\0\0")?;
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let mut answer = vec![0; u32::from_be_bytes(length) as usize];
    stream.read_exact(&mut answer)?;
    let host = b"\0\x09127.0.0.1";
    let found = answer.windows(host.len() + 4).filter(|window| window.starts_with(host));
    let ports = found.filter_map(|window| Some(u32::from_be_bytes(*window.last_chunk()?)));
    Ok(ports.filter_map(|port| Some(SocketAddr::from(([127, 0, 0, 1], u16::try_from(port).ok()?)))).collect())
}

fn killed_owner(home: Home) -> Result<(), Failed> {
    let mut owner = Command::new(std::env::current_exe()?)
        .env("EBUS_TEST_OWN_A_SERVER", "1")
        .env(Home::VARIABLE, home.path())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut lines = BufReader::new(owner.stdout.take().ok_or("no output")?).lines();
    let mut next = || lines.next().ok_or("the owner ended").map_err(Failed::from);
    let address: SocketAddr = next()??.parse().map_err(|error| format!("{error}"))?;
    let dir = std::path::PathBuf::from(next()??);
    check(accepts(address) && dir.exists(), "did not start")?;
    owner.kill()?;
    owner.wait()?;
    let deadline = Instant::now() + Duration::from_secs(10);
    while accepts(address) || dir.exists() {
        check(Instant::now() < deadline, "the server or its directory is still there")?;
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

fn own_a_server() -> ! {
    let run = || -> Result<(), BrokerError> {
        let Some(home) = Home::from_env() else { return Ok(()) };
        let server = launch_nats(&home, NatsConfig::default())?;
        println!("{}\n{}", server.addresses()[0], server.dir().display());
        std::thread::park();
        Ok(())
    };
    let result = run();
    eprintln!("the owner ended: {result:?}");
    std::process::exit(1)
}

fn accepts(address: SocketAddr) -> bool {
    TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_ok()
}

fn greets(address: SocketAddr) -> bool {
    let Ok(stream) = TcpStream::connect_timeout(&address, Duration::from_secs(1)) else { return false };
    let mut line = String::new();
    stream.set_read_timeout(Some(Duration::from_secs(1))).is_ok()
        && BufReader::new(stream).read_line(&mut line).is_ok_and(|count| count > 0)
}

/// One request in NATS's own protocol: the test needs no client for it.
fn nats_request(address: SocketAddr, subject: &str, body: &str) -> Result<String, Failed> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    write!(
        stream,
        "CONNECT {{\"verbose\":false}}\r\nSUB inbox 1\r\nPUB {subject} inbox {}\r\n{body}\r\n",
        body.len()
    )?;
    let mut lines = BufReader::new(stream).lines();
    loop {
        let line = lines.next().ok_or("the server closed the connection")??;
        if line.starts_with("MSG inbox") {
            return Ok(lines.next().ok_or("the server closed the connection")??);
        }
    }
}
