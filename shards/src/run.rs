//! Records that are offered together: neighbours in the log, of one session, without a hole.
//!
//! ```text
//!   walk     A1 A2 A3 │ B7 │ A4        one run, offered to each subscriber of A, then the next
//! ```
//! A burst into a session with many subscribers is worked off subscriber by subscriber: the other way round each would be
//! fetched into the cache anew for each record.

use arrayvec::ArrayVec;
use storage::record::RecordView;

/// Records of a run; more gain nothing, and the edge keeps the frames of so many at hand.
pub(crate) const RUN_RECORDS_MAX: usize = 32;

/// Some neighbours.
#[derive(Default)]
pub(crate) struct Run<'a>(ArrayVec<RecordView<'a>, RUN_RECORDS_MAX>);

impl<'a> Run<'a> {
    /// Whether a record may be taken.
    pub fn goes_on_with(&self, record: RecordView<'_>) -> bool {
        self.0.last().is_none_or(|last| {
            !self.0.is_full()
                && last.partition() == record.partition()
                && last.epoch() == record.epoch()
                && last.next_offset() == record.offset()
        })
    }

    /// Takes one that goes on.
    pub fn take(&mut self, record: RecordView<'a>) {
        self.0.push(record);
    }

    /// What was taken.
    pub fn records(&self) -> &[RecordView<'a>] {
        &self.0
    }

    /// Forgets them.
    pub fn begin(&mut self) {
        self.0.clear();
    }
}
