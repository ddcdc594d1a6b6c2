//! Tokens and keys for development, tests and the bench. In production somebody else signs: whoever knows the users.
//!
//! ```text
//!   PrivateKey::make ─► JWK with its private part ─► PrivateKey::read ─► sign(Wish) ─► token
//!                         └ public_text ─► JWK set for the server
//! ```

use super::keys::{Algorithm, BadKeys, Jwk, P256_BYTES, jwks};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::hmac;
use ring::rand::{SecureRandom, SystemRandom};
use ring::signature::{self, EcdsaKeyPair, Ed25519KeyPair, KeyPair};
use serde_json::{Map, Value, json};
use shards::rights::Capability;

/// Where `ring` puts the private scalar in the PKCS #8 that it makes.
const P256_SCALAR_AT: usize = 36;

/// A key that signs.
pub struct PrivateKey {
    jwk: Value,
    id: Option<String>,
    signer: Signer,
}

enum Signer {
    EdDsa(Box<Ed25519KeyPair>),
    Es256(Box<EcdsaKeyPair>),
    Hs256(hmac::Key),
}

/// What each capability is granted.
pub type Grants<'a> = [(Capability, &'a [String])];

/// What a token is to say.
#[derive(Clone, Copy, Debug)]
pub struct Wish<'a> {
    /// Tenant.
    pub tenant: &'a str,
    /// Client, `*` or none.
    pub client: Option<&'a str>,
    /// Audience.
    pub audience: &'a str,
    /// Now, Unix s.
    pub issued_s: u64,
    /// Until when, Unix s.
    pub expires_s: u64,
    /// Name of the token.
    pub token_id: &'a str,
    /// What it grants.
    pub grants: &'a Grants<'a>,
}

