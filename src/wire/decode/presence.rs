//! Commands about presence and receipts.

use super::Reader;
use super::commands::json_range;
use super::fields::{Field, Fields};
use super::plan::{Place, Plan};
use crate::wire::json::{Kind, Span};
use shards::command::{PresenceAct, PresenceState, RosterKind};
use shards::limits::DATA_DEPTH_MAX;
use shards::refusal::{Refusal, Refused};

/// What is asked, as ranges.
#[derive(Clone, Copy)]
pub(super) enum ActPlan {
    Enter { state: PresenceState, data: Option<Place>, lease_ms: Option<u64>, log: bool },
    Update { state: Option<PresenceState>, data: Option<Place> },
    Leave,
    Read { offset: u64 },
    Watch(RosterKind),
    Unwatch(RosterKind),
}

impl ActPlan {
    pub(super) fn act<'a>(self, frame: &'a str, scratch: &'a [u8]) -> PresenceAct<'a> {
        let bytes = |data: Option<Place>| data.map(|place| place.bytes(frame, scratch));
        match self {
            ActPlan::Enter { state, data, lease_ms, log } => {
                PresenceAct::Enter { state, data: bytes(data), lease_ms, log }
            }
            ActPlan::Update { state, data } => PresenceAct::Update { state, data: bytes(data) },
            ActPlan::Leave => PresenceAct::Leave,
            ActPlan::Read { offset } => PresenceAct::Read { offset },
            ActPlan::Watch(kind) => PresenceAct::Watch(kind),
            ActPlan::Unwatch(kind) => PresenceAct::Unwatch(kind),
        }
    }
}

impl Reader<'_, '_> {
    /// A command about the presence or the receipts of a session.
    pub(super) fn presence(
        &mut self,
        fields: &Fields,
        act: impl FnOnce(&mut Self, &Fields) -> Result<ActPlan, Refused>,
    ) -> Result<Plan, Refused> {
        let session = self.name(fields, Field::Session)?;
        act(self, fields).map(|act| Plan::Presence { session, act })
    }

    pub(super) fn enter(&mut self, fields: &Fields) -> Result<ActPlan, Refused> {
        let state = self.state(fields)?.unwrap_or_default();
        let data = self.presence_data(fields)?;
        let lease_ms = self.optional_integer(fields, Field::LeaseMs)?;
        Ok(ActPlan::Enter { state, data, lease_ms, log: self.flag(fields, Field::Log)? })
    }

    pub(super) fn update(&mut self, fields: &Fields) -> Result<ActPlan, Refused> {
        Ok(ActPlan::Update { state: self.state(fields)?, data: self.presence_data(fields)? })
    }

    fn flag(&self, fields: &Fields, field: Field) -> Result<bool, Refused> {
        match fields.get(field).map(|value| value.kind) {
            None | Some(Kind::False) => Ok(false),
            Some(Kind::True) => Ok(true),
            Some(_) => Err(fields.refused(Refusal::WrongType, field)),
        }
    }

    fn state(&mut self, fields: &Fields) -> Result<Option<PresenceState>, Refused> {
        if !fields.has(Field::State) {
            return Ok(None);
        }
        let place = self.string(fields, Field::State)?;
        let state = PresenceState::ALL.into_iter().find(|state| state.name() == self.text(place));
        state.map(Some).ok_or_else(|| fields.refused(Refusal::WrongType, Field::State))
    }

    /// `null` is a value like any other.
    fn presence_data(&mut self, fields: &Fields) -> Result<Option<Place>, Refused> {
        let Some(value) = fields.get_or_null(Field::Data) else { return Ok(None) };
        let range = json_range(value);
        if usize::from(value.depth) > DATA_DEPTH_MAX {
            return Err(fields.refused(Refusal::BadData, Field::Data));
        }
        if range.len() > self.scratch.presence_bytes_max {
            return Err(fields.refused(Refusal::PresenceTooLarge, Field::Data));
        }
        let span = Span { start: range.start as u32, end: range.end as u32 };
        Ok(Some(Place { span, in_scratch: false }))
    }
}
