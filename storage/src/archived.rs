//! The one place where archived bodies are written and looked at without a check.
//!
//! Checked access comes first in a record's life on every path from disk ([`crate::record::RecordView::checked`]); after it, and for
//! bytes this process encoded, the same bytes are looked at again and again, and checking each time would cost more
//! than the work itself.

use crate::record::{ArchivedCommitBody, ArchivedSpanBody, ArchivedTextBody, ArchivedWorkBody, CommitBody, WorkBody};
use rkyv::Serialize;
use rkyv::api::low::{LowSerializer, access, to_bytes_in_with_alloc};
use rkyv::rancor::{Failure, Panic};
use rkyv::ser::allocator::SubAllocator;
use rkyv::ser::writer::Buffer;
use std::mem::MaybeUninit;

/// Archives `value` to the start of `out`, using `scratch` instead of the heap; bytes written.
///
/// # Panics
/// If either is too small: the caller proves room first.
pub(crate) fn serialize<'o, T>(value: &T, out: &'o mut [u8], scratch: &'o mut [MaybeUninit<u8>]) -> usize
where
    T: Serialize<LowSerializer<Buffer<'o>, SubAllocator<'o>, Panic>>,
{
    let Ok(buffer) = to_bytes_in_with_alloc::<_, _, Panic>(value, Buffer::from(out), SubAllocator::new(scratch));
    buffer.len()
}

/// The commit body in `body`, if it is one.
pub(crate) fn check_commit(body: &[u8]) -> Option<&ArchivedCommitBody<'static>> {
    access::<ArchivedCommitBody<'static>, Failure>(body).ok()
}

/// The span body in `body`, if it is one.
pub(crate) fn check_span(body: &[u8]) -> Option<&ArchivedSpanBody<'static>> {
    access::<ArchivedSpanBody<'static>, Failure>(body).ok()
}

/// The text body in `body`, if it is one.
pub(crate) fn check_text(body: &[u8]) -> Option<&ArchivedTextBody<'static>> {
    access::<ArchivedTextBody<'static>, Failure>(body).ok()
}

/// The work body in `body`, if it is one.
pub(crate) fn check_work(body: &[u8]) -> Option<&ArchivedWorkBody<'static>> {
    access::<ArchivedWorkBody<'static>, Failure>(body).ok()
}

/// # Safety
/// `body` must be what [`serialize`] wrote of a `CommitBody`, or accepted by [`check_commit`].
pub(crate) unsafe fn commit(body: &[u8]) -> &ArchivedCommitBody<'static> {
    // SAFETY: the caller's promise is the callee's; the archive has no alignment (`unaligned`).
    unsafe { rkyv::access_unchecked::<ArchivedCommitBody<'static>>(body) }
}

/// # Safety
/// `body` must be what [`serialize`] wrote of a `SpanBody`, or accepted by [`check_span`].
pub(crate) unsafe fn span(body: &[u8]) -> &ArchivedSpanBody<'static> {
    // SAFETY: as above.
    unsafe { rkyv::access_unchecked::<ArchivedSpanBody<'static>>(body) }
}

/// # Safety
/// `body` must be what [`serialize`] wrote of a `TextBody`, or accepted by [`check_text`].
pub(crate) unsafe fn text(body: &[u8]) -> &ArchivedTextBody<'static> {
    // SAFETY: as above.
    unsafe { rkyv::access_unchecked::<ArchivedTextBody<'static>>(body) }
}

/// # Safety
/// `body` must be what [`serialize`] wrote of a `WorkBody`, or accepted by [`check_work`].
pub(crate) unsafe fn work(body: &[u8]) -> &ArchivedWorkBody<'static> {
    // SAFETY: as above.
    unsafe { rkyv::access_unchecked::<ArchivedWorkBody<'static>>(body) }
}

const _: () = assert!(align_of::<rkyv::Archived<WorkBody<'static>>>() == 1);
const _: () = assert!(align_of::<rkyv::Archived<CommitBody<'static>>>() == 1);
