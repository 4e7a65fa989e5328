//! The histories of several processes as one, with the ends that a killed process could not write.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::PathBuf;
use std::sync::Arc;

use super::names::Names;
use super::{Event, Kind, Name, Outcome};

/// The history of one process.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Part {
    /// Where it was written, by [`History::durable`](super::History::durable).
    pub path: PathBuf,
    /// The process was killed: its last line may be torn.
    pub killed: bool,
}

impl Part {
    /// Of a process that ended by itself, or of one that was killed.
    pub fn new(path: impl Into<PathBuf>, killed: bool) -> Self {
        Self { path: path.into(), killed }
    }
}

/// What [`merge`] gives.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct Merged {
    /// All events, in the order in which they happened.
    pub events: Vec<Event>,
    /// Killed processes whose last line was torn, and left out.
    pub torn: usize,
}

/// Reads the histories of several processes of one machine, in the order in which things happened.
///
/// A member that was [killed](Kind::Killed) could not say what ended with it: `cancelled` for its open runs and `lost` for what it
/// owned are put in, at the moment at which it was known to be dead.
///
/// # Errors
/// What reading gives; `InvalidData` for a line that is no event, with file and number. Only the last line of a killed process
/// may be torn.
pub fn merge(parts: impl IntoIterator<Item = Part>) -> io::Result<Merged> {
    let (mut merged, mut names) = (Merged::default(), Names::default());
    for part in parts {
        let named =
            |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", part.path.display()));
        let file = BufReader::new(File::open(&part.path).map_err(named)?);
        merged.torn +=
            usize::from(read_part(file, part.killed, &mut names, &mut merged.events).map_err(named)?);
    }
    // Stable: what one process wrote at one moment stays in its order.
    merged.events.sort_by_key(|event| event.at_ns);
    put_ends_in(&mut merged.events);
    Ok(merged)
}

/// True when the last line was torn.
fn read_part(
    mut from: impl BufRead,
    killed: bool,
    names: &mut Names,
    events: &mut Vec<Event>,
) -> io::Result<bool> {
    let mut line = Vec::new();
    for number in 1.. {
        line.clear();
        if from.read_until(b'\n', &mut line)? == 0 {
            break;
        }
        let whole = line.last() == Some(&b'\n');
        match serde_json::from_slice::<Event>(&line) {
            Ok(mut event) if whole => {
                names.share(&mut event);
                events.push(event);
            }
            _ if !whole && killed => return Ok(true),
            Ok(_) => {
                let why = format!("line {number} is torn, and its process was not killed");
                return Err(io::Error::new(io::ErrorKind::InvalidData, why));
            }
            Err(error) => {
                let why = format!("line {number} is no event: {error}");
                return Err(io::Error::new(io::ErrorKind::InvalidData, why));
            }
        }
    }
    Ok(false)
}

/// Which run of which message: topic, partition, offset, epoch, attempt.
type RunId = (Option<Name>, Option<u32>, Option<u64>, Option<u64>, Option<u32>);

/// Which ownership: topic, partition, epoch.
type OwnedId = (Option<Name>, Option<u32>, Option<u64>);

/// What a member has open.
#[derive(Debug, Default)]
struct Open {
    runs: HashMap<RunId, Vec<Event>>,
    owned: HashMap<OwnedId, Event>,
}

/// In place: a long history is gigabytes.
fn put_ends_in(events: &mut Vec<Event>) {
    if !events.iter().any(|event| event.kind == Kind::Killed) {
        return;
    }
    let mut members: HashMap<Name, Open> = HashMap::new();
    // What is to stand before which event, ascending.
    let mut ends: Vec<(usize, Event)> = Vec::new();
    for (at, event) in events.iter().enumerate() {
        let Some(member) = event.member.as_ref() else { continue };
        match event.kind {
            Kind::Start | Kind::End => {
                let open = members.entry(Arc::clone(member)).or_default();
                let id = (event.topic.clone(), event.partition, event.offset, event.epoch, event.attempt);
                if event.kind == Kind::Start {
                    open.runs.entry(id).or_default().push(event.clone());
                } else if let Some(runs) = open.runs.get_mut(&id) {
                    runs.pop();
                    if runs.is_empty() {
                        open.runs.remove(&id);
                    }
                }
            }
            Kind::Assigned | Kind::Released | Kind::Lost => {
                let open = members.entry(Arc::clone(member)).or_default();
                let id = (event.topic.clone(), event.partition, event.epoch);
                match event.kind {
                    Kind::Assigned => open.owned.insert(id, event.clone()),
                    _ => open.owned.remove(&id),
                };
            }
            Kind::Killed => {
                let open = members.remove(member).unwrap_or_default();
                ends.extend(open.ends(event.at_ns).into_iter().map(|end| (at, end)));
            }
            _ => {}
        }
    }
    let mut from = events.len();
    events.reserve_exact(ends.len());
    events.extend((0..ends.len()).map(|_| Event::new(Kind::Killed)));
    // From the back: each event moves once, by as many as stand before it.
    while let Some((before, end)) = ends.pop() {
        while from > before {
            from -= 1;
            events.swap(from, from + ends.len() + 1);
        }
        events[from + ends.len()] = end;
    }
}

