//! Damage: bits that rot in sealed files, and writes that land where they do not belong.
//!
//! ```text
//!   rot         one bit of a sealed segment, sidecar, checkpoint or manifest
//!   misdirect   a commit's blocks lie on a sealed file; its own place has them too, or was missed
//!   heal        what an operator does after a refused boot: the bytes from a backup, where nothing else came since
//! ```
//! The promise is a loud stop and never a wrong event. A log keeps one copy: where the very last group of a log is missed by
//! its own write, nothing on the disk tells that from a torn tail. Such a place is healed before the folder is used again.

use super::*;

/// Bytes that are not what they should be.
#[derive(Clone)]
pub(super) struct Damage {
    inode: u64,
    at: usize,
    was: Vec<u8>,
    is: Vec<u8>,
    /// Nothing on the disk shows it: it must not outlive the process.
    must_heal: bool,
}

impl SimDisk {
    /// One bit of a sealed file turns round. Returns whether there was one.
    pub fn rot(&mut self) -> bool {
        let Some((file, inode)) = self.sealed_file() else { return false };
        let len = self.files[&inode].now.len();
        let at = self.damage_random.index(len);
        let bit = 1u8 << self.damage_random.below(8);
        let byte = self.files[&inode].now[at] ^ bit;
        self.spoil(inode, at, &[byte], false);
        self.counts.add(
            FAULT,
            match file {
                FileId::Segment(_) => "rot: segment",
                FileId::Sidecar(_) => "rot: sidecar",
                FileId::Checkpoint(..) => "rot: checkpoint",
                FileId::Manifest => "rot: manifest",
            },
        );
        true
    }

    /// A commit's write lands on a sealed file, and perhaps nowhere else.
    pub(super) fn misdirect(&mut self, inode: u64, at: usize, bytes: &[u8]) {
        if let Some((_, victim)) = self.sealed_file() {
            let blocks = self.files[&victim].now.len() / BLOCK_BYTES;
            let to = self.damage_random.index(blocks.max(1)) * BLOCK_BYTES;
            let most = self.files[&victim].now.len().saturating_sub(to).min(bytes.len());
            self.spoil(victim, to, &bytes[..most], false);
        } else {
            return self.write_inode(inode, at, bytes.to_vec());
        }
        if self.damage_random.chance(700) {
            self.counts.add(FAULT, "write misdirected, onto a sealed file");
            return self.write_inode(inode, at, bytes.to_vec());
        }
        self.counts.add(FAULT, "write misdirected, its own place missed");
        let now = &self.files[&inode].now;
        let mut is = now.get(at..).unwrap_or_default().to_vec();
        is.resize(bytes.len(), 0);
        self.damages.push(Damage { inode, at, was: bytes.to_vec(), is, must_heal: true });
    }

    /// After how many reads of a boot one fails, if any does.
    pub fn reads_until_a_fault(&mut self) -> Option<u64> {
        self.damage_random.chance(150).then(|| self.damage_random.below(20))
    }

    /// Whether something is damaged.
    pub fn is_damaged(&self) -> bool {
        !self.damages.is_empty()
    }

    /// Whether some damage would pass for something else.
    pub fn must_heal(&self) -> bool {
        self.damages.iter().any(|damage| damage.must_heal)
    }

    /// Every damaged place that nobody has written to since is as it should be.
    pub fn heal(&mut self) {
        for Damage { inode, at, was, is, .. } in std::mem::take(&mut self.damages).into_iter().rev() {
            let Some(file) = self.files.get_mut(&inode) else { continue };
            let mut there = file.now.get(at..).unwrap_or_default().to_vec();
            there.resize(is.len(), 0);
            if there == is {
                put(&mut file.now, at, &was);
                put(&mut file.durable, at, &was);
            }
        }
    }

    /// The folder at rest, to try something on.
    pub fn copy(&self) -> SimDisk {
        SimDisk {
            files: self.files.clone(),
            names: self.names.clone(),
            names_durable: self.names_durable.clone(),
            name_changes: self.name_changes.clone(),
            operations: Vec::new(),
            next_id: self.next_id,
            faults: self.faults,
            full: self.full,
            random: self.random.clone(),
            damage_random: self.damage_random.clone(),
            damages: Vec::new(),
            death_due: false,
            counts: Counts::default(),
        }
    }

    /// A file that is written no more, and durable: kinds are drawn first, there are few of some.
    fn sealed_file(&mut self) -> Option<(FileId, u64)> {
        let kind = self.damage_random.below(8);
        let wanted = |file: FileId| match file {
            FileId::Segment(segment) => {
                kind < 3 && self.names_durable.contains_key(&Name::Final(FileId::Sidecar(segment)))
            }
            FileId::Sidecar(_) => (4..6).contains(&kind),
            FileId::Checkpoint(..) => kind == 6 || kind == 3,
            FileId::Manifest => kind == 7,
        };
        let found: Vec<(FileId, u64)> = self
            .names
            .iter()
            .filter_map(|(name, inode)| match name {
                Name::Final(file) if wanted(*file) && self.names_durable.get(name) == Some(inode) => {
                    let content = &self.files[inode];
                    (content.writes.is_empty() && !content.now.is_empty()).then_some((*file, *inode))
                }
                _ => None,
            })
            .collect();
        (!found.is_empty()).then(|| found[self.damage_random.index(found.len())])
    }

    fn spoil(&mut self, inode: u64, at: usize, bytes: &[u8], must_heal: bool) {
        let file = self.files.get_mut(&inode).expect("a named file exists");
        let was = file.now[at..at + bytes.len()].to_vec();
        put(&mut file.now, at, bytes);
        put(&mut file.durable, at, bytes);
        self.damages.push(Damage { inode, at, was, is: bytes.to_vec(), must_heal });
    }
}
