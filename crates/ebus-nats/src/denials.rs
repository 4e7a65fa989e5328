//! What the server says that this connection's user may not do (G8, G9).
//!
//! It says so as an error of the connection, and gives what was asked no answer at all. So a request looks here for its
//! subject, and is told at once instead of by its time-out.

use std::collections::VecDeque;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// So many are remembered.
const MOST: usize = 256;
/// What an error of the connection begins with that is one; then comes the subject in quotes.
const PUBLISH: &str = "permissions violation for publish to ";

/// Subjects that this connection may not publish to, as it was told.
#[derive(Debug, Default)]
pub(crate) struct Denials(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// How many there were before those that are remembered.
    before: u64,
    /// By age.
    heard: VecDeque<(Instant, String)>,
}

impl Denials {
    /// The server reports this error.
    pub(crate) fn hear(&self, error: &str) {
        let Some(subject) = denied(error) else { return };
        let mut state = self.0.lock();
        if state.heard.len() == MOST {
            state.heard.pop_front();
            state.before += 1;
        }
        state.heard.push_back((Instant::now(), subject.to_owned()));
    }

    /// How many there were so far.
    pub(crate) fn count(&self) -> u64 {
        let state = self.0.lock();
        state.before + state.heard.len() as u64
    }

    /// Whether one of such a subject came after the first `count`.
    pub(crate) fn has_since(&self, count: u64, is_it: impl Fn(&str) -> bool) -> bool {
        let state = self.0.lock();
        let known = usize::try_from(count.saturating_sub(state.before)).unwrap_or(usize::MAX);
        state.heard.iter().skip(known).any(|(_, subject)| is_it(subject))
    }

    /// Whether one of this subject came within this time.
    pub(crate) fn has_within(&self, time: Duration, subject: &str) -> bool {
        let now = Instant::now();
        let state = self.0.lock();
        state.heard.iter().any(|(at, heard)| heard == subject && now.duration_since(*at) <= time)
    }
}

/// The subject in the server's words, such as `Permissions Violation for Publish to "orders.0"`.
fn denied(error: &str) -> Option<&str> {
    let at = error.to_ascii_lowercase().find(PUBLISH)? + PUBLISH.len();
    let subject = error[at..].trim_matches('"');
    (!subject.is_empty()).then_some(subject)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_subject_is_read_from_the_servers_words() {
        assert_eq!(denied(r#"Permissions Violation for Publish to "Orders.0""#), Some("Orders.0"));
        assert_eq!(denied(r#"nats: Permissions Violation for Publish to "a""#), Some("a"));
        for other in
            ["", "Permissions Violation for Publish to", r#"Permissions Violation for Subscription to "a""#]
        {
            assert_eq!(denied(other), None, "{other}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn only_what_came_since_counts_and_no_more_are_kept_than_are_needed() {
        let denials = Denials::default();
        let is = |name: &'static str| move |subject: &str| subject == name;
        denials.hear(r#"Permissions Violation for Publish to "a""#);
        denials.hear("Stale Connection");
        let count = denials.count();
        assert_eq!(count, 1);
        assert!(denials.has_since(0, is("a")) && !denials.has_since(count, is("a")));
        for _ in 0..2 * MOST {
            denials.hear(r#"Permissions Violation for Publish to "b""#);
        }
        assert!(denials.has_since(count, is("b")) && !denials.has_since(0, is("a")));
        assert_eq!(denials.count(), 1 + 2 * MOST as u64);
        assert!(!denials.has_since(denials.count(), is("b")));
        tokio::time::advance(Duration::from_secs(3)).await;
        assert!(
            denials.has_within(Duration::from_secs(3), "b")
                && !denials.has_within(Duration::from_secs(2), "b")
        );
    }
}
