//! The line against what is promised of it, in the words of who stands in it.

use super::line::{Cost, Line, Quanta};
use proptest::prelude::*;

const QUANTA: Quanta =
    Quanta { tenant_cost: 1000, session_cost: 250, fresh_cost_per_turn: 5000, line_cost_per_turn: 3000 };
const COST_MAX: Cost = 700;

/// A tenant that always has something in line, in each of its sessions.
#[derive(Clone, Debug)]
struct Busy {
    weight: u32,
    sessions: Vec<Vec<Cost>>,
}

fn busy() -> impl Strategy<Value = Busy> {
    let costs = proptest::collection::vec(1..=COST_MAX, 1..5);
    (1..6u32, proptest::collection::vec(costs, 1..4)).prop_map(|(weight, sessions)| Busy { weight, sessions })
}

proptest! {
    /// Tenants that all want more than there is: at any moment their service, over weight, differs by less than a quantum and
    /// what one item can overdraw at each end. So do the sessions of one tenant. From where weights change, in the middle of a
    /// round, it is so of what is served from there on.
    #[test]
    fn service_differs_by_a_quantum_at_most(
        mut tenants in proptest::collection::vec(busy(), 2..6),
        turns in 1..60usize,
        change in 0..60usize,
        weights in proptest::collection::vec(1..6u32, 6),
    ) {
        let mut line: Line<(u32, usize)> = Line::new(QUANTA);
        for (slot, tenant) in tenants.iter().enumerate() {
            line.enter(slot as u32, tenant.weight);
        }
        for (slot, tenant) in tenants.iter().enumerate() {
            for session in 0..tenant.sessions.len() {
                line.hold(slot as u32, session as u64, (slot as u32, session));
            }
        }
        let mut served: Vec<Vec<(Cost, usize)>> = tenants.iter().map(|t| vec![(0, 0); t.sessions.len()]).collect();
        let mut before = vec![0; tenants.len()];
        for turn in 0..turns {
            if turn == change {
                for (slot, tenant) in tenants.iter_mut().enumerate() {
                    tenant.weight = weights[slot];
                    line.enter(slot as u32, tenant.weight);
                    before[slot] = served[slot].iter().map(|(sum, _)| *sum).sum::<Cost>();
                }
            }
            line.begin_turn();
            let mut of_turn = 0;
            while let Some((slot, session)) = line.next() {
                let costs = &tenants[slot as usize].sessions[session];
                let (sum, count) = &mut served[slot as usize][session];
                loop {
                    let cost = costs[*count % costs.len()];
                    (*sum, *count) = (*sum + cost, *count + 1);
                    line.charge_served(cost);
                    of_turn += cost;
                    if !line.may_go_on() {
                        break;
                    }
                }
                line.hold(slot, session as u64, (slot, session));
            }
            prop_assert!(of_turn >= QUANTA.line_cost_per_turn, "a turn is used up: {} in turn {}", of_turn, turn);
            prop_assert!(of_turn < QUANTA.line_cost_per_turn + COST_MAX, "and not more than that");
            let shares: Vec<f64> = tenants.iter().zip(&served).zip(&before).map(|((tenant, served), before)| {
                (served.iter().map(|(sum, _)| *sum).sum::<Cost>() - before) as f64 / f64::from(tenant.weight)
            }).collect();
            let least = shares.iter().copied().fold(f64::MAX, f64::min);
            let most = shares.iter().copied().fold(0.0, f64::max);
            let bound = (QUANTA.tenant_cost + 2 * COST_MAX) as f64;
            prop_assert!(most - least <= bound, "{:?} after turn {}", shares, turn);
            for sessions in &served {
                let least = sessions.iter().map(|(sum, _)| *sum).min().unwrap_or(0);
                let most = sessions.iter().map(|(sum, _)| *sum).max().unwrap_or(0);
                prop_assert!(most - least <= QUANTA.session_cost + 2 * COST_MAX, "{:?}", sessions);
            }
        }
    }

    /// Whatever comes, goes and fails: each item is given out once for each time it was put in, none is lost while its tenant is
    /// there, those of a session keep their order, and a turn ends.
    #[test]
    fn nothing_is_lost_and_every_turn_ends(steps in proptest::collection::vec((0..4u32, 0..3u64, 0..10u8), 1..300)) {
        let mut line: Line<u64> = Line::new(QUANTA);
        let mut waiting: std::collections::BTreeMap<(u32, u64), std::collections::VecDeque<u64>> = Default::default();
        let mut of: std::collections::BTreeMap<u64, (u32, u64)> = Default::default();
        let mut next_item = 0;
        (0..4).for_each(|slot| line.enter(slot, slot + 1));
        for (slot, key, what) in steps {
            match what {
                0 => {
                    line.leave(slot);
                    waiting.retain(|(of, _), _| *of != slot);
                    line.enter(slot, 1);
                }
                1..=3 => {
                    line.begin_turn();
                    let before = line.len();
                    let mut given = 0;
                    while let Some(item) = line.next() {
                        let at = of[&item];
                        prop_assert_eq!(waiting.get_mut(&at).and_then(|queue| queue.pop_front()), Some(item));
                        given += 1;
                        if what == 1 {
                            line.failed();
                            line.hold(at.0, at.1, item);
                            waiting.entry(at).or_default().push_back(item);
                            prop_assert!(given <= 64);
                        } else {
                            line.charge_served(300);
                        }
                    }
                    prop_assert!(before == 0 || given > 0, "a turn gives something out where something waits");
                }
                _ => {
                    line.hold(slot, key, next_item);
                    waiting.entry((slot, key)).or_default().push_back(next_item);
                    of.insert(next_item, (slot, key));
                    next_item += 1;
                }
            }
            prop_assert_eq!(line.len(), waiting.values().map(|queue| queue.len()).sum::<usize>());
        }
    }
}

