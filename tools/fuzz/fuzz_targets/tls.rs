//! Records entering: no bytes break the server's end of TLS, before, in and after a handshake, and nothing is heard that was not said.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig};
use std::sync::{Arc, LazyLock};
use tidegate::net::tls::{Tls, Took};

const CERTIFICATE: &[u8] = include_bytes!("../../../src/net/tls/localhost.pem");
const KEY: &[u8] = include_bytes!("../../../src/net/tls/localhost.key");

static CONFIGS: LazyLock<(Arc<ServerConfig>, Arc<ClientConfig>)> = LazyLock::new(|| {
    let certificate = CertificateDer::from_pem_slice(CERTIFICATE).expect("a certificate");
    let key = PrivateKeyDer::from_pem_slice(KEY).expect("a key");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let server = ServerConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions().expect("versions");
    let server = server.with_no_client_auth().with_single_cert(vec![certificate.clone()], key).expect("they fit");
    let mut roots = RootCertStore::empty();
    roots.add(certificate).expect("a certificate");
    let client = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().expect("versions");
    (Arc::new(server), Arc::new(client.with_root_certificates(roots).with_no_client_auth()))
});

fn said(client: &mut ClientConnection) -> Vec<u8> {
    let mut bytes = Vec::new();
    while client.wants_write() {
        client.write_tls(&mut bytes).expect("a vector takes every write");
    }
    bytes
}

fuzz_target!(|input: &[u8]| {
    let Some(([how, at, flip], bytes)) = input.split_first_chunk() else { return };
    let (server, client) = &*CONFIGS;
    let mut server = Tls::new(server).expect("a configuration");
    let mut plain = Vec::new();
    let name = ServerName::try_from("localhost").expect("a name");
    let mut client = ClientConnection::new(Arc::clone(client), name).expect("a configuration");
    // So many flights go right; then come the input's bytes, or a flight in which one byte is another.
    for _ in 0..how % 4 {
        server.take(&said(&mut client), &mut plain);
        while let Some(out) = server.begin().map(<[u8]>::to_vec) {
            let mut rest = out.as_slice();
            while !rest.is_empty() && client.read_tls(&mut rest).is_ok_and(|read| read > 0) {
                let _ = client.process_new_packets();
            }
            server.completed(out.len());
        }
    }
    assert!(plain.is_empty(), "nobody has said anything yet");
    let mut next = said(&mut client);
    let changed = match next.get_mut(usize::from(*at)) {
        Some(byte) if how & 0x80 != 0 => {
            *byte ^= flip;
            *flip != 0
        }
        _ => {
            next = bytes.to_vec();
            true
        }
    };
    for piece in next.chunks(usize::from(*flip).max(1)) {
        if server.take(piece, &mut plain) == Took::Broken {
            assert_eq!(server.take(b"more", &mut plain), Took::Broken);
        }
    }
    assert!(!changed || plain.is_empty(), "heard what nobody said");
    while let Some(out) = server.begin().map(<[u8]>::len) {
        server.completed(out);
    }
});
