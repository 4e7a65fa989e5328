//! What the publishing task learns of topics: where their messages go, or why nobody took them (G7, G8).

use std::sync::atomic::Ordering;
use std::task::{Context, Poll};

use ebus_core::{Error, ErrorKind};
use futures_util::StreamExt;

use super::{OPERATION, Pump};
use crate::route::Known;
use crate::stream;

impl Pump {
    pub(super) fn look(&mut self, id: usize) {
        let Some(state) = self.routes.get_mut(id).and_then(Option::as_mut) else { return };
        if std::mem::replace(&mut state.looking, true) {
            return;
        }
        let connection = self.connection.clone();
        let topic = state.route.topic.clone();
        let may_create = state.autopsy.is_empty();
        self.lookups.push(Box::pin(async move {
            let found = if may_create {
                stream::find_or_create(&connection, &topic, OPERATION).await
            } else {
                stream::find(&connection, &topic, OPERATION).await
            };
            (id, found)
        }));
    }

    pub(super) fn poll_lookups(&mut self, cx: &mut Context<'_>) -> bool {
        let Poll::Ready(Some((id, found))) = self.lookups.poll_next_unpin(cx) else { return false };
        let Some(state) = self.routes.get_mut(id).and_then(Option::as_mut) else { return true };
        state.looking = false;
        let autopsy = std::mem::take(&mut state.autopsy);
        if !autopsy.is_empty() {
            // Without the policy's help: the dead do not create topics.
            for (sequence, flight) in autopsy {
                let error = match &found {
                    Ok(_) => Error::new(
                        ErrorKind::Unavailable,
                        "no stream took the message; it has no leader now; nothing was stored",
                    )
                    .with_operation(OPERATION),
                    Err(error) => error.clone(),
                };
                self.fail(sequence, flight, error);
            }
            let waits =
                self.routes.get(id).and_then(Option::as_ref).is_some_and(|state| !state.waiting.is_empty());
            if waits {
                self.look(id);
            }
            return true;
        }
        let waiting = std::mem::take(&mut state.waiting);
        match found.and_then(|found| Known::read(&found).map(|known| (found, known))) {
            Ok((found, known)) => {
                let limit = found.max_message_bytes.unwrap_or(usize::MAX);
                state.route.max_message_bytes.store(limit, Ordering::Relaxed);
                state.known = Some(known);
                state.uncertain.begin();
                for queued in waiting.into_iter().rev() {
                    self.queue.push_front(queued);
                }
            }
            // It is asked again; until then they wait, each as long as it may.
            Err(error) if !state.uncertain.is_empty() && error.kind() != ErrorKind::NotFound => {
                state.waiting = waiting;
                state.uncertain.refused(error);
            }
            Err(error) => {
                let uncertain: Vec<_> = match error.kind() {
                    // It has nowhere to go any more.
                    ErrorKind::NotFound => state.uncertain.drain().collect(),
                    _ => Vec::new(),
                };
                let waiting = waiting.into_iter().map(|queued| (queued.sequence, queued.flight));
                for (sequence, flight) in uncertain.into_iter().chain(waiting) {
                    self.fail(sequence, flight, error.clone());
                }
            }
        }
        true
    }
}
