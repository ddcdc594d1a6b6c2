//! A connection's bytes, encrypted where the server wants it so.
//!
//! ```text
//!   Engine ◄─► Line ─┬─ plain ────────► Socket
//!                    └─ ClientConnection ► Socket      what the kernel does not take waits in it
//! ```

use crate::net::Socket;
use rustls::client::Resumption;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore};
use std::cell::RefCell;
use std::io::{self, Read as _, Write as _};
use std::path::Path;
use std::sync::Arc;

/// Ciphertext read at once: less than half of what the engine's buffer holds.
const READ_BYTES: usize = 64 << 10;
/// Every certificate is for this name.
const NAME: &str = "localhost";

/// A client's TLS that believes the certificates in a file. Nothing is resumed: each handshake is a whole one.
///
/// # Errors
/// The file holds none.
pub fn believing(authority: &Path) -> io::Result<Arc<ClientConfig>> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(authority).map_err(io::Error::other)? {
        roots.add(certificate.map_err(io::Error::other)?).map_err(io::Error::other)?;
    }
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let mut config = config.map_err(io::Error::other)?.with_root_certificates(roots).with_no_client_auth();
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

/// A socket and what is between it and the engine.
pub struct Line {
    pub socket: Socket,
    tls: Option<RefCell<Box<ClientConnection>>>,
}

impl Line {
    /// Plain, or encrypted with `tls`.
    ///
    /// # Errors
    /// The configuration is none for clients.
    pub fn new(socket: Socket, tls: Option<&Arc<ClientConfig>>) -> io::Result<Line> {
        let client = |config: &Arc<ClientConfig>| {
            let name = ServerName::try_from(NAME).map_err(io::Error::other)?;
            let mut client = ClientConnection::new(Arc::clone(config), name).map_err(io::Error::other)?;
            client.set_buffer_limit(None);
            Ok::<_, io::Error>(RefCell::new(Box::new(client)))
        };
        Ok(Line { socket, tls: tls.map(client).transpose()? })
    }

    /// As [`Socket::read`].
    pub fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(tls) = &self.tls else { return self.socket.read(buffer) };
        let mut tls = tls.borrow_mut();
        let mut cipher = [0; READ_BYTES];
        let came = self.socket.read(&mut cipher)?;
        let (mut rest, mut heard) = (&cipher[..came], 0);
        while !rest.is_empty() {
            tls.read_tls(&mut rest)?;
            let state = tls.process_new_packets().map_err(io::Error::other)?;
            let end = heard + state.plaintext_bytes_to_read();
            tls.reader().read_exact(&mut buffer[heard..end])?;
            heard = end;
        }
        // Answers of the handshake.
        let _ = self.push(&mut tls);
        if heard == 0 && came > 0 { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(heard) }
    }

    /// As [`Socket::write`]; bytes that are encrypted are taken, and [`Line::flush`] says whether they have left.
    pub fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        let Some(tls) = &self.tls else { return self.socket.write(bytes) };
        let mut tls = tls.borrow_mut();
        self.push(&mut tls)?;
        tls.writer().write(bytes)
    }

    /// Hands the kernel what is encrypted.
    pub fn flush(&self) -> io::Result<()> {
        self.tls.as_ref().map_or(Ok(()), |tls| self.push(&mut tls.borrow_mut()))
    }

    fn push(&self, tls: &mut ClientConnection) -> io::Result<()> {
        struct Out<'a>(&'a Socket);
        impl io::Write for Out<'_> {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.0.write(bytes)
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        while tls.wants_write() {
            tls.write_tls(&mut Out(&self.socket))?;
        }
        Ok(())
    }
}
