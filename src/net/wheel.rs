//! When to look at a connection again: one timing wheel per shard, one entry per connection.
//!
//! ```text
//!   slots   now ►[ 3 ⇄ 17 ][ ][ 4 ] … [ 9 ]      512 slots of 65 ms: about 33 s ahead
//!   links   connection slot → previous, next, wheel slot          12 bytes each, made at boot
//! ```
//! An entry says when to *look*, not what is due: traffic moves a deadline thousands of times for each time it
//! fires, so the deadline lives in the connection and the entry is set again when it comes up early.

/// Microseconds of a wheel slot.
pub const TICK_US: u64 = 1 << 16;
const SLOTS: usize = 512;
const NONE: u32 = u32::MAX;

#[derive(Clone, Copy)]
struct Link {
    previous: u32,
    next: u32,
    /// Wheel slot, or `NONE` where the connection has no entry.
    at: u32,
}

/// One per shard, touched only by its thread.
pub struct Wheel {
    heads: Box<[u32; SLOTS]>,
    links: Vec<Link>,
    /// Next tick to be looked at.
    tick: u64,
    entries: usize,
}

impl Wheel {
    /// For connection slots `0..connections`.
    pub fn new(connections: usize, now_us: u64) -> Self {
        Self {
            heads: Box::new([NONE; SLOTS]),
            links: vec![Link { previous: NONE, next: NONE, at: NONE }; connections],
            tick: now_us / TICK_US,
            entries: 0,
        }
    }

    /// Looks at `slot` again at `at_us`, or at the wheel's horizon where that is earlier. Replaces its entry.
    pub fn set(&mut self, slot: u32, at_us: u64) {
        self.clear(slot);
        // Rounded up: never early by a tick. At least one tick ahead, so that a look cannot repeat in the same turn.
        let tick = at_us.div_ceil(TICK_US).clamp(self.tick + 1, self.tick + SLOTS as u64 - 1);
        let at = (tick % SLOTS as u64) as u32;
        let head = std::mem::replace(&mut self.heads[at as usize], slot);
        self.links[slot as usize] = Link { previous: NONE, next: head, at };
        if head != NONE {
            self.links[head as usize].previous = slot;
        }
        self.entries += 1;
    }

    /// Takes away the entry of `slot`, if it has one.
    pub fn clear(&mut self, slot: u32) {
        let link = self.links[slot as usize];
        if link.at == NONE {
            return;
        }
        match link.previous {
            NONE => self.heads[link.at as usize] = link.next,
            previous => self.links[previous as usize].next = link.next,
        }
        if link.next != NONE {
            self.links[link.next as usize].previous = link.previous;
        }
        self.links[slot as usize].at = NONE;
        self.entries -= 1;
    }

    /// Takes out the next slot whose time has come.
    pub fn pop(&mut self, now_us: u64) -> Option<u32> {
        while self.tick <= now_us / TICK_US {
            let slot = self.heads[(self.tick % SLOTS as u64) as usize];
            if slot != NONE {
                self.clear(slot);
                return Some(slot);
            }
            if self.entries == 0 {
                self.tick = now_us / TICK_US + 1;
                return None;
            }
            self.tick += 1;
        }
        None
    }

    /// When to call [`Wheel::pop`] next; `None` while there are no entries.
    pub fn next_us(&self) -> Option<u64> {
        if self.entries == 0 {
            return None;
        }
        (self.tick..self.tick + SLOTS as u64)
            .find(|tick| self.heads[(tick % SLOTS as u64) as usize] != NONE)
            .map(|tick| tick * TICK_US)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Against a plain list: nothing fires early, everything has fired one tick after its time.
        #[test]
        fn fires_each_entry_once_and_in_time(
            steps in proptest::collection::vec((0u32..20, 0u64..60_000_000, 0u64..3_000_000, any::<bool>()), 1..200)
        ) {
            let mut wheel = Wheel::new(20, 0);
            let mut model: Vec<Option<u64>> = vec![None; 20];
            let horizon = (SLOTS as u64 - 1) * TICK_US;
            let mut now = 0;
            for (slot, ahead, step, clear) in steps {
                if clear {
                    wheel.clear(slot);
                    model[slot as usize] = None;
                } else {
                    wheel.set(slot, now + ahead);
                    model[slot as usize] = Some((now + ahead).min(now + horizon));
                }
                now += step;
                while let Some(slot) = wheel.pop(now) {
                    let due = model[slot as usize].take().expect("fires once, and not after it was cleared");
                    prop_assert!(due <= now, "early by {}", due - now);
                }
                for due in model.iter().flatten() {
                    prop_assert!(*due + 2 * TICK_US > now, "late by {}", now - due);
                }
                let next = model.iter().flatten().min();
                prop_assert_eq!(wheel.next_us().is_some(), next.is_some());
                if let (Some(at), Some(next)) = (wheel.next_us(), next) {
                    prop_assert!(at <= next + 2 * TICK_US, "a sleeper would sleep too long");
                }
            }
        }
    }
}
