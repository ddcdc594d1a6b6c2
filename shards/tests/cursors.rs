//! Cursors against lists. A reader's model is the list of what it must get: the events of a session from where it began, or
//! of all sessions, each once and in order. Readers come late, are slow, run out of credit, go away; one has both kinds of
//! subscription. Whatever they do, what they got is the beginning of their list, and in the end all of it.

mod world;

use proptest::prelude::*;
use shards::command::{Command, Durability, From, NewEvent, PatternFrom, Policy};
use shards::limits::Limits;
use std::collections::BTreeMap;
use storage::log::LogConfig;
use storage::record::DataKind;
use world::{Got, World};

const SESSIONS: [&str; 3] = ["s0", "s1", "s2"];
const READERS: u32 = 4;
/// The publisher's connection; readers come behind it.
const PUBLISHER: u32 = 0;

#[derive(Clone, Debug)]
enum Step {
    Publish {
        session: u8,
        bytes: u16,
    },
    /// Reads a session, from its beginning, a fraction of it or its end.
    Subscribe {
        reader: u8,
        session: u8,
        from: u8,
    },
    /// Reads all sessions.
    SubscribeAll {
        reader: u8,
        from: u8,
    },
    /// At most so many events unacknowledged.
    Credit {
        reader: u8,
        events: u8,
    },
    /// Acknowledges what came.
    Acknowledge {
        reader: u8,
    },
    /// So many bytes of room in the send queue from now on.
    Room {
        reader: u8,
        bytes: u16,
    },
    /// Leaves and comes back, with what it saw last: a reader of all sessions by its position, another by offsets.
    Return {
        reader: u8,
    },
    /// So many turns of one shard.
    Turn {
        shard: u8,
        turns: u8,
    },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let reader = || 0..READERS as u8;
    let session = || 0..SESSIONS.len() as u8;
    let step = prop_oneof![
        8 => (session(), 0u16..900).prop_map(|(session, bytes)| Step::Publish { session, bytes }),
        2 => (reader(), session(), any::<u8>()).prop_map(|(reader, session, from)| Step::Subscribe { reader, session, from }),
        1 => (reader(), any::<u8>()).prop_map(|(reader, from)| Step::SubscribeAll { reader, from }),
        1 => (reader(), 1u8..20).prop_map(|(reader, events)| Step::Credit { reader, events }),
        2 => reader().prop_map(|reader| Step::Acknowledge { reader }),
        1 => reader().prop_map(|reader| Step::Return { reader }),
        2 => (reader(), 0u16..6000).prop_map(|(reader, bytes)| Step::Room { reader, bytes }),
        8 => (any::<u8>(), 1u8..20).prop_map(|(shard, turns)| Step::Turn { shard, turns }),
    ];
    proptest::collection::vec(step, 1..160)
}

/// What a reader was promised.
#[derive(Default)]
struct Reader {
    /// First offset of each session it must get.
    begins: BTreeMap<usize, u64>,
    all: bool,
    credit: Option<u64>,
    acknowledged: u64,
    /// Connections it had before this one.
    returns: u32,
    /// Last slice sequence it saw of each slice, on those.
    position: BTreeMap<u16, u64>,
}

struct Model {
    world: World,
    shards: usize,
    readers: Vec<Reader>,
    /// Data of the events of each session.
    published: [Vec<String>; 3],
}

impl Model {
    fn new(shards: usize) -> Self {
        let mut world = World::new(shards as u16, Limits::default(), LogConfig::small());
        world.connect(0, PUBLISHER, "publisher");
        for reader in 0..READERS as usize {
            world.connect(reader % shards, 1 + reader as u32, &format!("reader-{reader}"));
        }
        let readers = (0..READERS).map(|_| Reader::default()).collect();
        Self { world, shards, readers, published: Default::default() }
    }

    fn place(&self, reader: u8) -> (usize, u32) {
        (usize::from(reader) % self.shards, 1 + u32::from(reader) + self.readers[usize::from(reader)].returns * READERS)
    }

