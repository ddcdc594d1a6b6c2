//! How a queue comes to be: kept by one shard, known to all.
//!
//! ```text
//!   queue.declare ─► shard of `$queues` ─► sound? no loop? ─► record: an entry ─► committed ─► DEFINE to every shard
//!                                                                                   answered ◄── DEFINED from every shard
//! ```
//! When it is answered every event that matches, wherever it is published, becomes a job; of those published meanwhile some do. What a
//! crash leaves is either: the record, and then every shard begins with it, or nothing.

use super::{Definition, QUEUES};
use crate::effect::{Reply, WorkReply};
use crate::ids::{CommandId, ShardId};
use crate::mailbox::codec::{Reader, Writer};
use crate::mailbox::message::request;
use crate::sessions::Origin;
use crate::shard::Shard;
use std::sync::Arc;
use storage::ids::LogSeq;
use storage::recovery::Recovered;

/// A queue of a recovered folder, to be made known to every shard.
#[derive(Clone, Debug)]
pub struct Declared {
    tenant: Box<str>,
    definition: Definition,
}

/// All queues of a recovered folder.
pub fn declared(recovered: &Recovered) -> Vec<Declared> {
    let mut found = Vec::new();
    for log in &recovered.logs {
        let mut take = |tenant: &str, entries: &storage::catalog::Entries| {
            let definitions = entries.live().filter_map(|(_, entry)| Definition::get(&entry.value));
            found.extend(definitions.map(|definition| Declared { tenant: tenant.into(), definition }));
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
    found
}

/// A declaration on its way.
pub(super) struct Declaring {
    number: u64,
    log_seq: LogSeq,
    origin: Origin,
    id: CommandId,
    tenant: Arc<str>,
    queue: Box<str>,
    /// Told to the other shards once it is committed.
    value: Option<Vec<u8>>,
    waits_for: Vec<ShardId>,
}

impl Shard {
    /// These queues were declared before this process began.
    pub fn know_queues(&mut self, declared: &[Declared]) {
        for Declared { tenant, definition } in declared {
            self.queues.define(tenant, definition.clone());
        }
    }

    /// The record that declares a queue was appended.
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
        let (tenant, queue, value, waits_for) = (tenant.clone(), queue.into(), Some(value), Vec::new());
        self.queues.declaring.push(Declaring { number, log_seq, origin, id, tenant, queue, value, waits_for });
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
            let (tenant, number) = (one.tenant.clone(), one.number);
            let others: Vec<ShardId> = (0..self.config.shards).map(ShardId).filter(|shard| *shard != own).collect();
            one.waits_for.clone_from(&others);
            if let Some(definition) = Definition::get(&value) {
                self.queues.define(&tenant, definition);
            }
            for shard in others {
                let mut word = Vec::new();
                Writer(&mut word).u8(request::DEFINE).u64(number).text(&tenant).bytes(&value);
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
            self.answer(one.origin, one.id, &Reply::Work(WorkReply::Declared { queue: &one.queue }));
            done += 1;
        }
        done
    }

    /// `DEFINE`: a queue is so from now on.
    pub(crate) fn handle_define(&mut self, from: ShardId, r: &mut Reader<'_>) {
        let (number, tenant, value) = (r.u64(), r.text(), r.bytes());
        if let Some(definition) = Definition::get(value) {
            self.queues.define(tenant, definition);
        }
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
