//! Reading what is owned, a chunk of each partition in turn (G4, G5).

use std::collections::HashMap;
use std::time::Duration;

use ebus_core::{
    Error, ErrorKind, Full, Inbound, LogMark, Message, Owned, Ownership, PartitionInfo, SourceEvent, Topic,
};
use rdkafka::consumer::Consumer;
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::{Offset, TopicPartitionList};
use tokio::time::Instant;

use super::{AGAIN, CHUNK, Found, KafkaSource, MARKS, Part, Phase, TELL};
use crate::error::{from_code, from_kafka};
use crate::member::{Place, names};
use crate::sys::queue::PartitionQueue;
use crate::topics::Control;

impl KafkaSource {
    pub(super) fn fetch_from(&mut self, place: &Place, at: u64) -> Result<(), Error> {
        let Some(fetch) = &self.fetch else { return Ok(()) };
        if !self.queues.contains_key(place) {
            let ready = self.ready.clone();
            let queue = PartitionQueue::split(fetch, &place.0, place.1, Box::new(move || ready.notify_one()))
                .ok_or_else(|| from_code("consume", RDKafkaErrorCode::UnknownPartition))?;
            self.queues.insert(place.clone(), queue);
        }
        let wrong = |error| from_kafka("consume", error);
        let mut list = TopicPartitionList::new();
        let from = Offset::Offset(i64::try_from(at).unwrap_or(i64::MAX));
        list.add_partition_offset(&place.0, place.1, from).map_err(wrong)?;
        if let Some(queue) = self.queues.get(place) {
            queue.rearm();
        }
        fetch.incremental_assign(&list).map_err(wrong)?;
        if let Some(queue) = self.queues.get(place) {
            queue.rearm();
        }
        // What came before the queue was split off again wakes nobody.
        self.ready.notify_one();
        Ok(())
    }

    pub(super) fn stop_fetching(&mut self, places: &[Place]) {
        let Some(fetch) = &self.fetch else { return };
        let assigned: Vec<Place> =
            places.iter().filter(|place| self.queues.contains_key(*place)).cloned().collect();
        if assigned.is_empty() {
            return;
        }
        if let Err(error) = fetch.incremental_unassign(&names(&assigned)) {
            tracing::debug!(%error, "partitions were not fetched any more");
        }
        for place in &assigned {
            self.queues.remove(place);
        }
    }

    /// Hands messages on, a chunk of each partition in turn.
    pub(super) fn read(&mut self, mut room: usize, out: &mut Vec<SourceEvent>) {
        let parts = self.parts.len();
        let mut idle = 0;
        while room > 0 && parts > 0 && idle < parts {
            self.turn = (self.turn + 1) % parts;
            let (taken, more) = self.read_one(self.turn, room.min(CHUNK), out);
            room -= taken;
            idle = if taken == 0 && !more { idle + 1 } else { 0 };
        }
    }

    /// How many were handed on, and whether more may be there.
    pub(super) fn read_one(
        &mut self,
        index: usize,
        most: usize,
        out: &mut Vec<SourceEvent>,
    ) -> (usize, bool) {
        let part = &mut self.parts[index];
        if part.phase != Phase::Reading || part.paused || part.resetting {
            return (0, false);
        }
        let mut handed = 0;
        while handed < most {
            let Some(offset) = part.held.front().map(|(offset, _)| *offset) else { break };
            if !self.ownership.has_room(part.owned, offset) {
                if self.ownership.full(part.owned, offset) == Some(Full::Text) {
                    self.out.extend(part.text_is_full());
                }
                self.ownership.hold(part.owned, offset);
                return (handed, false);
            }
            let Some((offset, message)) = part.held.pop_front() else { break };
            handed += hand_on(&mut self.ownership, part.owned, offset, message, out);
        }
        if !part.held.is_empty() || handed >= most {
            return (handed, false);
        }
        let Some(queue) = self.queues.get(&part.place) else { return (handed, false) };
        // A queue that was not emptied wakes nobody.
        let asked = most - handed;
        let more = queue.take(asked, &mut self.batch) == asked;
        let mut out_of_range = false;
        for (offset, fetched) in self.slabs.messages(&self.batch) {
            match fetched {
                Ok(message) => {
                    if part.held.is_empty() && self.ownership.has_room(part.owned, offset) {
                        handed += hand_on(&mut self.ownership, part.owned, offset, message, out);
                    } else {
                        if part.held.is_empty() {
                            self.ownership.hold(part.owned, offset);
                        }
                        part.held.push_back((offset, message));
                    }
                }
                Err(RDKafkaErrorCode::PartitionEOF) => {}
                Err(RDKafkaErrorCode::AutoOffsetReset | RDKafkaErrorCode::OffsetOutOfRange) => {
                    out_of_range = true
                }
                Err(code) => {
                    let error = from_code("consume", code).with_context("partition", &part.id);
                    if matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Timeout) {
                        tracing::debug!(%error, "fetching goes on");
                    } else {
                        self.out.push(SourceEvent::Trouble(error));
                    }
                }
            }
        }
        if out_of_range {
            self.look_up_range(index, Duration::ZERO);
        }
        (handed, more)
    }

    /// The log does not have what is read next: asks what it has.
    pub(super) fn look_up_range(&mut self, index: usize, delay: Duration) {
        let part = &mut self.parts[index];
        part.resetting = true;
        let (owned, id, control, found) =
            (part.owned, part.id.clone(), self.control.clone(), self.found_in.clone());
        tokio::spawn(async move {
            tokio::time::sleep(delay).await;
            let look = move |control: &Control| {
                let mark = LogMark(control.existing(&id.topic)?.id);
                Ok((mark, control.range(&id.topic, id.partition)?))
            };
            let result = control.run("consume", look).await;
            // A source that is gone needs no answer.
            let _ = found.send(Found::Range { owned, result });
        });
    }

    pub(super) fn reset(&mut self, owned: Owned, result: Result<(LogMark, PartitionInfo), Error>) {
        let Some(read_to) = self.ownership.ledger(owned).map(|ledger| ledger.read_to()) else { return };
        let Some(index) = self.parts.iter().position(|part| part.owned == owned) else { return };
        self.parts[index].resetting = false;
        if self.parts[index].phase != Phase::Reading {
            // It is being given up: nobody reads it here any more.
            return;
        }
        let (mark, range) = match result {
            Ok(found) => found,
            Err(error) => {
                self.out.push(SourceEvent::Trouble(error));
                self.look_up_range(index, AGAIN);
                return;
            }
        };
        let (id, place) = (self.parts[index].id.clone(), self.parts[index].place.clone());
        let trouble = |what: &str| {
            Error::new(ErrorKind::NotFound, what.to_owned())
                .with_operation("consume")
                .with_context("partition", &id)
                .with_context("at", read_to)
                .with_context("earliest", range.earliest)
        };
        if range.end < read_to || mark != self.parts[index].mark {
            // Shorter than what was read, or with another id.
            self.take_over_anew(index);
            return;
        }
        self.stop_fetching(std::slice::from_ref(&place));
        if range.earliest > read_to.0 {
            self.out.push(SourceEvent::Trouble(trouble(
                "messages were removed from the log before they were read; reading goes on at the first one there",
            )));
        }
        if let Err(error) = self.fetch_from(&place, range.earliest.max(read_to.0)) {
            self.ended = Some(error);
        }
    }
}

