//! The jobs of one queue on one shard, in the order in which they are handed out.
//!
//! ```text
//!   class 0   session A ─ session C ─ …        a ring of sessions that have something to be claimed; each gives one job and goes to
//!   class 1   session B ─ …                    the end: dealt by session, so that none can starve another
//!
//!   session A, order session   ■ ■ □ □         its first open job only (■ at work or waiting, □ behind it)
//!   session B, order free      ■ □ ■ □         any that waits (□), by class, then by offset
//! ```

use super::room::Share;
use crate::command::JobOrder;
use crate::delivery::ByPartition;
use crate::ids::{Offset, PartitionId, ShardId};
use crate::limits::QUEUE_PATTERNS_MAX;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

/// Ends that the drain rate is made of.
pub(super) const ENDS_MAX: usize = 16;

/// Advice where nothing is known yet, the least, and the most. Milliseconds.
const RETRY_MS: (u64, u64, u64) = (1000, 10, 10_000);

/// An open job in its session.
struct Place {
    slot: u32,
    class: u8,
    waits: bool,
}

/// Open jobs of one session.
#[derive(Default)]
struct Lane {
    open: BTreeMap<Offset, Place>,
    /// Those that may be claimed, by class.
    waiting: BTreeSet<(u8, Offset)>,
    /// In which ring, and under which number.
    ring: Option<(u8, u64)>,
}

impl Lane {
    fn next(&self, order: JobOrder) -> Option<(u8, Offset)> {
        match order {
            JobOrder::Free => self.waiting.first().copied(),
            JobOrder::Session => {
                let (offset, place) = self.open.first_key_value()?;
                place.waits.then_some((place.class, *offset))
            }
        }
    }
}

/// A shard with workers that pull from here.
pub(crate) struct Puller {
    pub shard: ShardId,
    /// It has found nothing more, and wants to be told.
    pub dry: bool,
}

/// One queue's.
pub(super) struct Line {
    pub tenant: Arc<str>,
    pub queue: Box<str>,
    order: JobOrder,
    /// Jobs appended as opened, and not committed as ended.
    pub used: u64,
    /// Permits for more.
    pub share: Share,
    lanes: ByPartition<Lane>,
    /// By class: sessions by ticket. Who leaves is taken out at once: where nobody claims, jobs that only come and end would fill it.
    rings: Vec<BTreeMap<u64, PartitionId>>,
    /// Sessions with something to be claimed.
    claimable: usize,
    tickets: u64,
    pub pullers: Vec<Puller>,
    /// It is among the lines with news.
    pub has_news: bool,
    /// Dead letters, as they came.
    pub dead: BTreeMap<u64, u32>,
    pub drain: Drain,
}

/// How fast jobs end.
#[derive(Default)]
pub(super) struct Drain {
    ends_us: VecDeque<u64>,
}

impl Drain {
    /// A job has ended.
    pub fn ended(&mut self, now_us: u64) {
        if self.ends_us.len() == ENDS_MAX {
            self.ends_us.pop_front();
        }
        self.ends_us.push_back(now_us);
    }

    /// In how long one more job will usually have ended.
    pub fn retry_after_ms(&self, now_us: u64) -> u32 {
        let (unknown, least, most) = RETRY_MS;
        let Some(first_us) = self.ends_us.front().filter(|_| self.ends_us.len() > 1) else { return unknown as u32 };
        let each_ms = now_us.saturating_sub(*first_us) / 1000 / self.ends_us.len() as u64;
        each_ms.clamp(least, most) as u32
    }
}

impl Line {
    pub fn new(tenant: Arc<str>, queue: &str, order: JobOrder) -> Line {
        Line {
            tenant,
            queue: queue.into(),
            order,
            used: 0,
            share: Share::default(),
            lanes: ByPartition::default(),
            rings: vec![BTreeMap::new(); QUEUE_PATTERNS_MAX + 1],
            claimable: 0,
            tickets: 0,
            pullers: Vec::new(),
            has_news: false,
            dead: BTreeMap::new(),
            drain: Drain::default(),
        }
    }

    /// Its jobs are handed out in another order from now on.
    pub fn reorder(&mut self, order: JobOrder) {
        if std::mem::replace(&mut self.order, order) != order {
            let lanes: Vec<PartitionId> = self.lanes.keys().copied().collect();
            lanes.into_iter().for_each(|partition| self.rank(partition));
        }
    }

    /// Is there anything to be claimed?
    pub fn is_claimable(&self) -> bool {
        self.claimable > 0
    }

    /// A job is open; it does not wait yet.
    pub fn open(&mut self, partition: PartitionId, offset: Offset, slot: u32, class: u8) {
        let class = class.min(QUEUE_PATTERNS_MAX as u8);
        self.lanes.entry(partition).or_default().open.insert(offset, Place { slot, class, waits: false });
        self.rank(partition);
    }

