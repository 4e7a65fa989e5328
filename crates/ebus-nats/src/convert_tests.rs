use ebus_core::Headers;
use proptest::prelude::*;

use super::*;

/// What async-nats reads of what it writes: name and value are split at the first colon, and the value is trimmed.
fn over_the_wire(map: &HeaderMap) -> (HeaderMap, usize) {
    let mut text = String::from("NATS/1.0\r\n");
    for (name, values) in map.iter() {
        for value in values {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
    }
    text.push_str("\r\n");
    let mut read = HeaderMap::new();
    let mut lines = text.lines().skip(1).peekable();
    while let Some(line) = lines.next() {
        let Some((name, value)) = line.split_once(':') else { continue };
        let mut value = value.trim_start().to_owned();
        while let Some(more) = lines.next_if(|line| line.starts_with(char::is_whitespace)) {
            value.push_str(more);
        }
        read.append(name, value.trim_end().to_owned());
    }
    (read, text.len())
}

fn back(message: &Message, map: &HeaderMap) -> Message {
    decode(Some(map), message.payload.clone(), || unreachable!("it carries its time"))
}

/// With an id of the caller's, with the longest one of ours, and as a member of a batch, the first one, too.
fn there_and_back(message: &Message) -> (Message, HeaderMap) {
    let Encoded { headers, own, len } = encode(message, Some("id-1"));
    let (read, wire_len) = over_the_wire(&headers);
    assert_eq!((len, own.as_str()), (wire_len, ""), "the wire length decides what is too large");
    let (ours, own_len) = over_the_wire(&by_own_id(message));
    let no_space = usize::from(ours.get(EBUS_NAME).is_some());
    assert_eq!(encode(message, None).len, own_len + no_space);
    let back = back(message, &read);
    assert_eq!(self::back(message, &ours), back);
    let mut tagged = by_own_id(message);
    tagged.insert(TAG, tagged.get(NATS_MESSAGE_ID).expect("one of ours").clone());
    let mut tagged: HeaderMap = without(&tagged, "Nats-Msg-Id");
    assert_eq!(self::back(message, &over_the_wire(&tagged).0), back);
    tagged.insert("Nats-Expected-Last-Subject-Sequence", "0");
    tagged.insert("Nats-Expected-Last-Subject-Sequence-Subject", "orders.void=.1");
    assert_eq!(self::back(message, &over_the_wire(&tagged).0), back);
    (back, read)
}

fn by_own_id(message: &Message) -> HeaderMap {
    let Encoded { mut headers, own, .. } = encode(message, None);
    headers.insert(NATS_MESSAGE_ID, complete_id(own, "AbCd_-90123", u64::MAX));
    headers
}

fn without(map: &HeaderMap, name: &str) -> HeaderMap {
    let mut left = HeaderMap::new();
    for (other, values) in map.iter().filter(|(other, _)| other.to_string() != name) {
        values.iter().for_each(|value| left.append(other.clone(), value.clone()));
    }
    left
}

fn natives(map: &HeaderMap) -> Vec<&str> {
    let mut names: Vec<&str> = map.iter().map(|(name, _)| name.as_ref()).collect();
    names.sort_unstable();
    names
}

#[test]
fn a01_plain_messages_are_plain_on_the_wire() {
    let message = Message::new("x").with_key("order-42").with_header("X-Trace", "abc");
    let (back, map) = there_and_back(&message);
    assert_eq!(back, message);
    assert_eq!(natives(&map), ["Ebus", "Nats-Msg-Id", "X-Trace"]);
    let own = map.get("Ebus").map(|own| own.as_str().to_owned());
    assert_eq!(own, Some(format!("{} order-42", message.timestamp.as_millis())));
}

#[test]
fn a01_time_and_key_stand_in_an_id_of_ours() {
    let message = Message::new("x").with_key("order 42").with_timestamp(Timestamp::from_millis(1_700));
    let map = by_own_id(&message);
    assert_eq!(natives(&map), ["Nats-Msg-Id"]);
    let id = format!("Ebus 1700 order 42 AbCd_-90123{}", u64::MAX);
    assert_eq!(map.get("Nats-Msg-Id").map(|id| id.as_str()), Some(&*id));
    assert_eq!(own_id(&message, "AbCd_-90123", u64::MAX), id, "what is spent is what was sent");
}

#[test]
fn p5_a_long_key_is_no_part_of_an_id() {
    let key = |len| Message::new("x").with_key("k".repeat(len));
    assert_eq!(natives(&by_own_id(&key(MOST_OF_KEY))), ["Nats-Msg-Id"]);
    let long = key(MOST_OF_KEY + 1);
    assert_eq!(natives(&by_own_id(&long)), ["Ebus", "Nats-Msg-Id"]);
    assert_eq!(own_id(&long, "AbCd", 7), "AbCd7");
    assert_eq!(there_and_back(&long).0, long);
}

#[test]
fn a01_an_id_of_the_callers_says_nothing_of_time_and_key() {
    let message = Message::new("x").with_key("k");
    let Encoded { headers, .. } = encode(&message, Some("Ebus 7 other 1"));
    assert_eq!(back(&message, &headers), message);
}

#[test]
fn a01_order_across_names_duplicates_and_binary_values_come_back() {
    let message = Message::new("x")
        .with_header("b", "1")
        .with_header("a", "2")
        .with_header("b", "3")
        .with_header("a", vec![0, 255, 13, 10])
        .with_header("", "no name")
        .with_header("c d", "name with a space")
        .with_header("e", " spaces at the ends ")
        .with_header("f", "");
    let (back, map) = there_and_back(&message);
    assert_eq!(back, message);
    assert_eq!(map.get("f").map(|v| v.as_str()), Some(""), "what is plain is native");
}

#[test]
fn a01_headers_with_a_meaning_to_the_server_are_only_carried() {
    let message = Message::new("x")
        .with_header("Nats-Msg-Id", "other")
        .with_header("nats-rollup", "all")
        .with_header("Ebus-Key", "forged")
        .with_header("ebus", "0 forged")
        .with_header("Ebusiness", "is not ours");
    let (back, map) = there_and_back(&message);
    assert_eq!(back, message);
    assert_eq!(map.get("Nats-Msg-Id").map(|v| v.as_str()), Some("id-1"));
    assert!(map.get("nats-rollup").is_none());
}

#[test]
fn a01_any_key_comes_back() {
    for key in [&b""[..], b" ", b" a", b"a ", b"=a", b"1 2", b"a\n", b"\xff\x00", "ü".as_bytes(), b"a:b"] {
        let message = Message::new("x").with_key(key.to_vec());
        assert_eq!(there_and_back(&message).0, message, "{key:?}");
    }
    assert_eq!(there_and_back(&Message::new("x")).0.key, None);
}

#[test]
fn messages_of_other_make_are_read() {
    let stored = Timestamp::from_millis(77);
    let bare = decode(None, Bytes::from("x"), || stored);
    assert_eq!((bare.key, bare.headers.len(), bare.timestamp), (None, 0, stored));
    let mut map = HeaderMap::new();
    map.append("b", "2");
    map.append("a", "1");
    map.append("b", "3");
    map.append("Nats-Msg-Id", "theirs");
    map.append("Ebus-Key", "k");
    let message = decode(Some(&map), Bytes::from("x"), || stored);
    assert_eq!(message.key, Some(Key::from("k")));
    assert_eq!(message.timestamp, stored);
    let list: Headers = [("Nats-Msg-Id", "theirs"), ("a", "1"), ("b", "2"), ("b", "3")].into_iter().collect();
    assert_eq!(message.headers, list);
}

#[test]
fn what_only_looks_like_ours_is_of_other_make() {
    let stored = Timestamp::from_millis(77);
    for forged in ["", "x", "12x", "12=!", "99999999999999999999 k", "- k"] {
        let mut map = HeaderMap::new();
        map.append("Ebus", forged);
        map.append("a", "1");
        let message = decode(Some(&map), Bytes::from("x"), || stored);
        assert_eq!((message.key, message.timestamp, message.headers.len()), (None, stored, 1), "{forged:?}");
        let mut map = HeaderMap::new();
        map.append("Nats-Msg-Id", format!("Ebus {forged} 1"));
        let message = decode(Some(&map), Bytes::from("x"), || stored);
        assert_eq!((message.key, message.timestamp, message.headers.len()), (None, stored, 1), "{forged:?}");
    }
    for id in ["Ebus", "Ebus ", "Ebus 12", "ebus 12 1", "12 1"] {
        let mut map = HeaderMap::new();
        map.append("Nats-Msg-Id", id);
        let message = decode(Some(&map), Bytes::from("x"), || stored);
        assert_eq!((message.timestamp, message.headers.len()), (stored, 1), "{id:?}");
    }
}

#[test]
fn an_order_that_does_not_fit_drops_nothing() {
    let message = Message::new("x").with_header("b", "1").with_header("a", "2");
    let mut map = by_own_id(&message);
    map.append("added", "3");
    map.insert(ORDER, "7.1.x.b!");
    let back = decode(Some(&map), Bytes::new(), || Timestamp::from_millis(0));
    assert_eq!(back.headers.len(), 3);
}

fn any_header() -> impl Strategy<Value = (String, Vec<u8>)> {
    let name = prop_oneof!["[A-Za-z-]{0,3}", "(Nats|ebus)(-[a-z]{1,2})?", ".{0,4}"];
    let value = prop_oneof![
        "[ -~]{0,6}".prop_map(String::into_bytes),
        prop::collection::vec(any::<u8>(), 0..6),
        ".{0,4}".prop_map(String::into_bytes),
    ];
    (name, value)
}

proptest! {
    #[test]
    fn a01_any_message_comes_back(
        key in prop::option::of(prop::collection::vec(any::<u8>(), 0..6)),
        headers in prop::collection::vec(any_header(), 0..8),
        time in any::<i64>(),
    ) {
        let message = Message::new("payload")
            .with_optional_key(key.map(Key::from))
            .with_headers(headers.into_iter().collect())
            .with_timestamp(Timestamp::from_millis(time));
        prop_assert_eq!(there_and_back(&message).0, message);
    }

    #[test]
    fn any_order_is_read_without_a_panic(order in ".{0,30}") {
        let mut map = HeaderMap::new();
        map.append("a", "1");
        let list = crate::headers::decode(&map, Some(&order), |_| true);
        prop_assert!(list.contains("a"));
    }
}
