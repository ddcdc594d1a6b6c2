//! A question to the admin edge of a running server, for the subcommands `top` and `why`.
//!
//! ```text
//!   --data DIR      the socket in the server's data folder
//!   --admin ADDR    its admin_listen, where the folder is not at hand
//! ```

use super::Failure;
use crate::boot;
use clap::Args;
use serde_json::Value;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::time::Duration;

/// Beyond what was asked to be waited for.
const PATIENCE: Duration = Duration::from_secs(15);
/// No answer is longer.
const ANSWER_BYTES_MAX: u64 = 64 << 20;

/// Which server.
#[derive(Args)]
pub(super) struct Server {
    /// Its data folder.
    #[arg(long, value_name = "DIR", env = "TIDEGATE_DATA", default_value = "tidegate-data")]
    data: PathBuf,
    /// Its admin address, in place of the folder.
    #[arg(long, value_name = "ADDR")]
    admin: Option<SocketAddr>,
}

impl Server {
    /// Asks for `target`, and waits for the answer and `wait` longer.
    pub fn ask(&self, target: &str, wait: Duration) -> Result<Value, Failure> {
        let answer = match self.admin {
            Some(address) => TcpStream::connect(address)
                .and_then(|stream| stream.set_read_timeout(Some(PATIENCE + wait)).map(|()| stream))
                .and_then(|stream| converse(stream, target)),
            None => boot::admin::connect(&self.data)
                .and_then(|stream| stream.set_read_timeout(Some(PATIENCE + wait)).map(|()| stream))
                .and_then(|stream| converse(stream, target)),
        };
        let answer = answer.map_err(|why| {
            let server = self.admin.map_or_else(|| self.data.display().to_string(), |address| address.to_string());
            Failure::failed(format!("{server}: {why}; is a server running there? name it with --data or --admin"))
        })?;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_default();
        if !head.starts_with("HTTP/1.1 200") {
            return Err(Failure::failed(body.trim_end()));
        }
        serde_json::from_str(body).map_err(|why| Failure::failed(format!("the answer is no JSON: {why}")))
    }
}

fn converse(mut stream: impl Read + Write, target: &str) -> std::io::Result<String> {
    write!(stream, "GET {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.take(ANSWER_BYTES_MAX).read_to_string(&mut answer)?;
    Ok(answer)
}

/// A parameter's value, escaped.
pub(super) fn escaped(value: &str) -> String {
    let mut out = String::with_capacity(value.len());
    for byte in value.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'_' | b'.' | b':' | b'-' => out.push(char::from(byte)),
            other => out.push_str(&format!("%{other:02X}")),
        }
    }
    out
}
