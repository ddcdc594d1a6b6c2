//! Deaths and boots, and the faults that are spread over the steps between them.

use super::drain::Drain;
use super::node::{Core, Node};
use super::*;
use crate::boot::{self, Booted};
use shards::ids::ShardId;
use shards::{Shard, ShardConfig, mailbox};
use std::collections::BTreeMap;
use storage::log::Log;
use tidegate::wire::decode::Scratch;

impl World {
    pub(super) fn boot(&mut self) -> Checked {
        let kept = std::mem::take(&mut self.kept);
        self.clients.iter_mut().for_each(|client| client.server_began(kept));
        let before = self.options.shards;
        if self.boots > 0 && self.options.reshard && self.schedule.chance(400) {
            self.options.shards = self.schedule.between(1, 8) as u16;
        }
        self.boots += 1;
        self.oracle.board.forget();
        self.try_damaged()?;
        let recovered = loop {
            // A crash during recovery, some times in a row.
            let cut = (!self.calm && self.schedule.chance(200)).then(|| self.schedule.below(12));
            let reads_fail = !self.calm && self.options.faults.read_fails > 0;
            match boot::recover(&mut self.disk, &self.options, cut, reads_fail) {
                Booted::Ready(recovered) if cut.is_none() => break recovered,
                Booted::Ready(_) => {}
                Booted::Died => {
                    self.say(format_args!("crash during recovery, after {cut:?} changes"));
                    self.counts.add(FAULT, "boot: cut short");
                    self.fail_disk();
                }
                Booted::Unreadable => {
                    self.say(format_args!("boot cannot read"));
                    self.counts.add(FAULT, "boot: a read fails");
                }
                // A recovery that died may leave less that still passes: damage shows now.
                Booted::Refused(_) if self.disk.is_damaged() => self.disk.heal(),
                Booted::Refused(why) => return Err(format!("boot refuses a folder that only crashed: {why}")),
            }
        };
        let (boots, shards) = (self.boots, self.options.shards);
        self.say(format_args!("boot {boots} with {shards} shards, before {before}"));
        let mails = mailbox::mesh(self.options.shards, &self.options.limits);
        let mut cores = Vec::new();
        let torn = recovered.report.torn() as u64;
        // A sealed segment ends where its sidecar says; where that has rotted together with a bit of the zeros behind the last
        // group, what is cut is no group: the checkpoint of the stop knows how many records there are, and fewer are refused.
        if std::mem::take(&mut self.clean) && torn > 0 && !self.disk.is_damaged() {
            return Err(format!("{torn} torn tails after a graceful stop\n{}", recovered.report));
        }
        self.counts.add_many(WORLD, "torn tails cut", torn);
        let queues = shards::queues::declared(&recovered);
        for (index, (recovered, mailboxes)) in recovered.logs.into_iter().zip(mails).enumerate() {
            let config = ShardConfig {
                shard: ShardId(index as u16),
                shards: self.options.shards,
                limits: self.options.limits.clone(),
                seed: self.schedule.any(),
            };
            let log = Log::new(self.options.log, recovered);
            let mut shard = Shard::new(config, log, mailboxes);
            shard.know_queues(&queues);
            cores.push(Core {
                shard,
                doors: BTreeMap::new(),
                scratch: Scratch::new(&self.options.limits),
                tokens: crate::edge::tokens(),
                answers: Vec::new(),
                lounge: guests::Lounge::default(),
                drained: Vec::new(),
                gone: Vec::new(),
                asleep: false,
                woken: false,
                stalled_until_us: 0,
                committed: 0,
                late: None,
                slots_free: (0..self.options.limits.connections_per_shard_max as u32).rev().collect(),
            });
        }
        self.node = Some(Node { shards: cores, lingering: Vec::new(), stopping: false, drain: Drain::default() });
        self.counts.add(WORLD, "boots");
        self.welcome_guests();
        Ok(())
    }

