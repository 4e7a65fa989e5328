//! Publishing again what failed and may safely be sent again, without ever letting a message overtake an earlier one of its key
//! (G7).
//!
//! Per topic and key, as long as messages of it are on their way, a lane remembers how many were sent. A message that fails is sent
//! again only if it is still the last one sent of its lane. From then on later messages of the key are held back, and follow
//! in the order of their calls when its fate is known. A task does this, not the future that the caller holds: a caller may
//! drop it, or wait for the futures in any order.

mod config;
mod future;
mod lanes;
mod layer;
mod recover;
mod service;
#[cfg(test)]
mod tests;

pub use config::RetryConfig;
pub use future::RetryFuture;
pub use layer::RetryLayer;
pub use service::Retry;
