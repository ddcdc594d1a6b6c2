//! Entries, queues and jobs in mail: commands and replies.

use super::{Reader, Writer, get_durability, put_durability};
use crate::command::{
    Command, EntryAsk, Fallback, GroupAsk, JobAsk, JobName, JobOrder, Lease, NewEntry, NewMarker, NewQueue, QueueAsk,
};
use crate::effect::{JobHappened, WorkReply};

/// Writes a change of an entry.
pub fn put_entry(w: &mut Writer<'_>, entry: &NewEntry<'_>) {
    w.text(entry.key).option(entry.ttl_ms).option(entry.if_revision);
    match entry.value {
        Some(value) => w.u8(1).bytes(value),
        None => w.u8(0),
    };
}

/// Reads it.
pub fn get_entry<'a>(r: &mut Reader<'a>) -> NewEntry<'a> {
    let (key, ttl_ms, if_revision) = (r.text(), r.option(), r.option());
    NewEntry { key, ttl_ms, if_revision, value: (r.u8() == 1).then(|| r.bytes()) }
}

/// Writes the name of a job.
pub fn put_job(w: &mut Writer<'_>, job: &JobName<'_>) {
    w.text(job.queue).u64(job.epoch).u64(job.offset);
}

/// Reads it.
pub fn get_job<'a>(r: &mut Reader<'a>) -> JobName<'a> {
    JobName { queue: r.text(), epoch: r.u64(), offset: r.u64() }
}

/// Writes a lease.
pub fn put_lease(w: &mut Writer<'_>, lease: Lease) {
    w.u16(lease.attempt).u64(lease.nonce);
}

/// Reads it.
pub fn get_lease(r: &mut Reader<'_>) -> Lease {
    Lease { attempt: r.u16(), nonce: r.u64() }
}

/// Writes a marker.
pub fn put_marker(w: &mut Writer<'_>, marker: &NewMarker<'_>) {
    w.text(marker.name).u64(marker.offset);
    match marker.lease {
        Some(lease) => put_lease(w.u8(1), lease),
        None => {
            w.u8(0);
        }
    }
}

/// Reads it.
pub fn get_marker<'a>(r: &mut Reader<'a>) -> NewMarker<'a> {
    let (name, offset) = (r.text(), r.u64());
    NewMarker { name, offset, lease: (r.u8() == 1).then(|| get_lease(r)) }
}

/// Writes a job that a commit ends, or that its sender holds.
pub fn put_complete(w: &mut Writer<'_>, complete: &Option<(JobName<'_>, Lease)>) {
    match complete {
        Some((job, lease)) => {
            put_job(w.u8(1), job);
            put_lease(w, *lease);
        }
        None => {
            w.u8(0);
        }
    }
}

/// Reads it.
pub fn get_complete<'a>(r: &mut Reader<'a>) -> Option<(JobName<'a>, Lease)> {
    (r.u8() == 1).then(|| (get_job(r), get_lease(r)))
}

/// Writes a command about entries that the session's owner carries out; the others stay where the client is.
pub fn put_entry_ask(w: &mut Writer<'_>, session: &str, ask: &EntryAsk<'_>) {
    w.text(session);
    match ask {
        EntryAsk::Set(entry) => put_entry(w.u8(1), entry),
        EntryAsk::Get { key } => {
            w.u8(2).text(key);
        }
        EntryAsk::List { prefix, after } => {
            w.u8(3).text(prefix).option_text(*after);
        }
        EntryAsk::Fetch { prefix, revision, base } => {
            w.u8(4).text(prefix).u64(*revision).u64(*base);
        }
        EntryAsk::Watch { prefix, .. } | EntryAsk::Unwatch { prefix } => {
            w.u8(0).text(prefix);
        }
    }
}

/// Reads it.
pub fn get_entry_ask<'a>(r: &mut Reader<'a>) -> Command<'a> {
    let session = r.text();
    let ask = match r.u8() {
        1 => EntryAsk::Set(get_entry(r)),
        2 => EntryAsk::Get { key: r.text() },
        3 => EntryAsk::List { prefix: r.text(), after: r.option_text() },
        4 => EntryAsk::Fetch { prefix: r.text(), revision: r.u64(), base: r.u64() },
        _ => EntryAsk::Unwatch { prefix: r.text() },
    };
    Command::Entry { session, ask }
}

/// Writes a command about a job.
pub fn put_job_ask(w: &mut Writer<'_>, session: &str, job: &JobName<'_>, ask: &JobAsk<'_>) {
    put_job(w.text(session), job);
    match *ask {
        JobAsk::Fail { lease, retry_after_ms, retry } => {
            put_lease(w.u8(1), lease);
            w.option(retry_after_ms).u8(u8::from(retry));
        }
        JobAsk::Extend { lease, lease_ms } => {
            put_lease(w.u8(2), lease);
            w.option(lease_ms);
        }
        JobAsk::Progress { lease, partial } => {
            put_lease(w.u8(3), lease);
            w.bytes(partial);
        }
        JobAsk::Redrive => {
            w.u8(4);
        }
        JobAsk::Drop => {
            w.u8(5);
        }
    }
}

