//! Quotas and weights at run time: what the configuration says, and over it what an operator has changed since.
//!
//! ```text
//!   configuration            [tenants.acme] weight = 1                      read at the start
//!   data folder/quotas.toml  [tenants.acme] weight = 4 ◄── tidegate quota   replaced whole, kept over restarts and takeovers
//!                                 │ another file, within CHANGED_WITHIN
//!                                 ▼
//!                            Quotas ─► every shard                          what cannot be read leaves the old in place
//! ```
//! Whoever may write the data folder runs the server, so nobody is asked who he is.

use crate::config::{Config, TenantTables};
use crate::disk::small;
use crate::reactor::control::{Control, Peer};
use shards::limits::Quotas;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// Tables of tenants whose quotas were changed, in the data folder.
pub const QUOTAS_FILE: &str = "quotas.toml";
/// The file is looked at this often: a look is one `stat`.
const CHANGED_WITHIN: Duration = Duration::from_millis(200);

/// By which a file that was replaced is told from the one before.
type Mark = Option<(u64, u64, SystemTime)>;

/// One per process.
pub(super) struct QuotaKeeper {
    folder: PathBuf,
    configured: Arc<Quotas>,
}

impl QuotaKeeper {
    pub fn new(config: &Config) -> Self {
        Self { folder: config.data.clone(), configured: Arc::clone(&config.quotas) }
    }

    /// As they are now.
    ///
    /// # Errors
    /// One line: what cannot be read, and why.
    pub fn quotas(&self) -> Result<Arc<Quotas>, String> {
        let path = self.folder.join(QUOTAS_FILE);
        let text = small::read(&self.folder, QUOTAS_FILE).map_err(|why| format!("{}: {why}", path.display()))?;
        let changed = TenantTables::read(&path, &text).map_err(|why| format!("{why}: mend or remove it"))?;
        Ok(Arc::new(changed.over(&self.configured)))
    }

    /// Goes on from a thread of its own, as long as `end` has a sender.
    pub fn watch(self, quotas: Arc<Quotas>, peers: Arc<[Peer]>, end: flume::Receiver<()>) {
        let watch = move || self.run(quotas, &peers, &end);
        if let Err(error) = std::thread::Builder::new().name("quotas".into()).spawn(watch) {
            tracing::error!(%error, "no thread to read quotas again: restart the server after a change");
        }
    }

    fn run(self, mut quotas: Arc<Quotas>, peers: &[Peer], end: &flume::Receiver<()>) {
        // The file may have changed since the quotas were read: it is read once more.
        let mut mark: Option<Mark> = None;
        while let Err(flume::RecvTimeoutError::Timeout) = end.recv_timeout(CHANGED_WITHIN) {
            let now = Some(self.mark());
            if std::mem::replace(&mut mark, now) == now {
                continue;
            }
            match self.quotas() {
                Ok(new) if new == quotas => {}
                Ok(new) => {
                    quotas = new;
                    tracing::info!(tenants = quotas.tenants.len(), "quotas were read again");
                    for peer in peers {
                        // A shard that takes no orders any more has ended.
                        let _ = peer.control.send(Control::Quotas(Arc::clone(&quotas)));
                        peer.waker.wake();
                    }
                }
                Err(why) => tracing::error!("{why}; what was read before stays in force"),
            }
        }
    }

    fn mark(&self) -> Mark {
        use std::os::unix::fs::MetadataExt as _;
        let meta = std::fs::metadata(self.folder.join(QUOTAS_FILE)).ok()?;
        Some((meta.ino(), meta.len(), meta.modified().ok()?))
    }
}
