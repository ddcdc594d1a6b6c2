//! Who comes in, for how long, and who has to go.

use super::*;
use crate::auth::{Algorithm, Keys, PrivateKey, Revocation, Revocations, Wish};

const NOW: Now = Now { mono_us: 5_000_000, wall_ms: 1_767_225_600_000 };
const WAIT_US: u64 = 10_000_000;

fn later(ms: u64) -> Now {
    Now { mono_us: NOW.mono_us + ms * 1000, wall_ms: NOW.wall_ms + ms }
}

struct World {
    key: PrivateKey,
    guard: Guard,
}

impl World {
    fn new() -> World {
        let key = PrivateKey::make(Algorithm::EdDsa, "k").unwrap();
        let guard = Guard::new(rules(&key, Revocations::default()), 64, WAIT_US, NOW);
        World { key, guard }
    }

    fn token(&self, tenant: &str, client: Option<&str>, life_s: u64, subscribe: &[&str]) -> String {
        let subscribe: Vec<String> = subscribe.iter().map(|grant| grant.to_string()).collect();
        let issued_s = NOW.wall_ms / 1000;
        let (audience, token_id) = ("tidegate", "t-1");
        let grants = [(Capability::Subscribe, subscribe.as_slice())];
        let expires_s = issued_s + life_s;
        self.key.sign(&Wish { tenant, client, audience, issued_s, expires_s, token_id, grants: &grants }).unwrap()
    }

    /// A connection that came in with a token.
    fn enter(&mut self, slot: u32, token: &str) -> ConnectionId {
        let id = ConnectionId { slot, generation: 1 };
        let Ok(Entry::Known(identity, name)) = self.guard.entry(Some(token), None, NOW) else { panic!("not let in") };
        self.guard.enter(id, identity, name.as_deref().unwrap_or("anon-1"), NOW);
        id
    }

    fn overdue(&mut self, now: Now) -> Vec<(u32, u16)> {
        let mut looked = 0;
        std::iter::from_fn(|| self.guard.next_overdue(now, &mut looked)).map(|(id, words)| (id.slot, words.0)).collect()
    }

    fn unwanted(&mut self) -> Vec<(u32, u16)> {
        let mut looked = 0;
        std::iter::from_fn(|| self.guard.next_unwanted(&mut looked)).map(|(id, words)| (id.slot, words.0)).collect()
    }
}

fn rules(key: &PrivateKey, revocations: Revocations) -> Arc<Rules> {
    let keys = Some(Keys::read(&key.public_text()).unwrap());
    let (audience, token_life_ms_max) = ("tidegate".into(), 3_600_000);
    Arc::new(Rules { keys, audience, token_life_ms_max, revocations, origins: Default::default() })
}

#[test]
fn without_keys_everybody_comes_in_and_nobody_is_kept() {
    let mut guard = Guard::new(Arc::default(), 64, WAIT_US, NOW);
    assert!(matches!(guard.entry(Some("anything"), Some("ann"), NOW), Ok(Entry::Open)));
    assert!(!guard.is_strict() && guard.next_deadline_us().is_none());
    let id = ConnectionId { slot: 0, generation: 1 };
    assert_eq!((guard.tenant_of(id), guard.is_waiting(id)), ("default", false));
    assert!(guard.allows_origin(None) && guard.allows_origin(Some("http://localhost:1")));
    assert!(!guard.allows_origin(Some("https://example.com")));
}

#[test]
fn whose_name_a_connection_has() {
    let mut world = World::new();
    let mut entry = |token_client, asked: Option<&str>| {
        let token = world.token("acme", token_client, 60, &[]);
        match world.guard.entry(Some(&token), asked, NOW) {
            Ok(Entry::Known(_, name)) => Ok(name.map(|name| name.to_string())),
            Ok(_) => panic!("somebody has shown a token"),
            Err(denied) => Err(denied),
        }
    };
    assert_eq!(entry(Some("ann"), None), Ok(Some("ann".into())));
    assert_eq!(entry(Some("ann"), Some("ann")), Ok(Some("ann".into())));
    assert_eq!(entry(Some("ann"), Some("bob")), Err(Denied::OtherClient));
    assert_eq!(entry(Some("*"), Some("bob")), Ok(Some("bob".into())));
    assert_eq!(entry(Some("*"), None), Ok(None));
    assert_eq!(entry(None, None), Ok(None));
    assert_eq!(entry(None, Some("bob")), Err(Denied::OtherClient));
    assert_eq!(world.guard.denied[Denied::OtherClient as usize], 2, "counted");
    assert!(matches!(world.guard.entry(None, Some("ann"), NOW), Ok(Entry::Waiting)));
}

