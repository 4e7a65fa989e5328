//! The handler of the demo, which fails as planned.

use std::sync::Arc;

use ebus::envelope::Event;
use ebus::{Handled, HandlerError};

use super::done::Done;
use super::event::OrderChanged;
use super::plan::{Fault, Plan};

/// What all runs share.
#[derive(Debug)]
pub(crate) struct Work {
    pub(crate) plan: Arc<Plan>,
    pub(crate) done: Arc<Done>,
}

pub(crate) async fn handle(work: Arc<Work>, event: Event<OrderChanged>) -> Handled {
    let plan = &work.plan;
    let Some(place) = plan.place(event.key(), event.version) else {
        return Err(HandlerError::permanent(format!("{} v{} was not planned", event.key(), event.version)));
    };
    if plan.is_slow(place) {
        tokio::time::sleep(plan.slow_for).await;
    }
    match plan.fault(place) {
        Some(Fault::Fail) if event.attempt() == 1 => Err(HandlerError::retry("failed on purpose")),
        // Not `panic!`: its hook would print a message for each of these.
        Some(Fault::Panic) if event.attempt() == 1 => {
            std::panic::resume_unwind(Box::new("panicked on purpose"))
        }
        Some(Fault::Reject) => {
            work.done.mark(plan.index(place), true);
            Err(HandlerError::permanent("rejected on purpose"))
        }
        _ => {
            work.done.mark(plan.index(place), false);
            Ok(())
        }
    }
}
