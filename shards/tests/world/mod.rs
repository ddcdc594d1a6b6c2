//! Shards on one thread over a disk in memory: enough of a world to see what the core does, without the simulator's
//! faults.
#![allow(dead_code, reason = "each test uses its part")]

use shards::command::Lease;
use shards::ids::{CommandId, ConnectionId, Now, ShardId};
use shards::input::{Handled, Input, Principal};
use shards::limits::Limits;
use shards::mailbox::mesh;
use shards::outbox::{
    DeadFrame, EntriesFrame, EntryItem, Gap, Happened, HistoryHead, JobFrame, Notice, Outbox, PageItem, PatternGap,
    RosterFrame, RosterValue, RunFrame, RunHead, StreamFrame, StreamPart, VolatileEvent,
};
use shards::queues::declared;
use shards::refusal::Refusal;
use shards::rights::Rights;
use shards::{
    Shard, ShardConfig, command::Command, effect::Effect, effect::JobHappened, effect::Reply, effect::WorkReply,
};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use storage::disk::{DiskDone, DiskFault, DiskOp, FileId};
use storage::ids::{HashKey, LogId};
use storage::jobs::{Job, JobRun, Step};
use storage::log::{Log, LogConfig, RecoveredLog};
use storage::manifest::Manifest;
use storage::record::{EntryAct, EventView};
use storage::recovery::{self, Folder};

/// What a client received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Got {
    Event {
        session: String,
        offset: u64,
        data: String,
        slice: u16,
        slice_seq: u64,
        /// Stream and number.
        stream: Option<(String, u64)>,
    },
    Volatile {
        session: String,
        counter: u64,
    },
    Gap {
        session: String,
        from: u64,
        to: u64,
    },
    PatternGap,
    History {
        offsets: Vec<u64>,
        next: u64,
        tail: u64,
    },
    Roster(Roster),
    Reply(u64, String),
    Entries(Page),
    /// Queue, session, offset, lease, data.
    Job(String, String, u64, Lease, String),
    /// A run: session, lease, offsets and topics, up to where, and what is gone before.
    Run(String, Lease, Vec<(u64, String)>, u64, Option<(u64, u64)>),
    /// A job that is no longer the worker's: session and offset.
    Lost(String, u64),
    /// Command, session and offset of each, and whether there is more.
    Dead(Option<u64>, Vec<(String, u64, u16)>, Option<u64>),
    /// Streams of one frame: name, numbers, text, status.
    Streams {
        session: String,
        offset: u64,
        /// Slice and place in it.
        at: Option<(u16, u64)>,
        parts: Vec<(String, std::ops::Range<u64>, String, String)>,
    },
    Notice {
        offset: u64,
        topic: String,
    },
}

/// A frame about entries, in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// Command that it answers.
    pub id: Option<u64>,
    pub after: Option<u64>,
    pub revision: u64,
    pub snapshot: bool,
    pub more: bool,
    /// Key, revision, value; of what is gone, nothing.
    pub items: Vec<(String, u64, Option<String>)>,
}

/// A frame about a roster, in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Roster {
    pub snapshot: bool,
    pub after: u64,
    pub version: u64,
    pub more: bool,
    pub complete: bool,
    /// Client, what happened, value.
    pub changes: Vec<(String, Happened, String)>,
    /// Count, delivered, read.
    pub all: Option<(u64, u64, u64)>,
}

/// Send queues without sockets: each connection has `room` bytes until drained.
#[derive(Default)]
pub struct Queues {
    pub got: BTreeMap<u32, Vec<Got>>,
    pub room: BTreeMap<u32, usize>,
    last: Option<(Roster, usize)>,
    /// Bounds of all frames about rosters, and of the largest.
    pub roster_bytes: usize,
    pub roster_frame_bytes_max: usize,
}

impl Queues {
    fn put(&mut self, c: ConnectionId, bytes: usize, got: Got) -> usize {
        let room = self.room.entry(c.slot).or_insert(usize::MAX);
        *room = room.saturating_sub(bytes);
        self.got.entry(c.slot).or_default().push(got);
        bytes
    }
}

