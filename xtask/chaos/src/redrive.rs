//! Has parked keys redriven, as somebody would who is no member: again and again, whatever fails meanwhile.

use std::sync::Arc;
use std::time::Duration;

use ebus::{Backend, Bus, Error, ParkedKey};

use crate::setting::Names;

/// How often it asks.
const ASK_EVERY: Duration = Duration::from_secs(2);
/// How long one round may take; the broker may be away.
const ASK_WITHIN: Duration = Duration::from_secs(20);
/// Keys of one round: each is asked for by itself.
const MOST: usize = 20;

/// The keys that are parked; `None` when the broker does not say.
pub(crate) async fn parked(backend: &Arc<dyn Backend>) -> Option<Vec<ParkedKey>> {
    let names = Names::default();
    let bus = Bus::new(Arc::clone(backend));
    let asked = tokio::time::timeout(ASK_WITHIN, bus.parked(&names.group, names.topic.as_str()));
    asked.await.ok().and_then(Result::ok)
}

/// Asks for all parked keys until it is aborted.
pub(crate) async fn always(backend: Arc<dyn Backend>) {
    let names = Names::default();
    let bus = Bus::new(Arc::clone(&backend));
    loop {
        tokio::time::sleep(ASK_EVERY).await;
        let round = async {
            let mut keys = parked(&backend).await.unwrap_or_default();
            // Those at the end of the list have their turn too, however long the others take.
            fastrand::shuffle(&mut keys);
            for parked in keys.into_iter().take(MOST) {
                bus.redrive(&names.group, names.topic.as_str(), parked.key).await?;
            }
            Ok::<(), Error>(())
        };
        // What fails is asked for again; a key may be free by now.
        let _ = tokio::time::timeout(ASK_WITHIN, round).await;
    }
}
