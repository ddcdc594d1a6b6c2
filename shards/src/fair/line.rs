//! Who is next: deficit round robin by tenant, then by session, over what waits.
//!
//! ```text
//!   fresh ─► its tenant has some of its quantum left, and nobody of it waits ─► served at once, charged
//!              │ no
//!              ▼
//!   tenants   A ──► B ──► C ─► the round ends      each: quantum × weight a round; debt is kept, credit is not
//!             │
//!   sessions  s1 ─► s2 ─► s3                       each: one session quantum a visit
//!             │
//!   items     7, 9                                 in the order in which they came
//! ```
//! **Invariant.** Between two tenants that both always have something in line, service ÷ weight differs by less than one
//! quantum and one largest item. A tenant that is alone is never looked at: it has the whole core.
//! **Failure.** A turn has a budget for what is fresh and one for what waits, so neither starves the other. What finds no room
//! that all share stays first, and what is fresh takes no more of it than its tenants' quanta: a round does not end before.
//! What finds no room of its own is passed by, a bounded number of times a turn, and nobody twice before all others.
//! **Unit of backpressure.** One item: a connection's input, or a cursor. Nothing of another tenant stands behind it.

use hashbrown::HashMap;
use slab::Slab;
use std::collections::VecDeque;
use std::hash::BuildHasherDefault;
use xxhash_rust::xxh3::Xxh3Default;

/// What the shares are counted in. One unit is about what one byte costs.
pub(crate) type Cost = u64;

/// Items that found no room in one visit of a tenant; then it is the next one's turn. In units of [`TRY`].
const TRIES_PER_VISIT_MAX: u32 = 16 * TRY;
/// Items that found no room in one turn.
const TRIES_PER_TURN_MAX: u32 = 64 * TRY;
/// One item that was tried.
const TRY: u32 = 4;
/// One of which was seen without trying that there is none.
const LOOK: u32 = 1;
/// No queue, no node.
const NONE: u32 = u32::MAX;

/// How much is given at once.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Quanta {
    /// To a tenant of weight 1 in one round.
    pub tenant_cost: Cost,
    /// To a session in one visit.
    pub session_cost: Cost,
    /// To all that is fresh in one turn.
    pub fresh_cost_per_turn: Cost,
    /// To all that waits in one turn.
    pub line_cost_per_turn: Cost,
}

/// All that waits for its turn on one shard.
pub(crate) struct Line<T> {
    quanta: Quanta,
    /// By the tenant's slot.
    lanes: Vec<Lane>,
    present: usize,
    /// Tenants with something in line; the first one is being visited.
    active: VecDeque<u32>,
    round: u64,
    queues: Slab<Queue>,
    queue_of: HashMap<(u32, u64), u32, BuildHasherDefault<Xxh3Default>>,
    nodes: Slab<Node<T>>,
    /// Queue of the item that was given out last.
    serving: Option<Serving>,
    /// The first one found no shared room in this turn.
    is_stuck: bool,
    fresh_left: i64,
    line_left: i64,
    tries_left: u32,
    /// Items that found no room in this turn since one did.
    failures: usize,
}

/// A tenant's place.
#[derive(Default)]
struct Lane {
    present: bool,
    weight: u32,
    left: i64,
    /// Round up to which quanta were given.
    granted: u64,
    /// Round of the last visit that ended.
    visited: u64,
    tries: u32,
    /// Items that found no room in this visit since one did.
    failures: usize,
    sessions: VecDeque<u32>,
    /// Charged while it was not alone.
    served: Cost,
    /// Items that were passed by.
    passed: u64,
}

/// A session's place in its tenant's lane.
struct Queue {
    slot: u32,
    key: u64,
    left: i64,
    granted: bool,
    first: u32,
    last: u32,
}

struct Node<T> {
    item: T,
    next: u32,
}

#[derive(Clone, Copy)]
struct Serving {
    slot: u32,
    queue: u32,
    failed: bool,
}

impl<T> Line<T> {
    /// An empty line.
    pub fn new(quanta: Quanta) -> Self {
        Self {
            quanta,
            lanes: Vec::new(),
            present: 0,
            active: VecDeque::new(),
            round: 1,
            queues: Slab::new(),
            queue_of: HashMap::default(),
            nodes: Slab::new(),
            serving: None,
            is_stuck: false,
            fresh_left: quanta.fresh_cost_per_turn as i64,
            line_left: quanta.line_cost_per_turn as i64,
            tries_left: TRIES_PER_TURN_MAX,
            failures: 0,
        }
    }

