//! What can be asked of the demo, and what of that makes no sense.

use std::path::PathBuf;

use clap::Args;
use ebus::{Capability, Error, ErrorKind};

/// Publishes versions of many aggregates, handles them through failures, and judges what happened.
///
/// The verdict comes only from the recorded history and from reading back the topics, the dead-letter topic and the committed
/// positions. Latency is from the call of publish to the end of the handler that succeeded, retries and waiting included;
/// publishing is not held back, so it contains the backlog. The history is kept in memory, about 5 KB per event.
///
/// Exit status: 0 when every promise held, 1 when one was broken, 2 when the demo could not be run.
#[derive(Debug, Clone, Args)]
pub(crate) struct Options {
    /// The broker: memory://, kafka://host:port,host:port or nats://host:port
    #[arg(long, value_name = "URL", default_value = "memory://")]
    pub(crate) url: String,
    /// Events to publish
    #[arg(long, value_name = "N", default_value_t = 50_000, value_parser = clap::value_parser!(u64).range(1..=2_000_000))]
    pub(crate) events: u64,
    /// Aggregates that they are versions of
    #[arg(long, value_name = "K", default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) aggregates: u32,
    /// Members of the group [default: 3 where the backend can share a group, else 1]
    #[arg(long, value_name = "M", value_parser = clap::value_parser!(u32).range(1..=64))]
    pub(crate) members: Option<u32>,
    /// One member leaves cleanly and one joins on the way
    #[arg(long)]
    pub(crate) churn: bool,
    /// Share of events that fail at their first attempt
    #[arg(long, value_name = "F", default_value_t = 0.01, value_parser = rate)]
    pub(crate) fail_rate: f64,
    /// Share of events that are rejected for good
    #[arg(long, value_name = "F", default_value_t = 0.001, value_parser = rate)]
    pub(crate) reject_rate: f64,
    /// Share of events whose handler panics at their first attempt
    #[arg(long, value_name = "F", default_value_t = 0.001, value_parser = rate)]
    pub(crate) panic_rate: f64,
    /// Aggregates whose handler is slow; they get fewer events when theirs would take longer than 10 s
    #[arg(long, value_name = "N", default_value_t = 5)]
    pub(crate) slow_keys: u32,
    /// How slow, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 50, value_parser = clap::value_parser!(u64).range(0..=600_000))]
    pub(crate) slow_ms: u64,
    /// The same seed gives the same events the same fate [default: a new one, printed]
    #[arg(long, value_name = "SEED")]
    pub(crate) seed: Option<u64>,
    /// Print the verdict as one JSON object on stdout
    #[arg(long)]
    pub(crate) json: bool,
    /// Write the history there, one JSON line per event
    #[arg(long, value_name = "FILE")]
    pub(crate) history: Option<PathBuf>,
}

fn rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if (0.0..=1.0).contains(&rate) => Ok(rate),
        _ => Err("give a share from 0 to 1, such as 0.01".into()),
    }
}

impl Options {
    /// What can be told before anything is connected.
    ///
    /// # Errors
    /// `ConfigInvalid`, naming the options.
    pub(crate) fn check(&self) -> Result<(), Error> {
        let invalid =
            |message: String| Err(Error::new(ErrorKind::ConfigInvalid, message).with_operation("demo"));
        if u64::from(self.aggregates) > self.events {
            return invalid(format!(
                "{} events are too few for {} aggregates; give each at least one (--events, --aggregates)",
                self.events, self.aggregates
            ));
        }
        if self.slow_keys > 0 && self.slow_keys >= self.aggregates {
            return invalid(format!(
                "{} slow keys of {} aggregates leave none that is quick; give fewer (--slow-keys)",
                self.slow_keys, self.aggregates
            ));
        }
        if self.fail_rate + self.reject_rate + self.panic_rate > 1.0 {
            return invalid(
                "the rates add up to more than 1 (--fail-rate, --reject-rate, --panic-rate)".into(),
            );
        }
        Ok(())
    }

    /// How many members there are to be.
    ///
    /// # Errors
    /// `Unsupported` when the backend cannot.
    pub(crate) fn members_on(&self, can: &Capability) -> Result<u32, Error> {
        let several = self.churn || self.members.is_some_and(|members| members > 1);
        if several && !can.several_members {
            let message = format!(
                "on {} a group has one member so far; leave --churn out and give --members 1, or take another backend",
                can.backend
            );
            return Err(Error::new(ErrorKind::Unsupported, message).with_operation("demo"));
        }
        Ok(self.members.unwrap_or(if can.several_members { 3 } else { 1 }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(arguments: &[&str]) -> Options {
        #[derive(clap::Parser)]
        struct Alone {
            #[command(flatten)]
            options: Options,
        }
        let arguments = std::iter::once("demo").chain(arguments.iter().copied());
        <Alone as clap::Parser>::try_parse_from(arguments).expect("legal").options
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        assert!(options(&[]).check().is_ok());
        for (arguments, says) in [
            (&["--events", "10", "--aggregates", "11"][..], "--aggregates"),
            (&["--aggregates", "5", "--slow-keys", "5"], "--slow-keys"),
            (&["--fail-rate", "0.6", "--panic-rate", "0.5"], "--panic-rate"),
        ] {
            let error = options(arguments).check().expect_err(says);
            assert!(error.kind() == ErrorKind::ConfigInvalid && error.to_string().contains(says), "{error}");
        }
    }

    #[test]
    fn i06_members_that_a_backend_cannot_have_are_refused() {
        let (alone, shared) =
            (Capability::new("one", 1), Capability::new("many", 1).with_several_members(true));
        assert_eq!(options(&[]).members_on(&alone).expect("one is the default"), 1);
        assert_eq!(options(&[]).members_on(&shared).expect("three are the default"), 3);
        for arguments in [&["--churn"][..], &["--members", "2"]] {
            let error = options(arguments).members_on(&alone).expect_err("cannot");
            assert_eq!(error.kind(), ErrorKind::Unsupported);
            assert!(error.to_string().contains("on one a group"), "{error}");
        }
    }
}
