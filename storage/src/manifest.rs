//! The manifest: what the data folder is. Small, replaced atomically; the only file that says which logs count.
//!
//! ```text
//!  0  u64  magic "TIDEGATE"
//!  8  u32  crc32c        of bytes 12..length
//! 12  u32  length        of the file
//! 16  u16  format version
//! 18  u16  slices        1024
//! 20  u16  shards        that own them: slice % shards
//! 22  u16  0
//! 24  u64  hash key, low     secret: see `ids::HashKey`
//! 32  u64  hash key, high
//! 40  u32  next log      names of logs are never reused
//! 44  u32  old logs
//! 48  logs of the shards, in the order of the shards:  u32 log each
//!     old logs, oldest first:                          u32 log each
//! ```
//! The logs of an earlier number of shards are *old*: wholly sealed, read by whoever owns the slices in them now.

use crate::bytes::{Put, Take};
use crate::ids::{HashKey, LogId, SLICES};
use crate::segment::{FORMAT_VERSION, FORMAT_VERSION_MIN, is_readable};
use std::fmt;

const MAGIC: [u8; 8] = *b"TIDEGATE";

const VERSION_AT: usize = 16;

/// Most shards of a folder.
pub const SHARDS_MAX: u16 = 256;

/// Decoded manifest.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Manifest {
    /// Key under which names are hashed.
    pub key: HashKey,
    /// Name of the next log to be made.
    pub next_log: LogId,
    /// Log of each shard; as many as there are shards.
    pub logs: Vec<LogId>,
    /// Logs of earlier numbers of shards, oldest first.
    pub old: Vec<LogId>,
}

/// Why a manifest cannot be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BadManifest {
    /// Of a format version that this build does not read.
    Version {
        /// Version found.
        found: u16,
    },
    /// Does not verify, or contradicts itself.
    Corrupt,
}

impl fmt::Display for BadManifest {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BadManifest::Version { found } => {
                write!(
                    out,
                    "manifest has format version {found}, this build reads {FORMAT_VERSION_MIN} to {FORMAT_VERSION}; use the build that wrote it"
                )
            }
            BadManifest::Corrupt => out.write_str("manifest is corrupt; restore it from a backup of this folder"),
        }
    }
}

impl Manifest {
    /// Of a new folder with so many shards.
    pub fn new(key: HashKey, shards: u16) -> Manifest {
        let logs = (0..shards.into()).map(LogId).collect();
        Manifest { key, next_log: LogId(shards.into()), logs, old: Vec::new() }
    }

    /// The file's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.put(&MAGIC);
        out.put_u32(0);
        out.put_u32(0);
        out.put_u16(FORMAT_VERSION);
        out.put_u16(SLICES);
        out.put_u16(self.logs.len() as u16);
        out.put_u16(0);
        out.put_u64(self.key.0);
        out.put_u64(self.key.1);
        out.put_u32(self.next_log.0);
        out.put_u32(self.old.len() as u32);
        self.logs.iter().chain(&self.old).for_each(|log| out.put_u32(log.0));
        let length = out.len() as u32;
        out[12..16].copy_from_slice(&length.to_le_bytes());
        let crc = crc32c::crc32c(&out[12..]);
        out[8..12].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// Reads the file.
    ///
    /// # Errors
    /// Another version, or bytes that do not verify.
    pub fn parse(bytes: &[u8]) -> Result<Manifest, BadManifest> {
        let mut take = Take(bytes);
        let sealed = take.bytes(8) == Some(&MAGIC)
            && take.u32() == bytes.get(12..).map(crc32c::crc32c)
            && take.u32() == Some(bytes.len() as u32);
        if !sealed {
            return Err(BadManifest::Corrupt);
        }
        match take.u16() {
            Some(version) if is_readable(version) => Manifest::parse_fields(take).ok_or(BadManifest::Corrupt),
            Some(found) => Err(BadManifest::Version { found }),
            None => Err(BadManifest::Corrupt),
        }
    }

    /// Whether a manifest that was read is of the version before: then it is written anew before anything else is, so that the
    /// build that wrote it refuses the folder by name and takes nothing in it for damage.
    pub fn is_of_version_before(bytes: &[u8]) -> bool {
        bytes.get(VERSION_AT..VERSION_AT + 2) != Some(&FORMAT_VERSION.to_le_bytes())
    }

    fn parse_fields(mut take: Take<'_>) -> Option<Manifest> {
        let (slices, shards, zero) = (take.u16()?, take.u16()?, take.u16()?);
        let key = HashKey(take.u64()?, take.u64()?);
        let (next_log, old) = (LogId(take.u32()?), take.u32()?);
        let names_left = next_log.0 <= u32::MAX - u32::from(SHARDS_MAX);
        if slices != SLICES || zero != 0 || shards == 0 || shards > SHARDS_MAX || !names_left {
            return None;
        }
        let mut logs = Vec::new();
        while !take.0.is_empty() {
            logs.push(LogId(take.u32()?));
        }
        let known = logs.iter().all(|log| log.0 < next_log.0);
        if logs.len() != usize::from(shards) + old as usize || !known {
            return None;
        }
        let old = logs.split_off(shards.into());
        Some(Manifest { key, next_log, logs, old })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_back_and_notices_every_flip_and_cut() {
        let manifest = Manifest { old: vec![LogId(0), LogId(1)], ..Manifest::new(HashKey(3, 4), 5) };
        let mut bytes = manifest.encode();
        assert_eq!(Manifest::parse(&bytes), Ok(manifest));
        for cut in 0..bytes.len() {
            assert!(Manifest::parse(&bytes[..cut]).is_err());
        }
        for bit in 0..bytes.len() * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(Manifest::parse(&bytes).is_err(), "bit {bit}");
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
    }
}
