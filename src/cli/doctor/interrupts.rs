//! Where the network card's interrupts go, and whether its receive queues reach the shards' cores.

use super::Wanted;
use super::finding::Findings;
use super::host::{Host, list_of};
use std::collections::BTreeSet;

pub fn check(host: &Host, wanted: &Wanted<'_>, out: &mut Findings) {
    let mut found = false;
    for name in host.names("sys/class/net") {
        // Others are made of software: their packets came in through one of these.
        if host.exists(&format!("sys/class/net/{name}/device")) {
            found = true;
            card(host, &name, wanted, out);
        }
    }
    if !found {
        out.ok("interrupts", "no network card here: loopback and software devices have none");
    }
}

fn card(host: &Host, name: &str, wanted: &Wanted<'_>, out: &mut Findings) {
    let shards = wanted.core_set();
    let queues: Vec<String> =
        host.names(&format!("sys/class/net/{name}/queues")).into_iter().filter(|q| q.starts_with("rx-")).collect();
    let steered = queues.iter().any(|queue| {
        let mask = host.text(&format!("sys/class/net/{name}/queues/{queue}/rps_cpus")).unwrap_or_default();
        mask.bytes().any(|digit| !matches!(digit, b'0' | b','))
    });
    // Of a virtio card the interrupts belong to the device above it.
    let mut irqs = host.names(&format!("sys/class/net/{name}/device/msi_irqs"));
    if irqs.is_empty() {
        irqs = host.names(&format!("sys/class/net/{name}/device/../msi_irqs"));
    }
    let mut cores = BTreeSet::new();
    for irq in &irqs {
        let of = |file| host.cores(&format!("proc/irq/{irq}/{file}")).filter(|cores| !cores.is_empty());
        cores.extend(of("effective_affinity_list").or_else(|| of("smp_affinity_list")).unwrap_or_default());
    }
    let shown = format!("{name}: {} receive queues, interrupts on cores {}", queues.len(), list_of(&cores));

    let node = host.text(&format!("sys/class/net/{name}/device/numa_node")).and_then(|node| node.parse::<i64>().ok());
    if let Some(node) = node.filter(|node| *node >= 0) {
        let near = host.cores(&format!("sys/devices/system/node/node{node}/cpulist")).unwrap_or_default();
        if !near.is_empty() && near.is_disjoint(&shards) {
            let what = format!("{name} is on NUMA node {node}, and no shard is (cores {})", list_of(&shards));
            let why = "every packet crosses from one node to the other";
            return out.warning(
                "interrupts",
                what,
                why,
                format!("numactl --cpunodebind={node} --membind={node} tidegate serve"),
            );
        }
    }
    if queues.len() > 1 && irqs.len() > 1 && cores.len() == 1 && shards.len() > 1 && !steered {
        let why = "one core takes in the packets of all shards, and its own shard is late";
        let mend = format!(
            "systemctl start irqbalance, or for each interrupt of {name}: echo CORE > /proc/irq/N/smp_affinity_list ({})",
            irqs.join(" ")
        );
        return out.warning("interrupts", shown, why, mend);
    }
    if queues.len() < shards.len() && !steered {
        let why = "packets of all shards come in through fewer cores than there are shards";
        let mask = mask_of(&shards);
        let mend = format!(
            "ethtool -L {name} combined {}; where the card has no more: echo {mask} > /sys/class/net/{name}/queues/rx-0/rps_cpus",
            shards.len()
        );
        return out.note("interrupts", shown, why, mend);
    }
    out.ok("interrupts", shown);
}

/// Cores as the hexadecimal mask that the kernel takes, in words of 32 bits.
fn mask_of(cores: &BTreeSet<usize>) -> String {
    let words = cores.last().map_or(1, |last| last / 32 + 1);
    let mut mask = vec![0u32; words];
    for core in cores {
        mask[core / 32] |= 1 << (core % 32);
    }
    let words: Vec<String> = mask.iter().rev().map(|word| format!("{word:x}")).collect();
    words.join(",")
}
