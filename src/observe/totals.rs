//! All shards' figures since the start, as the control plane adds them up; and what an interval added.
//!
//! ```text
//!   shard 0 ─► Recorder ─┐ add ┌─► ShardTotals 0 ─┐
//!   shard 1 ─► Recorder ─┴─────┴─► ShardTotals 1 ─┴─ merged ─► quantiles over all shards
//! ```
//! An interval is the totals of its end less those of its beginning: whoever looks disturbs nobody else who does.

use super::{Gauges, Recorder};

/// One shard's.
#[derive(Clone, Debug, Default)]
pub struct ShardTotals {
    /// What it recorded.
    pub recorded: Recorder,
    /// What it had when it was asked last.
    pub gauges: Gauges,
}

/// All shards'.
#[derive(Clone, Debug)]
pub struct Totals {
    /// By number.
    pub shards: Vec<ShardTotals>,
}

impl Totals {
    /// For so many shards.
    pub fn new(shards: usize) -> Self {
        Self { shards: (0..shards).map(|_| ShardTotals::default()).collect() }
    }

    /// Takes in what a shard gave.
    pub fn take(&mut self, shard: usize, recorder: &Recorder, gauges: Gauges) {
        if let Some(totals) = self.shards.get_mut(shard) {
            totals.recorded.add(recorder);
            totals.gauges = gauges;
        }
    }

    /// What was added since `earlier`. Gauges stay those of now.
    pub fn since(mut self, earlier: &Totals) -> Totals {
        for (now, before) in self.shards.iter_mut().zip(&earlier.shards) {
            now.recorded.subtract(&before.recorded);
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
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::Stage;

    #[test]
    fn an_interval_of_a_shard_is_not_disturbed_by_other_looks() {
        let mut totals = Totals::new(2);
        let mut recorder = Recorder::default();
        recorder.stages[Stage::Commit as usize].record(5_000);
        let place = recorder.tenant("a");
        recorder.tenant_mut(place).events = 7;
        totals.take(0, &recorder, Gauges::default());
        let before = totals.clone();
        totals.take(0, &recorder, Gauges::default());
        totals.take(1, &recorder, Gauges { clients: 3, ..Gauges::default() });
        totals.take(9, &recorder, Gauges::default());
        let merged = totals.clone().since(&before).merged();
        assert_eq!(merged.stages[Stage::Commit as usize].count(), 2);
        assert_eq!(merged.tenants().iter().map(|tenant| tenant.events).sum::<u64>(), 14);
        assert_eq!(totals.merged().stages[Stage::Commit as usize].count(), 3);
        assert_eq!(totals.shards[1].gauges.clients, 3);
    }
}
