//! Tokens, good and bad. Those of other libraries are held against a running server in `tests/blackbox/tokens.py`.

use super::*;
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use proptest::prelude::*;
use serde_json::{Value, json};
use shards::rights::Capability;

const NOW_S: u64 = 1_767_225_600;
const NOW_MS: u64 = NOW_S * 1000;

fn rules(keys: &str) -> Rules {
    Rules {
        keys: Some(Keys::read(keys).unwrap()),
        audience: "tidegate".into(),
        token_life_ms_max: 24 * 3_600_000,
        ..Rules::default()
    }
}

fn key(algorithm: Algorithm) -> PrivateKey {
    PrivateKey::make(algorithm, "k1").unwrap()
}

fn header(algorithm: Algorithm) -> Value {
    json!({ "alg": algorithm.name(), "kid": "k1" })
}

fn claims() -> Value {
    json!({
        "aud": "tidegate", "tenant": "acme", "client_id": "ann", "exp": NOW_S + 60, "iat": NOW_S, "jti": "t-1",
        "capabilities": { "publish": ["chat.>"], "subscribe": ["room-*/>"] },
    })
}

fn with(mut value: Value, member: &str, change: Value) -> Value {
    match change {
        Value::Null => drop(value.as_object_mut().unwrap().remove(member)),
        change => value[member] = change,
    }
    value
}

#[test]
fn a_good_token_of_each_algorithm_says_who_its_bearer_is() {
    for algorithm in Algorithm::ALL {
        let key = key(algorithm);
        let rules = rules(&key.public_text());
        let identity = rules.identify(&key.sign_json(&header(algorithm), &claims()).unwrap(), NOW_MS).unwrap();
        assert_eq!((&*identity.tenant, identity.client.fixed()), ("acme", Some("ann")));
        assert_eq!((identity.expires_ms, identity.issued_s), (NOW_MS + 60_000, NOW_S));
        assert_eq!(identity.token_id.as_deref(), Some("t-1"));
        assert!(identity.rights.covers_topic(Capability::Publish, "s", "chat.a"));
        assert!(identity.rights.covers_session(Capability::Subscribe, "room-1"));
        assert!(!identity.rights.touches(Capability::Admin, "s"));
        assert!(rules.keys.as_ref().unwrap().holds(identity.key));
        // A key reads back from its own private text, and signs as itself.
        let again = PrivateKey::read(&key.private_text(), Some("k1")).unwrap();
        assert!(rules.identify(&again.sign_json(&header(algorithm), &claims()).unwrap(), NOW_MS).is_ok());
    }
}

#[test]
fn each_claim_counts() {
    let key = key(Algorithm::EdDsa);
    let rules = rules(&key.public_text());
    let many: Vec<String> = (0..33).map(|n| format!("t{n}")).collect();
    for (member, change, want) in [
        ("exp", Value::Null, Denied::Claims),
        ("exp", json!("soon"), Denied::Claims),
        ("exp", json!(NOW_S), Denied::Expired),
        ("exp", json!(-1), Denied::Expired),
        ("exp", json!(NOW_S + 24 * 3600 + 60), Denied::LifeTooLong),
        ("exp", json!(1e300), Denied::LifeTooLong),
        ("nbf", json!(NOW_S + 60), Denied::NotYet),
        ("aud", Value::Null, Denied::Audience),
        ("aud", json!("other"), Denied::Audience),
        ("aud", json!(["other", "Tidegate"]), Denied::Audience),
        ("tenant", Value::Null, Denied::Claims),
        ("tenant", json!("$other"), Denied::Claims),
        ("tenant", json!("a/b"), Denied::Claims),
        ("tenant", json!(7), Denied::Claims),
        ("client_id", json!("a b"), Denied::Claims),
        ("client_id", json!("$server"), Denied::Claims),
        ("jti", json!(""), Denied::Claims),
        ("capabilities", json!({ "publish": ["a..b"] }), Denied::Claims),
        ("capabilities", json!({ "publish": ">" }), Denied::Claims),
        ("capabilities", json!({ "publish": many }), Denied::Claims),
        ("capabilities", json!(["publish"]), Denied::Claims),
    ] {
        let token = key.sign_json(&header(Algorithm::EdDsa), &with(claims(), member, change.clone())).unwrap();
        assert_eq!(rules.identify(&token, NOW_MS).map(|_| ()), Err(want), "{member}: {change}");
    }
    for (member, change) in [
        ("exp", json!(NOW_S as f64 + 0.5)),
        ("nbf", json!(NOW_S + 4)),
        ("aud", json!(["other", "tidegate"])),
        ("client_id", Value::Null),
        ("client_id", json!("*")),
        ("capabilities", Value::Null),
        ("capabilities", json!({ "fly": ["*"] })),
        ("iat", Value::Null),
        ("iss", json!({ "whoever": [1, 2] })),
    ] {
        let token = key.sign_json(&header(Algorithm::EdDsa), &with(claims(), member, change.clone())).unwrap();
        assert!(rules.identify(&token, NOW_MS).is_ok(), "{member}: {change}");
    }
    assert_eq!(
        rules.identify(&key.sign_json(&header(Algorithm::EdDsa), &json!([1])).unwrap(), NOW_MS),
        Err(Denied::Claims)
    );
}

