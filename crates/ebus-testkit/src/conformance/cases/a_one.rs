//! A. One message.

use ebus_core::{Key, Message, Publish, Timestamp};

use super::super::ctx::Ctx;
use super::super::failure::Checked;

/// a01: key, headers (duplicates, order, binary values), payload and timestamp arrive as sent; 0 B, 1 B, 1 MiB.
pub(super) async fn a01_arrives_as_sent(ctx: &Ctx) -> Checked {
    let topic = ctx.topic("one", 2).await?;
    // 1 MiB, or what the backend takes beside key and headers.
    let large = (1 << 20).min(ctx.capability().max_message_bytes.saturating_sub(4 << 10));
    let sent = [
        Message::new(vec![]),
        Message::new("x").with_key("order-1").with_timestamp(Timestamp::from_millis(1_700_000_000_123)),
        Message::new(vec![0xfe; large]).with_key(Key::new(vec![0, 255, 10, 13, 58])),
        Message::new(vec![0, 1, 255])
            .with_key("")
            .with_header("b", "1")
            .with_header("a", vec![0, 255, 10, 13, 128])
            .with_header("b", "2")
            .with_header("B", "")
            .with_header("X-Mixed-Case", "ü"),
    ];
    let member = ctx.member("m", &ctx.group("g"), &[&topic]).start().await?;
    let mut publisher = ctx.publisher();
    for message in &sent {
        publisher.publish(Publish::new(topic.clone(), message.clone())).await?;
    }
    ctx.until_handled(sent.len()).await?;
    let _ = member.drain(ctx.patience()).await;
    let got = ctx.log.all();
    for message in &sent {
        let same = |other: &Message| other.payload.len() == message.payload.len() && other.key == message.key;
        let arrived = got.iter().find(|ran| same(&ran.message)).map(|ran| &ran.message);
        let Some(arrived) = arrived else {
            panic!("{:?} has not arrived with its key and length", message.key)
        };
        assert_eq!(arrived.headers, message.headers, "headers");
        assert_eq!(arrived.timestamp, message.timestamp, "timestamp");
        assert!(arrived.payload == message.payload, "a payload of {} bytes changed", message.payload.len());
    }
    assert_eq!(got.len(), sent.len());
    Ok(())
}
