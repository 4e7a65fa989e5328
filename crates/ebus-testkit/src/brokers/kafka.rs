//! Starts Apache Kafka in KRaft mode: every node is broker and controller in one.

use std::{
    ffi::OsString,
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    process::Command,
    time::{SystemTime, UNIX_EPOCH},
};

use super::{
    BrokerError, Detached, Home, Missing, Server, detached,
    install::{run, write},
    kafka_install::check_java,
    kafka_wire,
    run_dir::RunDir,
    server::Plan,
};
use crate::route::Route;

/// The version that is installed and tested against.
pub const KAFKA_VERSION: &str = "4.3.0";

/// Settings of a Kafka for tests. The default is one node with groups that notice a dead member soon.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct KafkaConfig {
    /// How many nodes, 1 by default; 3 is a quorum that survives the loss of one.
    pub nodes: usize,
    /// How many [links](super::Link) it has, none by default.
    pub links: usize,
    /// More lines of `server.properties`; they win over ours.
    pub properties: Vec<(String, String)>,
}

impl Default for KafkaConfig {
    fn default() -> Self {
        Self { nodes: 1, links: 0, properties: Vec::new() }
    }
}

impl KafkaConfig {
    /// A cluster of this many nodes.
    pub fn with_nodes(mut self, nodes: usize) -> Self {
        self.nodes = nodes.max(1);
        self
    }

    /// With this many [links](super::Link): ways for one client each, that a test can cut.
    pub fn with_links(mut self, links: usize) -> Self {
        self.links = links;
        self
    }

    /// A line of `server.properties`.
    pub fn with_property(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.properties.push((name.into(), value.into()));
        self
    }

    fn ports(&self) -> usize {
        self.nodes * self.ports_per_node()
    }

    fn ports_per_node(&self) -> usize {
        2 + 2 * self.links
    }
}

/// Starts a private Kafka and waits until it can lead groups. Takes 3 s for one node.
///
/// # Errors
/// [`BrokerError::Unavailable`] when Kafka is not installed under `home` or Java is missing; otherwise what failed, with the
/// end of the server's log.
pub fn launch_kafka(home: &Home, config: KafkaConfig) -> Result<Server, BrokerError> {
    check(home)?;
    let dir = RunDir::create(home, "kafka", config.ports())?;
    let plans = plan(home, &config, dir.path(), dir.ports())?;
    Server::launch("kafka", dir, plans)
}

/// Starts a Kafka that outlives this process, until [`Detached::stop`].
///
/// # Errors
/// Those of [`launch_kafka`].
pub fn launch_kafka_detached(home: &Home, config: KafkaConfig) -> Result<Detached, BrokerError> {
    check(home)?;
    detached::launch(home, "kafka", config.ports(), |dir, ports| plan(home, &config, dir, ports))
}

fn check(home: &Home) -> Result<(), BrokerError> {
    if !home.has_kafka() {
        let reason = format!("Kafka {KAFKA_VERSION} is not installed in {}", home.path().display());
        return Err(Missing::new(reason, "cargo xtask brokers up kafka").into());
    }
    check_java()
}