    pub(super) fn crash(&mut self, why: &str) {
        self.say(format_args!("crash {why}"));
        self.count_death();
        for client in 0..self.clients.len() {
            // What the server had sent may still arrive, or not.
            if let Some(link) = self.links[client].take() {
                let last = self.net.chance(500);
                if let Some(door) = self.node.as_mut().and_then(|n| n.shards[link.shard].doors.remove(&link.connection))
                    && last
                    && !door.out.is_empty()
                {
                    let most = self.net.index(door.out.len() + 1);
                    let wall = self.now().wall_ms;
                    // A broken promise in these bytes is reported when the next step checks the oracle again.
                    let seen = self.clients[client].receive(&door.out[..most], &mut self.oracle, &mut self.net, wall);
                    if let Err(why) = seen {
                        self.broken_late.get_or_insert(why);
                    }
                }
                self.lose(client, link);
            }
        }
        // Behind the last bytes: they may hold such acknowledgements too.
        self.oracle.process_died();
        let unsettled = self.node.as_ref().map_or_else(Default::default, |node| {
            let is_open = |session: &String| {
                let log = node.shards[usize::from(node.shards[0].shard.owner(TENANT, session).0)].shard.log();
                log.next_seq() > log.committed_seq()
            };
            self.options.roles.iter().flat_map(|role| role.bosses.iter().cloned()).filter(is_open).collect()
        });
        self.oracle.jobs.died(self.now_us, unsettled);
        self.forget_node();
        self.fail_disk();
        self.disk.set_full(false);
    }

    /// In the middle of what.
    fn count_death(&mut self) {
        let stage = self.node.as_ref().filter(|node| node.stopping).map(|node| node.drain.stage);
        if let Some(stage) = stage {
            self.counts.add(FAULT, stage.death());
        }
        for client in 0..self.clients.len() {
            if self.links[client].is_some() {
                self.clients[client].amid().for_each(|amid| self.counts.add(FAULT, amid.death));
            }
        }
    }

    /// The process died, or the power failed with it.
    pub(super) fn fail_disk(&mut self) {
        // Without sync a power cut may take what readers have seen: no promise was made.
        if self.schedule.chance(300) || self.oracle.sync_off {
            self.disk.kill();
            self.counts.add(FAULT, "death: of the process");
        } else {
            self.disk.crash();
            self.counts.add(FAULT, "death: of the power");
        }
        let fingerprint = self.disk.fingerprint();
        self.say(format_args!("disk {fingerprint:016x}"));
    }

    /// A damaged folder is first booted as a copy: it must be refused untouched, or be as good as ever.
    fn try_damaged(&mut self) -> Checked {
        if !self.disk.is_damaged() {
            return Ok(());
        }
        let mut copy = self.disk.copy();
        copy.open();
        let before = copy.fingerprint();
        match boot::recover(&mut copy, &self.options, None, false) {
            Booted::Refused(why) => {
                if copy.fingerprint() != before {
                    return Err(format!("a refused boot changed the folder: {why}"));
                }
                self.counts.add(WORLD, "damage stops a boot");
                self.say(format_args!("boot refuses damage"));
                self.disk.heal();
            }
            _ => {
                self.counts.add(WORLD, "damage does not stop a boot");
                if self.calm || self.disk.must_heal() || self.faults.chance(500) {
                    self.disk.heal();
                }
            }
        }
        Ok(())
    }

    /// Faults of the swarm that are not crashes.
    pub(super) fn spread_faults(&mut self) {
        let o = &self.options;
        let (stall, rot, stop, far) = (o.stall_every, o.rot_every, o.stop_every, o.far_jumps);
        let Some(node) = &mut self.node else { return };
        if stall > 0 && self.faults.below(stall) == 0 {
            let shard = self.faults.index(node.shards.len());
            node.shards[shard].stalled_until_us = self.now_us + self.faults.delay(200 * self.options.step_us);
            self.counts.add(FAULT, "shard stalls");
            self.say(format_args!("shard {shard} stalls"));
        }
        if rot > 0 && self.faults.below(rot) == 0 && self.disk.rot() {
            self.say(format_args!("a bit rots"));
        }
        if far && self.faults.below(2000) == 0 {
            let jump = self.faults.between(60_000, 100_000_000) as i64;
            self.wall_offset_ms += jump;
            self.counts.add(FAULT, "clock jumps far ahead");
            self.say(format_args!("wall clock jumps {jump} ms"));
        }
        if stop > 0 && self.faults.below(stop) == 0 {
            self.begin_stop();
        }
    }
}
