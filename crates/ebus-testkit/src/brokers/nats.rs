//! Starts nats-server with JetStream.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::Path,
};

use super::{
    BrokerError, Detached, Home, Missing, Server, detached,
    install::write,
    nats_wire::{probe_client, probe_health, probe_peers},
    run_dir::RunDir,
    server::Plan,
};

/// The version that is installed and tested against.
pub const NATS_VERSION: &str = "2.15.1";

/// Client, route and monitor.
const PORTS_PER_NODE: usize = 3;

/// Settings of a nats-server for tests. The default is one node with JetStream on file storage.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct NatsConfig {
    /// How many nodes, 1 by default; 3 can hold streams of three replicas.
    pub nodes: usize,
    /// More text for the server's configuration file, accounts and permissions for example.
    pub extra: String,
}

impl Default for NatsConfig {
    fn default() -> Self {
        Self { nodes: 1, extra: String::new() }
    }
}

impl NatsConfig {
    /// A cluster of this many nodes.
    pub fn with_nodes(mut self, nodes: usize) -> Self {
        self.nodes = nodes.max(1);
        self
    }

    /// More text for the configuration file.
    pub fn with_extra(mut self, text: impl AsRef<str>) -> Self {
        self.extra.push_str(text.as_ref());
        self.extra.push('\n');
        self
    }
}

/// Starts a private nats-server and waits until JetStream can be used.
///
/// # Errors
/// [`BrokerError::Unavailable`] when nats-server is not installed under `home`; otherwise what failed, with the end of the
/// server's log.
pub fn launch_nats(home: &Home, config: NatsConfig) -> Result<Server, BrokerError> {
    check(home)?;
    let dir = RunDir::create(home, "nats", config.nodes * PORTS_PER_NODE)?;
    let plans = plan(home, &config, dir.path(), dir.ports())?;
    Server::launch("nats", dir, plans)
}

/// Starts a nats-server that outlives this process, until [`Detached::stop`].
///
/// # Errors
/// Those of [`launch_nats`].
pub fn launch_nats_detached(home: &Home, config: NatsConfig) -> Result<Detached, BrokerError> {
    check(home)?;
    let ports = config.nodes * PORTS_PER_NODE;
    detached::launch(home, "nats", ports, |dir, ports| plan(home, &config, dir, ports))
}

fn check(home: &Home) -> Result<(), BrokerError> {
    if home.has_nats() {
        return Ok(());
    }
    let reason = format!("nats-server {NATS_VERSION} is not installed in {}", home.path().display());
    Err(Missing::new(reason, "cargo xtask brokers up nats").into())
}

fn plan(home: &Home, config: &NatsConfig, dir: &Path, ports: &[u16]) -> Result<Vec<Plan>, BrokerError> {
    let on = |index: usize, which: usize| {
        SocketAddr::from((Ipv4Addr::LOCALHOST, ports[index * PORTS_PER_NODE + which]))
    };
    let all = config.nodes;
    let routes: Vec<_> = (0..all).map(|index| format!("\"nats-route://{}\"", on(index, 1))).collect();
    let monitors: Vec<_> = (0..all).map(|index| on(index, 2)).collect();
    let mut plans = Vec::new();
    for index in 0..all {
        let node = dir.join(format!("node-{}", index + 1));
        let (client, monitor) = (on(index, 0), on(index, 2));
        let cluster = match all {
            1 => String::new(),
            // Clients that came through a proxy must not be told the way around it.
            _ => format!(
                "cluster {{ name: ebus, listen: \"{}\", no_advertise: true, routes: [{}] }}\n",
                on(index, 1),
                routes.join(", ")
            ),
        };
        std::fs::create_dir_all(&node).map_err(BrokerError::io("create", &node))?;
        let text = format!(
            "server_name: node-{}\nlisten: \"{client}\"\nhttp: \"{monitor}\"\njetstream {{ store_dir: {:?} }}\n{cluster}{}",
            index + 1,
            node.join("data"),
            config.extra
        );
        let file = write(node.join("server.conf"), &text)?;
        let monitors = monitors.clone();
        plans.push(Plan {
            name: format!("nats-server node {}", index + 1),
            address: client,
            command: vec![home.nats().join("nats-server").into(), "-c".into(), file.into()],
            dir: node,
            links: Vec::new(),
            probe: Box::new(move |nodes| {
                probe_client(client)?;
                probe_health(monitor)?;
                if nodes > 1 { probe_peers(&monitors, nodes) } else { Ok(()) }
            }),
        });
    }
    Ok(plans)
}