/// What a header says is never believed; what it demands to be understood is refused.
#[test]
fn headers_that_lie() {
    let key = key(Algorithm::EdDsa);
    let rules = rules(&key.public_text());
    let own = header(Algorithm::EdDsa);
    for (member, change, want) in [
        ("alg", json!("none"), Denied::Algorithm),
        ("alg", json!("None"), Denied::Algorithm),
        ("alg", json!("eddsa"), Denied::Algorithm),
        ("alg", json!("HS256"), Denied::Algorithm),
        ("alg", json!("ES256"), Denied::Algorithm),
        ("alg", Value::Null, Denied::Malformed),
        ("alg", json!(["EdDSA"]), Denied::Malformed),
        ("kid", json!("k2"), Denied::UnknownKey),
        ("crit", json!(["exp"]), Denied::Malformed),
        ("cty", json!("JWT"), Denied::Malformed),
        ("typ", json!("JWE"), Denied::Malformed),
    ] {
        let token = key.sign_json(&with(own.clone(), member, change.clone()), &claims()).unwrap();
        // With one key that has a name, a token that names another is no token of it.
        assert_eq!(rules.identify(&token, NOW_MS).map(|_| ()), Err(want), "{member}: {change}");
    }
    let elsewhere = PrivateKey::make(Algorithm::EdDsa, "k1").unwrap();
    let brought: Value = serde_json::from_str(&elsewhere.public_text()).unwrap();
    let lying = with(own.clone(), "jwk", brought["keys"][0].clone());
    let token = elsewhere.sign_json(&with(lying, "jku", json!("https://example.com/keys")), &claims()).unwrap();
    assert_eq!(rules.identify(&token, NOW_MS), Err(Denied::Signature), "a key that the token brings along");
    for typ in ["JWT", "jwt", "at+jwt"] {
        let token = key.sign_json(&with(own.clone(), "typ", json!(typ)), &claims()).unwrap();
        assert!(rules.identify(&token, NOW_MS).is_ok(), "{typ}");
    }
    let unnamed = key.sign_json(&with(own, "kid", Value::Null), &claims()).unwrap();
    assert!(rules.identify(&unnamed, NOW_MS).is_ok(), "there is only one key that it can mean");
}

/// The public key is no secret: what is signed with its bytes as one must not count.
#[test]
fn a_public_key_is_not_taken_for_a_secret() {
    for algorithm in [Algorithm::EdDsa, Algorithm::Es256] {
        let key = key(algorithm);
        let public = key.public_text();
        let rules = rules(&public);
        let jwk: Value = serde_json::from_str(&public).unwrap();
        let raw = URL_SAFE_NO_PAD.decode(jwk["keys"][0]["x"].as_str().unwrap()).unwrap();
        for secret in [public.as_bytes(), &raw] {
            let secret = json!({ "kty": "oct", "kid": "k1", "k": URL_SAFE_NO_PAD.encode(secret) }).to_string();
            let forger = PrivateKey::read(&secret, None).unwrap();
            for alg in ["HS256", algorithm.name()] {
                let token = forger.sign_json(&json!({ "alg": alg, "kid": "k1" }), &claims()).unwrap();
                let denied = rules.identify(&token, NOW_MS).unwrap_err();
                assert!(matches!(denied, Denied::Algorithm | Denied::Signature), "{denied:?}");
            }
        }
    }
}

