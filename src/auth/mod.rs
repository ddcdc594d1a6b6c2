//! Who a client is: tokens that others make (JWT), held against keys that the operator chose. No files, sockets or clock.
//!
//! ```text
//!   token ─► jwt: form, key by `kid`, the key's own algorithm, signature ─► claims: time, audience, names ─► Identity
//!              │                                                             │
//!              └ Denied: before the signature holds, nothing is told         └ Denied: which claim
//!   keys      a JWK set, a JWK or a PEM; what a token says about keys or algorithms is never believed
//!   revoked   clients and tokens whose identities do not count any more
//!   origin    pages that may connect from a browser
//! ```
//! Nothing here is secret but the keys, which print as their names.

mod claims;
mod jwt;
mod keys;
mod mint;
mod origin;
mod revoked;

pub use claims::{CLAIM_AUDIENCE_DEFAULT, Identity, Named};
pub use jwt::{TOKEN_BYTES_MAX, claimed_tenant};
pub use keys::{Algorithm, BadKeys, Key, Keys};
pub use mint::{Grants, PrivateKey, Wish};
pub use origin::Origins;
pub use revoked::{REVOCATIONS_MAX, Revocation, Revocations, TENANT_REVOCATIONS_MAX};

/// All that decides who comes in. Made by the control plane, replaced whole, shared by all shards.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    /// Without keys everybody is tenant `default` and may do everything.
    pub keys: Option<Keys>,
    /// Audience that a token must name.
    pub audience: String,
    /// Tokens that live longer are not accepted: a revocation is kept for as long.
    pub token_life_ms_max: u64,
    /// Who does not come in any more.
    pub revocations: Revocations,
    /// Pages that may connect.
    pub origins: Origins,
}

impl Rules {
    /// Who a token says its bearer is. `now_ms`: Unix ms.
    ///
    /// # Errors
    /// Why it is not accepted.
    pub fn identify(&self, token: &str, now_ms: u64) -> Result<Identity, Denied> {
        let keys = self.keys.as_ref().ok_or(Denied::UnknownKey)?;
        let (key, payload) = jwt::verify(token, keys)?;
        let identity = claims::read(&payload, self, now_ms)?;
        let identity = Identity { key: key.fingerprint(), ..identity };
        if self.revocations.covers(&identity, identity.client.fixed()) { Err(Denied::Revoked) } else { Ok(identity) }
    }
}

macro_rules! denials {
    ($($(#[$doc:meta])* $variant:ident $name:literal $told:expr;)*) => {
        /// Why a token is not accepted.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub enum Denied { $($(#[$doc])* $variant),* }

        impl Denied {
            /// All of them, for counters and tests.
            pub const ALL: &'static [Denied] = &[$(Denied::$variant),*];

            /// Name in logs and metrics.
            pub const fn name(self) -> &'static str {
                match self { $(Denied::$variant => $name),* }
            }

            /// What its bearer is told.
            pub const fn told(self) -> &'static str {
                match self { $(Denied::$variant => $told),* }
            }
        }
    };
}

/// Whoever cannot sign learns nothing: neither which keys there are nor what is wrong.
const NOT_ACCEPTED: &str = "the token is not accepted here: get a new one from its issuer";

denials! {
    /// No JWT of the compact form, or one with an extension that must be understood.
    Malformed "malformed" NOT_ACCEPTED;
    /// Longer than [`TOKEN_BYTES_MAX`].
    TooLarge "too_large" NOT_ACCEPTED;
    /// It names a key that is not there.
    UnknownKey "unknown_key" NOT_ACCEPTED;
    /// It names another algorithm than its key has.
    Algorithm "algorithm" NOT_ACCEPTED;
    /// Nobody who has the key signed it.
    Signature "signature" NOT_ACCEPTED;
    /// A claim is missing or is none.
    Claims "claims" "the token's claims are not as they must be: tenant, exp, client_id and capabilities, see PROTOCOL.md";
    /// It is not for this server.
    Audience "audience" "the token is for another audience: get one for this server";
    /// It has expired.
    Expired "expired" "the token has expired: get a new one";
    /// It does not count yet.
    NotYet "not_yet" "the token does not count yet: mind the clocks of issuer and server";
    /// It would live for longer than the server lets it.
    LifeTooLong "life_too_long" "the token lives too long for this server (auth_token_life_ms_max): get one that expires earlier";
    /// It, or its client, was revoked.
    Revoked "revoked" "the token was revoked: get a new one";
    /// It is another client's than the one that connects.
    OtherClient "other_client" "the token names another client: leave client out, or give the token's";
    /// It is of another tenant than the connection that shows it.
    OtherTenant "other_tenant" NOT_ACCEPTED;
}

#[cfg(test)]
mod tests;
