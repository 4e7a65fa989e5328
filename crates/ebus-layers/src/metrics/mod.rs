//! What operators count, through the `metrics` facade. Labels are bounded: topics up to a number, outcomes by a fixed list.

mod future;
mod layer;
mod service;
mod side;

pub use future::MetricsFuture;
pub use layer::MetricsLayer;
pub use service::Metrics;
