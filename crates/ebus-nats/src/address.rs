//! `nats://` addresses, and settings from their query. What is not known is refused (G8).

use std::time::Duration;

use ebus_core::{Error, ErrorKind};
use url::Url;

use crate::auth::{Credentials, Secret};
use crate::config::{MissingTopic, NatsConfig};

/// The keys of a query.
const KEYS: [&str; 20] = [
    "name",
    "max_in_flight",
    "max_in_flight_bytes",
    "batches",
    "publish_timeout",
    "connect_timeout",
    "request_timeout",
    "lease",
    "missing_topic",
    "partitions",
    "replicas",
    "bucket",
    "bucket_replicas",
    "token",
    "nkey",
    "credentials",
    "tls",
    "tls_first",
    "root_certificates",
    "client_certificate",
];

/// Why this is no address of a server. Never shows what stands before an `@`.
pub(crate) fn check_server(server: &str) -> Result<(), String> {
    let shown = without_user(server);
    let url = Url::parse(server).map_err(|why| format!("servers: {shown:?} is not an address: {why}"))?;
    if !matches!(url.scheme(), "nats" | "tls") {
        return Err(format!("servers: {shown:?} must begin with nats:// or tls://"));
    }
    if url.host_str().is_none_or(str::is_empty) {
        return Err(format!("servers: {shown:?} has no host"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(format!("servers: {shown:?} carries a user; set it with with_user or with_token"));
    }
    if url.query().is_some() || !matches!(url.path(), "" | "/") {
        return Err(format!("servers: {shown:?} has more than host and port; use from_url for settings"));
    }
    Ok(())
}

/// An address without user and query: what may be shown.
pub(crate) fn without_user(server: &str) -> String {
    let (scheme, rest) = server.split_once("://").unwrap_or(("", server));
    let rest = rest.split(['?', '#']).next().unwrap_or_default();
    let host = rest.rsplit_once('@').map_or(rest, |(_, host)| host);
    if scheme.is_empty() { host.to_owned() } else { format!("{scheme}://{host}") }
}

impl NatsConfig {
    /// From `nats://user:password@host:port,host:port?key=value&...`, or `tls://` for TLS or nothing.
    ///
    /// Keys are the names of the fields of [`NatsConfig`] and `token`, `nkey`, `credentials` (a file), `tls`, `tls_first`,
    /// `root_certificates` (a file), `client_certificate` (`certificate:key`, two files), `missing_topic` (`refuse` or
    /// `create`, with `partitions` and `replicas`). Durations are `250ms`, `3s`, `1m`.
    ///
    /// # Errors
    /// `ConfigInvalid`, naming every problem at once: an unknown key too.
    pub fn from_url(text: &str) -> Result<Self, Error> {
        let invalid = |why: String| {
            Error::new(ErrorKind::ConfigInvalid, format!("invalid url: {why}")).with_operation("connect")
        };
        let (scheme, rest) = text
            .split_once("://")
            .filter(|(scheme, _)| matches!(*scheme, "nats" | "tls"))
            .ok_or_else(|| invalid("it must begin with nats:// or tls://".into()))?;
        let (authority, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (user, hosts) = authority.rsplit_once('@').map_or((None, authority), |(u, h)| (Some(u), h));
        let hosts = hosts.trim_end_matches('/');
        let servers: Vec<String> = hosts
            .split(',')
            .filter(|host| !host.is_empty())
            .map(|host| if scheme == "tls" { format!("tls://{host}") } else { format!("nats://{host}") })
            .collect();
        let mut config = Self::new(servers);
        if let Some(user) = user {
            // A url of its own, so that escapes are read by the rules of urls.
            let url = Url::parse(&format!("nats://{user}@host")).map_err(|_| {
                invalid("user and password cannot be read; escape what is special in them".into())
            })?;
            let decode = |text: &str| {
                url::form_urlencoded::parse(
                    format!("v={}", text.replace('+', "%2B").replace('&', "%26")).as_bytes(),
                )
                .next()
                .map_or_else(String::new, |(_, value)| value.into_owned())
            };
            config = match url.password() {
                Some(password) => config.with_user(decode(url.username()), decode(password)),
                None => config.with_token(decode(url.username())),
            };
        }
        if scheme == "tls" {
            config = config.with_tls();
        }
        let mut problems = Vec::new();
        let mut create = (false, 1u32, 1u16, false);
        for (key, value) in url::form_urlencoded::parse(query.as_bytes()) {
            if let Err(why) = config.apply(&key, &value, &mut create) {
                problems.push(format!("{key}: {why}"));
            }
        }
        match create {
            (true, partitions, replicas, _) => {
                config.missing_topic = MissingTopic::Create { partitions, replicas };
            }
            (false, _, _, true) => {
                problems.push("partitions, replicas: only with missing_topic=create".into());
            }
            (false, ..) => {}
        }
        if !problems.is_empty() {
            return Err(invalid(problems.join("; ")));
        }
        config.validate()?;
        Ok(config)
    }

    /// `create` is: whether to, partitions, replicas, whether one of these two was given.
    fn apply(&mut self, key: &str, value: &str, create: &mut (bool, u32, u16, bool)) -> Result<(), String> {
        match key {
            "name" => self.name = value.into(),
            "max_in_flight" => self.max_in_flight = number(value)?,
            "max_in_flight_bytes" => self.max_in_flight_bytes = number(value)?,
            "batches" => self.batches = flag(value)?,
            "publish_timeout" => self.publish_timeout = duration(value)?,
            "connect_timeout" => self.connect_timeout = duration(value)?,
            "request_timeout" => self.request_timeout = duration(value)?,
            "lease" => self.lease = Some(duration(value)?),
            "missing_topic" => {
                create.0 = match value {
                    "refuse" => false,
                    "create" => true,
                    _ => return Err("refuse or create".to_owned()),
                }
            }
            "partitions" => (create.1, create.3) = (number(value)?, true),
            "replicas" => (create.2, create.3) = (number(value)?, true),
            "bucket" => self.bucket = value.into(),
            "bucket_replicas" => self.bucket_replicas = Some(number(value)?),
            "token" | "nkey" | "credentials" if self.credentials.is_some() => {
                return Err("the url has credentials already; give one kind".to_owned());
            }
            "token" => self.credentials = Some(Credentials::Token(Secret(value.into()))),
            "nkey" => self.credentials = Some(Credentials::Nkey(Secret(value.into()))),
            "credentials" => self.credentials = Some(Credentials::File(value.into())),
            "tls" => self.tls.required = flag(value)?,
            "tls_first" => self.tls.first = flag(value)?,
            "root_certificates" => self.tls.root = Some(value.into()),
            "client_certificate" => {
                let (certificate, key) = value.split_once(':').ok_or("two files, certificate:key")?;
                self.tls.client = Some((certificate.into(), key.into()));
            }
            _ => return Err(format!("not known; known are {}", KEYS.join(", "))),
        }
        Ok(())
    }
}

fn number<T: std::str::FromStr>(value: &str) -> Result<T, String> {
    value.parse().map_err(|_| "not a number in range".to_owned())
}

fn flag(value: &str) -> Result<bool, String> {
    value.parse().map_err(|_| "true or false".to_owned())
}

fn duration(value: &str) -> Result<Duration, String> {
    let digits = value.len() - value.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = value.split_at(digits);
    let number: u64 = number.parse().map_err(|_| "a duration such as 250ms, 3s or 1m".to_owned())?;
    match unit {
        "ms" => Ok(Duration::from_millis(number)),
        "s" => Ok(Duration::from_secs(number)),
        "m" => Ok(Duration::from_secs(number.saturating_mul(60))),
        _ => Err("a duration needs a unit: ms, s or m".to_owned()),
    }
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
