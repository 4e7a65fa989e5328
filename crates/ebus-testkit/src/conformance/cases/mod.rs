//! The cases, by what they are about.

use std::pin::Pin;
use std::sync::Arc;

use super::ctx::Ctx;
use super::failure::Checked;

mod a_one;
mod b_many;
mod c_failure;

/// A case.
pub(super) struct Case {
    pub(super) name: &'static str,
    /// Several members of one group.
    pub(super) several_members: bool,
    pub(super) run: fn(Arc<Ctx>) -> Pin<Box<dyn Future<Output = Checked> + Send>>,
}

/// `name` runs where it can; `name if several_members` needs more than one member in a group.
macro_rules! cases {
    ($($module:ident :: $name:ident $(if $needs:ident)?),* $(,)?) => {
        vec![$(Case {
            name: stringify!($name),
            several_members: false $(|| { let $needs = true; $needs })?,
            run: |ctx| Box::pin(async move { $module::$name(&ctx).await }),
        }),*]
    };
}

pub(super) fn all() -> Vec<Case> {
    cases![
        a_one::a01_arrives_as_sent,
        b_many::b04_versions_of_a_key_one_at_a_time_in_order,
        c_failure::c01_fails_once_then_goes_on,
    ]
}