    /// An open job may be claimed, or no longer.
    pub fn waits(&mut self, partition: PartitionId, offset: Offset, waits: bool) {
        let Some(lane) = self.lanes.get_mut(&partition) else { return };
        let Some(place) = lane.open.get_mut(&offset) else { return };
        place.waits = waits;
        if waits {
            lane.waiting.insert((place.class, offset));
        } else {
            lane.waiting.remove(&(place.class, offset));
        }
        self.rank(partition);
    }

    /// A job is not open any more.
    pub fn remove(&mut self, partition: PartitionId, offset: Offset) {
        let Some(lane) = self.lanes.get_mut(&partition) else { return };
        if let Some(place) = lane.open.remove(&offset) {
            lane.waiting.remove(&(place.class, offset));
        }
        self.rank(partition);
        if self.lanes.get(&partition).is_some_and(|lane| lane.open.is_empty()) {
            self.lanes.remove(&partition);
        }
    }

    /// Open jobs of a session before this offset; none where sessions keep no order.
    pub fn open_before(&self, partition: PartitionId, offset: Offset) -> impl Iterator<Item = u32> {
        let lane = self.lanes.get(&partition).filter(|_| self.order == JobOrder::Session);
        lane.into_iter().flat_map(move |lane| lane.open.range(..offset)).map(|(_, place)| place.slot)
    }

    /// The next job to be handed out; it waits no longer.
    pub fn claim(&mut self) -> Option<u32> {
        for class in 0..self.rings.len() {
            while let Some((_, partition)) = self.rings[class].pop_first() {
                let Some(lane) = self.lanes.get_mut(&partition) else { continue };
                lane.ring = None;
                self.claimable -= 1;
                let Some((_, offset)) = lane.next(self.order) else { continue };
                let slot = lane.open.get(&offset).map(|place| place.slot);
                // Its session goes to the end of the ring.
                self.waits(partition, offset, false);
                return slot;
            }
        }
        None
    }

    /// Puts a session into the ring of its next job, or takes it out.
    fn rank(&mut self, partition: PartitionId) {
        let Some(lane) = self.lanes.get_mut(&partition) else { return };
        let class = lane.next(self.order).map(|(class, _)| class);
        if class == lane.ring.map(|(class, _)| class) {
            return;
        }
        if let Some((class, ticket)) = lane.ring.take() {
            self.rings[usize::from(class)].remove(&ticket);
            self.claimable -= 1;
        }
        lane.ring = class.map(|class| {
            self.tickets += 1;
            self.rings[usize::from(class)].insert(self.tickets, partition);
            self.claimable += 1;
            (class, self.tickets)
        });
    }

