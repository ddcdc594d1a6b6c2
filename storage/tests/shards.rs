//! Another number of shards: every session goes on where it was, whoever owns it now, and its history reads as before.

mod world;

use std::collections::BTreeMap;
use storage::log::{Log, LogConfig};
use storage::recovery::recover;
use world::{Files, KEY, TENANT, World};

/// A folder served by several logs.
struct Cluster {
    worlds: Vec<World>,
    files: Files,
}

impl Cluster {
    fn boot(mut files: Files, shards: u16) -> Cluster {
        let recovered = recover(&mut files, shards, KEY).expect("the folder recovers");
        assert!(!recovered.report.is_corrupt());
        let mut worlds = vec![];
        for log in recovered.logs {
            let world = World::new(Log::new(LogConfig::small(), log), std::mem::take(&mut files));
            worlds.push(world);
            files = std::mem::take(&mut worlds.last_mut().unwrap().files);
        }
        Cluster { worlds, files }
    }

    fn at<T>(&mut self, session: &str, act: impl FnOnce(&mut World) -> T) -> T {
        let slice = KEY.partition(TENANT, session).slice();
        let shard = usize::from(slice.0) % self.worlds.len();
        self.shard(shard, act)
    }

    fn shard<T>(&mut self, shard: usize, act: impl FnOnce(&mut World) -> T) -> T {
        let world = &mut self.worlds[shard];
        world.files = std::mem::take(&mut self.files);
        let done = act(world);
        world.settle();
        self.files = std::mem::take(&mut world.files);
        done
    }
}

fn session(number: u64) -> String {
    format!("session-{}", number % 23)
}

#[test]
fn sessions_survive_every_change_of_the_number_of_shards() {
    let mut model: BTreeMap<String, Vec<Vec<u8>>> = BTreeMap::new();
    let mut files = Files::default();
    let mut number = 0;
    for (life, shards) in [3u16, 2, 2, 5, 1, 4].into_iter().enumerate() {
        let mut cluster = Cluster::boot(files, shards);
        for (name, events) in &model {
            let read = cluster.at(name, |world| world.read_all(name, 0));
            let data: Vec<_> = read.iter().map(|(_, data)| data.clone()).collect();
            assert_eq!(&data, events, "{name} in life {life}");
            assert_eq!(
                read.iter().map(|(offset, _)| *offset).collect::<Vec<_>>(),
                (0..events.len() as u64).collect::<Vec<_>>()
            );
        }
        // Each slice is scanned by its owner alone, in order.
        let mut scanned: BTreeMap<String, u64> = BTreeMap::new();
        for shard in 0..cluster.worlds.len() {
            for (name, offset) in cluster.shard(shard, |world| world.scan_all()) {
                let next = scanned.entry(name.clone()).or_insert(0);
                assert_eq!(*next, offset, "{name} in life {life}");
                *next += 1;
            }
        }
        assert_eq!(scanned.values().sum::<u64>(), model.values().map(|events| events.len() as u64).sum::<u64>());
        for _ in 0..150 {
            let (name, data) =
                (session(number), format!("{number}:{}", "y".repeat(number as usize % 700)).into_bytes());
            let (offset, _) = cluster.at(&name, |world| world.append(&name, &data));
            let events = model.entry(name).or_default();
            assert_eq!(offset, events.len() as u64);
            events.push(data);
            number += 1;
        }
        if life == 2 {
            // One clean stop among the crashes.
            for shard in 0..cluster.worlds.len() {
                cluster.shard(shard, |world| world.log.stop());
                assert!(cluster.worlds[shard].log.stopped());
            }
        }
        files = cluster.files;
    }
}

/// Found by the crash test: a shard has only those segments of an old log that hold slices of its own, and took the jump over
/// the others for history that retention had removed.
#[test]
fn regression_segments_of_others_in_an_old_log_are_no_gap() {
    let mut files = Files::default();
    for number in 0..12 {
        // Each life is a segment, with one session in it.
        let mut cluster = Cluster::boot(files, 1);
        cluster.shard(0, |world| world.append(&session(number), b"1"));
        files = cluster.files;
    }
    let mut cluster = Cluster::boot(files, 3);
    let mut found = 0;
    for shard in 0..3 {
        found += cluster.shard(shard, |world| world.scan_all().len());
        assert_eq!(cluster.worlds[shard].skips, 0, "shard {shard}");
    }
    assert_eq!(found, 12);
}

#[test]
fn a_change_of_shards_that_crashes_at_any_write_is_repeated() {
    let mut cluster = Cluster::boot(Files::default(), 3);
    for number in 0..60 {
        let name = session(number);
        cluster.at(&name, |world| world.append(&name, b"1"));
    }
    let files = cluster.files;
    let mut budget = 0;
    loop {
        let mut dying = Dying { files: files.clone(), writes: budget };
        let done = recover(&mut dying, 2, KEY).is_ok();
        let mut cluster = Cluster::boot(dying.files, 2);
        let mut total = 0;
        for number in 0..23 {
            let name = session(number);
            total += cluster.at(&name, |world| world.read_all(&name, 0).len());
        }
        assert_eq!(total, 60, "crash after {budget} changes");
        if done {
            assert!(budget > 5, "the switch takes several writes");
            return;
        }
        budget += 1;
    }
}

/// A folder whose machine loses power after so many changes.
struct Dying {
    files: Files,
    writes: usize,
}

impl Dying {
    fn alive(&mut self) -> Result<(), storage::disk::DiskFault> {
        self.writes = self.writes.checked_sub(1).ok_or(storage::disk::DiskFault::Io { errno: 5 })?;
        Ok(())
    }
}

impl storage::recovery::Folder for Dying {
    type Bytes = Vec<u8>;

    fn list(&self) -> Result<Vec<storage::disk::FileId>, storage::disk::DiskFault> {
        self.files.list()
    }

    fn read(&self, file: storage::disk::FileId) -> Result<Vec<u8>, storage::disk::DiskFault> {
        self.files.read(file)
    }

    fn write_atomic(&mut self, file: storage::disk::FileId, bytes: &[u8]) -> Result<(), storage::disk::DiskFault> {
        self.alive()?;
        self.files.write_atomic(file, bytes)
    }

    fn harden(&mut self, file: storage::disk::FileId, at: u64, bytes: &[u8]) -> Result<(), storage::disk::DiskFault> {
        self.alive()?;
        self.files.harden(file, at, bytes)
    }

    fn remove(&mut self, file: storage::disk::FileId) -> Result<(), storage::disk::DiskFault> {
        self.alive()?;
        self.files.remove(file)
    }
}
