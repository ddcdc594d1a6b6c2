//! Runs: what a member is dealt of a session, read from the log from the marker on.
//!
//! ```text
//!   marker            next            committed
//!     │ ■ □ ■ ■ □ □ ■ │ …                 │        ■ matches, and is told; a gap in front of it too
//!     └───── run ─────┘                            as many events and bytes as a run may have
//! ```
//! A run that comes out empty is none: either an event that matches is not committed yet, or nothing is left and the stand ends.

use super::{Groups, Held, Stand, State};
use crate::behind::ReadFor;
use crate::command::{DataKind, Lease};
use crate::groups::policy::Definition;
use crate::ids::{Now, Offset, ShardId};
use crate::mailbox::codec::Writer;
use crate::mailbox::message::request;
use crate::outbox::{RunHead, put_run_event, put_run_head, run_bytes_min, run_event_bytes_max};
use crate::queues::JobKey;
use crate::queues::worker::Freed;
use crate::shard::{Opened, Shard};
use std::sync::Arc;
use storage::log::{Read, ReadFault, ReadTicket};
use storage::record::RecordView;

/// Events of a run.
const RUN_EVENTS_MAX: u32 = 64;

/// Where a run ends.
#[derive(Clone, Copy)]
struct Aim {
    /// So many bytes of events are enough.
    bytes: usize,
    /// Its events must not take more in a frame: it would wait for room that no send queue has, until its lease is over, again and again.
    frame_bytes: usize,
}

/// A run in the making.
#[derive(Default)]
pub(super) struct Draft {
    events: Vec<u8>,
    count: u32,
    /// What its events may take in a frame; the next one would not fit into a member's send queue beside them.
    frame_bytes: usize,
    is_cut: bool,
    /// Read up to here.
    pub at: Offset,
    /// Not retained, or not to be read, before the first event.
    gap: Option<(Offset, Offset)>,
    /// What comes next cannot be read.
    is_damaged: bool,
    /// It may be dealt.
    is_ready: bool,
}

impl Draft {
    fn is_full(&self, aim: Aim) -> bool {
        self.is_cut || self.count >= RUN_EVENTS_MAX || self.events.len() >= aim.bytes
    }

    /// Takes what matches. `false`: full.
    fn take(&mut self, record: RecordView<'_>, definition: &Definition, aim: Aim) -> bool {
        let from = self.at;
        for event in record.events().filter(|event| event.offset() >= from) {
            if self.is_full(aim) {
                return false;
            }
            if matches!(event.data_kind(), DataKind::Json | DataKind::Bytes) && definition.matches(event.topic()) {
                let frame_bytes = self.frame_bytes + run_event_bytes_max(&event);
                self.is_cut = self.count > 0 && frame_bytes > aim.frame_bytes;
                if self.is_cut {
                    return false;
                }
                put_run_event(&mut self.events, &event);
                (self.count, self.frame_bytes) = (self.count + 1, frame_bytes);
            }
            self.at = event.offset() + 1;
        }
        self.at = self.at.max(record.next_offset());
        !self.is_full(aim)
    }

    fn skip(&mut self, to: Offset) {
        let from = self.gap.map_or(self.at, |(from, _)| from);
        self.gap = Some((from, to));
        self.at = to;
    }
}

/// What came of reading.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Built {
    Ready,
    /// On its way from disk, or asked for again.
    Later,
    /// Nothing to be dealt.
    Nothing,
}

impl Groups {
    fn lease_of(&mut self, at: u32, held: Held) {
        let stand = &mut self.stands[at as usize];
        stand.state = State::Leased(held);
        let number = stand.number;
        let key = JobKey::of(stand.partition, &self.lines[stand.line as usize].name, held.from);
        self.leases.insert(key, at);
        self.wheel.put(held.until_us, (at, number, held.lease.nonce));
    }
}

impl Shard {
    /// Where a run of this stand ends.
    fn run_aim(&self, at: u32) -> Aim {
        let send_bytes_max = self.config.limits.connection_send_bytes_max;
        let stand = &self.groups.stands[at as usize];
        let rest = run_bytes_min(self.groups.lines[stand.line as usize].name.len(), stand.session.len());
        Aim {
            bytes: (self.claim_bytes().0 / 2).min(send_bytes_max / 4),
            frame_bytes: send_bytes_max.saturating_sub(rest),
        }
    }

