//! How a queue comes to be: kept by one shard, known to all.
//!
//! ```text
//!   queue.declare ─► shard of `$queues` ─► sound? no loop? ─► record: an entry ─► committed ─► DEFINE to every shard
//!                                                                                   answered ◄── DEFINED from every shard
//! ```
//! A queue is dropped in the same way: its entry goes, and DEFINE says nothing of it but its name.
//!
//! When it is answered every event that matches, wherever it is published, becomes a job; of those published meanwhile some do. What a
//! crash leaves is either: the record, and then every shard begins with it, or nothing.

use super::jobs::Rest;
use super::{Definition, QUEUES};
use crate::effect::{Reply, WorkReply};
use crate::groups::{group_of, policy};
use crate::ids::{CommandId, ShardId};
use crate::mailbox::codec::{Reader, Writer};
use crate::mailbox::message::request;
use crate::sessions::Origin;
use crate::shard::Shard;
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use storage::catalog::{OpenJob, is_group};
use storage::ids::LogSeq;
use storage::log::RecoveredLog;
use storage::recovery::Recovered;

/// A queue of a recovered folder.
#[derive(Clone, Debug)]
struct Declared {
    tenant: Box<str>,
    definition: Definition,
}

/// What a recovered folder says of queues, to be made known to every shard.
#[derive(Clone, Debug, Default)]
pub struct Known {
    queues: Vec<Declared>,
    groups: Vec<(Box<str>, policy::Definition)>,
    /// When the oldest event of an open job was published, and how long one of them can last at most. Milliseconds.
    open: Option<(u64, u64)>,
    /// Jobs that are open: tenant, queue, how many.
    counts: Vec<(Box<str>, Box<str>, u64)>,
}

/// Jobs of a log that are open.
fn open_jobs(log: &RecoveredLog) -> impl Iterator<Item = (&str, &OpenJob)> {
    let residents: HashSet<(&str, &str)> = log.catalog.residents().map(|p| (p.tenant(), p.session())).collect();
    // What replay brought back is newer than what the checkpoint says.
    let kept = log.streaming.iter().filter(move |known| !residents.contains(&(&*known.tenant, &*known.session)));
    let kept = kept.flat_map(|known| known.jobs.iter().map(|job| (&*known.tenant, job)));
    let replayed = log.catalog.residents().flat_map(|p| p.jobs().iter().map(move |job| (p.tenant(), job)));
    // Where a group stands is no job.
    kept.chain(replayed).filter(|(_, job)| !job.dead && !is_group(&job.queue))
}

/// All queues of a recovered folder.
pub fn declared(recovered: &Recovered) -> Known {
    let (mut found, mut groups) = (Vec::new(), Vec::new());
    let mut open: Option<(u64, u64)> = None;
    let mut counts: BTreeMap<(&str, &str), u64> = BTreeMap::new();
    for log in &recovered.logs {
        for (tenant, job) in open_jobs(log) {
            *counts.entry((tenant, &job.queue)).or_default() += 1;
            let (since_ms, life_ms) = (job.event_ms, job.deadline_ms.saturating_sub(job.opened_ms));
            open = Some(open.map_or((since_ms, life_ms), |(s, l)| (s.min(since_ms), l.max(life_ms))));
        }
        let mut take = |tenant: &str, entries: &storage::catalog::Entries| {
            let definitions = entries.live().filter_map(|(_, entry)| Definition::get(&entry.value));
            found.extend(definitions.map(|definition| Declared { tenant: tenant.into(), definition }));
            let definitions = entries.live().filter_map(|(_, entry)| policy::Definition::get(&entry.value));
            groups.extend(definitions.map(|definition| (tenant.into(), definition)));
        };
        let is_of = |tenant: &str, session: &str| session == QUEUES && !tenant.is_empty();
        // What replay brought back is newer than what the checkpoint says.
        let mut replayed: Vec<&str> = Vec::new();
        for partition in log.catalog.residents().filter(|p| is_of(p.tenant(), p.session())) {
            replayed.push(partition.tenant());
            partition.entries().into_iter().for_each(|entries| take(partition.tenant(), entries));
        }
        for known in log.streaming.iter().filter(|known| is_of(&known.tenant, &known.session)) {
            if !replayed.contains(&&*known.tenant) {
                known.entries.iter().for_each(|entries| take(&known.tenant, entries));
            }
        }
    }
    let counts = counts.into_iter().map(|((tenant, queue), count)| (tenant.into(), queue.into(), count)).collect();
    Known { queues: found, groups, open, counts }
}

