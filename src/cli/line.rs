//! The line from a subcommand to a server: where it is, who asks, and whether it is encrypted.
//!
//! ```text
//!   ws://    TcpStream
//!   wss://   TcpStream ─ TLS, the server's certificate held against --authority, or against those of the system
//! ```

use super::Failure;
use clap::Args;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Where distributions keep the certificates of authorities.
const SYSTEM_AUTHORITIES: &[&str] =
    &["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];

/// Which server, and who asks.
#[derive(Args)]
pub(super) struct LineArgs {
    /// Server: ws://HOST:PORT, or wss://HOST:PORT where it speaks TLS.
    #[arg(long, default_value = "ws://127.0.0.1:7777")]
    pub url: String,
    /// Token that says who you are. Better in the environment: command lines are no secret.
    #[arg(long, env = "TIDEGATE_TOKEN", hide_env_values = true)]
    pub token: Option<String>,
    /// Certificates (PEM) of the authorities that the server's is held against; without it those of the system.
    #[arg(long, value_name = "FILE")]
    pub authority: Option<PathBuf>,
}

/// A connection, encrypted or not.
pub(super) enum Line {
    Plain(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

impl Line {
    /// Encrypts a connection to `host`.
    pub fn secure(stream: TcpStream, host: &str, authority: Option<&Path>) -> Result<Line, Failure> {
        let failed = |why: &dyn std::fmt::Display| Failure::failed(format!("TLS with {host}: {why}"));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let config = config.map_err(|why| failed(&why))?.with_root_certificates(roots(authority)?);
        let name =
            ServerName::try_from(host.to_owned()).map_err(|why| Failure::wrong(format!("--url: {host}: {why}")))?;
        let client = ClientConnection::new(Arc::new(config.with_no_client_auth()), name).map_err(|why| failed(&why))?;
        Ok(Line::Tls(Box::new(StreamOwned::new(client, stream))))
    }

    /// Bounds how long a read waits.
    pub fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        match self {
            Line::Plain(stream) => stream.set_read_timeout(timeout),
            Line::Tls(tls) => tls.sock.set_read_timeout(timeout),
        }
    }
}

fn roots(authority: Option<&Path>) -> Result<RootCertStore, Failure> {
    let system = || SYSTEM_AUTHORITIES.iter().map(Path::new).find(|path| path.exists());
    let path = authority.or_else(system).ok_or_else(|| {
        Failure::wrong("this system keeps no certificates of authorities where they are known to be: give --authority")
    })?;
    let wrong = |why: &dyn std::fmt::Display| Failure::wrong(format!("{}: {why}", path.display()));
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(path).map_err(|why| wrong(&why))? {
        roots.add(certificate.map_err(|why| wrong(&why))?).map_err(|why| wrong(&why))?;
    }
    if roots.is_empty() { Err(wrong(&"there is no CERTIFICATE in it")) } else { Ok(roots) }
}

impl Read for Line {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match self {
            Line::Plain(stream) => stream.read(into),
            Line::Tls(tls) => tls.read(into),
        }
    }
}

impl Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Line::Plain(stream) => stream.write(bytes),
            Line::Tls(tls) => tls.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Line::Plain(stream) => stream.flush(),
            Line::Tls(tls) => tls.flush(),
        }
    }
}
