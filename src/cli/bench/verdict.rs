//! What limits the server here, said in words, from the figures alone.
//!
//! ```text
//!   one core for both? ─► core taken away? ─► server's core full? ─► load's core full? ─► far away? ─► faster without sync?
//!        SharedCore            Noise              ServerCore             Generator           Network        Disk
//! ```
//! The first that holds is the limit; what else was seen is said too.

use super::host::Host;
use super::report::{Row, ms, percent, thousands};
use serde::Serialize;

/// From this share on a core counts as full.
const CORE_FULL: f64 = 0.9;
/// Above this share taken from a busy core, figures say more about the neighbours than about the server.
const NOISE_LIMITS: f64 = 0.2;
/// Above this one it is mentioned.
const NOISE_SHOWS: f64 = 0.03;
/// A server that does this much more without syncs was waiting for the disk.
const UNSYNCED_GAIN: f64 = 1.2;
/// From this share of what the distance allows on, the distance is the limit.
const DISTANCE_FULL: f64 = 0.7;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Limit {
    ServerCore,
    Disk,
    Generator,
    SharedCore,
    Noise,
    Network,
    Unknown,
}

impl Limit {
    pub fn words(self) -> &'static str {
        match self {
            Limit::ServerCore => "the server's core",
            Limit::Disk => "the disk's sync",
            Limit::Generator => "the load generator: the server could do more",
            Limit::SharedCore => "one core for both the server and the load",
            Limit::Noise => "somebody else on this host's cores",
            Limit::Network => "the way to the server",
            Limit::Unknown => "not seen from here",
        }
    }
}

#[derive(Debug, Serialize)]
pub(super) struct Verdict {
    pub limit: Limit,
    /// Why, what to do, and what else was seen.
    pub lines: Vec<String>,
}

/// What the rows do not say.
pub(super) struct Place {
    pub shared_core: bool,
    pub sessions: u32,
    /// Round trip to a server elsewhere.
    pub link_us: Option<f64>,
}

/// `host` is none for a server elsewhere.
pub(super) fn verdict(host: Option<&Host>, rows: &[Row], place: &Place) -> Verdict {
    let row =
        |beginning: &str, end: &str| rows.iter().find(|row| row.name.starts_with(beginning) && row.name.ends_with(end));
    let mut lines = Vec::new();
    let Some(durable) = row("durable chat", "at most") else { return Verdict { limit: Limit::Unknown, lines } };
    let unsynced = row("chat with --sync off", "at most");
    let gain = unsynced.map(|unsynced| unsynced.rate / durable.rate.max(1.0));
    let noise = host.map_or(0.0, |host| host.core.taken_share);
    let limit = if place.shared_core {
        Limit::SharedCore
    } else if noise >= NOISE_LIMITS {
        Limit::Noise
    } else if durable.server_core.is_some_and(|core| core >= CORE_FULL) {
        Limit::ServerCore
    } else if durable.load_core >= CORE_FULL {
        Limit::Generator
    } else if place.link_us.is_some_and(|us| durable.rate >= DISTANCE_FULL * f64::from(place.sessions) / us * 1e6) {
        Limit::Network
    } else if gain.is_some_and(|gain| gain >= UNSYNCED_GAIN) {
        Limit::Disk
    } else {
        Limit::Unknown
    };
    lines.push(why(limit, host, durable, gain, place));
    lines.push(cure(limit, host).into());
    lines.extend(also(limit, host, row("durable chat", "half of that"), gain, noise));
    Verdict { limit, lines }
}

fn why(limit: Limit, host: Option<&Host>, durable: &Row, gain: Option<f64>, place: &Place) -> String {
    let rate = thousands(durable.rate);
    let server = durable.server_core.unwrap_or(0.0) * 100.0;
    match limit {
        Limit::ServerCore => {
            let parts = durable.server_kernel_share.map_or_else(String::new, |kernel| {
                let (kernel, own) = (kernel * 100.0, 100.0 - kernel * 100.0);
                format!(": {kernel:.0} % of its time in the kernel (sockets, disk), {own:.0} % in Tidegate")
            });
            format!("it was busy {server:.0} % of the time at {rate} events a second{parts}")
        }
        Limit::Disk => format!(
            "at {rate} events a second the server's core was busy only {server:.0} %, and without syncs it did {:.1} times as much; \
             a sync of 4 KiB takes {} ms here",
            gain.unwrap_or(1.0),
            ms(host.map_or(0.0, |host| host.disk.sync_4k.p50_us)),
        ),
        Limit::Generator => {
            format!(
                "its core was busy {:.0} % at {rate} events a second, the server's {server:.0} %",
                durable.load_core * 100.0
            )
        }
        Limit::SharedCore => format!("{rate} events a second is what one core gives to both together"),
        Limit::Noise => {
            let core = host.map(|host| host.core).unwrap_or_default();
            format!(
                "a busy loop got its core only {} % of the time ({} % went to programs of this host, the rest to the hypervisor)",
                percent(1.0 - core.taken_share),
                percent(core.taken_by_programs_share),
            )
        }
        Limit::Network => format!(
            "{} sessions with one event under way each, a round trip of {} ms: {rate} events a second is near all that can be",
            place.sessions,
            ms(place.link_us.unwrap_or(0.0)),
        ),
        Limit::Unknown if host.is_none() => {
            format!("{rate} events a second: neither this process nor the distance was the limit")
        }
        Limit::Unknown => format!(
            "at {rate} events a second the server's core was busy {server:.0} %, the load's {:.0} %, and syncs made no difference: \
             with one event under way in each of {} sessions they wait for each other",
            durable.load_core * 100.0,
            place.sessions,
        ),
    }
}

