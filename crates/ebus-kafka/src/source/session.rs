//! The session with the group's coordinator, by this member's own clock (G3).
//!
//! A broker gives a member's partitions to others when it has not heard of it for the session time-out, and says nothing to
//! the member. librdkafka's own clock for that stands still while a revocation is held, there is none with
//! `group.protocol=consumer`, and none runs while the process is frozen. So what the coordinator **accepted** counts here, from
//! the moment when it was sent: it cannot have taken the member for dead earlier than a session later.

use std::time::Duration;

use ebus_core::Lease;
use tokio::time::Instant;

/// What is known of the session.
pub(super) struct Session {
    /// How long a sign of life lasts: four fifths of the session time-out. The rest is for cancelling runs, and for what a
    /// heartbeat may be older than an accepted commit (5 s of 45 s with the consumer protocol).
    lasts: Duration,
    /// How long an answer lasts that only says that the member is known.
    known_for: Duration,
    lease: Option<Lease>,
    proved: Option<Instant>,
    /// When it was last asked elsewhere whether this member waits in a rebalance, and whether that has no answer yet.
    asked: Option<Instant>,
    asking: bool,
}

impl Session {
    pub(super) fn new(time_out: Duration) -> Self {
        Self {
            lasts: time_out * 4 / 5,
            known_for: time_out / 2,
            lease: None,
            proved: None,
            asked: None,
            asking: false,
        }
    }

    /// The coordinator accepted what was sent then.
    pub(super) fn accepted(&mut self, sent: Instant) {
        self.proved = self.proved.max(Some(sent));
        let deadline = (sent + self.lasts).into_std();
        match &self.lease {
            Some(lease) => lease.extend(deadline),
            None => self.lease = Some(Lease::until(deadline)),
        }
    }

    /// The coordinator refused what was sent then, but as one of a member. Its last heartbeat is at most a third of the session
    /// older.
    pub(super) fn known(&mut self, sent: Instant) {
        if let Some(lease) = &self.lease {
            lease.extend((sent + self.known_for).into_std());
        }
    }

    /// How long it lasts that this member waits in a rebalance: a broker takes nobody for dead that does. Short, because the join
    /// may not have reached the broker.
    fn waiting_for(&self) -> Duration {
        (self.lasts / 4).min(Duration::from_secs(3))
    }

    /// How long an answer to that question may take.
    pub(super) fn waits_for(&self) -> Duration {
        self.waiting_for() / 2
    }

    /// Whether to ask now; then it is taken for asked.
    pub(super) fn asks_at(&mut self, now: Instant) -> bool {
        let ends_soon = self.deadline().is_some_and(|end| now + self.waiting_for() * 2 / 3 >= end);
        let rested = self.asked.is_none_or(|asked| now >= asked + self.waiting_for() / 6);
        if !ends_soon || self.asking || !rested || self.is_over(now) {
            return false;
        }
        self.asked = Some(now);
        self.asking = true;
        true
    }

    /// It waited in a rebalance then.
    pub(super) fn waiting(&mut self, asked: Instant) {
        self.asking = false;
        // Not of a session that has ended since.
        if let Some(lease) = self.lease.as_ref().filter(|_| !self.is_over(asked)) {
            lease.extend((asked + self.waiting_for()).into_std());
        }
    }

    /// It did not, or that is not known.
    pub(super) fn not_waiting(&mut self) {
        self.asking = false;
    }

    /// Nothing is owned any more: the next session begins with the next acceptance, under a lease of its own.
    pub(super) fn end(&mut self) {
        self.lease = None;
        self.proved = None;
    }

    /// Until when runs may start.
    pub(super) fn lease(&self) -> Lease {
        // What nobody accepted has no lease: nothing may start.
        self.lease.clone().unwrap_or_else(|| Lease::until(std::time::Instant::now()))
    }

    pub(super) fn is_over(&self, now: Instant) -> bool {
        self.lease.as_ref().is_some_and(|lease| !lease.is_current(now.into_std()))
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.lease.as_ref().and_then(Lease::deadline).map(Instant::from_std)
    }

    /// When to ask the coordinator for a sign of life, unless something else is committed before.
    pub(super) fn probe_at(&self) -> Option<Instant> {
        self.proved.map(|proved| proved + self.lasts / 3)
    }

    pub(super) fn lasts(&self) -> Duration {
        self.lasts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    #[test]
    fn p3_a_session_lasts_from_when_the_accepted_commit_was_sent() {
        let sent = Instant::now();
        let mut session = Session::new(10 * S);
        assert!(!session.is_over(sent), "nothing was accepted, nothing can end");
        session.accepted(sent);
        let lease = session.lease();
        assert!(!session.is_over(sent + 7 * S));
        assert!(session.is_over(sent + 8 * S));
        assert!(!lease.is_current((sent + 8 * S).into_std()));
        assert!(session.probe_at().is_some_and(|at| at > sent && at < sent + 4 * S));
        session.accepted(sent + S);
        assert!(lease.is_current((sent + 8 * S).into_std()), "the lease that was handed out moves on");
        session.accepted(sent - S);
        assert_eq!(session.deadline(), Some(sent + 9 * S), "never back");
    }

    #[test]
    fn p3_a_refusal_of_a_known_member_is_a_shorter_sign_of_life() {
        let sent = Instant::now();
        let mut session = Session::new(10 * S);
        session.known(sent);
        assert!(!session.lease().is_current(sent.into_std() + S), "no lease out of a refusal");
        session.accepted(sent);
        session.known(sent + 5 * S);
        assert_eq!(session.deadline(), Some(sent + 10 * S));
    }

    #[test]
    fn p3_a_rebalance_that_lasts_is_asked_for_before_the_session_is_over() {
        let sent = Instant::now();
        let mut session = Session::new(10 * S);
        assert!(!session.asks_at(sent), "there is no session");
        session.accepted(sent);
        assert!(!session.asks_at(sent + 6 * S), "8 s are not over soon");
        let at = sent + 7 * S;
        assert!(session.asks_at(at) && !session.asks_at(at), "one question at a time");
        session.waiting(at);
        assert_eq!(session.deadline(), Some(at + 2 * S));
        assert!(session.asks_at(at + S), "and again before that is over");
        session.not_waiting();
        assert!(session.is_over(at + 2 * S));
        assert!(!session.asks_at(at + 2 * S), "too late");
    }

    #[test]
    fn p3_the_lease_of_an_ended_session_is_not_moved_on_by_the_next() {
        let sent = Instant::now();
        let mut session = Session::new(10 * S);
        session.accepted(sent);
        let old = session.lease();
        session.end();
        assert!(!session.is_over(sent + 100 * S));
        session.accepted(sent + 20 * S);
        assert!(!old.is_current((sent + 21 * S).into_std()));
        assert!(session.lease().is_current((sent + 21 * S).into_std()));
    }
}
