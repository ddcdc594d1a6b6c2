//! The request head: a prefix is incomplete or already wrong, what follows changes nothing, and what is upgraded here is
//! upgraded by tungstenite.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tidegate::http::{Head, Request, parse};
use tungstenite::handshake::derive_accept_key;
use tungstenite::handshake::machine::TryParse;
use tungstenite::handshake::server::{Request as TheirRequest, create_response};

fuzz_target!(|input: &[u8]| {
    let Some((cut, bytes)) = input.split_first() else { return };
    let Head::Complete { request, bytes: taken } = parse(bytes, true) else {
        return;
    };
    assert!(taken <= bytes.len());
    if !matches!(request, Request::Bad(_)) {
        let same = Head::Complete { request: request.clone(), bytes: taken };
        assert_eq!(parse(&bytes[..taken], true), same, "what follows the head changes it");
        let prefix = &bytes[..taken * usize::from(*cut) / 256];
        match parse(prefix, true) {
            Head::Incomplete => {}
            Head::Complete { bytes, .. } => panic!("whole after {bytes} of {taken} bytes"),
        }
    }
    if let Request::Upgrade(upgrade) | Request::Echo(upgrade) = &request {
        let mut answer = Vec::new();
        tidegate::http::append_switching(&mut answer, upgrade.key, upgrade.subprotocol);
        let accept = derive_accept_key(upgrade.key.as_bytes());
        assert!(String::from_utf8(answer).expect("text").contains(&accept));
        let theirs = TheirRequest::try_parse(&bytes[..taken]).ok().flatten();
        // Its parser is stricter about paths; where it reads the request it upgrades it. It looks at the first line of a header
        // only, where a list may lie in several, and takes no list of protocols to upgrade to, not even "websocket,", and no
        // byte above 127 beside the token.
        let once = |theirs: &TheirRequest| {
            ["upgrade", "connection"].iter().all(|name| theirs.headers().get_all(*name).iter().count() == 1)
                && theirs.headers().get("upgrade").is_some_and(|value| !value.as_bytes().contains(&b','))
                && ["upgrade", "connection"].iter().all(|name| theirs.headers().get(*name).is_some_and(|v| v.to_str().is_ok()))
        };
        if let Some((_, theirs)) = theirs.filter(|(_, theirs)| once(theirs)) {
            assert!(create_response(&theirs).is_ok(), "{theirs:?}");
        }
    }
});
