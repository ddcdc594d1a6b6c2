//! Connections: how they come about, carry bytes in pieces, and break.

use super::node::Node;
use super::*;
use crate::edge::Door;
use shards::ids::ConnectionId;
use shards::input::{Handled, Input, Principal};

/// Where a client is connected.
#[derive(Clone, Copy)]
pub(super) struct Link {
    pub shard: usize,
    pub connection: ConnectionId,
    /// Refusals the node had given when the connection was made.
    pub refusals: u64,
}

impl World {
    /// A connection breaks. What was on its way may get there in part, and the server may notice late.
    pub(super) fn break_by_chance(&mut self, client: usize) -> Checked {
        let Some(link) = self.links[client] else { return Ok(()) };
        self.counts.add(FAULT, "connection breaks");
        self.clients[client].amid().for_each(|amid| self.counts.add(FAULT, amid.cut));
        let wall = self.now().wall_ms;
        let Some(core) = self.node.as_mut().map(|node| &mut node.shards[link.shard]) else { return Ok(()) };
        let Some(door) = core.doors.get_mut(&link.connection) else { return Ok(()) };
        let down = self.faults.index(door.out.len() + 1);
        let outgoing = &self.clients[client].outgoing;
        let up = self.faults.index(outgoing.len() + 1);
        door.backlog.extend_from_slice(&outgoing[..up]);
        let bytes = door.out[..down].to_vec();
        if up < outgoing.len() {
            self.counts.add(FAULT, "connection breaks amid bytes up");
        }
        if down < door.out.len() {
            self.counts.add(FAULT, "connection breaks amid bytes down");
        }
        self.trace.bytes(&bytes);
        self.clients[client].receive(&bytes, &mut self.oracle, &mut self.net, wall)?;
        if self.faults.chance(self.options.linger) {
            let until_us = self.now_us + self.faults.delay(100 * self.options.step_us);
            self.counts.add(FAULT, "connection lingers after its client left");
            self.links[client] = None;
            self.lose(client, link);
            if let Some(node) = &mut self.node {
                node.lingering.push((link.shard, link.connection, until_us));
            }
            self.say(format_args!("c{client} is gone, its connection lingers until {until_us}"));
        } else {
            self.break_link(client, "by chance");
        }
        Ok(())
    }

    /// A late join is short: where it shall be met often, it is waited for.
    pub(super) fn break_a_join(&mut self) -> Checked {
        let every = self.options.break_joins_every;
        let joining = |client: &usize| self.links[*client].is_some() && self.clients[*client].joins();
        match (0..self.clients.len()).find(joining) {
            Some(client) if every > 0 && self.faults.below(every) == 0 => self.break_by_chance(client),
            _ => Ok(()),
        }
    }

    /// The server notices connections whose clients have left.
    pub(super) fn end_lingering(&mut self) {
        let Some(node) = &mut self.node else { return };
        let Node { lingering, shards, .. } = node;
        let (now_us, calm) = (self.now_us, self.calm);
        lingering.retain(|(shard, connection, until_us)| {
            let stays = *until_us > now_us && !calm;
            if !stays && shards[*shard].doors.remove(connection).is_some() {
                shards[*shard].gone.push(*connection);
            }
            stays
        });
    }

    pub(super) fn break_link(&mut self, client: usize, why: &str) {
        let Some(link) = self.links[client].take() else { return };
        self.say(format_args!("connection of c{client} breaks {why}"));
        if let Some(node) = &mut self.node {
            let core = &mut node.shards[link.shard];
            if core.doors.remove(&link.connection).is_some() {
                core.gone.push(link.connection);
            }
        }
        self.lose(client, link);
    }

    /// What the client was waiting for may still be refused, and nobody will tell: its order is then no promise.
    pub(super) fn lose(&mut self, client: usize, link: Link) {
        self.oracle.board.cut_off(&self.clients[client].name());
        for (session, key) in self.clients[client].disconnected() {
            self.untold.push((session, key, link.refusals));
        }
        self.clients[client].presence_gives_up(&mut self.oracle.board);
    }

    /// The node is gone, or all has come to rest: whoever lost an answer while refusals were given may have been refused.
    pub(super) fn forget_node(&mut self) {
        let refusals = self.node.as_ref().map_or(0, Node::refusals);
        for (session, key, before) in std::mem::take(&mut self.untold) {
            if refusals > before {
                self.oracle.refused(&session, key);
            }
        }
        self.node = None;
    }