impl Outbox for Queues {
    fn room(&self, c: ConnectionId) -> usize {
        self.room.get(&c.slot).copied().unwrap_or(usize::MAX)
    }
    fn event(&mut self, c: ConnectionId, e: &EventView<'_>) -> usize {
        let got = Got::Event {
            session: e.session().into(),
            offset: e.offset(),
            data: String::from_utf8_lossy(e.data()).into(),
            slice: e.slice().0,
            slice_seq: e.slice_seq(),
            stream: e.stream().map(|(stream, seq)| (stream.to_owned(), seq)),
        };
        self.put(c, e.data().len() + 400, got)
    }
    fn volatile(&mut self, c: ConnectionId, e: &VolatileEvent<'_>) -> usize {
        self.put(c, 400, Got::Volatile { session: e.session.into(), counter: e.counter })
    }
    fn streams(&mut self, c: ConnectionId, frame: &StreamFrame<'_>) -> usize {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let part = |p: &StreamPart| (p.stream.to_string(), p.seqs.clone(), text(&p.text), text(&p.status));
        let parts: Vec<_> = frame.parts.iter().map(part).collect();
        let bytes = frame.parts.iter().map(|p| p.text.len() + 160).sum::<usize>() + 160;
        let at = frame.at.map(|(slice, seq)| (slice.0, seq));
        self.put(c, bytes, Got::Streams { session: frame.session.into(), offset: frame.offset, at, parts })
    }
    fn notice(&mut self, c: ConnectionId, n: &Notice<'_>) {
        self.put(c, 0, Got::Notice { offset: n.offset, topic: n.topic.into() });
    }
    fn gap(&mut self, c: ConnectionId, g: &Gap<'_>) {
        self.put(c, 200, Got::Gap { session: g.session.into(), from: g.from, to: g.to });
    }
    fn pattern_gap(&mut self, c: ConnectionId, _: &PatternGap) {
        self.put(c, 100, Got::PatternGap);
    }
    fn roster(&mut self, c: ConnectionId, frame: &RosterFrame<'_>, again: bool) {
        let words = |value| match value {
            RosterValue::Presence { state, data } => {
                format!("{} {}", state.name(), String::from_utf8_lossy(data.unwrap_or_default()))
            }
            RosterValue::Receipt { delivered, read } => format!("{delivered} {read}"),
        };
        let changes = frame.changes.iter().map(|c| (c.client.to_owned(), c.happened, words(c.value))).collect();
        let RosterFrame { snapshot, after, version, more, complete, all, .. } = *frame;
        let all = all.map(|all| (all.count, all.delivered, all.read));
        if !again {
            self.last = Some((Roster { snapshot, after, version, more, complete, changes, all }, frame.bytes_max()));
        }
        let (got, bytes) = self.last.clone().expect("the frame of the call before");
        self.roster_bytes += bytes;
        self.roster_frame_bytes_max = self.roster_frame_bytes_max.max(bytes);
        self.put(c, 400, Got::Roster(got));
    }
    fn entries(&mut self, c: ConnectionId, id: CommandId, frame: &EntriesFrame<'_>) {
        let item = |item: EntryItem<'_>| {
            let value = (item.act == EntryAct::Put).then(|| String::from_utf8_lossy(item.value).into_owned());
            (item.key.to_owned(), item.revision, value)
        };
        let EntriesFrame { after, revision, snapshot, more, .. } = *frame;
        let id = if let CommandId::Number(id) = id { Some(id) } else { None };
        let page = Page { id, after, revision, snapshot, more, items: frame.items().map(item).collect() };
        self.put(c, frame.bytes_max(), Got::Entries(page));
    }
    fn job(&mut self, c: ConnectionId, frame: &JobFrame<'_>) {
        let data = String::from_utf8_lossy(frame.data).into_owned();
        let got = Got::Job(frame.queue.into(), frame.session.into(), frame.offset, frame.lease, data);
        self.put(c, frame.bytes_max(), got);
    }
    fn run(&mut self, c: ConnectionId, frame: &RunFrame<'_>) {
        let events = frame.events().map(|event| (event.offset, event.topic.to_owned())).collect();
        let RunHead { session, lease, next, gap, .. } = frame.head;
        self.put(c, frame.bytes_max(), Got::Run(session.into(), lease, events, next, gap));
    }
    fn dead(&mut self, c: ConnectionId, id: CommandId, frame: &DeadFrame<'_>) {
        let id = if let CommandId::Number(id) = id { Some(id) } else { None };
        let dead = frame.items().map(|dead| (dead.session.to_owned(), dead.offset, dead.attempts)).collect();
        self.put(c, frame.bytes_max(), Got::Dead(id, dead, frame.next));
    }
    fn history(
        &mut self,
        c: ConnectionId,
        _id: CommandId,
        h: &HistoryHead<'_>,
        items: &mut dyn Iterator<Item = PageItem<'_>>,
    ) {
        let offsets = items.map(|item| item.offset()).collect();
        self.put(c, 400, Got::History { offsets, next: h.next, tail: h.tail });
    }
}

