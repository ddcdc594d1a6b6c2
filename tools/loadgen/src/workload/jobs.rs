//! `jobs`: producers ask for work, workers take it and say that it is done. `deadlines`: nobody works, and the server answers.
//!
//! ```text
//!   jobs        p0 … pn ─► queue ─► w0 … wm ─► done        --rate R: open loop   no rate: each producer has `window` unacknowledged
//!   deadlines   p0 … pn ─► queue ─┬─ nobody
//!                                 └─ deadline of each ─► listener       how late it is, and what it costs
//! ```
//! A job counts as done when the server says that it is gone. Every job must be taken by one worker, once, and be gone at the end.

use super::placing::places;
use super::{costs, merge};
use crate::engine::{Engine, Handler};
use crate::measure::{Lag, Latency, Reading};
use crate::peer::Peer;
use crate::peer::work::{BATCH, Heard, Seat, Side, Work};
use crate::stamp::Stamp;
use serde_json::{Value, json};
use std::io;
use std::time::{SystemTime, UNIX_EPOCH};

/// A producer whose own sends are this late cannot speak about latency.
const LAG_P99_US_MAX: f64 = 1_000.0;
/// Saturation: so many jobs may be open, twice of what eight workers hold: beyond it the workers are what limits the result, and
/// what was asked for long ago has to be read from disk.
const OPEN_MAX: u64 = 4096;
/// Saturation: a worker says what is done half a batch at a time, and no later than after so long.
const DONE_WITHIN_NS: u64 = 1_000_000;
/// Patience with what is still to come when all was said.
const PATIENCE_NS: u64 = 30_000_000_000;

/// What is to be done.
pub struct Jobs<'a> {
    pub producers: u32,
    pub workers: u32,
    /// Sessions of all producers together, at least one each: a session takes some two hundred open jobs.
    pub sessions: u32,
    /// Bytes of data of each job.
    pub bytes: usize,
    /// Jobs per second over all producers; `None`: saturation.
    pub rate: Option<f64>,
    /// Saturation: unacknowledged jobs of a producer; refilled when half of them are missing.
    pub window: u64,
    pub warm_s: f64,
    pub measure_s: f64,
    /// Jobs live on one shard, and workers on another one.
    pub cross: bool,
    /// Instead of measuring work: so many jobs that nobody does, each with this deadline.
    pub left: Option<(u64, u64)>,
    pub prefix: &'a str,
    pub server: Option<u32>,
}

#[derive(Default)]
struct Lane {
    seat: usize,
    sent: u64,
    acknowledged: u64,
    /// Of each job: whether a worker has it.
    taken: Vec<bool>,
    /// (intended, actual) of each job that waits for its acknowledgement begins here.
    times: std::collections::VecDeque<(u64, u64)>,
}

struct Run<'a> {
    work: &'a mut dyn Work,
    first: usize,
    seats: Vec<Seat>,
    lanes: Vec<Lane>,
    ready: usize,
    /// Seats that owe the server something, and since when.
    owing: Vec<(usize, u64)>,
    measured: std::ops::Range<u64>,
    ack: Latency,
    claim: Latency,
    /// How late the server was by its own clock, and when it was heard of.
    fired: Latency,
    late: Latency,
    deadline_ms: u64,
    /// Unix time of the engine's start, µs.
    epoch_us: u64,
    taken: u64,
    ended: u64,
    ended_measured: u64,
    given_up: u64,
    /// Between the first and the last job that was answered by the server.
    answered: Option<(u64, u64)>,
    errors: Vec<String>,
    error_count: u64,
}

