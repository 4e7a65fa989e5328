//! How long messages take, on ebus and without it.

use std::time::Duration;

use anyhow::Result;
use async_trait::async_trait;
use serde::Serialize;

/// The same load on ebus and without it. Each side fails when a message was lost.
#[async_trait]
pub(crate) trait Latency: Send {
    fn name(&self) -> &'static str;

    /// What both sides do, besides the load.
    fn work(&self) -> String;

    /// The settings of our side.
    fn ours_is(&self) -> String;

    /// The settings of the other side.
    fn baseline_is(&self) -> String;

    /// What is done once, before the first round.
    async fn prepare(&mut self) -> Result<()> {
        Ok(())
    }

    async fn ours(&mut self) -> Result<Percentiles>;

    async fn baseline(&mut self) -> Result<Percentiles>;

    /// What is done once, after the last round, also when one has failed.
    async fn clean_up(&mut self) -> Result<()> {
        Ok(())
    }
}

/// How long so many of a hundred, or of a thousand, took at most: microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Percentiles {
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    pub(crate) p99_9: f64,
}

impl Percentiles {
    /// `took` is not empty.
    pub(crate) fn of(mut took: Vec<Duration>) -> Self {
        took.sort_unstable();
        let at = |part: f64| {
            // The smallest that is not below this part of all.
            let rank = (part * took.len() as f64).ceil() as usize;
            took[rank.clamp(1, took.len()) - 1].as_nanos() as f64 / 1e3
        };
        Self { p50: at(0.5), p99: at(0.99), p99_9: at(0.999) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_what_so_many_took_at_most() {
        let took = |n| (1..=n).rev().map(Duration::from_micros).collect();
        assert_eq!(Percentiles::of(took(1_000)), Percentiles { p50: 500.0, p99: 990.0, p99_9: 999.0 });
        assert_eq!(Percentiles::of(took(1)), Percentiles { p50: 1.0, p99: 1.0, p99_9: 1.0 });
    }
}
