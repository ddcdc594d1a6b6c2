//! Where the shards' cores lie: shared with others, on one NUMA node or several, two on one physical core.

use super::Wanted;
use super::finding::Findings;
use super::host::{Host, cores_of, list_of};
use std::collections::{BTreeMap, BTreeSet};

pub fn check(host: &Host, wanted: &Wanted<'_>, out: &mut Findings) {
    let (cores, shards) = (wanted.core_set(), usize::from(wanted.shards));
    if cores.is_empty() {
        return out.note("cores", "not known", "each shard wants a core of its own", "taskset -p $$");
    }
    if shards > cores.len() {
        let what = format!("{shards} shards on cores {}", list_of(&cores));
        let why = "shards that share a core wait for each other, and none of them may spin";
        out.warning("cores", what, why, format!("--shards {}, or more cores for the process", cores.len()));
    } else {
        out.ok("cores", format!("{shards} shards on cores {}", list_of(&cores)));
    }
    siblings(host, &cores, out);
    nodes(host, &cores, out);
}

/// Threads of one physical core among the shards' cores.
fn siblings(host: &Host, cores: &BTreeSet<usize>, out: &mut Findings) {
    let mut shared: BTreeSet<String> = BTreeSet::new();
    for core in cores {
        let path = format!("sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list");
        let Some(list) = host.text(&path) else { continue };
        if cores_of(&list).is_some_and(|threads| threads.intersection(cores).count() > 1) {
            shared.insert(list);
        }
    }
    if shared.is_empty() {
        return;
    }
    let lists: Vec<String> = shared.into_iter().collect();
    out.note(
        "hyper-threads",
        format!("shards share physical cores: {}", lists.join(" and ")),
        "two threads of one core are worth about 1.3 cores",
        "taskset to one thread of each core, or CPUAffinity= in the unit, where latency counts more than throughput",
    );
}

fn nodes(host: &Host, cores: &BTreeSet<usize>, out: &mut Findings) {
    let mut of_shards: BTreeMap<usize, BTreeSet<usize>> = BTreeMap::new();
    let mut count = 0;
    for name in host.names("sys/devices/system/node") {
        let Some(number) = name.strip_prefix("node").and_then(|digits| digits.parse().ok()) else { continue };
        count += 1;
        let here = host.cores(&format!("sys/devices/system/node/{name}/cpulist")).unwrap_or_default();
        let here: BTreeSet<usize> = here.intersection(cores).copied().collect();
        if !here.is_empty() {
            of_shards.insert(number, here);
        }
    }
    let shown: Vec<String> =
        of_shards.iter().map(|(node, cores)| format!("node {node}: cores {}", list_of(cores))).collect();
    match of_shards.len() {
        0 => {}
        1 => {
            out.ok("NUMA", format!("{count} node{}; shards on {}", if count == 1 { "" } else { "s" }, shown.join("; ")))
        }
        _ => {
            let node = of_shards.keys().next().copied().unwrap_or_default();
            out.warning(
                "NUMA",
                format!("shards lie on {} nodes: {}", of_shards.len(), shown.join("; ")),
                "mail between nodes, and memory that was taken on the other one, cost twice as much",
                format!(
                    "numactl --cpunodebind={node} --membind={node} tidegate serve, or CPUAffinity= and NUMAMask= in the unit; \
                     a server for each node with a data folder of its own"
                ),
            );
        }
    }
}
