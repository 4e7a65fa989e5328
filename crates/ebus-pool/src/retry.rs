//! How long a failed message waits, and when it is given up.

use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use backon::{BackoffBuilder, ConstantBuilder, ExponentialBuilder};
use ebus_core::Error;

/// When a failed message runs again. It waits at the head of its key lane and holds no slot meanwhile (G4).
///
/// ```
/// use std::time::Duration;
/// use ebus_pool::{AfterFailure, RetryPolicy};
///
/// let policy = RetryPolicy::exponential()
///     .max_attempts(10)
///     .max_elapsed(Duration::from_secs(600))
///     // The text is no number, and will be none the next time.
///     .give_up_on::<std::num::ParseIntError>()
///     // A busy database is asked again at its own pace.
///     .on::<std::io::Error>(RetryPolicy::fixed(Duration::from_secs(1)));
/// let by_function = RetryPolicy::exponential().decide(|error, attempt| {
///     if attempt > 3 && error.chain().contains("quota") { AfterFailure::GiveUp } else { AfterFailure::Policy }
/// });
/// # let _ = (policy, by_function);
/// ```
#[derive(Debug, Clone)]
pub struct RetryPolicy {
    delays: Delays,
    cap: Option<Duration>,
    max_attempts: Option<u32>,
    max_elapsed: Option<Duration>,
    classes: Vec<Class>,
    decide: Option<Decide>,
}

#[derive(Debug, Clone, Copy)]
enum Delays {
    Exponential { first: Duration },
    Fixed(Duration),
}

/// The longest delay of an exponential policy without a cap, if its first one is not longer.
const DEFAULT_CAP: Duration = Duration::from_secs(30);
/// The longest delay there is, so that no sum of delays overflows; nobody waits for it.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// Failures of one type, and what is done about them; without a policy they are given up.
#[derive(Debug, Clone)]
struct Class {
    is: fn(&Error) -> bool,
    policy: Option<RetryPolicy>,
}

type DecideFn = dyn Fn(&Error, u32) -> AfterFailure + Send + Sync;

#[derive(Clone)]
struct Decide(Arc<DecideFn>);

impl Decide {
    /// A function that panics has said nothing: a bug in it must not end the shard.
    fn ask(&self, error: &Error, attempt: u32) -> AfterFailure {
        let asked = std::panic::AssertUnwindSafe(|| (self.0)(error, attempt));
        std::panic::catch_unwind(asked).unwrap_or_else(|_| {
            tracing::error!("the function of the retry policy panicked; the rest of the policy is followed");
            AfterFailure::Policy
        })
    }
}

impl fmt::Debug for Decide {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("fn")
    }
}

/// What a function says of one failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum AfterFailure {
    /// What the rest of the policy says.
    Policy,
    /// Another attempt after this delay, whatever the limits say.
    After(Duration),
    /// No other attempt: to the dead-letter topic, as a rejection.
    GiveUp,
}

/// What is done about one failure.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Retry(Duration),
    GiveUp(&'static str),
}

/// The delays of one message under one policy, one after the other; each is asked for once.
type Backoff = Box<dyn Iterator<Item = Duration> + Send>;

impl RetryPolicy {
    fn new(delays: Delays) -> Self {
        Self { delays, cap: None, max_attempts: None, max_elapsed: None, classes: Vec::new(), decide: None }
    }

    /// Doubles from 100 ms on, with jitter, until it is between 15 and 30 s; without a limit.
    pub fn exponential() -> Self {
        Self::new(Delays::Exponential { first: Duration::from_millis(100) })
    }

    /// The same delay each time; without a limit.
    pub fn fixed(delay: Duration) -> Self {
        Self::new(Delays::Fixed(delay))
    }

    /// At most this many runs of a message, the first included; then it goes to the dead-letter topic. Counted per ownership:
    /// the next owner of a partition begins at 1.
    ///
    /// The messages of a [`Batch`](crate::Batch) that fails as a whole, without naming any of them, run once more even so, each by
    /// itself: none is given up for what may be the failure of another.
    #[must_use]
    pub fn max_attempts(mut self, attempts: u32) -> Self {
        self.max_attempts = Some(attempts);
        self
    }

    /// No other run that would begin later than this after the first one failed, its delay included: the message goes to the
    /// dead-letter topic instead, without waiting. Measured per ownership, as attempts are counted.
    #[must_use]
    pub fn max_elapsed(mut self, elapsed: Duration) -> Self {
        self.max_elapsed = Some(elapsed);
        self
    }

