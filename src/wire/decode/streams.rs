//! What the commands of token streams, and the policy of a subscription, ask of their fields.

use super::Reader;
use super::fields::{Field, Fields};
use super::plan::{Place, Plan};
use crate::wire::json::Span;
use shards::command::{Durability, Policy, StreamStatus};
use shards::names::is_topic;
use shards::refusal::{Refusal, Refused};

impl Reader<'_, '_> {
    pub(super) fn stream_append(&mut self, fields: &Fields) -> Result<Plan, Refused> {
        let session = self.name(fields, Field::Session)?;
        let stream = self.name(fields, Field::Stream)?;
        let seq = self.required_integer(fields, Field::Seq)?;
        let value = fields.required(Field::Delta)?;
        if !value.kind.is_string() {
            return Err(fields.refused(Refusal::WrongType, Field::Delta));
        }
        // Kept as it came, quotes and escapes included: texts of that form can be put together byte by byte.
        let delta = Place { span: Span { start: value.span.start - 1, end: value.span.end + 1 }, in_scratch: false };
        if delta.span.bytes() > self.scratch.event_bytes_max {
            return Err(fields.refused(Refusal::EventTooLarge, Field::Delta));
        }
        let topic = match fields.has(Field::Topic) {
            true => Some(self.checked(fields, Field::Topic, is_topic, Refusal::BadTopic)?),
            false => None,
        };
        let durability = match self.chosen(fields, Field::Durability)? {
            None | Some("disk") => Durability::Disk,
            Some("memory") => Durability::Memory,
            Some(_) => return Err(fields.refused(Refusal::WrongType, Field::Durability)),
        };
        Ok(Plan::StreamAppend { session, stream, seq, delta, topic, durability })
    }

    pub(super) fn stream_close(&mut self, fields: &Fields) -> Result<Plan, Refused> {
        let session = self.name(fields, Field::Session)?;
        let stream = self.name(fields, Field::Stream)?;
        let status = self.string(fields, Field::Status)?;
        let status = StreamStatus::of(self.text(status));
        let status = status.ok_or_else(|| fields.refused(Refusal::WrongType, Field::Status))?;
        Ok(Plan::StreamClose { session, stream, status })
    }

    /// The policy of a subscription.
    pub(super) fn policy(&mut self, fields: &Fields) -> Result<Policy, Refused> {
        match self.chosen(fields, Field::Policy)? {
            None | Some("lossless") => Ok(Policy::Lossless),
            Some("rollup") => Ok(Policy::Rollup),
            Some("latest") => Ok(Policy::Latest),
            Some(_) => Err(fields.refused(Refusal::WrongType, Field::Policy)),
        }
    }

    /// A string that may be left out.
    fn chosen(&mut self, fields: &Fields, field: Field) -> Result<Option<&str>, Refused> {
        if !fields.has(field) {
            return Ok(None);
        }
        let place = self.string(fields, field)?;
        Ok(Some(self.text(place)))
    }
}
