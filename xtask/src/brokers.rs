//! `cargo xtask brokers`: servers that stay until they are told to go.

use anyhow::Result;
use clap::{Subcommand, ValueEnum};
use ebus_testkit::brokers::{
    BrokerError, Detached, Home, Link, NatsConfig, Need, launch_kafka_detached, launch_nats_detached,
};

use crate::{
    servers::{provision, shared_kafka, unknown},
    workspace::Workspace,
};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Install what is missing, start, and print what to export
    Up {
        /// Which; both when none is named
        brokers: Vec<Broker>,
    },
    /// Stop, and remove the data
    Down {
        /// Which; both when none is named
        brokers: Vec<Broker>,
    },
    /// Print what is running
    Status {
        /// Which; both when none is named
        brokers: Vec<Broker>,
    },
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Broker {
    Kafka,
    Nats,
}

impl From<Broker> for Need {
    fn from(broker: Broker) -> Self {
        match broker {
            Broker::Kafka => Self::Kafka,
            Broker::Nats => Self::Nats,
        }
    }
}

type Act = fn(&Home, Need) -> Result<(), BrokerError>;

pub(crate) fn run(workspace: &Workspace, args: &Args) -> Result<bool> {
    let home = workspace.brokers();
    let (act, brokers): (Act, _) = match &args.action {
        Action::Up { brokers } => (up, brokers),
        Action::Down { brokers } => (down, brokers),
        Action::Status { brokers } => (status, brokers),
    };
    let named: Vec<Need> = brokers.iter().map(|broker| Need::from(*broker)).collect();
    let needs = if named.is_empty() { Need::ALL.to_vec() } else { named };
    let mut all = true;
    for need in needs {
        if let Err(error) = act(&home, need) {
            eprintln!("{}: {error}", need.name());
            all = false;
        }
    }
    if all && matches!(args.action, Action::Up { .. }) {
        println!("export {}={}", Home::VARIABLE, home.path().display());
    }
    Ok(all)
}

/// Prints lines that a shell can evaluate: `eval "$(cargo xtask brokers up)"`.
fn up(home: &Home, need: Need) -> Result<(), BrokerError> {
    provision(home, need)?;
    let server = match need {
        Need::Kafka => launch_kafka_detached(home, shared_kafka())?,
        Need::Nats => launch_nats_detached(home, NatsConfig::default())?,
        _ => unknown(need)?,
    };
    println!("export {}={}", need.url_variable(), server.url());
    if let Some(variable) = need.links_variable() {
        println!("export {variable}='{}'", Link::show_all(server.links()));
    }
    Ok(())
}

fn down(home: &Home, need: Need) -> Result<(), BrokerError> {
    match Detached::find(home, need.name()) {
        Some(server) => {
            let url = server.url().to_owned();
            server.stop()?;
            println!("{:<6} stopped {url}", need.name());
        }
        None => println!("{:<6} is not running", need.name()),
    }
    Ok(())
}

fn status(home: &Home, need: Need) -> Result<(), BrokerError> {
    match Detached::find(home, need.name()) {
        Some(server) => println!("{:<6} {} in {}", need.name(), server.url(), server.dir().display()),
        None => println!("{:<6} is not running", need.name()),
    }
    Ok(())
}
