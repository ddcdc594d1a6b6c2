//! When a drain tells whom to leave, and when it closes whom. Only numbers: the reactor does it.
//!
//! ```text
//!   began          wave_us   wave_us                          ends                         deadline (drain_us_max)
//!     │ wave 1        │ wave 2  │ … last wave ── grace_us ──────►│ ── linger: last bytes go out ──►│
//!     ▼               ▼         ▼                                ▼                                 ▼
//!   told ─ grace_us ─► deaf ─ replies owed are sent ─► closed    nobody is open any more          cut off
//! ```
//! A wave is as large as is configured, or larger where the waves would not end in time. Everybody is asked to come back
//! after the end, each at a moment of its own, so that no more come in a second than a shard takes beside its work.

use shards::ids::{ConnectionId, ShardId};
use std::collections::VecDeque;

/// Bounds of a drain, of one shard.
#[derive(Clone, Copy, Debug)]
pub struct DrainLimits {
    /// From the order to the end of the last connection, microseconds.
    pub drain_us_max: u64,
    /// From one wave to the next, microseconds.
    pub wave_us: u64,
    /// Connections of a wave.
    pub wave_connections: usize,
    /// From being told to being closed, microseconds.
    pub grace_us: u64,
}

/// Reconnects that a shard is asked to take in a second: a fifth of the handshakes that a core manages.
const RECONNECTS_PER_S: u64 = 4000;
/// Even a few come at different times.
const SPREAD_MS_MIN: u64 = 100;
/// For the last bytes and the peers' close frames, where the deadline leaves so much.
const LINGER_US: u64 = 2_500_000;
/// The same where another process waits for the folder: bytes go on going out while the logs are closed, and what is not read
/// by then is read there, from the log.
const LINGER_TAKEN_OVER_US: u64 = 50_000;
/// From a second signal to the end of the last connection.
const HURRY_US_MAX: u64 = 500_000;

/// One drain of one shard.
#[derive(Debug)]
pub(super) struct Drain {
    limits: DrainLimits,
    shard: ShardId,
    deadline_us: u64,
    linger_us: u64,
    /// Connections of a wave of this drain.
    wave: usize,
    /// Of the wave that has begun, still to be told.
    wave_left: usize,
    next_wave_us: u64,
    /// Slot from which on connections have not been told.
    pub cursor: u32,
    /// Everybody was told.
    all_told: bool,
    ends_us: u64,
    spread_ms: u64,
    told: VecDeque<(u64, ConnectionId)>,
    /// Deaf; closed when they are owed nothing.
    leaving: VecDeque<ConnectionId>,
    /// Closed; their last bytes are on their way.
    parted: VecDeque<ConnectionId>,
    over_us: Option<u64>,
}

impl Drain {
    /// Begins with so many connections.
    pub fn new(limits: DrainLimits, shard: ShardId, connections: usize, taken_over: bool, now_us: u64) -> Self {
        let linger_us = if taken_over { LINGER_TAKEN_OVER_US } else { LINGER_US };
        let linger_us = linger_us.min(limits.drain_us_max / 4);
        let waves_us = limits.drain_us_max.saturating_sub(limits.grace_us + linger_us);
        let waves_max = (waves_us / limits.wave_us.max(1)).max(1);
        let wave = limits.wave_connections.max(connections.div_ceil(waves_max as usize)).max(1);
        let waves = connections.div_ceil(wave) as u64;
        let grace_us = limits.grace_us.min(limits.drain_us_max.saturating_sub(linger_us));
        Self {
            limits: DrainLimits { grace_us, ..limits },
            shard,
            deadline_us: now_us + limits.drain_us_max,
            linger_us,
            wave,
            wave_left: wave,
            next_wave_us: now_us + limits.wave_us,
            cursor: 0,
            all_told: connections == 0,
            ends_us: now_us + waves.saturating_sub(1) * limits.wave_us + grace_us,
            spread_ms: (connections as u64 * 1000 / RECONNECTS_PER_S).max(SPREAD_MS_MIN),
            told: VecDeque::new(),
            leaving: VecDeque::new(),
            parted: VecDeque::new(),
            over_us: None,
        }
    }

