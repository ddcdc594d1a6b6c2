//! The sleeping flag of a shard.
//!
//! ```text
//!   sleeper:  flag := true ─ fence ─ look at the lanes ─► mail? flag := false, do not park
//!   sender:   mail into the lane ─ fence ─ look at the flag ─► set? take it down, ring the sleeper's ring
//! ```
//! With both fences SeqCst one of the two always sees the other: mail never lies in front of a sleeper that nobody
//! wakes. `tests/mailbox_loom.rs` tries every interleaving of this file.

use super::atomics::{AtomicBool, Ordering, fence};

/// On a cache line of its own: peers poll it on every message.
#[repr(align(128))]
pub struct SleepFlag(AtomicBool);

impl Default for SleepFlag {
    fn default() -> Self {
        Self(AtomicBool::new(false))
    }
}

impl SleepFlag {
    /// A sender, after its mail is in the lane: is the shard asleep? Takes the flag down, so that one sleeper is woken
    /// once.
    pub fn must_wake(&self) -> bool {
        fence(Ordering::SeqCst);
        self.0.load(Ordering::Relaxed) && self.0.swap(false, Ordering::SeqCst)
    }

    /// The shard, before it parks: sets the flag and looks for mail again. `false`: there is some, do not park.
    pub fn prepare_park(&self, has_mail: impl FnOnce() -> bool) -> bool {
        self.0.store(true, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        let mail = has_mail();
        if mail {
            self.unpark();
        }
        !mail
    }

    /// The shard, awake again.
    pub fn unpark(&self) {
        self.0.store(false, Ordering::SeqCst);
    }
}
