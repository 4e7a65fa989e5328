//! The event that the demo publishes: about 230 bytes of JSON in an envelope.

use ebus::envelope::Envelope;
use ebus::{Error, Message, Publish, Topic};
use ebus_testkit::record::VERSION_HEADER;
use serde::{Deserialize, Serialize};

use super::plan::{Place, Plan};

/// An order was changed.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct OrderChanged {
    pub(crate) version: u64,
    status: String,
    customer: String,
    currency: String,
    total_cents: u64,
    lines: u32,
    note: String,
}

const STATUS: [&str; 5] = ["placed", "paid", "packed", "shipped", "delivered"];

/// The event of this place, on its way.
///
/// # Errors
/// None for the keys and types of the demo.
pub(crate) fn publish(place: Place, topic: &Topic) -> Result<Publish, Error> {
    let Place { aggregate, version } = place;
    let changed = OrderChanged {
        version,
        status: STATUS[version as usize % STATUS.len()].into(),
        customer: format!("customer-{:06}", aggregate % 100_000),
        currency: "EUR".into(),
        total_cents: 1_000 + version * 25,
        lines: 1 + aggregate % 7,
        note: "leave it with the neighbour on the second floor if nobody opens the door, ring twice, and mind the dog and its owner".into(),
    };
    Envelope::event(Plan::key(aggregate), "order.changed", 1, &changed)?
        .with_header(VERSION_HEADER, version.to_string())
        .to(topic)
}

/// Which event a message is, if it is one of the plan.
pub(crate) fn place(message: &Message, plan: &Plan) -> Option<Place> {
    let version = message.headers.first_str(VERSION_HEADER)?.parse().ok()?;
    plan.place(message.key.as_ref()?.as_str()?, version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_about_as_large_as_a_real_one_and_is_found_again() {
        let plan = crate::demo::plan::tests::plan(&[]);
        let topic = Topic::new("orders").expect("legal");
        let of = Place { aggregate: 7, version: 3 };
        let publish = publish(of, &topic).expect("legal");
        assert!((200..260).contains(&publish.message.payload.len()), "{}", publish.message.payload.len());
        assert_eq!(place(&publish.message, &plan), Some(of));
        assert_eq!(place(&Message::new("other"), &plan), None);
    }
}