impl Part {
    /// That it is not read because its position is full, though its span is not. Not more often than that is of use: it may come
    /// and go many times a second.
    fn text_is_full(&mut self) -> Option<SourceEvent> {
        let now = Instant::now();
        if self.full_told.is_some_and(|told| now < told + TELL) {
            return None;
        }
        self.full_told = Some(now);
        let error = Error::new(
            ErrorKind::Overloaded,
            "the partition is not read on before its oldest message is finished: its offsets have gaps, and what is finished \
            above that message would not fit into the text that is committed",
        )
        .with_operation("consume")
        .with_context("partition", &self.id);
        Some(SourceEvent::Trouble(error))
    }
}

impl KafkaSource {
    /// Of a log that was made anew under its name nothing is known here: its position is looked up again, and not found.
    fn take_over_anew(&mut self, index: usize) {
        let (owned, id, place) =
            (self.parts[index].owned, self.parts[index].id.clone(), self.parts[index].place.clone());
        self.out.push(SourceEvent::Trouble(
            Error::new(ErrorKind::NotFound, "the log was made anew; the partition is taken over again")
                .with_operation("consume")
                .with_context("partition", &id),
        ));
        self.lose(|part| part.owned == owned);
        self.look_up(vec![place], 0);
    }

    /// Asks whether the topics are still those that were taken over. A log that was made anew and is long enough by now
    /// gives no error: it would go on in the middle.
    pub(super) fn look_up_marks(&mut self) {
        let mut topics: Vec<Topic> = self.parts.iter().map(|part| part.id.topic.clone()).collect();
        topics.sort_unstable();
        topics.dedup();
        self.next_marks = if topics.is_empty() { Some(Instant::now() + MARKS) } else { None };
        if topics.is_empty() {
            return;
        }
        let (control, found) = (self.control.clone(), self.found_in.clone());
        tokio::spawn(async move {
            let result = control.run("consume", move |control| control.marks(&topics)).await;
            // A source that is gone needs no answer.
            let _ = found.send(Found::Marks(result));
        });
    }

    pub(super) fn marks(&mut self, result: Result<HashMap<Topic, LogMark>, Error>) {
        self.next_marks = Some(Instant::now() + MARKS);
        let marks = match result {
            Ok(marks) => marks,
            Err(error) => return tracing::debug!(%error, "topics are looked up again later"),
        };
        let is_another = |part: &Part| {
            part.phase == Phase::Reading && marks.get(&part.id.topic).is_some_and(|mark| *mark != part.mark)
        };
        while let Some(index) = self.parts.iter().position(is_another) {
            self.take_over_anew(index);
        }
    }
}

fn hand_on(
    ownership: &mut Ownership,
    owned: Owned,
    offset: u64,
    message: Message,
    out: &mut Vec<SourceEvent>,
) -> usize {
    match ownership.track(owned, offset) {
        Ok(Some(token)) => {
            out.push(SourceEvent::Message(Inbound { token, message }));
            1
        }
        Ok(None) => 0,
        Err(refused) => {
            tracing::debug!(offset = refused.offset, "a message below what was read is skipped");
            0
        }
    }
}
