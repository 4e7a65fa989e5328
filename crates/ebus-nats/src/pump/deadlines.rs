//! What waits too long fails in time, and says whether it may have been stored (G1, G9).

use std::collections::VecDeque;
use std::future::Future;
use std::task::Context;

use async_nats::Subject;
use ebus_core::{Error, ErrorKind};
use tokio::time::Instant;

use super::{OPERATION, Pump, keep, tell};
use crate::error;
use crate::flight::Queued;

impl Pump {
    /// Fails what has waited too long, and sees to being woken for the next. True when something failed.
    pub(super) fn poll_deadlines(&mut self, cx: &mut Context<'_>) -> bool {
        let mut expired = false;
        loop {
            if !self.timer_armed {
                let Some(next) = self.next_deadline() else { return expired };
                self.timer.as_mut().reset(next);
                self.timer_armed = true;
            }
            if self.timer.as_mut().poll(cx).is_pending() {
                return expired;
            }
            self.timer_armed = false;
            self.expire(Instant::now());
            expired = true;
        }
    }

    /// Every message has the same time, so the oldest of each place is the first to expire.
    fn next_deadline(&self) -> Option<Instant> {
        let waiting = self.routes.iter().flatten().filter_map(|state| state.waiting.front());
        let queued = self.queue.front().into_iter().chain(waiting).map(|queued| queued.flight.deadline);
        let sent = self.window.front().map(|flight| flight.deadline);
        let closing = self.closing.as_ref().map(|closing| closing.deadline);
        let uncertain = self.routes.iter().flatten().filter_map(|state| state.uncertain.next_deadline());
        queued.chain(sent).chain(closing).chain(uncertain).min()
    }

    fn expire(&mut self, now: Instant) {
        let timeout = self.connection.config.publish_timeout;
        while let Some((sequence, flight)) = self.window.expire(now) {
            let known = self
                .routes
                .get(flight.route.id)
                .and_then(Option::as_ref)
                .and_then(|state| state.known.as_ref());
            let subject = known.and_then(|known| known.subjects.get(flight.partition as usize));
            // It was told since this one was called, which is somewhat longer ago than its time.
            let is_denied = |subject: &&Subject| self.connection.denials.has_within(2 * timeout, subject);
            let error = match subject.filter(is_denied) {
                Some(subject) => error::denied(OPERATION).with_context("subject", subject),
                None => Error::new(
                    ErrorKind::Timeout,
                    format!("no acknowledgement within {timeout:?}; the message may have been stored"),
                )
                .with_operation(OPERATION),
            };
            let error = error.with_context("topic", &flight.route.topic);
            keep(&mut self.kept, flight);
            tell(&self.keys, &mut self.freed, sequence, flight, Err(error));
        }
        self.expire_uncertain(now);
        self.prune_batches();
        let late = |queue: &mut VecDeque<Queued>| {
            let count = queue.iter().take_while(|queued| queued.flight.deadline <= now).count();
            queue.drain(..count).collect::<Vec<_>>()
        };
        let mut unsent: Vec<_> = late(&mut self.queue).into_iter().map(|queued| (queued, None)).collect();
        for state in self.routes.iter_mut().flatten() {
            let reason = state.uncertain.reason();
            unsent.extend(late(&mut state.waiting).into_iter().map(|queued| (queued, reason.clone())));
        }
        for (queued, reason) in unsent {
            let error = reason.unwrap_or_else(|| {
                error::unavailable(OPERATION, format_args!("not within {timeout:?}; nothing was stored"))
            });
            self.fail(queued.sequence, queued.flight, error);
        }
        if self.closing.as_ref().is_some_and(|closing| closing.deadline <= now) {
            let late = Error::new(
                ErrorKind::Timeout,
                "closed before the acknowledgement; the message may have been stored",
            )
            .with_operation(OPERATION);
            let unsent = Error::new(ErrorKind::Unavailable, "closed before it was sent; nothing was stored")
                .with_operation(OPERATION);
            let left = self.fail_all(&late, &unsent);
            if let Some(closing) = self.closing.take() {
                let result = match left {
                    0 => Ok(()),
                    left => Err(Error::new(
                        ErrorKind::Timeout,
                        format!("{left} messages were not acknowledged in time; each publisher was told"),
                    )
                    .with_operation("close")),
                };
                closing.reply.send(result).ok();
            }
            self.intake.close();
            self.intake_ended = true;
        }
    }
}
