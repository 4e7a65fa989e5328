//! Whatever is encoded is decoded again, and whatever bytes come, a decoder answers.
#![cfg(all(feature = "headers", feature = "json"))]

use ebus_core::{ErrorKind, Headers, Message, Timestamp};
use ebus_envelope::{Envelope, Format, extract_key, names};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

fn envelopes(payload: impl Strategy<Value = Vec<u8>>) -> impl Strategy<Value = Envelope> {
    let name = "[A-Za-z0-9:_./-]{1,256}";
    let token = "[!-~]{1,40}";
    let fields = (name, name, 1..=u32::MAX, "[a-z]{1,9}/[a-z+]{1,9}", payload);
    let optional = (option::of(token), option::of(token), option::of(token));
    let beside = vec(("[a-z]{1,9}", vec(any::<u8>(), 0..9)), 0..4);
    (fields, optional, beside, -62_167_219_200_000_i64..=253_370_764_799_999).prop_map(
        |((aggregate, event, version, content_type, payload), (trace, correlation, tenant), beside, time)| {
            let mut envelope = Envelope::of_bytes(aggregate, event, version, content_type, payload)
                .expect("the fields are legal")
                .with_timestamp(Timestamp::from_millis(time));
            if let Some(id) = trace {
                envelope = envelope.with_trace_id(id);
            }
            if let Some(id) = correlation {
                envelope = envelope.with_correlation_id(id);
            }
            if let Some(id) = tenant {
                envelope = envelope.with_tenant_id(id);
            }
            beside.into_iter().fold(envelope, |envelope, (name, value)| envelope.with_header(name, value))
        },
    )
}

fn json_values() -> impl Strategy<Value = Vec<u8>> {
    let leaf = prop_oneof![
        Just("null".to_owned()),
        Just("-0.10E+7".to_owned()),
        any::<i64>().prop_map(|n| n.to_string()),
        any::<String>().prop_map(|s| serde_json::to_string(&s).expect("text")),
    ];
    leaf.prop_recursive(4, 32, 4, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..4).prop_map(|list| format!("[ {} ]", list.join(" ,\n"))),
            vec(inner, 0..4).prop_map(|list| format!(
                "{{{}}}",
                list.iter().map(|v| format!("\"k\": {v}")).collect::<Vec<_>>().join(",")
            )),
        ]
    })
    .prop_map(String::into_bytes)
}

fn messages() -> impl Strategy<Value = Message> {
    let name = prop_oneof![
        proptest::sample::select(vec![
            names::EVENT_ID,
            names::AGGREGATE_ID,
            names::EVENT_TYPE,
            names::EVENT_VERSION,
            names::CONTENT_TYPE,
            "aggregate-id",
        ])
        .prop_map(str::to_owned),
        any::<String>(),
    ];
    let headers = vec((name, vec(any::<u8>(), 0..40)), 0..8);
    let text = "[{}\\[\\]\":,0-9a-z_\\\\ ]{0,200}".prop_map(String::into_bytes);
    (option::of(vec(any::<u8>(), 0..9)), headers, prop_oneof![vec(any::<u8>(), 0..200), text], any::<i64>())
        .prop_map(|(key, headers, payload, time)| {
            Message::new(payload)
                .with_optional_key(key.map(Into::into))
                .with_headers(headers.into_iter().collect::<Headers>())
                .with_timestamp(Timestamp::from_millis(time))
        })
}

/// A decoder's answer is an envelope that can be encoded again, or an error of kind `Decode`.
fn answers(message: &Message) {
    for decoded in [
        Envelope::decode(message),
        Envelope::decode_as(message, Format::Headers),
        Envelope::decode_as(message, Format::Json),
    ] {
        match decoded {
            Ok(envelope) => assert!(!envelope.aggregate_id().is_empty()),
            Err(error) => assert_eq!(error.kind(), ErrorKind::Decode, "{error}"),
        }
    }
    let _ = extract_key(message, Some("a.b"));
}

proptest! {
    #[test]
    fn headers_round_trip(envelope in envelopes(vec(any::<u8>(), 0..99))) {
        let message = envelope.clone().encode(Format::Headers).unwrap();
        prop_assert_eq!(message.key.as_ref().and_then(|key| key.as_str()), Some(envelope.aggregate_id()));
        prop_assert_eq!(Envelope::decode(&message).unwrap(), envelope);
    }

    #[test]
    fn json_round_trips(envelope in envelopes(json_values())) {
        let message = envelope.clone().encode(Format::Json).unwrap();
        prop_assert_eq!(extract_key(&message, None), message.key.clone());
        prop_assert_eq!(Envelope::decode(&message).unwrap(), envelope);
    }

    #[test]
    fn any_message_is_answered(message in messages()) {
        answers(&message);
    }

    #[test]
    fn a_damaged_envelope_is_answered(
        envelope in envelopes(json_values()),
        damage in vec((any::<proptest::sample::Index>(), any::<u8>()), 1..5),
    ) {
        let message = envelope.encode(Format::Json).unwrap();
        let mut body = message.payload.to_vec();
        for (at, byte) in damage {
            let at = at.index(body.len());
            body[at] = byte;
        }
        answers(&Message::new(body).with_headers(message.headers.clone()));
        let damaged = message.headers.iter().map(|(name, value)| (name, value.slice(value.len() / 2..)));
        answers(&Message::new(message.payload.clone()).with_headers(damaged.collect()));
    }
}

#[test]
fn deep_nesting_is_answered() {
    let deep = "[".repeat(1_000_000);
    answers(&Message::new(deep.clone()));
    answers(&Message::new(format!("{{\"payload\":{deep}")));
}
