//! What a message asks of its handler: drawn by its publisher, carried in its payload, obeyed by whoever handles it.

use std::str::FromStr;
use std::time::Duration;

use ebus::{BatchHandled, Delivery, Failures, Handled, HandlerError, dead_letter};
use ebus_testkit::history::History;

/// What the handler does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Work {
    /// Succeeds at once.
    Quick,
    /// Succeeds after so many milliseconds.
    Sleep(u64),
    /// Fails so many times, then succeeds.
    Fail(u64),
    /// Panics the first time.
    Panic,
    /// Is rejected: a dead letter.
    Reject,
    /// Fails until so many milliseconds after it was published.
    Wait(u64),
    /// Its run stays open until so many milliseconds after it was published.
    Hold(u64),
}

impl Work {
    /// Draws it: mostly quick, now and then something that holds its key up. One in `blocks` blocks its key for `block`; with none,
    /// no key is.
    pub(crate) fn draw(random: &mut fastrand::Rng, block: Duration, blocks: u32) -> Self {
        if !block.is_zero() && random.u32(..blocks) == 0 {
            let block = block.as_millis() as u64;
            // Both end at a time, not after one: a run that is cancelled again and again would else hold its key up for ever.
            return if random.bool() { Self::Hold(block) } else { Self::Wait(block) };
        }
        match random.u32(0..100_000) {
            0..100 => Self::Sleep(random.u64(1_000..3_000)),
            100..400 => Self::Reject,
            400..700 => Self::Panic,
            700..1_700 => Self::Fail(random.u64(1..4)),
            1_700..13_700 => Self::Sleep(random.u64(1..50)),
            _ => Self::Quick,
        }
    }

    /// The payload that says so, published at this time of the history's clock.
    pub(crate) fn payload(self, now_ns: u64) -> String {
        let (word, number) = match self {
            Self::Quick => ("quick", 0),
            Self::Sleep(ms) => ("sleep", ms),
            Self::Fail(times) => ("fail", times),
            Self::Panic => ("panic", 0),
            Self::Reject => ("reject", 0),
            Self::Wait(ms) => ("wait", ms),
            Self::Hold(ms) => ("hold", ms),
        };
        format!("{word} {number} {now_ns}")
    }

    /// The work, and when it was published.
    pub(crate) fn of(payload: &[u8]) -> Option<(Self, u64)> {
        let mut words = std::str::from_utf8(payload).ok()?.split(' ');
        let (word, number, at_ns) = (words.next()?, words.next()?, words.next()?);
        let number = u64::from_str(number).ok()?;
        let work = match word {
            "quick" => Self::Quick,
            "sleep" => Self::Sleep(number),
            "fail" => Self::Fail(number),
            "panic" => Self::Panic,
            "reject" => Self::Reject,
            "wait" => Self::Wait(number),
            "hold" => Self::Hold(number),
            _ => return None,
        };
        Some((work, u64::from_str(at_ns).ok()?))
    }
}

/// Of what was rejected, what is redriven is rejected again until so long after it was published: one in four.
const HEALED_AFTER: Duration = Duration::from_secs(10);

/// Whether it is rejected now: what is redriven was made good meanwhile, or not yet.
fn is_rejected(clock: &History, delivery: &Delivery, published_ns: u64) -> bool {
    let healed = published_ns.saturating_add(HEALED_AFTER.as_nanos() as u64);
    let redriven = delivery.headers().contains(dead_letter::ID);
    !redriven || delivery.offset().is_multiple_of(4) && clock.now_ns() < healed
}

/// The handler of members that handle in batches: one message after the other, and none of a key behind one that failed. None
/// holds a batch for long: what would be held fails until its time comes.
pub(crate) async fn handle_batch(clock: History, batch: Vec<Delivery>) -> BatchHandled {
    let (mut failures, mut failed) = (Failures::new(), None);
    for (place, delivery) in batch.into_iter().enumerate() {
        let key = delivery.key().cloned();
        if key.is_some() && key == failed {
            continue;
        }
        let held = match Work::of(delivery.payload()) {
            Some((Work::Hold(ms), published_ns)) => {
                clock.now_ns() < published_ns.saturating_add(ms * 1_000_000)
            }
            _ => false,
        };
        let handled = if held { Err(not_yet()) } else { handle(clock.clone(), delivery).await };
        if let Err(error) = handled {
            failures.add(place, error);
            failed = key;
        }
    }
    Ok(failures)
}

fn not_yet() -> HandlerError {
    HandlerError::retry("not yet").retry_after(Duration::from_millis(250))
}

/// How long each run takes of a member that handles at most once: so long that runs are open whenever it is killed.
const AT_MOST_ONCE_TAKES: Duration = Duration::from_millis(200);

/// The handler of members that handle at most once.
pub(crate) async fn handle_at_most_once(clock: History, delivery: Delivery) -> Handled {
    tokio::time::sleep(AT_MOST_ONCE_TAKES).await;
    handle(clock, delivery).await
}

/// The handler of a member. `clock` is the one that the publisher read.
pub(crate) async fn handle(clock: History, delivery: Delivery) -> Handled {
    let Some((work, published_ns)) = Work::of(delivery.payload()) else {
        return Err(HandlerError::permanent("nobody of this run published that"));
    };
    match work {
        Work::Sleep(ms) => tokio::time::sleep(Duration::from_millis(ms)).await,
        Work::Hold(ms) => {
            let until = published_ns.saturating_add(ms * 1_000_000);
            tokio::time::sleep(Duration::from_nanos(until.saturating_sub(clock.now_ns()))).await;
        }
        Work::Fail(times) if u64::from(delivery.attempt()) <= times => {
            return Err(HandlerError::retry("fails on purpose"));
        }
        // Not `panic!`: its hook would print a message for each of these.
        Work::Panic if delivery.attempt() == 1 => std::panic::resume_unwind(Box::new("panics on purpose")),
        Work::Reject if is_rejected(&clock, &delivery, published_ns) => {
            return Err(HandlerError::permanent("rejected on purpose"));
        }
        Work::Wait(ms) if clock.now_ns() < published_ns.saturating_add(ms * 1_000_000) => {
            return Err(not_yet());
        }
        _ => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_drawn_is_read_again() {
        let mut random = fastrand::Rng::with_seed(1);
        let block = Duration::from_secs(60);
        let drawn: Vec<_> = (0..200_000).map(|_| Work::draw(&mut random, block, 1_000)).collect();
        for work in &drawn {
            assert_eq!(Work::of(work.payload(7).as_bytes()), Some((*work, 7)));
        }
        let has = |is: fn(&Work) -> bool| drawn.iter().any(is);
        assert!(has(|work| *work == Work::Hold(60_000)) && has(|work| *work == Work::Wait(60_000)));
        assert!(has(|work| *work == Work::Reject) && has(|work| *work == Work::Panic));
        let hold = Work::Hold(5);
        assert_eq!(Work::of(hold.payload(7).as_bytes()), Some((hold, 7)));
        assert_eq!(Work::of(b"nonsense"), None);
    }
}
