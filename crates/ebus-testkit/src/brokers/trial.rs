//! Tests that are ignored, not green, without their broker.
//!
//! The built-in test harness decides at compile time what is ignored. libtest-mimic decides when the test runs, and prints
//! why.

use libtest_mimic::{Completion, Failed, Trial};

use super::{Found, Home, Need};

/// A test on the shared server; `run` gets its URL.
pub fn shared_trial(
    name: impl Into<String>,
    need: Need,
    run: impl FnOnce(String) -> Result<(), Failed> + Send + 'static,
) -> Trial {
    Trial::ignorable_test(name, move || settle(need, need.shared(), run))
}

/// A test with a server of its own; `run` gets what to launch it from.
pub fn private_trial(
    name: impl Into<String>,
    need: Need,
    run: impl FnOnce(Home) -> Result<(), Failed> + Send + 'static,
) -> Trial {
    Trial::ignorable_test(name, move || settle(need, need.private(), run))
}

fn settle<T>(
    need: Need,
    found: Found<T>,
    run: impl FnOnce(T) -> Result<(), Failed>,
) -> Result<Completion, Failed> {
    match found {
        Found::Available(value) => run(value).map(|()| Completion::Completed),
        Found::Missing(missing) if need.is_required() => {
            Err(Failed::from(format!("EBUS_REQUIRE names {}, but {missing}", need.name())))
        }
        Found::Missing(missing) => Ok(Completion::ignored_with(missing)),
    }
}
