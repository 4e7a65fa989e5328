//! What a test needs, whether it is there, and what happens when it is not.

use std::{env, fmt};

use super::{Home, Link, Missing};

/// A broker that a test cannot do without.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Need {
    /// Apache Kafka.
    Kafka,
    /// nats-server with JetStream.
    Nats,
}

/// What became of a [`Need`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub enum Found<T> {
    /// It is there.
    Available(T),
    /// It is not; the test is to be ignored with this, or to fail with it when [`Need::is_required`].
    Missing(Missing),
}

impl Need {
    /// Both, in the order in which they are named.
    pub const ALL: [Self; 2] = [Self::Kafka, Self::Nats];

    /// The name in commands and in `EBUS_REQUIRE`: `kafka`, `nats`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Kafka => "kafka",
            Self::Nats => "nats",
        }
    }

    /// The variable with the URL of a shared server.
    pub fn url_variable(self) -> &'static str {
        match self {
            Self::Kafka => "EBUS_KAFKA_URL",
            Self::Nats => "EBUS_NATS_URL",
        }
    }

    /// The variable with the [links](Link) of a shared server; `None` where a proxy on any port does.
    pub fn links_variable(self) -> Option<&'static str> {
        match self {
            Self::Kafka => Some("EBUS_KAFKA_LINKS"),
            Self::Nats => None,
        }
    }

    /// The links of the shared server; none where it was started without, or by the user.
    ///
    /// # Errors
    /// When the variable cannot be read.
    pub fn links(self) -> Result<Vec<Link>, String> {
        let Some(variable) = self.links_variable() else { return Ok(Vec::new()) };
        let text = env::var(variable).unwrap_or_default();
        Link::read_all(&text).map_err(|why| format!("{variable}: {why}"))
    }

    /// The variable in which `cargo xtask test` says why there is none: the reason, a line feed, the command.
    pub fn missing_variable(self) -> &'static str {
        match self {
            Self::Kafka => "EBUS_KAFKA_MISSING",
            Self::Nats => "EBUS_NATS_MISSING",
        }
    }

    /// The URL of the shared server.
    pub fn shared(self) -> Found<String> {
        match env::var(self.url_variable()) {
            Ok(url) if !url.is_empty() => Found::Available(url),
            _ => Found::Missing(self.missing(format_args!("{} is not set", self.url_variable()))),
        }
    }

    /// What a private server can be launched from.
    pub fn private(self) -> Found<Home> {
        let variable = Home::VARIABLE;
        let Some(home) = Home::from_env() else {
            return Found::Missing(self.missing(format_args!("{variable} is not set")));
        };
        // Installed is not enough: xtask also knows whether what runs it is there.
        if env::var_os(self.missing_variable()).is_some() {
            return Found::Missing(self.missing("it cannot be started"));
        }
        let installed = match self {
            Self::Kafka => home.has_kafka(),
            Self::Nats => home.has_nats(),
        };
        if installed {
            return Found::Available(home);
        }
        let at = home.path().display();
        Found::Missing(
            self.missing(format_args!("{} is not installed in {at}, which {variable} names", self.name())),
        )
    }

    /// Whether `EBUS_REQUIRE` names it: then a test that misses it fails.
    pub fn is_required(self) -> bool {
        let required = env::var("EBUS_REQUIRE").unwrap_or_default();
        required.split(',').any(|name| name.trim() == self.name())
    }

    /// The reason that xtask found, which knows better than we do, or else `reason`.
    fn missing(self, reason: impl fmt::Display) -> Missing {
        let told = env::var(self.missing_variable()).unwrap_or_default();
        match told.rsplit_once('\n') {
            Some((reason, command)) => Missing::new(reason, command),
            None => Missing::new(reason.to_string(), "cargo xtask test"),
        }
    }
}
