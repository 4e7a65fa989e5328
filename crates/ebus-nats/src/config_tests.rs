use super::*;

fn refused(url: &str) -> String {
    let error = NatsConfig::from_url(url).expect_err(url);
    assert_eq!(error.kind(), ErrorKind::ConfigInvalid);
    error.to_string()
}

#[test]
fn i06_every_key_of_a_url_changes_something() {
    let plain = NatsConfig::from_url("nats://h:1").expect("plain");
    for (key, value) in KEYS.iter().map(|key| {
        let value = match *key {
            "name" | "bucket" | "token" | "nkey" | "credentials" | "root_certificates" => "other",
            "client_certificate" => "a.pem:b.pem",
            "missing_topic" => "create",
            "partitions" | "replicas" => "3&missing_topic=create",
            "tls" | "tls_first" => "true",
            "batches" => "false",
            "lease" | "publish_timeout" | "connect_timeout" | "request_timeout" => "7s",
            _ => "7",
        };
        (key, value)
    }) {
        let changed = NatsConfig::from_url(&format!("nats://h:1?{key}={value}")).expect(key);
        assert_ne!(changed, plain, "{key} has no effect");
    }
}

#[test]
fn i06_what_is_not_known_is_refused_and_all_problems_are_named_at_once() {
    let text = refused("nats://h:1?tracks=3&lease=5&max_in_flight=many");
    for part in ["tracks", "known are", "lease", "unit", "max_in_flight"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(refused("kafka://h:1").contains("nats://"));
    assert!(refused("nats://").contains("at least one address"));
    assert!(refused("nats://h:1?partitions=4").contains("missing_topic=create"));
    assert!(refused("nats://h:1?lease=10ms").contains("lease"));
    assert!(refused("nats://h:1?max_in_flight=0").contains("max_in_flight"));
    assert!(refused("nats://u:p@h:1?token=t").contains("one kind"));
    assert!(refused("nats://h:1?bucket=a.b").contains("bucket"));
}

#[test]
fn a_url_may_name_several_servers_and_a_user() {
    let config = NatsConfig::from_url("nats://me:p%40ss&+%2F@a:1,b:2/").expect("legal");
    assert_eq!(config.servers, ["nats://a:1", "nats://b:2"]);
    let by_hand = NatsConfig::new(["nats://a:1", "nats://b:2"]).with_user("me", "p@ss&+/");
    assert_eq!(config, by_hand);
    let token = NatsConfig::from_url("nats://s3cr3t@a:1").expect("legal");
    assert_eq!(token, NatsConfig::new(["nats://a:1"]).with_token("s3cr3t"));
    let tls = NatsConfig::from_url("tls://a:1").expect("legal");
    assert_eq!(tls, NatsConfig::new(["tls://a:1"]).with_tls());
}

#[test]
fn i05_no_secret_is_shown() {
    for config in [
        NatsConfig::new(["nats://a:1"]).with_token("s3cr3t"),
        NatsConfig::new(["nats://a:1"]).with_user("me", "s3cr3t"),
        NatsConfig::new(["nats://a:1"]).with_nkey("s3cr3t"),
        NatsConfig::new(["nats://a:1"]).with_credentials("s3cr3t"),
    ] {
        assert!(!format!("{config:?}").contains("s3cr3t"));
    }
    let error =
        NatsConfig::new(["nats://me:s3cr3t@a:1", "http://me:s3cr3t@b:1"]).validate().expect_err("user");
    assert!(!format!("{error} {error:?}").contains("s3cr3t"), "{error}");
    assert_eq!(without_user("nats://me:s3cr3t@a:1?token=s3cr3t"), "nats://a:1");
    assert!(!refused("nats://me:s3cr3t@a:1?x=1").contains("s3cr3t"));
}

#[test]
fn the_defaults_are_valid() {
    NatsConfig::new(["nats://127.0.0.1:4222"]).validate().expect("defaults");
}
