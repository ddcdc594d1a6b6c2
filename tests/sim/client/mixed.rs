//! A client with both kinds of subscriptions: which of them brought an event, and that each event came by one of them.
//!
//! ```text
//!   event of a followed session ─┬─ at or after the subscription's start ─► the subscription's, the next offset and no other
//!                                └─ before it, or while there is none ────► the feed's: never what a subscription of this
//!                                                                           connection delivered or said it left
//!   unsubscribe ─► the feed goes on where the subscription stood; a gap says what was left to it and not delivered
//!   subscribe from the latest ─► begins behind all that the feed brought
//! ```
//! What comes between an `unsubscribe` and its answer may be of either: it counts as the subscription's, and a feed that its life
//! resumes may stand there.
//!
//! A reconnect resumes the feed by places, which events of a subscription do not move: what they brought may come once more
//! then, so all of this holds for one connection. Completeness holds over all of them.

use super::*;

/// What one connection brought of one session.
#[derive(Default, Debug)]
pub(super) struct Shared {
    /// The subscription covers all from here on.
    pub start: u64,
    /// The subscription was asked for from the latest.
    pub asked_latest: bool,
    /// There was a feed when its end was asked for.
    fed: bool,
    /// Where it stood when its end was asked for, and when that was answered.
    leaving: Option<(u64, u64)>,
    /// Delivered by subscriptions that have ended, or left to them and said to be.
    done: Vec<(u64, u64)>,
    /// Offsets that the feed brought.
    by_feed: BTreeSet<u64>,
    /// Between one subscription and the next: the feed's alone.
    between: Vec<(u64, u64)>,
}

fn within(ranges: &[(u64, u64)], offset: u64) -> bool {
    ranges.iter().any(|(from, to)| (*from..*to).contains(&offset))
}

impl Follow {
    /// Whether an event came by the subscription; what did not came by the feed.
    pub(super) fn brings(&self, offset: u64, fed: bool) -> bool {
        match self.state {
            _ if !fed => true,
            State::Live => offset >= self.shared.start,
            // The feed may go on before the answer is here.
            State::Leaving => Some(offset) == self.next,
            State::Idle | State::Asked | State::Left => false,
        }
    }

    /// Its end is asked for and not answered: what comes may be the feed's already.
    pub(super) fn is_leaving(&self) -> bool {
        self.state == State::Leaving
    }

    /// The feed brought an event of this session.
    pub(super) fn fed(&mut self, offset: u64) -> Checked {
        if within(&self.shared.done, offset) {
            return Err(format!("the feed brings offset {offset}, which a subscription had: {:?}", self.shared));
        }
        self.shared.by_feed.insert(offset);
        Ok(())
    }

    /// The subscription begins at `next`; where it is not the first, its client stood at `wanted`.
    pub(super) fn begins(&mut self, wanted: Option<u64>, next: u64) -> Checked {
        self.shared.start = next;
        if !std::mem::take(&mut self.shared.asked_latest) {
            return Ok(());
        }
        if let Some(before) = self.shared.by_feed.range(next..).next() {
            return Err(format!("the latest begins at {next}, the feed had brought {before}"));
        }
        match wanted {
            Some(wanted) if next < wanted => Err(format!("the latest begins at {next}, {wanted} was next")),
            Some(wanted) if next > wanted => {
                self.passed.push((wanted, next));
                self.shared.between.push((wanted, next));
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// The subscription has ended at its client's word.
    pub(super) fn ended(&mut self, fed: bool) {
        let fed = fed && self.shared.fed;
        self.state = if fed { State::Left } else { State::Idle };
        if let Some(next) = self.next.filter(|_| fed) {
            self.shared.done.push((self.shared.start, next));
            self.shared.leaving = self.shared.leaving.map(|(asked, _)| (asked, next));
        }
    }

    /// The feed beside it was refused.
    pub(super) fn feed_refused(&mut self) {
        self.shared.done.clear();
        self.shared.leaving = None;
        self.shared.fed = false;
    }

    /// An ended subscription says what it leaves.
    pub(super) fn leaves(&mut self, from: u64, to: u64) -> Checked {
        match self.shared.leaving.take() {
            Some((asked, answered)) if (asked..=answered).contains(&from) && from < to => {
                self.shared.done.push((from, to));
                self.left.push((from, to));
                Ok(())
            }
            leaving => Err(format!("a subscription that ended at {leaving:?} leaves {from}..{to}")),
        }
    }

    /// The connection is gone. What a subscription left may not have been said, so only a feed that lived on is held to it.
    pub(super) fn cut_off(&mut self) {
        self.state = State::Idle;
        let Shared { between, .. } = std::mem::take(&mut self.shared);
        self.untold.extend(between);
    }

    /// Whether an event that the feed did not bring came by the subscription, or was said not to come.
    pub(super) fn answers_for(&self, offset: u64) -> bool {
        self.events.binary_search_by_key(&offset, |(offset, _)| *offset).is_ok()
            || [&self.left, &self.damaged, &self.untold].iter().any(|ranges| within(ranges, offset))
    }
}

impl Client {
    /// Whether it holds both kinds.
    pub(super) fn is_mixed(&self) -> bool {
        self.feed.is_some() && !self.follows.is_empty()
    }

    /// Follows a session again that it had left to its feed: from where it stood, or from the latest.
    pub(super) fn come_back(&mut self, workload: &mut Random, net: &mut Random) {
        let left: Vec<String> =
            self.follows.iter().filter(|(_, f)| f.state == State::Left).map(|(s, _)| s.clone()).collect();
        if left.is_empty() {
            return;
        }
        let session = workload.pick(&left).clone();
        let latest = workload.chance(600);
        let follow = self.follows.get_mut(&session).expect("left");
        if !latest {
            follow.state = State::Idle;
            return;
        }
        (follow.state, follow.shared.asked_latest) = (State::Asked, true);
        follow.maybe_latest = true;
        self.counts.add("subscribe to a session", "again from the latest, beside a feed");
        let id = self.command(Pending::Subscribe(session.clone()));
        self.send(
            net,
            &format!("{{\"type\":\"subscribe\",\"id\":{id},\"session\":\"{session}\",\"from\":\"latest\"}}"),
        );
    }

    /// An event came that the subscription may have brought, or the feed after it: nobody can tell until the feed is resumed.
    pub(super) fn either(&mut self, at: (u64, u64)) {
        if let Some(feed) = self.feed.as_mut().filter(|feed| feed.state == State::Live) {
            feed.either.insert(at);
        }
    }

    /// Notes where a subscription stands whose end is asked for.
    pub(super) fn leave(&mut self, session: &str) {
        // What is left before there is a feed, that feed knows nothing of.
        let asked = self.feed.as_ref().is_some_and(|feed| feed.state != State::Idle);
        let fed = asked || self.life.restores_feed();
        let follow = self.follows.get_mut(session).expect("live");
        follow.state = State::Leaving;
        follow.shared.leaving = follow.next.map(|next| (next, next));
        follow.shared.fed = fed;
    }
}
