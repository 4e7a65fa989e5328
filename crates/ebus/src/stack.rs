//! The layers of a bus and the publisher that they make, once.

use std::sync::{Arc, OnceLock};

use ebus_core::{PublishService, Publisher};
use tower_layer::Layer;

type Wrap = Arc<dyn Fn(Publisher) -> Publisher + Send + Sync>;

/// Layers, outermost first. Clones share the publisher that they make.
#[derive(Clone, Default)]
pub(crate) struct Stack {
    layers: Vec<Wrap>,
    made: Arc<OnceLock<Publisher>>,
}

impl Stack {
    /// With `layer` inside all that are there.
    pub(crate) fn with<L>(mut self, layer: L) -> Self
    where
        L: Layer<Publisher, Service: PublishService> + Send + Sync + 'static,
    {
        self.layers.push(Arc::new(move |inner| Publisher::new(layer.layer(inner))));
        // A stack that was in use before stays as it is.
        self.made = Arc::default();
        self
    }

    /// A clone of the publisher; the layers are put around `plain` at the first call.
    pub(crate) fn publisher(&self, plain: impl FnOnce() -> Publisher) -> Publisher {
        self.made.get_or_init(|| self.layers.iter().rev().fold(plain(), |inner, wrap| wrap(inner))).clone()
    }
}

impl std::fmt::Debug for Stack {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stack").field("layers", &self.layers.len()).finish_non_exhaustive()
    }
}