/// A declaration on its way.
pub(super) struct Declaring {
    number: u64,
    log_seq: LogSeq,
    origin: Origin,
    id: CommandId,
    tenant: Arc<str>,
    queue: Box<str>,
    /// Told to the other shards once it is committed; empty where it is dropped.
    value: Option<Vec<u8>>,
    drops: bool,
    waits_for: Vec<ShardId>,
}

impl Shard {
    /// These queues were declared before this process began, and so long were jobs open.
    pub fn know_queues(&mut self, known: &Known) {
        for Declared { tenant, definition } in &known.queues {
            self.queues.define(tenant, definition.clone());
        }
        for (tenant, definition) in &known.groups {
            self.groups.define(tenant, definition.clone());
        }
        self.groups.defined();
        for (tenant, queue, count) in &known.counts {
            self.know_open(tenant, queue, *count);
        }
        self.queues.timers.boot_pin = known.open.map(|(since_ms, life_ms)| (since_ms, Rest::For(life_ms)));
        self.log.keep_from(self.queues.timers.pinned_ms());
    }

    /// The record that declares a queue, or drops it, was appended.
    pub(crate) fn declaring(
        &mut self,
        origin: Origin,
        id: CommandId,
        tenant: &Arc<str>,
        queue: &str,
        value: Vec<u8>,
        log_seq: LogSeq,
    ) {
        self.queues.declarations += 1;
        let number = self.queues.declarations;
        let (tenant, queue, drops, waits_for) = (tenant.clone(), queue.into(), value.is_empty(), Vec::new());
        let value = Some(value);
        self.queues.declaring.push(Declaring { number, log_seq, origin, id, tenant, queue, value, drops, waits_for });
    }

    /// Makes known what was committed, answers what is known. Returns the work done.
    pub(crate) fn serve_declarations(&mut self) -> usize {
        let (mut done, committed, own) = (0, self.announced, self.config.shard);
        for at in 0..self.queues.declaring.len() {
            let one = &mut self.queues.declaring[at];
            if one.log_seq >= committed {
                continue;
            }
            let Some(value) = one.value.take() else { continue };
            let (tenant, queue, number) = (one.tenant.clone(), one.queue.clone(), one.number);
            let others: Vec<ShardId> = (0..self.config.shards).map(ShardId).filter(|shard| *shard != own).collect();
            one.waits_for.clone_from(&others);
            self.hear_define(&tenant, &queue, &value);
            for shard in others {
                let mut word = Vec::new();
                Writer(&mut word).u8(request::DEFINE).u64(number).text(&tenant).text(&queue).bytes(&value);
                self.queues.tell(shard, word);
            }
            done += 1;
        }
        while let Some(at) =
            self.queues.declaring.iter().position(|one| one.value.is_none() && one.waits_for.is_empty())
        {
            if !self.has_effect_room(1) {
                break;
            }
            let one = self.queues.declaring.swap_remove(at);
            let queue = &*one.queue;
            let reply = if let Some(group) = group_of(queue) {
                if one.drops { WorkReply::GroupDropped { group } } else { WorkReply::GroupDeclared { group } }
            } else if one.drops {
                WorkReply::QueueDropped { queue }
            } else {
                WorkReply::Declared { queue }
            };
            self.answer(one.origin, one.id, &Reply::Work(reply));
            done += 1;
        }
        done
    }

    fn hear_define(&mut self, tenant: &str, queue: &str, value: &[u8]) {
        if group_of(queue).is_some() {
            return match policy::Definition::get(value) {
                Some(definition) => self.groups.define(tenant, definition),
                None => self.groups.undefine(tenant, queue),
            };
        }
        match Definition::get(value) {
            Some(definition) => self.queues.define(tenant, definition),
            None => self.queues.undefine(tenant, queue),
        }
    }

    /// `DEFINE`: a queue is so from now on, or is no more.
    pub(crate) fn handle_define(&mut self, from: ShardId, r: &mut Reader<'_>) {
        let (number, tenant, queue, value) = (r.u64(), r.text(), r.text(), r.bytes());
        self.hear_define(tenant, queue, value);
        let mut word = Vec::new();
        Writer(&mut word).u8(request::DEFINED).u64(number);
        self.queues.tell(from, word);
    }

    /// `DEFINED`: a shard knows it.
    pub(crate) fn handle_defined(&mut self, from: ShardId, r: &mut Reader<'_>) {
        let number = r.u64();
        for one in self.queues.declaring.iter_mut().filter(|one| one.number == number) {
            one.waits_for.retain(|shard| *shard != from);
        }
    }
}
