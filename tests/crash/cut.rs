//! What a power cut leaves: the folder as it began, and the server's own journal up to some point.
//!
//! ```text
//!   folder before the run ─┐
//!                          ├─► replay ─► Disk { durable bytes, changes that no sync covered, names } ─► settle ─► folder
//!   journal[..cut] ────────┘                                     each unsynced 512-byte sector there or not,
//!                                                                each unsynced name there or not
//! ```
//! Where the process dies and the power stays, all that the kernel shows lives on and is still as little durable as it was:
//! the next round begins with that disk.
//!
//! A sync covers the writes that had *ended* when it began, and the one it was linked behind; the journal says both.

use crate::random::Random;
use std::collections::BTreeMap;

/// Files by name.
pub type Folder = BTreeMap<String, Vec<u8>>;

/// A disk keeps or loses this much at once.
const SECTOR_BYTES: usize = 512;

/// One entry of the journal; the layout is that of `src/disk/recorder.rs`.
struct Entry<'a> {
    kind: u8,
    number: u64,
    at: u64,
    extra: u64,
    name: &'a str,
    bytes: &'a [u8],
}

/// The journal cut into entries, each with the byte after it. What a kill left of the last one is no entry.
fn entries(journal: &[u8]) -> Vec<(u64, Entry<'_>)> {
    let mut all = Vec::new();
    let mut at = 0;
    while let Some(head) = journal.get(at..at + 4) {
        let length = u32::from_le_bytes(head.try_into().expect("four bytes")) as usize;
        let Some(entry) = journal.get(at + 4..at + 4 + length) else { break };
        let number = |from: usize| u64::from_le_bytes(entry[from..from + 8].try_into().expect("eight bytes"));
        let name_bytes = usize::from(u16::from_le_bytes([entry[25], entry[26]]));
        let (name, bytes) = entry[27..].split_at(name_bytes);
        let name = std::str::from_utf8(name).expect("names of files are text");
        at += 4 + length;
        let (number, place, extra) = (number(1), number(9), number(17));
        all.push((at as u64, Entry { kind: entry[0], number, at: place, extra, name, bytes }));
    }
    all
}

/// Byte positions in the journal after which a cut may come, oldest first.
pub fn ends(journal: &[u8]) -> Vec<u64> {
    entries(journal).into_iter().map(|(end, _)| end).collect()
}

#[derive(Clone)]
enum Change {
    Write { number: u64, at: usize, bytes: Vec<u8>, ended: bool },
    Length(usize),
}

#[derive(Clone, Default)]
struct Inode {
    durable: Vec<u8>,
    unsynced: Vec<Change>,
}

#[derive(Clone)]
enum NameChange {
    Link(String, usize),
    Rename(String, String, usize),
    Unlink(String),
}

#[derive(Clone)]
enum Sync {
    File { inode: usize, covers: usize, linked: u64 },
    Names { covers: usize },
}

/// A disk in the middle of things.
#[derive(Clone, Default)]
pub struct Disk {
    inodes: Vec<Inode>,
    names: BTreeMap<String, usize>,
    names_durable: BTreeMap<String, usize>,
    name_changes: Vec<NameChange>,
    /// Name changes that became durable, ever: what a sync covers is counted from the beginning.
    names_settled: usize,
    syncs: BTreeMap<u64, Sync>,
    /// Syncs of commits that are to be taken for never answered: the alarm must ring.
    pub forget_commit_syncs: bool,
}

fn put(file: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    if file.len() < at + bytes.len() {
        file.resize(at + bytes.len(), 0);
    }
    file[at..at + bytes.len()].copy_from_slice(bytes);
}

fn apply(file: &mut Vec<u8>, change: &Change) {
    match change {
        Change::Write { at, bytes, .. } => put(file, *at, bytes),
        Change::Length(length) => file.resize(*length, 0),
    }
}

fn rename(names: &mut BTreeMap<String, usize>, change: &NameChange) {
    match change {
        NameChange::Link(name, inode) => {
            names.insert(name.clone(), *inode);
        }
        NameChange::Rename(from, to, inode) => {
            names.remove(from);
            names.insert(to.clone(), *inode);
        }
        NameChange::Unlink(name) => {
            names.remove(name);
        }
    }
}

impl Disk {
    /// All of `folder` is durable.
    pub fn new(folder: &Folder) -> Self {
        let mut disk = Self::default();
        for (name, bytes) in folder {
            disk.names.insert(name.clone(), disk.inodes.len());
            disk.inodes.push(Inode { durable: bytes.clone(), unsynced: Vec::new() });
        }
        disk.names_durable = disk.names.clone();
        disk
    }

    /// Goes on with the entries of `journal` that end at or before byte `cut`.
    pub fn replay(&mut self, journal: &[u8], cut: u64) {
        for (end, entry) in entries(journal) {
            if end > cut {
                break;
            }
            self.take(&entry);
        }
    }

    fn inode(&mut self, name: &str) -> usize {
        *self.names.get(name).unwrap_or_else(|| panic!("the journal names {name}, which it never made"))
    }

    fn change_name(&mut self, change: NameChange) {
        rename(&mut self.names, &change);
        self.name_changes.push(change);
    }

