//! Histories as JSON lines.

use std::io::{self, BufRead, Write};

use super::Event;

/// Writes one line per event.
///
/// # Errors
/// What the writer says.
pub fn write<'a>(mut to: impl Write, events: impl IntoIterator<Item = &'a Event>) -> io::Result<()> {
    for event in events {
        serde_json::to_writer(&mut to, event)?;
        to.write_all(b"\n")?;
    }
    to.flush()
}

/// Reads what [`write()`] wrote, in the order in which it happened: by `at_ns`, and as it stands where that is equal. Empty
/// lines are skipped, fields that are not known too.
///
/// # Errors
/// What the reader says; `InvalidData` for a line that is no event, with its number.
pub fn read(from: impl BufRead) -> io::Result<Vec<Event>> {
    let mut events: Vec<Event> = Vec::new();
    for (index, line) in from.lines().enumerate() {
        let line = line?;
        if line.trim().is_empty() {
            continue;
        }
        events.push(serde_json::from_str(&line).map_err(|error| {
            io::Error::new(io::ErrorKind::InvalidData, format!("line {} is no event: {error}", index + 1))
        })?);
    }
    events.sort_by_key(|event| event.at_ns);
    Ok(events)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::{Kind, Outcome, name};

    #[test]
    fn what_is_written_is_read_again() {
        let mut end = Event::new(Kind::End);
        end.key = Some(name("order-1"));
        end.offset = Some(u64::MAX);
        end.outcome = Some(Outcome::Ack);
        end.at_ns = 7;
        let mut committed = Event::new(Kind::Committed);
        committed.finished = Some(vec![(3, 9)]);
        committed.at_ns = 8;
        let mut bytes = Vec::new();
        write(&mut bytes, [&end, &committed]).expect("memory takes it");
        let text = String::from_utf8(bytes.clone()).expect("is text");
        let first = text.lines().next().expect("has lines");
        assert_eq!(
            first,
            format!(r#"{{"kind":"end","offset":{},"key":"order-1","outcome":"ack","at_ns":7}}"#, u64::MAX)
        );
        assert_eq!(read(&bytes[..]).expect("is a history"), [end, committed]);
    }

    #[test]
    fn a_line_that_is_no_event_is_named() {
        let error = read(&b"{\"kind\":\"call\",\"at_ns\":1}\n\n{\"kind\":\"cull\",\"at_ns\":2}\n"[..])
            .expect_err("the third line is none");
        assert!(error.to_string().starts_with("line 3 is no event"), "{error}");
    }
}