/// Reads it.
pub fn get_job_ask<'a>(r: &mut Reader<'a>) -> Command<'a> {
    let (session, job) = (r.text(), get_job(r));
    let ask = match r.u8() {
        1 => {
            let (lease, retry_after_ms) = (get_lease(r), r.option());
            JobAsk::Fail { lease, retry_after_ms, retry: r.u8() == 1 }
        }
        2 => JobAsk::Extend { lease: get_lease(r), lease_ms: r.option() },
        3 => JobAsk::Progress { lease: get_lease(r), partial: r.bytes() },
        4 => JobAsk::Redrive,
        _ => JobAsk::Drop,
    };
    Command::Job { session, job, ask }
}

/// Writes a command about a queue that another shard carries out.
pub fn put_queue_ask(w: &mut Writer<'_>, ask: &QueueAsk<'_>) {
    match ask {
        QueueAsk::Declare(new) => {
            w.u8(1).text(new.queue).u32(new.topics.len() as u32).u32(new.priorities.len() as u32);
            new.topics.iter().chain(new.priorities).for_each(|pattern| {
                w.text(pattern);
            });
            w.u64(new.capacity).u64(new.lease_ms).u64(new.deadline_ms).u64(new.attempts).u64(new.backoff_ms);
            w.u8(u8::from(new.order == JobOrder::Free)).text(new.dead_letter);
            match &new.fallback {
                Some(Fallback { topic, data }) => w.u8(1).text(topic).bytes(data),
                None => w.u8(0),
            };
        }
        QueueAsk::Dead { queue, from } => {
            w.u8(2).text(queue).u64(*from);
        }
        QueueAsk::Drop { queue } => {
            w.u8(3).text(queue);
        }
        QueueAsk::Pull { queue, .. } => {
            w.u8(0).text(queue);
        }
        // Answered where it is asked.
        QueueAsk::List { after } => {
            w.u8(0).text(after.unwrap_or_default());
        }
    }
}

/// Reads it and hands it on: its lists are borrowed from this frame.
pub fn with_queue_ask<T>(r: &mut Reader<'_>, then: impl FnOnce(Command<'_>) -> T) -> T {
    match r.u8() {
        1 => {
            let queue = r.text();
            let (topics, priorities) = (r.u32(), r.u32());
            let topics: Vec<&str> = (0..topics).map(|_| r.text()).collect();
            let priorities: Vec<&str> = (0..priorities).map(|_| r.text()).collect();
            let (capacity, lease_ms, deadline_ms) = (r.u64(), r.u64(), r.u64());
            let (attempts, backoff_ms) = (r.u64(), r.u64());
            let order = if r.u8() == 1 { JobOrder::Free } else { JobOrder::Session };
            let dead_letter = r.text();
            let fallback = (r.u8() == 1).then(|| Fallback { topic: r.text(), data: r.bytes() });
            let (topics, priorities) = (&topics[..], &priorities[..]);
            let new = NewQueue {
                queue,
                topics,
                priorities,
                capacity,
                lease_ms,
                deadline_ms,
                attempts,
                backoff_ms,
                order,
                fallback,
                dead_letter,
            };
            then(Command::Queue { ask: QueueAsk::Declare(new) })
        }
        3 => then(Command::Queue { ask: QueueAsk::Drop { queue: r.text() } }),
        2 => then(Command::Queue { ask: QueueAsk::Dead { queue: r.text(), from: r.u64() } }),
        _ => then(Command::Queue { ask: QueueAsk::Pull { queue: r.text(), credit: 0 } }),
    }
}

/// Writes a command about a group that another shard carries out.
pub fn put_group_ask(w: &mut Writer<'_>, ask: &GroupAsk<'_>) {
    match ask {
        GroupAsk::Declare { group, topics, lease_ms } => {
            w.u8(1).text(group).u64(*lease_ms).u32(topics.len() as u32);
            topics.iter().for_each(|pattern| {
                w.text(pattern);
            });
        }
        GroupAsk::Drop { group } => {
            w.u8(2).text(group);
        }
        GroupAsk::List { group, from } => {
            w.u8(3).text(group).u64(*from);
        }
        // Stays where the client is.
        GroupAsk::Join { group, .. } => {
            w.u8(0).text(group);
        }
    }
}

