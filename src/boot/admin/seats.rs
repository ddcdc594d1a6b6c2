//! Who may be here at once.
//!
//! ```text
//!   enter ─► Seat, given back when it is dropped        none left ─► told to come back
//! ```

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// So many.
#[derive(Debug)]
pub(super) struct Seats {
    taken: AtomicUsize,
    max: usize,
}

/// One of them.
#[derive(Debug)]
pub(super) struct Seat(Arc<Seats>);

impl Seats {
    pub fn new(max: usize) -> Arc<Self> {
        Arc::new(Self { taken: AtomicUsize::new(0), max })
    }

    pub fn enter(self: &Arc<Self>) -> Option<Seat> {
        if self.taken.fetch_add(1, Ordering::Relaxed) >= self.max {
            self.taken.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        Some(Seat(Arc::clone(self)))
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.taken.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seat_is_somebody_elses_when_it_was_left() {
        let seats = Seats::new(2);
        let one = seats.enter().unwrap();
        let _two = seats.enter().unwrap();
        assert!(seats.enter().is_none() && seats.enter().is_none());
        drop(one);
        assert!(seats.enter().is_some());
    }
}
