//! What a proxy does with its connections at this moment.

use tokio::sync::watch;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Flow {
    #[default]
    Open,
    Stalled,
    Muted,
    Cut,
}

#[derive(Debug, Clone, Copy, Default)]
pub(super) struct State {
    pub(super) flow: Flow,
    /// Cuts so far: a connection of an earlier number is to be reset, also when it looks only after the proxy was healed.
    pub(super) cuts: u64,
}

/// Which way bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    Request,
    Answer,
}

impl State {
    pub(super) fn change(&mut self, flow: Flow) {
        self.cuts += u64::from(flow == Flow::Cut);
        self.flow = flow;
    }

    fn lets(&self, way: Way) -> bool {
        match self.flow {
            Flow::Open => true,
            Flow::Muted => way == Way::Request,
            Flow::Stalled | Flow::Cut => false,
        }
    }
}

/// Waits until bytes may go this way; false when the proxy is gone.
pub(super) async fn may_pass(watched: &mut watch::Receiver<State>, way: Way) -> bool {
    watched.wait_for(|state| state.lets(way)).await.is_ok()
}

/// Waits until connections that began at this count of cuts are to be reset: a cut came, or the proxy is gone.
pub(super) async fn is_cut(mut watched: watch::Receiver<State>, cuts: u64) {
    let _ = watched.wait_for(|state| state.cuts != cuts || state.flow == Flow::Cut).await;
}