    /// Deals up to so many runs. Returns whether there is more.
    pub(crate) fn give_runs(
        &mut self,
        to: ShardId,
        tenant: &Arc<str>,
        name: &str,
        count: u32,
        runs: &mut Vec<u8>,
        now: Now,
    ) -> bool {
        let Some(line) = self.groups.find_line(tenant, name) else { return false };
        let Some(definition) = self.groups.definition(tenant, name).cloned() else {
            let pullers = &mut self.groups.lines[line as usize].pullers;
            pullers.iter_mut().filter(|puller| puller.shard == to).for_each(|puller| puller.dry = true);
            return false;
        };
        let (aim, most) = self.claim_bytes();
        let mut given = 0;
        for _ in 0..self.groups.lines[line as usize].ring.len() {
            if given == count || runs.len() >= aim {
                break;
            }
            let Some(id) = self.groups.lines[line as usize].ring.pop_front() else { break };
            if self.groups.get(id).is_none_or(|stand| stand.state != State::Waiting) {
                continue;
            }
            self.groups.stands[id.0 as usize].state = State::Reading;
            if self.build(id, &definition) != Built::Ready {
                continue;
            }
            let nonce = self.new_epoch();
            let stand = &mut self.groups.stands[id.0 as usize];
            if !runs.is_empty() && runs.len() + stand.draft.events.len() + 512 > most {
                stand.state = State::Waiting;
                self.groups.lines[line as usize].ring.push_front(id);
                break;
            }
            let Draft { events, at: next, gap, .. } = std::mem::take(&mut stand.draft);
            stand.attempts = stand.attempts.saturating_add(1);
            let lease = Lease { attempt: stand.attempts, nonce };
            let (from, lease_ms) = (stand.marker, definition.lease_ms);
            let head = RunHead { session: &stand.session, epoch: stand.epoch, from, lease, next, lease_ms, gap };
            let mut one = Vec::with_capacity(events.len() + 256);
            put_run_head(&mut Writer(&mut one), &head);
            one.extend_from_slice(&events);
            Writer(runs).bytes(&one);
            let until_us = now.mono_us + lease_ms * 1000;
            self.groups.lease_of(id.0, Held { lease, shard: to, until_us, from, next });
            given += 1;
        }
        let here = &mut self.groups.lines[line as usize];
        let more = here.is_claimable();
        if let Some(puller) = here.pullers.iter_mut().find(|puller| puller.shard == to) {
            puller.dry = !more;
        }
        more
    }

    /// Goes on with a run until it may be dealt.
    fn build(&mut self, id: (u32, u64), definition: &Definition) -> Built {
        let stand = &mut self.groups.stands[id.0 as usize];
        if stand.draft.is_ready {
            return Built::Ready;
        }
        let (partition, session, epoch) = (stand.partition, stand.session.clone(), stand.epoch);
        let mut draft = std::mem::take(&mut stand.draft);
        draft.at = draft.at.max(stand.marker);
        let tenant = self.groups.lines[stand.line as usize].tenant.clone();
        let slot = match self.open(partition, &tenant, &session, None) {
            Opened::Ready(slot) if self.log.partition(slot).epoch() == epoch => slot,
            Opened::Ready(_) | Opened::Absent => {
                self.groups.remove(id.0);
                return Built::Nothing;
            }
            Opened::Park | Opened::Refused(_) => {
                self.groups.stands[id.0 as usize].draft = draft;
                self.groups.reads.push_back(id);
                return Built::Later;
            }
        };
        let aim = self.run_aim(id.0);
        let mut is_end = false;
        while !draft.is_full(aim) {
            if std::mem::take(&mut draft.is_damaged) {
                if draft.count > 0 {
                    break;
                }
                draft.skip(self.log.partition(slot).committed().max(draft.at + 1));
            }
            match self.log.read(slot, draft.at) {
                Read::Hot(record) => {
                    draft.take(record, definition, aim);
                }
                Read::End => {
                    is_end = true;
                    break;
                }
                Read::Gap { to } if draft.count == 0 => draft.skip(to),
                Read::Gap { .. } => break,
                Read::Fault(_) => {
                    self.counters.damaged_reads += 1;
                    draft.is_damaged = true;
                }
                found @ (Read::Cold(ticket) | Read::Ready(ticket)) => {
                    if matches!(found, Read::Ready(_)) {
                        self.ready_reads.push_back(ticket);
                    }
                    self.reads.insert(ticket, ReadFor::Run(id));
                    self.groups.stands[id.0 as usize].draft = draft;
                    return Built::Later;
                }
                Read::Busy if draft.count > 0 => break,
                Read::Busy => {
                    self.groups.stands[id.0 as usize].draft = draft;
                    self.groups.reads.push_back(id);
                    return Built::Later;
                }
            }
        }
        let stand = &mut self.groups.stands[id.0 as usize];
        draft.is_ready = draft.count > 0;
        let (is_ready, at) = (draft.is_ready, draft.at);
        stand.draft = draft;
        if is_ready {
            return Built::Ready;
        }
        if is_end {
            stand.is_recovered = false;
        }
        if stand.goes_on(at, Offset::MAX) && stand.last_seq >= self.announced {
            // What matches is not committed yet.
            let last_seq = stand.last_seq;
            self.groups.settle_at(id.0, last_seq);
        } else {
            self.groups.ends.push_back(id);
        }
        Built::Nothing
    }

