//! Commands about entries, queues and jobs.

use super::Reader;
use super::commands::json_range;
use super::fields::{Field, Fields};
use super::plan::{Place, Plan};
use crate::wire::json::{Kind, Scanner, Span, Value};
use shards::command::work::BUCKET;
use shards::command::{EntryAsk, NewEntry};
use shards::limits::{COMMIT_ENTRIES_MAX, DATA_DEPTH_MAX};
use shards::names::is_name;
use shards::refusal::{Refusal, Refused};

/// A change of an entry, as ranges.
#[derive(Clone, Copy, Debug)]
pub(super) struct SetPlan {
    key: Place,
    /// Absent: it is taken away.
    data: Option<Place>,
    ttl_ms: Option<u64>,
    if_revision: Option<u64>,
}

impl SetPlan {
    pub(super) fn entry<'a>(&self, frame: &'a str, scratch: &'a [u8]) -> NewEntry<'a> {
        let SetPlan { key, data, ttl_ms, if_revision } = *self;
        let value = data.map(|data| data.bytes(frame, scratch));
        NewEntry { key: key.text(frame, scratch), value, ttl_ms, if_revision }
    }
}

/// What is asked about entries, as ranges.
#[derive(Clone, Copy)]
pub(super) enum EntryPlan {
    Set(SetPlan),
    Get { key: Place },
    List { prefix: Place, after: Option<Place> },
    Watch { prefix: Place, revision: Option<u64> },
    Unwatch { prefix: Place },
}

impl EntryPlan {
    pub(super) fn ask<'a>(self, frame: &'a str, scratch: &'a [u8]) -> EntryAsk<'a> {
        let text = |place: Place| place.text(frame, scratch);
        match self {
            EntryPlan::Set(plan) => EntryAsk::Set(plan.entry(frame, scratch)),
            EntryPlan::Get { key } => EntryAsk::Get { key: text(key) },
            EntryPlan::List { prefix, after } => EntryAsk::List { prefix: text(prefix), after: after.map(text) },
            EntryPlan::Watch { prefix, revision } => EntryAsk::Watch { prefix: text(prefix), revision },
            EntryPlan::Unwatch { prefix } => EntryAsk::Unwatch { prefix: text(prefix) },
        }
    }
}

impl Reader<'_, '_> {
    /// A command about entries of a session, or of a bucket.
    pub(super) fn entry(
        &mut self,
        fields: &Fields,
        ask: impl FnOnce(&mut Self, &Fields) -> Result<EntryPlan, Refused>,
    ) -> Result<Plan, Refused> {
        let session = self.session_or_bucket(fields)?;
        ask(self, fields).map(|ask| Plan::Entry { session, ask })
    }

    pub(super) fn entry_put(&mut self, fields: &Fields) -> Result<EntryPlan, Refused> {
        let plan = self.set(fields)?;
        if plan.data.is_none() {
            return Err(fields.refused(Refusal::MissingField, Field::Data));
        }
        Ok(EntryPlan::Set(plan))
    }

    pub(super) fn entry_delete(&mut self, fields: &Fields) -> Result<EntryPlan, Refused> {
        let plan = self.set(fields)?;
        Ok(EntryPlan::Set(SetPlan { data: None, ttl_ms: None, ..plan }))
    }

    pub(super) fn entry_get(&mut self, fields: &Fields) -> Result<EntryPlan, Refused> {
        Ok(EntryPlan::Get { key: self.name(fields, Field::Key)? })
    }

    pub(super) fn entry_list(&mut self, fields: &Fields) -> Result<EntryPlan, Refused> {
        let prefix = self.prefix(fields)?;
        let after = match fields.has(Field::After) {
            true => Some(self.name(fields, Field::After)?),
            false => None,
        };
        Ok(EntryPlan::List { prefix, after })
    }

    pub(super) fn entry_watch(&mut self, fields: &Fields) -> Result<EntryPlan, Refused> {
        let prefix = self.prefix(fields)?;
        Ok(EntryPlan::Watch { prefix, revision: self.optional_integer(fields, Field::Revision)? })
    }

    pub(super) fn entry_unwatch(&mut self, fields: &Fields) -> Result<EntryPlan, Refused> {
        Ok(EntryPlan::Unwatch { prefix: self.prefix(fields)? })
    }

    /// A session, or the one that stands for a bucket.
    fn session_or_bucket(&mut self, fields: &Fields) -> Result<Place, Refused> {
        if !fields.has(Field::Bucket) {
            return self.name(fields, Field::Session);
        }
        if fields.has(Field::Session) {
            return Err(fields.refused(Refusal::WrongType, Field::Bucket));
        }
        let bucket = self.name(fields, Field::Bucket)?;
        let name = [BUCKET, self.text(bucket)].concat();
        let bytes = &mut self.scratch.bytes;
        let start = bytes.len() as u32;
        bytes.extend_from_slice(name.as_bytes());
        Ok(Place { span: Span { start, end: bytes.len() as u32 }, in_scratch: true })
    }

    /// The beginning of keys; empty where it is not given.
    fn prefix(&mut self, fields: &Fields) -> Result<Place, Refused> {
        if !fields.has(Field::Prefix) {
            return Ok(Place::default());
        }
        self.checked(fields, Field::Prefix, |prefix| prefix.is_empty() || is_name(prefix), Refusal::BadName)
    }

    fn set(&mut self, fields: &Fields) -> Result<SetPlan, Refused> {
        let key = self.name(fields, Field::Key)?;
        // `null` is a value like any other.
        let data = match fields.get_or_null(Field::Data) {
            Some(value) => Some(self.entry_data(fields, value)?),
            None => None,
        };
        let ttl_ms = self.optional_integer(fields, Field::TtlMs)?;
        if ttl_ms == Some(0) {
            return Err(fields.refused(Refusal::OutOfRange, Field::TtlMs));
        }
        Ok(SetPlan { key, data, ttl_ms, if_revision: self.optional_integer(fields, Field::IfRevision)? })
    }

    fn entry_data(&mut self, fields: &Fields, value: Value) -> Result<Place, Refused> {
        let range = json_range(value);
        if usize::from(value.depth) > DATA_DEPTH_MAX {
            return Err(fields.refused(Refusal::BadData, Field::Data));
        }
        if range.len() > self.scratch.entry_bytes_max {
            return Err(fields.refused(Refusal::EntryTooLarge, Field::Data));
        }
        Ok(Place { span: Span { start: range.start as u32, end: range.end as u32 }, in_scratch: false })
    }

    /// What a commit changes of entries.
    pub(super) fn commit_entries(&mut self, fields: &Fields) -> Result<(), Refused> {
        self.scratch.entry_plans.clear();
        let Some(value) = fields.get(Field::Entries) else { return Ok(()) };
        let wrong = fields.refused(Refusal::WrongType, Field::Entries);
        if value.kind != Kind::Array {
            return Err(wrong);
        }
        let mut scanner = Scanner::new(self.frame, value.span.start as usize + 1);
        while scanner.element(self.scratch.entry_plans.is_empty()).map_err(|_| wrong)? {
            let element = scanner.value().map_err(|_| wrong)?;
            if self.scratch.entry_plans.len() == COMMIT_ENTRIES_MAX {
                return Err(fields.refused(Refusal::CommandTooLarge, Field::Entries));
            }
            let inner = self.inner(fields, Field::Entries, element)?;
            // What is wrong inside is told by the outer field.
            let plan = self.set(&inner).map_err(|refused| Refused::field(refused.refusal, "entries"))?;
            self.scratch.entry_plans.push(plan);
        }
        Ok(())
    }
}
