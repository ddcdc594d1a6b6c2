//! The end of a run: the faults stop, all comes to rest, and an auditor reads everything.

use super::*;
use crate::client::Role;
use crate::disk::Faults;
use crate::jobs::End;
use std::collections::{BTreeMap, BTreeSet};

/// Steps of the liveness phase in which nothing is delivered before the world counts as stuck: a reader with a credit of one
/// event takes its time.
const QUIET_STEPS_MAX: u64 = 200_000;

/// Steps of it however much is delivered: what goes round in a circle is no rest either.
const REST_STEPS_MAX: u64 = 5_000_000;

/// Steps as long as this: a second goes by in half of [`QUIET_STEPS_MAX`].
const TELLING_STEP_US_MIN: u64 = 10;

impl World {
    pub(super) fn come_to_rest(&mut self, when: &str) -> Checked {
        self.calm = true;
        self.disk.set_faults(Faults { delay_us: self.options.faults.delay_us, ..Faults::default() });
        self.disk.heal();
        self.disk.take_death();
        self.say(format_args!("calm"));
        let mut why = String::new();
        let (mut quiet, mut delivered) = (0, 0);
        for step in 1..=REST_STEPS_MAX {
            if quiet >= QUIET_STEPS_MAX {
                break;
            }
            self.step()?;
            quiet += 1;
            if step % 64 == 0 {
                match self.unrest() {
                    None => {
                        self.say(format_args!("rest {when}, after {step} steps"));
                        return Ok(());
                    }
                    Some(unrest) => why = unrest,
                }
                if self.frames > delivered {
                    (quiet, delivered) = (0, self.frames);
                }
            }
        }
        Err(format!("no rest {when}: {why}"))
    }

    fn unrest(&self) -> Option<String> {
        for (client, link) in self.clients.iter().zip(&self.links) {
            if let Some(why) = client.unrest(&self.oracle) {
                return Some(format!("{}: {why}", client.name()));
            }
            if !client.outgoing.is_empty() {
                return Some(format!("{} has bytes to send", client.name()));
            }
            let Some(link) = link else { continue };
            let door = self.node.as_ref().and_then(|n| n.shards[link.shard].doors.get(&link.connection));
            if door.is_some_and(|door| !door.out.is_empty() || door.has_input()) {
                return Some(format!("{} has bytes in its connection", client.name()));
            }
        }
        self.disagreement().or_else(|| self.untold_comings())
    }

    /// Once an auditor has read everything: a session's comings and goings that are not those of its log, where a member wants
    /// them.
    fn untold_comings(&self) -> Option<String> {
        let auditor = self.clients.get(self.options.roles.len())?;
        let torn = self.oracle.retention || self.oracle.damage;
        let in_parts = self.options.limits.event_bytes_max <= 256;
        // It is told once a second; where steps are shorter the world counts as stuck before that is over.
        let waits = self.options.step_us >= TELLING_STEP_US_MIN;
        for session in auditor.follows.keys() {
            let told = match self.oracle.journals.tells(session, torn, in_parts) {
                Ok(told) => told,
                Err(why) => return Some(why),
            };
            let present = self.oracle.board.present(session);
            let wants = |name: &String| {
                let role =
                    name.strip_prefix('c').and_then(|index| self.options.roles.get(index.parse::<usize>().ok()?));
                role.is_some_and(|role| role.logs.contains(session))
            };
            let is_in: BTreeSet<&str> = present.keys().map(String::as_str).collect();
            if waits && present.keys().any(wants) && told.as_ref() != Some(&is_in) {
                return Some(format!("the log of {session} says that in it are {told:?}, there are {is_in:?}"));
            }
        }
        None
    }