    /// Everybody is told and closed at once.
    pub fn hurry(&mut self, now_us: u64) {
        self.wave = usize::MAX;
        self.wave_left = usize::MAX;
        self.limits.grace_us = 0;
        self.told.iter_mut().for_each(|(leave_us, _)| *leave_us = now_us);
        self.ends_us = now_us;
        self.linger_us = self.linger_us.min(HURRY_US_MAX / 2);
        self.deadline_us = self.deadline_us.min(now_us + HURRY_US_MAX);
    }

    /// Nobody more is told: the server stays. Those who were told are still closed.
    pub fn stay(&mut self) {
        self.all_told = true;
    }

    /// How many are to be told now.
    pub fn due(&mut self, now_us: u64) -> usize {
        if self.all_told {
            return 0;
        }
        if self.wave_left == 0 && now_us >= self.next_wave_us {
            self.wave_left = self.wave;
            self.next_wave_us = now_us + self.limits.wave_us;
        }
        self.wave_left
    }

    /// These were told; fewer than `asked` means that there are no more.
    pub fn have_told(&mut self, those: impl ExactSizeIterator<Item = ConnectionId>, asked: usize, now_us: u64) {
        self.all_told = those.len() < asked;
        self.wave_left = self.wave_left.saturating_sub(those.len());
        let leave_us = now_us + self.limits.grace_us;
        for id in those {
            self.cursor = id.slot + 1;
            self.told.push_back((leave_us, id));
        }
    }

    /// When this connection is asked to come back, milliseconds from now.
    pub fn reconnect_after_ms(&self, id: ConnectionId, now_us: u64) -> u64 {
        let mixed = (id.slot ^ id.generation.rotate_left(16)).wrapping_add(u32::from(self.shard.0) << 24);
        let mixed = u64::from(mixed.wrapping_mul(0x9e37_79b9));
        self.ends_us.saturating_sub(now_us).div_ceil(1000) + ((mixed * self.spread_ms) >> 32)
    }

    /// When whoever comes now is asked to come back, seconds.
    pub fn retry_after_s(&self, now_us: u64) -> u32 {
        (self.ends_us.saturating_sub(now_us) / 1_000_000) as u32 + 1
    }

    /// The next one whose grace has ended: it is deaf from now on.
    pub fn next_deaf(&mut self, now_us: u64) -> Option<ConnectionId> {
        let (leave_us, id) = *self.told.front()?;
        if leave_us > now_us {
            return None;
        }
        self.told.pop_front();
        self.leaving.push_back(id);
        Some(id)
    }

    /// Those that are deaf: each is to be looked at once in a turn, and given back if it is still owed something.
    pub fn leaving(&mut self) -> &mut VecDeque<ConnectionId> {
        &mut self.leaving
    }

    /// Debts are not waited for any more.
    pub fn is_late(&self, now_us: u64) -> bool {
        now_us + self.linger_us >= self.deadline_us
    }

    /// Everybody was told and closed, or is gone.
    pub fn is_over(&self) -> bool {
        self.all_told && self.told.is_empty() && self.leaving.is_empty()
    }

    /// Since when it has been over, noticed by the first call after it was.
    pub fn over_since_us(&mut self, now_us: u64) -> Option<u64> {
        if self.is_over() && self.over_us.is_none() {
            self.over_us = Some(now_us);
        }
        self.over_us
    }

    /// A connection was closed: its socket is there for a while.
    pub fn parted(&mut self, id: ConnectionId) {
        self.parted.push_back(id);
    }

    /// Are the sockets of all that were closed gone? Asks after up to `most` of them.
    pub fn all_parted(&mut self, most: usize, is_there: impl Fn(ConnectionId) -> bool) -> bool {
        for _ in 0..self.parted.len().min(most) {
            if let Some(id) = self.parted.pop_front().filter(|id| is_there(*id)) {
                self.parted.push_back(id);
            }
        }
        self.parted.is_empty()
    }

