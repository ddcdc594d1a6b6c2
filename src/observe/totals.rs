//! All shards' figures since the start, as the control plane adds them up; and what an interval added.
//!
//! ```text
//!   shard 0 ─► Recorder ─┐ take ┌─► ShardTotals 0 ─┐
//!   shard 1 ─► Recorder ─┴──────┼─► ShardTotals 1 ─┴─ merged ─► quantiles over all shards
//!                               └─► tenants of all shards, 64 by name: who was busy lately
//! ```
//! An interval is the totals of its end less those of its beginning: whoever looks disturbs nobody else who does. A tenant that was
//! quiet for some looks gives its place to one that is not, and begins anew when it comes again: few names at a time, and few over
//! time.

use super::tenants::{REST, TENANTS_MAX};
use super::{Gauges, Recorder, Tenant};

/// Events of one look and shard by which a newcomer has to be busier than the quietest, so that names do not come and go.
const BUSIER_BY: u64 = 16;

/// One shard's.
#[derive(Clone, Debug, Default)]
pub struct ShardTotals {
    /// What it recorded, but for its tenants.
    pub recorded: Recorder,
    /// What it had when it was asked last.
    pub gauges: Gauges,
}

/// A tenant's.
#[derive(Clone, Debug)]
struct Named {
    figures: Tenant,
    /// Events of the last looks, older ones for less.
    recent: u64,
    /// Which of the stays under some name this is: a name that comes again begins anew.
    stay: u64,
}

/// All shards'.
#[derive(Clone, Debug)]
pub struct Totals {
    /// By number.
    pub shards: Vec<ShardTotals>,
    rest: Tenant,
    named: Vec<Named>,
    stays: u64,
}

impl Totals {
    /// For so many shards.
    pub fn new(shards: usize) -> Self {
        Self {
            shards: (0..shards).map(|_| ShardTotals::default()).collect(),
            rest: Tenant::named(REST),
            named: Vec::new(),
            stays: 0,
        }
    }

    /// A look at all shards begins.
    pub fn look(&mut self) {
        self.named.iter_mut().for_each(|named| named.recent /= 2);
    }

    /// Takes in what a shard gave.
    pub fn take(&mut self, shard: usize, recorder: &Recorder, gauges: Gauges) {
        let Some(totals) = self.shards.get_mut(shard) else { return };
        totals.recorded.add(recorder);
        totals.gauges = gauges;
        for tenant in recorder.tenants.all() {
            match self.place(tenant) {
                None => self.rest.add(tenant),
                Some(at) => {
                    self.named[at].figures.add(tenant);
                    self.named[at].recent += tenant.events;
                }
            }
        }
    }

    fn place(&mut self, tenant: &Tenant) -> Option<usize> {
        if &*tenant.name == REST {
            return None;
        }
        if let Some(at) = self.named.iter().position(|named| named.figures.name == tenant.name) {
            return Some(at);
        }
        self.stays += 1;
        let fresh = Named { figures: Tenant::named(&tenant.name), recent: 0, stay: self.stays };
        if self.named.len() < TENANTS_MAX {
            self.named.push(fresh);
            return Some(self.named.len() - 1);
        }
        let (at, quietest) = self.named.iter_mut().enumerate().min_by_key(|(_, named)| named.recent)?;
        if tenant.events <= quietest.recent + BUSIER_BY {
            return None;
        }
        *quietest = fresh;
        Some(at)
    }

    /// What was added since `earlier`. Gauges stay those of now.
    pub fn since(mut self, earlier: &Totals) -> Totals {
        for (now, before) in self.shards.iter_mut().zip(&earlier.shards) {
            now.recorded.subtract(&before.recorded);
        }
        self.rest.subtract(&earlier.rest);
        for now in &mut self.named {
            if let Some(before) = earlier.named.iter().find(|before| before.stay == now.stay) {
                now.figures.subtract(&before.figures);
            }
        }
        self
    }

    /// All shards as one.
    pub fn merged(&self) -> Recorder {
        let mut all = Recorder::default();
        for shard in &self.shards {
            all.add(&shard.recorded);
        }
        all
    }

    /// The rest, then the tenants that have figures of their own.
    pub fn tenants(&self) -> impl Iterator<Item = &Tenant> {
        std::iter::once(&self.rest).chain(self.named.iter().map(|named| &named.figures))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::Stage;

    fn recorder(tenants: &[(&str, u64)]) -> Recorder {
        let mut recorder = Recorder::default();
        for (name, events) in tenants {
            let place = recorder.tenants.place(name).number;
            recorder.tenants.at(place).events += events;
        }
        recorder
    }

    fn events(totals: &Totals, name: &str) -> Option<u64> {
        totals.tenants().find(|tenant| &*tenant.name == name).map(|tenant| tenant.events)
    }

    #[test]
    fn an_interval_of_a_shard_is_not_disturbed_by_other_looks() {
        let mut totals = Totals::new(2);
        let mut recorder = recorder(&[("a", 7)]);
        recorder.stages[Stage::Commit as usize].record(5_000);
        totals.take(0, &recorder, Gauges::default());
        let before = totals.clone();
        totals.take(0, &recorder, Gauges::default());
        totals.take(1, &recorder, Gauges { clients: 3, ..Gauges::default() });
        totals.take(9, &recorder, Gauges::default());
        let since = totals.clone().since(&before);
        assert_eq!(since.merged().stages[Stage::Commit as usize].count(), 2);
        assert_eq!((events(&since, "a"), events(&since, REST)), (Some(14), Some(0)));
        assert_eq!(totals.merged().stages[Stage::Commit as usize].count(), 3);
        assert_eq!(totals.shards[1].gauges.clients, 3);
    }

    #[test]
    fn names_are_few_at_a_time_and_over_time_and_the_busy_are_among_them() {
        let mut totals = Totals::new(1);
        let mut seen = std::collections::BTreeSet::new();
        for round in 0..500u64 {
            totals.look();
            // All tenants are alike, but for one that begins late.
            let names: Vec<String> = (0..40).map(|n| format!("t{}", (round * 40 + n) % 1000)).collect();
            let mut given: Vec<(&str, u64)> = names.iter().map(|name| (&**name, 5)).collect();
            if round >= 100 {
                given.push(("late", 300));
            }
            totals.take(0, &recorder(&given), Gauges::default());
            assert!(totals.tenants().count() <= 1 + TENANTS_MAX);
            seen.extend(totals.tenants().map(|tenant| tenant.name.clone()));
        }
        assert!(seen.len() <= 2 + TENANTS_MAX, "{}", seen.len());
        assert!(events(&totals, "late") >= Some(300 * 390), "{:?}", events(&totals, "late"));
    }

    #[test]
    fn a_name_that_comes_again_begins_anew() {
        let mut totals = Totals::new(1);
        totals.take(0, &recorder(&[("a", 100)]), Gauges::default());
        let before = totals.clone();
        let others: Vec<String> = (0..TENANTS_MAX).map(|n| format!("t{n}")).collect();
        let others: Vec<(&str, u64)> = others.iter().map(|name| (&**name, 1000)).collect();
        for _ in 0..20 {
            totals.look();
            totals.take(0, &recorder(&others), Gauges::default());
        }
        assert_eq!(events(&totals, "a"), None, "long quiet");
        totals.take(0, &recorder(&[("a", 5000)]), Gauges::default());
        let (now, since) = (events(&totals, "a"), events(&totals.clone().since(&before), "a"));
        assert_eq!((now, since), (Some(5000), Some(5000)));
    }
}
