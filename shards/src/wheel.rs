//! Timers: a wheel of slots. Putting one in and taking one out cost the same however many there are.
//!
//! ```text
//!   slot   due/8 ms mod 1024        ┌──┬──┬──┬──┬──┐
//!                                   │  │t │  │tt│  │    a timer beyond one turn of the wheel is looked at once a turn
//!                                   └──┴──┴──┴──┴──┘
//!                                     ▲ at: slots before are over
//! ```
//! A timer fires up to a slot late, never early. Nothing is taken out by name: whoever is told looks whether it still matters.

const SLOTS: usize = 1024;
const SLOT_US: u64 = 1 << 13;

/// How late a timer may fire.
pub(crate) const TICK_US: u64 = SLOT_US;

/// One per shard.
pub(crate) struct Wheel<T> {
    slots: Vec<Vec<(u64, T)>>,
    at: u64,
    count: usize,
    /// No slot before this one holds anything.
    next: u64,
}

impl<T> Default for Wheel<T> {
    fn default() -> Self {
        Self { slots: (0..SLOTS).map(|_| Vec::new()).collect(), at: 0, count: 0, next: 0 }
    }
}

impl<T> Wheel<T> {
    /// To be told at `due_us`.
    pub fn put(&mut self, due_us: u64, timer: T) {
        let slot = (due_us / SLOT_US).max(self.at);
        self.slots[slot as usize % SLOTS].push((due_us, timer));
        // Beyond one turn of the wheel it is looked at before it is due.
        let seen = self.at + (slot - self.at) % SLOTS as u64;
        self.next = if self.count == 0 { seen } else { self.next.min(seen) };
        self.count += 1;
    }

    /// Moves those that are due to `fired`.
    pub fn expire(&mut self, now_us: u64, fired: &mut Vec<T>) {
        let until = now_us / SLOT_US;
        if self.count > 0 && self.next < until {
            for step in self.at..until.min(self.at + SLOTS as u64) {
                let slot = &mut self.slots[step as usize % SLOTS];
                let before = slot.len();
                fired.extend(slot.extract_if(.., |(due_us, _)| *due_us / SLOT_US < until).map(|(_, timer)| timer));
                self.count -= before - slot.len();
                if slot.is_empty() && slot.capacity() > 64 {
                    *slot = Vec::new();
                }
            }
        }
        self.at = self.at.max(until);
        if self.count > 0 && self.next < self.at {
            let is_taken = |slot: &u64| !self.slots[*slot as usize % SLOTS].is_empty();
            self.next = (self.at..self.at + SLOTS as u64).find(is_taken).unwrap_or(self.at);
        }
    }

    /// When the next may be due.
    pub fn next_deadline_us(&self) -> Option<u64> {
        (self.count > 0).then_some((self.next.max(self.at) + 1) * SLOT_US)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn each_fires_once_never_early_and_at_most_a_slot_late(
            steps in proptest::collection::vec((0u64..40_000_000, 0u64..9_000_000), 1..200),
        ) {
            let mut wheel = Wheel::default();
            let (mut now, mut waiting, mut fired) = (0u64, Vec::new(), Vec::new());
            for (wait, step) in steps {
                wheel.put(now + wait, now + wait);
                waiting.push(now + wait);
                now += step;
                wheel.expire(now, &mut fired);
                for due in fired.drain(..) {
                    prop_assert!(due <= now);
                    let at = waiting.iter().position(|waits| *waits == due);
                    prop_assert!(at.is_some(), "fired twice");
                    at.map(|at| waiting.swap_remove(at));
                }
                prop_assert!(waiting.iter().all(|due| *due + SLOT_US > now), "one is late");
                let next = wheel.next_deadline_us();
                prop_assert_eq!(next.is_some(), !waiting.is_empty());
                prop_assert!(next.is_none_or(|next| waiting.iter().all(|due| next <= due / SLOT_US * SLOT_US + SLOT_US)));
            }
        }
    }
}
