//! A server of this binary as a child, and the folder that it works in: both gone when the bench ends, however it ends.
//!
//! ```text
//!   Stage     folder ── child?        Drop, SIGINT, SIGTERM ─► child killed and waited for, folder removed
//!   Server    spawned on its core ─► "ready http://ADDR" ─► address, pid          the bench killed ─► the kernel ends it
//! ```

use super::Cores;
use crate::boot::process;
use crate::cli::Failure;
use crate::reactor::control::Report;
use crate::shutdown;
use std::io::{BufRead as _, BufReader};
use std::net::SocketAddrV4;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

/// What a run leaves behind unless it is taken away.
pub(super) struct Stage {
    folder: PathBuf,
    running: Mutex<Running>,
}

#[derive(Default)]
struct Running {
    child: Option<Child>,
    /// Nothing may be started any more.
    over: bool,
}

/// The stage as the run holds it: clears it when it goes.
pub(super) struct Held(Arc<Stage>);

impl std::ops::Deref for Held {
    type Target = Arc<Stage>;

    fn deref(&self) -> &Arc<Stage> {
        &self.0
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.clear();
    }
}

impl Stage {
    /// Makes a folder inside `parent`, and from here on answers signals by clearing up. Call it before any thread starts.
    pub fn set(parent: &Path) -> Result<Held, Failure> {
        let folder = parent.join(format!("tidegate-bench-{}", std::process::id()));
        let wrong = |why| Failure::wrong(format!("cannot make {}: {why}", folder.display()));
        shutdown::hold_signals();
        std::fs::create_dir(&folder).map_err(wrong)?;
        let stage = Arc::new(Stage { folder, running: Mutex::default() });
        let held = Held(Arc::clone(&stage));
        let (reports_in, reports) = flume::unbounded(); // a signal or two
        // Nothing is read again.
        let (reload, _) = flume::bounded(1);
        shutdown::forward_signals(reports_in, reload);
        let answer = move || {
            if let Ok(Report::Signal(signal)) = reports.recv() {
                stage.clear();
                std::process::exit(128 + signal);
            }
        };
        std::thread::Builder::new().name("clear-up".into()).spawn(answer).map_err(Failure::failed)?;
        Ok(held)
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    fn clear(&self) {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.over = true;
        end(running.child.take());
        // What cannot be removed stays; there is nobody left to tell but the user, who sees the folder.
        if let Err(why) = std::fs::remove_dir_all(&self.folder) {
            eprintln!("tidegate bench: {} stays: {why}", self.folder.display());
        }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.join("server.log")).unwrap_or_default()
    }
}

fn end(child: Option<Child>) {
    if let Some(mut child) = child {
        // It has ended already, or it ends now.
        let _ = child.kill();
        let _ = child.wait();
    }
}

/// A serving child.
pub(super) struct Server {
    stage: Arc<Stage>,
    pub address: SocketAddrV4,
    pub pid: u32,
}

impl Server {
    /// Starts `serve` over the folder `data` of the stage, on the server's core.
    pub fn start(stage: &Arc<Stage>, data: &str, sync: &str, cores: &Cores) -> Result<Server, Failure> {
        let failed = |why: String| Failure::failed(format!("the server did not start: {why}"));
        let program = std::env::current_exe().map_err(|why| failed(why.to_string()))?;
        let log = std::fs::OpenOptions::new().create(true).append(true).open(stage.folder.join("server.log"));
        let log = log.map_err(|why| failed(why.to_string()))?;
        let mut command = Command::new(program);
        command.args(["serve", "--listen", "127.0.0.1:0", "--shards", "1", "--sync", sync, "--data"]);
        command.arg(stage.folder.join(data)).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
        // SAFETY: between fork and exec only one system call with plain values is made; nothing is allocated.
        unsafe {
            command.pre_exec(|| {
                // A bench that is killed cannot clear up: its server ends all the same.
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as libc::c_ulong);
                Ok(())
            });
        }
        let stdout = {
            let mut running = stage.running.lock().unwrap_or_else(PoisonError::into_inner);
            if running.over {
                return Err(failed("the bench is ending".into()));
            }
            process::pin_to(cores.server); // inherited
            let spawned = command.spawn();
            process::pin_to(cores.load);
            let mut child = spawned.map_err(|why| failed(why.to_string()))?;
            let stdout = child.stdout.take();
            running.child = Some(child);
            stdout.ok_or_else(|| failed("it has no output".into()))?
        };
        let mut lines = BufReader::new(stdout).lines().map_while(Result::ok);
        let address = lines.find_map(|line| line.strip_prefix("ready http://").map(str::to_owned));
        let address = address.and_then(|address| address.parse().ok());
        let address = address.ok_or_else(|| failed(format!("it said\n{}", stage.log().trim_end())))?;
        let running = stage.running.lock().unwrap_or_else(PoisonError::into_inner);
        let pid = running.child.as_ref().map_or(0, Child::id);
        Ok(Server { stage: Arc::clone(stage), address, pid })
    }

    /// Ends it; its folder stays.
    pub fn end(&mut self) {
        end(self.stage.running.lock().unwrap_or_else(PoisonError::into_inner).child.take());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end();
    }
}
