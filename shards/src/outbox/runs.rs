//! The frame that deals a run to a member of a group: events of one session, to be acknowledged.

use crate::command::{DataKind, Lease};
use crate::ids::{Epoch, Offset};
use crate::mailbox::codec::{Reader, Writer};
use storage::record::{EventView, NO_OFFSET};

/// Everything but its events.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RunHead<'a> {
    /// Session.
    pub session: &'a str,
    /// Its epoch.
    pub epoch: Epoch,
    /// Where the group's marker stood.
    pub from: Offset,
    /// The right to move it on.
    pub lease: Lease,
    /// Acknowledged up to here it is over.
    pub next: Offset,
    /// How long the member may not be heard of.
    pub lease_ms: u64,
    /// Offsets from and to which nothing is retained, before the first event.
    pub gap: Option<(Offset, Offset)>,
}

/// A run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RunFrame<'a> {
    /// Group.
    pub group: &'a str,
    /// Session, lease, and so on.
    pub head: RunHead<'a>,
    /// What it tells, packed: see [`RunFrame::events`].
    pub events: &'a [u8],
}

/// An event of a run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RunEvent<'a> {
    /// Offset.
    pub offset: Offset,
    /// Topic.
    pub topic: &'a str,
    /// Who published it.
    pub client_id: &'a str,
    /// Its message id, or empty.
    pub message_id: &'a str,
    /// Its trace context, or empty.
    pub traceparent: &'a str,
    /// When it was published, Unix ms.
    pub time_ms: u64,
    /// Its cause.
    pub prev_offset: Option<Offset>,
    /// How to read its payload.
    pub data_kind: DataKind,
    /// Payload.
    pub data: &'a [u8],
}

/// Everything of a run's frame that is no name and no event, and everything of an event that is no name and no data.
const RUN_FRAME_BYTES_MAX: usize = 512;
const RUN_EVENT_BYTES_MAX: usize = 448;

/// Writes what comes before the events.
pub(crate) fn put_run_head(w: &mut Writer<'_>, head: &RunHead<'_>) {
    w.text(head.session).u64(head.epoch).u64(head.from).u16(head.lease.attempt).u64(head.lease.nonce);
    w.u64(head.next).u64(head.lease_ms).option(head.gap.map(|gap| gap.0)).option(head.gap.map(|gap| gap.1));
}

/// Reads it.
pub(crate) fn get_run_head<'a>(r: &mut Reader<'a>) -> RunHead<'a> {
    RunHead {
        session: r.text(),
        epoch: r.u64(),
        from: r.u64(),
        lease: Lease { attempt: r.u16(), nonce: r.u64() },
        next: r.u64(),
        lease_ms: r.u64(),
        gap: r.option().zip(r.option()),
    }
}

/// Appends an event.
pub(crate) fn put_run_event(out: &mut Vec<u8>, event: &EventView<'_>) {
    let mut w = Writer(out);
    w.u64(event.offset());
    w.text(event.topic()).text(event.client_id()).text(event.message_id()).text(event.traceparent());
    w.u64(event.time_ms()).u64(event.prev_offset().unwrap_or(NO_OFFSET));
    w.u8(u8::from(event.data_kind() == DataKind::Bytes)).bytes(event.data());
}

/// Upper bound of what an event takes in a run's frame.
pub(crate) fn run_event_bytes_max(event: &EventView<'_>) -> usize {
    let names = event.topic().len() + event.client_id().len() + event.message_id().len() + event.traceparent().len();
    one_bytes_max(event.session().len(), names, event.data_kind(), event.data().len())
}

/// Upper bound of a run's frame without events.
pub(crate) const fn run_bytes_min(group: usize, session: usize) -> usize {
    RUN_FRAME_BYTES_MAX + 2 * group + session
}

fn one_bytes_max(session: usize, names: usize, data_kind: DataKind, data: usize) -> usize {
    let data = match data_kind {
        DataKind::Bytes => data.div_ceil(3) * 4 + 2,
        _ => data,
    };
    RUN_EVENT_BYTES_MAX + 2 * session + names + data
}

impl<'a> RunFrame<'a> {
    /// The frame that these bytes are.
    pub(crate) fn of(group: &'a str, bytes: &'a [u8]) -> Self {
        let mut r = Reader(bytes);
        let head = get_run_head(&mut r);
        RunFrame { group, head, events: r.0 }
    }

    /// Its events, in order.
    pub fn events(&self) -> impl Iterator<Item = RunEvent<'a>> + use<'a> {
        let mut r = Reader(self.events);
        std::iter::from_fn(move || {
            (!r.0.is_empty()).then(|| RunEvent {
                offset: r.u64(),
                topic: r.text(),
                client_id: r.text(),
                message_id: r.text(),
                traceparent: r.text(),
                time_ms: r.u64(),
                prev_offset: Some(r.u64()).filter(|offset| *offset != NO_OFFSET),
                data_kind: if r.u8() == 1 { DataKind::Bytes } else { DataKind::Json },
                data: r.bytes(),
            })
        })
    }

    /// Upper bound of the frame on any wire.
    pub fn bytes_max(&self) -> usize {
        let session = self.head.session.len();
        let one = |event: RunEvent<'_>| {
            let names = event.topic.len() + event.client_id.len() + event.message_id.len() + event.traceparent.len();
            one_bytes_max(session, names, event.data_kind, event.data.len())
        };
        run_bytes_min(self.group.len(), session) + self.events().map(one).sum::<usize>()
    }
}