    /// A tenant has come, or its weight is another one.
    pub fn enter(&mut self, slot: u32, weight: u32) {
        let at = slot as usize;
        if self.lanes.len() <= at {
            self.lanes.resize_with(at + 1, Lane::default);
        }
        let lane = &mut self.lanes[at];
        let before = i64::from(std::mem::replace(&mut lane.weight, weight.max(1)));
        // It keeps the part of a round that it has not had: what it was given for another weight is more or less of this one.
        if lane.left > 0 && before > 0 {
            lane.left = lane.left * i64::from(lane.weight) / before;
        }
        if !std::mem::replace(&mut lane.present, true) {
            self.present += 1;
            (lane.left, lane.granted, lane.visited) = (0, 0, 0);
            (lane.tries, lane.failures) = (0, 0);
            (lane.served, lane.passed) = (0, 0);
        }
    }

    /// A tenant has gone, and what waited for it.
    pub fn leave(&mut self, slot: u32) {
        self.end_serving();
        let Some(lane) = self.lanes.get_mut(slot as usize) else { return };
        if !std::mem::take(&mut lane.present) {
            return;
        }
        self.present -= 1;
        for queue in std::mem::take(&mut lane.sessions) {
            let gone = self.queues.remove(queue as usize);
            self.queue_of.remove(&(gone.slot, gone.key));
            let mut node = gone.first;
            while node != NONE {
                node = self.nodes.remove(node as usize).next;
            }
        }
        self.active.retain(|active| *active != slot);
    }

    /// There is nobody to be fair to.
    #[inline]
    pub fn is_alone(&self) -> bool {
        self.present <= 1
    }

    /// Items that wait.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Something waits although the turn has time for it and it was not seen to lack room: never after [`Line::next`] has said none.
    pub fn idles(&self) -> bool {
        !self.active.is_empty() && self.line_left > 0 && self.has_tries() && !self.is_stuck
    }

    /// A turn begins.
    pub fn begin_turn(&mut self) {
        self.end_serving();
        self.fresh_left = self.quanta.fresh_cost_per_turn as i64;
        self.line_left = self.quanta.line_cost_per_turn as i64;
        self.tries_left = TRIES_PER_TURN_MAX;
        self.failures = 0;
        self.is_stuck = false;
        if self.active.is_empty() {
            self.round += 1;
        }
    }

    /// May something fresh of this tenant be served before what waits? Its own come first.
    #[inline]
    pub fn may(&mut self, slot: u32) -> bool {
        self.is_alone() || (self.lanes[slot as usize].sessions.is_empty() && self.may_pass(slot))
    }

    /// The same where the order within the tenant does not count.
    #[inline]
    pub fn may_pass(&mut self, slot: u32) -> bool {
        self.is_alone() || (self.fresh_left > 0 && self.left(slot) > 0)
    }

    /// May the one that was given out last take more?
    pub fn may_go_on(&mut self) -> bool {
        let Some(serving) = self.serving else { return false };
        let session_left = self.queues.get(serving.queue as usize).map_or(0, |queue| queue.left);
        self.line_left > 0 && (self.is_alone() || (session_left > 0 && self.left(serving.slot) > 0))
    }

    /// Charges what was fresh and served at once.
    #[inline]
    pub fn charge(&mut self, slot: u32, cost: Cost) {
        // Whoever is alone owes nothing: nobody went without.
        if !self.is_alone() {
            self.fresh_left -= cost as i64;
            self.left(slot);
            self.lanes[slot as usize].left -= cost as i64;
            self.lanes[slot as usize].served += cost;
        }
    }

    /// Charges the one that was given out last.
    pub fn charge_served(&mut self, cost: Cost) {
        let Some(Serving { slot, queue, .. }) = self.serving else { return };
        self.line_left -= cost as i64;
        (self.failures, self.lanes[slot as usize].failures) = (0, 0);
        if let Some(queue) = self.queues.get_mut(queue as usize) {
            queue.left -= cost as i64;
        }
        if !self.is_alone() {
            self.left(slot);
            self.lanes[slot as usize].left -= cost as i64;
            self.lanes[slot as usize].served += cost;
        }
    }

    /// What the tenant was charged, and how many of its items were passed by for want of room of their own.
    pub fn served(&self, slot: u32) -> (Cost, u64) {
        self.lanes.get(slot as usize).map_or((0, 0), |lane| (lane.served, lane.passed))
    }

