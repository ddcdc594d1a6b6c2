//! Boot over what a crash left behind.

mod world;

use storage::log::{LogConfig, LogEvent};
use world::{Files, World};

fn config() -> LogConfig {
    LogConfig::small()
}

fn fill(world: &mut World, turns: u64) {
    for turn in 0..turns {
        for session in ["a", "b", "c"] {
            let data = format!("{session}{turn}:{}", "x".repeat((turn as usize * 37) % 700));
            world.append(session, data.as_bytes());
        }
        world.settle();
    }
}

fn all(world: &mut World) -> Vec<Vec<(u64, Vec<u8>)>> {
    ["a", "b", "c"].iter().map(|session| world.read_all(session, 0)).collect()
}

#[test]
fn a_new_folder_gets_a_manifest_and_a_log() {
    let (mut world, report) = World::boot(config(), Files::default());
    assert!(report.findings.is_empty());
    world.append("a", b"1");
    world.settle();
    assert_eq!(world.read_all("a", 0), [(0, b"1".to_vec())]);
}

#[test]
fn everything_committed_is_there_after_a_crash_at_any_fill_and_again() {
    for turns in [0, 1, 5, 60, 150] {
        let (mut world, _) = World::boot(config(), Files::default());
        fill(&mut world, turns);
        let mut want = all(&mut world);
        for round in 0..3 {
            let (next, report) = World::boot(config(), world.files.clone());
            world = next;
            assert!(!report.is_corrupt() && report.torn() == 0, "{report}");
            assert_eq!(all(&mut world), want, "round {round} of {turns} turns");
            world.append("a", b"after");
            world.settle();
            want[0].push((turns + round, b"after".to_vec()));
        }
    }
}

#[test]
fn a_clean_stop_is_recognised_and_nothing_is_read_again() {
    let (mut world, _) = World::boot(config(), Files::default());
    fill(&mut world, 100);
    let want = all(&mut world);
    world.append("a", b"last");
    world.log.stop();
    assert!(!world.log.room(100), "stopping takes nothing more");
    world.settle();
    assert!(world.events.contains(&LogEvent::Stopped));
    let (mut world, report) = World::boot(config(), world.files);
    assert!(report.findings.iter().all(|finding| finding.role != storage::recovery::Role::Replayed), "{report}");
    assert_eq!(all(&mut world)[1..], want[1..]);
    assert_eq!(world.read_all("a", 100), [(100, b"last".to_vec())]);
    fill(&mut world, 1);
    assert_eq!(world.read_all("a", 101).len(), 1);
}
