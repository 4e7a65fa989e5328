//! The smallest program: publish one message, handle it, leave.
//!
//! `cargo run -p ebus --example hello`

use std::time::Duration;

use ebus::{Bus, Delivery, Handled, Message, Publish, raw};
use tokio::sync::mpsc::UnboundedSender;

async fn greet(greeted: UnboundedSender<()>, delivery: Delivery) -> Handled {
    println!("hello, {}", std::str::from_utf8(delivery.payload())?);
    greeted.send(())?;
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), ebus::Error> {
    let (greeted, mut greetings) = tokio::sync::mpsc::unbounded_channel();

    let bus = Bus::connect("memory://").await?;
    let consumer = bus.consumer("greeters").on("greetings", raw(greet).with(greeted)).start().await?;
    bus.publish(Publish::to("greetings", Message::new("world"))).await?;
    greetings.recv().await;
    consumer.drain(Duration::from_secs(5)).await.committed
}
