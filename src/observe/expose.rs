//! The totals as Prometheus reads them: text format 0.0.4, or OpenMetrics 1.0 for whoever asks for it.
//!
//! ```text
//!   # HELP name …          tidegate_stage_seconds_bucket{shard="0",stage="commit",le="0.0002"} 17
//!   # TYPE name kind       tidegate_stage_quantile_seconds{stage="commit",quantile="0.999"} 0.0031
//! ```
//! Both are the same lines, but for two things: OpenMetrics names a counter's family without `_total`, and ends in `# EOF`.

use super::{Histogram, ShardTotals, Stage, Step, Totals};
use shards::refusal::Refusal;
use std::fmt::Write as _;

/// Which text format.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Dialect {
    /// 0.0.4
    Prometheus,
    /// 1.0.0
    OpenMetrics,
}

impl Dialect {
    /// What an answer says it is.
    pub const fn content_type(self) -> &'static str {
        match self {
            Dialect::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
            Dialect::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// Upper bounds of buckets, microseconds: six a decade from 1 µs to 10 s, a few below for what takes no time.
const BOUNDS_US: &[f64] = &[
    0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0, 7.0, 10.0, 15.0, 20.0, 30.0, 50.0, 70.0, 100.0, 150.0, 200.0, 300.0, 500.0,
    700.0, 1e3, 1.5e3, 2e3, 3e3, 5e3, 7e3, 1e4, 1.5e4, 2e4, 3e4, 5e4, 7e4, 1e5, 1.5e5, 2e5, 3e5, 5e5, 7e5, 1e6, 2e6,
    5e6, 1e7,
];
/// Quantiles said of whole distributions; 1 is the longest.
const QUANTILES: [&str; 4] = ["0.5", "0.99", "0.999", "1"];

/// What is not of a shard.
#[derive(Clone, Debug, Default)]
pub struct Process {
    /// Name, help and value of each gauge.
    pub gauges: Vec<(&'static str, &'static str, f64)>,
    /// Way, status and number of the answers of the admin edge.
    pub answers: Vec<(&'static str, &'static str, u64)>,
}

/// All metrics.
pub fn expose(totals: &Totals, process: &Process, dialect: Dialect) -> String {
    let mut page = Page { out: String::with_capacity(64 << 10), dialect };
    stages(&mut page, totals);
    turns(&mut page, totals);
    tenants(&mut page, totals);
    refusals(&mut page, totals);
    gauges(&mut page, totals);
    for (name, help, value) in &process.gauges {
        page.family(name, "gauge", help);
        page.sample(name, &[], *value);
    }
    let name = "tidegate_admin_answers_total";
    page.family(name, "counter", "Answers of the admin edge, by status: 400, 408 and 431 are requests that are none.");
    for (way, status, count) in &process.answers {
        page.sample(name, &[("way", way), ("status", status)], *count as f64);
    }
    if dialect == Dialect::OpenMetrics {
        page.out.push_str("# EOF\n");
    }
    page.out
}

struct Page {
    out: String,
    dialect: Dialect,
}

impl Page {
    /// `name` of a counter ends in `_total`.
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        let family = match self.dialect {
            Dialect::OpenMetrics => name.strip_suffix("_total").unwrap_or(name),
            Dialect::Prometheus => name,
        };
        // A String takes every write.
        let _infallible = writeln!(self.out, "# HELP {family} {help}\n# TYPE {family} {kind}");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: f64) {
        self.out.push_str(name);
        for (i, (label, text)) in labels.iter().enumerate() {
            let open = if i == 0 { '{' } else { ',' };
            // Names of tenants and of everything else that stands here hold nothing that a label escapes.
            let _infallible = write!(self.out, "{open}{label}=\"{text}\"");
        }
        let close = if labels.is_empty() { "" } else { "}" };
        let _infallible = writeln!(self.out, "{close} {value}");
    }

    fn histogram(&mut self, name: &str, labels: &[(&str, &str)], histogram: &Histogram) {
        let bounds_ns: Vec<u64> = BOUNDS_US.iter().map(|us| (us * 1000.0) as u64).collect();
        let (counts, sum_ns) = histogram.cumulative(&bounds_ns);
        let bucket = format!("{name}_bucket");
        for (bound_us, count) in BOUNDS_US.iter().zip(counts) {
            let le = (bound_us / 1e6).to_string();
            self.sample(&bucket, &[labels, &[("le", &le)]].concat(), count as f64);
        }
        self.sample(&bucket, &[labels, &[("le", "+Inf")]].concat(), histogram.count() as f64);
        self.sample(&format!("{name}_sum"), labels, sum_ns as f64 / 1e9);
        self.sample(&format!("{name}_count"), labels, histogram.count() as f64);
    }

    fn quantiles(&mut self, name: &str, labels: &[(&str, &str)], histogram: &Histogram) {
        for (quantile, ns) in QUANTILES.iter().zip(histogram.tail()) {
            self.sample(name, &[labels, &[("quantile", quantile)]].concat(), ns as f64 / 1e9);
        }
    }
}

fn stages(page: &mut Page, totals: &Totals) {
    let name = "tidegate_stage_seconds";
    page.family(name, "histogram", "Time that events spend in each stage; mailbox: messages, socket_out: sends.");
    each(totals, |number, shard| {
        for stage in Stage::ALL {
            let labels = [("shard", number), ("stage", stage.name())];
            page.histogram(name, &labels, &shard.recorded.stages[stage as usize]);
        }
    });
    let merged = totals.merged();
    let name = "tidegate_stage_quantile_seconds";
    page.family(name, "gauge", "The same over all shards since the start, as quantiles within 1 %; 1 is the longest.");
    for stage in Stage::ALL {
        page.quantiles(name, &[("stage", stage.name())], &merged.stages[stage as usize]);
    }
}

fn turns(page: &mut Page, totals: &Totals) {
    let name = "tidegate_turn_seconds";
    page.family(name, "histogram", "Length of turns that did something.");
    each(totals, |number, shard| page.histogram(name, &[("shard", number)], &shard.recorded.turns));
    let name = "tidegate_turn_step_seconds";
    page.family(name, "histogram", "Length of each of their steps.");
    each(totals, |number, shard| {
        for step in Step::ALL {
            let labels = [("shard", number), ("step", step.name())];
            page.histogram(name, &labels, &shard.recorded.steps[step as usize]);
        }
    });
    let name = "tidegate_turn_step_stalls_total";
    page.family(name, "counter", "Times a step took longer than turn_step_us_max.");
    each(totals, |number, shard| {
        for step in Step::ALL {
            let labels = [("shard", number), ("step", step.name())];
            page.sample(name, &labels, shard.recorded.stalls[step as usize] as f64);
        }
    });
    let name = "tidegate_turn_last_stall_seconds";
    page.family(name, "gauge", "The last step over its budget: how long it took.");
    each(totals, |number, shard| {
        if let Some(stall) = shard.gauges.stall {
            page.sample(name, &[("shard", number), ("step", stall.step.name())], stall.ns as f64 / 1e9);
        }
    });
    for (name, help, ns) in [
        ("tidegate_shard_busy_seconds_total", "Time in turns that did something.", true),
        ("tidegate_shard_idle_seconds_total", "Time spinning and asleep.", false),
    ] {
        page.family(name, "counter", help);
        each(totals, |number, shard| {
            let ns = if ns { shard.recorded.busy_ns } else { shard.recorded.idle_ns };
            page.sample(name, &[("shard", number)], ns as f64 / 1e9);
        });
    }
}

fn tenants(page: &mut Page, totals: &Totals) {
    let name = "tidegate_tenant_quantile_seconds";
    page.family(name, "gauge", "From bytes received to delivery queued, by tenant, within 7 %; $rest: all others.");
    for tenant in totals.tenants() {
        page.quantiles(name, &[("tenant", &tenant.name)], &tenant.way);
    }
    let name = "tidegate_tenant_events_total";
    page.family(name, "counter", "Events committed.");
    for tenant in totals.tenants() {
        page.sample(name, &[("tenant", &tenant.name)], tenant.events as f64);
    }
    let name = "tidegate_tenant_record_bytes_total";
    page.family(name, "counter", "Bytes of their records in the log.");
    for tenant in totals.tenants() {
        page.sample(name, &[("tenant", &tenant.name)], tenant.bytes as f64);
    }
}

fn refusals(page: &mut Page, totals: &Totals) {
    let name = "tidegate_refusals_total";
    page.family(name, "counter", "Commands refused, by code; see PROTOCOL.md.");
    each(totals, |number, shard| {
        for refusal in Refusal::ALL {
            let code = refusal.code().to_string();
            let labels = [("shard", number), ("code", &*code), ("refusal", refusal.name())];
            page.sample(name, &labels, shard.recorded.refusals(*refusal) as f64);
        }
    });
}

/// A line of the table below: name, kind, help, value.
type Gauge = (&'static str, &'static str, &'static str, fn(&ShardTotals) -> f64);

const GAUGES: &[Gauge] = &[
    ("tidegate_connections", "gauge", "Sockets held.", |s| s.gauges.connections as f64),
    ("tidegate_clients", "gauge", "Clients connected.", |s| s.gauges.clients as f64),
    ("tidegate_inputs_waiting", "gauge", "Connections whose input waits for room.", |s| s.gauges.inputs_waiting as f64),
    ("tidegate_connections_accepted_total", "counter", "Sockets accepted.", |s| s.gauges.accepted as f64),
    ("tidegate_connections_adopted_total", "counter", "Sockets taken from other shards.", |s| s.gauges.adopted as f64),
    ("tidegate_connections_opened_total", "counter", "WebSockets opened.", |s| s.gauges.opened as f64),
    ("tidegate_connections_turned_away_total", "counter", "Newcomers told to come back.", |s| {
        s.gauges.turned_away as f64
    }),
    ("tidegate_sends_total", "counter", "Sends asked of the kernel.", |s| s.gauges.sends as f64),
    ("tidegate_receives_without_buffer_total", "counter", "Receives that found no buffer.", |s| {
        s.gauges.buffers_short as f64
    }),
    ("tidegate_send_chunks", "gauge", "Chunks of the send pool in use.", |s| s.gauges.send_chunks as f64),
    ("tidegate_log_records_total", "counter", "Records appended.", |s| s.gauges.records as f64),
    ("tidegate_log_record_bytes_total", "counter", "Bytes of records appended.", |s| s.gauges.record_bytes as f64),
    ("tidegate_log_uncommitted_records", "gauge", "Records appended and not durable.", |s| s.gauges.uncommitted as f64),
    ("tidegate_log_sessions", "gauge", "Sessions in memory.", |s| s.gauges.sessions as f64),
    ("tidegate_log_sessions_dirty", "gauge", "Of these, changed since the checkpoint.", |s| {
        s.gauges.sessions_dirty as f64
    }),
    ("tidegate_log_segments", "gauge", "Log files that can be read.", |s| s.gauges.segments as f64),
    ("tidegate_log_cold_reads_total", "counter", "Reads from disk.", |s| s.gauges.cold_reads as f64),
    ("tidegate_log_checkpoints_total", "counter", "Checkpoints made.", |s| s.gauges.checkpoints as f64),
    ("tidegate_log_no_space", "gauge", "1 while the disk is full.", |s| f64::from(u8::from(s.gauges.no_space))),
    ("tidegate_log_damaged_reads_total", "counter", "Reads that met damage.", |s| s.gauges.damaged_reads as f64),
    ("tidegate_open_files", "gauge", "Files of the log held open.", |s| s.gauges.open_files as f64),
    ("tidegate_mailbox_missed_total", "counter", "Live streams to another shard that a full lane interrupted.", |s| {
        s.gauges.mail_missed as f64
    }),
];

fn gauges(page: &mut Page, totals: &Totals) {
    for (name, kind, help, value) in GAUGES {
        page.family(name, kind, help);
        each(totals, |number, shard| page.sample(name, &[("shard", number)], value(shard)));
    }
    let name = "tidegate_mailbox_messages";
    page.family(name, "gauge", "Messages in the lanes between shards.");
    each(totals, |number, shard| {
        page.sample(name, &[("shard", number), ("direction", "out")], shard.gauges.mail_out as f64);
        page.sample(name, &[("shard", number), ("direction", "in")], shard.gauges.mail_in as f64);
    });
}

fn each(totals: &Totals, mut then: impl FnMut(&str, &ShardTotals)) {
    for (number, shard) in totals.shards.iter().enumerate() {
        then(&number.to_string(), shard);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn each_family_is_said_once_and_counters_end_in_total() {
        let mut totals = Totals::new(2);
        totals.shards[1].recorded.stages[Stage::Commit as usize].record(150_000);
        for dialect in [Dialect::Prometheus, Dialect::OpenMetrics] {
            let process = Process {
                gauges: vec![("tidegate_process_resident_bytes", "Memory.", 5.0)],
                answers: vec![("port", "431", 3)],
            };
            let page = expose(&totals, &process, dialect);
            let mut families = BTreeSet::new();
            for line in page.lines().filter(|line| line.starts_with("# TYPE ")) {
                let words: Vec<&str> = line.split(' ').collect();
                assert!(families.insert(words[2].to_owned()), "twice: {line}");
                let total = words[2].ends_with("_total");
                assert_eq!(total, words[3] == "counter" && dialect == Dialect::Prometheus, "{line}");
            }
            assert!(page.contains("tidegate_stage_seconds_bucket{shard=\"1\",stage=\"commit\",le=\"0.0002\"} 1\n"));
            assert!(page.contains("tidegate_stage_seconds_bucket{shard=\"1\",stage=\"commit\",le=\"0.0001\"} 0\n"));
            assert!(page.contains("tidegate_process_resident_bytes 5\n"));
            assert!(page.contains("tidegate_admin_answers_total{way=\"port\",status=\"431\"} 3\n"));
            assert_eq!(page.ends_with("# EOF\n"), dialect == Dialect::OpenMetrics);
        }
    }
}
