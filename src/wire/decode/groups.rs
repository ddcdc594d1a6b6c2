//! Commands about groups, and markers of groups wherever they stand.

use super::Reader;
use super::fields::{Field, Fields};
use super::plan::{Place, Plan};
use shards::command::{GroupAsk, Lease, NewMarker};
use shards::refusal::Refused;

/// How long a member may be silent where the group does not say.
const LEASE_MS: u64 = 5000;

/// A marker as ranges.
#[derive(Clone, Copy, Debug)]
pub(super) struct MarkerPlan {
    pub(super) name: Place,
    pub(super) offset: u64,
    pub(super) lease: Option<Lease>,
}

impl MarkerPlan {
    pub(super) fn marker<'a>(&self, frame: &'a str, scratch: &'a [u8]) -> NewMarker<'a> {
        NewMarker { name: self.name.text(frame, scratch), offset: self.offset, lease: self.lease }
    }
}

/// What is asked about a group; its patterns are in scratch.
#[derive(Clone, Copy)]
pub(super) enum GroupPlan {
    Declare { lease_ms: u64 },
    Drop,
    Join { credit: u64 },
    List { from: u64 },
}

impl GroupPlan {
    pub(super) fn ask<'a>(self, group: &'a str, topics: &'a [&'a str]) -> GroupAsk<'a> {
        match self {
            GroupPlan::Declare { lease_ms } => GroupAsk::Declare { group, topics, lease_ms },
            GroupPlan::Drop => GroupAsk::Drop { group },
            GroupPlan::Join { credit } => GroupAsk::Join { group, credit },
            GroupPlan::List { from } => GroupAsk::List { group, from },
        }
    }
}

impl Reader<'_, '_> {
    /// A command about a group.
    pub(super) fn group(
        &mut self,
        fields: &Fields,
        ask: impl FnOnce(&mut Self, &Fields) -> Result<GroupPlan, Refused>,
    ) -> Result<Plan, Refused> {
        let group = self.name(fields, Field::Group)?;
        self.scratch.pattern_places.clear();
        ask(self, fields).map(|ask| Plan::Group { group, ask })
    }

    pub(super) fn group_declare(&mut self, fields: &Fields) -> Result<GroupPlan, Refused> {
        self.topics_of(fields)?;
        Ok(GroupPlan::Declare { lease_ms: self.optional_integer(fields, Field::LeaseMs)?.unwrap_or(LEASE_MS) })
    }

    pub(super) fn group_ack(&mut self, fields: &Fields) -> Result<Plan, Refused> {
        let session = self.name(fields, Field::Session)?;
        let marker = self.group_marker(fields)?;
        Ok(Plan::Mark { session, marker })
    }

    pub(super) fn list_markers(&mut self, fields: &Fields) -> Result<Plan, Refused> {
        let session = self.name(fields, Field::Session)?;
        Ok(Plan::Markers { session, from: self.optional_integer(fields, Field::From)?.unwrap_or(0) })
    }

    fn group_marker(&mut self, fields: &Fields) -> Result<MarkerPlan, Refused> {
        let name = self.name(fields, Field::Group)?;
        let lease = Some(self.lease(fields)?);
        Ok(MarkerPlan { name, lease, offset: self.required_integer(fields, Field::Offset)? })
    }

    /// A marker of one's own.
    pub(super) fn own_marker(&mut self, fields: &Fields) -> Result<MarkerPlan, Refused> {
        let name = self.name(fields, Field::Name)?;
        Ok(MarkerPlan { name, lease: None, offset: self.required_integer(fields, Field::Offset)? })
    }

    /// A marker in a commit: a group's where it names one.
    pub(super) fn marker(&mut self, fields: &Fields) -> Result<MarkerPlan, Refused> {
        if fields.has(Field::Group) { self.group_marker(fields) } else { self.own_marker(fields) }
    }
}
