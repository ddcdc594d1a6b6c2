//! A machine on which all is well, and one wrong setting planted at a time.

use super::finding::{Finding, Findings, Level};
use super::flush::{Disk, Synced, judge};
use super::host::Host;
use super::{Config, examine};
use crate::config::Layers;
use std::fs;
use std::path::PathBuf;

const LIMITS: &str = "Limit                     Soft Limit           Hard Limit           Units
Max core file size        0                    unlimited            bytes
Max open files            1024                 524288               files
Max locked memory         8388608              8388608              bytes
";

/// Files of a machine with two cores on one node, an NVMe disk with xfs, a card with two queues.
const GOOD: &[(&str, &str)] = &[
    (
        "proc/self/status",
        "Name:\ttidegate\nGid:\t7\t7\t7\t7\nGroups:\t7 8\nCapEff:\t0000000000000000\nCpus_allowed_list:\t0-1\n",
    ),
    ("proc/self/limits", LIMITS),
    ("proc/self/cgroup", "0::/system.slice/tidegate.service\n"),
    ("proc/self/mountinfo", "1 0 259:0 / / rw - xfs /dev/nvme0n1 rw\n2 1 0:30 / /sys/fs/cgroup rw - cgroup2 none rw\n"),
    ("proc/sys/kernel/osrelease", "6.6.10-generic"),
    ("proc/sys/kernel/io_uring_disabled", "0"),
    ("proc/sys/kernel/core_pattern", "|/usr/lib/systemd/systemd-coredump"),
    ("proc/sys/net/core/somaxconn", "65535"),
    ("proc/sys/net/ipv4/tcp_max_syn_backlog", "65535"),
    ("proc/sys/net/ipv4/tcp_syncookies", "1"),
    ("proc/sys/net/ipv4/ip_local_port_range", "10240 65535"),
    ("proc/sys/vm/overcommit_memory", "0"),
    ("proc/meminfo", "MemTotal:       131072000 kB\nCommitLimit:    65536 kB\nCommitted_AS:    32768 kB\n"),
    ("proc/swaps", "Filename Type Size Used Priority\n"),
    ("sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never"),
    ("sys/devices/system/clocksource/clocksource0/current_clocksource", "tsc"),
    ("sys/devices/system/clocksource/clocksource0/available_clocksource", "tsc hpet acpi_pm"),
    ("sys/devices/system/node/node0/cpulist", "0-1"),
    ("sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "performance"),
    ("sys/devices/system/cpu/cpu1/cpufreq/scaling_governor", "performance"),
    ("sys/class/net/eth0/device/numa_node", "0"),
    ("sys/class/net/eth0/device/msi_irqs/40", "msix"),
    ("sys/class/net/eth0/device/msi_irqs/41", "msix"),
    ("sys/class/net/eth0/queues/rx-0/rps_cpus", "0"),
    ("sys/class/net/eth0/queues/rx-1/rps_cpus", "0"),
    ("proc/irq/40/effective_affinity_list", "0"),
    ("proc/irq/41/effective_affinity_list", "1"),
    ("sys/fs/cgroup/system.slice/tidegate.service/cpu.max", "max 100000"),
    ("sys/fs/cgroup/system.slice/tidegate.service/memory.max", "max"),
    ("sys/fs/cgroup/system.slice/tidegate.service/io.max", ""),
    ("sys/dev/block/259:0/queue/write_cache", "write back"),
    ("sys/dev/block/259:0/queue/rotational", "0"),
];

struct Machine(PathBuf);

impl Machine {
    fn new(name: &str) -> Machine {
        let root = std::env::temp_dir().join(format!("tidegate-doctor-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&root);
        let machine = Machine(root);
        machine.write(GOOD);
        machine
    }

    fn write(&self, files: &[(&str, &str)]) {
        for (path, text) in files {
            let path = self.0.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
    }

    fn undo(&self, planted: &[(&str, &str)]) {
        for (path, _) in planted {
            match GOOD.iter().find(|(good, _)| good == path) {
                Some(good) => self.write(&[*good]),
                None => fs::remove_file(self.0.join(path)).unwrap(),
            }
        }
    }

    fn findings(&self, flags: &[(&str, &str)]) -> Findings {
        let own = [("data", "/data"), ("listen", "127.0.0.1:7777"), ("connections_per_shard_max", "20000")];
        let flags = own.iter().chain(flags).map(|(key, value)| ((*key).to_string(), (*value).to_string())).collect();
        let config = Config::load(&Layers { flags, ..Layers::default() }).unwrap();
        examine(&Host::new(Some(&self.0), None), &config)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A planted setting, the check that must name it, how bad it is, and a word of what mends it.
type Planted = (&'static [(&'static str, &'static str)], &'static str, Level, &'static str);

const PLANTED: &[Planted] = &[
    (&[("proc/sys/kernel/osrelease", "5.15.0-91-generic")], "kernel", Level::Wrong, "6.1"),
    (&[("proc/sys/kernel/io_uring_disabled", "2")], "io_uring", Level::Wrong, "io_uring_disabled=0"),
    (
        &[("proc/sys/kernel/io_uring_disabled", "1"), ("proc/sys/kernel/io_uring_group", "99")],
        "io_uring",
        Level::Wrong,
        "group",
    ),
    (
        &[("proc/self/limits", "Max open files  64  64  files\nMax locked memory  8388608  8388608  bytes\n")],
        "open files",
        Level::Wrong,
        "limits.conf",
    ),
    (
        &[
            ("proc/self/limits", "Max open files  4096  4096  files\nMax locked memory  8388608  8388608  bytes\n"),
            ("proc/sys/fs/nr_open", "4096"),
        ],
        "open files",
        Level::Wrong,
        "fs.nr_open",
    ),
    (
        &[("proc/self/limits", "Max open files  524288  524288  files\nMax locked memory  65536  65536  bytes\n")],
        "locked memory",
        Level::Wrong,
        "LimitMEMLOCK=",
    ),
    (
        &[("proc/self/limits", "Max open files  524288  524288  files\nMax locked memory  600000  600000  bytes\n")],
        "locked memory",
        Level::Warning,
        "LimitMEMLOCK=",
    ),
    (
        &[("proc/self/mountinfo", "1 0 259:0 / / rw - xfs /dev/nvme0n1 rw\n2 1 0:30 / /data rw - tmpfs none rw\n")],
        "data folder",
        Level::Wrong,
        "--data",
    ),
    (&[("proc/self/mountinfo", "1 0 0:9 / / rw - overlay overlay rw\n")], "data folder", Level::Wrong, "volume"),
    (&[("proc/self/mountinfo", "1 0 0:9 / / rw - nfs4 host:/x rw\n")], "data folder", Level::Wrong, "--data"),
    (
        &[("proc/self/mountinfo", "1 0 259:0 / / rw - ext4 /dev/nvme0n1 rw,nobarrier\n")],
        "data folder",
        Level::Wrong,
        "barrier=1",
    ),
    (
        &[("proc/self/mountinfo", "1 0 259:0 / / ro - ext4 /dev/nvme0n1 ro\n")],
        "data folder",
        Level::Wrong,
        "remount,rw",
    ),
    (
        &[("proc/self/mountinfo", "1 0 259:0 / / rw - ext4 /dev/nvme0n1 rw,errors=continue\n")],
        "data folder",
        Level::Warning,
        "remount-ro",
    ),
    (&[("proc/self/mountinfo", "1 0 0:9 / / rw - btrfs /dev/sda rw\n")], "data folder", Level::Note, "chattr"),
    (&[("sys/dev/block/259:0/queue/write_cache", "write through")], "flush", Level::Note, "write_cache"),
    (&[("proc/meminfo", "MemTotal:  65536 kB\n")], "memory plan", Level::Wrong, "check-config"),
    (
        &[("sys/kernel/mm/transparent_hugepage/enabled", "[always] madvise never")],
        "huge pages",
        Level::Warning,
        "madvise",
    ),
    (&[("proc/swaps", "Filename Type Size\n/dev/sda2 partition 99\n")], "swap", Level::Warning, "swapoff"),
    (&[("proc/sys/vm/overcommit_memory", "2")], "overcommit", Level::Wrong, "overcommit_memory=0"),
    (&[("sys/fs/cgroup/system.slice/cpu.max", "50000 100000")], "cgroup CPU", Level::Warning, "CPUQuota="),
    (
        &[("sys/fs/cgroup/system.slice/tidegate.service/memory.max", "1048576")],
        "cgroup memory",
        Level::Wrong,
        "MemoryMax=",
    ),
    (
        &[("sys/fs/cgroup/system.slice/tidegate.service/memory.high", "1048576")],
        "cgroup memory",
        Level::Warning,
        "MemoryMax=",
    ),
    (
        &[("sys/fs/cgroup/system.slice/tidegate.service/io.max", "259:0 wiops=100")],
        "cgroup disk",
        Level::Warning,
        "IOWriteIOPSMax=",
    ),
    (
        &[
            ("proc/self/cgroup", "4:memory:/a\n1:cpu,cpuacct:/a\n7:blkio:/\n"),
            (
                "proc/self/mountinfo",
                "1 0 259:0 / / rw - xfs /dev/x rw\n2 1 0:3 / /c/mem rw - cgroup c rw,memory\n\
                 3 1 0:4 / /c/cpu rw - cgroup c rw,cpu,cpuacct\n4 1 0:5 / /c/io rw - cgroup c rw,blkio\n",
            ),
            ("c/mem/a/memory.limit_in_bytes", "1048576"),
            ("c/mem/memory.limit_in_bytes", "9223372036854771712"),
        ],
        "cgroup memory",
        Level::Wrong,
        "MemoryMax=",
    ),
    (
        &[("sys/devices/system/node/node0/cpulist", "0"), ("sys/devices/system/node/node1/cpulist", "1")],
        "NUMA",
        Level::Warning,
        "numactl",
    ),
    (
        &[("sys/devices/system/cpu/cpu0/topology/thread_siblings_list", "0-1")],
        "hyper-threads",
        Level::Note,
        "CPUAffinity=",
    ),
    (&[("sys/devices/system/cpu/cpu1/cpufreq/scaling_governor", "powersave")], "governor", Level::Warning, "cpupower"),
    (
        &[("sys/devices/system/clocksource/clocksource0/current_clocksource", "hpet")],
        "clock source",
        Level::Warning,
        "echo tsc",
    ),
    (&[("proc/irq/41/effective_affinity_list", "0")], "interrupts", Level::Warning, "smp_affinity_list"),
    (
        &[("sys/devices/system/node/node1/cpulist", "2-3"), ("sys/class/net/eth0/device/numa_node", "1")],
        "interrupts",
        Level::Warning,
        "--cpunodebind=1",
    ),
    (&[("proc/sys/net/core/somaxconn", "128")], "backlog", Level::Warning, "somaxconn=65535"),
    (&[("proc/sys/net/core/somaxconn", "4096")], "backlog", Level::Note, "somaxconn=65535"),
    (&[("proc/sys/net/ipv4/tcp_syncookies", "0")], "half-open", Level::Warning, "tcp_syncookies=1"),
    (&[("proc/sys/net/ipv4/tcp_max_syn_backlog", "512")], "half-open", Level::Note, "tcp_max_syn_backlog="),
    (&[("proc/sys/net/ipv4/tcp_abort_on_overflow", "1")], "overflow", Level::Warning, "tcp_abort_on_overflow=0"),
    (
        &[("proc/sys/net/ipv4/ip_local_port_range", "1024 65535")],
        "ports",
        Level::Warning,
        "ip_local_reserved_ports=7777",
    ),
    (&[("proc/sys/net/ipv4/ip_local_port_range", "50000 50999")], "ports", Level::Note, "ip_local_port_range="),
    (&[("proc/sys/net/netfilter/nf_conntrack_max", "1000")], "conntrack", Level::Warning, "nf_conntrack_max="),
    (
        &[
            (
                "proc/self/limits",
                "Max core file size  unlimited  unlimited  bytes\nMax open files  524288  524288  files\n",
            ),
            ("proc/sys/kernel/core_pattern", "core"),
        ],
        "core dump",
        Level::Warning,
        "LimitCORE=0",
    ),
];

#[test]
fn on_a_good_machine_all_is_well() {
    let findings = Machine::new("good").findings(&[]);
    let bad: Vec<&Finding> = findings.0.iter().filter(|finding| finding.level > Level::Note).collect();
    assert!(bad.is_empty(), "{bad:#?}");
    // What this machine cannot be asked, and the core dump that goes to a program.
    let noted: Vec<&str> = findings.0.iter().filter(|f| f.level == Level::Note).map(|f| f.check).collect();
    assert_eq!(noted, ["flush", "core dump"]);
}

#[test]
fn each_planted_setting_is_named_with_what_mends_it() {
    let machine = Machine::new("planted");
    for (planted, check, level, mend) in PLANTED {
        machine.write(planted);
        let findings = machine.findings(&[]);
        machine.undo(planted);
        let named = findings.0.iter().any(|finding| {
            finding.check == *check && finding.level == *level && finding.mend.contains(mend) && !finding.why.is_empty()
        });
        assert!(named, "{planted:?}\n{:#?}", findings.0);
    }
}

#[test]
fn shards_that_share_cores_and_queues_that_are_too_few_are_named() {
    let findings = Machine::new("shards").findings(&[("shards", "4")]);
    assert!(
        findings.0.iter().any(|f| f.check == "cores" && f.level == Level::Warning && f.mend.contains("--shards 2"))
    );
    let machine = Machine::new("queues");
    fs::remove_dir_all(machine.0.join("sys/class/net/eth0/queues/rx-1")).unwrap();
    let findings = machine.findings(&[]);
    let named = |f: &Finding| {
        f.check == "interrupts" && f.level == Level::Note && f.mend.contains("ethtool -L eth0 combined 2")
    };
    assert!(findings.0.iter().any(named), "{:#?}", findings.0);
    assert!(findings.0.iter().any(|f| f.mend.contains("echo 3 > ")), "both cores as a mask");
}

#[test]
fn a_sync_that_is_too_quick_is_no_flush() {
    let disk =
        |rotational, is_virtual, cache: &str| Disk { name: "sda".into(), cache: cache.into(), rotational, is_virtual };
    let said = |disk: &Disk, us| {
        let mut out = Findings::default();
        judge(Some(disk), &Synced::Median { us, direct: true }, &mut out);
        assert_eq!(out.0.len(), 1);
        (out.0[0].level, out.0[0].why.clone())
    };
    let too_quick = "says done too quickly";
    let platter = disk(true, false, "write back");
    assert!(said(&platter, 300).0 == Level::Wrong && said(&platter, 300).1.contains(too_quick));
    assert_eq!(said(&platter, 8000).0, Level::Ok);
    let flash = disk(false, false, "write back");
    assert!(said(&flash, 30).0 == Level::Warning && said(&flash, 30).1.contains(too_quick));
    assert_eq!(said(&flash, 600).0, Level::Ok);
    assert_eq!(said(&flash, 50_000).0, Level::Warning);
    assert_eq!(said(&disk(false, false, "write through"), 20).0, Level::Note);
    assert_eq!(said(&disk(true, true, "write back"), 300).0, Level::Note);
    assert_eq!(said(&disk(true, true, "write back"), 2).0, Level::Wrong);

    let mut out = Findings::default();
    judge(None, &Synced::Failed(std::io::Error::from_raw_os_error(libc::EACCES)), &mut out);
    assert_eq!(out.count(Level::Wrong), 1);
    let mut out = Findings::default();
    judge(Some(&flash), &Synced::Median { us: 600, direct: false }, &mut out);
    assert_eq!(out.0[0].check, "direct writes");
}

#[test]
fn a_partition_and_a_mapped_device_lead_to_their_disk() {
    let machine = Machine::new("disks");
    let link = |from: &str, to: &str| {
        let from = machine.0.join(from);
        fs::create_dir_all(from.parent().unwrap()).unwrap();
        std::os::unix::fs::symlink(machine.0.join(to), from).unwrap();
    };
    let write = |path: &str, text: &str| machine.write(&[(path, text)]);
    write("sys/devices/pci0/sda/queue/write_cache", "write back\n");
    write("sys/devices/pci0/sda/queue/rotational", "1\n");
    write("sys/devices/pci0/sda/sda1/partition", "1\n");
    write("sys/devices/virtual/dm-0/queue/rotational", "0\n");
    link("sys/dev/block/8:1", "sys/devices/pci0/sda/sda1");
    link("sys/dev/block/253:0", "sys/devices/virtual/dm-0");
    link("sys/devices/virtual/dm-0/slaves/sda1", "sys/devices/pci0/sda/sda1");
    write("proc/self/mountinfo", "1 0 253:0 / / rw - ext4 /dev/mapper/x rw\n");
    let findings = machine.findings(&[]);
    let flush = findings.0.iter().find(|finding| finding.check == "flush").unwrap();
    assert!(flush.what.starts_with("sda: ") && flush.what.contains("write back"), "{flush:?}");
}
