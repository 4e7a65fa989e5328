//! Handlers as plain functions, and the event envelope with its wire formats.
//!
//! [`raw`] turns an `async fn(Delivery) -> Handled` into a handler, an `async fn(Vec<Delivery>) -> BatchHandled` into one of
//! batches, and needs no feature. The rest comes with a wire
//! format, `headers` or `json`: an `Envelope` is the event's metadata around a payload that is never looked into
//! unless asked, and `typed` turns an `async fn(Event<T>) -> Handled` into a handler that decodes for it.
//!
//! ```
//! # #[cfg(feature = "headers")] {
//! use ebus_envelope::{Envelope, Event, Handled, typed};
//! use serde::{Deserialize, Serialize};
//!
//! #[derive(Serialize, Deserialize)]
//! struct OrderPlaced {
//!     total: u64,
//! }
//!
//! #[derive(Clone)]
//! struct Db;
//!
//! impl Db {
//!     async fn charge(&self, _order: &str, _total: u64) -> Result<(), std::io::Error> {
//!         Ok(())
//!     }
//! }
//!
//! async fn charge(db: Db, event: Event<OrderPlaced>) -> Handled {
//!     db.charge(event.key(), event.total).await?;
//!     Ok(())
//! }
//!
//! let publish = Envelope::event("order-42", "order.placed", 1, &OrderPlaced { total: 7 })?.to("orders")?;
//! let handler = typed(charge).with(Db);
//! # fn is_handler(_: impl ebus_core::Handler) {}
//! # is_handler(handler);
//! # assert_eq!(publish.message.key, Some("order-42".into()));
//! # }
//! # Ok::<(), ebus_core::Error>(())
//! ```
#![cfg_attr(docsrs, feature(doc_cfg))]

mod batch;
mod handled;
mod raw;
mod run;
mod state;

#[cfg(feature = "envelope")]
mod encode;
#[cfg(feature = "envelope")]
mod envelope;
#[cfg(feature = "envelope")]
mod event;
#[cfg(feature = "envelope")]
mod event_id;
#[cfg(feature = "envelope")]
mod formats;
#[cfg(feature = "envelope")]
mod key;
#[cfg(feature = "envelope")]
mod rules;
#[cfg(feature = "envelope")]
mod text;
#[cfg(feature = "envelope")]
mod traceparent;
#[cfg(feature = "envelope")]
mod typed;
#[cfg(feature = "envelope")]
mod typed_batch;

pub use batch::{BatchFuture, BatchHandled};
pub use handled::{Handled, HandlerError};
pub use raw::{Raw, raw};
pub use run::HandleFuture;
pub use state::{NoState, With};

#[cfg(feature = "envelope")]
pub use envelope::Envelope;
#[cfg(feature = "envelope")]
pub use event::Event;
#[cfg(feature = "envelope")]
pub use event_id::EventId;
#[cfg(feature = "envelope")]
pub use formats::{Format, names};
#[cfg(feature = "envelope")]
pub use key::extract_key;
#[cfg(feature = "envelope")]
pub use typed::{Typed, typed};
