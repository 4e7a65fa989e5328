//! The task that sends a message again, and then what it held back.

use std::future::poll_fn;

use ebus_core::{BoxError, Error, ErrorKind, FOR_EVER, Publish, Receipt, Retryability};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout_at};
use tower_service::Service;

use super::lanes::{Held, Lanes, Recovering, Reply};

/// Sends the message again until it is stored, refused for good, or used up; then what it held back, in order.
pub(super) async fn recover<S>(mut recovering: Recovering<S>, failed: Error, reply: oneshot::Sender<Reply<S>>)
where
    S: Service<Publish, Response = Receipt, Error: Into<BoxError>> + Clone,
{
    let result = again(&recovering, failed).await;
    // The caller may have dropped its future: then nobody wants to know.
    let _ = reply.send(Reply::Done(result));
    while let Some(held) = recovering.next() {
        send(&recovering, held).await;
    }
}

async fn again<S>(recovering: &Recovering<S>, mut failed: Error) -> Result<Receipt, Error>
where
    S: Service<Publish, Response = Receipt, Error: Into<BoxError>> + Clone,
{
    let config = &recovering.lanes.config;
    let deadline = Instant::now() + config.max_elapsed.min(FOR_EVER);
    let mut attempts = 1_u32;
    for delay in config.delays() {
        if Instant::now() + delay.min(FOR_EVER) > deadline {
            break;
        }
        sleep(delay).await;
        let ready = timeout_at(deadline, async {
            tokio::select! {
                biased;
                spare = recovering.spare() => Ok(spare),
                service = ready(&recovering.lanes) => service,
            }
        });
        let Ok(ready) = ready.await else { break };
        attempts += 1;
        let result = match ready {
            Ok(mut service) => service
                .call(recovering.publish.clone())
                .await
                .map_err(|error| Error::from_boxed(error.into())),
            Err(error) => Err(error),
        };
        match result {
            Err(error) if error.retryability() == Retryability::Safe => failed = error,
            end => return end,
        }
    }
    Err(failed.with_retryability(Retryability::Exhausted).with_context("attempts", attempts))
}

/// Sends one that was held back. Its end is not waited for: its caller has its future, and the next one follows at once.
async fn send<S>(recovering: &Recovering<S>, held: Held<S>)
where
    S: Service<Publish, Response = Receipt, Error: Into<BoxError>> + Clone,
{
    let Held { publish, service, reply } = held;
    let ready = match service {
        Some(service) => Ok(service),
        None => {
            let deadline = Instant::now() + recovering.lanes.config.max_elapsed.min(FOR_EVER);
            timeout_at(deadline, ready(&recovering.lanes)).await.unwrap_or_else(|_| {
                Err(Error::new(
                    ErrorKind::Overloaded,
                    "there was no place in flight for a message that was held back; nothing was sent, try again later",
                )
                .with_retryability(Retryability::Exhausted)
                .with_context("topic", &publish.topic))
            })
        }
    };
    let reply_with = match ready {
        Ok(mut service) => {
            let ticket = recovering.ticket(publish.clone());
            Reply::Sent(service.call(publish), ticket)
        }
        Err(error) => Reply::Done(Err(error)),
    };
    // When the caller has dropped its future, the message is on its way all the same.
    let _ = reply.send(reply_with);
}

/// A service with a place in flight.
async fn ready<S>(lanes: &Lanes<S>) -> Result<S, Error>
where
    S: Service<Publish, Error: Into<BoxError>> + Clone,
{
    let mut service = lanes.service();
    poll_fn(|cx| service.poll_ready(cx)).await.map_err(|error| Error::from_boxed(error.into()))?;
    Ok(service)
}
