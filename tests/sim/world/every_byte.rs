//! Not drawn but counted: a connection ends after every single byte of what a resume brings, and its client comes back.
//!
//! ```text
//!   connection 1   a new life subscribes and gets everything, acknowledges nothing, is cut off
//!   connection 2   resume ─► welcome resumed subscribed event event … ✂ after byte 0, 1, 2, …        now and then the server dies too
//!   connection 3   comes to rest: every event once and in order
//! ```

use super::*;

/// Events that each resume brings.
const EVENTS: u64 = 6;

/// The server dies with every so manieth cut.
const DEATH_EVERY: usize = 7;

impl World {
    /// Runs it. Returns how often a connection was cut.
    pub fn every_byte(print: bool) -> Checked<usize> {
        let mut cuts = 0;
        for (follows, patterns) in [(vec!["s0".to_owned()], vec![]), (vec![], vec![">".to_owned()])] {
            let publisher = Role { publishes: vec!["s0".to_owned()], data_bytes_max: 100, ..Role::default() };
            let reader = Role { follows, patterns, resumes: true, ..Role::default() };
            let mut world = World::of(Options::plain(vec![publisher, reader.clone()]), 1, print);
            world.boot()?;
            world.calm = true;
            world.tell_events()?;
            for cut in 0.. {
                world.clients[1] = Client::new(1, reader.clone());
                if !world.cut_at(cut)? {
                    break;
                }
                cuts += 1;
                if cut % DEATH_EVERY == 0 {
                    world.crash("at a cut");
                    world.boot()?;
                }
                world.come_to_rest(&format!("after a cut at byte {cut}"))?;
                world.break_link(1, "for the next cut");
            }
            world.audit()?;
        }
        Ok(cuts)
    }

    /// There is something to be delivered.
    fn tell_events(&mut self) -> Checked {
        while self.oracle.tail("s0") < EVENTS {
            let now = self.now();
            if self.links[0].is_none() {
                self.connect(0);
            }
            self.clients[0].act(&mut self.workload, &mut self.net, &mut self.oracle, now.wall_ms, false);
            self.turn_all()?;
            self.hear(0, usize::MAX)?;
        }
        self.come_to_rest("before the first cut")?;
        self.break_link(1, "for the first cut");
        Ok(())
    }

    /// Cuts a resume off after so many bytes. `false`: it brings fewer.
    fn cut_at(&mut self, cut: usize) -> Checked<bool> {
        // Now and then a client comes without its life, or one answer takes a turn more.
        while !self.clients[1].has_seen(EVENTS) {
            if !self.clients[1].has_life() {
                self.break_link(1, "to come with a life");
                self.connect(1);
            }
            self.turn_all()?;
            self.hear(1, usize::MAX)?;
            self.clients[1].subscribe_all(&mut self.net, &mut self.oracle);
        }
        loop {
            self.break_link(1, "to come back");
            self.connect(1);
            if self.clients[1].resumes_alone() {
                break;
            }
        }
        let mut bytes = 0;
        // Everything comes without another word of the client, and then nothing more.
        for _ in 0..40 {
            self.turn_all()?;
            bytes = self.waiting(1);
        }
        if cut > bytes {
            return Ok(false);
        }
        self.hear(1, cut)?;
        self.break_link(1, "after a byte");
        Ok(true)
    }

    fn turn_all(&mut self) -> Checked {
        self.now_us += 500;
        for _ in 0..4 {
            self.move_bytes_up();
        }
        self.collect_answers()?;
        for index in 0..self.node.as_ref().map_or(0, |node| node.shards.len()) {
            self.turn(index)?;
        }
        Ok(())
    }

    fn waiting(&self, client: usize) -> usize {
        let (Some(link), Some(node)) = (self.links[client], &self.node) else { return 0 };
        node.shards[link.shard].doors.get(&link.connection).map_or(0, |door| door.out.len())
    }

    /// The client gets so many of the bytes that wait for it.
    fn hear(&mut self, client: usize, most: usize) -> Checked {
        let (Some(link), Some(node)) = (self.links[client], &mut self.node) else { return Ok(()) };
        let Some(door) = node.shards[link.shard].doors.get_mut(&link.connection) else { return Ok(()) };
        let (bytes, _) = door.take(most, &self.options.limits);
        let wall = self.now().wall_ms;
        self.clients[client].receive(&bytes, &mut self.oracle, &mut self.net, wall)
    }
}
