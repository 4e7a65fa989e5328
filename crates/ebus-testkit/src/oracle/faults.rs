//! What was done to members and broker on purpose, as the history records it: what excuses, and for how long.
//!
//! An excuse belongs to the member that had the fault, and to the time of it; where the broker itself was down, to all members.

use std::collections::HashSet;

use super::Rules;
use super::rules::nanos;
use crate::history::{Event, Kind};

#[derive(Debug, Default)]
pub(super) struct Faults<'a> {
    /// In the order in which they began.
    spans: Vec<Span<'a>>,
    /// From the notice to the release, or the loss.
    revocations: Vec<Span<'a>>,
    /// Who gave something to a publisher.
    publish: HashSet<&'a str>,
    /// Who owned something.
    own: HashSet<&'a str>,
}

#[derive(Debug)]
struct Span<'a> {
    kind: Kind,
    member: Option<&'a str>,
    /// Of a revocation: partition and epoch.
    owned: Option<(Option<u32>, Option<u64>)>,
    from: u64,
    /// `None`: it lasts.
    to: Option<u64>,
}

impl Span<'_> {
    fn concerns(&self, member: &str) -> bool {
        self.kind == Kind::Down || self.member == Some(member)
    }

    fn to(&self) -> u64 {
        self.to.unwrap_or(u64::MAX)
    }

    /// When the group may wait, for so long, because of it: for a member that is gone, and for all when it comes back and joins anew.
    fn holds_group(&self, waits: u64) -> impl Iterator<Item = (u64, u64)> + use<> {
        [Some(self.from), self.to].into_iter().flatten().map(move |from| (from, from.saturating_add(waits)))
    }

    /// Whether it has an effect at some time between `from` and `to`, when its effect lasts `after` longer than itself.
    fn meets(&self, from: u64, to: u64, after: u64) -> bool {
        self.from <= to && from <= self.to().saturating_add(after)
    }
}

impl<'a> Faults<'a> {
    /// `None` when the event ends what never began.
    pub(super) fn take(&mut self, event: &'a Event) -> Option<()> {
        let member = event.member.as_deref();
        let began = match event.kind {
            Kind::Killed | Kind::Stopped | Kind::Cut | Kind::Down => {
                let to = (event.kind == Kind::Killed).then_some(event.at_ns);
                self.spans.push(Span { kind: event.kind, member, owned: None, from: event.at_ns, to });
                return Some(());
            }
            Kind::Continued => Kind::Stopped,
            Kind::Healed => Kind::Cut,
            Kind::Up => Kind::Down,
            _ => return None,
        };
        let mut open = self.spans.iter_mut().rev();
        let span = open.find(|span| span.kind == began && span.member == member && span.to.is_none())?;
        span.to = Some(event.at_ns);
        Some(())
    }

    /// Whether one of them explains that `member` lost a partition at `at`, or could not commit.
    pub(super) fn explain_loss(&self, member: &str, at: u64, after: u64) -> bool {
        self.spans.iter().any(|span| span.concerns(member) && span.meets(at, at, after))
    }

    /// Whether `member` could not know at `at` that it had lost a partition. With leases its own clock told it, unless it was
    /// stopped.
    pub(super) fn keep_from_knowing(&self, member: &str, at: u64, after: u64, leases: bool) -> bool {
        self.spans.iter().any(|span| {
            let kind = span.kind == Kind::Stopped || !leases && matches!(span.kind, Kind::Cut | Kind::Down);
            kind && span.concerns(member) && span.meets(at, at, after)
        })
    }

    /// `within` after `from`, but for the time in which `member` was stopped.
    pub(super) fn latest(&self, member: &str, from: u64, within: u64) -> u64 {
        let mut latest = from.saturating_add(within);
        for span in self.spans.iter().filter(|span| span.kind == Kind::Stopped && span.concerns(member)) {
            if span.meets(from, latest, 0) {
                latest = latest.max(span.to().saturating_add(within));
            }
        }
        latest
    }

    /// Whether a fault of some member may keep the whole group from committing at `at`: then the last commit of one that leaves is
    /// refused, as its release says.
    pub(super) fn keep_group_waiting(&self, at: u64, rules: &Rules) -> bool {
        let Some(waits) = rules.group_waits.map(nanos) else { return false };
        let held = |span: &Span<'_>| span.holds_group(waits).any(|(from, to)| (from..=to).contains(&at));
        self.spans.iter().any(|span| self.is_of_group(span) && held(span))
            || self.revocations.iter().any(|span| span.meets(at, at, 0))
    }

    /// When what `member` finished at `from` must have been committed: `within` later, or after it could reach the broker again,
    /// or after the group did not wait for somebody else any more.
    pub(super) fn commit_due(&self, member: &str, from: u64, within: u64, rules: &Rules) -> u64 {
        let after = rules.aftermath();
        let mut held: Vec<(u64, u64)> = Vec::new();
        for span in &self.spans {
            if span.concerns(member) && span.kind != Kind::Killed {
                held.push((span.from, span.to().saturating_add(after)));
            } else if let Some(waits) = rules.group_waits.map(nanos).filter(|_| self.is_of_group(span)) {
                held.extend(span.holds_group(waits));
            }
        }
        if rules.group_waits.is_some() {
            held.extend(self.revocations.iter().map(|span| (span.from, span.to())));
        }
        held.sort_unstable();
        let mut due = from.saturating_add(within);
        for (since, over) in held {
            if since <= due && from <= over {
                due = due.max(over.saturating_add(within));
            }
        }
        due
    }

    /// Whether the group may wait for the one whose fault it is: not for a node, and not for who only publishes.
    fn is_of_group(&self, span: &Span<'_>) -> bool {
        let only_publishes = |member| self.publish.contains(member) && !self.own.contains(member);
        span.kind != Kind::Down && span.member.is_some_and(|member| !only_publishes(member))
    }

    /// Takes who publishes, who owns, and what is being given up.
    pub(super) fn see(&mut self, event: &'a Event) {
        let (Some(member), from) = (event.member.as_deref(), event.at_ns) else { return };
        let is_same = |span: &Span<'_>| {
            span.member == Some(member) && span.owned == Some((event.partition, event.epoch))
        };
        match event.kind {
            Kind::Call => drop(self.publish.insert(member)),
            Kind::Assigned => drop(self.own.insert(member)),
            Kind::Revoking => {
                let owned = Some((event.partition, event.epoch));
                self.revocations.push(Span { kind: event.kind, member: Some(member), owned, from, to: None });
            }
            Kind::Released | Kind::Lost => {
                let mut open = self.revocations.iter_mut().rev().filter(|span| span.to.is_none());
                if let Some(span) = open.find(|span| is_same(span)) {
                    span.to = Some(event.at_ns);
                }
            }
            _ => {}
        }
    }
}

/// Whether an event is one of those that [`Faults`] takes.
pub(super) fn is_fault(kind: Kind) -> bool {
    use Kind::{Continued, Cut, Down, Healed, Killed, Stopped, Up};
    matches!(kind, Killed | Stopped | Continued | Cut | Healed | Down | Up)
}
