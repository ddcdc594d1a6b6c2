//! Load for an event server: prints one JSON line per run.
//!
//! ```text
//!   chat        N sessions × (1 publisher + 1 reader)          --rate R: open loop   no rate: saturation
//!   fanout      1 publisher, N readers of one session          --window 1: one at a time
//!   lone        1 publisher, no reader: one round trip after the other
//!   sessions    N publishers, each with many sessions, no readers
//!   fill        writes so many events, part of them into one hot session          read   reads one session from its start
//!   crowd       N clients, each with a session, an event now and then, and a life that outlives its connection
//!   stall       N readers, of whom some stop reading for a while
//!   streams     N answers token by token, each with two readers; one that joins late, one that is slow
//!   jobs        producers and workers of one queue                        deadlines   jobs that nobody does, and the server answers
//!   idle        N connections, memory of each                                     handshake   connections per second
//! ```
//! Every delivery is checked to come exactly once and in order. Exit status 1 where a run is INVALID: it lost something, or this
//! process was too slow to say anything about the server.

use clap::Parser as _;
use loadgen::Order;
use std::process::ExitCode;

fn main() -> ExitCode {
    match loadgen::run(Order::parse()) {
        Ok(report) => {
            println!("{report}");
            if report["valid"] == true {
                ExitCode::SUCCESS
            } else {
                eprintln!("loadgen: INVALID {}", report["invalid"]);
                ExitCode::FAILURE
            }
        }
        Err(why) => {
            eprintln!("loadgen: {why}");
            ExitCode::FAILURE
        }
    }
}
