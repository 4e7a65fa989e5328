//! Where librdkafka's handles end: on a thread of their own (G9).
//!
//! The end of a consumer takes 100 ms at best, and for as long as its coordinator is away and a commit of it has no answer. A
//! runtime that waits for that stands still with all that runs on it.

use std::ops::Deref;

/// Has its value dropped on a thread of its own.
#[derive(Debug)]
pub(crate) struct Elsewhere<T: Send + 'static>(Option<T>);

impl<T: Send + 'static> Elsewhere<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(Some(value))
    }
}

impl<T: Send + 'static> Deref for Elsewhere<T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.0.as_ref().expect("it is taken out only when it is dropped")
    }
}

impl<T: Send + 'static> Drop for Elsewhere<T> {
    fn drop(&mut self) {
        if let Some(value) = self.0.take() {
            drop_elsewhere(move || drop(value));
        }
    }
}

/// Runs what blocks while it is dropped on a thread of its own; here if there is none to be had.
pub(crate) fn drop_elsewhere(work: impl FnOnce() + Send + 'static) {
    if let Err(error) = std::thread::Builder::new().name("ebus-kafka-drop".into()).spawn(work) {
        tracing::warn!(%error, "no thread could be started to close a Kafka handle");
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Sender, channel};
    use std::thread::{ThreadId, current};

    use super::*;

    struct Tells(Sender<ThreadId>);

    impl Drop for Tells {
        fn drop(&mut self) {
            let _ = self.0.send(current().id());
        }
    }

    #[test]
    fn p9_what_blocks_when_it_ends_does_not_end_here() {
        let (ended, here) = channel();
        drop(Elsewhere::new(Tells(ended)));
        assert_ne!(here.recv().expect("it ends"), current().id());
    }
}
