//! What a token says, once its signature holds.
//!
//! ```text
//!   aud           must name this server
//!   exp, nbf      exp is required, and not further away than tokens may live; nbf counts with a little patience
//!   tenant        required
//!   client_id     a name: this client and no other · "*": any · left out: the server makes one up
//!   capabilities  { publish, subscribe, queue, entries, admin: [grant, …] }   left out: none
//!   jti, iat      by which it can be revoked
//! ```

use super::{Denied, Rules};
use serde::Deserialize;
use shards::names::is_name;
use shards::rights::{Capability, Rights};
use std::sync::Arc;

/// Audience where none is configured.
pub const CLAIM_AUDIENCE_DEFAULT: &str = "tidegate";
/// By how much clocks may differ.
const CLOCKS_MS: u64 = 5_000;

/// Whose client id a principal has.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Named {
    /// This one.
    Fixed(Arc<str>),
    /// Whichever it gives itself.
    Any,
    /// The one that the server makes up.
    Nobody,
}

impl Named {
    /// The client id that is the token's.
    pub fn fixed(&self) -> Option<&str> {
        match self {
            Named::Fixed(name) => Some(name),
            Named::Any | Named::Nobody => None,
        }
    }
}

/// Who the bearer of a token is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Identity {
    /// Unit of isolation.
    pub tenant: Arc<str>,
    /// Client.
    pub client: Named,
    /// What it may do.
    pub rights: Arc<Rights>,
    /// Until when, Unix ms.
    pub expires_ms: u64,
    /// Since when, Unix s; 0 where it does not say.
    pub issued_s: u64,
    /// Name of the token.
    pub token_id: Option<Box<str>>,
    /// Fingerprint of the key that signed it.
    pub key: u64,
}

#[derive(Deserialize)]
struct Claims {
    aud: Option<Audience>,
    exp: Option<f64>,
    nbf: Option<f64>,
    iat: Option<f64>,
    jti: Option<String>,
    tenant: Option<String>,
    client_id: Option<String>,
    #[serde(default)]
    capabilities: Capabilities,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Many(Vec<String>),
}

#[derive(Deserialize, Default)]
struct Capabilities {
    #[serde(default)]
    publish: Vec<String>,
    #[serde(default)]
    subscribe: Vec<String>,
    #[serde(default)]
    queue: Vec<String>,
    #[serde(default)]
    entries: Vec<String>,
    #[serde(default)]
    admin: Vec<String>,
}

/// The identity in a payload; its key is not looked at here.
pub(super) fn read(payload: &[u8], rules: &Rules, now_ms: u64) -> Result<Identity, Denied> {
    let claims: Claims = serde_json::from_slice(payload).map_err(|_| Denied::Claims)?;
    let meant = match &claims.aud {
        None => false,
        Some(Audience::One(name)) => *name == rules.audience,
        Some(Audience::Many(names)) => names.contains(&rules.audience),
    };
    if !meant {
        return Err(Denied::Audience);
    }
    let expires_ms = claims.exp.map(ms).ok_or(Denied::Claims)?;
    if expires_ms <= now_ms {
        return Err(Denied::Expired);
    }
    if claims.nbf.is_some_and(|nbf| ms(nbf) > now_ms.saturating_add(CLOCKS_MS)) {
        return Err(Denied::NotYet);
    }
    if expires_ms - now_ms > rules.token_life_ms_max.saturating_add(CLOCKS_MS) {
        return Err(Denied::LifeTooLong);
    }
    let tenant = claims.tenant.filter(|name| is_name(name.as_bytes())).ok_or(Denied::Claims)?;
    let client = match claims.client_id.as_deref() {
        None => Named::Nobody,
        Some("*") => Named::Any,
        Some(name) if is_name(name.as_bytes()) => Named::Fixed(name.into()),
        Some(_) => return Err(Denied::Claims),
    };
    if claims.jti.as_deref().is_some_and(|id| !is_name(id.as_bytes())) {
        return Err(Denied::Claims);
    }
    let mut rights = Rights::none(matches!(client, Named::Fixed(_)));
    let Capabilities { publish, subscribe, queue, entries, admin } = claims.capabilities;
    for (capability, grants) in Capability::ALL.into_iter().zip([publish, subscribe, queue, entries, admin]) {
        for grant in grants {
            rights.add(capability, &grant).map_err(|_| Denied::Claims)?;
        }
    }
    Ok(Identity {
        tenant: tenant.into(),
        client,
        rights: Arc::new(rights),
        expires_ms,
        issued_s: claims.iat.map_or(0, |iat| ms(iat) / 1000),
        token_id: claims.jti.map(Into::into),
        key: 0,
    })
}

/// Seconds since 1970, with or without a fraction, as milliseconds.
fn ms(seconds: f64) -> u64 {
    // A cast of what is below 0, or no number, is 0; of what is too large the largest.
    (seconds * 1000.0) as u64
}