/// Whoever comes now and then does not wait, however much others have in line.
#[test]
fn who_keeps_within_its_share_is_served_at_once() {
    let mut line: Line<u32> = Line::new(QUANTA);
    line.enter(0, 1);
    line.enter(1, 1);
    (0..2000).for_each(|item| line.hold(0, u64::from(item), item));
    for _ in 0..50 {
        line.begin_turn();
        assert!(line.may(1), "its quantum is there");
        line.charge(1, 400);
        assert!(!line.may(0), "behind what waits of its own");
        while line.next().is_some() {
            line.charge_served(100);
        }
    }
    assert_eq!(line.len(), 500, "thirty in each turn: nobody else wanted more");
}

#[test]
fn fresh_beyond_the_quantum_waits_for_the_next_round_and_debt_is_paid() {
    let mut line: Line<u32> = Line::new(QUANTA);
    line.enter(0, 1);
    line.enter(1, 2);
    line.begin_turn();
    assert!(line.may(0) && line.may(1));
    line.charge(0, 2500);
    line.charge(1, 1500);
    assert!(!line.may(0), "one and a half quanta of debt");
    assert!(line.may(1), "of weight two");
    line.begin_turn();
    assert!(!line.may(0), "half a quantum of debt is left");
    line.begin_turn();
    assert!(line.may(0));
    // An hour of silence is no credit.
    (0..1000).for_each(|_| line.begin_turn());
    line.charge(0, 1000);
    assert!(!line.may(0), "one quantum, not a thousand");
}

#[test]
fn alone_nothing_is_counted_and_no_debt_is_left_behind() {
    let mut line: Line<u32> = Line::new(QUANTA);
    line.enter(3, 1);
    line.begin_turn();
    for _ in 0..100 {
        assert!(line.may(3));
        line.charge(3, 10_000);
    }
    line.hold(3, 1, 7);
    assert_eq!(line.next(), Some(7));
    line.charge_served(1 << 30);
    line.enter(0, 1);
    line.begin_turn();
    assert!(line.may(3), "who was alone owes nothing");
    line.leave(0);
    line.hold(3, 1, 8);
    line.begin_turn();
    assert_eq!(line.next(), Some(8));
}

