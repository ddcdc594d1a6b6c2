//! Tokens: no text makes the server accept one that it should not, and whatever a signer signs is understood or denied.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::sync::LazyLock;
use tidegate::auth::{Keys, PrivateKey, Rules, claimed_tenant};

const NOW_MS: u64 = 1_767_225_600_000;
const KEY: &str = r#"{"kty":"oct","kid":"k","alg":"HS256","k":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"}"#;

static WORLD: LazyLock<(PrivateKey, Rules)> = LazyLock::new(|| {
    let rules = Rules {
        keys: Some(Keys::read(KEY).expect("a key")),
        audience: "tidegate".into(),
        token_life_ms_max: 86_400_000,
        ..Rules::default()
    };
    (PrivateKey::read(KEY, None).expect("a key"), rules)
});

fuzz_target!(|input: &[u8]| {
    let (key, rules) = &*WORLD;
    if let Ok(text) = std::str::from_utf8(input) {
        // Nobody finds a signature by chance.
        assert!(rules.identify(text, NOW_MS).is_err());
        let _ = claimed_tenant(text);
        let _ = Keys::read(text);
    }
    // Behind a good signature: any header, any claims.
    let at = input.iter().position(|byte| *byte == b'\n').unwrap_or(0);
    let (header, payload) = input.split_at(at);
    let header = if header.is_empty() { br#"{"alg":"HS256","kid":"k"}"# } else { header };
    let token = key.sign_bytes(header, payload).expect("a token");
    if let Ok(identity) = rules.identify(&token, NOW_MS) {
        assert!(identity.expires_ms > NOW_MS && !identity.tenant.is_empty());
        assert_eq!(claimed_tenant(&token).as_deref(), Some(&*identity.tenant), "where it is sent is where it belongs");
    }
});
