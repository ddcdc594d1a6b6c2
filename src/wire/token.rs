//! Resume tokens: which client, which of its lives, until when; signed, so that nobody can make one up.
//!
//! ```text
//!   base64url( 2 · key u8 · expires_s u64 · generation u64 · epoch u64 · client_id … · mac 16 )
//!                                                                            │
//!   HMAC-SHA-256 (RFC 2104), first half, over domain · tenant · all before it
//! ```
//! The tenant is not in the token: it is the connection's, and a token of another tenant is as wrong as a forged one. At most
//! 228 characters. Version 1 has no epoch; it is believed as long as such tokens live, and says nothing of which counting it means.
//! A second key is still believed after a rotation, until the tokens it signed have expired.

use super::lives;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, Mac};
use sha2::Sha256;
use shards::command::{Claim, Command};
use shards::ids::LifeId;
use shards::names::is_name;
use shards::refusal::{Refusal, Refused};

/// Bytes of a key.
pub const KEY_BYTES: usize = 32;
const VERSION: u8 = 2;
const VERSION_BEFORE: u8 = 1;
const MAC_BYTES: usize = 16;
const HEAD_BYTES: usize = 26;
const HEAD_BYTES_BEFORE: usize = 18;
const DOMAIN: &[u8] = b"tidegate resume token 1";

/// Largest token, characters.
pub const TOKEN_BYTES_MAX: usize = (HEAD_BYTES + shards::limits::NAME_BYTES_MAX + MAC_BYTES).div_ceil(3) * 4;
const _: () = assert!(TOKEN_BYTES_MAX <= 256);

/// A key and its number.
#[derive(Clone, PartialEq, Eq)]
pub struct Key {
    /// Raised by each rotation; wraps.
    pub number: u8,
    /// Secret.
    pub secret: [u8; KEY_BYTES],
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "key {}", self.number)
    }
}

/// What a token says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Token {
    /// Client.
    pub client_id: String,
    /// Its life.
    pub life: LifeId,
}

/// Signs and verifies.
#[derive(Clone, Debug)]
pub struct Tokens {
    /// The first signs.
    keys: Vec<Key>,
    life_ms: u64,
}

impl Tokens {
    /// `keys`: at least one, the newest first. Tokens expire `life_ms` after they are signed.
    pub fn new(keys: Vec<Key>, life_ms: u64) -> Self {
        Self { keys, life_ms }
    }

    /// A token and when it expires, Unix ms.
    pub fn sign(&self, tenant: &str, client_id: &str, life: LifeId, now_ms: u64) -> (String, u64) {
        let Some(key) = self.keys.first() else { return (String::new(), 0) };
        let expires_s = now_ms.saturating_add(self.life_ms) / 1000;
        let mut bytes = Vec::with_capacity(HEAD_BYTES + client_id.len() + MAC_BYTES);
        bytes.extend_from_slice(&[VERSION, key.number]);
        bytes.extend_from_slice(&expires_s.to_be_bytes());
        bytes.extend_from_slice(&life.generation.to_be_bytes());
        bytes.extend_from_slice(&lives::shown(life.epoch).to_be_bytes());
        bytes.extend_from_slice(client_id.as_bytes());
        if let Some(mac) = mac(key, tenant, &bytes) {
            bytes.extend_from_slice(&mac.finalize().into_bytes()[..MAC_BYTES]);
        }
        (URL_SAFE_NO_PAD.encode(bytes), expires_s * 1000)
    }

    /// What the token says; `None`: it is forged, broken, another tenant's, or has expired. Which of these is not told.
    pub fn verify(&self, tenant: &str, token: &str, now_ms: u64) -> Option<Token> {
        if token.len() > TOKEN_BYTES_MAX {
            return None;
        }
        let bytes = URL_SAFE_NO_PAD.decode(token).ok()?;
        let (signed, signature) = bytes.split_at_checked(bytes.len().checked_sub(MAC_BYTES)?)?;
        let (version, number) = (*signed.first()?, *signed.get(1)?);
        let head_bytes = match version {
            VERSION => HEAD_BYTES,
            VERSION_BEFORE => HEAD_BYTES_BEFORE,
            _ => return None,
        };
        let (head, client_id) = signed.split_at_checked(head_bytes)?;
        let key = self.keys.iter().find(|key| key.number == number)?;
        // Compares in constant time.
        mac(key, tenant, signed)?.verify_truncated_left(signature).ok()?;
        let number = |at: usize| Some(u64::from_be_bytes(head.get(at..at + 8)?.try_into().ok()?));
        let (expires_s, generation) = (number(2)?, number(10)?);
        let epoch = if version == VERSION { lives::stored(number(18)?) } else { 0 };
        if expires_s.saturating_mul(1000) <= now_ms || !is_name(client_id) {
            return None;
        }
        Some(Token { client_id: std::str::from_utf8(client_id).ok()?.to_owned(), life: LifeId { generation, epoch } })
    }
}

