//! Each rule is shown firing, and silent on the nearest thing that is right.

use crate::rules::{Finding, check};
use crate::source::Source;

fn run(files: &[(&str, &str)]) -> Vec<Finding> {
    let sources: Vec<Source> = files.iter().map(|(path, text)| Source::new(path, text.as_bytes(), false)).collect();
    check(&sources)
}

/// Rules that fire on one module of a crate whose lib.rs names it.
fn fired(path: &str, text: &str) -> Vec<&'static str> {
    let (krate, inside) = path.split_once("src/").expect("a path in a crate");
    let module = inside.split('/').next().unwrap_or_default().trim_end_matches(".rs");
    let lib = format!("//! A crate.\nmod {module};\n");
    let findings = run(&[(&format!("{krate}src/lib.rs"), &lib), (path, &format!("//! A module.\n{text}\n"))]);
    assert!(findings.iter().all(|f| f.path == path && !f.cure.is_empty()), "{findings:?}");
    findings.iter().map(|f| f.rule).collect()
}

#[test]
fn arrows_point_down() {
    assert_eq!(fired("src/net/mod.rs", "use crate::wire::Codec;"), ["arrows"]);
    assert_eq!(fired("src/wire/mod.rs", "use crate::net::Frame;"), ["arrows"]);
    assert_eq!(fired("src/disk/mod.rs", "use crate::{config::Config, net};"), ["arrows"]);
    assert_eq!(fired("src/config/mod.rs", "fn f() { crate::boot::serve(); }"), ["arrows"]);
    assert_eq!(fired("src/http/mod.rs", "use crate::wire;"), ["arrows"]);
    assert_eq!(fired("src/reactor/mod.rs", "use crate::cli;"), ["arrows"]);
    assert_eq!(fired("src/novelty/mod.rs", ""), ["arrows"]);
    assert_eq!(fired("src/reactor/mod.rs", "fn f() { loadgen::run(order) }"), ["arrows"]);
    assert_eq!(fired("storage/src/log.rs", "use shards::ids::Client;"), ["arrows"]);
    assert_eq!(fired("shards/src/shard.rs", "use tidegate::net;"), ["arrows"]);

    assert!(fired("src/cli/mod.rs", "fn f() { loadgen::run(order) }").is_empty());
    assert!(fired("src/reactor/mod.rs", "use crate::{net::Frame, wire, config::{self, Config}};").is_empty());
    assert!(fired("src/net/mod.rs", "use crate::ring; use crate::net::send; // use crate::wire").is_empty());
    assert!(fired("src/net/mod.rs", "#[cfg(test)]\nuse crate::wire;").is_empty());
    assert!(fired("shards/src/shard.rs", "use storage::ids::Offset; use crate::wire_like;").is_empty());
}

#[test]
fn pure_crates_make_no_banned_call() {
    for code in [
        "use std::fs::File;",
        "let t = std::time::Instant::now();",
        "use std::collections::HashMap;",
        "println!(\"x\");",
        "async fn f() {}",
        "tracing::info!(\"x\");",
        "std::thread::spawn(f);",
        "let x = rand::random();",
    ] {
        assert_eq!(fired("storage/src/log.rs", code), ["banned"], "{code}");
        assert_eq!(fired("shards/src/shard.rs", code), ["banned"], "{code}");
    }
    for code in [
        "use hashbrown::HashMap;",
        "let brand = operand;",
        "/// Never std::fs::File.\nfn f() {}",
        "let s = \"std::fs\";",
        "#[cfg(test)]\nmod tests { use std::collections::HashMap; }",
    ] {
        assert!(fired("storage/src/log.rs", code).is_empty(), "{code}");
    }
    assert!(fired("src/disk/mod.rs", "use std::fs::File;").is_empty());
}

#[test]
fn long_files_are_warned_and_then_refused() {
    let of = |lines: usize| {
        let text = format!("//! Long.\n{}", "\n".repeat(lines - 1));
        run(&[("src/lib.rs", &text)]).into_iter().map(|f| (f.rule, f.fatal)).collect::<Vec<_>>()
    };
    assert_eq!(of(500), []);
    assert_eq!(of(501), [("size", false)]);
    assert_eq!(of(901), [("size", true)]);
}

#[test]
fn unfinished_work_is_named() {
    for mark in [concat!("// TO", "DO later"), concat!("fn f() { to", "do!() }"), concat!("// FIX", "ME")] {
        assert_eq!(fired("src/net/mod.rs", mark), ["unfinished"], "{mark}");
    }
    assert!(fired("src/net/mod.rs", "// a mastodon").is_empty());
}

#[test]
fn paths_of_one_machine_are_named() {
    for path in [concat!("/wo", "rk/main"), concat!("/t", "mp/x"), concat!("/ro", "ot/.cargo"), concat!("/ho", "me/me")]
    {
        assert_eq!(fired("src/net/mod.rs", &format!("const P: &str = \"{path}\";")), ["machine"], "{path}");
    }
    assert!(fired("src/net/mod.rs", concat!("// benches/wo", "rk/a and ./t", "mp/b")).is_empty());
}

#[test]
fn modules_open_with_a_sentence() {
    let found = run(&[("src/lib.rs", "use std::fs;\n")]);
    assert_eq!(found.iter().map(|f| f.rule).collect::<Vec<_>>(), ["opening"]);
    assert!(run(&[("src/lib.rs", "#![warn(x)]\n\n//! A crate.\n")]).is_empty());
}

#[test]
fn big_blobs_are_refused() {
    let big = Source::new("tests/golden/big.bin", &vec![0xff; 300 << 10], false);
    assert_eq!(check(&[big]).iter().map(|f| f.rule).collect::<Vec<_>>(), ["blob"]);
    assert!(check(&[Source::new("tests/golden/small.bin", &[0xff; 10], false)]).is_empty());
}

#[test]
fn scripts_can_run_and_nothing_else_claims_to() {
    let of = |text: &str, executable| check(&[Source::new("tools/x", text.as_bytes(), executable)]).len();
    assert_eq!(of("#!/bin/sh\n", false), 1);
    assert_eq!(of("text\n", true), 1);
    assert_eq!(of("#!/bin/sh\n", true) + of("text\n", false), 0);
}

#[test]
fn files_that_nothing_compiles_are_found() {
    let files = [
        ("Cargo.toml", "[[test]]\nname = \"odd\"\npath = \"tests/odd/start.rs\"\n"),
        ("src/lib.rs", "//! L.\npub mod net;\n#[path = \"../shared/inside.rs\"]\nmod inside;\n"),
        ("src/net/mod.rs", "//! N.\nmod frame;\n"),
        ("src/net/frame.rs", "//! F.\nmod mask;\n"),
        ("src/net/frame/mask.rs", "//! M.\n"),
        ("src/net/lost.rs", "//! Lost.\n"),
        ("shared/inside.rs", "//! I.\n"),
        ("tests/sim/main.rs", "//! S.\nmod disk;\n"),
        ("tests/sim/disk.rs", "//! D.\n"),
        ("tests/sim/gone.rs", "//! G.\n"),
        ("tests/one.rs", "//! O.\n"),
        ("tests/odd/start.rs", "//! O.\n"),
    ];
    let found: Vec<String> = run(&files).into_iter().filter(|f| f.rule == "dead").map(|f| f.path).collect();
    assert_eq!(found, ["src/net/lost.rs", "tests/sim/gone.rs"]);
}