impl Run<'_> {
    fn error(&mut self, why: String) {
        self.error_count += 1;
        if self.errors.len() < 5 {
            self.errors.push(why);
        }
    }

    fn job(&mut self, stamp: Stamp, now: u64) {
        let Stamp { intended, actual, lane, number } = stamp;
        let once = self.lanes.get_mut(lane as usize).and_then(|lane| lane.taken.get_mut(number as usize));
        match once {
            Some(taken) if !*taken => *taken = true,
            _ => return self.error(format!("job {number} of lane {lane} came twice, or was never asked for")),
        }
        self.taken += 1;
        if self.measured.contains(&intended) {
            self.claim.record(intended, actual, now);
        }
    }

    fn note(&mut self, at: usize, now: u64, note: Heard) {
        match (note, self.seats[at].side) {
            (Heard::Ready, _) => self.ready += 1,
            (Heard::Enqueued, Side::Producer(lane)) => {
                let lane = &mut self.lanes[lane as usize];
                lane.acknowledged += 1;
                match lane.times.pop_front() {
                    Some((intended, actual)) if self.measured.contains(&intended) => {
                        self.ack.record(intended, actual, now)
                    }
                    Some(_) => {}
                    None => self.error("an acknowledgement that nobody waits for".into()),
                }
            }
            (Heard::Job(stamp), Side::Worker(_)) => self.job(stamp, now),
            (Heard::Ended, Side::Worker(_)) => {
                self.ended += 1;
                self.ended_measured += u64::from(self.measured.contains(&now));
            }
            (Heard::GivenUp { began, fired }, Side::Listener) => {
                let due_ms = began + self.deadline_ms;
                let (due, heard) = (due_ms * 1_000_000, (self.epoch_us + now / 1000) * 1000);
                self.fired.record(due, due, fired * 1_000_000);
                self.late.record(due, due, heard);
                if fired < due_ms {
                    self.error(format!("answered {} ms before its deadline", due_ms - fired));
                }
                self.given_up += 1;
                self.answered = Some((self.answered.map_or(now, |(first, _)| first), now));
            }
            (Heard::Error(why), _) => self.error(why),
            (note, side) => self.error(format!("{side:?} heard {note:?}")),
        }
    }

    fn ask(&mut self, load: &Jobs<'_>, lane: u32, intended: u64, actual: u64) {
        let one = &mut self.lanes[lane as usize];
        let stamp = Stamp { intended, actual, lane, number: one.sent as u32 };
        one.sent += 1;
        one.taken.push(false);
        one.times.push_back((intended, actual));
        let (at, owed) = (one.seat, self.seats[one.seat].owes());
        self.work.enqueue(&mut self.seats[at], stamp, load.bytes);
        if !owed {
            self.owing.push((at, actual));
        }
    }

    /// Hands over what is owed; `patient`: what workers owe is gathered first. True where something is still owed.
    fn hand_over(&mut self, engine: &mut Engine, patient: bool) -> bool {
        let now = engine.now();
        let (seats, work, first) = (&mut self.seats, &self.work, self.first);
        self.owing.retain(|(at, since)| {
            let seat = &mut seats[*at];
            let gathers = matches!(seat.side, Side::Worker(_)) && seat.gathered() < BATCH / 2;
            if patient && gathers && now - since < DONE_WITHIN_NS {
                return true;
            }
            if seat.owes() {
                work.flush(seat, engine.out(first + at));
            }
            false
        });
        !self.owing.is_empty()
    }

    /// Refills producers: by halves of their windows, so that it is not a trickle that decides what the server may merge.
    fn refill(&mut self, load: &Jobs<'_>, sent: &mut u64, now: u64) {
        for lane in 0..load.producers {
            let one = &self.lanes[lane as usize];
            let room = load.window - (one.sent - one.acknowledged).min(load.window);
            if room < load.window.div_ceil(2) || *sent - self.ended > OPEN_MAX {
                continue;
            }
            for _ in 0..room.min(BATCH as u64) {
                self.ask(load, lane, now, now);
                *sent += 1;
            }
        }
    }
}

impl Handler for Run<'_> {
    fn opened(&mut self, connection: usize, out: &mut Vec<u8>) {
        self.work.opened(&self.seats[connection - self.first], out);
    }

    fn received(&mut self, connection: usize, now: u64, bytes: &[u8], out: &mut Vec<u8>) -> usize {
        let at = connection - self.first;
        let (mut notes, owed) = (Vec::new(), self.seats[at].owes());
        let taken = self.work.receive(&mut self.seats[at], bytes, out, &mut |note| notes.push(note));
        if !owed && self.seats[at].owes() {
            self.owing.push((at, now));
        }
        notes.into_iter().for_each(|note| self.note(at, now, note));
        taken
    }

    fn lost(&mut self, connection: usize, why: String) {
        self.error(format!("connection {connection} lost: {why}"));
    }
}

/// Connections of a kind: what each is for, its sessions, and the session that says where it is to live.
type Wanted = (Side, Vec<String>, String);

/// Opens these connections, and waits until all of them are ready.
fn open(engine: &mut Engine, run: &mut Run<'_>, wanted: Vec<Wanted>) -> io::Result<()> {
    let (all, began) = (run.ready + wanted.len(), engine.now());
    for (side, sessions, place) in wanted {
        let path = run.work.path(side, &place);
        let connection = engine.open(path)?;
        if let Side::Producer(lane) = side {
            run.lanes[lane as usize].seat = connection - run.first;
        }
        run.seats.push(Seat::new(side, sessions));
    }
    while run.ready < all {
        engine.step(run, 50_000_000);
        if run.error_count > 0 || engine.now() - began > PATIENCE_NS {
            let first = run.errors.first().cloned().unwrap_or_else(|| "nothing more came".into());
            return Err(io::Error::other(format!("{} of {all} connections ready, then: {first}", run.ready)));
        }
    }
    Ok(())
}

