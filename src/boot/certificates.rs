//! What the server shows its clients, and what it asks of them: files to a configuration of TLS.
//!
//! ```text
//!   tls_certificate_file          chain, its own first ─┐
//!   tls_key_file                  its private key ──────┼─► ServerConfig ─► every shard
//!   tls_client_authorities_file   whom clients' are of ─┘   tickets are good on every shard, until the next one is made
//! ```

use crate::config::Config;
use rustls::RootCertStore;
use rustls::crypto::ring::{Ticketer, default_provider};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{NoServerSessionStorage, ServerConfig, WebPkiClientVerifier};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Files of the server's TLS.
#[derive(Clone)]
pub(super) struct Certificates {
    chain: PathBuf,
    key: PathBuf,
    authorities: Option<PathBuf>,
}

impl Certificates {
    /// `None`: the server speaks plain.
    pub fn of(config: &Config) -> Option<Self> {
        let (chain, key) = (config.tls_certificate_file.clone()?, config.tls_key_file.clone()?);
        Some(Self { chain, key, authorities: config.tls_client_authorities_file.clone() })
    }

    /// What is in them now.
    ///
    /// # Errors
    /// One line: which file, and what is wrong with it.
    pub fn load(&self) -> Result<Arc<ServerConfig>, String> {
        let chain = certificates("tls_certificate_file", &self.chain)?;
        let named = |key: &str, path: &Path, why: &dyn std::fmt::Display| format!("{key} {}: {why}", path.display());
        let key = PrivateKeyDer::from_pem_file(&self.key).map_err(|why| named("tls_key_file", &self.key, &why))?;
        let provider = Arc::new(default_provider());
        let failed = |why: &dyn std::fmt::Display| format!("TLS: {why}");
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider));
        let builder = builder.with_safe_default_protocol_versions().map_err(|why| failed(&why))?;
        let builder = match &self.authorities {
            None => builder.with_no_client_auth(),
            Some(path) => {
                let bad = |why: &dyn std::fmt::Display| named("tls_client_authorities_file", path, why);
                let mut roots = RootCertStore::empty();
                for authority in certificates("tls_client_authorities_file", path)? {
                    roots.add(authority).map_err(|why| bad(&why))?;
                }
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
                builder.with_client_cert_verifier(verifier.build().map_err(|why| bad(&why))?)
            }
        };
        let made = builder.with_single_cert(chain, key);
        let mut config = made.map_err(|why| {
            format!("tls_certificate_file {} and tls_key_file {}: {why}", self.chain.display(), self.key.display())
        })?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        // Nothing is shared between shards but the keys of tickets.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.ticketer = Ticketer::new().map_err(|why| failed(&why))?;
        config.send_tls13_tickets = 1;
        Ok(Arc::new(config))
    }
}

fn certificates(key: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let bad = |why: &dyn std::fmt::Display| format!("{key} {}: {why}", path.display());
    let read = CertificateDer::pem_file_iter(path).map_err(|why| bad(&why))?;
    let all = read.collect::<Result<Vec<_>, _>>().map_err(|why| bad(&why))?;
    if all.is_empty() { Err(bad(&"there is no CERTIFICATE in it")) } else { Ok(all) }
}
