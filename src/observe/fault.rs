//! A stall on demand, so that a test sees it named. Tests only: without the feature `stall` every function here is empty.
//!
//! ```text
//!   POST /stall?stage=commit&ms=40 ──► armed ──► the next event that passes there waits, once
//! ```

use super::Stage;

/// The next event that passes this stage waits for so long.
#[cfg(feature = "stall")]
pub fn arm(stage: Stage, ms: u32) {
    imp::ARMED.store((stage as u64 + 1) << 32 | u64::from(ms), std::sync::atomic::Ordering::Relaxed);
}

/// An event passes a stage. `true`: it had to wait.
#[inline(always)]
pub fn pass(stage: Stage) -> bool {
    #[cfg(feature = "stall")]
    return imp::pass(stage);
    #[cfg(not(feature = "stall"))]
    {
        let _ = stage;
        false
    }
}

#[cfg(feature = "stall")]
mod imp {
    use super::Stage;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::Duration;

    pub static ARMED: AtomicU64 = AtomicU64::new(0);

    pub fn pass(stage: Stage) -> bool {
        let armed = ARMED.load(Ordering::Relaxed);
        if armed >> 32 != stage as u64 + 1
            || ARMED.compare_exchange(armed, 0, Ordering::Relaxed, Ordering::Relaxed).is_err()
        {
            return false;
        }
        std::thread::sleep(Duration::from_millis(armed & u64::from(u32::MAX)));
        true
    }
}