    /// Failures that are an `E`, or come from one, follow `policy`: its delays and its limits instead of these. The first class
    /// that fits is taken. Attempts and time are those of the message, over all classes.
    #[must_use]
    pub fn on<E: StdError + 'static>(mut self, policy: Self) -> Self {
        self.classes.push(Class { is: comes_from::<E>, policy: Some(policy) });
        self
    }

    /// Failures that are an `E`, or come from one, are given up at once.
    #[must_use]
    pub fn give_up_on<E: StdError + 'static>(mut self) -> Self {
        self.classes.push(Class { is: comes_from::<E>, policy: None });
        self
    }

    /// Asks this function first, with the error and the number of the attempt that failed, from 1. It is called on the path of
    /// handlers: it must not block.
    #[must_use]
    pub fn decide(mut self, decide: impl Fn(&Error, u32) -> AfterFailure + Send + Sync + 'static) -> Self {
        self.decide = Some(Decide(Arc::new(decide)));
        self
    }

    /// The first delay; of a fixed policy, each.
    #[must_use]
    pub fn first(mut self, delay: Duration) -> Self {
        match &mut self.delays {
            Delays::Exponential { first } | Delays::Fixed(first) => *first = delay,
        }
        self
    }

    /// The longest delay, jitter included: once the delays have grown to it they are between half of it and all of it, so that
    /// keys that failed together do not come back together. Without it 30 s, or the first delay where that is longer.
    #[must_use]
    pub fn cap(mut self, delay: Duration) -> Self {
        self.cap = Some(delay);
        self
    }

    /// What is wrong with it.
    pub(crate) fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if self.max_attempts == Some(0) {
            problems.push("max_attempts is 0; give at least 1".to_owned());
        }
        let (Delays::Exponential { first } | Delays::Fixed(first)) = self.delays;
        if first.is_zero() {
            problems
                .push("the delay of a retry is 0; give more, or a key that fails keeps a core busy".into());
        }
        if let Some(cap) = self.cap.filter(|cap| *cap < first) {
            problems
                .push(format!("the cap of the delays, {cap:?}, is below the first one, {first:?}; raise it"));
        }
        for policy in self.classes.iter().filter_map(|class| class.policy.as_ref()) {
            problems.extend(policy.problems());
            if !policy.classes.is_empty() || policy.decide.is_some() {
                problems.push(
                    "the policy of a class of errors has classes or a function itself; say them of the whole"
                        .into(),
                );
            }
        }
        problems
    }

    /// Which of its settings may give a message up.
    pub(crate) fn gives_up_by(&self) -> Option<&'static str> {
        if self.max_attempts.is_some() {
            return Some("max_attempts");
        }
        if self.max_elapsed.is_some() {
            return Some("max_elapsed");
        }
        self.classes.iter().find_map(|class| match &class.policy {
            None => Some("give_up_on"),
            Some(policy) => policy.gives_up_by(),
        })
    }

    pub(crate) fn delays(&self) -> Backoff {
        match self.delays {
            Delays::Exponential { first } => {
                let first = first.min(LONGEST);
                let cap = self.cap.unwrap_or(DEFAULT_CAP).clamp(first, LONGEST);
                // Jitter adds up to the delay itself.
                let delays = ExponentialBuilder::default()
                    .with_min_delay(first)
                    .with_max_delay(first.max(cap / 2))
                    .with_jitter()
                    .without_max_times()
                    .build();
                Box::new(delays.map(move |delay| delay.min(cap)))
            }
            Delays::Fixed(delay) => {
                Box::new(ConstantBuilder::default().with_delay(delay).without_max_times().build())
            }
        }
    }
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self::exponential()
    }
}

fn comes_from<E: StdError + 'static>(error: &Error) -> bool {
    let own: &(dyn StdError + 'static) = error;
    own.is::<E>() || error.sources().any(|source| source.is::<E>())
}

/// The failures of one message under one policy.
#[derive(Default)]
pub(crate) struct Retries {
    /// The delays of the classes that were met; the last one is that of the policy itself.
    delays: Vec<(usize, Backoff)>,
}

