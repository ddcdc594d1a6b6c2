//! The figures of a run, and the two ways to print them.
//!
//! ```text
//!   generator's report ─► Row ─┐
//!   Host ──────────────────────┼─► Report ─► table (for people) · JSON (for programs, with all that the generator said)
//!   Verdict ───────────────────┘
//! ```

use super::host::{Host, Quantiles};
use super::verdict::Verdict;
use serde::Serialize;
use serde_json::Value;

/// Latencies from the time at which an event was to be sent, µs.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(super) struct Waits {
    pub p50_us: f64,
    pub p99_us: f64,
    pub p999_us: f64,
    pub max_us: f64,
}

/// One workload.
#[derive(Debug, Clone, Default, Serialize)]
pub(super) struct Row {
    pub name: String,
    /// Of what the workload counts: deliveries, connections, acknowledgements, events read.
    pub rate: f64,
    /// CPU of the server for each of them.
    pub server_us: Option<f64>,
    /// Share of a core that the server used, and the kernel's part of that.
    pub server_core: Option<f64>,
    pub server_kernel_share: Option<f64>,
    pub load_core: f64,
    pub waits: Option<Waits>,
    /// Why the figures say nothing, if they do.
    pub invalid: Vec<String>,
    /// All that the generator said.
    pub report: Value,
}

impl Row {
    /// `rate` names the field of the generator's report.
    pub fn of(name: String, rate: &str, report: Value) -> Row {
        let number = |key: &str| report[key].as_f64();
        let known = report["server_rss_kib"].is_number(); // otherwise the server's process was not looked at
        let rate = number(rate).unwrap_or(0.0);
        let server_core = number("server_cores").filter(|_| known);
        let invalid = report["invalid"].as_array().into_iter().flatten();
        Row {
            name,
            rate,
            server_us: server_core.filter(|_| rate > 0.0).map(|core| core / rate * 1e6),
            server_core,
            server_kernel_share: number("server_kernel_share").filter(|_| known),
            load_core: number("own_cores").unwrap_or(0.0),
            waits: None,
            invalid: invalid.filter_map(|why| why.as_str().map(str::to_owned)).collect(),
            report,
        }
    }

    /// With the latency of `what` (ack, delivery), counted from the `intended` or the `actual` time of sending.
    pub fn waiting(mut self, what: &str, from: &str) -> Row {
        let of = |quantile: &str| self.report[what][from][quantile].as_f64().unwrap_or(0.0);
        self.waits =
            Some(Waits { p50_us: of("p50_us"), p99_us: of("p99_us"), p999_us: of("p999_us"), max_us: of("max_us") });
        self
    }
}

/// All of it.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    /// Where it runs.
    pub server: String,
    /// None: the server is elsewhere.
    pub host: Option<Host>,
    /// Round trip to a server elsewhere.
    pub link_us: Option<f64>,
    pub rows: Vec<Row>,
    pub verdict: Verdict,
}

impl Report {
    pub fn json(&self) -> String {
        // Numbers, text and maps with text as keys: there is nothing in it that JSON cannot say.
        serde_json::to_string_pretty(self).unwrap_or_default()
    }

    pub fn table(&self) -> String {
        let mut lines = vec![format!("tidegate {}: {}", env!("CARGO_PKG_VERSION"), self.server)];
        lines.extend(self.host.iter().flat_map(of_host));
        lines.extend(self.link_us.map(|us| format!("a round trip to it takes {} ms", ms(us))));
        lines.push(String::new());
        let head = ["", "a second", "CPU of server", "server core", "load core", "p50 ms", "p99", "p99.9", "max"];
        let mut cells = vec![head.map(str::to_owned)];
        cells.extend(self.rows.iter().map(row));
        let widths: Vec<usize> = (0..head.len())
            .map(|column| cells.iter().map(|row| row[column].chars().count()).max().unwrap_or(0))
            .collect();
        for row in &cells {
            let rest =
                row.iter().zip(&widths).skip(1).map(|(cell, width)| format!("  {cell:>width$}")).collect::<String>();
            lines.push(format!("{:width$}{rest}", row[0], width = widths[0]));
        }
        for row in &self.rows {
            lines.extend(row.invalid.iter().map(|why| format!("{}: not to be trusted: {why}", row.name)));
            if let Some(first) = row.report["first_event_ms"].as_f64() {
                let mb = row.report["mb_per_s"].as_f64().unwrap_or(0.0);
                lines.push(format!("{}: the first after {first:.1} ms, {mb:.0} MB/s", row.name));
            }
        }
        lines.push(String::new());
        lines.push(format!("verdict: {}", self.verdict.limit.words()));
        lines.extend(self.verdict.lines.iter().map(|line| format!("  {line}")));
        lines.join("\n")
    }
}