/// Room that all share comes now and then, for one or two at a time: it is given out in the same order as turns.
#[test]
fn what_finds_no_shared_room_stays_first() {
    let mut line: Line<(u32, u64)> = Line::new(QUANTA);
    (0..3).for_each(|slot| line.enter(slot, 1));
    for slot in 0..3 {
        (0..=u64::from(slot) * 20).for_each(|key| line.hold(slot, key, (slot, key)));
    }
    let mut served = [0u64; 3];
    let mut room = 0;
    for turn in 0..3000u64 {
        line.begin_turn();
        room += turn % 3;
        while let Some((slot, key)) = line.next() {
            if room == 0 {
                line.put_back((slot, key));
                continue;
            }
            room -= 1;
            served[slot as usize] += 100;
            line.charge_served(100);
            line.hold(slot, key, (slot, key));
        }
        let (least, most) = (served.iter().min().unwrap(), served.iter().max().unwrap());
        assert!(most - least <= QUANTA.tenant_cost + 2 * 100, "{served:?} after turn {turn}");
    }
}

#[test]
fn what_finds_no_room_does_not_hold_up_the_others() {
    let mut line: Line<u32> = Line::new(QUANTA);
    line.enter(0, 1);
    line.enter(1, 1);
    (0..500).for_each(|item| line.hold(0, u64::from(item), item));
    line.hold(1, 0, 9999);
    line.begin_turn();
    let mut tries = 0;
    let mut other = None;
    while let Some(item) = line.next() {
        tries += 1;
        if item == 9999 {
            other = Some(tries);
            line.charge_served(10);
        } else {
            line.failed();
            line.hold(0, u64::from(item), item);
        }
    }
    assert!(other.is_some_and(|after| after <= 17), "{other:?}");
    assert!(tries <= 65, "tries of one turn are bounded: {tries}");
}

#[test]
fn nobody_is_tried_again_in_a_turn_that_has_made_no_room() {
    let mut line: Line<u32> = Line::new(QUANTA);
    line.enter(0, 1);
    line.enter(1, 1);
    for (slot, item) in [(0, 1), (0, 2), (1, 3)] {
        line.hold(slot, u64::from(item), item);
    }
    for turn in 0..10 {
        line.begin_turn();
        let mut tried = Vec::new();
        while let Some(item) = line.next() {
            tried.push(item);
            // Seen, or tried: it is the same.
            if turn % 2 == 0 {
                line.pass_by(item);
            } else {
                line.failed();
                line.hold(u32::from(item == 3), u64::from(item), item);
            }
        }
        tried.sort_unstable();
        assert_eq!(tried, [1, 2, 3], "each once in turn {turn}");
        assert!(!line.idles(), "there is nothing left to do");
    }
    // One that finds room says that there may be some for the others, too.
    line.begin_turn();
    let mut given = 0;
    while let Some(item) = line.next() {
        given += 1;
        if item == 2 {
            line.charge_served(10);
        } else {
            line.failed();
            line.hold(u32::from(item == 3), u64::from(item), item);
        }
    }
    assert!((3..=5).contains(&given) && line.len() == 2, "{given}");
}

#[test]
fn a_look_costs_less_than_a_try() {
    let mut line: Line<u32> = Line::new(QUANTA);
    line.enter(0, 1);
    line.enter(1, 1);
    (0..500).for_each(|item| line.hold(0, u64::from(item), item));
    line.begin_turn();
    let mut looks = 0;
    while let Some(item) = line.next() {
        looks += 1;
        line.pass_by(item);
    }
    assert_eq!(looks, 256);
}