/// Sessions, and what places the workers: on another shard, where that is asked for.
fn placed(engine: &mut Engine, peer: &mut dyn Peer, load: &Jobs<'_>) -> io::Result<(Vec<String>, String)> {
    let count = load.sessions.max(load.producers);
    let names = |count: u32| (0..count).map(|n| format!("{}-{n}", load.prefix)).collect::<Vec<_>>();
    if !load.cross {
        let sessions = names(count);
        let place = sessions.first().cloned().unwrap_or_default();
        return Ok((sessions, place));
    }
    // Who is sent to the same place lives on the same shard.
    let candidates = names(4 * count + 16);
    let (places, _) = places(engine, peer, &candidates, 1.0)?;
    let place = places.first().cloned().unwrap_or_default();
    let together = candidates.into_iter().zip(&places).filter(|(_, other)| **other == place);
    let sessions: Vec<String> = together.map(|(session, _)| session).take(count as usize).collect();
    if sessions.len() < count as usize || sessions.contains(&place) {
        return Err(io::Error::other("jobs cross from one shard to another: start the server with two"));
    }
    Ok((sessions, place))
}

/// Runs the load and reports it.
pub fn run(engine: &mut Engine, peer: &mut dyn Peer, work: &mut dyn Work, load: &Jobs<'_>) -> io::Result<Value> {
    work.prepare()?;
    let (sessions, place) = placed(engine, peer, load)?;
    let mut run = Run {
        work,
        first: engine.len(),
        seats: Vec::new(),
        lanes: (0..load.producers).map(|_| Lane::default()).collect(),
        ready: 0,
        owing: Vec::new(),
        measured: u64::MAX..u64::MAX,
        ack: Latency::new(),
        claim: Latency::new(),
        fired: Latency::new(),
        late: Latency::new(),
        deadline_ms: load.left.map_or(0, |(_, deadline_ms)| deadline_ms),
        epoch_us: 0,
        taken: 0,
        ended: 0,
        ended_measured: 0,
        given_up: 0,
        answered: None,
        errors: Vec::new(),
        error_count: 0,
    };
    run.epoch_us = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_micros() as u64);
    run.epoch_us -= engine.now() / 1000;
    let others = match load.left {
        Some(_) => vec![Side::Listener],
        None => (0..load.workers).map(Side::Worker).collect(),
    };
    // The queue stands before the first job.
    let at = |side| (side, Vec::new(), place.clone());
    open(engine, &mut run, others.into_iter().map(at).collect())?;
    let own = |lane: u32| {
        let mine: Vec<String> = sessions.iter().skip(lane as usize).step_by(load.producers as usize).cloned().collect();
        let place = mine[0].clone();
        (Side::Producer(lane), mine, place)
    };
    open(engine, &mut run, (0..load.producers).map(own).collect())?;
    match load.left {
        Some((count, _)) => leave(engine, &mut run, load, count),
        None => measure(engine, &mut run, load),
    }
}

fn measure(engine: &mut Engine, run: &mut Run<'_>, load: &Jobs<'_>) -> io::Result<Value> {
    engine.set_punctual(load.rate.is_some());
    let start = engine.now();
    let from = start + (load.warm_s * 1e9) as u64;
    let to = from + (load.measure_s * 1e9) as u64;
    run.measured = from..to;
    let (mut lag, mut sent, mut readings) = (Lag::new(), 0u64, Vec::<Reading>::new());
    loop {
        let now = engine.now();
        if readings.len() < 2 && now >= if readings.is_empty() { from } else { to } {
            readings.push(Reading::take(now, load.server));
        }
        if now >= to || run.error_count > 1000 {
            break;
        }
        let wait = match load.rate {
            Some(rate) => on_schedule(engine, run, load, start, rate, (&mut sent, u64::MAX), &mut lag),
            None => {
                run.refill(load, &mut sent, now);
                20_000_000
            }
        };
        let gathering = run.hand_over(engine, load.rate.is_none());
        engine.step(run, if gathering { wait.min(DONE_WITHIN_NS / 4) } else { wait });
    }
    readings.resize_with(2, || Reading::take(engine.now(), load.server));
    let finished = engine.now();
    while run.ended < sent && engine.now() - finished < PATIENCE_NS && run.error_count <= 1000 {
        run.hand_over(engine, false);
        engine.step(run, 5_000_000);
    }
    let mut invalid = faults(run, &lag);
    if run.taken != sent || run.ended != sent {
        invalid.push(format!("{sent} jobs, {} taken, {} ended", run.taken, run.ended));
    }
    let (seconds, _, _) = readings[1].since(&readings[0]);
    let server_us = readings[1].server_ns.saturating_sub(readings[0].server_ns) as f64 / 1000.0;
    let report = json!({
        "mode": if load.rate.is_some() { "open" } else { "saturation" },
        "jobs": sent,
        "jobs_per_s": run.ended_measured as f64 / seconds,
        "server_us_per_job": server_us / run.ended_measured.max(1) as f64,
        "ack": run.ack.report(),
        "claim": run.claim.report(),
        "lag": lag.report(),
        "valid": invalid.is_empty(),
        "invalid": invalid,
    });
    Ok(merge(report, costs(&readings[0], &readings[1], load.server)))
}

