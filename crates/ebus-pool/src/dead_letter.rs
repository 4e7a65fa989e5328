//! Dead letters: what is kept of a message that is given up, and why (G1, G8).
//!
//! Key, payload, timestamp and own headers of the message stay as they were. These headers come on top. A dead letter is
//! published at least once, with a stable id. Headers of an earlier death, of a message that was redriven, make room for those
//! of the last one.
//!
//! A dead letter is larger than its message, by 4 KiB at most; one that is too large for its topic is published again with
//! an error text of 64 bytes, about 500 bytes in all. If that is too large too, its key waits, and the pool's
//! [`dead_letter_error`](crate::PoolState::dead_letter_error) says `too_large`: let the dead-letter topic take larger messages than
//! the topics that are consumed (Kafka: `max.message.bytes` of that topic; NATS: `max_msg_size` of the stream, with a
//! `max_payload` of the server above that of the consumed streams), and it goes on by itself.

use ebus_core::{Epoch, Error, ErrorKind, Group, Message, PartitionId, Publish, Timestamp, Topic};

use crate::parked::ParkedKey;

/// `group/topic/partition/offset`: the same for every copy of the same dead letter.
pub const ID: &str = "ebus-dlq-id";
/// `rejected` by the handler or by the retry policy, `attempts` used up, too much time `elapsed`, or `parked`: it never ran, because
/// an earlier message of its key is a dead letter.
pub const REASON: &str = "ebus-dlq-reason";
/// The last error with all its sources.
pub const ERROR: &str = "ebus-dlq-error";
/// The group that gave the message up.
pub const GROUP: &str = "ebus-dlq-group";
/// The topic it came from.
pub const TOPIC: &str = "ebus-dlq-topic";
/// The partition it came from.
pub const PARTITION: &str = "ebus-dlq-partition";
/// Its offset there.
pub const OFFSET: &str = "ebus-dlq-offset";
/// Under which ownership of that partition it was given up: of two letters with the same id, the later owner's has the higher one.
pub const EPOCH: &str = "ebus-dlq-epoch";
/// How often it ran; 0 of one that was parked.
pub const ATTEMPTS: &str = "ebus-dlq-attempts";
/// When it first failed, in milliseconds since 1970-01-01 UTC; not there when it never ran.
pub const FIRST_FAILED_MS: &str = "ebus-dlq-first-failed-ms";
/// When it last failed, in milliseconds since 1970-01-01 UTC; not there when it never ran.
pub const LAST_FAILED_MS: &str = "ebus-dlq-last-failed-ms";
/// Present when the error text was cut.
pub const CUT: &str = "ebus-dlq-cut";

/// All of them.
const NAMES: [&str; 12] = [
    ID,
    REASON,
    ERROR,
    GROUP,
    TOPIC,
    PARTITION,
    OFFSET,
    EPOCH,
    ATTEMPTS,
    FIRST_FAILED_MS,
    LAST_FAILED_MS,
    CUT,
];

/// Bytes that the added headers may take: room for an error chain, small beside any broker's message limit.
const MAX_ADDED_BYTES: usize = 4 << 10;
/// Bytes of the error text when the dead letter was too large for its topic.
const SHORT_ERROR_BYTES: usize = 64;

/// Why a message is given up.
#[derive(Debug, Clone)]
pub(crate) struct Obituary {
    pub(crate) reason: &'static str,
    pub(crate) error: Error,
    pub(crate) attempts: u32,
    pub(crate) first_failed: Timestamp,
    pub(crate) last_failed: Timestamp,
}

impl Obituary {
    /// Of a message that never ran, because its key is parked.
    pub(crate) fn parked(parked: &ParkedKey) -> Self {
        let message = format!(
            "its key is parked since the message at offset {} became a dead letter: {}",
            parked.offset, parked.error
        );
        let error = Error::new(ErrorKind::Handler, message);
        Self { reason: "parked", error, attempts: 0, first_failed: parked.since, last_failed: parked.since }
    }
}

/// Where the message came from.
#[derive(Debug, Clone)]
pub(crate) struct Origin {
    pub(crate) group: Group,
    pub(crate) partition: PartitionId,
    pub(crate) offset: u64,
    /// Under which it was given up.
    pub(crate) epoch: Epoch,
}

/// The dead letter for `message`; `short` when a full one was too large.
pub(crate) fn letter(to: &Topic, origin: &Origin, message: &Message, why: &Obituary, short: bool) -> Publish {
    let id = format!(
        "{}/{}/{}/{}",
        origin.group, origin.partition.topic, origin.partition.partition, origin.offset
    );
    let mut headers = message.headers.clone();
    for name in NAMES {
        headers.remove(name);
    }
    let mut added = 0;
    let mut add = |name: &str, value: String| {
        added += name.len() + value.len();
        headers.append(name, value);
    };
    add(ID, id.clone());
    add(REASON, why.reason.into());
    add(GROUP, origin.group.to_string());
    add(TOPIC, origin.partition.topic.to_string());
    add(PARTITION, origin.partition.partition.to_string());
    add(OFFSET, origin.offset.to_string());
    add(EPOCH, origin.epoch.0.to_string());
    add(ATTEMPTS, why.attempts.to_string());
    if why.attempts > 0 {
        add(FIRST_FAILED_MS, why.first_failed.as_millis().to_string());
        add(LAST_FAILED_MS, why.last_failed.as_millis().to_string());
    }
    let room = if short { SHORT_ERROR_BYTES } else { MAX_ADDED_BYTES - added - ERROR.len() - CUT.len() - 4 };
    let text = why.error.chain();
    let kept = floor_char_boundary(&text, room);
    headers.append(ERROR, text[..kept].to_owned());
    if kept < text.len() {
        headers.append(CUT, "true");
    }
    let letter = message.clone().with_headers(headers);
    // A broker that knows ids takes a second letter of the same ownership for the first. In a topic that was made anew offsets come
    // again, and epochs do not: that is another message.
    Publish::new(to.clone(), letter).with_id(format!("{id}/{}", origin.epoch))
}

