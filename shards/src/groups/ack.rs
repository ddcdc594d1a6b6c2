//! What a record does to groups: an event makes one stand in its session, an acknowledgement moves it on.
//!
//! ```text
//!   event matches, the group does not stand here    opened at the event
//!                  it does                          nothing: it will be read
//!   acknowledged up to here, more behind            done, opened here
//!                            nothing behind         done
//! ```
//! The steps are part of the record, so both happen or neither does.

use super::{State, name_of};
use crate::command::NewMarker;
use crate::ids::{Now, Offset};
use crate::queues::JobKey;
use crate::refusal::{Refusal, Refused};
use crate::shard::Shard;
use std::sync::Arc;
use storage::catalog::PartitionSlot;
use storage::ids::LogSeq;
use storage::record::{JobAct, JobBody};

/// Advice where groups that are no more still stand in a session.
const LEFT_BEHIND_RETRY_MS: u32 = 1000;

/// What becomes of one group in one session.
pub(crate) struct Move {
    name: Box<str>,
    /// A member has acknowledged up to here.
    acked: Option<Offset>,
    /// The step that goes, and the one that comes.
    closes: Option<Offset>,
    opens: Option<Offset>,
    /// The last event of the record that matches.
    last: Option<Offset>,
}

impl Move {
    /// As steps.
    pub fn bodies(&self) -> impl Iterator<Item = JobBody<'_>> {
        let step = |offset, act| JobBody {
            queue: &self.name,
            offset,
            act: act as u8,
            priority: 0,
            attempts: 0,
            at_ms: 0,
            partial: b"",
        };
        let closes = self.closes.map(|offset| step(offset, JobAct::Done));
        closes.into_iter().chain(self.opens.map(|offset| step(offset, JobAct::Opened)))
    }
}

/// Steps that these moves are.
pub(crate) fn steps(moves: &[Move]) -> usize {
    moves.iter().map(|one| usize::from(one.closes.is_some()) + usize::from(one.opens.is_some())).sum()
}

