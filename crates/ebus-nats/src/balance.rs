//! How a member learns of the others and of its share (G3, G4, G5): it says that it lives, looks who else does, gives up
//! what it has too much of and looks for what it has too little of.
//!
//! The list of members is polled; what others publish to their heartbeat keys is heard as a hint and only makes it
//! quicker. Nothing here decides ownership: a member that is wrong about the others asks for too much or gives up too
//! much, and owns nothing that it should not.

use std::collections::BTreeMap;
use std::task::{Context, Poll};
use std::time::Duration;

use async_nats::Subscriber;
use ebus_core::{Error, ErrorKind, SourceEvent};
use futures_util::StreamExt;
use tokio::time::Instant;

use crate::beat::{Beat, Standing};
use crate::own::TOPIC_RETRY;
use crate::part::{Part, PartState, Share};
use crate::peers::{Beaten, name_of, said};
use crate::roster::{Leftover, Listing, Other, Roster};
use crate::share::{Claims, Shares, shares};
use crate::source::{Done, NatsSource, TopicState};

/// The longest time between two looks at the list of members.
const LONGEST_LOOK: Duration = Duration::from_millis(500);
/// From a hint to a look: what was published has to be stored first, and what changes together is seen together.
const AFTER_HINT: Duration = Duration::from_millis(10);
/// The shortest time between two heartbeats, however much changes.
const BEAT_PAUSE: Duration = Duration::from_millis(10);
/// Leftovers that are cleaned up at once.
const CLEANING: usize = 8;

/// What a member knows and says of its group.
pub(crate) struct Balance {
    pub(crate) roster: Roster,
    /// What this member owns or wants has changed.
    pub(crate) changed: bool,
    /// That of this member's heartbeat key.
    revision: u64,
    /// Heartbeats so far.
    count: u64,
    beating: bool,
    /// What the last heartbeat said is not what is.
    outdated: bool,
    beat_at: Instant,
    last_beat: Instant,
    listing: bool,
    list_at: Instant,
    hints: Option<Subscriber>,
    cleaning: usize,
    /// Which failures were told since the last look that succeeded.
    failing: Vec<ErrorKind>,
}

impl Balance {
    pub(crate) fn new(roster: Roster, hints: Subscriber, now: Instant) -> Self {
        Self {
            roster,
            changed: true,
            revision: 0,
            count: 0,
            beating: false,
            outdated: false,
            beat_at: now,
            last_beat: now,
            listing: false,
            list_at: now,
            hints: Some(hints),
            cleaning: 0,
            failing: Vec::new(),
        }
    }

    /// Hears what others say of themselves from here on.
    pub(crate) fn hear(&mut self, hints: Subscriber) {
        self.hints = Some(hints);
    }

    /// Takes a heartbeat's end in.
    fn beaten(&mut self, beaten: Beaten, every: Duration) {
        match beaten {
            Beaten::Accepted { revision } => {
                self.revision = revision;
                self.beat_at = self.last_beat + every;
            }
            Beaten::Other { revision } => {
                self.revision = revision;
                self.outdated = true;
            }
            Beaten::Missing => {
                self.revision = 0;
                self.outdated = true;
                self.roster.reset();
            }
        }
    }
}

impl NatsSource {
    /// How often a member says that it lives.
    fn beat_every(&self) -> Duration {
        self.member.lease / 12
    }

    /// How often the list of members is looked at.
    fn list_every(&self) -> Duration {
        (self.member.lease / 12).min(LONGEST_LOOK)
    }

    /// Says for the first time that this member is there.
    ///
    /// # Errors
    /// What the server says, such as `Denied`; `Unavailable` or `Timeout`.
    pub(crate) async fn enter(&mut self) -> Result<(), Error> {
        let every = self.beat_every();
        let now = Instant::now();
        let value = self.next_beat(now);
        let beaten = self.member.beat(value, 0).await.map_err(|error| error.with_operation("source"))?;
        self.balance.beaten(beaten, every);
        Ok(())
    }

