//! What a principal may do: grants, and what they cover. Without rights of its own a principal may do everything in its tenant.
//!
//! ```text
//!   grant       [SESSION/]WHAT          "chat.>"   "room-*/tool.call"   "room-42/>"
//!   SESSION     a name, or the beginning of one and *; left out: every session
//!   WHAT        publish, subscribe       a pattern of topics
//!               queue, entries, admin    a name, or the beginning of one and *
//! ```
//! `admin` has one grant more: `$operator`, for what concerns all tenants.
//!
//! A session is read as a whole, so a grant to read one ends in `/>`; a grant for some topics is for the pattern feed, which reads all
//! sessions. What no grant covers whole is refused: nothing is left out silently, and live events are not looked at again.

use crate::limits::NAME_BYTES_MAX;
use crate::mailbox::codec::{Reader, Writer};
use crate::names::{is_name, is_pattern, pattern_matches};
use crate::refusal::{Refusal, Refused};

/// A grant for `admin`, of what only the operator of the server may: it stands by itself, and no `*` covers it.
pub const OPERATOR: &str = "$operator";

/// Grants for one capability.
pub const GRANTS_MAX: usize = 32;

/// A kind of thing that may be allowed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Capability {
    /// Say something in a session: events, streams, being present (topic `presence`).
    Publish,
    /// Hear what is said.
    Subscribe,
    /// Work off a queue.
    Queue,
    /// Read and change entries.
    Entries,
    /// Run the tenant.
    Admin,
}

impl Capability {
    /// All of them.
    pub const ALL: [Capability; 5] =
        [Capability::Publish, Capability::Subscribe, Capability::Queue, Capability::Entries, Capability::Admin];

    /// Its name among the claims of a token.
    pub const fn name(self) -> &'static str {
        match self {
            Capability::Publish => "publish",
            Capability::Subscribe => "subscribe",
            Capability::Queue => "queue",
            Capability::Entries => "entries",
            Capability::Admin => "admin",
        }
    }

    /// Grants are patterns of topics, not of names.
    const fn is_of_topics(self) -> bool {
        matches!(self, Capability::Publish | Capability::Subscribe)
    }

    /// The refusal of what it would have allowed.
    pub const fn refused(self) -> Refused {
        let field = match self {
            Capability::Publish => "capabilities.publish",
            Capability::Subscribe => "capabilities.subscribe",
            Capability::Queue => "capabilities.queue",
            Capability::Entries => "capabilities.entries",
            Capability::Admin => "capabilities.admin",
        };
        Refused::field(Refusal::Forbidden, field)
    }
}

/// A grant that is none, or one too many.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BadGrant;

#[derive(Clone, PartialEq, Eq, Debug)]
struct Grant {
    session: Box<str>,
    what: Box<str>,
}

impl Grant {
    fn read(capability: Capability, text: &str) -> Option<Grant> {
        if capability == Capability::Admin && text == OPERATOR {
            return Some(Grant { session: "*".into(), what: OPERATOR.into() });
        }
        let (session, what) = text.split_once('/').unwrap_or(("*", text));
        let is_good = match capability.is_of_topics() {
            true => is_pattern(what.as_bytes()),
            false => is_beginning(what),
        };
        (is_good && is_beginning(session)).then(|| Grant { session: session.into(), what: what.into() })
    }

    fn covers(&self, capability: Capability, other: &Grant) -> bool {
        let what = match capability.is_of_topics() {
            true => pattern_covers(&self.what, &other.what),
            false => beginning_covers(&self.what, &other.what),
        };
        what && beginning_covers(&self.session, &other.session)
    }
}

/// What one principal may do. Made once for each token, shared by all that happens in its name.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Rights {
    grants: [Vec<Grant>; Capability::ALL.len()],
    /// Its client id is the token's: it may not come back as another client.
    bound: bool,
}

impl Rights {
    /// None at all. `bound`: the principal has one client id and no other.
    pub fn none(bound: bool) -> Self {
        Self { bound, ..Self::default() }
    }

    /// Adds a grant.
    ///
    /// # Errors
    /// The text is no grant, or there are as many as may be.
    pub fn add(&mut self, capability: Capability, text: &str) -> Result<(), BadGrant> {
        let grants = &mut self.grants[capability as usize];
        if grants.len() == GRANTS_MAX {
            return Err(BadGrant);
        }
        grants.push(Grant::read(capability, text).ok_or(BadGrant)?);
        Ok(())
    }

    /// May it come back as another client than the one it is?
    pub fn is_bound(&self) -> bool {
        self.bound
    }

    /// Does it cover something of the session?
    pub fn touches(&self, capability: Capability, session: &str) -> bool {
        self.of(capability).iter().any(|grant| beginning_matches(&grant.session, session))
    }

