//! Keys that tokens are held against. Each has one algorithm, which its own form decides, and none other.
//!
//! ```text
//!   { "keys": [ { "kty":"OKP", "crv":"Ed25519", "x":…, "kid":"a" } ] }   JWK set   EdDSA
//!             { "kty":"EC",  "crv":"P-256",   "x":…, "y":… }             JWK       ES256
//!             { "kty":"oct", "k":… }                                     JWK       HS256, 32 bytes or more
//!   -----BEGIN PUBLIC KEY-----                                           PEM       Ed25519 or P-256
//! ```
//! A set may hold keys that are of no use here (RSA, keys to encrypt with): they are passed over.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::digest::{SHA256, digest};
use ring::{hmac, signature};
use rustls::pki_types::SubjectPublicKeyInfoDer;
use rustls::pki_types::pem::PemObject;
use serde::Deserialize;
use std::fmt;

/// Keys of a set.
const KEYS_MAX: usize = 64;
/// RFC 7518, 3.2: a secret is as long as what it signs with.
const SECRET_BYTES_MIN: usize = 32;
/// What stands before the key in a SubjectPublicKeyInfo: RFC 8410, RFC 5480.
const ED25519_SPKI: &[u8] = &[0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
const P256_SPKI: &[u8] = &[
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce,
    0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];
const ED25519_BYTES: usize = 32;
/// Of each coordinate.
pub(super) const P256_BYTES: usize = 32;

/// How tokens are signed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Algorithm {
    /// Ed25519.
    EdDsa,
    /// ECDSA over P-256 with SHA-256.
    Es256,
    /// HMAC with SHA-256.
    Hs256,
}

impl Algorithm {
    /// All of them.
    pub const ALL: [Algorithm; 3] = [Algorithm::EdDsa, Algorithm::Es256, Algorithm::Hs256];

    /// As `alg` has it.
    pub const fn name(self) -> &'static str {
        match self {
            Algorithm::EdDsa => "EdDSA",
            Algorithm::Es256 => "ES256",
            Algorithm::Hs256 => "HS256",
        }
    }
}

/// Why keys cannot be used: the end of a line that begins with their file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BadKeys(pub(super) String);

impl fmt::Display for BadKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[derive(Clone)]
enum Material {
    Public(Vec<u8>),
    Secret(hmac::Key),
}

/// One key.
#[derive(Clone)]
pub struct Key {
    id: Option<Box<str>>,
    algorithm: Algorithm,
    material: Material,
    fingerprint: u64,
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.algorithm.name(), self.id.as_deref().unwrap_or("without a name"))
    }
}

impl Key {
    fn public(id: Option<Box<str>>, algorithm: Algorithm, bytes: Vec<u8>) -> Key {
        let fingerprint = fingerprint(algorithm, &bytes);
        Key { id, algorithm, material: Material::Public(bytes), fingerprint }
    }

    fn secret(id: Option<Box<str>>, bytes: &[u8]) -> Key {
        let fingerprint = fingerprint(Algorithm::Hs256, bytes);
        Key {
            id,
            algorithm: Algorithm::Hs256,
            material: Material::Secret(hmac::Key::new(hmac::HMAC_SHA256, bytes)),
            fingerprint,
        }
    }

    /// The only algorithm it is used with.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// Which key it is, whatever it is called.
    pub fn fingerprint(&self) -> u64 {
        self.fingerprint
    }

    /// Did somebody who has the key sign this?
    pub(super) fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        let verified = |algorithm: &'static dyn signature::VerificationAlgorithm, public: &[u8]| {
            signature::UnparsedPublicKey::new(algorithm, public).verify(message, signature).is_ok()
        };
        match (&self.material, self.algorithm) {
            // Compares in constant time.
            (Material::Secret(key), Algorithm::Hs256) => hmac::verify(key, message, signature).is_ok(),
            (Material::Public(public), Algorithm::EdDsa) => verified(&signature::ED25519, public),
            (Material::Public(public), Algorithm::Es256) => verified(&signature::ECDSA_P256_SHA256_FIXED, public),
            // A key is made with its algorithm.
            (Material::Secret(_), _) | (Material::Public(_), Algorithm::Hs256) => false,
        }
    }
}

fn fingerprint(algorithm: Algorithm, bytes: &[u8]) -> u64 {
    let mut all = algorithm.name().as_bytes().to_vec();
    all.extend_from_slice(bytes);
    digest(&SHA256, &all).as_ref().first_chunk().map_or(0, |first| u64::from_be_bytes(*first))
}

/// The keys of a server.
#[derive(Clone, Debug)]
pub struct Keys(Vec<Key>);

/// A key as RFC 7517 writes it. Unknown members are passed over, as it asks.
#[derive(Deserialize, Default)]
pub(super) struct Jwk {
    pub kty: String,
    pub kid: Option<String>,
    pub alg: Option<String>,
    #[serde(rename = "use")]
    pub purpose: Option<String>,
    pub crv: Option<String>,
    pub x: Option<String>,
    pub y: Option<String>,
    pub k: Option<String>,
    pub d: Option<String>,
}

#[derive(Deserialize)]
struct JwkSet {
    keys: Vec<Jwk>,
}