    fn go_on_with_run(&mut self, id: (u32, u64)) {
        let Some(stand) = self.groups.get(id).filter(|stand| stand.state == State::Reading) else { return };
        let line = stand.line;
        let here = &self.groups.lines[line as usize];
        let Some(definition) = self.groups.definition(&here.tenant, &here.name).cloned() else { return };
        if self.build(id, &definition) == Built::Ready {
            self.groups.stands[id.0 as usize].state = State::Waiting;
            self.groups.lines[line as usize].ring.push_front(id);
            self.groups.note_news(line);
        }
    }

    /// Runs whose reading could not go on are tried again. Returns how many were.
    pub(super) fn serve_runs(&mut self) -> usize {
        let count = self.groups.reads.len();
        for _ in 0..count {
            let Some(id) = self.groups.reads.pop_front() else { break };
            self.go_on_with_run(id);
        }
        count - self.groups.reads.len().min(count)
    }

    /// What a run waits for has come from disk, or cannot.
    pub(crate) fn run_read(&mut self, ticket: ReadTicket, id: (u32, u64)) {
        let mut goes_on = false;
        let aim = self.groups.get(id).map(|_| self.run_aim(id.0));
        if let Some(aim) = aim
            && let Some(stand) = self.groups.stands.get_mut(id.0 as usize).filter(|stand| stand.number == id.1)
            && stand.state == State::Reading
        {
            let line = &self.groups.lines[stand.line as usize];
            let definition = self.groups.definitions.get(&line.tenant).and_then(|of| of.get(&line.name)).cloned();
            let before = stand.draft.at;
            match (self.log.read_records(ticket), definition) {
                (Ok(mut records), Some(definition)) => {
                    records.find(|record| !stand.draft.take(*record, &definition, aim));
                    goes_on = stand.draft.at > before;
                }
                (Err(ReadFault::Gone) | Ok(_), _) => {}
                (Err(_), _) => {
                    self.counters.damaged_reads += 1;
                    (stand.draft.is_damaged, goes_on) = (true, true);
                }
            }
            if !goes_on {
                self.groups.reads.push_back(id);
            }
        }
        self.log.release(ticket);
        if goes_on {
            self.go_on_with_run(id);
        }
    }

    /// Tells shards with members that there is something. Returns how many were told.
    pub(super) fn serve_group_hints(&mut self) -> usize {
        let mut done = 0;
        for _ in 0..self.groups.news.len() {
            let Some(line) = self.groups.news.pop_front() else { break };
            let Some(here) = self.groups.lines.get_mut(line as usize) else { continue };
            here.has_news = false;
            if !here.is_claimable() {
                self.groups.drop_line_if_idle(line);
                continue;
            }
            let (tenant, name) = (here.tenant.clone(), here.name.clone());
            let dry: Vec<ShardId> =
                here.pullers.iter().filter(|puller| puller.dry).map(|puller| puller.shard).collect();
            here.pullers.iter_mut().for_each(|puller| puller.dry = false);
            for shard in dry {
                done += 1;
                if shard == self.config.shard {
                    self.hear_hint(shard, &tenant, &name);
                } else {
                    let mut word = Vec::new();
                    Writer(&mut word).u8(request::HINT).text(&tenant).text(&name);
                    self.queues.tell(shard, word);
                }
            }
        }
        done
    }

    /// The shard of a member is told that its run is over.
    pub(super) fn say_run_over(&mut self, shard: ShardId, key: JobKey, nonce: u64, lost: bool) {
        self.say_free(shard, key, nonce, if lost { Freed::Lost } else { Freed::Ended });
    }
}

impl Stand {
    /// Another run begins.
    pub(super) fn begin_anew(&mut self, marker: Offset) {
        (self.marker, self.attempts, self.draft) = (marker, 0, Draft::default());
    }
}
