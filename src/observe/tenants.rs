//! Figures of tenants: of some by name, of the others together, however many there are.
//!
//! ```text
//!   a name ─► its place           1 … 64
//!          ─► none free: every 61st time the least busy one's, whose figures go to the rest
//!          ─► place 0, `$rest`
//! ```
//! Whoever takes a place takes the rank of the one who had it, too: who is busy stays, and newcomers push each other out. So whoever
//! has more than a few hundredths of a shard's events is sure to be named.

use super::Histogram;
use hashbrown::HashMap;
use std::hash::BuildHasherDefault;

/// Tenants with figures of their own; the others share the first place.
pub const TENANTS_MAX: usize = 64;
/// Name of the place that the others share. No tenant has it: names do not begin with `$`.
pub const REST: &str = "$rest";
/// Names are no longer than this.
const NAME_BYTES_MAX: usize = 128;
/// One in so many of those who find no place gets one. A prime: tenants that take turns all have their chance.
const MISSES_PER_PLACE: u32 = 61;

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
    /// Rank of those who had the place before.
    inherited: u64,
}

impl Tenant {
    /// One without events.
    pub fn named(name: &str) -> Self {
        Self { name: name.into(), events: 0, bytes: 0, way: Histogram::coarse(), inherited: 0 }
    }

    /// Adds another one's events.
    pub fn add(&mut self, other: &Tenant) {
        self.events += other.events;
        self.bytes += other.bytes;
        self.way.add(&other.way);
    }

    /// Takes the figures of an earlier state of this one away.
    pub fn subtract(&mut self, earlier: &Tenant) {
        self.events -= earlier.events;
        self.bytes -= earlier.bytes;
        self.way.subtract(&earlier.way);
    }
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

/// Where a tenant's figures go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    /// See [`Tenants::at`].
    pub number: usize,
    /// Another tenant had it until now, and its figures are in place 0.
    pub taken: bool,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Tenants {
    list: Vec<Tenant>,
    by_name: HashMap<Box<str>, u16, BuildHasherDefault<Fx>>,
    last: u16,
    misses: u32,
}

impl Default for Tenants {
    fn default() -> Self {
        Self {
            list: vec![Tenant::named(REST)],
            by_name: HashMap::with_capacity_and_hasher(TENANTS_MAX, BuildHasherDefault::default()),
            last: 0,
            misses: 0,
        }
    }
}

/// Bytes that all of them hold at most.
pub const fn memory_bytes_max() -> usize {
    (TENANTS_MAX + 1) * (Histogram::memory_bytes().1 + 3 * NAME_BYTES_MAX)
}

impl Tenants {
    /// Place of a tenant: its own, or that of the rest.
    #[inline]
    pub fn place(&mut self, name: &str) -> Place {
        let last = usize::from(self.last);
        if *self.list[last].name == *name {
            return Place { number: last, taken: false };
        }
        self.find(name)
    }

    fn find(&mut self, name: &str) -> Place {
        let mut taken = false;
        let number = match self.by_name.get(name) {
            Some(place) => *place,
            None if self.list.len() <= TENANTS_MAX => {
                let place = self.list.len() as u16;
                self.list.push(Tenant::named(name));
                self.by_name.insert(name.into(), place);
                place
            }
            None => {
                self.misses += 1;
                taken = self.misses >= MISSES_PER_PLACE;
                if taken { self.take_place(name) } else { 0 }
            }
        };
        self.last = number;
        Place { number: usize::from(number), taken }
    }

    #[cold]
    fn take_place(&mut self, name: &str) -> u16 {
        self.misses = 0;
        let (rest, named) = self.list.split_at_mut(1);
        let least = named.iter_mut().enumerate().min_by_key(|(_, tenant)| tenant.inherited + tenant.events);
        let Some((number, tenant)) = least else { return 0 };
        rest[0].add(tenant);
        self.by_name.remove(&tenant.name);
        let number = number as u16 + 1;
        self.by_name.insert(name.into(), number);
        tenant.inherited += tenant.events;
        tenant.name = name.into();
        (tenant.events, tenant.bytes) = (0, 0);
        tenant.way.clear();
        number
    }

    /// The tenant in a place.
    #[inline]
    pub fn at(&mut self, number: usize) -> &mut Tenant {
        &mut self.list[number]
    }

    /// All with figures; the first holds the rest.
    pub fn all(&self) -> &[Tenant] {
        &self.list
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(tenants: &mut Tenants, name: &str) -> Place {
        let place = tenants.place(name);
        tenants.at(place.number).events += 1;
        place
    }

    #[test]
    fn tenants_beyond_the_bound_share_a_place_and_no_event_is_lost() {
        let mut tenants = Tenants::default();
        for n in 0..30 * TENANTS_MAX {
            (0..2).for_each(|_| assert!(event(&mut tenants, &format!("tenant-{n}")).number <= TENANTS_MAX));
        }
        assert_eq!((tenants.all().len(), tenants.by_name.len()), (TENANTS_MAX + 1, TENANTS_MAX));
        assert_eq!(tenants.all().iter().map(|tenant| tenant.events).sum::<u64>(), 60 * TENANTS_MAX as u64);
        for (name, number) in &tenants.by_name {
            assert_eq!(*tenants.list[usize::from(*number)].name, **name);
        }
    }

    #[test]
    fn whoever_is_busy_is_named_though_it_came_last() {
        let mut tenants = Tenants::default();
        // So that every place is taken by somebody who had many.
        for n in 0..TENANTS_MAX {
            (0..500).for_each(|_| assert!(!event(&mut tenants, &format!("early-{n}")).taken));
        }
        for n in 0..40_000 {
            let many = format!("many-{}", n % 10_007);
            event(&mut tenants, if n % 8 == 0 { "busy" } else { &many });
        }
        let busy = tenants.all().iter().find(|tenant| &*tenant.name == "busy").expect("an eighth of all events");
        assert!(busy.events > 2_500, "{}", busy.events);
    }
}