pub(crate) fn floor_char_boundary(text: &str, most: usize) -> usize {
    if text.len() <= most {
        return text.len();
    }
    (0..=most).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn obituary(error: String) -> Obituary {
        Obituary {
            reason: "attempts",
            error: Error::new(ErrorKind::Handler, error),
            attempts: 3,
            first_failed: Timestamp::from_millis(1),
            last_failed: Timestamp::from_millis(2),
        }
    }

    fn letter_of(error: String, short: bool) -> Publish {
        letter_for(&obituary(error), short)
    }

    fn letter_for(why: &Obituary, short: bool) -> Publish {
        let topic = Topic::new("orders").expect("legal");
        let origin = Origin {
            group: Group::new("g").expect("legal"),
            partition: PartitionId::new(topic, 3),
            offset: 7,
            epoch: Epoch(5),
        };
        let message = Message::new("body").with_key("k").with_header("own", "1");
        letter(&Topic::new("orders.dlq").expect("legal"), &origin, &message, why, short)
    }

    #[test]
    fn keeps_the_message_and_says_where_it_came_from() {
        let publish = letter_of("boom".into(), false);
        let headers = &publish.message.headers;
        assert_eq!(publish.message.payload, "body");
        assert_eq!(headers.first_str("own"), Some("1"));
        for (name, value) in [
            (ID, "g/orders/3/7"),
            (REASON, "attempts"),
            (ERROR, "boom"),
            (GROUP, "g"),
            (TOPIC, "orders"),
            (PARTITION, "3"),
            (OFFSET, "7"),
            (EPOCH, "5"),
            (ATTEMPTS, "3"),
            (FIRST_FAILED_MS, "1"),
            (LAST_FAILED_MS, "2"),
        ] {
            assert_eq!(headers.first_str(name), Some(value), "{name}");
        }
        assert!(!headers.contains(CUT));
        assert_eq!(publish.id.as_deref(), Some("g/orders/3/7/5"));
    }

    /// Whoever reads the first value found the place of the first death.
    #[test]
    fn p8_a_redriven_message_says_where_it_failed_last_and_does_not_grow() {
        let mut publish = letter_of("ü".repeat(10_000), false);
        let long = publish.message.headers.byte_len();
        let topic = Topic::new("orders.again").expect("legal");
        let origin = Origin {
            group: Group::new("g").expect("legal"),
            partition: PartitionId::new(topic.clone(), 0),
            offset: 9,
            epoch: Epoch(6),
        };
        for _ in 0..3 {
            publish = letter(&topic, &origin, &publish.message, &obituary("boom".into()), false);
        }
        let headers = &publish.message.headers;
        for (name, value) in
            [(OFFSET, "9"), (EPOCH, "6"), (TOPIC, "orders.again"), (ERROR, "boom"), ("own", "1")]
        {
            let values: Vec<_> = headers.iter().filter(|(n, _)| *n == name).map(|(_, value)| value).collect();
            assert_eq!(values, [value], "{name}");
        }
        assert!(!headers.contains(CUT), "that error was short");
        assert!(headers.byte_len() < long);
    }

    #[test]
    fn a_long_error_is_cut_and_marked() {
        for short in [false, true] {
            let publish = letter_of("ü".repeat(10_000), short);
            let headers = &publish.message.headers;
            assert!(headers.byte_len() <= MAX_ADDED_BYTES + "own1".len(), "{}", headers.byte_len());
            assert!(headers.first_str(ERROR).is_some_and(|text| text.starts_with('ü')));
            assert!(headers.contains(CUT));
        }
        // Where no character is split, not a byte is given away.
        let headers = letter_of("u".repeat(10_000), false).message.headers;
        assert_eq!(headers.byte_len(), MAX_ADDED_BYTES + "own1".len());
    }

    #[test]
    fn p8_what_never_ran_has_no_times_of_failures() {
        let place = |topic| PartitionId::new(Topic::new(topic).expect("legal"), 3);
        let (at, since) = ((4, Epoch(5)), Timestamp::from_millis(9));
        let parked = ParkedKey::new("k".into(), place("orders"), at, place("orders.dlq"), 0, since, "boom");
        let why = Obituary::parked(&parked);
        let publish = letter_for(&why, false);
        let headers = &publish.message.headers;
        assert_eq!((headers.first_str(REASON), headers.first_str(ATTEMPTS)), (Some("parked"), Some("0")));
        assert!(
            headers.first_str(ERROR).is_some_and(|text| text.contains("offset 4") && text.ends_with("boom"))
        );
        assert!(!headers.contains(FIRST_FAILED_MS) && !headers.contains(LAST_FAILED_MS));
    }
}