/// Formats the storage of every node and says how to start it.
fn plan(home: &Home, config: &KafkaConfig, dir: &Path, ports: &[u16]) -> Result<Vec<Plan>, BrokerError> {
    let cluster = cluster_id();
    let of_node: Vec<Ports<'_>> = ports.chunks_exact(config.ports_per_node()).map(Ports).collect();
    let voter =
        |(index, ports): (usize, &Ports<'_>)| format!("{}@127.0.0.1:{}", index + 1, ports.controller());
    let voters = of_node.iter().enumerate().map(voter).collect::<Vec<_>>().join(",");
    let mut plans = Vec::new();
    for (index, ports) in of_node.iter().enumerate() {
        let node = dir.join(format!("node-{}", index + 1));
        std::fs::create_dir_all(&node).map_err(BrokerError::io("create", &node))?;
        let text = properties(config, index + 1, &node, &voters, ports);
        let file = write(node.join("server.properties"), &text)?;
        let mut format = Command::new("java");
        format
            .args(["-Xshare:auto", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-cp"])
            .arg(class_path(home));
        format.args(["kafka.tools.StorageTool", "format", "-t", &cluster, "-c"]).arg(&file);
        run(&mut format, || {
            Missing::new("Java is not installed", "apt-get install openjdk-17-jre-headless")
        })?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, ports.client()));
        let all = config.nodes;
        plans.push(Plan {
            name: format!("Kafka node {}", index + 1),
            address,
            command: command(home, &node, &file),
            dir: node,
            links: ports
                .links()
                .map(|link| Route::new(link.advertised, on_localhost(link.listener)))
                .collect(),
            probe: Box::new(move |nodes| kafka_wire::probe(address, nodes, nodes == all)),
        });
    }
    Ok(plans)
}

fn command(home: &Home, node: &Path, file: &Path) -> Vec<OsString> {
    let mut words: Vec<OsString> = ["java", "-Xmx512m", "-XX:+UseSerialGC", "-cp"].map(Into::into).into();
    let mut log4j = OsString::from("-Dlog4j2.configurationFile=");
    log4j.push(home.kafka().join("log4j2.properties"));
    let mut errors = OsString::from("-XX:ErrorFile=");
    errors.push(node.join("jvm-error"));
    words.extend([class_path(home), log4j, errors, "kafka.Kafka".into(), file.into()]);
    words
}

fn class_path(home: &Home) -> OsString {
    home.kafka().join("libs").join("*").into_os_string()
}

/// The ports of one node: for clients, for controllers, and two for each link.
struct Ports<'p>(&'p [u16]);

struct LinkPorts {
    /// Where the node listens.
    listener: u16,
    /// Where it says that it listens.
    advertised: u16,
}

impl Ports<'_> {
    fn client(&self) -> u16 {
        self.0[0]
    }

    fn controller(&self) -> u16 {
        self.0[1]
    }

    fn links(&self) -> impl Iterator<Item = LinkPorts> {
        let pairs = self.0[2..].chunks_exact(2);
        pairs.map(|pair| LinkPorts { listener: pair[0], advertised: pair[1] })
    }
}

fn on_localhost(port: u16) -> String {
    format!("{}:{port}", Ipv4Addr::LOCALHOST)
}

fn properties(config: &KafkaConfig, id: usize, dir: &Path, voters: &str, ports: &Ports<'_>) -> String {
    let (client, controller) = (ports.client(), ports.controller());
    let (mut listeners, mut advertised, mut protocols) = (String::new(), String::new(), String::new());
    let mut threads = String::new();
    for (number, link) in ports.links().enumerate() {
        listeners.push_str(&format!(",L{number}://{}", on_localhost(link.listener)));
        advertised.push_str(&format!(",L{number}://{}", on_localhost(link.advertised)));
        protocols.push_str(&format!(",L{number}:PLAINTEXT"));
        // Three for each listener otherwise, for one client.
        threads.push_str(&format!("listener.name.l{number}.num.network.threads=1\n"));
    }
    let data = dir.join("data");
    let replicas = config.nodes.min(3);
    let in_sync = replicas.min(2);
    let mut text = format!(
        "process.roles=broker,controller
node.id={id}
controller.quorum.voters={voters}
controller.listener.names=CONTROLLER
listeners=PLAINTEXT://127.0.0.1:{client},CONTROLLER://127.0.0.1:{controller}{listeners}
advertised.listeners=PLAINTEXT://127.0.0.1:{client}{advertised}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT{protocols}
{threads}log.dirs={}
broker.session.timeout.ms=4000
broker.heartbeat.interval.ms=500
auto.create.topics.enable=false
default.replication.factor={replicas}
offsets.topic.replication.factor={replicas}
offsets.topic.num.partitions=4
transaction.state.log.replication.factor={replicas}
transaction.state.log.min.isr={in_sync}
transaction.state.log.num.partitions=4
share.coordinator.state.topic.replication.factor={replicas}
share.coordinator.state.topic.min.isr={in_sync}
share.coordinator.state.topic.num.partitions=4
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
group.consumer.min.session.timeout.ms=1000
group.consumer.min.heartbeat.interval.ms=200
log.cleaner.dedupe.buffer.size=8388608
",
        data.display()
    );
    for (name, value) in &config.properties {
        text.push_str(&format!("{name}={value}\n"));
    }
    text
}

/// 22 characters of base64 for 16 bytes, different for every server: a cluster made anew must not look like the old one.
fn cluster_id() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| age.as_nanos());
    format!("{now:021}A")
}
