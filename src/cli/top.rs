//! `tidegate top`: what each shard does with its time, where events spend theirs, who was refused, which tenants there are.
//!
//! ```text
//!   /v1/top?seconds=N ─► one screen ─► again, until it is interrupted; --once: one, without clearing the terminal
//! ```

use super::ask::Server;
use super::{Failure, print_line};
use clap::Args;
use serde_json::Value;
use std::fmt::Write as _;
use std::time::Duration;

/// Show what a running server does.
#[derive(Args)]
pub(super) struct TopArgs {
    #[command(flatten)]
    server: Server,
    /// Length of the interval that is shown; 0 = since the server's start.
    #[arg(long, value_name = "S", default_value_t = 1.0)]
    seconds: f64,
    /// One screen, then end.
    #[arg(long)]
    once: bool,
    /// The figures as JSON, one object a line.
    #[arg(long)]
    json: bool,
}

/// Clears the terminal and goes to its first place.
const CLEAR: &str = "\x1b[H\x1b[2J";

pub(super) fn run(args: &TopArgs) -> Result<(), Failure> {
    loop {
        // Without an interval to wait for it would not rest at all.
        let pause = if args.seconds > 0.0 { Duration::ZERO } else { Duration::from_secs(1) };
        let wait =
            Duration::try_from_secs_f64(args.seconds).map_err(|why| Failure::wrong(format!("--seconds: {why}")))?;
        let figures = args.server.ask(&format!("/v1/top?seconds={}", args.seconds), wait)?;
        match (args.json, args.once) {
            (true, _) => print_line(&figures.to_string())?,
            (false, true) => print_line(screen(&figures).trim_end())?,
            (false, false) => print_line(&format!("{CLEAR}{}", screen(&figures)))?,
        }
        if args.once {
            return Ok(());
        }
        std::thread::sleep(pause);
    }
}

fn screen(figures: &Value) -> String {
    let mut out = String::new();
    let seconds = figures["seconds"].as_f64().unwrap_or_default();
    let span = if seconds > 0.0 { format!("last {seconds} s") } else { "since the start".into() };
    let mib = |key: &str| figures["memory"][key].as_f64().unwrap_or_default() / 1048576.0;
    // A String takes every write.
    let _infallible =
        writeln!(out, "tidegate: {span}, memory {:.0} MiB, plan {:.0} MiB\n", mib("resident_bytes"), mib("plan_bytes"));
    let _infallible = writeln!(
        out,
        "shard  load  turn p50/p99/max       records/s  sends/s  conns  waiting  uncommitted  segments  mail in/out  refused  stalls"
    );
    for shard in list(figures, "shards") {
        let number = |key: &str| shard[key].as_f64().unwrap_or_default();
        let turn = &shard["turn"];
        let turns = format!("{}/{}/{}", time(&turn["p50_us"]), time(&turn["p99_us"]), time(&turn["max_us"]));
        let mail = format!("{}/{}", shard["mail"]["in"], shard["mail"]["out"]);
        let _infallible = writeln!(
            out,
            "{:>5}  {:>3.0}%  {turns:<22}{:>9.0}{:>9.0}{:>7}{:>9}{:>13}{:>10}{mail:>13}{:>9}{:>8}{}{}",
            number("shard"),
            number("load") * 100.0,
            number("records_per_s"),
            number("sends_per_s"),
            number("connections"),
            number("inputs_waiting"),
            shard["log"]["uncommitted"].as_u64().unwrap_or_default(),
            shard["log"]["segments"].as_u64().unwrap_or_default(),
            number("refusals"),
            number("stalls"),
            if shard["log"]["no_space"] == true { "  DISK FULL" } else { "" },
            if shard["silent"] == true { "  SILENT" } else { "" },
        );
    }
    stalls(&mut out, figures);
    let _infallible = writeln!(out, "\nstage            events       p50       p99     p99.9       max");
    for stage in list(figures, "stages") {
        tail(&mut out, stage["stage"].as_str().unwrap_or_default(), &stage["count"], stage);
    }
    let _infallible =
        writeln!(out, "\ntenant           events       p50       p99     p99.9       max   from bytes in to delivered");
    for tenant in list(figures, "tenants") {
        tail(&mut out, tenant["tenant"].as_str().unwrap_or_default(), &tenant["events"], tenant);
    }
    if list(figures, "refusals").next().is_some() {
        let _infallible = writeln!(out, "\nrefused");
    }
    for refusal in list(figures, "refusals") {
        let name = refusal["refusal"].as_str().unwrap_or_default();
        let _infallible = writeln!(out, "{:>7}  {} {name}", refusal["count"].to_string(), refusal["code"]);
    }
    out
}