impl PrivateKey {
    /// Makes a key.
    ///
    /// # Errors
    /// The kernel gives no randomness.
    pub fn make(algorithm: Algorithm, id: &str) -> Result<PrivateKey, BadKeys> {
        let failed = |_| BadKeys("cannot be made: no randomness".into());
        let (random, encode) = (SystemRandom::new(), |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes));
        let mut secret = [0u8; 32];
        random.fill(&mut secret).map_err(failed)?;
        let mut jwk = json!({ "kid": id, "alg": algorithm.name(), "use": "sig" });
        let parts: Vec<(&str, String)> = match algorithm {
            Algorithm::EdDsa => {
                let pair = Ed25519KeyPair::from_seed_unchecked(&secret).map_err(|_| BadKeys("is no seed".into()))?;
                let public = encode(pair.public_key().as_ref());
                vec![("kty", "OKP".into()), ("crv", "Ed25519".into()), ("x", public), ("d", encode(&secret))]
            }
            Algorithm::Es256 => {
                let made = EcdsaKeyPair::generate_pkcs8(&signature::ECDSA_P256_SHA256_FIXED_SIGNING, &random);
                let made = made.map_err(failed)?;
                let bytes = made.as_ref();
                let public = &bytes[bytes.len() - 2 * P256_BYTES..];
                let (x, y) = public.split_at(P256_BYTES);
                let scalar = &bytes[P256_SCALAR_AT..P256_SCALAR_AT + P256_BYTES];
                vec![
                    ("kty", "EC".into()),
                    ("crv", "P-256".into()),
                    ("x", encode(x)),
                    ("y", encode(y)),
                    ("d", encode(scalar)),
                ]
            }
            Algorithm::Hs256 => vec![("kty", "oct".into()), ("k", encode(&secret))],
        };
        for (member, value) in parts {
            jwk[member] = value.into();
        }
        PrivateKey::of(&jwk)
    }

    /// The key of this name in a JWK set or JWK with private parts; without a name the first.
    ///
    /// # Errors
    /// There is none.
    pub fn read(text: &str, id: Option<&str>) -> Result<PrivateKey, BadKeys> {
        // Kept as it was written, members that are not known here included.
        let all: Value = serde_json::from_str(text).map_err(|why| BadKeys(format!("is no JWK set: {why}")))?;
        let list = all.get("keys").and_then(Value::as_array).cloned().unwrap_or_else(|| vec![all]);
        let wanted = |jwk: &&Value| id.is_none_or(|id| jwk.get("kid").and_then(Value::as_str) == Some(id));
        let mut none = BadKeys("holds no key of that name".into());
        for jwk in list.iter().filter(wanted) {
            match PrivateKey::of(jwk) {
                Ok(key) => return Ok(key),
                Err(why) => none = why,
            }
        }
        Err(none)
    }

    fn of(value: &Value) -> Result<PrivateKey, BadKeys> {
        let bad =
            || BadKeys("holds no private key for EdDSA, ES256 or HS256: make one with `tidegate keys make`".into());
        let jwk: Jwk = jwks(&value.to_string())?.into_iter().next().ok_or_else(bad)?;
        let part = |member: &Option<String>| {
            member.as_deref().and_then(|text| URL_SAFE_NO_PAD.decode(text).ok()).ok_or_else(bad)
        };
        let signer = match (jwk.kty.as_str(), jwk.crv.as_deref()) {
            ("OKP", Some("Ed25519")) => {
                let pair = Ed25519KeyPair::from_seed_and_public_key(&part(&jwk.d)?, &part(&jwk.x)?);
                Signer::EdDsa(Box::new(pair.map_err(|_| bad())?))
            }
            ("EC", Some("P-256")) => {
                let public = [&[4][..], &part(&jwk.x)?, &part(&jwk.y)?].concat();
                let algorithm = &signature::ECDSA_P256_SHA256_FIXED_SIGNING;
                let random = SystemRandom::new();
                let pair = EcdsaKeyPair::from_private_key_and_public_key(algorithm, &part(&jwk.d)?, &public, &random);
                Signer::Es256(Box::new(pair.map_err(|_| bad())?))
            }
            ("oct", _) => Signer::Hs256(hmac::Key::new(hmac::HMAC_SHA256, &part(&jwk.k)?)),
            _ => return Err(bad()),
        };
        Ok(PrivateKey { jwk: value.clone(), id: jwk.kid, signer })
    }

    /// As a JWK set with its private part.
    pub fn private_text(&self) -> String {
        pretty(&json!({ "keys": [self.jwk] }))
    }

    /// As a JWK set for whoever verifies. A secret has no public part: it stays as it is.
    pub fn public_text(&self) -> String {
        let mut jwk = self.jwk.clone();
        if let Some(members) = jwk.as_object_mut() {
            members.remove("d");
        }
        pretty(&json!({ "keys": [jwk] }))
    }

    fn algorithm(&self) -> Algorithm {
        match self.signer {
            Signer::EdDsa(_) => Algorithm::EdDsa,
            Signer::Es256(_) => Algorithm::Es256,
            Signer::Hs256(_) => Algorithm::Hs256,
        }
    }

    /// A token.
    ///
    /// # Errors
    /// The kernel gives no randomness.
    pub fn sign(&self, wish: &Wish<'_>) -> Result<String, BadKeys> {
        let mut header = json!({ "alg": self.algorithm().name(), "typ": "JWT" });
        if let Some(id) = &self.id {
            header["kid"] = id.as_str().into();
        }
        let capabilities: Map<String, Value> =
            wish.grants.iter().map(|(capability, grants)| (capability.name().into(), json!(grants))).collect();
        let mut claims = json!({
            "aud": wish.audience, "tenant": wish.tenant, "iat": wish.issued_s, "exp": wish.expires_s,
            "jti": wish.token_id, "capabilities": capabilities,
        });
        if let Some(client) = wish.client {
            claims["client_id"] = client.into();
        }
        self.sign_json(&header, &claims)
    }

    /// Signs whatever header and claims; also such as no server accepts, for tests.
    ///
    /// # Errors
    /// As [`PrivateKey::sign`].
    pub fn sign_json(&self, header: &Value, claims: &Value) -> Result<String, BadKeys> {
        self.sign_bytes(header.to_string().as_bytes(), claims.to_string().as_bytes())
    }

    /// Signs whatever bytes.
    ///
    /// # Errors
    /// As [`PrivateKey::sign`].
    pub fn sign_bytes(&self, header: &[u8], payload: &[u8]) -> Result<String, BadKeys> {
        let signed = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(payload));
        let signature = match &self.signer {
            Signer::EdDsa(pair) => pair.sign(signed.as_bytes()).as_ref().to_vec(),
            Signer::Es256(pair) => {
                let made = pair.sign(&SystemRandom::new(), signed.as_bytes());
                made.map_err(|_| BadKeys("cannot sign: no randomness".into()))?.as_ref().to_vec()
            }
            Signer::Hs256(key) => hmac::sign(key, signed.as_bytes()).as_ref().to_vec(),
        };
        Ok(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }
}

fn pretty(value: &Value) -> String {
    // A value made of texts can always be written.
    let mut text = serde_json::to_string_pretty(value).unwrap_or_default();
    text.push('\n');
    text
}
