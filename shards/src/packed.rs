//! Records packed back to back: how pages, batches and live mail carry them between shards of this process.
//!
//! Invariant: the bytes were copied from records of this process's own log, where they were encoded or verified, and
//! nothing writes to them afterwards. Mail never leaves the process.

use storage::record::RecordView;

/// Iterates over packed records.
pub(crate) struct Records<'a>(pub &'a [u8]);

impl<'a> Iterator for Records<'a> {
    type Item = RecordView<'a>;

    fn next(&mut self) -> Option<RecordView<'a>> {
        if self.0.is_empty() {
            return None;
        }
        // SAFETY: by the module's invariant a whole record that `RecordView` vouched for starts here.
        let record = unsafe { RecordView::trusted(self.0) };
        self.0 = &self.0[record.bytes().len()..];
        Some(record)
    }
}
