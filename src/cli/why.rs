//! `tidegate why EVENT_ID`: when an event passed each stage, who got it, who has not and why.

use super::ask::{Server, escaped};
use super::{Failure, print_line};
use clap::Args;
use serde_json::Value;
use std::fmt::Write as _;
use std::time::Duration;

/// Tell what became of one event.
#[derive(Args)]
pub(super) struct WhyArgs {
    #[command(flatten)]
    server: Server,
    /// Its tenant.
    #[arg(long, default_value = "default")]
    tenant: String,
    /// The answer as JSON.
    #[arg(long)]
    json: bool,
    /// SESSION:EPOCH:OFFSET, as the server gave it.
    event_id: String,
}

pub(super) fn run(args: &WhyArgs) -> Result<(), Failure> {
    let (event, tenant) = (escaped(&args.event_id), escaped(&args.tenant));
    let answer = args.server.ask(&format!("/v1/why?event={event}&tenant={tenant}"), Duration::ZERO)?;
    if args.json {
        return print_line(&answer.to_string());
    }
    print_line(told(&answer).trim_end())
}

fn told(answer: &Value) -> String {
    let text = |key: &str| answer[key].as_str().unwrap_or_default().to_owned();
    let mut out = String::new();
    let session = &answer["session"];
    // A String takes every write.
    let _infallible = writeln!(
        out,
        "{} of tenant {}: {}\nsession on shard {}: offsets {} to {}, durable below {}",
        text("event_id"),
        text("tenant"),
        text("state"),
        answer["owner"],
        session["first"],
        session["next"],
        session["committed"],
    );
    let stages = answer["stages"].as_array().map(Vec::as_slice).unwrap_or_default();
    if stages.is_empty() {
        let _infallible = writeln!(out, "its way: {}", text("trace"));
    } else {
        let age_s = answer["age_ms"].as_f64().unwrap_or_default() / 1000.0;
        let total_us = answer["total_us"].as_f64().unwrap_or_default();
        let _infallible = writeln!(out, "its way, {age_s:.1} s ago, {total_us:.0} µs to the send queues:");
    }
    let slowest = text("slowest");
    for stage in stages {
        let name = stage["stage"].as_str().unwrap_or_default();
        let us = stage["us"].as_f64().unwrap_or_default();
        let mut more = String::new();
        if let (true, Some(commit)) = (name == "commit", answer["commit"].as_object()) {
            let part = |key: &str| commit[key].as_f64().unwrap_or_default();
            more = format!("   group waits {:.0}, disk {:.0}", part("group_us"), part("disk_us"));
        }
        let mark = if name == slowest { "   ◄ most of it" } else { "" };
        let _infallible = writeln!(out, "  {name:<11}{us:>12.1} µs{more}{mark}");
    }
    readers(&mut out, answer);
    out
}

fn readers(out: &mut String, answer: &Value) {
    let readers = answer["readers"].as_array().map(Vec::as_slice).unwrap_or_default();
    let got = readers.iter().filter(|reader| reader["got"] == true).count();
    let _infallible = writeln!(
        out,
        "readers connected now: {} have it, {} have not; not shown: {}",
        got,
        readers.len() - got,
        answer["not_shown"].as_str().unwrap_or_default()
    );
    for reader in readers {
        let text = |key: &str| reader[key].as_str().unwrap_or_default();
        let mut line = format!(
            "  {} {} by {} on shard {}: {}",
            if reader["got"] == true { "+" } else { "-" },
            text("client"),
            text("by"),
            reader["shard"],
            text("why")
        );
        if reader["queued_bytes"].as_u64() > Some(0) {
            let ms = reader["queued_ms"].as_f64().unwrap_or_default();
            let _infallible = write!(line, "; {} bytes queued, the first for {ms:.1} ms", reader["queued_bytes"]);
        }
        let _infallible = writeln!(out, "{line}");
    }
    for (key, what) in [("readers_unnamed", "more readers"), ("shards_silent", "shards did not answer")] {
        if answer[key].as_u64() > Some(0) {
            let _infallible = writeln!(out, "  {} {what}", answer[key]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_answer_names_the_slowest_stage_and_each_reader() {
        let answer = json!({
            "event_id": "a:00000000000000ff:1", "tenant": "default", "state": "durable", "owner": 1,
            "session": {"first": 0, "committed": 2, "next": 2},
            "stages": [{"stage": "decode", "us": 1.5}, {"stage": "commit", "us": 40_000.0}],
            "slowest": "commit", "commit": {"group_us": 10.0, "disk_us": 39_990.0}, "total_us": 40_100.0, "age_ms": 500.0,
            "readers": [
                {"client": "bob", "by": "session", "shard": 0, "got": false, "why": "out of credit", "queued_bytes": 0},
                {"client": "eve", "by": "pattern", "shard": 1, "got": true, "why": "in its queue", "queued_bytes": 9, "queued_ms": 3.0},
            ],
            "readers_unnamed": 4, "shards_silent": 0,
        });
        let text = told(&answer);
        for part in [
            "40000.0 µs   group waits 10, disk 39990   ◄ most of it",
            "- bob",
            "+ eve",
            "9 bytes queued",
            "4 more readers",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(told(&json!({"trace": "not kept"})).contains("its way: not kept"));
    }
}
