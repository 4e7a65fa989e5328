//! The servers that tests share, and the variables by which tests find them.

use std::{env, process::Command};

use anyhow::Result;
use ebus_testkit::brokers::{
    BrokerError, Home, KafkaConfig, Link, Missing, NatsConfig, Need, Server, launch_kafka, launch_nats,
    provision_kafka, provision_nats,
};

/// One server for every need that the user has not met himself. They end when this is dropped.
#[derive(Debug)]
pub(crate) struct Servers {
    home: Home,
    variables: Vec<(&'static str, String)>,
    missing: Vec<(Need, Missing)>,
    _running: Vec<Server>,
}

impl Servers {
    /// Installs what is missing and starts a server for each need.
    ///
    /// # Errors
    /// When installing or starting fails. A tool that is not there is no error: tests are told, and are ignored.
    pub(crate) fn start(home: &Home, needs: &[Need]) -> Result<Self> {
        let mut servers =
            Self { home: home.clone(), variables: Vec::new(), missing: Vec::new(), _running: Vec::new() };
        for need in needs {
            servers.add(*need)?;
        }
        Ok(servers)
    }

    fn add(&mut self, need: Need) -> Result<()> {
        // Installed also when there is a shared server: tests that kill servers need their own.
        let provisioned = provision(&self.home, need);
        let given = env::var(need.url_variable()).unwrap_or_default();
        let shared = if given.is_empty() {
            provisioned.and_then(|()| launch(&self.home, need)).map(Some)
        } else {
            println!("{:<6} {given} ({} is set)", need.name(), need.url_variable());
            provisioned.map(|()| None)
        };
        match shared {
            Ok(None) => {}
            Ok(Some(server)) => {
                println!("{:<6} {}", need.name(), server.url());
                self.variables.push((need.url_variable(), server.url()));
                if let Some(variable) = need.links_variable() {
                    self.variables.push((variable, Link::show_all(&server.links())));
                }
                self._running.push(server);
            }
            Err(BrokerError::Unavailable(missing)) => {
                println!("{:<6} not available: {missing}", need.name());
                let told = format!("{}\n{}", missing.reason, missing.command);
                self.variables.push((need.missing_variable(), told));
                self.missing.push((need, missing));
            }
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    /// Tells a command where the servers are.
    pub(crate) fn export(&self, command: &mut Command) {
        command.env(Home::VARIABLE, self.home.path());
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
    }

    /// What could not be had.
    pub(crate) fn missing(&self) -> &[(Need, Missing)] {
        &self.missing
    }
}

pub(crate) fn provision(home: &Home, need: Need) -> Result<(), BrokerError> {
    match need {
        Need::Kafka => provision_kafka(home),
        Need::Nats => provision_nats(home),
        _ => unknown(need),
    }
}

/// Links for all the members that can be killed at once by the cases that run beside each other.
const LINKS: usize = 16;

/// The Kafka that tests share.
pub(crate) fn shared_kafka() -> KafkaConfig {
    KafkaConfig::default().with_links(LINKS)
}

fn launch(home: &Home, need: Need) -> Result<Server, BrokerError> {
    match need {
        Need::Kafka => launch_kafka(home, shared_kafka()),
        Need::Nats => launch_nats(home, NatsConfig::default()),
        _ => unknown(need),
    }
}

/// A need that the testkit has learned and xtask has not.
pub(crate) fn unknown<T>(need: Need) -> Result<T, BrokerError> {
    let reason = format!("cargo xtask cannot start {}", need.name());
    Err(Missing::new(reason, "$EDITOR xtask/src/servers.rs").into())
}