    pub(super) fn connect(&mut self, client: usize) {
        let now = self.now();
        let Some(node) = self.node.as_mut().filter(|node| !node.stopping) else { return };
        let name = self.clients[client].name();
        let role = &self.clients[client].role;
        let named = role.publishes.first().or(role.follows.first());
        let index = match named.filter(|_| self.net.chance(self.options.at_owner)) {
            Some(session) => usize::from(node.shards[0].shard.owner(TENANT, session).0),
            None => self.net.index(node.shards.len()),
        };
        let core = &mut node.shards[index];
        let Some(slot) = core.slots_free.pop() else { return };
        self.generation += 1;
        let connection = ConnectionId { slot, generation: self.generation };
        let principal = Principal { tenant: TENANT, client_id: &name, rights: Some(&self.rights) };
        core.wake_up();
        if core.shard.handle(Input::Connected { connection, principal }, now) == Handled::Later {
            core.slots_free.push(slot);
            return;
        }
        core.woken = true;
        let door = Door::new(&name, index as u16, &self.options.limits);
        core.doors.insert(connection, door);
        let refusals = node.refusals();
        self.links[client] = Some(Link { shard: index, connection, refusals });
        self.trace.say(self.now_us, format_args!("{name} connects to shard {index} as {connection:?}"));
        self.counts.add(WORLD, "connections");
        self.clients[client].connected(&mut self.workload, &mut self.net, &mut self.oracle);
    }

    fn chunk_bytes_max(&self) -> u64 {
        // Rest is reached in a bounded number of steps, so bytes may not trickle then.
        if self.calm { 64 << 10 } else { self.options.chunk_bytes_max }
    }

    pub(super) fn move_bytes_up(&mut self) {
        let client = self.net.index(self.clients.len());
        let Some(link) = self.links[client] else { return };
        let most = self.net.between(1, self.chunk_bytes_max()) as usize;
        let outgoing = &mut self.clients[client].outgoing;
        let rest = outgoing.split_off(most.min(outgoing.len()));
        let bytes = std::mem::replace(outgoing, rest);
        if bytes.is_empty() {
            return;
        }
        if self.trace.prints() {
            let texts = std::mem::take(&mut self.clients[client].said);
            for text in texts {
                self.trace.note(self.now_us, format_args!("c{client} ► {text}"));
            }
        }
        if let Some(core) = self.node.as_mut().map(|node| &mut node.shards[link.shard])
            && let Some(door) = core.doors.get_mut(&link.connection)
        {
            door.backlog.extend_from_slice(&bytes);
        }
    }

    pub(super) fn move_bytes_down(&mut self) -> Checked {
        let client = self.net.index(self.clients.len());
        let Some(link) = self.links[client] else { return Ok(()) };
        if self.clients[client].role.slow && !self.calm && !self.net.chance(30) {
            return Ok(());
        }
        let most = self.net.between(1, self.chunk_bytes_max().max(512)) as usize;
        let Some(core) = self.node.as_mut().map(|node| &mut node.shards[link.shard]) else { return Ok(()) };
        let Some(door) = core.doors.get_mut(&link.connection) else { return Ok(()) };
        let (bytes, drained) = door.take(most, &self.options.limits);
        let ended = door.closing && door.out.is_empty();
        if drained {
            core.drained.push(link.connection);
        }
        self.trace.bytes(&bytes);
        if self.trace.prints() && !bytes.is_empty() {
            let text = String::from_utf8_lossy(&bytes).into_owned();
            self.trace.note(self.now_us, format_args!("c{client} ◄ {text}"));
        }
        let wall = self.now().wall_ms;
        self.clients[client].receive(&bytes, &mut self.oracle, &mut self.net, wall)?;
        if ended {
            let code = self.clients[client].closed_with;
            self.break_link(client, &format!("by the server, {code:?}"));
        }
        Ok(())
    }

    pub(super) fn client_acts(&mut self) {
        let client = self.workload.index(self.clients.len());
        let now = self.now();
        if self.links[client].is_none() {
            if self.calm || self.net.chance(if self.clients[client].role.crowd { 900 } else { 300 }) {
                self.connect(client);
            }
            return;
        }
        if !self.calm && self.clients[client].leaves() {
            self.clients[client].left();
            return self.break_link(client, "by its client, which is done");
        }
        let most = if self.calm { 1 } else { self.workload.between(1, 3) };
        for _ in 0..most {
            self.clients[client].act(&mut self.workload, &mut self.net, &mut self.oracle, now.wall_ms, self.calm);
        }
    }
}