    /// There is nothing about it that is worth keeping.
    pub fn is_idle(&self, now_us: u64) -> bool {
        let has_none = self.used == 0 && self.share.is_idle(now_us);
        has_none && self.lanes.is_empty() && self.pullers.is_empty() && self.dead.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn line(order: JobOrder) -> Line {
        Line::new("t".into(), "q", order)
    }

    fn add(line: &mut Line, session: u128, offset: Offset, class: u8) {
        line.open(PartitionId(session), offset, (session as u32) * 1000 + offset as u32, class);
        line.waits(PartitionId(session), offset, true);
    }

    #[test]
    fn sessions_take_turns_and_keep_their_order() {
        let mut line = line(JobOrder::Session);
        for offset in 0..3 {
            add(&mut line, 1, offset, 0);
            add(&mut line, 2, offset, 0);
        }
        assert_eq!(
            [line.claim(), line.claim(), line.claim()],
            [Some(1000), Some(2000), None],
            "one of each is at work"
        );
        assert!(!line.is_claimable());
        line.remove(PartitionId(2), 0);
        assert_eq!([line.claim(), line.claim()], [Some(2001), None]);
        // Given back, it is the first again.
        line.waits(PartitionId(1), 0, true);
        assert_eq!(line.claim(), Some(1000));
    }

    #[test]
    fn higher_classes_go_first_also_inside_a_session() {
        let mut line = line(JobOrder::Free);
        add(&mut line, 1, 0, 2);
        add(&mut line, 2, 0, 1);
        add(&mut line, 1, 1, 0);
        let claimed: Vec<_> = std::iter::from_fn(|| line.claim()).collect();
        assert_eq!(claimed, [1001, 2000, 1000]);
    }

    #[test]
    fn the_drain_rate_tells_when_to_come_back() {
        let mut drain = Drain::default();
        assert_eq!(drain.retry_after_ms(5), 1000);
        for n in 0..20 {
            drain.ended(n * 50_000);
        }
        assert_eq!(drain.retry_after_ms(19 * 50_000), 46, "sixteen in 750 ms");
        assert_eq!(drain.retry_after_ms(400_000_000), 10_000);
    }

    #[test]
    fn jobs_that_nobody_claims_leave_nothing_behind() {
        let mut line = line(JobOrder::Session);
        for offset in 0..100 {
            add(&mut line, 1, offset, 0);
            line.remove(PartitionId(1), offset);
        }
        assert_eq!(line.rings.iter().map(BTreeMap::len).sum::<usize>(), 0);
    }

    proptest! {
        /// Dealt by session: while two sessions both have something of one class to be claimed, neither is given two jobs before the
        /// other is given one, whatever comes meanwhile.
        #[test]
        fn no_session_is_given_two_while_another_waits(
            steps in proptest::collection::vec((0u8..4, 1u128..6, 0u8..3), 1..300), free in any::<bool>(),
        ) {
            let order = if free { JobOrder::Free } else { JobOrder::Session };
            let (mut line, mut next) = (line(order), [0u64; 6]);
            // Claimed of each session since another one, with something of the class to be claimed all the time, was given a job.
            let mut before: BTreeMap<(u128, u128), (u64, u8)> = BTreeMap::new();
            for (step, session, class) in steps {
                if step < 2 {
                    add(&mut line, session, next[session as usize], class);
                    next[session as usize] += 1;
                } else if let Some(slot) = line.claim() {
                    let (given, offset) = (u128::from(slot / 1000), u64::from(slot % 1000));
                    let class = line.lanes[&PartitionId(given)].open[&offset].class;
                    for other in (1..6).filter(|other| *other != given) {
                        let waits = line.lanes.get(&PartitionId(other)).and_then(|lane| lane.next(order));
                        if waits.is_some_and(|(waits, _)| waits <= class) {
                            let (count, of) = before.entry((given, other)).or_default();
                            *count = if *of == class { *count + 1 } else { 1 };
                            *of = class;
                            prop_assert!(*count <= 1, "{given} was given {count} jobs of class {class} while {other} waited");
                        }
                        before.remove(&(other, given));
                    }
                    line.remove(PartitionId(given), offset);
                }
                // Who has nothing to be claimed has not waited.
                before.retain(|(_, other), (_, of)| {
                    line.lanes.get(&PartitionId(*other)).and_then(|lane| lane.next(order)).is_some_and(|(class, _)| class <= *of)
                });
            }
        }

        /// Against a list that is looked through each time: what is claimed is claimable, nothing is claimed twice, nothing is
        /// forgotten, and sessions keep their order where they should.
        #[test]
        fn everything_is_handed_out_once_and_in_order(
            steps in proptest::collection::vec((0u8..5, 1u128..5, 0u64..12, 0u8..3), 1..200), free in any::<bool>(),
        ) {
            let order = if free { JobOrder::Free } else { JobOrder::Session };
            let mut line = line(order);
            // Session and offset: class, waits.
            let mut model: BTreeMap<(u128, u64), (u8, bool)> = BTreeMap::new();
            for (step, session, offset, class) in steps {
                let known = model.contains_key(&(session, offset));
                match step {
                    0 | 1 if !known => {
                        add(&mut line, session, offset, class);
                        model.insert((session, offset), (class, true));
                    }
                    2 if known => {
                        line.remove(PartitionId(session), offset);
                        model.remove(&(session, offset));
                    }
                    3 if known => {
                        line.waits(PartitionId(session), offset, true);
                        model.insert((session, offset), (model[&(session, offset)].0, true));
                    }
                    4 => {
                        let may = |(s, o): (u128, u64)| {
                            let first = model.keys().find(|(other, _)| *other == s).map(|(_, o)| *o);
                            model[&(s, o)].1 && (free || first == Some(o))
                        };
                        let best = model.keys().copied().filter(|at| may(*at)).map(|at| model[&at].0).min();
                        match line.claim() {
                            Some(slot) => {
                                let at = (u128::from(slot / 1000), u64::from(slot % 1000));
                                prop_assert!(may(at), "{at:?}");
                                prop_assert_eq!(Some(model[&at].0), best);
                                model.insert(at, (model[&at].0, false));
                            }
                            None => prop_assert_eq!(best, None),
                        }
                    }
                    _ => {}
                }
                let may = model.iter().any(|((s, o), (_, waits))| {
                    let first = model.keys().find(|(other, _)| other == s).map(|(_, o)| *o);
                    *waits && (free || first == Some(*o))
                });
                prop_assert_eq!(line.is_claimable(), may);
            }
        }
    }
}
