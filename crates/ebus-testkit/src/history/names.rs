//! Each name once: a long history has millions of events and a few hundred names.

use std::collections::HashSet;
use std::sync::Arc;

use super::{Event, Name};

#[derive(Debug, Default)]
pub(super) struct Names(HashSet<Name>);

impl Names {
    /// Gives equal names of all events one place in memory.
    pub(super) fn share(&mut self, event: &mut Event) {
        let names = [&mut event.group, &mut event.topic, &mut event.key, &mut event.member];
        for name in names.into_iter().flatten() {
            *name = self.shared(name);
        }
    }

    fn shared(&mut self, name: &Name) -> Name {
        if let Some(known) = self.0.get(name) {
            return known.clone();
        }
        self.0.insert(Arc::clone(name));
        name.clone()
    }
}