/// The keys in a JWK set, or in a single JWK.
pub(super) fn jwks(text: &str) -> Result<Vec<Jwk>, BadKeys> {
    let parsed = match serde_json::from_str::<JwkSet>(text) {
        Ok(set) => Ok(set.keys),
        Err(why) => serde_json::from_str::<Jwk>(text).map(|key| vec![key]).map_err(|_| why),
    };
    parsed.map_err(|why| BadKeys(format!("is neither a JWK set nor a JWK: {why}")))
}

impl Keys {
    /// Reads a JWK set, a JWK or a PEM.
    ///
    /// # Errors
    /// It is none of these, has no key of use, or two that could be meant by one token.
    pub fn read(text: &str) -> Result<Keys, BadKeys> {
        let keys = match text.trim_start().starts_with('{') {
            true => jwks(text)?.iter().filter_map(|jwk| of_jwk(jwk).transpose()).collect::<Result<Vec<_>, _>>()?,
            false => of_pem(text)?,
        };
        if keys.is_empty() || keys.len() > KEYS_MAX {
            let why =
                format!("has {} keys for EdDSA (Ed25519), ES256 (P-256) or HS256: give 1 to {KEYS_MAX}", keys.len());
            return Err(BadKeys(why));
        }
        for (at, key) in keys.iter().enumerate() {
            if keys[at + 1..].iter().any(|other| other.id == key.id) {
                return Err(BadKeys(format!("has two keys that are both called {key:?}: give each its own kid")));
            }
        }
        Ok(Keys(keys))
    }

    /// The key that a token means. One without a name is meant by all that name no other.
    pub fn find(&self, id: Option<&str>) -> Option<&Key> {
        let named = id.and_then(|id| self.0.iter().find(|key| key.id.as_deref() == Some(id)));
        let only = || self.0.first().filter(|_| id.is_none() && self.0.len() == 1);
        named.or_else(|| self.0.iter().find(|key| key.id.is_none())).or_else(only)
    }

    /// Is this key still among them?
    pub fn holds(&self, fingerprint: u64) -> bool {
        self.0.iter().any(|key| key.fingerprint == fingerprint)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Key> {
        self.0.iter()
    }
}

/// `None`: a key that is of no use here.
fn of_jwk(jwk: &Jwk) -> Result<Option<Key>, BadKeys> {
    let id: Option<Box<str>> = jwk.kid.as_deref().map(Into::into);
    let named = |what: &str| BadKeys(format!("key {}: {what}", jwk.kid.as_deref().unwrap_or("without a kid")));
    if jwk.purpose.as_deref().is_some_and(|purpose| purpose != "sig") {
        return Ok(None);
    }
    let decoded = |member: &Option<String>, name: &str, bytes: usize| {
        let bytes_of = member.as_deref().and_then(|text| URL_SAFE_NO_PAD.decode(text).ok());
        let good = bytes_of.filter(|decoded| if bytes == 0 { true } else { decoded.len() == bytes });
        good.ok_or_else(|| named(&format!("{name} is missing or is not base64url of the right length")))
    };
    let algorithm = match (jwk.kty.as_str(), jwk.crv.as_deref()) {
        ("OKP", Some("Ed25519")) => Algorithm::EdDsa,
        ("EC", Some("P-256")) => Algorithm::Es256,
        ("oct", _) => Algorithm::Hs256,
        _ => return Ok(None),
    };
    // RFC 9864 gives Ed25519 a name of its own.
    let fits = |name: &str| name == algorithm.name() || (name == "Ed25519" && algorithm == Algorithm::EdDsa);
    if jwk.alg.as_deref().is_some_and(|name| !fits(name)) {
        return Ok(None);
    }
    Ok(Some(match algorithm {
        Algorithm::EdDsa => Key::public(id, algorithm, decoded(&jwk.x, "x", ED25519_BYTES)?),
        Algorithm::Es256 => {
            let (x, y) = (decoded(&jwk.x, "x", P256_BYTES)?, decoded(&jwk.y, "y", P256_BYTES)?);
            Key::public(id, algorithm, [&[4][..], &x, &y].concat())
        }
        Algorithm::Hs256 => {
            let secret = decoded(&jwk.k, "k", 0)?;
            if secret.len() < SECRET_BYTES_MIN {
                return Err(named(&format!(
                    "a secret for HS256 has {SECRET_BYTES_MIN} bytes or more, not {}",
                    secret.len()
                )));
            }
            Key::secret(id, &secret)
        }
    }))
}

fn of_pem(text: &str) -> Result<Vec<Key>, BadKeys> {
    let bad = |why: &str| BadKeys(format!("{why}: give a JWK set, or a PEM with one PUBLIC KEY of Ed25519 or P-256"));
    let found = SubjectPublicKeyInfoDer::pem_slice_iter(text.as_bytes());
    let found = found.collect::<Result<Vec<_>, _>>().map_err(|_| bad("is no PEM"))?;
    let [spki] = found.as_slice() else { return Err(bad(&format!("holds {} public keys", found.len()))) };
    let spki: &[u8] = spki;
    if let Some(bytes) = spki.strip_prefix(ED25519_SPKI).filter(|bytes| bytes.len() == ED25519_BYTES) {
        return Ok(vec![Key::public(None, Algorithm::EdDsa, bytes.to_vec())]);
    }
    if let Some(bytes) = spki.strip_prefix(P256_SPKI).filter(|bytes| bytes.len() == 1 + 2 * P256_BYTES && bytes[0] == 4)
    {
        return Ok(vec![Key::public(None, Algorithm::Es256, bytes.to_vec())]);
    }
    Err(bad("holds a key of another kind"))
}