fn of_host(host: &Host) -> Vec<String> {
    let two = |q: &Quantiles| format!("{} / {} / {} ms", ms(q.p50_us), ms(q.p99_us), ms(q.max_us));
    let disk = &host.disk;
    vec![
        format!("{}, {} cores, Linux {}", host.cpu, host.cores, host.kernel),
        String::new(),
        "what the host gives without a server          p50 / p99 / max".into(),
        format!("append of 4 KiB with fdatasync                {}", two(&disk.sync_4k)),
        format!("append of 64 KiB with fdatasync               {}", two(&disk.sync_64k)),
        format!("256 bytes over loopback TCP and back          {}", two(&host.loopback.round_trip)),
        format!("  CPU of the side that answers                {:.1} µs", host.loopback.answer_cpu_us),
        format!(
            "disk, sequential: write, read                 {:.0}, {:.0} MB/s",
            disk.write_mb_per_s, disk.read_mb_per_s
        ),
        format!(
            "a busy core was taken away                    {} % of the time, {} ms at most; {} % by programs of this host",
            percent(host.core.taken_share),
            ms(host.core.longest_gap_us),
            percent(host.core.taken_by_programs_share),
        ),
    ]
}

fn row(row: &Row) -> [String; 9] {
    let waits = |of: fn(&Waits) -> f64| row.waits.as_ref().map_or_else(String::new, |waits| ms(of(waits)));
    let kernel = row.server_kernel_share.map_or_else(String::new, |share| format!(" ({:.0} % kernel)", share * 100.0));
    [
        row.name.clone(),
        thousands(row.rate),
        row.server_us.map_or_else(|| "?".into(), |us| format!("{us:.2} µs")),
        row.server_core.map_or_else(|| "?".into(), |core| format!("{:.0} %{kernel}", core * 100.0)),
        format!("{:.0} %", row.load_core * 100.0),
        waits(|waits| waits.p50_us),
        waits(|waits| waits.p99_us),
        waits(|waits| waits.p999_us),
        waits(|waits| waits.max_us),
    ]
}

pub(super) fn ms(us: f64) -> String {
    let places = if us < 1_000.0 { 3 } else { 1 };
    format!("{:.places$}", us / 1e3)
}

pub(super) fn percent(share: f64) -> String {
    format!("{:.1}", share * 100.0)
}

pub(super) fn thousands(n: f64) -> String {
    let digits = format!("{n:.0}");
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(' ');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_row_takes_what_the_generator_said_and_nothing_where_the_server_was_not_seen() {
        let said = json!({"delivered_per_s": 20_000.0, "server_cores": 0.5, "own_cores": 0.25, "server_rss_kib": 1,
            "ack": {"intended": {"p50_us": 250.0, "p99_us": 1.0, "p999_us": 2.0, "max_us": 3.0}}, "invalid": ["late"]});
        let row = Row::of("x".into(), "delivered_per_s", said.clone()).waiting("ack", "intended");
        assert_eq!((row.rate, row.server_us, row.load_core), (20_000.0, Some(25.0), 0.25));
        assert_eq!((row.waits.unwrap().p50_us, row.invalid.as_slice()), (250.0, &["late".to_string()][..]));
        let mut unseen = said;
        unseen["server_rss_kib"] = Value::Null;
        assert_eq!(Row::of("x".into(), "delivered_per_s", unseen).server_core, None);
    }

    #[test]
    fn numbers_are_shown_in_groups_of_three() {
        assert_eq!([0.0, 999.4, 1000.0, 1_234_567.0].map(thousands), ["0", "999", "1 000", "1 234 567"]);
    }
}
