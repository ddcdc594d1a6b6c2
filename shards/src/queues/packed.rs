//! A job as bytes, between the shard of its session and that of its worker.

use crate::command::{DataKind, Lease};
use crate::ids::{Epoch, Offset};
use crate::mailbox::codec::{Reader, Writer};
use crate::outbox::JobFrame;
use storage::record::{EventView, NO_OFFSET};

/// Writes what a worker is told of a job's event.
pub(super) fn put_event(w: &mut Writer<'_>, event: &EventView<'_>) {
    w.text(event.topic()).text(event.client_id()).text(event.message_id()).text(event.traceparent());
    w.u64(event.time_ms()).u64(event.prev_offset().unwrap_or(NO_OFFSET));
    w.u8(u8::from(event.data_kind() == DataKind::Bytes)).bytes(event.data());
}

/// Everything else that a worker is told.
#[derive(Clone, Copy)]
pub(super) struct Head<'a> {
    pub session: &'a str,
    pub epoch: Epoch,
    pub offset: Offset,
    pub lease: Lease,
    pub deadline_ms: u64,
    pub lease_ms: u64,
}

pub(super) fn put_head(w: &mut Writer<'_>, head: &Head<'_>) {
    w.text(head.session).u64(head.epoch).u64(head.offset).u16(head.lease.attempt).u64(head.lease.nonce);
    w.u64(head.deadline_ms).u64(head.lease_ms);
}

pub(super) fn get_head<'a>(r: &mut Reader<'a>) -> Head<'a> {
    Head {
        session: r.text(),
        epoch: r.u64(),
        offset: r.u64(),
        lease: Lease { attempt: r.u16(), nonce: r.u64() },
        deadline_ms: r.u64(),
        lease_ms: r.u64(),
    }
}

/// The frame that a job's bytes are.
pub(super) fn frame<'a>(queue: &'a str, bytes: &'a [u8]) -> JobFrame<'a> {
    let mut r = Reader(bytes);
    let Head { session, epoch, offset, lease, deadline_ms, lease_ms } = get_head(&mut r);
    let (topic, client_id, message_id, traceparent) = (r.text(), r.text(), r.text(), r.text());
    let (time_ms, prev_offset) = (r.u64(), r.u64());
    let data_kind = if r.u8() == 1 { DataKind::Bytes } else { DataKind::Json };
    JobFrame {
        queue,
        session,
        epoch,
        offset,
        lease,
        deadline_ms,
        lease_ms,
        topic,
        client_id,
        message_id,
        traceparent,
        time_ms,
        prev_offset: (prev_offset != NO_OFFSET).then_some(prev_offset),
        data_kind,
        data: r.bytes(),
    }
}