/// The disk, as a boot sees it.
struct Files<'a>(&'a mut BTreeMap<FileId, Vec<u8>>);

impl Folder for Files<'_> {
    type Bytes = Vec<u8>;
    fn list(&self) -> Result<Vec<FileId>, DiskFault> {
        Ok(self.0.keys().copied().collect())
    }
    fn read(&self, file: FileId) -> Result<Vec<u8>, DiskFault> {
        self.0.get(&file).cloned().ok_or(DiskFault::Missing)
    }
    fn write_atomic(&mut self, file: FileId, bytes: &[u8]) -> Result<(), DiskFault> {
        self.0.insert(file, bytes.to_vec());
        Ok(())
    }
    fn harden(&mut self, file: FileId, at: u64, bytes: &[u8]) -> Result<(), DiskFault> {
        let file = self.0.get_mut(&file).ok_or(DiskFault::Missing)?;
        file[at as usize..at as usize + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }
    fn remove(&mut self, file: FileId) -> Result<(), DiskFault> {
        self.0.remove(&file);
        Ok(())
    }
}

/// A node of several shards.
pub struct World {
    pub shards: Vec<Shard>,
    pub queues: Vec<Queues>,
    pub files: BTreeMap<FileId, Vec<u8>>,
    pending: Vec<VecDeque<DiskOp>>,
    /// The disks do nothing.
    pub still: bool,
    /// No segment is made.
    pub no_segments: bool,
    pub now: Now,
    /// What the shards' clocks are read at, between all steps; 0 = nobody reads them.
    pub ns: u64,
    next_id: u64,
}

impl World {
    pub fn new(shards: u16, limits: Limits, log: LogConfig) -> Self {
        let key = HashKey(7, 9);
        let mut mail = mesh(shards, &limits).into_iter();
        let made = (0..shards)
            .map(|i| {
                let config = ShardConfig { shard: ShardId(i), shards, limits: limits.clone(), seed: u64::from(i) };
                let recovered = RecoveredLog::empty(key, LogId(u32::from(i)));
                Shard::new(config, Log::new(log, recovered), mail.next().expect("one each"))
            })
            .collect();
        Self {
            shards: made,
            queues: (0..shards).map(|_| Queues::default()).collect(),
            files: BTreeMap::new(),
            pending: (0..shards).map(|_| VecDeque::new()).collect(),
            still: false,
            no_segments: false,
            now: Now { mono_us: 1, wall_ms: 1_700_000_000_000 },
            ns: 0,
            next_id: 0,
        }
    }

    /// The process ends as if cut off, and another one begins over what is on disk.
    pub fn restart(&mut self, shards: u16, limits: Limits, log: LogConfig) {
        let first = Manifest::new(HashKey(7, 9), self.shards.len() as u16).encode();
        self.files.entry(FileId::Manifest).or_insert(first);
        let recovered =
            recovery::recover(&mut Files(&mut self.files), shards, HashKey(7, 9)).expect("nothing is damaged");
        let known = declared(&recovered);
        let mut mail = mesh(shards, &limits).into_iter();
        self.shards = (0..shards)
            .zip(recovered.logs)
            .map(|(i, recovered)| {
                let config = ShardConfig { shard: ShardId(i), shards, limits: limits.clone(), seed: self.now.mono_us };
                let mut shard = Shard::new(config, Log::new(log, recovered), mail.next().expect("one each"));
                shard.know_queues(&known);
                shard
            })
            .collect();
        self.queues = (0..shards).map(|_| Queues::default()).collect();
        self.pending = (0..shards).map(|_| VecDeque::new()).collect();
    }

    pub fn connect(&mut self, shard: usize, slot: u32, client: &str) {
        self.connect_principal(shard, slot, Principal { tenant: "default", client_id: client, rights: None });
    }

    pub fn connect_with(&mut self, shard: usize, slot: u32, client: &str, rights: Option<&Arc<Rights>>) {
        self.connect_principal(shard, slot, Principal { tenant: "default", client_id: client, rights });
    }

