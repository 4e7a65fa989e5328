//! The private broker, driven by a thread of its own: starting a node takes seconds, and the schedule goes on.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use anyhow::{Context, Result, bail};
use ebus_testkit::brokers::{
    BrokerError, Home, KafkaConfig, Link, NatsConfig, Server, launch_kafka, launch_nats,
};
use ebus_testkit::history::Kind;
use ebus_testkit::proxy::Line;
use tokio::sync::oneshot;

use super::Reach;
use crate::options::{Backend, Ground};
use crate::world::Marks;

/// A session that ends soon, and publishes that fail sooner than the publisher waits for them at the end.
const KAFKA_SETTINGS: &str = "session_timeout_ms=6000&delivery_timeout_ms=15000";
/// With the consumer protocol it is the broker that says when a session ends, and how often it is to hear of a member.
const KAFKA_GROUPS: [(&str, &str); 2] =
    [("group.consumer.session.timeout.ms", "6000"), ("group.consumer.heartbeat.interval.ms", "500")];

/// What is done to a node.
#[derive(Debug)]
pub(super) enum Operation {
    Stop(usize),
    Kill(usize),
    Freeze(usize),
    Start(usize),
    Thaw(usize),
    /// All nodes are to run; answered when they do.
    Heal(oneshot::Sender<()>),
}

#[derive(Debug)]
pub(super) struct Broker {
    ground: Ground,
    url: String,
    addresses: Vec<SocketAddr>,
    /// Of a broker that tells its clients where it is.
    links: Vec<Link>,
    orders: Option<Sender<Operation>>,
    trouble: Arc<Mutex<Vec<String>>>,
    thread: Option<JoinHandle<()>>,
}

impl Broker {
    /// For so many processes at once.
    pub(super) fn launch(ground: Ground, processes: usize, marks: Marks) -> Result<Self> {
        let Ground { backend, nodes, .. } = ground;
        let home = Home::from_env().with_context(|| {
            format!("{} names no directory of brokers; run `cargo xtask chaos`, which does", Home::VARIABLE)
        })?;
        let server = match backend {
            Backend::Kafka => {
                let config = KafkaConfig::default().with_nodes(nodes).with_links(processes);
                let with = |config: KafkaConfig, (name, value)| config.with_property(name, value);
                launch_kafka(&home, KAFKA_GROUPS.into_iter().fold(config, with))?
            }
            Backend::Nats => launch_nats(&home, NatsConfig::default().with_nodes(nodes))?,
            Backend::Memory => bail!("the broker in memory is not launched"),
        };
        let (url, addresses) = (server.url(), server.addresses());
        let links: Vec<Link> = (0..processes).map_while(|number| server.link(number)).collect();
        let (orders, ordered) = mpsc::channel();
        let trouble = Arc::default();
        let worker = Worker { server, marks, trouble: Arc::clone(&trouble), down: vec![false; nodes] };
        let thread = std::thread::Builder::new().name("broker".into()).spawn(move || worker.run(&ordered))?;
        Ok(Self { ground, url, addresses, links, orders: Some(orders), trouble, thread: Some(thread) })
    }

    /// The broker itself.
    pub(super) fn url(&self) -> &str {
        &self.url
    }

    /// The network of one process more.
    pub(super) fn network(&self) -> Result<Reach> {
        if self.ground.backend == Backend::Nats {
            let line = Line::to(self.addresses.iter().map(SocketAddr::to_string))?;
            let url = line.url("nats");
            return Ok((line, url));
        }
        for link in &self.links {
            match Line::open(link.routes()) {
                Ok(line) => {
                    let protocol = if self.ground.consumer_protocol { "consumer" } else { "classic" };
                    let url = link.url("kafka");
                    return Ok((line, format!("{url}?{KAFKA_SETTINGS}&group_protocol={protocol}")));
                }
                // Another process has it.
                Err(error) if error.kind() == ErrorKind::AddrInUse => {}
                Err(error) => return Err(error.into()),
            }
        }
        bail!("all {} links are in use", self.links.len())
    }

    /// Is done in the order of the calls.
    pub(super) fn order(&self, operation: Operation) {
        // The thread ends only with this.
        if let Some(orders) = &self.orders {
            let _ = orders.send(operation);
        }
    }

    /// What went wrong since the last call.
    pub(super) fn trouble(&self) -> Vec<String> {
        std::mem::take(&mut *self.trouble.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Resolves when all nodes run.
    pub(super) async fn heal(&self) -> Result<()> {
        let (done, healed) = oneshot::channel();
        self.order(Operation::Heal(done));
        healed.await.context("the thread of the broker is gone")
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        drop(self.orders.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Worker {
    server: Server,
    marks: Marks,
    trouble: Arc<Mutex<Vec<String>>>,
    down: Vec<bool>,
}

impl Worker {
    fn run(mut self, ordered: &Receiver<Operation>) {
        while let Ok(operation) = ordered.recv() {
            let what = format!("{operation:?}");
            if let Err(error) = self.obey(operation) {
                let mut trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
                trouble.push(format!("{what}: {error}"));
            }
        }
    }

    fn obey(&mut self, operation: Operation) -> Result<(), BrokerError> {
        match operation {
            Operation::Stop(node) => self.down(node, |server, node| server.nodes()[node].stop()),
            Operation::Kill(node) => self.down(node, |server, node| server.nodes()[node].kill()),
            Operation::Freeze(node) => self.down(node, |server, node| server.nodes()[node].freeze()),
            Operation::Start(node) => self.up(node, |server, node| server.nodes()[node].start()),
            Operation::Thaw(node) => self.up(node, |server, node| server.nodes()[node].thaw()),
            Operation::Heal(done) => {
                self.server.thaw()?;
                self.server.start()?;
                for node in 0..self.down.len() {
                    self.up(node, |_, _| Ok(()))?;
                }
                // Who asked may have given up.
                let _ = done.send(());
                Ok(())
            }
        }
    }

    fn down(
        &mut self,
        node: usize,
        how: fn(&mut Server, usize) -> Result<(), BrokerError>,
    ) -> Result<(), BrokerError> {
        if !std::mem::replace(&mut self.down[node], true) {
            self.marks.mark(Kind::Down, &format!("node-{node}"));
        }
        how(&mut self.server, node)
    }

    fn up(
        &mut self,
        node: usize,
        how: fn(&mut Server, usize) -> Result<(), BrokerError>,
    ) -> Result<(), BrokerError> {
        how(&mut self.server, node)?;
        if std::mem::replace(&mut self.down[node], false) {
            self.marks.mark(Kind::Up, &format!("node-{node}"));
        }
        Ok(())
    }
}