    fn next_beat(&mut self, now: Instant) -> Vec<u8> {
        let standing = self.standing();
        let balance = &mut self.balance;
        balance.outdated = false;
        balance.last_beat = now;
        balance.count += 1;
        let lease_ms = u64::try_from(self.member.lease.as_millis()).unwrap_or(u64::MAX);
        Beat::new(&self.member.owner, lease_ms, balance.count, &standing).encode()
    }

    /// What this member owns and wants.
    fn standing(&self) -> Standing {
        let mut standing = Standing::default();
        for part in &self.parts {
            let topic = part.id.topic.as_str();
            if part.wanted {
                let claim = match standing.claims.get_mut(topic) {
                    Some(claim) => claim,
                    None => standing.claims.entry(topic.to_owned()).or_default(),
                };
                claim.partitions = claim.partitions.max(part.id.partition + 1);
                if part.is_kept() {
                    claim.held.push(part.id.partition);
                }
            }
            if matches!(part.state, PartState::Holding(_)) && !(part.wanted && part.is_kept()) {
                standing.leaving.entry(topic.to_owned()).or_default().push(part.id.partition);
            }
        }
        for claim in standing.claims.values_mut() {
            claim.held.sort_unstable();
        }
        for leaving in standing.leaving.values_mut() {
            leaving.sort_unstable();
        }
        standing
    }

    /// Beats and looks when it is time to.
    pub(crate) fn tick_balance(&mut self, now: Instant, next: &mut Instant) {
        let (beat_every, list_every) = (self.beat_every(), self.list_every());
        let balance = &mut self.balance;
        let beat_at = if balance.outdated { balance.last_beat + BEAT_PAUSE } else { balance.beat_at };
        if balance.beating {
            // Its end is a reason to come back.
        } else if beat_at <= now {
            balance.beating = true;
            balance.beat_at = now + beat_every;
            let value = self.next_beat(now);
            let (member, revision) = (self.member.clone(), self.balance.revision);
            self.jobs.push(Box::pin(async move { Done::Beat(member.beat(value, revision).await) }));
        } else {
            *next = (*next).min(beat_at);
        }
        let balance = &mut self.balance;
        if balance.listing {
            // As above.
        } else if balance.list_at <= now {
            balance.listing = true;
            balance.list_at = now + list_every;
            let (member, from, own) = (self.member.clone(), balance.roster.from(), balance.revision);
            self.jobs.push(Box::pin(async move { Done::Listed(member.list(from).await, own) }));
        } else {
            *next = (*next).min(balance.list_at);
        }
    }

    pub(crate) fn beaten(&mut self, beaten: Result<Beaten, Error>) {
        self.balance.beating = false;
        match beaten {
            Ok(beaten) => {
                let every = self.beat_every();
                self.balance.beaten(beaten, every);
            }
            Err(error) => self.failing(error),
        }
    }

    pub(crate) fn listed(&mut self, listed: Result<Listing, Error>, own: u64, now: Instant) {
        self.balance.listing = false;
        let listing = match listed {
            Ok(listing) => listing,
            Err(error) => return self.failing(error),
        };
        if self.balance.roster.listed(listing, own) {
            self.balance.failing.clear();
            self.share_out(now);
            self.clean_up();
        }
    }

    /// Tells each kind of failure once, until a look succeeds.
    fn failing(&mut self, error: Error) {
        if !self.balance.failing.contains(&error.kind()) {
            self.balance.failing.push(error.kind());
            self.events.push(SourceEvent::Trouble(error));
        }
    }

    fn clean_up(&mut self) {
        if self.balance.cleaning > 0 {
            return;
        }
        for leftover in self.balance.roster.leftovers(CLEANING) {
            self.balance.cleaning += 1;
            let member = self.member.clone();
            self.jobs.push(Box::pin(async move {
                let done = member.clean_up(&leftover).await;
                Done::CleanedUp(leftover, done)
            }));
        }
    }

    pub(crate) fn cleaned_up(&mut self, leftover: &Leftover, done: bool) {
        self.balance.cleaning -= 1;
        if done {
            self.balance.roster.forget(leftover);
        }
    }