impl Open {
    /// What the member would have said: first that its runs have ended, then that it owns nothing.
    fn ends(self, at_ns: u64) -> Vec<Event> {
        let runs = self.runs.into_values().flatten().map(|mut run| {
            run.kind = Kind::End;
            run.outcome = Some(Outcome::Cancelled);
            run
        });
        let owned = self.owned.into_values().map(|mut owned| {
            owned.kind = Kind::Lost;
            owned
        });
        let mut ends: Vec<_> = runs.chain(owned).collect();
        ends.iter_mut().for_each(|end| end.at_ns = at_ns);
        ends
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::{name, write};

    fn event(kind: Kind, at_ns: u64) -> Event {
        let mut event = Event::new(kind);
        event.member = Some(name("m"));
        event.topic = Some(name("t"));
        event.partition = Some(1);
        event.epoch = Some(3);
        event.at_ns = at_ns;
        event
    }

    fn run(kind: Kind, offset: u64, at_ns: u64) -> Event {
        Event { offset: Some(offset), attempt: Some(1), ..event(kind, at_ns) }
    }

    fn file(dir: &tempfile::TempDir, label: &str, events: &[Event], rest: &str) -> PathBuf {
        let mut bytes = Vec::new();
        write(&mut bytes, events).expect("memory takes it");
        bytes.extend_from_slice(rest.as_bytes());
        let path = dir.path().join(label);
        std::fs::write(&path, bytes).expect("there is room");
        path
    }

    #[test]
    fn events_of_all_parts_stand_in_the_order_of_time() {
        let dir = tempfile::tempdir().expect("there is room");
        let one = file(&dir, "one", &[event(Kind::Call, 1), event(Kind::Call, 5)], "");
        let two = file(&dir, "two", &[event(Kind::Stored, 3)], "");
        let merged = merge([Part::new(one, false), Part::new(two, false)]).expect("are histories");
        assert_eq!(merged.events.iter().map(|event| event.at_ns).collect::<Vec<_>>(), [1, 3, 5]);
        let [first, second] = [&merged.events[0], &merged.events[1]].map(|event| event.topic.as_ref());
        assert!(first.zip(second).is_some_and(|(a, b)| Arc::ptr_eq(a, b)), "names are shared");
    }

    #[test]
    fn only_the_last_line_of_a_killed_process_may_be_torn() {
        let dir = tempfile::tempdir().expect("there is room");
        let torn = file(&dir, "torn", &[event(Kind::Call, 1)], "{\"kind\":\"sta");
        let merged = merge([Part::new(&torn, true)]).expect("was killed");
        assert_eq!((merged.events.len(), merged.torn), (1, 1));
        assert!(merge([Part::new(&torn, false)]).is_err());
        let inside = file(&dir, "inside", &[], "{\"kind\":\"sta\n{\"kind\":\"call\",\"at_ns\":1}\n");
        let error = merge([Part::new(inside, true)]).expect_err("is torn inside");
        assert!(error.to_string().contains("line 1 is no event"), "{error}");
    }

    #[test]
    fn what_a_killed_member_had_open_ends_with_it() {
        let dir = tempfile::tempdir().expect("there is room");
        let mut ended = run(Kind::End, 7, 3);
        ended.outcome = Some(Outcome::Ack);
        let member = [
            event(Kind::Assigned, 1),
            run(Kind::Start, 7, 2),
            ended,
            run(Kind::Start, 8, 4),
            Event { epoch: Some(4), ..event(Kind::Assigned, 5) },
            Event { epoch: Some(4), ..event(Kind::Released, 6) },
        ];
        let member = file(&dir, "member", &member, "");
        let driver = file(&dir, "driver", &[event(Kind::Killed, 9)], "");
        let merged = merge([Part::new(member, true), Part::new(driver, false)]).expect("are histories");
        let ends: Vec<_> =
            merged.events[6..].iter().map(|event| (event.kind, event.offset, event.epoch)).collect();
        assert_eq!(
            ends,
            [(Kind::End, Some(8), Some(3)), (Kind::Lost, None, Some(3)), (Kind::Killed, None, Some(3))]
        );
        assert_eq!(merged.events[6].outcome, Some(Outcome::Cancelled));
        assert!(merged.events[6..].iter().all(|event| event.at_ns == 9));
    }

    #[test]
    fn everybody_killed_ends_at_its_own_place() {
        let of = |member: &str, event: Event| Event { member: Some(name(member)), ..event };
        let mut events = Vec::new();
        for (at, member) in [(1, "m"), (2, "n")] {
            events.push(of(member, event(Kind::Assigned, at)));
            events.push(of(member, run(Kind::Start, at, at)));
        }
        events.push(event(Kind::Call, 3));
        events.push(of("m", event(Kind::Killed, 4)));
        events.push(event(Kind::Call, 5));
        events.push(of("n", event(Kind::Killed, 6)));
        events.push(event(Kind::Call, 7));
        let before = events.clone();
        put_ends_in(&mut events);
        let ends = |member: &str, at_ns: u64| {
            let end = Event {
                at_ns,
                outcome: Some(Outcome::Cancelled),
                ..run(Kind::End, if member == "m" { 1 } else { 2 }, at_ns)
            };
            [of(member, end), of(member, event(Kind::Lost, at_ns))]
        };
        let (first, rest) = before.split_at(5);
        let (second, third) = rest.split_at(2);
        let expected = [first, &ends("m", 4), second, &ends("n", 6), third].concat();
        assert_eq!(events, expected);
    }
}
