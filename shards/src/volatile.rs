//! Volatile events: typing, pointers. Never logged, no offset; whoever listens and has room gets them, others see a
//! hole in the session's own count.

use crate::command::{DataKind, NewEvent};
use crate::delivery::{ByPartition, ReaderState, Readers};
use crate::ids::{Offset, PartitionId};
use crate::mailbox::codec::{Reader, Writer};
use crate::outbox::{EVENT_FRAME_OVERHEAD_BYTES_MAX, Outbox, VolatileEvent};
use std::collections::VecDeque;

/// Bytes of volatile events that may wait for the end of a turn.
const VOLATILE_BYTES_MAX: usize = 1 << 20;

/// Sessions whose count is kept; beyond it counts begin again, which a client sees as a smaller number.
const COUNTERS_MAX: usize = 64 << 10;

/// Volatile events of one turn, encoded as mail. One per shard.
#[derive(Default)]
pub(crate) struct Volatiles {
    queue: VecDeque<(PartitionId, Box<[u8]>)>,
    bytes: usize,
    counters: ByPartition<u64>,
}

impl Volatiles {
    pub fn has_room(&self) -> bool {
        self.bytes < VOLATILE_BYTES_MAX
    }

    pub fn push(
        &mut self,
        partition: PartitionId,
        tenant: &str,
        session: &str,
        client_id: &str,
        after_offset: Offset,
        event: &NewEvent<'_>,
    ) {
        if self.counters.len() >= COUNTERS_MAX && !self.counters.contains_key(&partition) {
            self.counters.clear();
        }
        let counter = self.counters.entry(partition).or_insert(0);
        *counter += 1;
        let mut bytes = Vec::with_capacity(event.data.len() + 256);
        let mut w = Writer(&mut bytes);
        w.u8(crate::mailbox::message::request::VOLATILE).u128(partition.0).text(tenant).text(session).text(client_id);
        w.text(event.topic).u64(after_offset).u64(*counter).u8(event.data_kind as u8).bytes(event.data);
        w.text(event.traceparent);
        self.bytes += bytes.len();
        self.queue.push_back((partition, bytes.into()));
    }

    pub fn pop(&mut self) -> Option<(PartitionId, Box<[u8]>)> {
        let item = self.queue.pop_front()?;
        self.bytes -= item.1.len();
        Some(item)
    }
}

/// A volatile event as read from mail.
pub(crate) struct VolatileMail<'a> {
    pub partition: PartitionId,
    pub tenant: &'a str,
    pub event: VolatileEvent<'a>,
}

/// Reads what [`Volatiles::push`] wrote, after the kind byte.
pub(crate) fn read<'a>(r: &mut Reader<'a>) -> VolatileMail<'a> {
    let partition = PartitionId(r.u128());
    let (tenant, session, client_id, topic) = (r.text(), r.text(), r.text(), r.text());
    let (after_offset, counter) = (r.u64(), r.u64());
    let data_kind = if r.u8() == DataKind::Bytes as u8 { DataKind::Bytes } else { DataKind::Json };
    let (data, traceparent) = (r.bytes(), r.text());
    VolatileMail {
        partition,
        tenant,
        event: VolatileEvent { session, topic, client_id, after_offset, counter, data, data_kind, traceparent },
    }
}

impl Readers {
    /// To every local client that listens and has room, once.
    pub fn offer_volatile(&mut self, mail: &VolatileMail<'_>, out: &mut impl Outbox) {
        let bytes = mail.event.data.len().div_ceil(3) * 4
            + mail.event.traceparent.len()
            + 3 * (mail.event.session.len() + mail.event.topic.len() + mail.event.client_id.len())
            + EVENT_FRAME_OVERHEAD_BYTES_MAX;
        if let Some(feed) = self.feed_of.get(&mail.partition).map(|f| &self.feeds[*f as usize]) {
            for slot in &feed.subscriptions {
                let subscription = &self.subscriptions[*slot as usize];
                if subscription.state != ReaderState::Attaching && out.room(subscription.connection) >= bytes {
                    out.volatile(subscription.connection, &mail.event);
                }
            }
        }
        let Some(tenant) = self.tenants.get(mail.tenant) else { return };
        for connection in &tenant.clients {
            let Some(client) = self.clients.get(*connection) else { continue };
            let wants = client.patterns.as_ref().is_some_and(|p| p.attaching == 0 && p.matches(mail.event.topic));
            if wants && self.find(*connection, mail.partition).is_none() && out.room(*connection) >= bytes {
                out.volatile(*connection, &mail.event);
            }
        }
    }
}