#[test]
fn a_token_that_expires_takes_its_connection_with_it_and_a_new_one_keeps_it() {
    let mut world = World::new();
    let (short, long) = (world.token("acme", Some("ann"), 40, &[]), world.token("acme", Some("ann"), 80, &[]));
    let (stays, goes) = (world.enter(0, &short), world.enter(1, &short));
    assert_eq!(world.guard.tenant_of(stays), "acme");
    assert!(world.overdue(later(35_000)).is_empty(), "the wheel looks at what is further ahead more than once");
    let (client, expires_ms, _) = world.guard.renew(stays, &long, later(36_000)).unwrap();
    assert_eq!((&*client, expires_ms), ("ann", NOW.wall_ms + 80_000));
    let at = world.guard.next_deadline_us().unwrap();
    assert!((later(38_000).mono_us..=later(40_100).mono_us).contains(&at), "{at}");
    assert_eq!(world.overdue(later(40_200)), [(goes.slot, 4201)]);
    world.guard.forget(goes);
    assert!(world.overdue(later(70_000)).is_empty());
    assert_eq!(world.overdue(later(80_200)), [(stays.slot, 4201)]);
    world.guard.forget(stays);
    assert_eq!(world.guard.next_deadline_us(), None);
}

#[test]
fn whoever_shows_no_token_has_to_go_soon() {
    let mut world = World::new();
    let (slow, quick) = (ConnectionId { slot: 3, generation: 7 }, ConnectionId { slot: 4, generation: 1 });
    world.guard.wait(slow, None, NOW);
    world.guard.wait(quick, Some("bob"), NOW);
    assert!(world.guard.is_waiting(slow));
    let other = world.token("acme", Some("ann"), 60, &[]);
    assert_eq!(
        world.guard.introduce(quick, &other, NOW).map(|_| ()),
        Err(Denied::OtherClient),
        "the name of its upgrade counts"
    );
    let own = world.token("acme", Some("bob"), 60, &[]);
    let (identity, name) = world.guard.introduce(quick, &own, NOW).unwrap();
    world.guard.enter(quick, identity, &name.unwrap(), NOW);
    assert!(!world.guard.is_waiting(quick));
    assert_eq!(world.overdue(later(10_200)), [(3, 4203)]);
    let stale = ConnectionId { slot: 3, generation: 6 };
    world.guard.forget(stale);
    assert!(world.guard.is_waiting(slow), "another life of the slot");
}

#[test]
fn a_newer_token_is_of_the_same_client_and_takes_nothing_away() {
    let mut world = World::new();
    let first = world.token("acme", Some("ann"), 60, &["room-*/>"]);
    let id = world.enter(0, &first);
    let mut renew = |tenant, client, subscribe: &[&str]| {
        let token = world.token(tenant, client, 90, subscribe);
        world.guard.renew(id, &token, NOW).map(|_| ()).map_err(|refused| refused.refusal)
    };
    assert_eq!(renew("other", Some("ann"), &[">"]), Err(Refusal::BadCredential));
    assert_eq!(renew("acme", Some("bob"), &[">"]), Err(Refusal::BadCredential));
    assert_eq!(renew("acme", None, &[">"]), Err(Refusal::BadCredential));
    assert_eq!(renew("acme", Some("ann"), &["room-1/>"]), Err(Refusal::NarrowerRights));
    assert_eq!(renew("acme", Some("ann"), &["room*/>"]), Ok(()));
    assert_eq!(renew("acme", Some("*"), &[">"]), Ok(()));
    assert_eq!(world.guard.renew(id, "nothing", NOW).map(|_| ()).unwrap_err().refusal, Refusal::BadCredential);
    let nobody = ConnectionId { slot: 9, generation: 1 };
    assert!(world.guard.renew(nobody, &first, NOW).is_err());
}

#[test]
fn rules_that_change_are_held_against_everybody_who_is_there() {
    let mut world = World::new();
    let (ann, bob) = (world.token("acme", Some("ann"), 600, &[]), world.token("acme", Some("bob"), 600, &[]));
    for slot in 0..40 {
        world.enter(slot, if slot % 2 == 0 { &ann } else { &bob });
    }
    let mut revocations = Revocations::default();
    assert!(revocations.add(
        &Revocation::Client { tenant: "acme".into(), client: "ann".into() },
        NOW.wall_ms / 1000,
        u64::MAX
    ));
    let changed = rules(&world.key, revocations);
    world.guard.change(changed, NOW);
    assert_eq!(world.guard.next_deadline_us(), Some(0), "at once");
    let gone = world.unwanted();
    assert_eq!(gone, (0..40).filter(|slot| slot % 2 == 0).map(|slot| (slot, 4202)).collect::<Vec<_>>());
    gone.iter().for_each(|(slot, _)| world.guard.forget(ConnectionId { slot: *slot, generation: 1 }));
    assert!(world.unwanted().is_empty());
    assert!(matches!(world.guard.entry(Some(&ann), None, NOW), Err(Denied::Revoked)));
    // Another key, and all who came in with the old one go.
    world.key = PrivateKey::make(Algorithm::Es256, "k").unwrap();
    let changed = rules(&world.key, Revocations::default());
    world.guard.change(changed, NOW);
    assert_eq!(world.unwanted().len(), 20);
}
