//! Notices of control events: as soon as one is committed, whoever listens to its session hears of it, before all that is
//! queued for them.
//!
//! ```text
//!   walk: control.cancel ─► queue ─┬─► clients of this shard ─► outbox: ahead of what waits
//!                                  └─► shards with subscribers: NOTICE, kept while their lane is full
//! ```
//! A notice moves no cursor and costs no credit; the event itself comes at its place. At most [`NOTICES_MAX`] wait: beyond
//! that the oldest is given up, for its event will come.

use crate::delivery::{ReaderState, Readers};
use crate::ids::{Epoch, Offset, PartitionId, ShardId};
use crate::limits::NAME_BYTES_MAX;
use crate::mailbox::codec::{Reader, Writer};
use crate::mailbox::message::request;
use crate::outbox::{Notice, Outbox};
use crate::shard::Shard;
use std::collections::VecDeque;
use storage::record::RecordView;

/// Notices of a shard that wait for room in a peer's lane.
pub const NOTICES_MAX: usize = 1024;

/// Bytes of one: names, what it says, and those who have yet to get it.
pub const NOTICE_BYTES: usize = 3 * NAME_BYTES_MAX + 64 + size_of::<Pending>() + 128;

/// Is it the topic of a control event?
pub(crate) fn is_control(topic: &str) -> bool {
    matches!(topic, "control.cancel" | "control.interrupt" | "control.steer")
}

/// A notice as mail, and who has yet to get it.
struct Pending {
    message: Box<[u8]>,
    /// Also this shard's own clients.
    here: bool,
    peers: Vec<ShardId>,
}

/// Notices of one shard.
#[derive(Default)]
pub(crate) struct Notices(VecDeque<Pending>);

impl Notices {
    /// A committed record passes the walk.
    pub fn note(&mut self, record: RecordView<'_>) {
        for event in record.events().filter(|event| is_control(event.topic())) {
            if self.0.len() == NOTICES_MAX {
                self.0.pop_front();
            }
            let mut message = Vec::with_capacity(256);
            let mut w = Writer(&mut message);
            w.u8(request::NOTICE).u128(record.partition().0).text(record.tenant()).text(record.session());
            w.text(event.topic()).u64(record.epoch()).u64(event.offset());
            self.0.push_back(Pending { message: message.into(), here: true, peers: Vec::new() });
        }
    }

    /// Does one wait for room?
    pub fn wait(&self) -> bool {
        !self.0.is_empty()
    }
}

/// A notice as read from mail.
pub(crate) struct NoticeMail<'a> {
    partition: PartitionId,
    tenant: &'a str,
    notice: Notice<'a>,
}

/// Reads what [`Notices::note`] wrote, after the kind byte.
pub(crate) fn read<'a>(r: &mut Reader<'a>) -> NoticeMail<'a> {
    let partition = PartitionId(r.u128());
    let (tenant, session, topic) = (r.text(), r.text(), r.text());
    let (epoch, offset): (Epoch, Offset) = (r.u64(), r.u64());
    NoticeMail { partition, tenant, notice: Notice { session, epoch, offset, topic } }
}

impl Readers {
    /// To every client here that listens to the session, or to its topic by pattern; once each.
    pub fn give_notice(&self, mail: &NoticeMail<'_>, out: &mut impl Outbox) {
        let NoticeMail { partition, tenant, notice } = mail;
        if let Some(feed) = self.feed_of.get(partition).map(|f| &self.feeds[*f as usize]) {
            for slot in &feed.subscriptions {
                let subscription = &self.subscriptions[*slot as usize];
                // One that begins behind the event does not hear of it.
                if subscription.state != ReaderState::Attaching && subscription.start <= notice.offset {
                    out.notice(subscription.connection, notice);
                }
            }
        }
        let Some(tenant) = self.tenants.get(tenant) else { return };
        for connection in &tenant.clients {
            let Some(client) = self.clients.get(*connection) else { continue };
            let wants = client.patterns.as_ref().is_some_and(|p| p.attaching == 0 && p.matches(notice.topic));
            if wants && self.find(*connection, *partition).is_none() {
                out.notice(*connection, notice);
            }
        }
    }
}

impl Shard {
    /// Gives the notices of what was just committed, and those that found no room. Returns how many went.
    pub(crate) fn send_notices(&mut self, out: &mut impl Outbox) -> usize {
        let mut sent = 0;
        for _ in 0..self.notices.0.len() {
            let Some(mut pending) = self.notices.0.pop_front() else { break };
            let mail = read(&mut Reader(&pending.message[1..]));
            if std::mem::take(&mut pending.here) {
                self.readers.give_notice(&mail, out);
                pending.peers.extend_from_slice(self.interests.sessions(mail.partition));
                for interest in self.interests.tenant(mail.tenant) {
                    if interest.matches(mail.notice.topic) && !pending.peers.contains(&interest.shard) {
                        pending.peers.push(interest.shard);
                    }
                }
                sent += 1;
            }
            let mut peers = std::mem::take(&mut pending.peers);
            peers.retain(|peer| {
                let told = self.mail.tell(*peer, &pending.message);
                if told {
                    sent += 1;
                    if self.mail.must_wake(*peer) {
                        self.effects.wake(*peer);
                    }
                }
                !told
            });
            if !peers.is_empty() {
                self.notices.0.push_back(Pending { peers, ..pending });
            }
        }
        sent
    }
}
