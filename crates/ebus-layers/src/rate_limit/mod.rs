//! At most so many messages a second: for a publisher, or for a handler whose service behind it allows no more (G5).

mod clock;
mod config;
mod layer;
mod service;
mod shared;

pub use clock::TokioClock;
pub use config::RateLimitConfig;
pub use layer::RateLimitLayer;
pub use service::RateLimit;