    fn take(&mut self, entry: &Entry<'_>) {
        match entry.kind {
            1 | 2 => {
                let bytes = if entry.kind == 1 { entry.bytes.to_vec() } else { vec![0; entry.extra as usize] };
                let inode = self.inode(entry.name);
                let change = Change::Write { number: entry.number, at: entry.at as usize, bytes, ended: false };
                self.inodes[inode].unsynced.push(change);
            }
            3 => {
                for inode in &mut self.inodes {
                    for change in &mut inode.unsynced {
                        if let Change::Write { number, ended, .. } = change
                            && *number == entry.number
                        {
                            *ended = true;
                        }
                    }
                }
            }
            4 => {
                let inode = self.inode(entry.name);
                if self.forget_commit_syncs && entry.extra != 0 {
                    return;
                }
                // What ended before the sync began moves to the front, in order: a prefix is all that a sync names.
                let unsynced = std::mem::take(&mut self.inodes[inode].unsynced);
                let (ended, open): (Vec<Change>, Vec<Change>) =
                    unsynced.into_iter().partition(|c| !matches!(c, Change::Write { ended: false, .. }));
                let covers = ended.len();
                self.inodes[inode].unsynced = ended.into_iter().chain(open).collect();
                self.syncs.insert(entry.number, Sync::File { inode, covers, linked: entry.extra });
            }
            5 => match self.syncs.remove(&entry.number) {
                Some(Sync::File { inode, covers, linked }) => self.file_synced(inode, covers, linked),
                Some(Sync::Names { covers }) => {
                    while self.names_settled < covers {
                        let change = self.name_changes.remove(0);
                        rename(&mut self.names_durable, &change);
                        self.names_settled += 1;
                    }
                }
                None => {}
            },
            6 => {
                let covers = self.names_settled + self.name_changes.len();
                self.syncs.insert(entry.number, Sync::Names { covers });
            }
            7 => match self.names.get(entry.name).copied() {
                Some(inode) => self.inodes[inode].unsynced.push(Change::Length(0)),
                None => {
                    self.inodes.push(Inode::default());
                    self.change_name(NameChange::Link(entry.name.to_owned(), self.inodes.len() - 1));
                }
            },
            8 => {
                let inode = self.inode(entry.name);
                self.inodes[inode].unsynced.push(Change::Length(entry.at as usize));
            }
            9 => {
                let to = std::str::from_utf8(entry.bytes).expect("names of files are text");
                let inode = self.inode(entry.name);
                self.change_name(NameChange::Rename(entry.name.to_owned(), to.to_owned(), inode));
            }
            10 => {
                // Probes of the boot are made without an entry.
                if self.names.contains_key(entry.name) {
                    self.change_name(NameChange::Unlink(entry.name.to_owned()));
                }
            }
            kind => panic!("the journal has an entry of kind {kind}"),
        }
    }

    /// A sync that ends while another of the same file is open makes that one's prefix shorter.
    fn file_synced(&mut self, inode: usize, covers: usize, linked: u64) {
        let file = &mut self.inodes[inode];
        let mut left = Vec::new();
        let mut settled = Vec::new();
        for (index, change) in std::mem::take(&mut file.unsynced).into_iter().enumerate() {
            let own = matches!(change, Change::Write { number, .. } if number == linked && linked != 0);
            if index < covers || own {
                apply(&mut file.durable, &change);
                settled.push(index);
            } else {
                left.push(change);
            }
        }
        file.unsynced = left;
        for sync in self.syncs.values_mut() {
            if let Sync::File { inode: of, covers, .. } = sync
                && *of == inode
            {
                *covers -= settled.iter().filter(|index| **index < *covers).count();
            }
        }
    }

    /// The process died and the power stayed: the next one is shown `seen`, and what no sync covered still hangs by it.
    /// `None` where a name changed of which the journal holds nothing.
    pub fn outlive(mut self, seen: &Folder) -> Option<Self> {
        if !self.names.keys().eq(seen.keys()) {
            return None;
        }
        self.syncs.clear();
        for (name, bytes) in seen {
            let file = &mut self.inodes[self.names[name]];
            file.unsynced.clear();
            if file.durable.len() != bytes.len() {
                file.unsynced.push(Change::Length(bytes.len()));
            }
            for (index, sector) in bytes.chunks(SECTOR_BYTES).enumerate() {
                let at = index * SECTOR_BYTES;
                if file.durable.get(at..at + sector.len()) != Some(sector) {
                    file.unsynced.push(Change::Write { number: 0, at, bytes: sector.to_vec(), ended: true });
                }
            }
        }
        Some(self)
    }

    /// Cuts the power. What was never synced is drawn from `random`.
    pub fn settle(mut self, random: &mut Random) -> Folder {
        // One draw for the mood of this cut: everything survives, nothing does, or each piece by itself.
        let kept_per_mille = *random.pick(&[0, 0, 100, 500, 500, 900, 1000]);
        if random.chance(500) {
            let kept = random.index(self.name_changes.len() + 1);
            for change in &self.name_changes[..kept] {
                rename(&mut self.names_durable, change);
            }
        } else {
            for change in &self.name_changes {
                if random.chance(kept_per_mille) {
                    rename(&mut self.names_durable, change);
                }
            }
        }
        for inode in &mut self.inodes {
            for change in std::mem::take(&mut inode.unsynced) {
                match &change {
                    Change::Length(_) if random.chance(kept_per_mille) => apply(&mut inode.durable, &change),
                    Change::Length(_) => {}
                    Change::Write { at, bytes, .. } => {
                        for (index, sector) in bytes.chunks(SECTOR_BYTES).enumerate() {
                            if random.chance(kept_per_mille) {
                                put(&mut inode.durable, at + index * SECTOR_BYTES, sector);
                            }
                        }
                    }
                }
            }
        }
        let inodes = self.inodes;
        self.names_durable.into_iter().map(|(name, inode)| (name, inodes[inode].durable.clone())).collect()
    }
}
