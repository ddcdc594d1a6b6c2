//! Who does not come in any more although a token says so: by client, or token by token.
//!
//! ```text
//!   client acme tab-1 1767225600 1767312000      tokens of this client that were issued up to then do not count, nor such as do not
//!   token  acme t-42  1767225600 1767312000      say when; this token does not count
//!                     revoked s  kept until s    by then every token that it could mean has expired
//! ```
//! The file is replaced whole; who writes it holds its lock. A line that is none makes the file unusable: better nobody comes in
//! than those who were to stay out.

use super::Identity;
use shards::names::is_name;
use std::collections::HashMap;
use std::fmt::Write as _;

/// Revocations that are kept at once. Whoever has to revoke more changes the key.
pub const REVOCATIONS_MAX: usize = 65_536;
/// Of them those that a tenant makes by itself, so that it takes no other's room.
pub const TENANT_REVOCATIONS_MAX: usize = 4096;

/// One revocation.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Revocation {
    /// All tokens of a client that were issued until now.
    Client {
        /// Tenant.
        tenant: String,
        /// Client.
        client: String,
    },
    /// One token.
    Token {
        /// Tenant.
        tenant: String,
        /// Its `jti`.
        token: String,
    },
}

impl Revocation {
    /// Whose it is.
    pub fn tenant(&self) -> &str {
        let (Revocation::Client { tenant, .. } | Revocation::Token { tenant, .. }) = self;
        tenant
    }
}

/// All that are kept.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Revocations {
    /// Tenant and client; revoked when, kept until when. Unix s.
    clients: HashMap<(Box<str>, Box<str>), (u64, u64)>,
    /// Tenant and token.
    tokens: HashMap<(Box<str>, Box<str>), (u64, u64)>,
}

impl Revocations {
    /// Reads the file.
    ///
    /// # Errors
    /// A line that is none, by its number.
    pub fn read(text: &str, now_s: u64) -> Result<Revocations, usize> {
        let mut all = Revocations::default();
        for (at, line) in text.lines().enumerate() {
            let mut words = line.split(' ');
            let mut word = || words.next().ok_or(at + 1);
            let (kind, tenant, name) = (word()?, word()?, word()?);
            let (when, until) = (word()?, word()?);
            let list = match kind {
                "client" => &mut all.clients,
                "token" => &mut all.tokens,
                _ => return Err(at + 1),
            };
            let (Ok(when), Ok(until)) = (when.parse(), until.parse::<u64>()) else { return Err(at + 1) };
            if words.next().is_some() || !is_name(tenant.as_bytes()) || !is_name(name.as_bytes()) {
                return Err(at + 1);
            }
            if until > now_s {
                list.insert((tenant.into(), name.into()), (when, until));
            }
        }
        Ok(all)
    }

    /// As text that [`Revocations::read`] takes, in an order of its own.
    pub fn text(&self) -> String {
        let mut lines = Vec::with_capacity(self.len());
        for (kind, list) in [("client", &self.clients), ("token", &self.tokens)] {
            for ((tenant, name), (when, until)) in list {
                lines.push(format!("{kind} {tenant} {name} {when} {until}"));
            }
        }
        lines.sort_unstable();
        lines.iter().fold(String::new(), |mut text, line| {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{line}");
            text
        })
    }

    /// Revokes. `false`: there are as many as may be kept.
    pub fn add(&mut self, revocation: &Revocation, now_s: u64, until_s: u64) -> bool {
        let full = self.len() >= REVOCATIONS_MAX;
        let (list, tenant, name) = match revocation {
            Revocation::Client { tenant, client } => (&mut self.clients, tenant, client),
            Revocation::Token { tenant, token } => (&mut self.tokens, tenant, token),
        };
        let key = (tenant.as_str().into(), name.as_str().into());
        if full && !list.contains_key(&key) {
            return false;
        }
        list.insert(key, (now_s, until_s));
        true
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.clients.len() + self.tokens.len()
    }

    /// How many of a tenant.
    pub fn count(&self, tenant: &str) -> usize {
        self.clients.keys().chain(self.tokens.keys()).filter(|(of, _)| **of == *tenant).count()
    }

    /// None?
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Does the identity no longer count? `client`: the client id that its bearer has, if that is known.
    pub fn covers(&self, identity: &Identity, client: Option<&str>) -> bool {
        // Nearly always: nothing to look up, nothing to allocate.
        if self.is_empty() {
            return false;
        }
        let key = |name: &str| (Box::from(&*identity.tenant), Box::from(name));
        let by_client = client.and_then(|client| self.clients.get(&key(client)));
        let by_token = identity.token_id.as_deref().and_then(|token| self.tokens.get(&key(token)));
        by_client.is_some_and(|(when, _)| identity.issued_s <= *when) || by_token.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::Named;
    use shards::rights::Rights;
    use std::sync::Arc;

    fn identity(issued_s: u64, token_id: Option<&str>) -> Identity {
        Identity {
            tenant: "acme".into(),
            client: Named::Any,
            rights: Arc::new(Rights::none(false)),
            expires_ms: 0,
            issued_s,
            token_id: token_id.map(Into::into),
            key: 0,
        }
    }

    #[test]
    fn what_was_issued_up_to_then_does_not_count_and_comes_back_from_its_file() {
        let mut all = Revocations::default();
        assert!(!all.covers(&identity(5, Some("t")), Some("ann")));
        assert!(all.add(&Revocation::Client { tenant: "acme".into(), client: "ann".into() }, 100, 200));
        assert!(all.add(&Revocation::Token { tenant: "acme".into(), token: "t-1".into() }, 100, 300));
        for all in [all.clone(), Revocations::read(&all.text(), 150).unwrap()] {
            assert!(all.covers(&identity(100, None), Some("ann")), "the same second");
            assert!(all.covers(&identity(0, None), Some("ann")), "it does not say when");
            assert!(!all.covers(&identity(101, None), Some("ann")), "a new token");
            assert!(!all.covers(&identity(100, None), Some("bob")) && !all.covers(&identity(100, None), None));
            assert!(all.covers(&identity(101, Some("t-1")), Some("bob")));
            let other = Identity { tenant: "other".into(), ..identity(1, Some("t-1")) };
            assert!(!all.covers(&other, Some("ann")), "another tenant's");
        }
        assert_eq!(Revocations::read(&all.text(), 250).unwrap().len(), 1, "what is over is forgotten");
    }

    #[test]
    fn a_line_that_is_none_is_named_and_there_is_a_bound() {
        for (text, line) in [
            ("client acme ann 1 2\nclient acme", 2),
            ("nobody acme ann 1 2", 1),
            ("client ac/me ann 1 2", 1),
            ("token acme t x 2", 1),
            ("token acme t 1 2 3", 1),
            ("\n", 1),
        ] {
            assert_eq!(Revocations::read(text, 0), Err(line), "{text:?}");
        }
        let mut all = Revocations::default();
        let token = |n: usize| Revocation::Token { tenant: "t".into(), token: format!("{n}") };
        assert!((0..REVOCATIONS_MAX).all(|n| all.add(&token(n), 1, 2)));
        assert!(!all.add(&token(REVOCATIONS_MAX), 1, 2) && all.add(&token(0), 1, 2));
    }
}
