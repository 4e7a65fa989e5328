//! From a URL to a backend: the one place that knows which backends this build has (G8).

use std::sync::Arc;

use ebus_core::{Backend, Error, ErrorKind};
use ebus_memory::{MemoryBackend, MemoryConfig};

/// Connects to the broker at this URL: `memory://`, `kafka://host:port,host:port` or `nats://host:port`, with settings as
/// `?key=value&key=value`; each backend's configuration lists its keys.
///
/// Every `memory://` is a broker of its own. Use this where the backend itself is wanted, to read topics back for example or
/// to wrap it; otherwise [`Bus::connect`](crate::Bus::connect).
///
/// # Errors
/// `ConfigInvalid` for a URL that is not one of these or has an unknown key, `Unsupported` for a backend that this build
/// lacks, naming the cargo feature; `Unavailable`, `Denied` or `Timeout` when the broker does not take the connection.
pub async fn connect(url: &str) -> Result<Arc<dyn Backend>, Error> {
    match scheme(url) {
        Some("memory") => Ok(Arc::new(MemoryBackend::new(MemoryConfig::from_url(url)?)?)),
        Some("kafka") => kafka(url).await,
        Some("nats" | "tls") => nats(url).await,
        unknown => Err(unknown_scheme(unknown)),
    }
}

/// What stands before `:` or `://`, if it looks like a scheme. Nothing else of a URL may be shown: it can be a secret.
fn scheme(url: &str) -> Option<&str> {
    let (scheme, rest) = url.split_once(':')?;
    let looks_so = scheme.starts_with(|c: char| c.is_ascii_lowercase())
        && scheme.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "+-.".contains(c));
    (looks_so && (rest.starts_with("//") || rest.is_empty())).then_some(scheme)
}

const KNOWN: &str = "memory://, kafka://host:port or nats://host:port";

fn unknown_scheme(scheme: Option<&str>) -> Error {
    let message = match scheme {
        Some(scheme) => format!("no backend has the scheme {scheme:?}; write {KNOWN}"),
        None => format!("that is not the URL of a broker; write {KNOWN}"),
    };
    Error::new(ErrorKind::ConfigInvalid, message).with_operation("connect")
}

#[cfg(feature = "kafka")]
async fn kafka(url: &str) -> Result<Arc<dyn Backend>, Error> {
    use ebus_kafka::{KafkaBackend, KafkaConfig};
    Ok(Arc::new(KafkaBackend::connect(KafkaConfig::from_url(url)?).await?))
}

#[cfg(not(feature = "kafka"))]
async fn kafka(_url: &str) -> Result<Arc<dyn Backend>, Error> {
    Err(lacks("kafka"))
}

#[cfg(feature = "nats")]
async fn nats(url: &str) -> Result<Arc<dyn Backend>, Error> {
    use ebus_nats::{NatsBackend, NatsConfig};
    Ok(Arc::new(NatsBackend::connect(NatsConfig::from_url(url)?).await?))
}

#[cfg(not(feature = "nats"))]
async fn nats(_url: &str) -> Result<Arc<dyn Backend>, Error> {
    Err(lacks("nats"))
}

#[cfg(not(all(feature = "kafka", feature = "nats")))]
fn lacks(feature: &'static str) -> Error {
    let message = format!(
        "this build has no backend for {feature}; build it with the cargo feature {feature:?} (--features {feature})"
    );
    Error::new(ErrorKind::Unsupported, message).with_operation("connect").with_context("feature", feature)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn refused(url: &str) -> Error {
        match connect(url).await {
            Ok(backend) => panic!("{url} gave {:?}", backend.capability()),
            Err(error) => error,
        }
    }

    #[tokio::test]
    async fn an_unknown_scheme_is_refused_and_the_known_ones_are_named() {
        for url in ["amqp://localhost", "http:", "redis://u:secret@h"] {
            let error = refused(url).await;
            assert_eq!(error.kind(), ErrorKind::ConfigInvalid, "{url}");
            for known in ["memory://", "kafka://", "nats://", url.split(':').next().expect("a scheme")] {
                assert!(error.to_string().contains(known), "{error}");
            }
            assert!(!error.to_string().contains("secret"), "{error}");
        }
    }

    #[tokio::test]
    async fn what_is_no_url_is_refused_and_not_shown() {
        for url in ["", "localhost:9092", "secret:9092", "://", "Kafka//x"] {
            let error = refused(url).await;
            assert_eq!(error.kind(), ErrorKind::ConfigInvalid, "{url}");
            assert!(
                error.to_string().contains("memory://") && !error.to_string().contains("secret"),
                "{error}"
            );
        }
    }

    #[tokio::test]
    async fn memory_is_always_there_and_has_keys() {
        assert_eq!(connect("memory://").await.expect("is there").capability().backend, "memory");
        assert!(refused("memory://?colour=red").await.to_string().contains("\"colour\""));
    }

    #[cfg(not(feature = "kafka"))]
    #[tokio::test]
    async fn i06_a_backend_that_the_build_lacks_names_its_feature() {
        let error = refused("kafka://localhost:9092").await;
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains("--features kafka"), "{error}");
    }

    #[cfg(not(feature = "nats"))]
    #[tokio::test]
    async fn i06_a_backend_that_the_build_lacks_names_its_feature_too() {
        let error = refused("nats://localhost:4222").await;
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains("--features nats"), "{error}");
    }
}