impl Retries {
    /// What is done about a failure: `attempt` is the one that failed, `elapsed` the time since the first that did, `after`
    /// the delay that the handler asks for.
    pub(crate) fn next(
        &mut self,
        policy: &RetryPolicy,
        error: &Error,
        attempt: u32,
        elapsed: Duration,
        after: Option<Duration>,
    ) -> Verdict {
        match policy.decide.as_ref().map_or(AfterFailure::Policy, |decide| decide.ask(error, attempt)) {
            AfterFailure::Policy => {}
            AfterFailure::After(delay) => return Verdict::Retry(delay),
            AfterFailure::GiveUp => return Verdict::GiveUp("rejected"),
        }
        let class = policy.classes.iter().position(|class| (class.is)(error));
        let policy = match class.map(|class| &policy.classes[class].policy) {
            None => policy,
            Some(Some(policy)) => policy,
            Some(None) => return Verdict::GiveUp("rejected"),
        };
        if policy.max_attempts.is_some_and(|most| attempt >= most) {
            return Verdict::GiveUp("attempts");
        }
        if policy.max_elapsed.is_some_and(|most| elapsed >= most) {
            return Verdict::GiveUp("elapsed");
        }
        let delay = after.unwrap_or_else(|| self.delay(class.unwrap_or(usize::MAX), policy));
        if policy.max_elapsed.is_some_and(|most| elapsed.saturating_add(delay) > most) {
            return Verdict::GiveUp("elapsed");
        }
        Verdict::Retry(delay)
    }

    /// The next delay of a message that nobody gives up.
    pub(crate) fn patiently(&mut self, policy: &RetryPolicy) -> Duration {
        self.delay(usize::MAX, policy)
    }

