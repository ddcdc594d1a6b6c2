//! What is asked of a server; each workload prints one report.

pub mod connect;
pub mod crowd;
pub mod jobs;
mod placing;
pub mod publish;
pub mod read;
pub mod stall;
pub mod streams;

use crate::measure::{Reading, process_rss_kib};
use serde_json::{Value, json};

/// From this share of its core on, this process may be what limits the result.
const OWN_CORE_FULL: f64 = 0.95;

/// What every report says about CPU and memory between two readings.
fn costs(before: &Reading, after: &Reading, server: Option<u32>) -> Value {
    let (seconds, server_cores, own_cores) = after.since(before);
    json!({
        "seconds": seconds,
        "server_cores": server_cores,
        "server_kernel_share": after.kernel_share_since(before),
        "own_cores": own_cores,
        "cores_busy": after.cores_since(before),
        // True: the server could do more than this process asks of it, and a rate is a lower bound.
        "generator_full": own_cores >= OWN_CORE_FULL,
        "server_rss_kib": server.map(process_rss_kib),
    })
}

/// `into` with all fields of `from`.
fn merge(mut into: Value, from: Value) -> Value {
    if let (Value::Object(into), Value::Object(from)) = (&mut into, from) {
        into.extend(from);
    }
    into
}