    pub fn connect_as(&mut self, tenant: &str, shard: usize, slot: u32, client: &str) {
        self.connect_principal(shard, slot, Principal { tenant, client_id: client, rights: None });
    }

    fn connect_principal(&mut self, shard: usize, slot: u32, principal: Principal) {
        let connection = ConnectionId { slot, generation: 1 };
        assert_eq!(self.shards[shard].handle(Input::Connected { connection, principal }, self.now), Handled::Done);
    }

    pub fn renew(&mut self, shard: usize, slot: u32, rights: &Arc<Rights>) {
        let connection = ConnectionId { slot, generation: 1 };
        let renewed = Input::Renewed { connection, rights: Some(rights) };
        assert_eq!(self.shards[shard].handle(renewed, self.now), Handled::Done);
    }

    pub fn disconnect(&mut self, shard: usize, slot: u32) {
        let connection = ConnectionId { slot, generation: 1 };
        assert_eq!(self.shards[shard].handle(Input::Disconnected { connection }, self.now), Handled::Done);
    }

    pub fn drained(&mut self, shard: usize, slot: u32, room: usize) {
        self.queues[shard].room.insert(slot, room);
        let connection = ConnectionId { slot, generation: 1 };
        let _ = self.shards[shard].handle(Input::Drained { connection }, self.now);
    }

    /// Hands a command in; its id, or `None` if the shard said later.
    pub fn send(&mut self, shard: usize, slot: u32, command: Command<'_>) -> Option<u64> {
        self.next_id += 1;
        let connection = ConnectionId { slot, generation: 1 };
        let id = CommandId::Number(self.next_id);
        let handled = self.shards[shard].handle(Input::Command { connection, id, command }, self.now);
        (handled == Handled::Done).then_some(self.next_id)
    }

    /// A shard's clock is read.
    pub fn tick(&mut self, i: usize) -> u64 {
        if self.ns > 0 {
            self.ns += 1000;
            self.shards[i].clock(self.ns);
        }
        self.ns
    }

    /// One turn of one shard.
    pub fn turn(&mut self, i: usize) -> usize {
        self.now.mono_us += 50;
        let mut work = 0;
        self.tick(i);
        let withheld = |op: &DiskOp| matches!(op, DiskOp::Job { job: Job::Prepare { .. }, .. }) && self.no_segments;
        if !self.still
            && let Some(at) = self.pending[i].iter().position(|op| !withheld(op))
            && let Some(op) = self.pending[i].remove(at)
        {
            let done = self.perform(i, op);
            self.shards[i].disk_done(done, self.now);
            work += 1;
        }
        let (shard, queue) = (&mut self.shards[i], &mut self.queues[i]);
        work += shard.collect(self.now, queue);
        work += shard.expire(self.now);
        Self::effects(shard, queue);
        self.tick(i);
        let (shard, queue) = (&mut self.shards[i], &mut self.queues[i]);
        while let Some(op) = shard.poll_disk(self.now) {
            self.pending[i].push_back(op);
        }
        work += shard.deliver(self.now, 64 << 10, queue);
        Self::effects(shard, queue);
        self.tick(i);
        let shard = &mut self.shards[i];
        while let Some(op) = shard.poll_disk(self.now) {
            self.pending[i].push_back(op);
        }
        work + self.pending[i].len()
    }

