//! What a history says, put together: messages, runs, what finished, and who owned what.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::faults::{Faults, is_fault};
use super::{Promise, Rules, Verdict};
use crate::history::{Event, Kind, Outcome};

/// A place in a topic: topic, partition, offset.
pub(super) type Place<'a> = (&'a str, u32, u64);

/// A group's message: group and place.
pub(super) type Work<'a> = (&'a str, Place<'a>);

/// An ownership: group, topic, partition, member, epoch.
pub(super) type Ownership<'a> = (&'a str, &'a str, u32, &'a str, u64);

/// Events are named by their index: the lower one happened first.
pub(super) type At = usize;

#[derive(Debug)]
pub(super) struct Facts<'a> {
    pub(super) events: &'a [Event],
    /// All messages that anybody stored or ran, with one event that shows key and version.
    pub(super) messages: BTreeMap<Place<'a>, At>,
    /// Which group reads which topics.
    pub(super) readers: BTreeSet<(&'a str, &'a str)>,
    pub(super) runs: Vec<Run<'a>>,
    /// Dead letters, as runs that begin and end with the receipt.
    pub(super) letters: Vec<Run<'a>>,
    /// All runs of a message, in order of their starts.
    runs_of: HashMap<Work<'a>, Vec<usize>>,
    /// The run that a start began.
    pub(super) run_of: HashMap<At, usize>,
    /// When a message was finished: by success, by its dead letter, or by a drop that the user asked for. Ascending.
    pub(super) finished: HashMap<Work<'a>, Vec<At>>,
    pub(super) ownerships: HashMap<Ownership<'a>, Owned>,
    /// When an ownership wrote its parked keys, and whether that was accepted. Ascending.
    kept: HashMap<Ownership<'a>, Vec<(At, bool)>>,
    pub(super) faults: Faults<'a>,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Run<'a> {
    pub(super) work: Work<'a>,
    pub(super) key: Option<&'a str>,
    pub(super) member: &'a str,
    pub(super) epoch: u64,
    /// It is of a dead letter, and not of what the source delivered.
    pub(super) redriven: bool,
    pub(super) start: At,
    /// `None`: it never ended.
    pub(super) end: Option<At>,
}

impl<'a> Run<'a> {
    pub(super) fn ownership(&self) -> Ownership<'a> {
        let (group, (topic, partition, _)) = self.work;
        (group, topic, partition, self.member, self.epoch)
    }

    /// Whether it is open just after `at`.
    pub(super) fn is_open_at(&self, at: At) -> bool {
        self.start <= at && self.end.is_none_or(|end| end > at)
    }
}

#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Owned {
    pub(super) assigned: Option<At>,
    /// `released` or `lost`, whichever came first.
    pub(super) ended: Option<At>,
}

