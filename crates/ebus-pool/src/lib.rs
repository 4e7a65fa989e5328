//! Keyed, sharded dispatch: runs handlers in order per key, many keys at once (G2..G6).
//!
//! One [`Pool`] serves one [`Source`](ebus_core::Source). Three kinds of tasks share the work, and they only ever hand each
//! other batches:
//!
//! ```text
//!  source ──events──▶ driver ──jobs by hash of (topic, key)──▶ shard: key lanes, handler runs, retries, dead letters
//!         ◀─settle───        ◀──────────settlements──────────
//! ```
//! - the **driver** (`driver/`) owns the source and the budget, and knows which ownership is ending;
//! - a **shard** (`shard/`) runs many **key lanes** at once: one lane runs one delivery at a time, and keeps a message that
//!   failed at its head until it is done;
//! - the **slots** (`slots.rs`) bound the runs in progress over all shards.
//!
//! No queue between them can block: all are bounded by the budget alone, so there is no cycle of waiting (G9).

mod batch;
mod config;
pub mod dead_letter;
mod driver;
mod endings;
mod handlers;
mod jobs;
mod lane;
mod pace;
pub mod parked;
mod pool;
mod retry;
mod route;
mod run;
mod runner;
mod shard;
mod share;
mod shared;
mod slots;
mod spares;
mod state;

pub use batch::Batch;
pub use config::PoolConfig;
pub use handlers::Handlers;
pub use parked::{ParkedKey, parked_keys, redrive};
pub use pool::Pool;
pub use retry::{AfterFailure, RetryPolicy};
pub use state::{Counters, Doing, DrainReport, Left, PartitionState, PoolState, Stuck};