/// Reads it and hands it on: its list is borrowed from this frame.
pub fn with_group_ask<T>(r: &mut Reader<'_>, then: impl FnOnce(Command<'_>) -> T) -> T {
    let kind = r.u8();
    let group = r.text();
    match kind {
        1 => {
            let (lease_ms, count) = (r.u64(), r.u32());
            let topics: Vec<&str> = (0..count).map(|_| r.text()).collect();
            then(Command::Group { ask: GroupAsk::Declare { group, topics: &topics, lease_ms } })
        }
        2 => then(Command::Group { ask: GroupAsk::Drop { group } }),
        3 => then(Command::Group { ask: GroupAsk::List { group, from: r.u64() } }),
        _ => then(Command::Group { ask: GroupAsk::Join { group, credit: 0 } }),
    }
}

/// Writes a reply.
pub fn put_work_reply(w: &mut Writer<'_>, reply: &WorkReply<'_>) {
    match reply {
        WorkReply::Put { session, key, revision, durability } => {
            w.u8(1).text(session).text(key).u64(*revision);
            put_durability(w, *durability);
        }
        WorkReply::Deleted { session, key, revision, durability } => {
            w.u8(2).text(session).text(key).u64(*revision);
            put_durability(w, *durability);
        }
        WorkReply::Watching { session, prefix } => {
            w.u8(3).text(session).text(prefix);
        }
        WorkReply::Unwatched { session, prefix } => {
            w.u8(4).text(session).text(prefix);
        }
        WorkReply::Declared { queue } => {
            w.u8(5).text(queue);
        }
        WorkReply::Pulling { queue, credit } => {
            w.u8(6).text(queue).u64(*credit);
        }
        WorkReply::QueueDropped { queue } => {
            w.u8(8).text(queue);
        }
        WorkReply::Queues { items, more } => {
            w.u8(9).bytes(items).u8(u8::from(*more));
        }
        WorkReply::GroupDeclared { group } => {
            w.u8(10).text(group);
        }
        WorkReply::GroupDropped { group } => {
            w.u8(11).text(group);
        }
        WorkReply::GroupJoined { group, credit } => {
            w.u8(12).text(group).u64(*credit);
        }
        WorkReply::GroupAcked { session, group, offset } => {
            w.u8(13).text(session).text(group).u64(*offset);
        }
        WorkReply::GroupLost { session, group, lease } => {
            put_lease(w.u8(14).text(session).text(group), *lease);
        }
        WorkReply::Markers { items, next } => {
            w.u8(15).bytes(items).option(*next);
        }
        WorkReply::Job { session, job, happened } => {
            w.u8(7).text(session);
            put_job(w, job);
            match happened {
                JobHappened::Failed { attempts } => w.u8(1).u16(*attempts),
                JobHappened::Dead { attempts } => w.u8(2).u16(*attempts),
                JobHappened::Extended { lease_ms } => w.u8(3).u64(*lease_ms),
                JobHappened::Progressed => w.u8(4),
                JobHappened::Redriven => w.u8(5),
                JobHappened::Dropped => w.u8(6),
                JobHappened::Lost { cancelled } => w.u8(7).u8(u8::from(*cancelled)),
            };
        }
    }
}

/// Reads a reply.
pub fn get_work_reply<'a>(r: &mut Reader<'a>) -> WorkReply<'a> {
    match r.u8() {
        kind @ (1 | 2) => {
            let (session, key, revision, durability) = (r.text(), r.text(), r.u64(), get_durability(r));
            if kind == 1 {
                WorkReply::Put { session, key, revision, durability }
            } else {
                WorkReply::Deleted { session, key, revision, durability }
            }
        }
        3 => WorkReply::Watching { session: r.text(), prefix: r.text() },
        5 => WorkReply::Declared { queue: r.text() },
        6 => WorkReply::Pulling { queue: r.text(), credit: r.u64() },
        8 => WorkReply::QueueDropped { queue: r.text() },
        10 => WorkReply::GroupDeclared { group: r.text() },
        11 => WorkReply::GroupDropped { group: r.text() },
        12 => WorkReply::GroupJoined { group: r.text(), credit: r.u64() },
        13 => WorkReply::GroupAcked { session: r.text(), group: r.text(), offset: r.u64() },
        14 => WorkReply::GroupLost { session: r.text(), group: r.text(), lease: get_lease(r) },
        15 => WorkReply::Markers { items: r.bytes(), next: r.option() },
        9 => WorkReply::Queues { items: r.bytes(), more: r.u8() == 1 },
        7 => {
            let (session, job) = (r.text(), get_job(r));
            let happened = match r.u8() {
                1 => JobHappened::Failed { attempts: r.u16() },
                2 => JobHappened::Dead { attempts: r.u16() },
                3 => JobHappened::Extended { lease_ms: r.u64() },
                4 => JobHappened::Progressed,
                5 => JobHappened::Redriven,
                7 => JobHappened::Lost { cancelled: r.u8() == 1 },
                _ => JobHappened::Dropped,
            };
            WorkReply::Job { session, job, happened }
        }
        _ => WorkReply::Unwatched { session: r.text(), prefix: r.text() },
    }
}
