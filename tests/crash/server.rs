//! The real binary over a folder: started, killed, stopped.

use crate::cut::Folder;
use crate::random::Random;
use std::io::{BufRead, BufReader, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tungstenite::{Message, WebSocket};

/// A connection to it.
pub type Socket = WebSocket<TcpStream>;

/// Longest time any answer may take.
pub const PATIENCE: Duration = Duration::from_secs(70);

/// Flags at which every edge of the log is met within a few hundred events.
pub fn flags(random: &mut Random) -> Vec<String> {
    let mut flags: Vec<String> = ["--listen", "127.0.0.1:0", "--sync", "on"].map(str::to_owned).into();
    let mut set = |key: &str, value: u64| flags.extend(["--set".to_owned(), format!("{key}={value}")]);
    set("segment_bytes", *random.pick(&[64 << 10, 64 << 10, 128 << 10, 512 << 10]));
    set("segment_records_max", *random.pick(&[64, 256, 4096]));
    set("commit_bytes_max", 16 << 10);
    set("frame_bytes_max", 8 << 10);
    set("event_bytes_max", 2 << 10);
    set("hot_tail_bytes", *random.pick(&[144 << 10, 512 << 10]));
    set("groups_in_flight_max", random.between(1, 3));
    set("group_close_us", *random.pick(&[0, 100, 1000]));
    set("group_close_bytes", 4 << 10);
    set("checkpoint_bytes", *random.pick(&[16 << 10, 64 << 10, 1 << 20]));
    set("partitions_resident_max", *random.pick(&[4, 8, 64]));
    set("partition_loads_max", 64);
    set("dedupe_hot_bytes_max", 64 << 10);
    set("dedupe_filter_bytes_max", 1 << 20);
    set("index_resident_bytes_max", 256 << 10);
    set("recluster_bytes_max", *random.pick(&[0, 256 << 10, 1 << 20]));
    set("retention_ms", 0);
    set("retention_bytes", 0);
    set("read_buffers", 8);
    set("read_buffer_bytes", 256 << 10);
    set("read_ahead_bytes", 8 << 10);
    set("connections_per_shard_max", 64);
    set("connection_send_bytes_max", 64 << 10);
    set("shard_send_bytes_max", 1 << 20);
    set("assembly_bytes_max", 1 << 20);
    set("subscriptions_per_shard_max", 1024);
    set("mailbox_slots", *random.pick(&[16, 64, 1024]));
    set("mailbox_bytes", 256 << 10);
    set("page_bytes", *random.pick(&[4 << 10, 16 << 10]));
    set("parked_bytes_max", 1 << 20);
    // The background thread runs at a higher nice value: on a busy machine a last checkpoint takes its time.
    flags.extend(["--set", "stop_timeout_ms=60s", "--set", "log=warn"].map(str::to_owned));
    flags
}

/// A server process.
pub struct Server {
    child: Child,
    complaints: PathBuf,
    /// `HOST:PORT`, once it is ready.
    pub address: String,
}

impl Server {
    /// Starts it over `folder`; `journal` is where it writes down what it asks of the disk.
    pub fn spawn(folder: &Path, shards: u16, flags: &[String], journal: Option<&Path>) -> Result<Self, String> {
        let complaints = folder.with_extension("stderr");
        let stderr = std::fs::File::create(&complaints).map_err(|why| format!("{}: {why}", complaints.display()))?;
        let mut command = Command::new(binary());
        command.args(["serve", "--data"]).arg(folder).args(["--shards", &shards.to_string()]).args(flags);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(stderr);
        if let Some(journal) = journal {
            command.env("POWER_CUT_JOURNAL", journal);
        }
        let child = command.spawn().map_err(|why| format!("{}: {why}", binary().display()))?;
        Ok(Self { child, complaints, address: String::new() })
    }

    /// Waits until it serves.
    pub fn ready(&mut self) -> Result<(), String> {
        let output = self.child.stdout.take().expect("asked for once");
        for line in BufReader::new(output).lines() {
            let line = line.map_err(|why| format!("its output: {why}"))?;
            if let Some(address) = line.strip_prefix("ready http://") {
                self.address = address.to_owned();
                return Ok(());
            }
        }
        let status = self.child.wait().map_err(|why| why.to_string())?;
        Err(format!("the server did not start ({status}): {}", self.complaints()))
    }

    /// What it wrote to stderr.
    pub fn complaints(&self) -> String {
        std::fs::read_to_string(&self.complaints).unwrap_or_default()
    }

    /// It must still be running.
    pub fn alive(&mut self) -> Result<(), String> {
        match self.child.try_wait() {
            Ok(None) => Ok(()),
            Ok(Some(status)) => Err(format!("the server ended by itself ({status}): {}", self.complaints())),
            Err(why) => Err(why.to_string()),
        }
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// SIGTERM, and a clean end.
    pub fn stop(&mut self) -> Result<(), String> {
        // SAFETY: sends a signal to a child that has not been waited for.
        unsafe { libc::kill(self.child.id() as i32, libc::SIGTERM) };
        let begun = Instant::now();
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) if status.success() => return Ok(()),
                Ok(Some(status)) => return Err(format!("the stop failed ({status}): {}", self.complaints())),
                Ok(None) if begun.elapsed() < PATIENCE => std::thread::sleep(Duration::from_millis(1)),
                Ok(None) => return Err(format!("the stop took more than {PATIENCE:?}")),
                Err(why) => return Err(why.to_string()),
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

fn binary() -> PathBuf {
    std::env::var_os("TIDEGATE_BIN").map_or_else(|| env!("CARGO_BIN_EXE_tidegate").into(), PathBuf::from)
}

/// Connects as `client`; `session` puts it on that session's shard.
pub fn connect(address: &str, client: &str, session: Option<&str>) -> Result<Socket, String> {
    let stream = TcpStream::connect(address).map_err(|why| format!("connect: {why}"))?;
    let _ = stream.set_nodelay(true);
    let _ = stream.set_read_timeout(Some(PATIENCE));
    let session = session.map_or_else(String::new, |session| format!("&session={session}"));
    let url = format!("ws://{address}/v1/ws?client={client}{session}");
    let (mut socket, _) = tungstenite::client(url, stream).map_err(|why| format!("upgrade: {why}"))?;
    let welcome = next(&mut socket)?;
    if welcome["type"] == "welcome" { Ok(socket) } else { Err(format!("no welcome: {welcome}")) }
}

/// Next frame.
pub fn next(socket: &mut Socket) -> Result<serde_json::Value, String> {
    loop {
        match socket.read().map_err(|why| why.to_string())? {
            Message::Text(text) => {
                return serde_json::from_str(text.as_str()).map_err(|why| format!("{why}: {text}"));
            }
            Message::Ping(_) | Message::Pong(_) => {}
            other => return Err(format!("the server sent {other:?}")),
        }
    }
}

/// Sends a frame.
pub fn send(socket: &mut Socket, text: String) -> Result<(), String> {
    socket.send(Message::text(text)).map_err(|why| why.to_string())
}

/// Reads a folder whole; `LOCK` and half-made files stay what they are.
pub fn snapshot(folder: &Path) -> Folder {
    let Ok(files) = std::fs::read_dir(folder) else { return Folder::new() };
    files
        .flatten()
        .filter_map(|file| Some((file.file_name().to_str()?.to_owned(), std::fs::read(file.path()).ok()?)))
        .filter(|(name, _)| name != "LOCK")
        .collect()
}

/// Makes the folder hold exactly these files.
pub fn restore(path: &Path, folder: &Folder) -> std::io::Result<()> {
    let _ = std::fs::remove_dir_all(path);
    std::fs::create_dir_all(path)?;
    for (name, bytes) in folder {
        std::fs::File::create(path.join(name))?.write_all(bytes)?;
    }
    Ok(())
}
