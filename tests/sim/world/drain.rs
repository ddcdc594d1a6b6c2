//! A graceful stop, as the reactor and `shutdown` do it.
//!
//! ```text
//!   waves      some clients are told to go away ─► a grace ─► deaf ─► owed nothing ─► closed        nobody new is let in
//!   hearing    time is up: the rest is cut off; every shard says what the clients leave behind
//!   settling   each shard takes the mail that is there, and closes its log
//! ```

use super::*;
use shards::ids::ConnectionId;
use tidegate::net::websocket::{Opcode, append_close, append_frame};
use tidegate::wire::codes::Close;
use tidegate::wire::encode;

/// Longest wait of each of the last two stages.
const SAY_US_MAX: u64 = 1_000_000;

/// Where a stop stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) enum Stage {
    #[default]
    Waves,
    /// Until then.
    Hearing(u64),
    Settling(u64),
}

impl Stage {
    /// Name of the fault that ends a process here.
    pub fn death(self) -> &'static str {
        match self {
            Stage::Waves => "death: while stopping, waves",
            Stage::Hearing(_) => "death: while stopping, hearing",
            Stage::Settling(_) => "death: while stopping, settling",
        }
    }
}

/// One stop of a node.
#[derive(Default)]
pub(super) struct Drain {
    pub stage: Stage,
    untold: Vec<(usize, ConnectionId)>,
    next_wave_us: u64,
    told: Vec<(u64, usize, ConnectionId)>,
    leaving: Vec<(usize, ConnectionId)>,
    /// All was said in time.
    said: bool,
}

impl Drain {
    fn is_over(&self) -> bool {
        self.untold.is_empty() && self.told.is_empty() && self.leaving.is_empty()
    }
}

impl World {
    pub(super) fn begin_stop(&mut self) {
        let Some(node) = self.node.as_mut().filter(|node| !node.stopping) else { return };
        node.stopping = true;
        let doors = |(index, core): (usize, &node::Core)| {
            core.doors.keys().map(|id| (index, *id)).collect::<Vec<(usize, ConnectionId)>>()
        };
        node.drain = Drain { untold: node.shards.iter().enumerate().flat_map(doors).collect(), ..Drain::default() };
        self.stop_at_us = self.now_us + self.faults.delay(150 * self.options.step_us);
        self.counts.add(WORLD, "graceful stops begun");
        self.say(format_args!("a graceful stop begins"));
    }

    /// Moves a graceful stop on; true when the process has ended.
    pub(super) fn has_stopped(&mut self) -> Checked<bool> {
        let Some(stage) = self.node.as_ref().filter(|node| node.stopping).map(|node| node.drain.stage) else {
            return Ok(false);
        };
        match stage {
            Stage::Waves => self.send_away(),
            Stage::Hearing(until_us) => {
                let now_us = self.now_us;
                let node = self.node.as_mut().expect("seen above");
                node.shards.iter_mut().for_each(|core| core.woken = true);
                let said = node.shards.iter().all(|core| core.gone.is_empty() && core.shard.is_settled());
                if said || now_us >= until_us {
                    (node.drain.stage, node.drain.said) = (Stage::Settling(now_us + SAY_US_MAX), said);
                    self.counts
                        .add(WORLD, if said { "stop: all was said" } else { "stop: time was up before all was said" });
                }
            }
            Stage::Settling(until_us) => {
                let now_us = self.now_us;
                for core in &mut self.node.as_mut().expect("seen above").shards {
                    core.woken = true;
                    if now_us >= until_us {
                        core.shard.stop();
                    }
                }
            }
        }
        self.has_ended()
    }

    fn send_away(&mut self) {
        let (now_us, step_us) = (self.now_us, self.options.step_us);
        let node = self.node.as_mut().expect("a node is stopping");
        let node::Node { shards, drain, lingering, .. } = node;
        if !drain.untold.is_empty() && now_us >= drain.next_wave_us {
            for _ in 0..=self.faults.index(drain.untold.len()) {
                let (shard, id) = drain.untold.swap_remove(self.faults.index(drain.untold.len()));
                let Some(door) = shards[shard].doors.get_mut(&id).filter(|door| !door.closing) else { continue };
                let mut goaway = Vec::new();
                encode::goaway(&mut goaway, 250);
                append_frame(&mut door.out, Opcode::Text, &goaway);
                drain.told.push((now_us + self.faults.delay(20 * step_us), shard, id));
            }
            drain.next_wave_us = now_us + self.faults.delay(20 * step_us);
        }
        for (_, shard, id) in drain.told.extract_if(.., |(leave_us, ..)| *leave_us <= now_us) {
            if let Some(door) = shards[shard].doors.get_mut(&id) {
                door.deaf = true;
                drain.leaving.push((shard, id));
            }
        }
        let counts = &mut self.counts;
        drain.leaving.retain(|(shard, id)| {
            let core = &mut shards[*shard];
            let Some(door) = core.doors.get_mut(id).filter(|door| !door.closing) else { return false };
            if door.has_input() || core.shard.commands_in_flight(*id) > 0 {
                return true;
            }
            append_close(&mut door.out, Some(Close::GoingAway.code()), Close::GoingAway.reason());
            door.closing = true;
            counts.add(WORLD, "closed after a goodbye");
            false
        });
        let nobody = drain.is_over() && lingering.is_empty() && self.links.iter().all(Option::is_none);
        if nobody || now_us >= self.stop_at_us {
            for (shard, id, _) in std::mem::take(lingering) {
                if shards[shard].doors.remove(&id).is_some() {
                    shards[shard].gone.push(id);
                }
            }
            drain.stage = Stage::Hearing(now_us + SAY_US_MAX);
            for client in 0..self.links.len() {
                self.break_link(client, "for the end of the process");
            }
        }
    }

    fn has_ended(&mut self) -> Checked<bool> {
        let node = self.node.as_ref().expect("a node is stopping");
        if !(node.shards.iter().all(|core| core.shard.stopped()) && self.disk.is_idle()) {
            return Ok(false);
        }
        for (index, core) in node.shards.iter().enumerate() {
            let log = core.shard.log();
            if log.committed_seq() != log.next_seq() {
                return Err(format!("shard {index} stopped with something uncommitted"));
            }
        }
        self.kept = node.drain.said;
        // Whatever was acknowledged, in memory too, is in the log of a process that ended by itself.
        self.oracle.process_ended()?;
        self.counts.add(WORLD, "graceful stops");
        self.say(format_args!("stopped"));
        self.forget_node();
        self.fail_disk();
        self.disk.set_full(false);
        self.clean = true;
        Ok(true)
    }
}
