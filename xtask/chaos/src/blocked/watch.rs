//! Who owns what, and who runs the blocked key: read from the histories while they are written.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::PathBuf;

use anyhow::{Context, Result};
use ebus_testkit::history::{Event, Kind, Part};

use super::KEY;
use crate::setting::{Names, PARTITIONS};

#[derive(Debug, Default)]
pub(super) struct Watch {
    files: HashMap<PathBuf, Tail>,
    /// The last owner of each partition, and its epoch.
    owners: BTreeMap<u32, (u64, u32)>,
    /// Who began to run the blocked key last, and under which epoch.
    holder: Option<(u64, u32)>,
}

impl Watch {
    /// Takes in what was written since.
    pub(super) fn look(&mut self, parts: &[Part]) -> Result<()> {
        for part in parts {
            let tail = self.files.entry(part.path.clone()).or_default();
            let lines =
                tail.read(&part.path).with_context(|| format!("could not read {}", part.path.display()))?;
            for event in lines {
                take(&mut self.owners, &mut self.holder, &event);
            }
        }
        Ok(())
    }

    /// Who runs the blocked key, or did last.
    pub(super) fn holder(&self) -> Option<u32> {
        self.holder.map(|(_, member)| member)
    }

    /// Whether each of so many members owns its share of the partitions.
    pub(super) fn is_shared_by(&self, members: u32) -> bool {
        let mut shares: HashMap<u32, u32> = HashMap::new();
        self.owners.values().for_each(|(_, member)| *shares.entry(*member).or_default() += 1);
        shares.len() == members as usize && shares.values().all(|share| *share == PARTITIONS / members)
    }
}

fn take(owners: &mut BTreeMap<u32, (u64, u32)>, holder: &mut Option<(u64, u32)>, event: &Event) {
    if event.topic.as_deref() != Some(&Names::default().topic) {
        return;
    }
    let member = event.member.as_deref().and_then(|name| name.strip_prefix("member-")?.parse().ok());
    let (Some(partition), Some(epoch), Some(member)) = (event.partition, event.epoch, member) else { return };
    // The parts are not read in the order of time; epochs say who came later.
    match event.kind {
        Kind::Assigned => {
            let owner = owners.entry(partition).or_insert((epoch, member));
            *owner = (*owner).max((epoch, member));
        }
        Kind::Start if event.key.as_deref() == Some(KEY) => *holder = (*holder).max(Some((epoch, member))),
        _ => {}
    }
}

/// A file that grows.
#[derive(Debug, Default)]
struct Tail {
    file: Option<File>,
    /// The beginning of a line whose end is not written yet.
    rest: Vec<u8>,
}

impl Tail {
    fn read(&mut self, path: &PathBuf) -> Result<Vec<Event>> {
        let file = match &mut self.file {
            Some(file) => file,
            None => match File::open(path) {
                Ok(file) => self.file.insert(file),
                // Its process has only begun.
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
                Err(error) => return Err(error.into()),
            },
        };
        file.read_to_end(&mut self.rest)?;
        let whole = self.rest.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1);
        let lines = self.rest[..whole].split(|byte| *byte == b'\n').filter(|line| is_wanted(line));
        let events = lines.map(|line| Ok(serde_json::from_slice(line)?)).collect();
        self.rest.drain(..whole);
        events
    }
}

/// Most lines are of other keys, and need not be parsed.
fn is_wanted(line: &[u8]) -> bool {
    let has = |word: &[u8]| line.windows(word.len()).any(|window| window == word);
    line.starts_with(br#"{"kind":"assigned""#)
        || line.starts_with(br#"{"kind":"start""#) && has(br#""blocked""#)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn line(kind: &str, key: &str, partition: u32, member: u32, epoch: u64) -> String {
        format!(
            r#"{{"kind":"{kind}","topic":"events","partition":{partition},"key":"{key}","member":"member-{member}","epoch":{epoch},"at_ns":1}}"#
        )
    }

    #[test]
    fn the_holder_is_who_began_last_and_half_a_line_waits() {
        let dir = tempfile::tempdir().expect("there is room");
        let path = dir.path().join("member.history");
        let mut watch = Watch::default();
        let parts = [Part::new(&path, false)];
        watch.look(&parts).expect("a history that is not there yet is no failure");
        let mut file = File::create(&path).expect("there is room");
        let lines =
            [line("start", KEY, 1, 2, 7), line("start", KEY, 1, 1, 6), line("start", "other", 1, 3, 8)];
        writeln!(file, "{}", lines.join("\n")).expect("there is room");
        watch.look(&parts).expect("is a history");
        assert_eq!(watch.holder(), Some(2));
        let next = line("start", KEY, 1, 3, 8);
        let (one, two) = next.split_at(40);
        write!(file, "{one}").expect("there is room");
        watch.look(&parts).expect("half a line is no failure");
        assert_eq!(watch.holder(), Some(2));
        writeln!(file, "{two}").expect("there is room");
        watch.look(&parts).expect("is a history");
        assert_eq!(watch.holder(), Some(3));
    }

    #[test]
    fn shares_are_even_when_all_have_as_many() {
        let mut watch = Watch::default();
        for partition in 0..PARTITIONS {
            watch.owners.insert(partition, (1, partition % 4));
        }
        assert!(watch.is_shared_by(4) && !watch.is_shared_by(3));
        watch.owners.insert(0, (2, 1));
        assert!(!watch.is_shared_by(4));
    }
}
