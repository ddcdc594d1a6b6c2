//! The server's end against a client of rustls, in memory, cut into pieces of chance.

use super::*;
use proptest::prelude::*;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig};
use std::sync::OnceLock;

/// Of `localhost`, for a hundred years, by itself.
const CERTIFICATE: &[u8] = include_bytes!("localhost.pem");
const KEY: &[u8] = include_bytes!("localhost.key");

/// A server's configuration, and that of a client that believes it.
pub(in crate::net) fn configs() -> &'static (Arc<ServerConfig>, Arc<ClientConfig>) {
    static MADE: OnceLock<(Arc<ServerConfig>, Arc<ClientConfig>)> = OnceLock::new();
    MADE.get_or_init(|| {
        let certificate = CertificateDer::from_pem_slice(CERTIFICATE).unwrap();
        let key = PrivateKeyDer::from_pem_slice(KEY).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let server =
            ServerConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions().unwrap();
        let server = server.with_no_client_auth().with_single_cert(vec![certificate.clone()], key).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(certificate).unwrap();
        let client = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        (Arc::new(server), Arc::new(client.with_root_certificates(roots).with_no_client_auth()))
    })
}

fn server() -> Box<Tls> {
    Tls::new(&configs().0).unwrap()
}

pub(in crate::net) fn client() -> ClientConnection {
    ClientConnection::new(Arc::clone(&configs().1), ServerName::try_from("localhost").unwrap()).unwrap()
}

/// Carries what is ready to the server, in pieces of `cut` bytes. What it says is appended to `heard`.
fn to_server(client: &mut ClientConnection, server: &mut Tls, cut: usize, heard: &mut Vec<u8>) -> Took {
    let mut bytes = Vec::new();
    while client.wants_write() {
        client.write_tls(&mut bytes).unwrap();
    }
    let mut took = Took::All;
    for piece in bytes.chunks(cut) {
        took = server.take(piece, heard);
    }
    took
}

/// Carries what is ready to the client, each send cut short once. Returns bytes of the queue that went through.
fn to_client(server: &mut Tls, client: &mut ClientConnection, cut: usize, heard: &mut Vec<u8>) -> usize {
    let mut through = 0;
    while let Some(bytes) = server.begin().map(<[u8]>::to_vec) {
        assert!(server.begin().is_none(), "one send at a time");
        let sent = bytes.len().min(cut);
        let mut rest = &bytes[..sent];
        while !rest.is_empty() {
            client.read_tls(&mut rest).unwrap();
            client.process_new_packets().unwrap();
            let mut part = [0; 4096];
            while let Ok(read @ 1..) = client.reader().read(&mut part) {
                heard.extend_from_slice(&part[..read]);
            }
        }
        through += server.completed(sent).unwrap_or(0);
    }
    through
}

fn shaken(cut: usize) -> (ClientConnection, Box<Tls>) {
    let (mut client, mut server) = (client(), server());
    for _ in 0..4 {
        assert_eq!(to_server(&mut client, &mut server, cut, &mut Vec::new()), Took::All);
        to_client(&mut server, &mut client, cut, &mut Vec::new());
    }
    assert!(!server.is_handshaking() && !client.is_handshaking());
    (client, server)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    /// Whatever is said arrives whole and in order, however it is cut.
    #[test]
    fn what_is_said_arrives(
        cut in 1usize..2000,
        said in proptest::collection::vec((0usize..40_000, any::<bool>()), 1..6),
    ) {
        let (mut client, mut server) = shaken(cut);
        let (mut to, mut from) = ((Vec::new(), Vec::new()), (Vec::new(), Vec::new()));
        for (n, (bytes, ours)) in said.into_iter().enumerate() {
            let text = vec![n as u8 + 1; bytes];
            if ours {
                prop_assert!(server.takes_plain());
                text.chunks(4096).for_each(|piece| server.put(piece));
                from.0.extend_from_slice(&text);
                let through = to_client(&mut server, &mut client, cut.max(64), &mut from.1);
                prop_assert_eq!(through, bytes, "all of it is told to be through, once");
            } else {
                client.set_buffer_limit(None);
                client.writer().write_all(&text).unwrap();
                to.0.extend_from_slice(&text);
                prop_assert_eq!(to_server(&mut client, &mut server, cut, &mut to.1), Took::All);
            }
        }
        prop_assert!(to.0 == to.1 && from.0 == from.1);
        prop_assert!(server.is_idle() && server.out.capacity() == 0, "an idle connection holds no buffer");
        client.send_close_notify();
        prop_assert_eq!(to_server(&mut client, &mut server, cut, &mut Vec::new()), Took::Goodbye);
        prop_assert!(server.say_goodbye() && !server.say_goodbye() && !server.is_idle());
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400), at in 0usize..300, cut in 1usize..300) {
        let mut plain = Vec::new();
        let mut server = server();
        bytes.chunks(cut).for_each(|piece| { server.take(piece, &mut plain); });
        // A hello that is damaged, and records that are.
        let (mut client, mut fresh) = (client(), super::tests::server());
        let mut hello = Vec::new();
        client.write_tls(&mut hello).unwrap();
        if let Some(byte) = hello.get_mut(at) { *byte ^= 0x55; }
        hello.chunks(cut).for_each(|piece| { fresh.take(piece, &mut plain); });
        let (_, mut open) = shaken(4096);
        bytes.chunks(cut).for_each(|piece| { open.take(piece, &mut plain); });
        prop_assert!(plain.is_empty());
    }
}

#[test]
fn a_broken_record_ends_it_with_an_alert() {
    let (mut client, mut server) = shaken(4096);
    client.writer().write_all(b"hello").unwrap();
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    let mut plain = Vec::new();
    assert_eq!(server.take(&bytes, &mut plain), Took::Broken);
    assert!(plain.is_empty() && server.is_broken() && !server.takes_plain());
    assert_eq!(server.begin().unwrap()[0], 23, "an alert, encrypted");
    assert_eq!(server.take(b"more", &mut plain), Took::Broken);
}

#[test]
fn a_handshake_has_a_bound() {
    let mut server = server();
    let mut took = Took::All;
    // Records of a handshake message that never ends: the largest that may be announced.
    let mut bytes = vec![22, 3, 1, 0x40, 0, 1, 0, 0xff, 0xff];
    bytes.resize(5 + 0x4000, 0);
    for _ in 0..8 {
        took = server.take(&bytes, &mut Vec::new());
        bytes[5..9].fill(0);
    }
    assert_eq!(took, Took::Broken);
    assert!(Tls::begins(&[22]) && !Tls::begins(b"GET") && Tls::begins(&[]));
}