impl Tokens {
    /// The command with its token, if it has one, replaced by what the token says; what that is lives in `space`.
    ///
    /// # Errors
    /// `bad_token`, whatever is wrong with it.
    pub fn admit<'a>(
        &self,
        tenant: &str,
        command: Command<'a>,
        now_ms: u64,
        space: &'a mut Option<Token>,
    ) -> Result<Command<'a>, Refused> {
        let Command::Resume { claim: Claim::Token(text), seen, position, attempt } = command else {
            return Ok(command);
        };
        *space = self.verify(tenant, text, now_ms);
        match space {
            Some(Token { client_id, life }) => {
                let claim = Claim::Life { client_id, life: *life };
                Ok(Command::Resume { claim, seen, position, attempt })
            }
            None => Err(Refused::field(Refusal::BadToken, "token")),
        }
    }
}

fn mac(key: &Key, tenant: &str, signed: &[u8]) -> Option<Hmac<Sha256>> {
    let mut mac = Hmac::<Sha256>::new_from_slice(&key.secret).ok()?;
    mac.update(DOMAIN);
    mac.update(&(tenant.len() as u64).to_be_bytes());
    mac.update(tenant.as_bytes());
    mac.update(signed);
    Some(mac)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW_MS: u64 = 1_700_000_000_000;
    const SEVENTH: LifeId = LifeId { generation: 7, epoch: 99 };

    #[test]
    fn a_token_of_the_version_before_names_its_generation_alone() {
        let tokens = Tokens::new(vec![key(1)], 60_000);
        let mut bytes = vec![VERSION_BEFORE, 1];
        bytes.extend_from_slice(&(NOW_MS / 1000 + 60).to_be_bytes());
        bytes.extend_from_slice(&7u64.to_be_bytes());
        bytes.extend_from_slice(b"tab-1");
        let signature = mac(&key(1), "acme", &bytes).unwrap().finalize().into_bytes();
        bytes.extend_from_slice(&signature[..MAC_BYTES]);
        let life = LifeId { generation: 7, epoch: 0 };
        let token = URL_SAFE_NO_PAD.encode(bytes);
        assert_eq!(tokens.verify("acme", &token, NOW_MS), Some(Token { client_id: "tab-1".into(), life }));
    }

    fn key(number: u8) -> Key {
        Key { number, secret: [number; KEY_BYTES] }
    }

    #[test]
    fn says_what_was_signed_until_it_expires_and_to_its_tenant_alone() {
        let tokens = Tokens::new(vec![key(1)], 60_000);
        let (token, expires_ms) = tokens.sign("acme", "tab-1", SEVENTH, NOW_MS);
        assert_eq!(expires_ms, NOW_MS + 60_000);
        assert_eq!(
            tokens.verify("acme", &token, NOW_MS + 59_999),
            Some(Token { client_id: "tab-1".into(), life: SEVENTH })
        );
        assert_eq!(tokens.verify("acme", &token, NOW_MS + 60_000), None, "expired");
        assert_eq!(tokens.verify("acme2", &token, NOW_MS), None, "another tenant");
        assert_eq!(Tokens::new(vec![key(2)], 1).verify("acme", &token, NOW_MS), None, "another server");
        let rotated = Tokens::new(vec![key(2), key(1)], 60_000);
        assert!(rotated.verify("acme", &token, NOW_MS).is_some(), "the old key is believed");
        assert_ne!(rotated.sign("acme", "tab-1", SEVENTH, NOW_MS).0, token, "the new one signs");
    }

    #[test]
    fn every_changed_byte_and_every_cut_is_found() {
        let tokens = Tokens::new(vec![key(1)], 60_000);
        let (token, _) = tokens.sign("acme", "tab-1", SEVENTH, NOW_MS);
        let bytes = URL_SAFE_NO_PAD.decode(&token).unwrap();
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut bytes = bytes.clone();
                bytes[at] ^= 1 << bit;
                assert_eq!(tokens.verify("acme", &URL_SAFE_NO_PAD.encode(&bytes), NOW_MS), None, "byte {at}");
            }
        }
        for len in 0..token.len() {
            assert_eq!(tokens.verify("acme", &token[..len], NOW_MS), None);
        }
        assert_eq!(tokens.verify("acme", &"A".repeat(10_000), NOW_MS), None);
    }

    #[test]
    fn the_longest_name_fits() {
        let tokens = Tokens::new(vec![key(1)], 60_000);
        let (token, _) =
            tokens.sign(&"t".repeat(128), &"c".repeat(128), LifeId { generation: u64::MAX, epoch: u64::MAX }, NOW_MS);
        assert!(token.len() <= TOKEN_BYTES_MAX, "{}", token.len());
        assert!(tokens.verify(&"t".repeat(128), &token, NOW_MS).is_some());
    }
}
