//! The form of a token and its signature: JWS, compact (RFC 7515), one signature, nothing nested.
//!
//! ```text
//!   base64url({"alg":"EdDSA","kid":"a"}) . base64url({"tenant":…}) . base64url(signature)
//!              │ must be the key's own        │ looked at when the signature holds
//! ```
//! Keys that a header brings along or points to (`jwk`, `jku`, `x5u`) are not looked at.

use super::Denied;
use super::keys::{Key, Keys};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use serde::de::IgnoredAny;
use shards::names::is_name;

/// Largest token, characters: half of a request head.
pub const TOKEN_BYTES_MAX: usize = 4096;
/// Largest header, characters.
const HEADER_BYTES_MAX: usize = 1024;
/// Ed25519, P-256: 64; HMAC: 32.
const SIGNATURE_BYTES_MAX: usize = 64;

#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
    typ: Option<String>,
    cty: Option<IgnoredAny>,
    /// Extensions that must be understood: there are none here.
    crit: Option<IgnoredAny>,
}

/// Whose signature a token has, and the bytes of its claims.
pub(super) fn verify<'k>(token: &str, keys: &'k Keys) -> Result<(&'k Key, Vec<u8>), Denied> {
    if token.len() > TOKEN_BYTES_MAX {
        return Err(Denied::TooLarge);
    }
    let (signed, signature) = token.rsplit_once('.').ok_or(Denied::Malformed)?;
    let (header, payload) = signed.split_once('.').ok_or(Denied::Malformed)?;
    if header.len() > HEADER_BYTES_MAX {
        return Err(Denied::TooLarge);
    }
    // Both are text without a dot: a token with more parts is none.
    let header: Header = serde_json::from_slice(&decoded(header)?).map_err(|_| Denied::Malformed)?;
    let is_jwt =
        header.typ.as_deref().is_none_or(|typ| ["jwt", "at+jwt"].iter().any(|known| typ.eq_ignore_ascii_case(known)));
    if header.crit.is_some() || header.cty.is_some() || !is_jwt {
        return Err(Denied::Malformed);
    }
    let key = keys.find(header.kid.as_deref()).ok_or(Denied::UnknownKey)?;
    if header.alg != key.algorithm().name() {
        return Err(Denied::Algorithm);
    }
    let signature = decoded(signature)?;
    if signature.len() > SIGNATURE_BYTES_MAX || !key.verifies(signed.as_bytes(), &signature) {
        return Err(Denied::Signature);
    }
    Ok((key, decoded(payload)?))
}

/// The tenant that a token names, whoever made it: enough to send its bearer to the right shard, where it is verified.
pub fn claimed_tenant(token: &str) -> Option<String> {
    #[derive(Deserialize)]
    struct Claimed {
        tenant: String,
    }
    let payload = token.split('.').nth(1).filter(|_| token.len() <= TOKEN_BYTES_MAX)?;
    let claimed: Claimed = serde_json::from_slice(&decoded(payload).ok()?).ok()?;
    Some(claimed.tenant).filter(|tenant| is_name(tenant.as_bytes()))
}

fn decoded(part: &str) -> Result<Vec<u8>, Denied> {
    URL_SAFE_NO_PAD.decode(part).map_err(|_| Denied::Malformed)
}