fn faults(run: &Run<'_>, lag: &Lag) -> Vec<String> {
    let mut invalid = Vec::new();
    if lag.p99_us() > LAG_P99_US_MAX {
        invalid.push(format!("the generator lagged: p99 {:.0} µs behind its schedule", lag.p99_us()));
    }
    if run.error_count > 0 {
        invalid.push(format!("{} errors, first: {}", run.error_count, run.errors[0]));
    }
    invalid
}

/// Sends what is due, in turn for all producers; how long there is nothing more to send.
fn on_schedule(
    engine: &Engine,
    run: &mut Run<'_>,
    load: &Jobs<'_>,
    start: u64,
    rate: f64,
    (sent, count): (&mut u64, u64),
    lag: &mut Lag,
) -> u64 {
    let due = |n: u64| start + (n as f64 * 1e9 / rate) as u64;
    let now = engine.now();
    let mut batch = 0;
    while due(*sent) <= now && *sent < count && batch < BATCH * load.producers as usize {
        if run.measured.contains(&due(*sent)) {
            lag.record(due(*sent), now);
        }
        run.ask(load, (*sent % u64::from(load.producers)) as u32, due(*sent), now);
        (*sent, batch) = (*sent + 1, batch + 1);
    }
    due(*sent).saturating_sub(engine.now()).min(20_000_000)
}

/// Jobs that nobody does: all are asked for before the first of them is due, and the server answers each.
fn leave(engine: &mut Engine, run: &mut Run<'_>, load: &Jobs<'_>, count: u64) -> io::Result<Value> {
    engine.set_punctual(true);
    let start = engine.now();
    run.measured = start..u64::MAX;
    let (mut lag, mut sent) = (Lag::new(), 0);
    let rate = load.rate.unwrap_or(10_000.0);
    let patience = start + (count as f64 * 1e9 / rate) as u64 + run.deadline_ms * 1_000_000 + PATIENCE_NS;
    let acknowledged = |run: &Run<'_>| run.lanes.iter().map(|lane| lane.acknowledged).sum::<u64>();
    let mut all_open = None;
    let mut before = None;
    while run.given_up < count && engine.now() < patience && run.error_count <= 1000 {
        let wait = match sent < count {
            true => on_schedule(engine, run, load, start, rate, (&mut sent, count), &mut lag),
            false => 1_000_000,
        };
        run.hand_over(engine, false);
        engine.step(run, wait);
        if all_open.is_none() && acknowledged(run) == count {
            all_open = Some(run.given_up == 0);
        }
        if before.is_none() && all_open.is_some() {
            before = Some(Reading::take(engine.now(), load.server));
        }
    }
    let after = Reading::take(engine.now(), load.server);
    let before = before.unwrap_or_else(|| after.clone());
    let mut invalid = faults(run, &lag);
    if run.given_up != count {
        invalid.push(format!(
            "{sent} jobs, {} acknowledged, {} answered by the server",
            acknowledged(run),
            run.given_up
        ));
    }
    if all_open != Some(true) {
        invalid.push("the first deadline came before the last job: give a longer deadline, or a higher rate".into());
    }
    let server_us = after.server_ns.saturating_sub(before.server_ns) as f64 / 1000.0;
    let (first, last) = run.answered.unwrap_or_default();
    let report = json!({
        "jobs": count,
        "deadline_ms": run.deadline_ms,
        // Idle turns between the last job and the first deadline included.
        "server_us_per_deadline": server_us / count.max(1) as f64,
        "deadlines_per_s": count as f64 / ((last - first).max(1) as f64 / 1e9),
        "ack": run.ack.report(),
        "fired": run.fired.report(),
        "late": run.late.report(),
        "lag": lag.report(),
        "valid": invalid.is_empty(),
        "invalid": invalid,
    });
    Ok(merge(report, costs(&before, &after, load.server)))
}
