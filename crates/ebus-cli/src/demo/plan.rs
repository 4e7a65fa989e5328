//! What is published and what befalls it: decided by the seed before anything runs, so that a run can be repeated.

use std::time::Duration;

use super::Options;

/// The longest that one slow key may take in all; it gets fewer events where that would be passed.
const SLOW_KEY_LASTS: Duration = Duration::from_secs(10);

/// One event: which aggregate, and which version of it, from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Place {
    pub(crate) aggregate: u32,
    pub(crate) version: u64,
}

/// What a handler does to an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Fails at the first attempt.
    Fail,
    /// Is rejected for good.
    Reject,
    /// Panics at the first attempt.
    Panic,
}

/// All events of a run and their fates.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) slow: u32,
    pub(crate) slow_for: Duration,
    rates: [(Fault, f64); 3],
    /// The index of each aggregate's first event among all; one more at the end.
    first: Vec<u64>,
}

impl Plan {
    pub(crate) fn new(options: &Options) -> Self {
        let slow_for = Duration::from_millis(options.slow_ms);
        let aggregates = u64::from(options.aggregates);
        let even = options.events / aggregates;
        let bearable = SLOW_KEY_LASTS.as_millis() as u64 / options.slow_ms.max(1);
        let slow = u64::from(options.slow_keys);
        let of_slow = if options.slow_ms == 0 { even } else { even.min(bearable.max(1)) };
        let (quick, rest) = (aggregates - slow, options.events - of_slow * slow);
        let mut first = vec![0];
        for aggregate in 0..aggregates {
            let versions = match aggregate.checked_sub(slow) {
                None => of_slow,
                Some(index) => rest / quick + u64::from(index < rest % quick),
            };
            first.push(first[aggregate as usize] + versions);
        }
        Self {
            seed: options.seed.unwrap_or_else(|| fastrand::u64(..1 << 32)),
            slow: options.slow_keys,
            slow_for,
            rates: [
                (Fault::Reject, options.reject_rate),
                (Fault::Panic, options.panic_rate),
                (Fault::Fail, options.fail_rate),
            ],
            first,
        }
    }

    pub(crate) fn events(&self) -> u64 {
        *self.first.last().expect("it begins with one element")
    }

    pub(crate) fn aggregates(&self) -> u32 {
        (self.first.len() - 1) as u32
    }

    pub(crate) fn versions(&self, aggregate: u32) -> u64 {
        self.first[aggregate as usize + 1] - self.first[aggregate as usize]
    }

    pub(crate) fn key(aggregate: u32) -> String {
        format!("order-{aggregate:06}")
    }

    /// The event of this key and version, if it is planned.
    pub(crate) fn place(&self, key: &str, version: u64) -> Option<Place> {
        let aggregate = key.strip_prefix("order-")?.parse().ok().filter(|a| *a < self.aggregates())?;
        (1..=self.versions(aggregate)).contains(&version).then_some(Place { aggregate, version })
    }

    /// A number of its own for each event, below [`events`](Self::events).
    pub(crate) fn index(&self, place: Place) -> usize {
        (self.first[place.aggregate as usize] + place.version - 1) as usize
    }

    pub(crate) fn is_slow(&self, place: Place) -> bool {
        place.aggregate < self.slow
    }

    pub(crate) fn fault(&self, place: Place) -> Option<Fault> {
        let at = u64::from(place.aggregate) << 40 ^ place.version;
        let mut rng = fastrand::Rng::with_seed(self.seed ^ at.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        // The first number of neighbouring seeds is too much alike.
        rng.u64(..);
        let mut point = rng.f64();
        for (fault, rate) in self.rates {
            if point < rate {
                return Some(fault);
            }
            point -= rate;
        }
        None
    }

    /// All events in the order of their versions.
    #[cfg(test)]
    pub(crate) fn places(&self) -> impl Iterator<Item = Place> + '_ {
        (0..self.aggregates()).flat_map(|aggregate| {
            (1..=self.versions(aggregate)).map(move |version| Place { aggregate, version })
        })
    }

    /// The aggregates whose next version one of `publishers` publishes, in a shuffled order.
    pub(crate) fn share(&self, publisher: u32, publishers: u32) -> Vec<u32> {
        let mine = (publisher..self.aggregates()).step_by(publishers as usize);
        let mut order: Vec<u32> =
            mine.flat_map(|a| std::iter::repeat_n(a, self.versions(a) as usize)).collect();
        fastrand::Rng::with_seed(self.seed.wrapping_add(u64::from(publisher))).shuffle(&mut order);
        order
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn plan(arguments: &[&str]) -> Plan {
        #[derive(clap::Parser)]
        struct Alone {
            #[command(flatten)]
            options: Options,
        }
        let arguments = ["demo", "--seed", "7"].iter().chain(arguments);
        Plan::new(&<Alone as clap::Parser>::try_parse_from(arguments).expect("legal").options)
    }

    #[test]
    fn every_event_has_one_index_and_one_publisher() {
        let plan = plan(&["--events", "1003", "--aggregates", "17", "--slow-keys", "2"]);
        assert_eq!(plan.events(), 1003);
        let mut indices: Vec<usize> = plan.places().map(|place| plan.index(place)).collect();
        indices.sort_unstable();
        assert_eq!(indices, (0..1003).collect::<Vec<_>>());
        let mut shares: Vec<u32> = (0..3).flat_map(|publisher| plan.share(publisher, 3)).collect();
        shares.sort_unstable();
        assert_eq!(shares, plan.places().map(|place| place.aggregate).collect::<Vec<_>>());
        for place in plan.places() {
            assert_eq!(plan.place(&Plan::key(place.aggregate), place.version), Some(place));
        }
        assert_eq!(plan.place("order-000017", 1), None);
        assert_eq!(plan.place("order-000000", 0), None);
        assert_eq!(plan.place("user-000000", 1), None);
    }

    #[test]
    fn a_slow_key_never_lasts_for_minutes() {
        let plan =
            plan(&["--events", "100000", "--aggregates", "10", "--slow-keys", "2", "--slow-ms", "1000"]);
        assert_eq!((plan.versions(0), plan.versions(1), plan.versions(2)), (10, 10, 12_498));
        assert_eq!(plan.events(), 100_000);
    }

    #[test]
    fn the_rates_are_met_and_the_seed_decides() {
        let arguments = ["--fail-rate", "0.1", "--reject-rate", "0.05", "--panic-rate", "0.02"];
        let (one, two) = (plan(&arguments), plan(&arguments));
        for (fault, rate) in [(Fault::Fail, 0.1), (Fault::Reject, 0.05), (Fault::Panic, 0.02)] {
            let met = one.places().filter(|place| one.fault(*place) == Some(fault)).count() as f64;
            let want = one.events() as f64 * rate;
            assert!((want * 0.85..want * 1.15).contains(&met), "{fault:?}: {met} instead of {want}");
        }
        assert!(one.places().all(|place| one.fault(place) == two.fault(place)));
        assert!(
            plan(&["--fail-rate", "0", "--reject-rate", "0", "--panic-rate", "0"])
                .places()
                .all(|place| two.fault(place).is_none() || place.version > 0)
        );
    }
}
