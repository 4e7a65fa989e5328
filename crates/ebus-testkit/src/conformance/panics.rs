//! Nothing panics (G9): not in a task that nobody waits for either.
//!
//! The threads of a case are named after it, so a panic on one of them is the case's. Handlers of cases panic on purpose; they
//! stand in this crate.

use std::collections::HashMap;
use std::panic::{PanicHookInfo, set_hook, take_hook};
use std::sync::Arc;

use parking_lot::Mutex;

/// Panics by thread name, which is the name of the case.
#[derive(Debug, Clone, Default)]
pub(super) struct Panics(Arc<Mutex<HashMap<String, Told>>>);

/// The panics of a case, with their places.
#[derive(Debug, Default)]
pub(super) struct Told {
    /// In this crate: a check that failed, or a handler that panics on purpose.
    pub(super) own: Vec<String>,
    /// Anywhere else: a fault.
    pub(super) other: Vec<String>,
}

impl Panics {
    /// Notes every panic of a named thread from now on, instead of printing it.
    pub(super) fn watch() -> Self {
        let panics = Self::default();
        let (noted, print) = (panics.clone(), take_hook());
        set_hook(Box::new(move |info| {
            let thread = std::thread::current();
            let Some(case) = thread.name() else { return print(info) };
            let mut noted = noted.0.lock();
            let told = noted.entry(case.to_owned()).or_default();
            let which = if is_ours(info) { &mut told.own } else { &mut told.other };
            which.push(info.to_string());
        }));
        panics
    }

    /// The panics of a case so far.
    pub(super) fn of(&self, case: &str) -> Told {
        self.0.lock().remove(case).unwrap_or_default()
    }
}

fn is_ours(info: &PanicHookInfo<'_>) -> bool {
    let here = file!().rsplit_once("conformance").map_or("", |(before, _)| before);
    info.location().is_some_and(|location| location.file().starts_with(here))
}
