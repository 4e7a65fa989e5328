//! From an envelope to a message and back, whatever the format.

use ebus_core::{Error, Message, Publish, Topic};

use crate::{Envelope, Format, formats};

impl Envelope {
    /// On its way to `topic`, in the format `headers`: key is the aggregate id, and the id for deduplication is the event id.
    ///
    /// # Errors
    /// `ConfigInvalid` when the topic or a field is illegal; it is named.
    #[cfg(feature = "headers")]
    pub fn to<T>(self, topic: T) -> Result<Publish, Error>
    where
        T: TryInto<Topic>,
        Error: From<T::Error>,
    {
        self.to_as(topic, Format::Headers)
    }

    /// On its way to `topic`, in this format.
    ///
    /// # Errors
    /// As [`encode`](Self::encode), and when the topic is illegal.
    pub fn to_as<T>(self, topic: T, format: Format) -> Result<Publish, Error>
    where
        T: TryInto<Topic>,
        Error: From<T::Error>,
    {
        let id = self.event_id.to_string();
        Ok(Publish::to(topic, self.encode(format)?)?.with_id(id))
    }

    /// As a message in this format: key, headers, payload and timestamp.
    ///
    /// # Errors
    /// `ConfigInvalid`, naming the field that breaks its rule; with `json` also when the payload is not JSON.
    pub fn encode(self, format: Format) -> Result<Message, Error> {
        self.validate()?;
        formats::encode(self, format)
    }

    /// From a message in whatever format it is in.
    ///
    /// # Detection
    /// 1. A header `X-Event-ID`: `headers`.
    /// 2. The header `Content-Type` is `application/vnd.ebus.envelope+json` or `application/json`, or there is none: `json`.
    /// 3. Anything else is no envelope.
    ///
    /// Names of headers are compared without regard to case.
    ///
    /// # Errors
    /// `Decode`, naming the field that is missing, stands twice or breaks its rule, or the feature that this build lacks.
    pub fn decode(message: &Message) -> Result<Self, Error> {
        formats::decode(message)
    }

    /// From a message in this format.
    ///
    /// # Errors
    /// As [`decode`](Self::decode).
    pub fn decode_as(message: &Message, format: Format) -> Result<Self, Error> {
        formats::decode_as(message, format)
    }
}