fn cure(limit: Limit, host: Option<&Host>) -> &'static str {
    match limit {
        Limit::ServerCore if host.is_some_and(|host| host.cores > 1) => {
            "a shard a core is the way up: `serve --shards 0` takes them all; sessions spread over them by name"
        }
        Limit::ServerCore => "a host with more cores is the way up: a shard a core",
        Limit::Disk => {
            "a disk with power-loss protection syncs in a tenth of that; more sessions at once share a sync; `--sync off` where \
             losing the last moments in a crash is allowed"
        }
        Limit::Generator => "the rates are lower bounds; ask for fewer --sessions, or load from several processes",
        Limit::SharedCore => "give this more than one core (cpuset, taskset, container limits) to see the server alone",
        Limit::Noise => "stop what else runs, or take another host, and measure again: these figures do not hold",
        Limit::Network => "ask for more --sessions, or run this on the server's own host",
        Limit::Unknown if host.is_none() => {
            "run `tidegate bench` on the server's own host: its core and disk are seen only there"
        }
        Limit::Unknown => "ask for more --sessions",
    }
}

/// What is worth knowing beside the limit.
fn also(limit: Limit, host: Option<&Host>, paced: Option<&Row>, gain: Option<f64>, noise: f64) -> Vec<String> {
    let mut lines = Vec::new();
    let Some(host) = host else { return lines };
    if limit != Limit::Noise && noise >= NOISE_SHOWS {
        let longest = ms(host.core.longest_gap_us);
        lines.push(format!(
            "a busy core is taken away {} % of the time, for up to {longest} ms: tails are the host's",
            percent(noise)
        ));
    }
    if let Some(waits) = paced.and_then(|paced| paced.waits) {
        let sync = &host.disk.sync_4k;
        let slow = waits.p999_us > 3_000.0 && sync.max_us > waits.p999_us / 2.0;
        let whose = if slow { ": the tail is the disk's" } else { "" };
        lines.push(format!(
            "at half of the most, an acknowledgement takes {} ms (p99.9 {}) and a bare sync {} ms (longest {}){whose}",
            ms(waits.p50_us),
            ms(waits.p999_us),
            ms(sync.p50_us),
            ms(sync.max_us),
        ));
    }
    if let Some(gain) = gain.filter(|_| limit != Limit::Disk) {
        lines.push(format!("without syncs it does {gain:.2} times as much"));
    }
    if !host.disk.direct {
        lines.push("the file system refuses O_DIRECT: every write goes through the page cache".into());
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::bench::report::Waits;

    fn rows(durable: (f64, f64, f64), unsynced: f64) -> Vec<Row> {
        let (rate, server, load) = durable;
        let waits = Some(Waits { p50_us: 500.0, p999_us: 9_000.0, ..Waits::default() });
        let most = |name: &str, rate| Row { name: format!("{name}, 3 sessions: at most"), rate, ..Row::default() };
        let durable = Row {
            server_core: Some(server),
            server_kernel_share: Some(0.75),
            load_core: load,
            ..most("durable chat", rate)
        };
        vec![
            durable,
            Row { name: "durable chat: at half of that".into(), waits, ..Row::default() },
            most("chat with --sync off", unsynced),
        ]
    }

    fn host(taken_share: f64) -> Host {
        let mut host = Host { cores: 4, ..Host::default() };
        host.core.taken_share = taken_share;
        host.disk.sync_4k.max_us = 8_000.0;
        host.disk.direct = true;
        host
    }

    const HERE: Place = Place { shared_core: false, sessions: 3, link_us: None };

    fn limit(rows: &[Row], host: &Host) -> Limit {
        verdict(Some(host), rows, &HERE).limit
    }

    #[test]
    fn each_limit_is_found_by_its_figures() {
        assert_eq!(limit(&rows((30e3, 0.97, 0.8), 33e3), &host(0.01)), Limit::ServerCore);
        assert_eq!(limit(&rows((30e3, 0.6, 0.97), 33e3), &host(0.01)), Limit::Generator);
        assert_eq!(limit(&rows((5e3, 0.2, 0.2), 30e3), &host(0.01)), Limit::Disk);
        assert_eq!(limit(&rows((5e3, 0.2, 0.2), 5e3), &host(0.01)), Limit::Unknown);
        assert_eq!(limit(&rows((30e3, 0.97, 0.8), 33e3), &host(0.4)), Limit::Noise);
        let shared = Place { shared_core: true, ..HERE };
        assert_eq!(verdict(Some(&host(0.0)), &rows((30e3, 0.5, 0.5), 33e3), &shared).limit, Limit::SharedCore);
    }

    #[test]
    fn elsewhere_the_distance_is_told_from_the_server() {
        let mut far = rows((280.0, 0.0, 0.1), 0.0);
        far.truncate(2);
        far[0].server_core = None;
        let place = |us| Place { link_us: Some(us), ..HERE };
        assert_eq!(verdict(None, &far, &place(10_000.0)).limit, Limit::Network); // 3 sessions, 10 ms: 300 a second
        let near = verdict(None, &far, &place(100.0));
        assert_eq!(near.limit, Limit::Unknown);
        assert!(near.lines.iter().any(|line| line.contains("own host")), "{near:?}");
    }

    #[test]
    fn the_words_name_the_figures_and_a_cure() {
        let found = verdict(Some(&host(0.05)), &rows((30e3, 0.97, 0.8), 33e3), &HERE);
        let text = found.lines.join("\n");
        for part in [
            "30 000",
            "75 % of its time in the kernel",
            "--shards 0",
            "5.0 % of the time",
            "the tail is the disk's",
            "1.10 times",
        ] {
            assert!(text.contains(part), "{part} is missing in:\n{text}");
        }
    }
}