    /// Two who watch one session and believe different things, or a receipt that says less than was acknowledged.
    fn disagreement(&self) -> Option<String> {
        let mut known = BTreeMap::new();
        for client in &self.clients {
            for (session, believes) in client.believes() {
                let before = known.entry(session).or_insert(believes);
                if *before != believes {
                    return Some(format!("{}: of {session} some believe {before:?}, it {believes:?}", client.name()));
                }
            }
        }
        let due: BTreeMap<(String, &String), u64> = self
            .clients
            .iter()
            .flat_map(|client| client.receipts_due().map(|(session, next)| ((client.name(), session), next)))
            .collect();
        for (session, name, delivered) in self.clients.iter().flat_map(Client::believes_delivered) {
            if let Some(next) = due.get(&(name.clone(), session)).filter(|next| **next != delivered) {
                return Some(format!("{name} has acknowledged {session} below {next}, its receipt says {delivered}"));
            }
        }
        None
    }

    /// A client that was never there reads everything; then each follower is compared with it.
    pub(super) fn audit(&mut self) -> Checked {
        let mut sessions = self.oracle.names();
        sessions.extend(self.options.roles.iter().flat_map(|role| role.logs.iter().cloned()));
        sessions.sort_unstable();
        sessions.dedup();
        let index = self.clients.len();
        // Of streams too: each must have ended, whoever told it, and be there as a whole.
        let role = Role {
            follows: sessions.clone(),
            listens: self.oracle.streams.sessions(),
            bosses: self.oracle.jobs.sessions(),
            silent: true,
            ..Role::default()
        };
        self.clients.push(Client::new(index as u32, role));
        self.links.push(None);
        self.come_to_rest("at the audit")?;
        // A crash at rest must lose nothing either.
        if self.schedule.chance(500) {
            self.crash("at rest");
            self.boot()?;
            self.clients[index].audit(sessions);
            self.come_to_rest("at the second audit")?;
        }
        self.forget_node();
        let follows = std::mem::take(&mut self.clients[index].follows);
        for (session, follow) in &follows {
            if let Some((from, to)) = follow.damaged.first() {
                return Err(format!("{session}: {from}..{to} were not to be had after the disk was healed"));
            }
            let checked = self.oracle.audit(session, follow.first, &follow.events, &follow.gaps);
            checked.map_err(|why| format!("{why}\n{}", self.oracle.describe(session)))?;
        }
        self.oracle.jobs.audit()?;
        self.counts.add_many(WORLD, "entries, changes known", self.oracle.entries.changes());
        let ends = [(End::Done, "jobs done"), (End::Fallback, "jobs answered late"), (End::Dead, "jobs given up")];
        for (end, name) in ends {
            self.counts.add_many(WORLD, name, self.oracle.jobs.count(end));
        }
        self.counts.add_many(WORLD, "runs of a group", self.oracle.groups.count());
        self.counts.add_many(WORLD, "streams ended", self.oracle.streams.ends());
        self.counts.add_many(WORLD, "comings and goings in a log", self.oracle.journals.count());
        self.counts.add_many(WORLD, "events audited", follows.values().map(|f| f.events.len() as u64).sum());
        for client in &self.clients[..index] {
            for (session, follow) in &client.follows {
                // Nothing was ever sent into a session without an audit.
                let Some(audited) = follows.get(session) else { continue };
                let stopped = follow.stopped_at().unwrap_or(u64::MAX);
                let given_up = || follow.gaps.iter().chain(&follow.passed).copied().chain([(stopped, u64::MAX)]);
                let gone = |offset: u64| given_up().any(|(from, to)| (from..to).contains(&offset));
                let expected: Vec<_> =
                    audited.events.iter().filter(|(offset, _)| *offset >= follow.first && !gone(*offset)).collect();
                let got: Vec<_> = follow.events.iter().filter(|(offset, _)| *offset >= audited.first).collect();
                let got: Vec<_> = got.into_iter().filter(|(o, _)| audited.events.iter().any(|(a, _)| a == o)).collect();
                if expected != got {
                    return Err(format!(
                        "{} saw {} events of {session}, there are {}",
                        client.name(),
                        got.len(),
                        expected.len()
                    ));
                }
            }
            // A feed that damage met was told so, and not what it missed.
            let Some(feed) = client.feed.as_ref().filter(|feed| !feed.damaged) else { continue };
            if let Some(missing) = client.missing(feed, &self.oracle).filter(|_| !self.oracle.retention) {
                return Err(format!("{} (feed {:?}) missed {missing:?}", client.name(), client.role.patterns));
            }
        }
        Ok(())
    }
}
