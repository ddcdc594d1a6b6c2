//! What knowing who a client is costs: ns, one core, warm cache. `cargo bench --bench auth`.
//!
//! ```text
//!   rights     per command: is the topic covered by one of so many grants?
//!   identify   per connection: form, signature and claims of a token, by algorithm
//!   claimed    per connection that may belong on another shard: the tenant, unverified
//! ```
//! Under `cargo test`, or with `--tiny`, every case runs a few times only, so that it cannot rot. The best of the rounds is printed.
//! A server without keys asks for none of this: one pointer that is none, for each command.

use shards::rights::{Capability, Rights};
use std::hint::black_box;
use std::time::Instant;
use tidegate::auth::{Algorithm, Keys, PrivateKey, Rules, Wish, claimed_tenant};

const NOW_S: u64 = 1_767_225_600;

fn main() {
    let has = |flag: &str| std::env::args().any(|argument| argument == flag);
    let (rounds, scale) = if has("--bench") && !has("--tiny") { (7, 1000) } else { (1, 1) };
    println!("{:<32}{:>10}", "case", "ns/op");
    let run = |name: &str, operations: u32, operation: &mut dyn FnMut() -> bool| {
        let mut best = f64::MAX;
        for _ in 0..rounds {
            let start = Instant::now();
            for _ in 0..operations * scale {
                assert!(black_box(operation()), "{name}");
            }
            best = best.min(start.elapsed().as_nanos() as f64 / f64::from(operations * scale));
        }
        println!("{name:<32}{best:>10.1}");
    };

    for grants in [1, 4, 32] {
        let mut rights = Rights::none(true);
        for n in 1..grants {
            rights.add(Capability::Publish, &format!("room-{n}/tool.*")).expect("a grant");
        }
        // The last one is it.
        rights.add(Capability::Publish, "session-*/chat.>").expect("a grant");
        run(&format!("rights, {grants} grants"), 1000, &mut || {
            rights.covers_topic(Capability::Publish, black_box("session-0042"), black_box("chat.message"))
        });
    }
    for algorithm in Algorithm::ALL {
        let key = PrivateKey::make(algorithm, "bench").expect("a key");
        let rules = Rules {
            keys: Some(Keys::read(&key.public_text()).expect("keys")),
            audience: "tidegate".into(),
            token_life_ms_max: 86_400_000,
            ..Rules::default()
        };
        let grants = ["chat.>".to_string(), "room-*/>".to_string()];
        let token = key.sign(&Wish {
            tenant: "acme",
            client: Some("ann"),
            audience: "tidegate",
            issued_s: NOW_S,
            expires_s: NOW_S + 600,
            token_id: "t-1",
            grants: &[(Capability::Publish, &grants), (Capability::Subscribe, &grants)],
        });
        let token = token.expect("a token");
        run(&format!("identify {}", algorithm.name()), 4, &mut || {
            rules.identify(black_box(&token), NOW_S * 1000).is_ok()
        });
        run(&format!("claimed tenant, {}", algorithm.name()), 100, &mut || claimed_tenant(black_box(&token)).is_some());
    }
}
