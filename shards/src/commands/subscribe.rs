//! `subscribe` to a session: a cursor on the client's shard, interest on the owner's.
//!
//! ```text
//!  client's shard: Subscription (attaching) ── ATTACH ──► owner: position resolved, interest noted
//!                  live or behind         ◄── ATTACHED ──
//! ```
//! A second subscribe to the same session replaces the first.

use super::Outcome;
use crate::clients::state::{CLIENT_SESSIONS_BYTES_MAX, KeptSession};
use crate::command::{From, Policy};
use crate::delivery::SubscriptionId;
use crate::effect::Reply;
use crate::ids::{CommandId, ConnectionId, Epoch, Now, Offset, PartitionId, ShardId};
use crate::input::Handled;
use crate::limits::REPLY_BYTES_MAX;
use crate::mailbox::codec::Writer;
use crate::mailbox::message::{put_connection, put_from, put_id, put_refused, reply, request};
use crate::refusal::{Refusal, Refused};
use crate::sessions::{Asker, Origin};
use crate::shard::{Opened, Shard};
use crate::streams::gathered::Gathered;

/// What the owner found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Attached {
    pub epoch: Epoch,
    /// Where the cursor starts.
    pub next: Offset,
    /// First retained offset.
    pub earliest: Offset,
    /// The live stream to the asker's shard begins no later than here.
    pub live: Offset,
    /// It was to start from the latest: from wherever the live stream stands when the answer comes.
    pub latest: bool,
    /// Where the oldest stream begins that is open there; `Offset::MAX`: none.
    pub join: Offset,
}

/// On the client's shard.
pub(crate) fn run(
    shard: &mut Shard,
    connection: ConnectionId,
    id: CommandId,
    session: &str,
    from: From<'_>,
    policy: Policy,
    now: Now,
) -> Handled {
    let Some(client) = shard.readers.clients.get(connection) else { return Handled::Done };
    let tenant = client.tenant.clone();
    let partition = shard.log.partition_id(&tenant, session);
    let existing = shard.readers.find(connection, partition);
    let full = client.subscription_count as usize >= shard.config.limits.client_subscriptions_max
        || shard.readers.subscriptions.len() >= shard.config.limits.subscriptions_per_shard_max;
    // What is kept of a client is one record, and records of a small log are small.
    let kept_bytes_max = CLIENT_SESSIONS_BYTES_MAX.min(shard.log.record_bytes_max() / 2);
    let kept_full = client
        .life
        .as_ref()
        .is_some_and(|life| life.sessions_bytes as usize + KeptSession::bytes(session) > kept_bytes_max);
    let remembered = client.patterns.as_ref().is_some_and(|feed| feed.remembers_all_it_may());
    if remembered || (full || kept_full) && existing.is_none() {
        shard.refuse_local(connection, id, Refused::field(Refusal::TooManySubscriptions, "session"));
        return Handled::Done;
    }
    let owner = shard.owner_of(partition);
    let (origin, client_id) = (Origin::Local(connection), client.client_id.clone());
    let asker = Asker { origin, id, tenant: tenant.clone(), client_id, rights: None };
    if owner == shard.config.shard {
        if !shard.parked.has_room(shard.config.limits.parked_bytes_max) {
            return Handled::Later;
        }
        if let Some(existing) = existing {
            shard.readers.end(existing);
        }
        let subscription = shard.readers.subscribe(connection, partition, owner, session, policy);
        shard.begin(connection);
        shard.attach_or_park(asker, subscription, session, from, now);
        return Handled::Done;
    }
    let mut message = std::mem::take(&mut shard.scratch);
    message.clear();
    let mut w = Writer(&mut message);
    w.u8(request::ATTACH).u32(REPLY_BYTES_MAX as u32);
    put_connection(&mut w, connection);
    put_id(&mut w, id);
    w.text(&tenant).text(session);
    put_from(&mut w, from);
    let handled = match shard.mail.ask(owner, message.len() + 8, REPLY_BYTES_MAX) {
        Some(ask) => {
            if let Some(existing) = existing {
                shard.readers.end(existing);
            }
            let subscription = shard.readers.subscribe(connection, partition, owner, session, policy);
            Writer(&mut message).u32(subscription.slot).u32(subscription.generation);
            shard.mail.send_ask(owner, ask, &message);
            shard.wake(owner);
            shard.begin(connection);
            Handled::Done
        }
        None => Handled::Later,
    };
    shard.scratch = message;
    handled
}

/// On the owner's shard: attaches behind what is parked on the partition.
pub(crate) fn attach(
    shard: &mut Shard,
    asker: &Asker,
    subscription: SubscriptionId,
    session: &str,
    from: From<'_>,
) -> Outcome {
    if shard.parked.holds(shard.log.partition_id(&asker.tenant, session)) {
        return Outcome::Park;
    }
    attach_now(shard, asker, subscription, session, from)
}

