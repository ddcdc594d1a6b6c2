//! Markers of a session, and where a group stands, with lag: offsets from the marker to the tail.
//!
//! ```text
//!   from = shard, number ─► that shard: up to a page ── no more? ──► next = the next shard, 0 ─► … ─► none
//! ```
//! As with dead letters a cursor is good for going on with a list, not for keeping: a restart numbers anew.

use super::{State, group_of, name_of};
use crate::effect::{MarkerItem, Reply, WorkReply, put_marker_item};
use crate::queues::dead::{SHARD_AT, shard_of};
use crate::sessions::Asker;
use crate::shard::Shard;
use storage::catalog::PartitionSlot;

/// Markers on one page: each takes up to 220 bytes of a reply.
const PAGE_MARKERS: usize = 4;

impl Shard {
    /// Where a group stands in sessions of this shard, from this cursor on.
    pub(crate) fn list_group(&mut self, asker: &Asker, group: &str, from: u64) {
        let (own, first) = (u64::from(self.config.shard.0), from & ((1 << SHARD_AT) - 1));
        let (mut items, mut next) = (Vec::new(), None);
        let line = self.groups.find_line(&asker.tenant, &name_of(group));
        let stands = line.into_iter().flat_map(|line| self.groups.lines[line as usize].stands.range(first..));
        for (count, (number, at)) in stands.enumerate() {
            if count == PAGE_MARKERS {
                next = Some(own << SHARD_AT | number);
                break;
            }
            let stand = &self.groups.stands[*at as usize];
            let known = self.log.resident(stand.partition).map(|slot| self.log.partition(slot).tail());
            let tail = known.unwrap_or(stand.last.map_or(stand.marker + 1, |last| last + 1));
            let (session, offset, lag) = (&*stand.session, stand.marker, tail.saturating_sub(stand.marker));
            let is_held = matches!(stand.state, State::Leased(_));
            put_marker_item(&mut items, &MarkerItem { session, name: "", group: "", offset, lag, is_held });
        }
        if next.is_none() && own + 1 < u64::from(self.config.shards) {
            next = Some((own + 1) << SHARD_AT);
        }
        debug_assert!(next.is_none_or(|next| shard_of(next) < u64::from(self.config.shards)));
        let reply = Reply::Work(WorkReply::Markers { items: &items, next });
        self.answer(asker.origin, asker.id, &reply);
    }

    /// Markers of a session and groups that stand in it, from this number on.
    pub(crate) fn list_markers(&mut self, asker: &Asker, slot: PartitionSlot, from: u64) {
        let partition = self.log.partition(slot);
        let (here, tail) = (partition.session(), partition.tail());
        let session = "";
        let mut markers: Vec<MarkerItem<'_>> = Vec::new();
        for marker in partition.markers() {
            let (name, offset, lag) = (&*marker.name, marker.offset, tail.saturating_sub(marker.offset));
            markers.push(MarkerItem { session, name, group: "", offset, lag, is_held: false });
        }
        for step in partition.jobs() {
            let Some(group) = group_of(&step.queue) else { continue };
            let stand = self.groups.find(&asker.tenant, &step.queue, here);
            let is_held = stand.is_some_and(|at| matches!(self.groups.stands[at as usize].state, State::Leased(_)));
            let (offset, lag) = (step.offset, tail.saturating_sub(step.offset));
            markers.push(MarkerItem { session, name: "", group, offset, lag, is_held });
        }
        let mut items = Vec::new();
        let first = usize::try_from(from).unwrap_or(usize::MAX);
        markers.iter().skip(first).take(PAGE_MARKERS).for_each(|item| put_marker_item(&mut items, item));
        let next = (markers.len() > first.saturating_add(PAGE_MARKERS)).then_some(from + PAGE_MARKERS as u64);
        let reply = Reply::Work(WorkReply::Markers { items: &items, next });
        self.answer(asker.origin, asker.id, &reply);
    }
}
