//! What one shard has recorded since the control plane looked last. Swapped whole, so that nobody waits for anybody.
//!
//! ```text
//!   shard ── records ──► Recorder A ──┐ swap ┌──► Recorder B ── goes on recording
//!   look  ── empty Recorder B ────────┴──────┴──► Recorder A, to be added to the totals and cleared by nobody: it is dropped
//! ```

use super::{Histogram, Stage, Step};
use hashbrown::HashMap;
use shards::refusal::Refusal;
use std::hash::BuildHasherDefault;

/// Tenants with figures of their own between two looks; the others share the first place.
pub const TENANTS_MAX: usize = 64;
/// Name of the place that the others share. No tenant has it: names do not begin with `$`.
pub const REST: &str = "$rest";
/// Names are no longer than this.
const NAME_BYTES_MAX: usize = 128;
/// Codes of refusals begin here, and there are so many.
const CODES: std::ops::Range<u16> = 4000..4300;

/// One tenant's events.
#[derive(Clone, Debug)]
pub struct Tenant {
    /// Name.
    pub name: Box<str>,
    /// Events committed.
    pub events: u64,
    /// Bytes of their records.
    pub bytes: u64,
    /// From the moment an event's bytes were there to its delivery to the send queues.
    pub way: Histogram,
}

impl Tenant {
    /// One without events.
    pub fn named(name: &str) -> Self {
        Self { name: name.into(), events: 0, bytes: 0, way: Histogram::coarse() }
    }
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Recorder {
    /// By [`Stage`].
    pub stages: [Histogram; Stage::ALL.len()],
    /// By [`Step`], of turns that did something.
    pub steps: [Histogram; Step::ALL.len()],
    /// Such turns.
    pub turns: Histogram,
    /// Times a step took longer than its budget.
    pub stalls: [u64; Step::ALL.len()],
    /// In turns that did something, nanoseconds.
    pub busy_ns: u64,
    /// In turns that did nothing, and asleep.
    pub idle_ns: u64,
    /// Refusals given, by code.
    refusals: Box<[u64]>,
    tenants: Vec<Tenant>,
    by_name: HashMap<Box<str>, u16, BuildHasherDefault<Fx>>,
    last: u16,
}

/// A few multiplications: names come from tokens that the operator signs, and there are [`TENANTS_MAX`] at most.
#[derive(Default)]
struct Fx(u64);

impl std::hash::Hasher for Fx {
    fn finish(&self) -> u64 {
        self.0 ^ self.0 >> 29
    }
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.0 = (self.0.rotate_left(5) ^ u64::from_le_bytes(word)).wrapping_mul(0x517c_c1b7_2722_0a95);
        }
    }
}

impl Default for Recorder {
    fn default() -> Self {
        Self {
            stages: std::array::from_fn(|_| Histogram::fine()),
            steps: std::array::from_fn(|_| Histogram::fine()),
            turns: Histogram::fine(),
            stalls: [0; Step::ALL.len()],
            busy_ns: 0,
            idle_ns: 0,
            refusals: vec![0; CODES.len()].into(),
            tenants: vec![Tenant::named(REST)],
            by_name: HashMap::with_capacity_and_hasher(TENANTS_MAX, BuildHasherDefault::default()),
            last: 0,
        }
    }
}

/// Bytes of one at most.
pub const fn memory_bytes_max() -> usize {
    let (fine, coarse) = Histogram::memory_bytes();
    (Stage::ALL.len() + Step::ALL.len() + 1) * fine
        + (TENANTS_MAX + 1) * (coarse + 3 * NAME_BYTES_MAX)
        + CODES.end as usize * 8
}

impl Recorder {
    /// Place of a tenant, its own or that of the rest.
    #[inline]
    pub fn tenant(&mut self, name: &str) -> usize {
        let last = usize::from(self.last);
        if *self.tenants[last].name == *name {
            return last;
        }
        self.find(name)
    }

    fn find(&mut self, name: &str) -> usize {
        let place = match self.by_name.get(name) {
            Some(place) => *place,
            None if self.tenants.len() > TENANTS_MAX => 0,
            None => {
                let place = self.tenants.len() as u16;
                self.tenants.push(Tenant::named(name));
                self.by_name.insert(name.into(), place);
                place
            }
        };
        self.last = place;
        usize::from(place)
    }

