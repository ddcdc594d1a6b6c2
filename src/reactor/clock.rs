//! The only clock of a shard: read once a turn, handed to everything that needs time.

use shards::ids::Now;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// One per shard. Monotonic time begins with the process, so that shards can compare theirs.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    start: Instant,
}

impl Clock {
    /// A clock whose monotonic zero is now. Shards get copies of one.
    pub fn start() -> Self {
        Self { start: Instant::now() }
    }

    /// Monotonic time to the nanosecond, for figures; [`Now::mono_us`] is the same time.
    pub fn ns(&self) -> u64 {
        self.start.elapsed().as_nanos() as u64
    }

    /// The time of a turn.
    pub fn read(&self) -> Now {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Now { mono_us: self.start.elapsed().as_micros() as u64, wall_ms: wall.as_millis() as u64 }
    }
}