    /// Hears what others say of themselves.
    pub(crate) fn poll_hints(&mut self, cx: &mut Context<'_>) {
        let Some(hints) = &mut self.balance.hints else { return };
        while let Poll::Ready(hint) = hints.poll_next_unpin(cx) {
            let Some(hint) = hint else {
                self.balance.hints = None; // the client has ended
                return;
            };
            let left = hint.headers.as_ref().is_some_and(|headers| headers.get("KV-Operation").is_some());
            let (said, _) = said((!left).then_some(&hint.payload[..]));
            if self.balance.roster.is_news(name_of(&hint.subject), &said) {
                let soon = Instant::now() + AFTER_HINT;
                self.balance.list_at = self.balance.list_at.min(soon);
                self.next_tick = self.next_tick.min(soon);
            }
        }
    }

    /// Computes the shares and what follows from them.
    pub(crate) fn share_out(&mut self, now: Instant) {
        self.balance.outdated |= std::mem::take(&mut self.balance.changed);
        if !self.balance.roster.is_known() || self.closing {
            return;
        }
        let standing = self.standing();
        let me = self.member.name();
        let others: Vec<Other<'_>> = self.balance.roster.others().collect();
        let steady: Vec<Other<'_>> = others.iter().copied().filter(|other| !other.suspect).collect();
        let split = |others: &[Other<'_>]| -> BTreeMap<String, Vec<bool>> {
            let my_place = others.partition_point(|other| other.name < me);
            let mut members: Vec<&Claims> = others.iter().map(|other| &other.standing.claims).collect();
            members.insert(my_place, &standing.claims);
            let shares: Shares<'_> = shares(&members, my_place);
            let mine = |owners: Vec<usize>| owners.into_iter().map(|owner| owner == my_place).collect();
            shares.into_iter().map(|(topic, owners)| (topic.to_owned(), mine(owners))).collect()
        };
        let shares = split(&others);
        let soon = if steady.len() == others.len() { None } else { Some(split(&steady)) };
        let mut larger = Vec::new();
        for part in &mut self.parts {
            let Part { id, share, wanted, state, .. } = part;
            let is_mine = |shares: &BTreeMap<String, Vec<bool>>| {
                let topic = shares.get(id.topic.as_str());
                topic.and_then(|mine| mine.get(id.partition as usize)).copied().unwrap_or(false)
            };
            let now_mine = *wanted && is_mine(&shares);
            let soon_mine = *wanted && soon.as_ref().map_or(now_mine, is_mine);
            let was_mine = share.now;
            *share = Share { now: now_mine, soon: soon_mine };
            let PartState::Seeking(seeking) = state else { continue };
            let owned_by = |others: &[Other<'_>]| {
                others.iter().any(|other| other.standing.owns(id.topic.as_str(), id.partition))
            };
            // Whose share it is may change before its clock has run down, so all watch what nobody owns.
            let looking = *wanted && !owned_by(&steady);
            if looking && (!seeking.looking || now_mine && !was_mine) {
                seeking.next_look = now;
            }
            seeking.looking = looking;
            if !looking && !seeking.busy {
                seeking.watch = None;
            }
        }
        for other in &others {
            for (topic, claim) in &other.standing.claims {
                let known = standing.claims.get(topic).map(|mine| mine.partitions);
                if known.is_some_and(|known| known < claim.partitions) {
                    larger.push(topic.clone());
                }
            }
        }
        for topic in larger {
            self.look_again(&topic, now);
        }
        self.next_tick = now;
    }

    /// Others know more partitions of a topic than this member does: it was made anew.
    pub(crate) fn look_again(&mut self, topic: &str, now: Instant) {
        for (name, state) in &mut self.topics {
            if name.as_str() == topic && matches!(state, TopicState::Ready) {
                *state = TopicState::Failed(now + TOPIC_RETRY);
            }
        }
    }

    /// Leaves the group: the end of a close.
    pub(crate) fn leave(&mut self) {
        let (member, revision) = (self.member.clone(), self.balance.revision);
        self.jobs.push(Box::pin(async move {
            member.leave(revision).await;
            Done::Left
        }));
    }

    /// Whether a heartbeat is under way.
    pub(crate) fn is_beating(&self) -> bool {
        self.balance.beating
    }
}