#[test]
fn the_form_counts_to_the_last_byte() {
    let key = key(Algorithm::Es256);
    let rules = rules(&key.public_text());
    let token = key.sign_json(&header(Algorithm::Es256), &claims()).unwrap();
    let good = rules.identify(&token, NOW_MS);
    assert!(good.is_ok());
    for at in 0..token.len() {
        let mut bytes = token.clone().into_bytes();
        bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
        let changed = String::from_utf8(bytes).unwrap();
        assert!(rules.identify(&changed, NOW_MS).is_err(), "byte {at}");
        assert!(rules.identify(&token[..at], NOW_MS).is_err(), "cut at {at}");
    }
    let parts: Vec<&str> = token.split('.').collect();
    for bad in [
        String::new(),
        ".".into(),
        "..".into(),
        format!("{token}."),
        format!("{}.{}.", parts[0], parts[1]),
        format!("{}.{}", parts[0], parts[1]),
        format!("{token}.{}", parts[2]),
        format!("{token}="),
        format!(" {token}"),
        format!("{}.{}.{}", parts[0], STANDARD.encode("{}"), parts[2]),
        format!("{{\"payload\":\"{}\"}}", parts[1]),
    ] {
        assert!(rules.identify(&bad, NOW_MS).is_err(), "{bad}");
    }
    let large = key.sign_json(&header(Algorithm::Es256), &with(claims(), "more", json!("x".repeat(4096)))).unwrap();
    assert_eq!(rules.identify(&large, NOW_MS), Err(Denied::TooLarge));
    let wide = key.sign_json(&with(header(Algorithm::Es256), "more", json!("x".repeat(1024))), &claims()).unwrap();
    assert_eq!(rules.identify(&wide, NOW_MS), Err(Denied::TooLarge));
    // A token in a token, deep ones included.
    let nested = key.sign_json(&with(header(Algorithm::Es256), "cty", json!("JWT")), &json!(token)).unwrap();
    assert_eq!(rules.identify(&nested, NOW_MS), Err(Denied::Malformed));
    let deep = format!("{}1{}", "[".repeat(1000), "]".repeat(1000));
    let payload = URL_SAFE_NO_PAD.encode(format!("{{\"exp\":{deep}}}"));
    assert!(rules.identify(&format!("{}.{payload}.{}", parts[0], parts[2]), NOW_MS).is_err());
    assert_eq!(claimed_tenant(&format!("{}.{payload}.{}", parts[0], parts[2])), None);
    let twice = URL_SAFE_NO_PAD.encode(r#"{"alg":"none","alg":"ES256","kid":"k1"}"#);
    assert_eq!(rules.identify(&format!("{twice}.{}.{}", parts[1], parts[2]), NOW_MS), Err(Denied::Malformed));
}

#[test]
fn keys_are_read_and_what_is_of_no_use_is_passed_over() {
    let (ed, ec, hs) = (
        key(Algorithm::EdDsa),
        PrivateKey::make(Algorithm::Es256, "k2").unwrap(),
        PrivateKey::make(Algorithm::Hs256, "k3").unwrap(),
    );
    let jwk = |key: &PrivateKey| serde_json::from_str::<Value>(&key.public_text()).unwrap()["keys"][0].clone();
    let rsa = json!({ "kty": "RSA", "kid": "r", "n": "AQAB", "e": "AQAB" });
    let set = json!({ "keys": [rsa, jwk(&ed), with(jwk(&ec), "use", json!("enc")), jwk(&hs), with(jwk(&ec), "alg", json!("ES384"))] });
    let keys = Keys::read(&set.to_string()).unwrap();
    assert_eq!(keys.iter().map(Key::algorithm).collect::<Vec<_>>(), [Algorithm::EdDsa, Algorithm::Hs256]);
    assert_eq!(keys.find(Some("k3")).map(Key::algorithm), Some(Algorithm::Hs256));
    assert!(keys.find(Some("k9")).is_none() && keys.find(None).is_none(), "with several, a name is needed");
    let debug = format!("{keys:?}");
    assert!(!debug.contains(jwk(&hs)["k"].as_str().unwrap()), "{debug}");
    assert!(!ed.public_text().contains("\"d\""));
    assert_eq!(Keys::read(&jwk(&ed).to_string()).unwrap().iter().count(), 1, "a JWK by itself");
    for bad in [
        "".to_string(),
        "{}".into(),
        "{\"keys\":[]}".into(),
        json!({ "keys": [rsa] }).to_string(),
        json!({ "keys": [jwk(&ed), jwk(&ed)] }).to_string(),
        with(jwk(&ed), "x", json!("AQAB")).to_string(),
        with(jwk(&ec), "y", Value::Null).to_string(),
        json!({ "kty": "oct", "k": URL_SAFE_NO_PAD.encode([7; 31]) }).to_string(),
        "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n".into(),
        "not a key".into(),
    ] {
        let why = Keys::read(&bad).unwrap_err().to_string();
        assert!(!why.contains('\n'), "{why}");
    }
}

#[test]
fn a_pem_holds_one_key_that_every_token_means() {
    let ed = key(Algorithm::EdDsa);
    let jwk: Value = serde_json::from_str(&ed.public_text()).unwrap();
    let public = URL_SAFE_NO_PAD.decode(jwk["keys"][0]["x"].as_str().unwrap()).unwrap();
    let spki = [&[0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00][..], &public].concat();
    let pem = format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", STANDARD.encode(spki));
    let rules = rules(&pem);
    assert!(rules.identify(&ed.sign_json(&header(Algorithm::EdDsa), &claims()).unwrap(), NOW_MS).is_ok());
    assert!(Keys::read(&format!("{pem}{pem}")).unwrap_err().to_string().contains("2 public keys"));
}

#[test]
fn what_is_told_before_the_signature_holds_is_one_sentence() {
    let told = |denied: Denied| denied.told();
    for denied in [Denied::Malformed, Denied::TooLarge, Denied::UnknownKey, Denied::Algorithm] {
        assert_eq!(told(denied), told(Denied::Signature));
    }
    for (at, denied) in Denied::ALL.iter().enumerate() {
        assert!(Denied::ALL[at + 1..].iter().all(|other| other.name() != denied.name()));
        assert_eq!(*denied as usize, at, "counters are found by number");
    }
}

#[test]
fn a_revoked_client_and_a_revoked_token_do_not_come_in() {
    let key = key(Algorithm::Hs256);
    let mut rules = rules(&key.public_text());
    let token = key.sign_json(&header(Algorithm::Hs256), &claims()).unwrap();
    rules.revocations.add(&Revocation::Token { tenant: "other".into(), token: "t-1".into() }, NOW_S, NOW_S + 9);
    assert!(rules.identify(&token, NOW_MS).is_ok());
    rules.revocations.add(&Revocation::Client { tenant: "acme".into(), client: "ann".into() }, NOW_S, NOW_S + 9);
    assert_eq!(rules.identify(&token, NOW_MS), Err(Denied::Revoked));
}

proptest! {
    #[test]
    fn no_text_makes_it_panic_and_none_is_accepted(text in "[A-Za-z0-9._=-]{0,200}", header in "\\PC{0,60}", payload in "\\PC{0,60}") {
        let rules = rules(r#"{"kty":"oct","k":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"}"#);
        prop_assert!(rules.identify(&text, NOW_MS).is_err());
        let _ = claimed_tenant(&text);
        let made = format!("{}.{}.AAAA", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(payload));
        prop_assert!(rules.identify(&made, NOW_MS).is_err());
        let _ = claimed_tenant(&made);
    }
}
