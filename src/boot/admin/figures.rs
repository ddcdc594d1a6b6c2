//! `/metrics` and `/v1/top`: the totals, as Prometheus reads them and as `tidegate top` shows them.
//!
//! ```text
//!   /metrics      all since the start
//!   /v1/top       what the next seconds add: collect ─ wait ─ collect, the difference
//! ```

use super::Desk;
use super::request::{Answer, Status};
use crate::http::Asked;
use crate::observe::{Dialect, Histogram, Process, ShardTotals, Stage, Step, Totals, expose};
use serde_json::{Value, json};
use shards::refusal::Refusal;
use std::time::Duration;

/// Longest interval that top may ask for.
const SECONDS_MAX: f64 = 60.0;
/// Tenants that top names.
const TENANTS_MAX: usize = 16;

impl Desk {
    pub(super) fn metrics(&self, asked: &Asked) -> Answer {
        let dialect = match asked.accept.contains("application/openmetrics-text") {
            true => Dialect::OpenMetrics,
            false => Dialect::Prometheus,
        };
        // The page is made while the totals are held: of what is as large as they are there is no copy for each who asks.
        let page = self.collect(|totals, silent| {
            let process = Process {
                gauges: vec![
                    ("tidegate_process_resident_bytes", "Memory that the process has.", resident_bytes() as f64),
                    ("tidegate_memory_plan_bytes", "Memory that it may have by its plan.", self.plan_bytes as f64),
                    ("tidegate_shards", "Shards.", totals.shards.len() as f64),
                    ("tidegate_shards_silent", "Shards that did not answer within two seconds.", silent.len() as f64),
                ],
                answers: self.answers(),
            };
            expose(totals, &process, dialect)
        });
        Answer::of(dialect.content_type(), page)
    }

    pub(super) fn top(&self, asked: &Asked) -> Answer {
        let seconds = match asked.value("seconds").map(|seconds| seconds.parse::<f64>()) {
            None => 1.0,
            Some(Ok(seconds)) if (0.0..=SECONDS_MAX).contains(&seconds) => seconds,
            Some(_) => {
                return Answer::refused(Status::BadRequest, "seconds is a number from 0 (since the start) to 60");
            }
        };
        let Some(_seat) = self.tops.enter() else {
            return Answer::refused(Status::Busy, "others look at top already: ask again when they have their answer");
        };
        let mut before = Totals::new(self.peers.len());
        if seconds > 0.0 {
            before = self.collect(|totals, _| totals.clone());
            std::thread::sleep(Duration::from_secs_f64(seconds));
        }
        let gauges_before: Vec<_> = before.shards.iter().map(|shard| shard.gauges).collect();
        let (since, silent) = self.collect(|totals, silent| (totals.clone().since(&before), silent.to_vec()));
        let merged = since.merged();
        let shards = since.shards.iter().zip(gauges_before).enumerate().map(|(number, (shard, before))| {
            let per_second =
                |now: u64, before: u64| if seconds > 0.0 { (now - before) as f64 / seconds } else { now as f64 };
            let mut value = shard_of(number, shard);
            value["records_per_s"] = json!(per_second(shard.gauges.records, before.records));
            value["record_bytes_per_s"] = json!(per_second(shard.gauges.record_bytes, before.record_bytes));
            value["sends_per_s"] = json!(per_second(shard.gauges.sends, before.sends));
            value["silent"] = json!(silent.contains(&number));
            value
        });
        let shards: Vec<Value> = shards.collect();
        let stages: Vec<Value> = Stage::ALL
            .iter()
            .map(|stage| {
                let mut value = tail_of(&merged.stages[*stage as usize]);
                value["stage"] = json!(stage.name());
                value
            })
            .collect();
        let mut tenants: Vec<_> = since.tenants().filter(|tenant| tenant.events > 0).collect();
        tenants.sort_by_key(|tenant| std::cmp::Reverse(tenant.events));
        let tenants: Vec<Value> = tenants
            .iter()
            .take(TENANTS_MAX)
            .map(|tenant| {
                let mut value = tail_of(&tenant.way);
                value["tenant"] = json!(tenant.name);
                value["events"] = json!(tenant.events);
                value["record_bytes"] = json!(tenant.bytes);
                value
            })
            .collect();
        let refusals: Vec<Value> = Refusal::ALL
            .iter()
            .filter(|refusal| merged.refusals(**refusal) > 0)
            .map(|refusal| json!({"code": refusal.code(), "refusal": refusal.name(), "count": merged.refusals(*refusal)}))
            .collect();
        Answer::json(&json!({
            "seconds": seconds,
            "shards": shards,
            "stages": stages,
            "tenants": tenants,
            "refusals": refusals,
            "memory": {"resident_bytes": resident_bytes(), "plan_bytes": self.plan_bytes},
        }))
    }
}

fn shard_of(number: usize, shard: &ShardTotals) -> Value {
    let (recorded, gauges) = (&shard.recorded, &shard.gauges);
    let all_ns = recorded.busy_ns + recorded.idle_ns;
    let steps = Step::ALL.iter().map(|step| {
        let mut value = tail_of(&recorded.steps[*step as usize]);
        value["step"] = json!(step.name());
        value["stalls"] = json!(recorded.stalls[*step as usize]);
        value
    });
    let refusals: u64 = Refusal::ALL.iter().map(|refusal| recorded.refusals(*refusal)).sum();
    json!({
        "shard": number,
        "load": if all_ns > 0 { recorded.busy_ns as f64 / all_ns as f64 } else { 0.0 },
        "turn": tail_of(&recorded.turns),
        "steps": steps.collect::<Vec<_>>(),
        "stalls": recorded.stalls.iter().sum::<u64>(),
        "last_stall": gauges.stall.map(|stall| {
            json!({"step": stall.step.name(), "ms": stall.ns as f64 / 1e6, "time_ms": stall.wall_ms})
        }),
        "connections": gauges.connections,
        "clients": gauges.clients,
        "inputs_waiting": gauges.inputs_waiting,
        "refusals": refusals,
        "log": {
            "records": gauges.records,
            "uncommitted": gauges.uncommitted,
            "segments": gauges.segments,
            "sessions": gauges.sessions,
            "no_space": gauges.no_space,
        },
        "mail": {"out": gauges.mail_out, "in": gauges.mail_in, "missed": gauges.mail_missed},
        "send_chunks": gauges.send_chunks,
    })
}

fn tail_of(histogram: &Histogram) -> Value {
    let [p50, p99, p999, max] = histogram.tail().map(|ns| ns as f64 / 1000.0);
    json!({"count": histogram.count(), "p50_us": p50, "p99_us": p99, "p999_us": p999, "max_us": max})
}

/// Pages the process has in memory; 0 where the kernel does not say.
fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: u64 = statm.split(' ').nth(1).and_then(|pages| pages.parse().ok()).unwrap_or_default();
    // SAFETY: a call without memory of ours.
    pages * u64::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096)
}