impl<'a> Facts<'a> {
    pub(super) fn gather(events: &'a [Event], rules: &'a Rules, verdict: &mut Verdict) -> Self {
        let mut facts = Facts {
            events,
            messages: BTreeMap::new(),
            readers: rules.readers.iter().map(|(group, topic)| (group.as_str(), topic.as_str())).collect(),
            runs: Vec::new(),
            letters: Vec::new(),
            runs_of: HashMap::new(),
            run_of: HashMap::new(),
            finished: HashMap::new(),
            ownerships: HashMap::new(),
            kept: HashMap::new(),
            faults: Faults::default(),
        };
        // The runs that are open, by message, member, epoch and attempt.
        let mut open: HashMap<(Work<'a>, &str, u64, Option<u32>), Vec<usize>> = HashMap::new();
        for (at, event) in events.iter().enumerate() {
            if at > 0 && events[at - 1].at_ns > event.at_ns {
                verdict.find(Promise::Malformed, || "time goes back".into(), [&events[at - 1], event]);
            }
            facts.faults.see(event);
            if facts.take(at, event, rules, verdict, &mut open).is_none() {
                verdict.find(
                    Promise::Malformed,
                    || "an event lacks what its kind must have, or has no cause".into(),
                    [event],
                );
            }
        }
        facts
    }

    /// `None` when the event cannot be true.
    fn take(
        &mut self,
        at: At,
        event: &'a Event,
        rules: &Rules,
        verdict: &mut Verdict,
        open: &mut HashMap<(Work<'a>, &'a str, u64, Option<u32>), Vec<usize>>,
    ) -> Option<()> {
        match event.kind {
            Kind::Call => {
                let _ = (event.topic.as_ref()?, event.member.as_ref()?, event.call?);
                verdict.published += 1;
            }
            Kind::Failed => verdict.failed += 1,
            Kind::Stored => {
                verdict.stored += 1;
                self.message(at, place(event)?, verdict);
            }
            Kind::Start => {
                let (work, member, epoch) = (work(event)?, member(event)?, event.epoch?);
                if event.redriven && !self.is_finished_before(work, at) && !self.has_had_an_owner(work) {
                    return None;
                }
                verdict.runs += 1;
                self.message(at, work.1, verdict);
                self.readers.insert((work.0, work.1.0));
                open.entry((work, member, epoch, event.attempt)).or_default().push(self.runs.len());
                self.run_of.insert(at, self.runs.len());
                self.runs_of.entry(work).or_default().push(self.runs.len());
                let key = event.key.as_deref();
                let redriven = event.redriven;
                self.runs.push(Run { work, key, member, epoch, redriven, start: at, end: None });
            }
            Kind::End => {
                let (work, outcome) = (work(event)?, event.outcome?);
                let run = open.get_mut(&(work, member(event)?, event.epoch?, event.attempt))?.pop()?;
                self.runs[run].end = Some(at);
                verdict.retries += u64::from(matches!(outcome, Outcome::Retry | Outcome::Panic));
                let dropped = rules.is_dropped(work.0, outcome);
                if outcome == Outcome::Ack || dropped {
                    let finished = self.finished.entry(work).or_default();
                    verdict.handled += u64::from(finished.is_empty() && !dropped);
                    verdict.redriven += u64::from(event.redriven && !dropped);
                    finished.push(at);
                }
            }
            Kind::DeadLetter => {
                let (work, member, epoch) = (work(event)?, member(event)?, event.epoch?);
                let key = event.key.as_deref();
                self.letters.push(Run {
                    work,
                    key,
                    member,
                    epoch,
                    redriven: false,
                    start: at,
                    end: Some(at),
                });
                let finished = self.finished.entry(work).or_default();
                verdict.dead_letters += u64::from(finished.is_empty());
                finished.push(at);
            }
            Kind::Assigned => {
                let (group, topic, ..) = ownership(event)?;
                self.readers.insert((group, topic));
                let owned = self.ownerships.entry(ownership(event)?).or_default();
                if owned.assigned.replace(at).is_some() {
                    return None;
                }
            }
            Kind::Released | Kind::Lost => {
                let owned = self.ownerships.get_mut(&ownership(event)?)?;
                owned.ended = owned.ended.or(Some(at));
            }
            Kind::Settle => {
                let _ = (work(event)?, member(event)?, event.epoch?, event.outcome?);
            }
            Kind::Revoking => {
                ownership(event)?;
            }
            Kind::Kept => {
                let accepted = event.outcome? == Outcome::Accepted;
                self.kept.entry(ownership(event)?).or_default().push((at, accepted));
            }
            kind if is_fault(kind) => self.faults.take(event)?,
            _ => {
                let _ = (event.group.as_ref()?, place(event)?);
            }
        }
        Some(())
    }

    /// A message is what it is, whoever shows it.
    fn message(&mut self, at: At, place: Place<'a>, verdict: &mut Verdict) {
        let known = *self.messages.entry(place).or_insert(at);
        let (one, other) = (&self.events[known], &self.events[at]);
        if (&one.key, one.version) != (&other.key, other.version) {
            verdict.find(Promise::G1, || "one place has two messages".into(), [one, other]);
        }
    }

    /// Whether an ownership of its partition has ended: a dead letter may have been stored under it without a receipt.
    fn has_had_an_owner(&self, (group, (topic, partition, _)): Work<'_>) -> bool {
        let of_it = |owned: &Ownership<'_>| (owned.0, owned.1, owned.2) == (group, topic, partition);
        self.ownerships.iter().any(|(ownership, owned)| of_it(ownership) && owned.ended.is_some())
    }

    /// Whether it was finished by its dead letter at `at`: where keys are parked, it is not done by that.
    pub(super) fn is_dead_letter(&self, at: At) -> bool {
        self.event(at).kind == Kind::DeadLetter
    }

    /// Whether `work` was finished before `at`.
    pub(super) fn is_finished_before(&self, work: Work<'_>, at: At) -> bool {
        self.finished.get(&work).and_then(|all| all.first()).is_some_and(|first| *first < at)
    }

    /// The run that finished `work` at `at`: the one that ended there, or the last one before its dead letter.
    pub(super) fn finisher(&self, work: Work<'_>, at: At) -> Option<&Run<'a>> {
        let runs = self.runs_of.get(&work)?.iter().map(|run| &self.runs[*run]);
        runs.filter(|run| run.end.is_some_and(|end| end <= at)).max_by_key(|run| run.end)
    }

    /// All runs of `work`, in order of their starts.
    pub(super) fn runs_of(&self, work: Work<'a>) -> impl Iterator<Item = &Run<'a>> {
        self.runs_of.get(&work).into_iter().flatten().map(|run| &self.runs[*run])
    }

    /// How an ownership ended, if it did.
    pub(super) fn end_of(&self, ownership: Ownership<'_>) -> Option<At> {
        self.ownerships.get(&ownership)?.ended
    }

    /// When an ownership was lost without notice, if it was.
    pub(super) fn lost_at(&self, ownership: Ownership<'_>) -> Option<u64> {
        let event = self.event(self.end_of(ownership)?);
        (event.kind == Kind::Lost).then_some(event.at_ns)
    }

    /// Whether an ownership ended as by a crash: without notice, or without its last commit.
    pub(super) fn crashed_at(&self, ownership: Ownership<'_>) -> Option<At> {
        self.end_of(ownership).filter(|at| {
            let event = &self.events[*at];
            event.kind == Kind::Lost || event.outcome == Some(Outcome::Refused)
        })
    }

    /// Whether `member` could be unaware at `from` that it had lost a partition: always, unless excuses need a fault.
    pub(super) fn may_be_stale(&self, rules: &Rules, member: &str, from: u64) -> bool {
        rules.recovers_within.is_none()
            || self.faults.keep_from_knowing(member, from, rules.aftermath(), rules.leases)
    }

    /// Whether an ownership could not keep what it redrove at `at`: it tried, and never succeeded after that.
    pub(super) fn could_not_keep(&self, ownership: Ownership<'_>, at: At) -> bool {
        let writes = self.kept.get(&ownership).map(Vec::as_slice).unwrap_or_default();
        let after = &writes[writes.partition_point(|(write, _)| *write < at)..];
        !after.is_empty() && after.iter().all(|(_, accepted)| !accepted)
    }

    pub(super) fn event(&self, at: At) -> &'a Event {
        &self.events[at]
    }
}

pub(super) fn place(event: &Event) -> Option<Place<'_>> {
    Some((event.topic.as_deref()?, event.partition?, event.offset?))
}

pub(super) fn work(event: &Event) -> Option<Work<'_>> {
    Some((event.group.as_deref()?, place(event)?))
}

fn member(event: &Event) -> Option<&str> {
    event.member.as_deref()
}

fn ownership(event: &Event) -> Option<Ownership<'_>> {
    Some((
        event.group.as_deref()?,
        event.topic.as_deref()?,
        event.partition?,
        event.member.as_deref()?,
        event.epoch?,
    ))
}
