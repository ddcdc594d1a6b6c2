//! Quotas and weights at run time: what the configuration says, and over it what an operator has changed since.
//!
//! ```text
//!   configuration            [tenants.acme] weight = 1                      read at the start
//!   data folder/quotas.toml  [tenants.acme] weight = 4 ◄── tidegate quota   replaced whole, kept over restarts and takeovers
//!                                 │                     ◄── quota.set        by a token that grants `$operator`; then its answer
//!                                 │ another file, within CHANGED_WITHIN
//!                                 ▼
//!                            Quotas ─► every shard                          what cannot be read leaves the old in place
//! ```
//! Whoever may write the data folder runs the server, so nobody there is asked who he is. A client never sets what its own token's
//! tenant may use unless the operator gave it that very right.

use super::keeper::{answer, not_now, tell};
use crate::config::{Config, TenantTables};
use crate::disk::small;
use crate::reactor::control::{Control, Peer, SetQuota};
use shards::limits::Quotas;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// Tables of tenants whose quotas were changed, in the data folder.
pub const QUOTAS_FILE: &str = "quotas.toml";
/// The file is looked at this often: a look is one `stat`.
const CHANGED_WITHIN: Duration = Duration::from_millis(200);

/// No more changes than this by clients: with each one every shard looks at its tenants.
const SETTING_EVERY: Duration = Duration::from_millis(20);

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

    /// Goes on from a thread of its own, as long as `sets` has a sender.
    pub fn watch(self, quotas: Arc<Quotas>, peers: Arc<[Peer]>, sets: flume::Receiver<SetQuota>) {
        let watch = move || self.run(quotas, &peers, &sets);
        if let Err(error) = std::thread::Builder::new().name("quotas".into()).spawn(watch) {
            tracing::error!(%error, "no thread to read quotas again: restart the server after a change");
        }
    }

    fn run(self, mut quotas: Arc<Quotas>, peers: &[Peer], sets: &flume::Receiver<SetQuota>) {
        // The file may have changed since the quotas were read: it is read once more.
        let mut mark: Option<Mark> = None;
        loop {
            let first = match sets.recv_timeout(CHANGED_WITHIN) {
                Ok(set) => Some(set),
                Err(flume::RecvTimeoutError::Timeout) => None,
                Err(flume::RecvTimeoutError::Disconnected) => return,
            };
            let sets: Vec<SetQuota> = first.into_iter().chain(sets.try_iter()).collect();
            let mut kept = sets.is_empty() || self.write(&sets);
            let now = Some(self.mark());
            if std::mem::replace(&mut mark, now) != now {
                match self.quotas() {
                    Ok(new) if new == quotas => {}
                    Ok(new) => {
                        quotas = new;
                        tracing::info!(tenants = quotas.tenants.len(), "quotas were read again");
                        tell(peers, || Control::Quotas(Arc::clone(&quotas)));
                    }
                    Err(why) => {
                        tracing::error!("{why}; what was read before stays in force");
                        kept = false;
                    }
                }
            }
            for SetQuota { by, connection, id, tenant, .. } in sets {
                // Behind the news: whoever has the answer is served by what it says.
                let quota = quotas.of(&tenant);
                let outcome = if kept { Ok((tenant, quota)) } else { Err(not_now()) };
                answer(peers, by, Control::QuotaSet { connection, id, outcome });
                std::thread::sleep(SETTING_EVERY);
            }
        }
    }

    /// Writes down what operators set, all of it or nothing.
    fn write(&self, sets: &[SetQuota]) -> bool {
        let path = self.folder.join(QUOTAS_FILE);
        let written = small::change(&self.folder, QUOTAS_FILE, |text| {
            let mut tables = TenantTables::read(&path, &text).map_err(|why| why.to_string())?;
            for SetQuota { tenant, quota, .. } in sets {
                tables.put(tenant, *quota)?;
            }
            Ok(tables.text())
        });
        written.inspect_err(|why| tracing::error!("quotas cannot be written: {}: {why}", path.display())).is_ok()
    }

    fn mark(&self) -> Mark {
        use std::os::unix::fs::MetadataExt as _;
        let meta = std::fs::metadata(self.folder.join(QUOTAS_FILE)).ok()?;
        Some((meta.ino(), meta.len(), meta.modified().ok()?))
    }
}
