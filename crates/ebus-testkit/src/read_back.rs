//! What a broker has at the end of a run, read beside all groups: a receipt is what it said, this is what is there (G1).

use std::time::Duration;

use ebus_core::{Backend, Error, ErrorKind, Group, Message, ReadRange, Topic};

/// How long the broker may take for the next messages of a range.
const READ_WITHIN: Duration = Duration::from_secs(30);

/// Hands on all messages of a topic, by partition and ascending offset, and says where each partition begins.
///
/// # Errors
/// What the backend says; `Timeout` when it gives nothing of a range that it has for 30 s.
pub async fn read_topic(
    backend: &dyn Backend,
    topic: &Topic,
    mut each: impl FnMut(u32, u64, Message),
) -> Result<Vec<(u32, u64)>, Error> {
    let info = backend.describe_topic(topic).await?;
    let (mut messages, mut earliest) = (Vec::new(), Vec::new());
    for (partition, there) in (0..).zip(info.partitions) {
        earliest.push((partition, there.earliest));
        let range = ReadRange::new(topic.clone(), partition, there.earliest, there.end);
        let mut reader = backend.read(range).await?;
        loop {
            let read = tokio::time::timeout(READ_WITHIN, reader.next(1_000, &mut messages)).await;
            let read = read.map_err(|_| {
                Error::new(ErrorKind::Timeout, "the broker stopped giving messages of a range that it has")
                    .with_operation("read")
                    .with_context("topic", topic)
                    .with_context("partition", partition)
            })??;
            if read == 0 {
                break;
            }
            messages.drain(..).for_each(|(offset, message)| each(partition, offset, message));
        }
    }
    Ok(earliest)
}

/// Up to where each partition is committed as finished; 0 where nothing is.
///
/// # Errors
/// What the backend says.
pub async fn committed(
    backend: &dyn Backend,
    group: &Group,
    topic: &Topic,
) -> Result<Vec<(u32, u64)>, Error> {
    let committed = backend.committed(group, topic).await?.into_iter();
    Ok(committed
        .map(|one| (one.partition, one.position.map_or(0, |position| position.watermark.0)))
        .collect())
}
