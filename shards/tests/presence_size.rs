//! A room of ten thousand: whoever comes late gets all of it, a storm of changes becomes a few rows of frames, and no turn has more
//! to say than its bound, however many members and watchers there are.
//!
//! ```text
//!   10 000 members over 3 shards ─► owner ─► copies ─► 12 watchers        each turn of each shard: at most TURN_BYTES_MAX of frames
//! ```

mod world;

use shards::command::{Command, PresenceAct, PresenceState, RosterKind};
use shards::limits::{Limits, PRESENCE_FRAME_BYTES_MAX, PresenceLimits};
use shards::outbox::Happened;
use std::collections::BTreeMap;
use storage::log::LogConfig;
use world::{Got, World};

const MEMBERS: u32 = 10_000;
const SHARDS: u16 = 3;
const WATCHERS: u32 = 12;
/// Slots of members; those of watchers lie below.
const FIRST: u32 = 1000;
/// What a turn says to watchers, and the frame with which it passes that.
const TURN_BYTES_MAX: usize = (256 << 10) + PRESENCE_FRAME_BYTES_MAX + 4096;

fn act(act: PresenceAct<'_>) -> Command<'_> {
    Command::Presence { session: "hall", act }
}

/// A place where nobody is asked to wait for the connections of others.
struct Hall {
    world: World,
    /// What each watcher believes, and the frames it got.
    views: Vec<(BTreeMap<String, String>, u64, usize)>,
}

impl Hall {
    fn new() -> Self {
        let world = World::new(SHARDS, Limits::default(), LogConfig::small());
        Self { world, views: Vec::new() }
    }

    fn watch(&mut self) {
        let watcher = self.views.len() as u32;
        let shard = self.shard_of(watcher);
        self.world.connect(shard, watcher, &format!("w{watcher}"));
        self.world.send(shard, watcher, act(PresenceAct::Watch(RosterKind::Presence))).expect("taken");
        self.views.push((BTreeMap::new(), 0, 0));
    }

    fn shard_of(&self, slot: u32) -> usize {
        (slot % u32::from(SHARDS)) as usize
    }

    /// Each member does this; turns go on meanwhile.
    fn all(&mut self, comes: bool, act_of: impl Fn(u32) -> Option<PresenceAct<'static>>) {
        for n in 0..MEMBERS {
            let (shard, slot) = (self.shard_of(n), FIRST + n);
            if comes {
                self.world.connect(shard, slot, &format!("member-{n}"));
            }
            match act_of(n) {
                Some(what) => {
                    while self.world.send(shard, slot, act(what)).is_none() {
                        self.turn();
                    }
                }
                None => self.world.disconnect(shard, slot),
            }
            if n % 64 == 0 {
                self.turn();
            }
        }
    }

    /// A turn of each shard.
    fn turn(&mut self) {
        for shard in 0..usize::from(SHARDS) {
            let before = self.world.queues[shard].roster_bytes;
            self.world.turn(shard);
            let said = self.world.queues[shard].roster_bytes - before;
            assert!(said <= TURN_BYTES_MAX, "{said} bytes in one turn");
        }
    }

    /// Time goes by; then each watcher has heard what there was to hear.
    fn pass(&mut self, ms: u64) {
        for _ in 0..ms.div_ceil(20) {
            self.world.now.mono_us += 20_000;
            for _ in 0..8 {
                self.turn();
            }
        }
        for watcher in 0..self.views.len() {
            let shard = self.shard_of(watcher as u32);
            let got = self.world.queues[shard].got.remove(&(watcher as u32)).unwrap_or_default();
            let (believes, version, frames) = &mut self.views[watcher];
            for frame in got.into_iter().filter_map(|got| if let Got::Roster(frame) = got { Some(frame) } else { None })
            {
                if frame.snapshot {
                    believes.clear();
                    *version = 0;
                }
                assert_eq!(frame.after, *version, "a hole");
                (*version, *frames) = (frame.version, *frames + 1);
                for (client, happened, value) in frame.changes {
                    match happened {
                        Happened::Left => drop(believes.remove(&client)),
                        Happened::Joined | Happened::Updated => drop(believes.insert(client, value)),
                    }
                }
            }
        }
    }

    /// Frames that each watcher has got since the last time.
    fn frames(&mut self) -> Vec<usize> {
        self.views.iter_mut().map(|(_, _, frames)| std::mem::take(frames)).collect()
    }
}

#[test]
fn a_room_of_ten_thousand_is_told_whole_late_and_in_bounded_turns() {
    let mut hall = Hall::new();
    (0..WATCHERS).for_each(|_| hall.watch());
    hall.all(true, |_| {
        Some(PresenceAct::Enter { state: PresenceState::Idle, data: Some(b"{\"n\":1}"), lease_ms: None, log: false })
    });
    hall.pass(2000);
    assert!(hall.views.iter().all(|(believes, ..)| believes.len() == MEMBERS as usize));
    hall.frames();

    // Late ones get what there is in frames that are full.
    (0..WATCHERS).for_each(|_| hall.watch());
    hall.pass(1000);
    let whole = MEMBERS as usize * (96 + "member-9999".len() + 8) / PRESENCE_FRAME_BYTES_MAX + 1;
    let frames = hall.frames();
    assert!(frames[..WATCHERS as usize].iter().all(|frames| *frames == 0), "nothing has changed: {frames:?}");
    assert!(frames[WATCHERS as usize..].iter().all(|frames| (1..=whole).contains(frames)), "{whole}: {frames:?}");
    assert!(hall.views.iter().all(|(believes, ..)| *believes == hall.views[0].0));

    // All change three times in a tick: each watcher is told each member once, or twice where a tick passed meanwhile.
    for state in [PresenceState::Thinking, PresenceState::Blocked, PresenceState::Tool] {
        hall.all(false, |_| Some(PresenceAct::Update { state: Some(state), data: None }));
    }
    hall.pass(1000);
    let frames = hall.frames();
    assert!(frames.iter().all(|frames| (1..=2 * whole + 2).contains(frames)), "{whole}: {frames:?}");
    assert!(hall.views.iter().all(|(believes, ..)| believes.values().all(|value| value == "tool {\"n\":1}")));

    // All vanish: nobody is told before the leases end, and then everybody is told of everybody.
    hall.all(false, |_| None);
    hall.pass(PresenceLimits::default().lease_ms / 2);
    assert_eq!(hall.frames().iter().sum::<usize>(), 0, "no false leave");
    hall.pass(PresenceLimits::default().lease_ms);
    assert!(hall.views.iter().all(|(believes, ..)| believes.is_empty()), "no ghosts");
    let largest = hall.world.queues.iter().map(|queue| queue.roster_frame_bytes_max).max();
    assert!(largest <= Some(PRESENCE_FRAME_BYTES_MAX + 1024), "{largest:?}");
}
