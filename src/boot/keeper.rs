//! Keeps what decides who comes in: reads it before anything is served, and again when it changes.
//!
//! ```text
//!   SIGHUP ─────────────────► keys, revocations ─► Rules ─► every shard      what cannot be read leaves the old in place
//!                           ► certificates ───────────────► every shard      for sockets accepted from then on
//!   `revoked` is another ───► revocations ───────► Rules ─► every shard      within REVOKED_WITHIN
//!   revoke.client, .token ──► `revoked` ► the same, then the answers          at most once in REVOKING_EVERY, all that wait at once
//! ```
//! `tidegate revoke` writes the file, whether a server runs or not.

use super::certificates::Certificates;
use super::revocations;
use crate::auth::{Keys, Origins, Revocation, Rules, TENANT_REVOCATIONS_MAX};
use crate::config::Config;
use crate::reactor::control::{Control, Errand, Peer, Revoke, SetQuota};
use rustls::ServerConfig;
use shards::ids::ShardId;
use shards::refusal::{Refusal, Refused};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// The file is looked at this often: a look is one `stat`.
const REVOKED_WITHIN: Duration = Duration::from_millis(200);
/// What clients revoke is carried out this often: each time all connections are looked at.
const REVOKING_EVERY: Duration = Duration::from_millis(50);
/// A client whose revocation could not be written tries again after so long.
const RETRY_MS: u32 = 1000;

/// One per process.
pub(super) struct Keeper {
    keys: Option<PathBuf>,
    folder: PathBuf,
    audience: String,
    token_life_ms_max: u64,
    origins: String,
    certificates: Option<Certificates>,
}

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
        let revocations = revocations::read(&self.folder)?;
        Ok(Arc::new(Rules { keys, audience, token_life_ms_max, revocations, origins }))
    }

    /// What TLS is spoken with; `None`: none.
    ///
    /// # Errors
    /// As [`Keeper::rules`].
    pub fn tls(&self) -> Result<Option<Arc<ServerConfig>>, String> {
        self.certificates.as_ref().map(Certificates::load).transpose()
    }

    /// Goes on from a thread of its own, as long as `errands` has a sender.
    pub fn watch(
        self,
        rules: Arc<Rules>,
        peers: Arc<[Peer]>,
        errands: flume::Receiver<Errand>,
        quotas: flume::Sender<SetQuota>,
    ) {
        let watch = move || self.run(rules, &peers, &errands, &quotas);
        if let Err(error) = std::thread::Builder::new().name("keeper".into()).spawn(watch) {
            tracing::error!(%error, "no thread to read keys and revocations again: restart the server after a change");
        }
    }

    fn run(
        self,
        mut rules: Arc<Rules>,
        peers: &[Peer],
        errands: &flume::Receiver<Errand>,
        quotas: &flume::Sender<SetQuota>,
    ) {
        // The file may have changed since the rules were made: read it once more.
        let mut mark = None;
        loop {
            let first = match errands.recv_timeout(REVOKED_WITHIN) {
                Ok(errand) => Some(errand),
                Err(flume::RecvTimeoutError::Timeout) => None,
                Err(flume::RecvTimeoutError::Disconnected) => return,
            };
            let (mut reload, mut revokes) = (false, Vec::new());
            for errand in first.into_iter().chain(errands.try_iter()) {
                match errand {
                    Errand::Reload => reload = true,
                    Errand::Revoke(revoke) => revokes.push(revoke),
                    // Quotas have a keeper of their own.
                    Errand::SetQuota(set) => {
                        if let Err(unsent) = quotas.try_send(set) {
                            let SetQuota { by, connection, id, .. } = unsent.into_inner();
                            answer(peers, by, Control::QuotaSet { connection, id, outcome: Err(not_now()) });
                        }
                    }
                }
            }
            let mut answers = self.revoke(&revokes);
            let now = revocations::mark(&self.folder);
            let changed = if std::mem::replace(&mut mark, now) != now || reload {
                let changed = if reload { self.reload(peers) } else { self.revoked_anew(&rules) };
                match changed {
                    Ok(new) => {
                        rules = new;
                        tell(peers, || Control::Rules(Arc::clone(&rules)));
                        true
                    }
                    Err(why) => {
                        tracing::error!("{why}; what was read before stays in force");
                        false
                    }
                }
            } else {
                // Nobody was added to the file.
                true
            };
            if !changed {
                answers.iter_mut().for_each(|answer| *answer = Some(not_now()));
            }
            for (Revoke { by, connection, id, .. }, refused) in revokes.iter().zip(answers) {
                answer(peers, *by, Control::Revoked { connection: *connection, id: *id, refused });
            }
            if !revokes.is_empty() {
                std::thread::sleep(REVOKING_EVERY);
            }
        }
    }

    /// Writes down what clients revoke. What each is answered when every shard has heard of it.
    fn revoke(&self, revokes: &[Revoke]) -> Vec<Option<Refused>> {
        if revokes.is_empty() {
            return Vec::new();
        }
        let all: Vec<Revocation> = revokes.iter().map(|revoke| revoke.revocation.clone()).collect();
        let keep_s = self.token_life_ms_max.div_ceil(1000);
        match revocations::revoke(&self.folder, &all, keep_s, TENANT_REVOCATIONS_MAX) {
            Ok(added) => {
                let full = Refused::field(Refusal::TooManyRevocations, "name");
                added.into_iter().map(|added| if added { None } else { Some(full) }).collect()
            }
            Err(why) => {
                tracing::error!("a revocation cannot be written: {why}");
                vec![Some(not_now()); revokes.len()]
            }
        }
    }

    fn reload(&self, peers: &[Peer]) -> Result<Arc<Rules>, String> {
        match self.tls() {
            Ok(None) => {}
            Ok(Some(config)) => {
                tracing::info!("certificates were read again: connections that are open keep theirs");
                tell(peers, || Control::Secure(Arc::clone(&config)));
            }
            Err(why) => tracing::error!("{why}; the certificate from before stays"),
        }
        self.rules().inspect(|_| tracing::info!("keys and revocations were read again"))
    }

    fn revoked_anew(&self, rules: &Rules) -> Result<Arc<Rules>, String> {
        let revocations = revocations::read(&self.folder)?;
        tracing::info!(count = revocations.len(), "revocations were read again");
        Ok(Arc::new(Rules { revocations, ..rules.clone() }))
    }
}

pub(super) fn not_now() -> Refused {
    Refused::later(Refusal::Unavailable, RETRY_MS)
}

/// Tells the shard of who asked.
pub(super) fn answer(peers: &[Peer], by: ShardId, answer: Control) {
    if let Some(peer) = peers.get(usize::from(by.0)) {
        // As in `tell`.
        let _ = peer.control.send(answer);
        peer.waker.wake();
    }
}

pub(super) fn tell(peers: &[Peer], order: impl Fn() -> Control) {
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