    /// Puts something in line behind what waits of its session. Nothing is put in line twice: the caller knows.
    pub fn hold(&mut self, slot: u32, key: u64, item: T) {
        let node = self.nodes.insert(Node { item, next: NONE }) as u32;
        if let Some(queue) = self.queue_of.get(&(slot, key)) {
            let queue = &mut self.queues[*queue as usize];
            let last = std::mem::replace(&mut queue.last, node);
            match last {
                NONE => queue.first = node,
                last => self.nodes[last as usize].next = node,
            }
            return;
        }
        let queue = self.queues.insert(Queue { slot, key, left: 0, granted: false, first: node, last: node }) as u32;
        self.queue_of.insert((slot, key), queue);
        let lane = &mut self.lanes[slot as usize];
        if lane.sessions.is_empty() {
            self.active.push_back(slot);
        }
        lane.sessions.push_back(queue);
    }

    /// Whoever was given out last found no room that all share: it stays first, and the turn of the line is over.
    pub fn put_back(&mut self, item: T) {
        let Some(Serving { queue, .. }) = self.serving else { return };
        let queue = &mut self.queues[queue as usize];
        queue.first = self.nodes.insert(Node { item, next: queue.first }) as u32;
        if queue.last == NONE {
            queue.last = queue.first;
        }
        self.is_stuck = true;
    }

    /// Whoever was given out last found no room of its own.
    pub fn failed(&mut self) {
        self.fails(TRY);
    }

    /// Whoever was given out last has no room of its own, as is seen without trying: it stands behind what waits of its session.
    pub fn pass_by(&mut self, item: T) {
        let Some(Serving { slot, queue, .. }) = self.serving else { return };
        let key = self.queues[queue as usize].key;
        self.hold(slot, key, item);
        self.fails(LOOK);
    }

    fn fails(&mut self, tries: u32) {
        if let Some(serving) = &mut self.serving
            && !std::mem::replace(&mut serving.failed, true)
        {
            self.tries_left = self.tries_left.saturating_sub(tries);
            self.failures += 1;
            let lane = &mut self.lanes[serving.slot as usize];
            lane.tries += tries;
            lane.failures += 1;
            lane.passed += 1;
        }
    }

    /// Something that waits has not been seen to lack room since something found some: nothing else makes it in the middle of a
    /// turn.
    fn has_tries(&self) -> bool {
        self.tries_left > 0 && self.failures < self.nodes.len()
    }

    /// Whose turn it is: until the turn's budget is spent.
    pub fn next(&mut self) -> Option<T> {
        self.end_serving();
        while self.line_left > 0 && self.has_tries() && !self.is_stuck {
            let slot = *self.active.front()?;
            if self.lanes[slot as usize].visited == self.round {
                self.round += 1;
            }
            let alone = self.is_alone();
            let left = self.left(slot);
            let lane = &mut self.lanes[slot as usize];
            let no_tries = lane.tries >= TRIES_PER_VISIT_MAX || lane.failures >= lane.sessions.len();
            if (left <= 0 && !alone) || no_tries {
                (lane.visited, lane.tries, lane.failures) = (self.round, 0, 0);
                self.active.rotate_left(1);
                continue;
            }
            let at = *lane.sessions.front()?;
            let queue = &mut self.queues[at as usize];
            if !std::mem::replace(&mut queue.granted, true) {
                let quantum = self.quanta.session_cost as i64;
                queue.left = (queue.left + quantum).min(quantum);
            }
            if queue.left <= 0 {
                queue.granted = false;
                lane.sessions.rotate_left(1);
                continue;
            }
            let node = self.nodes.remove(queue.first as usize);
            queue.first = node.next;
            if queue.first == NONE {
                queue.last = NONE;
            }
            self.serving = Some(Serving { slot, queue: at, failed: false });
            return Some(node.item);
        }
        None
    }

    /// Whoever was given out last is done, or stands in line again.
    fn end_serving(&mut self) {
        let Some(Serving { slot, queue: at, failed }) = self.serving.take() else { return };
        let queue = &mut self.queues[at as usize];
        let lane = &mut self.lanes[slot as usize];
        if queue.first != NONE {
            if failed {
                queue.granted = false;
                lane.sessions.rotate_left(1);
            }
            return;
        }
        lane.sessions.pop_front();
        let gone = self.queues.remove(at as usize);
        self.queue_of.remove(&(slot, gone.key));
        if self.lanes[slot as usize].sessions.is_empty() {
            self.active.pop_front();
        }
    }

    /// What the tenant has left in this round. Quanta of rounds that it was not there for only pay debt.
    #[inline]
    fn left(&mut self, slot: u32) -> i64 {
        let lane = &mut self.lanes[slot as usize];
        let rounds = self.round - lane.granted;
        if rounds > 0 {
            let quantum = (self.quanta.tenant_cost * u64::from(lane.weight)) as i64;
            lane.left = lane.left.saturating_add(quantum.saturating_mul(rounds.min(1 << 20) as i64)).min(quantum);
            lane.granted = self.round;
        }
        lane.left
    }
}