    fn delay(&mut self, class: usize, policy: &RetryPolicy) -> Duration {
        let at = self.delays.iter().position(|(of, _)| *of == class).unwrap_or_else(|| {
            self.delays.push((class, policy.delays()));
            self.delays.len() - 1
        });
        self.delays[at].1.next().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use ebus_core::ErrorKind;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn failure(source: impl Into<ebus_core::BoxError>) -> Error {
        Error::new(ErrorKind::Handler, "failed").with_source(source)
    }

    fn io() -> Error {
        failure(std::io::Error::other("busy"))
    }

    fn parse() -> Error {
        failure("x".parse::<u8>().expect_err("no number"))
    }

    #[test]
    fn grows_to_the_cap_and_never_ends() {
        let (first, cap) = (10 * MS, 80 * MS);
        let delays: Vec<_> = RetryPolicy::exponential().first(first).cap(cap).delays().take(100).collect();
        assert_eq!(delays.len(), 100);
        assert!(delays[0] >= first && delays[0] < first * 3, "{:?}", delays[0]);
        assert!(delays.iter().all(|delay| *delay <= cap), "the cap is cut after the jitter: {delays:?}");
        assert!(delays[10..].iter().all(|delay| *delay >= cap / 2), "{delays:?}");
        assert!(delays[10..].iter().any(|delay| *delay != delays[10]), "jitter at the cap too: {delays:?}");
    }

    #[test]
    fn p9_delays_of_any_length_do_not_overflow() {
        for first in [Duration::MAX, Duration::from_secs(u64::from(u32::MAX)), MS] {
            let policy = RetryPolicy::exponential().first(first).cap(Duration::MAX);
            assert!(policy.delays().take(200).all(|delay| delay <= LONGEST));
        }
    }

    #[test]
    fn p9_delays_that_cannot_be_meant_are_refused_whatever_their_order() {
        let problems = |policy: RetryPolicy| policy.problems().len();
        assert_eq!(problems(RetryPolicy::fixed(Duration::ZERO)), 1);
        assert_eq!(problems(RetryPolicy::exponential().first(Duration::ZERO)), 1);
        assert_eq!(problems(RetryPolicy::exponential().cap(Duration::ZERO)), 1);
        assert_eq!(problems(RetryPolicy::exponential().first(5 * MS).cap(MS)), 1);
        assert_eq!(problems(RetryPolicy::exponential().cap(MS).first(5 * MS)), 1);
        assert_eq!(problems(RetryPolicy::exponential().first(DEFAULT_CAP * 2)), 0);
        for first in [DEFAULT_CAP * 2, Duration::from_secs(200 * 86_400)] {
            assert_eq!(RetryPolicy::exponential().first(first).delays().next(), Some(first));
        }
    }

    #[test]
    fn no_run_begins_once_the_time_is_over() {
        let policy = RetryPolicy::fixed(30 * MS).max_elapsed(10 * MS);
        let next = |elapsed, after| Retries::default().next(&policy, &io(), 1, elapsed, after);
        assert_eq!(next(Duration::ZERO, None), Verdict::GiveUp("elapsed"));
        assert_eq!(next(Duration::ZERO, Some(10 * MS)), Verdict::Retry(10 * MS));
        assert_eq!(next(MS, Some(10 * MS)), Verdict::GiveUp("elapsed"));
        assert_eq!(next(MS, Some(Duration::MAX)), Verdict::GiveUp("elapsed"));
    }

    #[test]
    fn a_cap_may_be_as_low_as_the_first_delay_and_not_lower() {
        let ms = Duration::from_millis;
        let problems = |cap| RetryPolicy::exponential().first(ms(20)).cap(ms(cap)).problems().len();
        assert_eq!((problems(20), problems(19)), (0, 1));
    }

    #[test]
    fn fixed_is_fixed() {
        assert!(RetryPolicy::fixed(7 * MS).delays().take(50).all(|d| d == 7 * MS));
    }

    #[test]
    fn attempts_and_time_have_limits_of_their_own() {
        let policy = RetryPolicy::fixed(MS).max_attempts(3).max_elapsed(10 * MS);
        let mut retries = Retries::default();
        let mut next = |attempt, elapsed| retries.next(&policy, &io(), attempt, elapsed, None);
        assert_eq!(next(1, Duration::ZERO), Verdict::Retry(MS));
        assert_eq!(next(2, 9 * MS), Verdict::Retry(MS));
        assert_eq!(next(2, 10 * MS), Verdict::GiveUp("elapsed"));
        assert_eq!(next(3, Duration::ZERO), Verdict::GiveUp("attempts"));
    }

    #[test]
    fn what_the_handler_asks_for_goes_before_the_delay_and_not_before_the_limit() {
        let policy = RetryPolicy::fixed(MS).max_attempts(2);
        let mut retries = Retries::default();
        assert_eq!(retries.next(&policy, &io(), 1, Duration::ZERO, Some(5 * MS)), Verdict::Retry(5 * MS));
        assert_eq!(
            retries.next(&policy, &io(), 2, Duration::ZERO, Some(5 * MS)),
            Verdict::GiveUp("attempts")
        );
    }

    #[test]
    fn a_class_is_found_below_the_error_and_has_its_own_delays_and_limits() {
        let policy = RetryPolicy::fixed(MS)
            .give_up_on::<std::num::ParseIntError>()
            .on::<std::io::Error>(RetryPolicy::fixed(9 * MS).max_attempts(5));
        let mut retries = Retries::default();
        assert_eq!(retries.next(&policy, &parse(), 1, Duration::ZERO, None), Verdict::GiveUp("rejected"));
        assert_eq!(retries.next(&policy, &io(), 4, Duration::ZERO, None), Verdict::Retry(9 * MS));
        assert_eq!(retries.next(&policy, &io(), 5, Duration::ZERO, None), Verdict::GiveUp("attempts"));
        assert_eq!(retries.next(&policy, &failure("else"), 99, Duration::ZERO, None), Verdict::Retry(MS));
    }

    #[test]
    fn a_function_sees_error_and_attempt_and_is_asked_first() {
        let policy = RetryPolicy::fixed(MS).max_attempts(1).decide(|error, attempt| match attempt {
            1 if error.chain().contains("busy") => AfterFailure::After(3 * MS),
            2 => AfterFailure::GiveUp,
            _ => AfterFailure::Policy,
        });
        let mut retries = Retries::default();
        assert_eq!(retries.next(&policy, &io(), 1, Duration::ZERO, None), Verdict::Retry(3 * MS));
        assert_eq!(retries.next(&policy, &io(), 2, Duration::ZERO, None), Verdict::GiveUp("rejected"));
        assert_eq!(retries.next(&policy, &io(), 3, Duration::ZERO, None), Verdict::GiveUp("attempts"));
    }

    #[test]
    fn p9_a_function_that_panics_has_said_nothing() {
        let policy = RetryPolicy::fixed(MS).decide(|_, _| panic!("a bug"));
        let verdict = Retries::default().next(&policy, &io(), 1, Duration::ZERO, None);
        assert_eq!(verdict, Verdict::Retry(MS));
    }

    #[test]
    fn says_what_gives_up_and_what_is_wrong() {
        assert_eq!(RetryPolicy::exponential().gives_up_by(), None);
        assert_eq!(RetryPolicy::exponential().max_elapsed(MS).gives_up_by(), Some("max_elapsed"));
        let by_class =
            RetryPolicy::exponential().on::<std::io::Error>(RetryPolicy::fixed(MS).max_attempts(0));
        assert_eq!(by_class.gives_up_by(), Some("max_attempts"));
        assert_eq!(by_class.problems().len(), 1);
        let nested = RetryPolicy::fixed(MS).on::<std::io::Error>(by_class);
        assert_eq!(nested.problems().len(), 2, "{:?}", nested.problems());
    }
}