    fn effects(shard: &mut Shard, queue: &mut Queues) {
        while let Some(effect) = shard.poll_effect() {
            if let Effect::TurnedAway { connection } = effect {
                queue.got.entry(connection.slot).or_default().push(Got::Reply(0, "turned away".into()));
                continue;
            }
            if let Effect::Reply {
                connection,
                id: CommandId::None,
                reply: Reply::Work(WorkReply::Job { session, job, happened: JobHappened::Lost { .. } }),
            } = effect
            {
                let lost = Got::Lost(session.to_owned(), job.offset);
                queue.got.entry(connection.slot).or_default().push(lost);
                continue;
            }
            if let Effect::Reply {
                connection,
                id: CommandId::None,
                reply: Reply::Work(WorkReply::GroupLost { session, lease, .. }),
            } = effect
            {
                let lost = Got::Lost(session.to_owned(), lease.nonce);
                queue.got.entry(connection.slot).or_default().push(lost);
                continue;
            }
            if let Effect::Reply { connection, id: CommandId::Number(id), reply } = effect {
                let text = match reply {
                    Reply::Refused(refused) => {
                        let expected = refused.expected.map_or(String::new(), |n| format!(" {n}"));
                        let after = match refused.refusal {
                            Refusal::OverQuota => format!(" after {}", refused.retry_after_ms.unwrap_or(0)),
                            _ => String::new(),
                        };
                        format!("refused {} {}{expected}{after}", refused.refusal.name(), refused.field)
                    }
                    Reply::Published { offset, duplicate, .. } => format!("published {offset} {duplicate}"),
                    Reply::Subscribed { next, .. } => format!("subscribed {next}"),
                    Reply::Committed { offset, count, duplicate, revision, .. } => {
                        format!("committed {offset} {count} {duplicate} {revision}")
                    }
                    Reply::Work(WorkReply::Job { happened, .. }) => format!("{happened:?}"),
                    Reply::Work(WorkReply::Queues { items, more }) => {
                        let all: Vec<String> = shards::effect::queue_items(items)
                            .map(|item| format!("{} {}", item.queue, item.capacity))
                            .collect();
                        format!("queues {}{}", all.join(", "), if more { " more" } else { "" })
                    }
                    Reply::Work(WorkReply::Markers { items, next }) => {
                        let all: Vec<String> = shards::effect::marker_items(items)
                            .map(|item| {
                                let held = if item.is_held { " held" } else { "" };
                                format!(
                                    "{}{}{} {}+{}{held}",
                                    item.session, item.name, item.group, item.offset, item.lag
                                )
                            })
                            .collect();
                        format!(
                            "markers {}{}",
                            all.join(", "),
                            next.map_or(String::new(), |next| format!(" next {next}"))
                        )
                    }
                    Reply::Work(WorkReply::Put { key, revision, .. }) => format!("put {key} {revision}"),
                    Reply::Work(WorkReply::Deleted { key, revision, .. }) => format!("deleted {key} {revision}"),
                    other => format!("{other:?}"),
                };
                queue.got.entry(connection.slot).or_default().push(Got::Reply(id, text));
            }
        }
    }

    /// Turns until nothing is left to do.
    pub fn settle(&mut self) {
        for _ in 0..20_000 {
            let mut work = 0;
            for i in 0..self.shards.len() {
                work += self.turn(i);
            }
            if work == 0 {
                return;
            }
        }
        panic!("the world does not come to rest");
    }

    fn perform(&mut self, i: usize, op: DiskOp) -> DiskDone {
        match op {
            DiskOp::Commit { op, segment, at, start, len, .. } => {
                let bytes = self.shards[i].log().arena(start, len).to_vec();
                let file = self.files.get_mut(&FileId::Segment(segment)).expect("prepared");
                file[at as usize..at as usize + len].copy_from_slice(&bytes);
                DiskDone::Commit { op, result: Ok(()) }
            }
            DiskOp::Read { op, file, at, len, slot } => {
                let Some(bytes) = self.files.get(&file) else {
                    return DiskDone::Read { op, result: Err(storage::disk::DiskFault::Missing) };
                };
                let from = (at as usize).min(bytes.len());
                let to = (from + len).min(bytes.len());
                self.shards[i].log_mut().read_buffer_mut(slot)[..to - from].copy_from_slice(&bytes[from..to]);
                DiskDone::Read { op, result: Ok(to - from) }
            }
            DiskOp::Job { op, job } => {
                let mut run = JobRun::new(job);
                let mut input = Vec::new();
                let mut temporary: BTreeMap<FileId, Vec<u8>> = BTreeMap::new();
                loop {
                    match run.step(&input) {
                        Step::Zero { file, bytes } => {
                            self.files.insert(file, vec![0; bytes as usize]);
                        }
                        Step::Read { file, at, len } => {
                            let bytes = &self.files[&file];
                            let from = (at as usize).min(bytes.len());
                            input = bytes[from..(from + len).min(bytes.len())].to_vec();
                        }
                        Step::Append { file, bytes } => temporary.entry(file).or_default().extend_from_slice(bytes),
                        Step::Publish { file } => {
                            let bytes = temporary.remove(&file).unwrap_or_default();
                            self.files.insert(file, bytes);
                        }
                        Step::Remove { file } => {
                            self.files.remove(&file);
                        }
                        Step::Done(done) => return DiskDone::Job { op, result: Ok(done) },
                    }
                }
            }
        }
    }
}
