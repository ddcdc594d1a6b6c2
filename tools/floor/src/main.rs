//! The floor: what the kernel costs on this machine. A bare io_uring server that does the socket operations of a Tidegate server
//! and nothing else: no sessions kept, no order, no dedupe, no limits, no slow readers.
//!
//! ```text
//!   publisher ──publish──► unmask, find id and data ──► one small send to the publisher       (the acknowledgement)
//!                                                  └──► one send to each subscriber           (the event)
//!   --log FILE     both wait until the event is in FILE: O_DIRECT write linked to fdatasync on the same ring
//!   --merge        what a subscriber, or publisher, is owed by one turn goes out in one send
//!   --spin-us N    look again for so long before sleeping
//! ```
//! It speaks as much of the wire as load needs, with frames of the same size, so that one generator drives both. It is no product.

mod link;
mod log;
mod ring;
mod server;

use clap::Parser;
use std::net::{SocketAddrV4, TcpListener};
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Parser)]
struct Line {
    /// Address to listen on.
    #[arg(long, default_value = "127.0.0.1:7777")]
    listen: SocketAddrV4,
    /// Keep events here before anybody hears of them.
    #[arg(long)]
    log: Option<PathBuf>,
    /// Groups on their way to disk at once.
    #[arg(long, default_value_t = 1)]
    depth: usize,
    /// One send for all that one connection is owed in a turn.
    #[arg(long)]
    merge: bool,
    /// Spin before sleeping, microseconds.
    #[arg(long, default_value_t = 0)]
    spin_us: u64,
}

fn main() -> ExitCode {
    match run(&Line::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("floor: {why}");
            ExitCode::FAILURE
        }
    }
}

fn run(line: &Line) -> std::io::Result<()> {
    let listener = TcpListener::bind(line.listen)?;
    ring::listen_deeply(&listener)?;
    let log = line.log.as_ref().map(|path| log::Log::create(path, line.depth)).transpose()?;
    let mut server = server::Server::new(&listener, log, line.merge, line.spin_us)?;
    println!("ready http://{}", listener.local_addr()?);
    server.serve()
}
