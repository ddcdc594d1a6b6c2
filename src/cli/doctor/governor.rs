//! The CPU's frequency governor: a core that sleeps at a low clock answers late.

use super::Wanted;
use super::finding::Findings;
use super::host::{Host, list_of};
use std::collections::{BTreeMap, BTreeSet};

pub fn check(host: &Host, wanted: &Wanted<'_>, out: &mut Findings) {
    let mut governors: BTreeMap<String, BTreeSet<usize>> = BTreeMap::new();
    for core in wanted.core_set() {
        let path = format!("sys/devices/system/cpu/cpu{core}/cpufreq/scaling_governor");
        if let Some(governor) = host.text(&path) {
            governors.entry(governor).or_default().insert(core);
        }
    }
    if governors.is_empty() {
        return out.ok("governor", "none: the frequency is not this kernel's to choose");
    }
    for (governor, cores) in governors {
        let what = format!("{governor} on cores {}", list_of(&cores));
        if governor == "performance" {
            out.ok("governor", what);
        } else {
            let why = "the clock of a core rises only after work has waited, which the tail of latencies shows";
            out.warning("governor", what, why, "cpupower frequency-set -g performance");
        }
    }
}