/// Steps over their budget in this interval, and the last of each shard.
fn stalls(out: &mut String, figures: &Value) {
    for shard in list(figures, "shards") {
        let steps = list(shard, "steps").filter(|step| step["stalls"].as_u64() > Some(0));
        let steps: Vec<String> = steps
            .map(|step| {
                let name = step["step"].as_str().unwrap_or_default();
                format!("{name} {}× (longest {})", step["stalls"], time(&step["max_us"]))
            })
            .collect();
        let last = shard["last_stall"].as_object();
        if steps.is_empty() && last.is_none() {
            continue;
        }
        let _infallible = write!(out, "       shard {} stalled: ", shard["shard"]);
        out.push_str(&if steps.is_empty() { "not in this time".into() } else { steps.join(", ") });
        if let Some(last) = last {
            let (step, ms) = (last["step"].as_str().unwrap_or_default(), last["ms"].as_f64().unwrap_or_default());
            let _infallible = write!(out, "; last {step} {ms:.1} ms");
        }
        out.push('\n');
    }
}

fn tail(out: &mut String, name: &str, count: &Value, of: &Value) {
    let times = ["p50_us", "p99_us", "p999_us", "max_us"].map(|key| time(&of[key]));
    let [p50, p99, p999, max] = times;
    let _infallible = writeln!(out, "{name:<13}{:>10}{p50:>10}{p99:>10}{p999:>10}{max:>10}", count.to_string());
}

fn list<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    value[key].as_array().into_iter().flatten()
}

/// Microseconds, as short as it can be said.
fn time(us: &Value) -> String {
    match us.as_f64().unwrap_or_default() {
        us if us < 10.0 => format!("{us:.1}µs"),
        us if us < 1000.0 => format!("{us:.0}µs"),
        us if us < 10_000.0 => format!("{:.1}ms", us / 1e3),
        us if us < 1e6 => format!("{:.0}ms", us / 1e3),
        us => format!("{:.1}s", us / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_screen_names_what_stalled_and_who_was_refused() {
        let figures = json!({
            "seconds": 1.0,
            "shards": [{"shard": 0, "load": 0.5, "turn": {"p50_us": 12.0, "p99_us": 900.0, "max_us": 40_000.0},
                "steps": [{"step": "commit", "stalls": 1, "max_us": 40_000.0}, {"step": "reap", "stalls": 0, "max_us": 1.0}],
                "last_stall": {"step": "commit", "ms": 40.0}, "log": {"no_space": true}}],
            "stages": [{"stage": "commit", "count": 3, "p50_us": 1.5, "p99_us": 2e6, "p999_us": 2e6, "max_us": 2e6}],
            "tenants": [{"tenant": "acme", "events": 3}],
            "refusals": [{"code": 4102, "refusal": "no_space", "count": 7}],
        });
        let text = screen(&figures);
        for part in ["commit 1× (longest 40ms); last commit 40.0 ms", "DISK FULL", "acme", "7  4102 no_space", "2.0s"]
        {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(!text.contains("reap"), "{text}");
        screen(&json!({}));
    }
}