    /// Hands a command of a reader in when there is room for it, and lets it be answered.
    fn command(&mut self, reader: u8, command: Command<'_>) -> String {
        let (shard, slot) = self.place(reader);
        let id = loop {
            match self.world.send(shard, slot, command) {
                Some(id) => break id,
                None => self.turns(1),
            }
        };
        let find = |got: &Got| match got {
            Got::Reply(of, text) if *of == id => Some(text.clone()),
            _ => None,
        };
        for _ in 0..2000 {
            if let Some(text) = self.world.queues[shard].got.get(&slot).and_then(|got| got.iter().find_map(find)) {
                return text;
            }
            self.turns(1);
        }
        panic!("no reply to {command:?}");
    }

    fn turns(&mut self, turns: usize) {
        for _ in 0..turns {
            for shard in 0..self.shards {
                self.world.turn(shard);
            }
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Publish { session, bytes } => {
                let published = &mut self.published[usize::from(session)];
                let data = format!("\"{}:{}\"", published.len(), "x".repeat(bytes.into()));
                let message_id = format!("m{}", published.len());
                published.push(data.clone());
                let event = NewEvent {
                    topic: "a.b",
                    message_id: &message_id,
                    prev_event_id: None,
                    prev_message_id: None,
                    data: data.as_bytes(),
                    data_kind: DataKind::Json,
                    ttl_ms: None,
                    producer: None,
                    traceparent: "",
                };
                let session = SESSIONS[usize::from(session)];
                let publish = Command::Publish { session, event, durability: Durability::Disk };
                while self.world.send(0, PUBLISHER, publish).is_none() {
                    self.turns(1);
                }
            }
            Step::Subscribe { reader, session, from } => {
                let at = usize::from(session);
                // A session that does not exist yet begins at its first event, whatever is asked for.
                let from = match from % 3 {
                    0 => From::Earliest,
                    _ => From::Latest,
                };
                if self.readers[usize::from(reader)].begins.contains_key(&at) {
                    return;
                }
                let reply =
                    self.command(reader, Command::Subscribe { session: SESSIONS[at], from, policy: Policy::Lossless });
                let next = reply.strip_prefix("subscribed ").unwrap_or_else(|| panic!("{reply}"));
                self.readers[usize::from(reader)].begins.insert(at, next.parse().expect("an offset"));
            }
            Step::SubscribeAll { reader, from } => {
                let state = &self.readers[usize::from(reader)];
                // With both kinds, who delivers what is the other test's business; here a reader has one of them.
                if state.all || !state.begins.is_empty() || from % 2 == 1 && !self.published.iter().all(Vec::is_empty) {
                    return;
                }
                let command = Command::SubscribePatterns { patterns: &[">"], from: PatternFrom::Earliest };
                let reply = self.command(reader, command);
                assert!(!reply.starts_with("refused"), "{reply}");
                let state = &mut self.readers[usize::from(reader)];
                state.all = true;
                state.begins = (0..SESSIONS.len()).map(|session| (session, 0)).collect();
            }
            Step::Credit { reader, events } => {
                let credit_events = Some(u64::from(events));
                self.command(reader, Command::Hello { credit_events, credit_bytes: None });
                self.readers[usize::from(reader)].credit = credit_events;
            }
            Step::Acknowledge { reader } => self.acknowledge(reader),
            Step::Return { reader } => self.return_of(reader),
            Step::Room { reader, bytes } => {
                let (shard, slot) = self.place(reader);
                self.world.drained(shard, slot, bytes.into());
            }
            Step::Turn { shard, turns } => {
                for _ in 0..turns {
                    self.world.turn(usize::from(shard) % self.shards);
                }
            }
        }
        self.check();
    }