    /// The tenant in a place.
    #[inline]
    pub fn tenant_mut(&mut self, place: usize) -> &mut Tenant {
        &mut self.tenants[place]
    }

    /// All tenants with figures; the first place holds the rest.
    pub fn tenants(&self) -> &[Tenant] {
        &self.tenants
    }

    /// A client was told no.
    pub fn refused(&mut self, refusal: Refusal) {
        if let Some(count) = self.refusals.get_mut(usize::from(refusal.code() - CODES.start)) {
            *count += 1;
        }
    }

    /// How often this no was said.
    pub fn refusals(&self, refusal: Refusal) -> u64 {
        self.refusals.get(usize::from(refusal.code() - CODES.start)).copied().unwrap_or_default()
    }

    /// Adds another one's figures; of tenants only where there is a place.
    pub fn add(&mut self, other: &Recorder) {
        for (mine, theirs) in self.stages.iter_mut().zip(&other.stages) {
            mine.add(theirs);
        }
        for (mine, theirs) in self.steps.iter_mut().zip(&other.steps) {
            mine.add(theirs);
        }
        self.turns.add(&other.turns);
        for (mine, theirs) in self.stalls.iter_mut().zip(other.stalls) {
            *mine += theirs;
        }
        for (mine, theirs) in self.refusals.iter_mut().zip(&other.refusals) {
            *mine += theirs;
        }
        self.busy_ns += other.busy_ns;
        self.idle_ns += other.idle_ns;
        for theirs in &other.tenants {
            let place = if &*theirs.name == REST { 0 } else { self.tenant(&theirs.name) };
            let mine = &mut self.tenants[place];
            mine.events += theirs.events;
            mine.bytes += theirs.bytes;
            mine.way.add(&theirs.way);
        }
    }

    /// Takes the figures of an earlier state of this one away.
    pub fn subtract(&mut self, earlier: &Recorder) {
        for (mine, theirs) in self.stages.iter_mut().zip(&earlier.stages) {
            mine.subtract(theirs);
        }
        for (mine, theirs) in self.steps.iter_mut().zip(&earlier.steps) {
            mine.subtract(theirs);
        }
        self.turns.subtract(&earlier.turns);
        for (mine, theirs) in self.stalls.iter_mut().zip(earlier.stalls) {
            *mine -= theirs;
        }
        for (mine, theirs) in self.refusals.iter_mut().zip(&earlier.refusals) {
            *mine -= theirs;
        }
        self.busy_ns -= earlier.busy_ns;
        self.idle_ns -= earlier.idle_ns;
        for (mine, theirs) in self.tenants.iter_mut().zip(&earlier.tenants) {
            mine.events -= theirs.events;
            mine.bytes -= theirs.bytes;
            mine.way.subtract(&theirs.way);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tenants_beyond_the_bound_share_a_place_and_none_is_lost() {
        let mut recorder = Recorder::default();
        for n in 0..3 * TENANTS_MAX {
            for _ in 0..2 {
                let place = recorder.tenant(&format!("tenant-{n}"));
                recorder.tenant_mut(place).events += 1;
            }
        }
        assert_eq!(recorder.tenants().len(), TENANTS_MAX + 1);
        assert_eq!(recorder.tenants()[0].events, 4 * TENANTS_MAX as u64, "the rest");
        assert!(recorder.tenants()[1..].iter().all(|tenant| tenant.events == 2));
        let mut sum = Recorder::default();
        let place = sum.tenant("another");
        sum.tenant_mut(place).events = 1;
        sum.add(&recorder);
        assert_eq!(sum.tenants().iter().map(|t| t.events).sum::<u64>(), 6 * TENANTS_MAX as u64 + 1);
        assert_eq!(sum.tenants()[0].events, 4 * TENANTS_MAX as u64 + 2, "one had no place left");
    }

    #[test]
    fn every_refusal_has_its_count() {
        let mut recorder = Recorder::default();
        Refusal::ALL.iter().for_each(|refusal| recorder.refused(*refusal));
        let earlier = recorder.clone();
        recorder.refused(Refusal::NoSpace);
        recorder.add(&earlier);
        recorder.subtract(&earlier);
        for refusal in Refusal::ALL {
            assert_eq!(recorder.refusals(*refusal), 1 + u64::from(*refusal == Refusal::NoSpace), "{refusal:?}");
        }
    }
}