impl Shard {
    /// Bytes that steps of groups may take in a record.
    pub(crate) fn group_bytes_max(&self, tenant: &str, markers: &[NewMarker<'_>]) -> usize {
        let step = |name: &str| 2 * (name.len() + size_of::<JobBody<'_>>());
        let acked = markers.iter().filter(|marker| marker.lease.is_some()).map(|marker| step(marker.name) + 2);
        let known = self.groups.by_name(tenant).into_iter().flatten().map(|(name, _)| step(name));
        acked.sum::<usize>() + known.sum::<usize>()
    }

    /// What events of these topics, from the tail on, and these acknowledgements do to groups.
    ///
    /// # Errors
    /// A lease does not hold, or its run does not reach that far.
    pub(crate) fn group_moves<'a>(
        &self,
        slot: PartitionSlot,
        tenant: &str,
        topics: impl Iterator<Item = &'a str> + Clone,
        markers: &[NewMarker<'_>],
    ) -> Result<Vec<Move>, Refused> {
        let mut moves: Vec<Move> = Vec::new();
        let partition = self.log.partition(slot);
        let (session, tail) = (partition.session(), partition.tail());
        for NewMarker { name, offset, lease } in markers {
            let Some(lease) = lease else { continue };
            let name = name_of(name);
            if moves.iter().any(|one| *one.name == *name) {
                return Err(Refused::field(Refusal::MarkerBackwards, "group"));
            }
            let stale = Refused::field(Refusal::StaleLease, "lease");
            let at = self.groups.find(tenant, &name, session).ok_or(stale)?;
            let stand = &self.groups.stands[at as usize];
            let State::Leased(held) = stand.state else { return Err(stale) };
            if held.lease != *lease {
                return Err(stale);
            }
            if *offset < stand.marker {
                return Err(Refused::expects(Refusal::MarkerBackwards, "offset", stand.marker));
            }
            if *offset > held.next {
                return Err(Refused::expects(Refusal::OffsetOutOfRange, "offset", held.next));
            }
            let moved = *offset > stand.marker;
            let closes = moved.then_some(stand.marker);
            let opens = (moved && stand.goes_on(*offset, tail)).then_some(*offset);
            moves.push(Move { name: name.into(), acked: Some(*offset), closes, opens, last: None });
        }
        if session.starts_with('$') {
            return Ok(moves);
        }
        for (name, definition) in self.groups.by_name(tenant).into_iter().flatten() {
            let mut matching = (tail..).zip(topics.clone()).filter(|(_, topic)| definition.matches(topic));
            let Some((first, _)) = matching.next() else { continue };
            let last = Some(matching.last().map_or(first, |(offset, _)| offset));
            match moves.iter_mut().find(|one| one.name == *name) {
                Some(one) => {
                    one.last = last;
                    if one.closes.is_some() && one.opens.is_none() {
                        one.opens = Some(first);
                    }
                }
                None => {
                    let known = self.groups.find(tenant, name, session);
                    let stands = known.is_some_and(|at| !self.groups.stands[at as usize].has_ended);
                    if !stands && !partition.group_room(name) {
                        return Err(Refused {
                            field: "session",
                            ..Refused::later(Refusal::QueueFull, LEFT_BEHIND_RETRY_MS)
                        });
                    }
                    let opens = (!stands).then_some(first);
                    moves.push(Move { name: name.clone(), acked: None, closes: None, opens, last });
                }
            }
        }
        Ok(moves)
    }

    /// Their record was appended.
    pub(crate) fn groups_moved(
        &mut self,
        tenant: &Arc<str>,
        slot: PartitionSlot,
        moves: &[Move],
        log_seq: LogSeq,
        now: Now,
    ) {
        for one in moves {
            let partition = self.log.partition(slot);
            let line = self.groups.line(tenant, &one.name);
            let known = self.groups.lines[line as usize].by_session.get(partition.session()).copied();
            let at = match (known, one.opens) {
                (Some(at), _) => at,
                (None, Some(marker)) => {
                    self.groups.insert(line, partition.id(), partition.session(), partition.epoch(), marker)
                }
                (None, None) => continue,
            };
            let stand = &mut self.groups.stands[at as usize];
            if one.last.is_some() {
                (stand.last, stand.last_seq) = (one.last, log_seq);
            }
            match (one.acked, one.opens) {
                (None, Some(marker)) => {
                    stand.begin_anew(marker);
                    stand.has_ended = false;
                    self.groups.settle_at(at, log_seq);
                }
                (None, None) => {}
                (Some(acked), opens) => self.acknowledged(at, acked, opens, (one.closes.is_some(), log_seq), now),
            }
        }
    }

    fn acknowledged(
        &mut self,
        at: u32,
        acked: Offset,
        opens: Option<Offset>,
        (moved, log_seq): (bool, LogSeq),
        now: Now,
    ) {
        let stand = &mut self.groups.stands[at as usize];
        let State::Leased(mut held) = stand.state else { return };
        let line = &self.groups.lines[stand.line as usize];
        if moved {
            stand.begin_anew(opens.unwrap_or(acked));
            (stand.moved_seq, stand.has_ended) = (log_seq, opens.is_none());
        }
        if moved && (acked == held.next || opens != Some(acked)) {
            // The run is over.
            let key = JobKey::of(stand.partition, &line.name, held.from);
            self.groups.leases.remove(&key);
            self.groups.settle_at(at, log_seq);
            self.say_run_over(held.shard, key, held.lease.nonce, false);
        } else {
            let lease_ms = self.groups.definition(&line.tenant, &line.name).map_or(0, |definition| definition.lease_ms);
            held.until_us = held.until_us.max(now.mono_us + lease_ms * 1000);
            self.groups.stands[at as usize].state = State::Leased(held);
        }
    }
}