    fn return_of(&mut self, reader: u8) {
        let received = self.received(reader);
        let mut begins = self.readers[usize::from(reader)].begins.clone();
        for (session, offset, _) in received {
            begins.insert(session, offset + 1);
        }
        let (shard, slot) = self.place(reader);
        let mut seen = BTreeMap::new();
        for got in self.world.queues[shard].got.get(&slot).into_iter().flatten() {
            if let Got::Event { slice, slice_seq, .. } = got {
                seen.insert(*slice, *slice_seq);
            }
        }
        // Slices of which nothing came since stand where they stood.
        let stood = std::mem::take(&mut self.readers[usize::from(reader)].position);
        let position: BTreeMap<u16, u64> = stood.into_iter().chain(seen).collect();
        self.world.disconnect(shard, slot);
        let state = &mut self.readers[usize::from(reader)];
        let returns = state.returns + 1;
        let all = state.all;
        *state = Reader { begins: begins.clone(), all, returns, position: position.clone(), ..Reader::default() };
        let (shard, slot) = self.place(reader);
        self.world.connect(shard, slot, &format!("reader-{reader}"));
        if all {
            let text: Vec<String> = position.iter().map(|(slice, seq)| format!("{slice}.{seq}")).collect();
            let text = text.join(",");
            let from = if text.is_empty() { PatternFrom::Earliest } else { PatternFrom::Position(&text) };
            let reply = self.command(reader, Command::SubscribePatterns { patterns: &[">"], from });
            assert!(!reply.starts_with("refused"), "{reply}");
            return;
        }
        for (session, offset) in begins {
            let from = From::Offset(offset, None);
            let reply =
                self.command(reader, Command::Subscribe { session: SESSIONS[session], from, policy: Policy::Lossless });
            assert_eq!(reply, format!("subscribed {offset}"));
        }
    }

    fn acknowledge(&mut self, reader: u8) {
        let (shard, slot) = self.place(reader);
        let events = self.received(reader).len() as u64;
        if self.world.send(shard, slot, Command::Acknowledge { events, bytes: None }).is_some() {
            self.readers[usize::from(reader)].acknowledged = events;
        }
    }

    /// (session, offset, data) in the order of arrival.
    fn received(&self, reader: u8) -> Vec<(usize, u64, &str)> {
        let (shard, slot) = self.place(reader);
        let got = self.world.queues[shard].got.get(&slot).map_or(&[][..], |got| got);
        assert!(!got.iter().any(|got| matches!(got, Got::Gap { .. } | Got::PatternGap)), "nothing was removed");
        let event = |got| match got {
            &Got::Event { ref session, offset, ref data, .. } => {
                Some((SESSIONS.iter().position(|name| name == session).expect("one of ours"), offset, &data[..]))
            }
            _ => None,
        };
        got.iter().filter_map(event).collect()
    }

    /// What every reader got is the beginning of its list, and within its credit.
    fn check(&self) {
        for reader in 0..READERS as u8 {
            let state = &self.readers[usize::from(reader)];
            let mut next = state.begins.clone();
            let received = self.received(reader);
            for (session, offset, data) in &received {
                let Some(next) = next.get_mut(session) else { panic!("reader {reader} never asked for {session}") };
                assert_eq!(offset, next, "reader {reader}, session {session}");
                assert_eq!(*data, self.published[*session][*offset as usize]);
                *next += 1;
            }
        }
    }

    /// Everybody reads as fast as it comes: what is missing?
    fn finish(&mut self) {
        for _ in 0..600 {
            for reader in 0..READERS as u8 {
                let (shard, slot) = self.place(reader);
                self.world.drained(shard, slot, 1 << 20);
                self.acknowledge(reader);
            }
            self.turns(4);
        }
        self.check();
        for reader in 0..READERS as u8 {
            let mut counts = BTreeMap::new();
            self.received(reader).iter().for_each(|(session, ..)| *counts.entry(*session).or_insert(0u64) += 1);
            for (session, begin) in &self.readers[usize::from(reader)].begins {
                let expected = self.published[*session].len() as u64 - begin;
                let got = counts.get(session).copied().unwrap_or(0);
                assert_eq!(got, expected, "reader {reader}, session {session} from {begin}");
            }
        }
    }

    /// No reader holds more than its credit, as long as the window was there from the start.
    fn check_credit(&self, before: &[usize]) {
        for (reader, before) in (0..READERS as u8).zip(before) {
            let state = &self.readers[usize::from(reader)];
            let now = self.received(reader).len();
            if let Some(credit) = state.credit
                && now > *before
            {
                assert!(now as u64 <= state.acknowledged + credit, "reader {reader} got {now} with {credit}");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn a_reader_gets_the_beginning_of_its_list_and_then_all_of_it(steps in steps(), shards in 1usize..4) {
        let mut model = Model::new(shards);
        for step in steps {
            let before: Vec<usize> = (0..READERS as u8).map(|reader| model.received(reader).len()).collect();
            let new_window = matches!(step, Step::Credit { .. });
            model.step(step);
            if !new_window {
                model.check_credit(&before);
            }
        }
        model.finish();
    }
}