    /// What is still there then is cut off.
    pub fn end_us(&self) -> u64 {
        self.over_us.map_or(self.deadline_us, |over_us| self.deadline_us.min(over_us + self.linger_us))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::{BTreeMap, HashSet};

    const LIMITS: DrainLimits =
        DrainLimits { drain_us_max: 10_000_000, wave_us: 100_000, wave_connections: 1000, grace_us: 500_000 };

    /// Runs a drain of connections that never leave by themselves: when each was told, closed, and when it was over.
    fn run(limits: DrainLimits, connections: u32, taken_over: bool) -> (BTreeMap<u32, u64>, BTreeMap<u32, u64>, u64) {
        let mut drain = Drain::new(limits, ShardId(0), connections as usize, taken_over, 0);
        let (mut told, mut closed) = (BTreeMap::new(), BTreeMap::new());
        let mut now_us = 0;
        loop {
            let due = drain.due(now_us).min(512);
            if due > 0 {
                let those: Vec<ConnectionId> =
                    (drain.cursor..connections).take(due).map(|slot| ConnectionId { slot, generation: 1 }).collect();
                for id in &those {
                    let back_ms = drain.reconnect_after_ms(*id, now_us);
                    assert!(now_us + back_ms * 1000 >= drain.ends_us, "nobody is asked to come before the end");
                    assert!(told.insert(id.slot, now_us).is_none(), "told once");
                }
                drain.have_told(those.into_iter(), due, now_us);
            }
            while let Some(id) = drain.next_deaf(now_us) {
                assert_eq!(drain.leaving().pop_back(), Some(id));
                assert!(closed.insert(id.slot, now_us).is_none(), "closed once");
            }
            if drain.over_since_us(now_us).is_some() {
                return (told, closed, now_us);
            }
            assert!(now_us < limits.drain_us_max, "it has a bound");
            now_us += 1000;
        }
    }

    #[test]
    fn everybody_is_told_once_has_its_grace_and_all_ends_in_time() {
        for (connections, within_us) in [(0, 0), (1, 510_000), (1000, 510_000), (1001, 620_000), (50_000, 9_800_000)] {
            let (told, closed, over_us) = run(LIMITS, connections, true);
            assert_eq!((told.len(), closed.len()), (connections as usize, connections as usize));
            for (slot, told_us) in &told {
                assert_eq!(closed[slot], told_us + LIMITS.grace_us);
            }
            assert!(over_us <= within_us, "{connections}: {over_us}");
        }
    }

    #[test]
    fn waves_grow_where_time_is_short_and_a_bound_of_nothing_closes_at_once() {
        let short = DrainLimits { drain_us_max: 1_000_000, ..LIMITS };
        let (told, _, over_us) = run(short, 50_000, false);
        assert!(over_us <= 800_000, "{over_us}");
        let waves: HashSet<u64> = told.values().map(|us| us / 100_000).collect();
        assert!(waves.len() >= 2, "still in waves");
        let (_, _, over_us) = run(DrainLimits { drain_us_max: 1, ..LIMITS }, 400, false);
        assert!(over_us <= 1000, "{over_us}");
    }

    #[test]
    fn they_are_asked_to_come_back_at_moments_of_their_own() {
        let drain = Drain::new(LIMITS, ShardId(1), 20_000, true, 0);
        let mut in_slice: BTreeMap<u64, u32> = BTreeMap::new();
        for slot in 0..20_000 {
            let back_ms = drain.reconnect_after_ms(ConnectionId { slot, generation: 1 }, 0);
            *in_slice.entry(back_ms / 100).or_default() += 1;
        }
        assert!(in_slice.len() >= 50, "spread over five seconds: {}", in_slice.len());
        assert!(in_slice.values().all(|count| *count <= 600), "no storm: {in_slice:?}");
    }

    #[test]
    fn a_hurry_and_a_change_of_mind_end_it_early() {
        let mut drain = Drain::new(LIMITS, ShardId(0), 50_000, false, 0);
        let first = ConnectionId { slot: 0, generation: 1 };
        assert_eq!(drain.due(0), 1000);
        drain.have_told([first].into_iter(), 1, 0);
        assert_eq!(drain.next_deaf(10), None);
        drain.hurry(10);
        assert_eq!(drain.next_deaf(10), Some(first));
        assert!(drain.due(10) > 50_000 && drain.end_us() <= 10 + HURRY_US_MAX);

        let mut drain = Drain::new(LIMITS, ShardId(0), 50_000, true, 0);
        drain.have_told([first].into_iter(), 1, 0);
        drain.stay();
        assert_eq!(drain.due(LIMITS.wave_us), 0);
        assert!(!drain.is_over(), "who was told is still closed");
        assert_eq!(drain.next_deaf(LIMITS.grace_us), Some(first));
    }
}