    /// Does it cover the topic in the session?
    pub fn covers_topic(&self, capability: Capability, session: &str, topic: &str) -> bool {
        let covers = |grant: &Grant| beginning_matches(&grant.session, session) && pattern_matches(&grant.what, topic);
        self.of(capability).iter().any(covers)
    }

    /// Does it cover all topics of the session?
    pub fn covers_session(&self, capability: Capability, session: &str) -> bool {
        self.of(capability).iter().any(|grant| &*grant.what == ">" && beginning_matches(&grant.session, session))
    }

    /// Does it cover the pattern in all sessions?
    pub fn covers_pattern(&self, capability: Capability, pattern: &str) -> bool {
        let covers = |grant: &Grant| &*grant.session == "*" && pattern_covers(&grant.what, pattern);
        self.of(capability).iter().any(covers)
    }

    /// Does it cover the name, of one session or, without one, of the tenant?
    pub fn covers_name(&self, capability: Capability, session: Option<&str>, name: &str) -> bool {
        let covers = |grant: &Grant| {
            let there = session.map_or(&*grant.session == "*", |session| beginning_matches(&grant.session, session));
            there && beginning_matches(&grant.what, name)
        };
        self.of(capability).iter().any(covers)
    }

    /// Does it cover, in this session, every name that begins with `prefix`?
    pub fn covers_prefix(&self, capability: Capability, session: &str, prefix: &str) -> bool {
        let covers = |grant: &Grant| {
            let all = grant.what.strip_suffix('*').is_some_and(|start| prefix.starts_with(start));
            all && beginning_matches(&grant.session, session)
        };
        self.of(capability).iter().any(covers)
    }

    /// Is it the operator's?
    pub fn is_operator(&self) -> bool {
        self.of(Capability::Admin).iter().any(|grant| &*grant.what == OPERATOR)
    }

    /// Does it cover all that `other` covers?
    pub fn covers(&self, capability: Capability, other: &Rights) -> bool {
        let covered = |theirs: &Grant| self.of(capability).iter().any(|own| own.covers(capability, theirs));
        other.of(capability).iter().all(covered)
    }

    fn of(&self, capability: Capability) -> &[Grant] {
        &self.grants[capability as usize]
    }

    /// Writes the grants of a capability into mail.
    pub(crate) fn put(&self, w: &mut Writer<'_>, capability: Capability) {
        let grants = self.of(capability);
        w.u16(grants.len() as u16);
        for grant in grants {
            w.text(&grant.session).text(&grant.what);
        }
    }

    /// Reads what [`Rights::put`] wrote: rights to this and nothing else.
    pub(crate) fn get(r: &mut Reader<'_>, capability: Capability) -> Rights {
        let mut rights = Rights::none(true);
        let count = r.u16();
        rights.grants[capability as usize] =
            (0..count).map(|_| Grant { session: r.text().into(), what: r.text().into() }).collect();
        rights
    }
}

/// A name, or the beginning of one and `*`.
fn is_beginning(text: &str) -> bool {
    let name = text.strip_suffix('*').unwrap_or(text);
    text.len() <= NAME_BYTES_MAX && (text == "*" || is_name(name.as_bytes()))
}

fn beginning_matches(beginning: &str, name: &str) -> bool {
    match beginning.strip_suffix('*') {
        Some(start) => name.starts_with(start),
        None => beginning == name,
    }
}

/// Whether every name that `narrow` matches is matched by `wide`.
fn beginning_covers(wide: &str, narrow: &str) -> bool {
    match wide.strip_suffix('*') {
        Some(start) => narrow.strip_suffix('*').unwrap_or(narrow).starts_with(start),
        None => wide == narrow,
    }
}

