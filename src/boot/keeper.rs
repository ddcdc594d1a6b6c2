//! Keeps what decides who comes in: reads it before anything is served, and again when it changes.
//!
//! ```text
//!   SIGHUP ─────────────────► keys, revocations ─► Rules ─► every shard      what cannot be read leaves the old in place
//!                           ► certificates ───────────────► every shard      for sockets accepted from then on
//!   `revoked` is another ───► revocations ───────► Rules ─► every shard      within REVOKED_WITHIN
//! ```
//! `tidegate revoke` writes the file, whether a server runs or not.

use super::certificates::Certificates;
use crate::auth::{Keys, Origins, Revocations, Rules};
use crate::config::Config;
use crate::disk::small;
use crate::reactor::control::{Control, Peer};
use rustls::ServerConfig;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Revocations, in the data folder.
pub const REVOKED_FILE: &str = "revoked";
/// The file is looked at this often: a look is one `stat`.
const REVOKED_WITHIN: Duration = Duration::from_millis(200);

/// One per process.
pub(super) struct Keeper {
    keys: Option<PathBuf>,
    folder: PathBuf,
    audience: String,
    token_life_ms_max: u64,
    origins: String,
    certificates: Option<Certificates>,
}

/// By which a file that was replaced is told from the one before.
type Mark = Option<(u64, u64, SystemTime)>;

impl Keeper {
    pub fn new(config: &Config) -> Self {
        Self {
            keys: config.auth_keys_file.clone(),
            folder: config.data.clone(),
            audience: config.auth_audience.clone(),
            token_life_ms_max: config.auth_token_life_ms_max,
            origins: config.origins_allowed.clone(),
            certificates: Certificates::of(config),
        }
    }

    /// All of it, as it is now.
    ///
    /// # Errors
    /// One line: what cannot be read, and why.
    pub fn rules(&self) -> Result<Arc<Rules>, String> {
        let keys = self.keys.as_deref().map(read_keys).transpose()?;
        let origins = Origins::read(&self.origins, keys.is_some());
        let (audience, token_life_ms_max) = (self.audience.clone(), self.token_life_ms_max);
        Ok(Arc::new(Rules { keys, audience, token_life_ms_max, revocations: self.revocations()?, origins }))
    }

    /// What TLS is spoken with; `None`: none.
    ///
    /// # Errors
    /// As [`Keeper::rules`].
    pub fn tls(&self) -> Result<Option<Arc<ServerConfig>>, String> {
        self.certificates.as_ref().map(Certificates::load).transpose()
    }

    fn revocations(&self) -> Result<Revocations, String> {
        let path = self.folder.join(REVOKED_FILE);
        let text = small::read(&self.folder, REVOKED_FILE).map_err(|why| format!("{}: {why}", path.display()))?;
        Revocations::read(&text, unix_s()).map_err(|line| {
            format!("{}: line {line} is no revocation: mend or remove it, or who was revoked comes in", path.display())
        })
    }

    fn mark(&self) -> Mark {
        use std::os::unix::fs::MetadataExt as _;
        let meta = std::fs::metadata(self.folder.join(REVOKED_FILE)).ok()?;
        Some((meta.ino(), meta.len(), meta.modified().ok()?))
    }

    /// Goes on from a thread of its own, as long as `reloads` has a sender.
    pub fn watch(self, rules: Arc<Rules>, peers: Arc<[Peer]>, reloads: flume::Receiver<()>) {
        let watch = move || self.run(rules, &peers, &reloads);
        if let Err(error) = std::thread::Builder::new().name("keeper".into()).spawn(watch) {
            tracing::error!(%error, "no thread to read keys and revocations again: restart the server after a change");
        }
    }

    fn run(self, mut rules: Arc<Rules>, peers: &[Peer], reloads: &flume::Receiver<()>) {
        // The file may have changed since the rules were made: read it once more.
        let mut mark = None;
        loop {
            let changed = match reloads.recv_timeout(REVOKED_WITHIN) {
                Ok(()) => {
                    match self.tls() {
                        Ok(None) => {}
                        Ok(Some(config)) => {
                            tracing::info!("certificates were read again: connections that are open keep theirs");
                            tell(peers, || Control::Secure(Arc::clone(&config)));
                        }
                        Err(why) => tracing::error!("{why}; the certificate from before stays"),
                    }
                    mark = self.mark();
                    self.rules().inspect(|_| tracing::info!("keys and revocations were read again"))
                }
                Err(flume::RecvTimeoutError::Timeout) => {
                    let now = self.mark();
                    if std::mem::replace(&mut mark, now) == now {
                        continue;
                    }
                    self.revocations().map(|revocations| {
                        tracing::info!(count = revocations.len(), "revocations were read again");
                        Arc::new(Rules { revocations, ..(*rules).clone() })
                    })
                }
                Err(flume::RecvTimeoutError::Disconnected) => return,
            };
            match changed {
                Ok(new) => {
                    rules = new;
                    tell(peers, || Control::Rules(Arc::clone(&rules)));
                }
                Err(why) => tracing::error!("{why}; what was read before stays in force"),
            }
        }
    }
}

fn tell(peers: &[Peer], order: impl Fn() -> Control) {
    for peer in peers {
        // A shard that takes no orders any more has ended.
        let _ = peer.control.send(order());
        peer.waker.wake();
    }
}

fn read_keys(path: &Path) -> Result<Keys, String> {
    let text = std::fs::read_to_string(path).map_err(|why| format!("auth_keys_file {}: {why}", path.display()))?;
    Keys::read(&text).map_err(|why| format!("auth_keys_file {}: it {why}", path.display()))
}

fn unix_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// Who may come in, in words for whoever starts the server.
pub(super) fn words(config: &Config) -> String {
    match &config.auth_keys_file {
        None => "NO KEYS: every client is tenant `default` and may do everything; so only this machine is served (auth_keys_file)".into(),
        Some(path) => {
            let plain = config.tls_certificate_file.is_none() && !config.listen.ip().is_loopback();
            let warning = if plain { "; NO TLS: whoever can listen in gets the tokens (tls_certificate_file)" } else { "" };
            format!("tokens are held against {}{warning}", path.display())
        }
    }
}
