//! Load for an event server, as a library: the binary prints one JSON line a run, `tidegate bench` is built on the same runs.
//!
//! ```text
//!   words ─► Order ─► run ─┬─► workload ─► engine ─► net      many connections, one thread, one epoll
//!                          │       └─────► peer                 what the server speaks
//!                          └─► report (JSON): rates, latency from the intended send time, CPU of both sides
//! ```
//! Every delivery is checked to come exactly once and in order; a report says so in `valid` and `invalid`.

mod engine;
mod line;
mod measure;
mod net;
mod order;
mod peer;
mod stamp;
mod websocket;
mod workload;

pub use order::{Order, run};