/// Whether every topic that `narrow` matches is matched by `wide`.
fn pattern_covers(wide: &str, narrow: &str) -> bool {
    let mut theirs = narrow.split('.');
    for own in wide.split('.') {
        let Some(token) = theirs.next() else { return false };
        match own {
            // One token or more, whatever they are.
            ">" => return true,
            "*" if token != ">" => {}
            _ if own == token => {}
            _ => return false,
        }
    }
    theirs.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn rights(capability: Capability, grants: &[&str]) -> Rights {
        let mut rights = Rights::none(true);
        for grant in grants {
            rights.add(capability, grant).unwrap_or_else(|_| panic!("{grant}"));
        }
        rights
    }

    #[test]
    fn topics_sessions_patterns_and_names() {
        let own = rights(Capability::Publish, &["chat.>", "room-*/tool.call", "audit:7/>"]);
        let topic = |session, topic| own.covers_topic(Capability::Publish, session, topic);
        assert!(topic("any", "chat.message") && topic("room-1", "tool.call") && topic("audit:7", "x.y.z"));
        assert!(!topic("any", "tool.call") && !topic("room", "tool.call") && !topic("room-1", "tool.call.x"));
        assert!(!topic("audit:71", "x"), "a name is not a beginning");
        assert!(!own.covers_topic(Capability::Subscribe, "any", "chat.message"), "another capability");
        assert!(own.touches(Capability::Publish, "any") && !own.touches(Capability::Admin, "any"));

        let own = rights(Capability::Subscribe, &["room-*/>", "chat.*", "mine/chat.>"]);
        assert!(own.covers_session(Capability::Subscribe, "room-9"));
        assert!(!own.covers_session(Capability::Subscribe, "mine"), "some topics are not the session");
        let pattern = |pattern| own.covers_pattern(Capability::Subscribe, pattern);
        assert!(pattern("chat.*") && pattern("chat.message"));
        assert!(!pattern("chat.>") && !pattern(">") && !pattern("*.message") && !pattern("chat"));

        let own = rights(Capability::Queue, &["llm-*", "s1/only"]);
        let name = |session, name| own.covers_name(Capability::Queue, session, name);
        assert!(name(None, "llm-fast") && name(Some("any"), "llm-fast") && name(Some("s1"), "only"));
        assert!(!name(None, "only") && !name(Some("s2"), "only") && !name(None, "llm"));
        let prefix = |session, prefix| own.covers_prefix(Capability::Queue, session, prefix);
        assert!(prefix("any", "llm-") && prefix("any", "llm-fast"));
        assert!(!prefix("any", "llm") && !prefix("s1", "only"), "a name is not every name that begins so");
    }

    #[test]
    fn what_is_no_grant_is_refused_and_there_is_a_bound() {
        let mut own = Rights::none(false);
        for (capability, bad) in [
            (Capability::Publish, ""),
            (Capability::Publish, "a..b"),
            (Capability::Publish, "/a"),
            (Capability::Publish, "s/"),
            (Capability::Publish, "a b/c"),
            (Capability::Publish, "s*t/a"),
            (Capability::Subscribe, "s/t/u"),
            (Capability::Queue, "q*q"),
            (Capability::Admin, ">"),
            (Capability::Entries, "$own"),
        ] {
            assert_eq!(own.add(capability, bad), Err(BadGrant), "{bad}");
        }
        for n in 0..GRANTS_MAX {
            own.add(Capability::Entries, &format!("k{n}")).unwrap();
        }
        assert_eq!(own.add(Capability::Entries, "one-more"), Err(BadGrant));
    }

    fn pattern() -> impl Strategy<Value = String> {
        let token = prop_oneof![Just("a"), Just("b"), Just("*")];
        (proptest::collection::vec(token, 1..4), any::<bool>()).prop_map(|(tokens, open)| {
            let mut text = tokens.join(".");
            if open {
                text.push_str(".>");
            }
            text
        })
    }

    proptest! {
        /// Against all topics of up to five tokens over three letters.
        #[test]
        fn a_pattern_covers_another_where_it_matches_all_that_the_other_does(wide in pattern(), narrow in pattern()) {
            let mut covers = true;
            for length in 1..=5u32 {
                for number in 0..3usize.pow(length) {
                    let mut rest = number;
                    let tokens: Vec<&str> = (0..length).map(|_| {
                        let token = ["a", "b", "c"][rest % 3];
                        rest /= 3;
                        token
                    }).collect();
                    let topic = tokens.join(".");
                    covers &= !pattern_matches(&narrow, &topic) || pattern_matches(&wide, &topic);
                }
            }
            prop_assert_eq!(pattern_covers(&wide, &narrow), covers, "{} {}", wide, narrow);
        }

        #[test]
        fn grants_come_back_from_mail(sessions in proptest::collection::vec("[a-z]{1,4}\\*?", 0..4), topic in pattern()) {
            let mut own = Rights::none(true);
            for session in &sessions {
                own.add(Capability::Publish, &format!("{session}/{topic}")).unwrap();
            }
            let mut bytes = Vec::new();
            own.put(&mut Writer(&mut bytes), Capability::Publish);
            prop_assert_eq!(Rights::get(&mut Reader(&bytes), Capability::Publish), own);
        }
    }

    #[test]
    fn fewer_rights_are_told_from_more() {
        let wide = rights(Capability::Subscribe, &["room-*/>", "chat.>"]);
        for (narrow, covered) in [
            (&["room-1/>"][..], true),
            (&["room-1*/a.b", "chat.message"], true),
            (&["room*/>"], false),
            (&["chat.>", "tool.call"], false),
            (&[], true),
        ] {
            assert_eq!(
                wide.covers(Capability::Subscribe, &rights(Capability::Subscribe, narrow)),
                covered,
                "{narrow:?}"
            );
        }
    }
}