/// Resolves where the subscription starts and notes the interest.
pub(crate) fn attach_now(
    shard: &mut Shard,
    asker: &Asker,
    subscription: SubscriptionId,
    session: &str,
    from: From<'_>,
) -> Outcome {
    let partition = shard.log.partition_id(&asker.tenant, session);
    let found = match shard.open(partition, &asker.tenant, session, None) {
        Opened::Park => return Outcome::Park,
        Opened::Refused(refused) => Err(refused),
        Opened::Absent => match from {
            From::Latest | From::Earliest | From::Offset(0, None) => {
                let latest = from == From::Latest;
                Ok(Attached { epoch: 0, next: 0, earliest: 0, live: 0, latest, join: Offset::MAX })
            }
            From::Offset(0, Some(_)) => Err(Refused::field(Refusal::ForeignEpoch, "from")),
            From::Offset(..) => Err(Refused::field(Refusal::OffsetOutOfRange, "from")),
            From::Marker(_) => Err(Refused::field(Refusal::UnknownMarker, "from")),
        },
        Opened::Ready(slot) => {
            {
                let partition = shard.log.partition(slot);
                let (committed, earliest) = (partition.committed(), partition.first_offset());
                let next = match from {
                    From::Latest => Ok(committed),
                    From::Earliest => Ok(earliest),
                    From::Offset(_, Some(epoch)) if epoch != partition.epoch() => {
                        Err(Refused::field(Refusal::ForeignEpoch, "from"))
                    }
                    From::Offset(offset, _) if offset > committed => {
                        Err(Refused::field(Refusal::OffsetOutOfRange, "from"))
                    }
                    From::Offset(offset, _) => Ok(offset),
                    From::Marker(name) => {
                        // A marker may stand beyond what is committed for a moment, and a crash may take that back: nobody
                        // is told of a place that does not last.
                        let stands = partition.marker(name).map(|offset| offset.min(committed));
                        stands.ok_or(Refused::field(Refusal::UnknownMarker, "from"))
                    }
                };
                let epoch = partition.epoch();
                let latest = from == From::Latest;
                let join = partition.oldest_stream().filter(|_| latest).unwrap_or(Offset::MAX);
                next.map(|next| Attached { epoch, next, earliest, live: committed, latest, join })
            }
        }
    };
    if let (Ok(_), Origin::Remote(to, ..)) = (&found, asker.origin) {
        shard.interests.attach(partition, to);
    }
    answer_attach(shard, asker, subscription, session, found);
    Outcome::Done
}

/// Gives the owner's answer to the shard that asked.
pub(crate) fn answer_attach(
    shard: &mut Shard,
    asker: &Asker,
    subscription: SubscriptionId,
    session: &str,
    found: Result<Attached, Refused>,
) {
    let partition = shard.log.partition_id(&asker.tenant, session);
    match asker.origin {
        Origin::Local(connection) => {
            attached(shard, shard.config.shard, connection, asker.id, subscription, partition, found);
        }
        Origin::Remote(to, connection, reply_bytes) => {
            let mut message = std::mem::take(&mut shard.scratch);
            message.clear();
            let mut w = Writer(&mut message);
            w.u8(reply::ATTACHED).u32(reply_bytes);
            put_connection(&mut w, connection);
            put_id(&mut w, asker.id);
            w.u32(subscription.slot).u32(subscription.generation).u128(partition.0);
            match &found {
                Ok(a) => {
                    w.u8(1).u64(a.epoch).u64(a.next).u64(a.earliest).u64(a.live).u8(u8::from(a.latest));
                    w.u64(a.join);
                }
                Err(refused) => {
                    w.u8(0);
                    put_refused(&mut w, refused);
                }
            }
            shard.mail.reply(to, &message);
            shard.wake(to);
            shard.scratch = message;
        }
    }
}

/// On the client's shard, with the owner's answer. The cursor begins to move in the next deliver step, after the reply.
pub(crate) fn attached(
    shard: &mut Shard,
    owner: ShardId,
    connection: ConnectionId,
    id: CommandId,
    subscription: SubscriptionId,
    partition: PartitionId,
    found: Result<Attached, Refused>,
) {
    let readers = &mut shard.readers;
    if readers.subscription(subscription).is_none() {
        // Unsubscribed or replaced while it attached: the command is answered all the same, and an interest that the
        // owner noted after it was told that nobody listens must not stay.
        if found.is_ok() && !readers.feed_of.contains_key(&partition) {
            readers.detach_due.push((partition, owner));
        }
        return shard.answer(Origin::Local(connection), id, &Reply::Unsubscribed);
    }
    match found {
        Err(refused) => {
            readers.unsubscribe(subscription);
            let life = readers.clients.get_mut(connection).and_then(|c| c.life.as_mut());
            if let Some(kept) = life.and_then(|life| life.attached(subscription)) {
                shard.end(connection);
                shard.restore_otherwise(connection, kept, refused);
                return;
            }
            shard.answer(Origin::Local(connection), id, &Reply::Refused(refused));
        }
        Ok(a) => {
            let Some(feed_slot) = readers.subscription(subscription).map(|s| s.feed) else { return };
            let feed = &mut readers.feeds[feed_slot as usize];
            feed.epoch = a.epoch;
            let partition = feed.partition;
            if feed.live_next.is_some() {
                // The answer may overtake the live stream: those who are live and behind it read what it will not bring.
                readers.advance(partition, a.epoch, a.live);
            } else {
                feed.live_next = Some(a.live);
            }
            // From the latest: what went by while the answer was on its way may have come through the client's patterns.
            let stands = readers.feeds[feed_slot as usize].live_next.unwrap_or(0);
            let next = if a.latest { a.next.max(stands) } else { a.next };
            // Streams may also have begun in what went by.
            let join = if next > a.next { a.join.min(a.next) } else { a.join };
            if let Some(s) = readers.subscription_mut(subscription) {
                (s.start, s.cursor) = (next, next);
                s.gathered = (join < next).then(|| Box::new(Gathered::joining(join)));
            }
            readers.attached.push(subscription);
            let session = readers.feeds[feed_slot as usize].session.clone();
            // Before anything is committed a crash may still take the epoch back: nobody is told of it.
            let epoch = if a.live == 0 { 0 } else { a.epoch };
            let reply = Reply::Subscribed { session: &session, epoch, next, earliest: a.earliest, joins: join < next };
            shard.answer(Origin::Local(connection), id, &reply);
            shard.life_attached(connection, subscription);
        }
    }
}
