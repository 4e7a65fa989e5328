//! Tower layers for publishers and handlers.
//!
//! | Layer | Feature | Publishers | Handlers |
//! |---|---|---|---|
//! | `RateLimitLayer` | `rate-limit` | yes | yes |
//! | `RetryLayer` | `retry` | yes | no: the retry of a handler is the lane's |
//! | `MetricsLayer` | `metrics` | yes | yes |
//! | `from_tower` for tower's own `Timeout`, `ConcurrencyLimit`, `LoadShed` | `tower-errors` | yes | yes |
//!
//! State lives in the layer (of `RetryLayer`: in the service that it makes, one per publisher); the service around the inner one
//! is thin, and a clone of it is not ready. The order for publishers, outermost first: metrics, total timeout, retry, rate limit,
//! the backend; for handlers: metrics, timeout, then the user's.
//!
//! # With tower's own layers
//!
//! `Timeout` and `LoadShed` change the error to a box. `from_tower` finds the ebus error in it again, and knows those two
//! layers' own; put it outside of them with tower's `map_err`:
//!
//! ```
//! # #[cfg(feature = "tower-errors")] {
//! use std::time::Duration;
//! use ebus_core::{Error, ErrorKind, Publish, Receipt};
//! use ebus_layers::from_tower;
//! use tower::{Service, ServiceBuilder, ServiceExt};
//!
//! # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
//! let silent = tower::service_fn(|_: Publish| std::future::pending::<Result<Receipt, Error>>());
//! let mut publisher = ServiceBuilder::new()
//!     .map_err(from_tower)
//!     .timeout(Duration::from_millis(5))
//!     .concurrency_limit(100)
//!     .service(silent);
//!
//! let publish = Publish::to("orders", ebus_core::Message::new("m")).unwrap();
//! let error: Error = publisher.ready().await.unwrap().call(publish).await.unwrap_err();
//! assert_eq!(error.kind(), ErrorKind::Timeout);
//! # });
//! # }
//! ```
//!
//! Tower's `Timeout` counts from `call`: waiting for readiness, such as that of the rate limit, is not in it.

#[cfg(feature = "metrics")]
mod metrics;
#[cfg(feature = "rate-limit")]
mod rate_limit;
#[cfg(feature = "retry")]
mod retry;
#[cfg(feature = "tower-errors")]
mod tower_errors;

#[cfg(feature = "metrics")]
pub use crate::metrics::{Metrics, MetricsFuture, MetricsLayer};
#[cfg(feature = "rate-limit")]
pub use rate_limit::{RateLimit, RateLimitConfig, RateLimitLayer, TokioClock};
#[cfg(feature = "retry")]
pub use retry::{Retry, RetryConfig, RetryFuture, RetryLayer};
#[cfg(feature = "tower-errors")]
pub use tower_errors::from_tower;
