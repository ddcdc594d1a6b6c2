//! Which time a data folder lives in: a folder that goes back in time, since it is a backup that is served, gives its sessions new epochs.
//!
//! ```text
//!   backup ─► DEST/backup            a mark: whoever serves from here, or from a copy, goes back in time
//!   serve  ─► mark? ─► DEST/lives    mask u64, times u64: drawn anew, durable, then the mark goes
//!                        │
//!                        ├─ what the wire calls an epoch = what the log calls it, by the mask      (`wire::lives`)
//!                        └─ slices go on at times × 2^40: no place in one is given twice
//! ```
//! The log itself stays as it is: what it holds has its epochs in every record, in every key by which a repeat is known. Only their
//! names change, so that a repeat is still known, and no name that was given out after the backup is given to anything else.

use super::small;
use std::fs::{self, File};
use std::io;
use std::path::Path;

/// In a backup.
const MARK: &str = "backup";
/// In the folder of a server that was begun from one.
const FILE: &str = "lives";
/// Places of a slice that one time has.
const SLICE_STEP: u64 = 1 << 40;
/// So often a folder may go back: behind it slices would have no places left.
const TIMES_MAX: u64 = 4096;

/// The time that a folder lives in.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Lives {
    /// Of its epochs' names.
    pub mask: u64,
    /// How often it went back.
    pub times: u64,
}

impl Lives {
    /// Each slice goes on here, or later.
    pub fn slices_from(self) -> u64 {
        self.times * SLICE_STEP
    }
}

/// Marks a folder as a backup.
///
/// # Errors
/// The operating system says no.
pub fn mark(folder: &Path) -> io::Result<()> {
    small::replace(folder, MARK, "served from here, sessions get other epochs: see `tidegate restore --help`\n")
}

/// The time that the folder lives in, which is a new one where it is a backup. Whoever calls it has the folder to itself. `random` is drawn
/// from the operating system.
///
/// # Errors
/// The operating system says no, or the file is none.
pub fn begin(folder: &Path, random: impl Fn() -> u64) -> io::Result<Lives> {
    let known = read(&small::read(folder, FILE)?)?;
    if !folder.join(MARK).exists() {
        return Ok(known);
    }
    let mut lives = Lives { mask: 0, times: known.times + 1 };
    if lives.times > TIMES_MAX {
        return Err(io::Error::other("it went back in time too often: begin with an empty folder"));
    }
    // Another one than before, and one that changes every epoch.
    while lives.mask == 0 || lives.mask == known.mask {
        lives.mask = random();
    }
    small::replace(folder, FILE, &format!("{:016x} {}\n", lives.mask, lives.times))?;
    // Only now: whoever is killed in between draws again, and nobody has seen what was drawn.
    fs::remove_file(folder.join(MARK))?;
    File::open(folder)?.sync_all()?;
    Ok(lives)
}

fn read(text: &str) -> io::Result<Lives> {
    if text.is_empty() {
        return Ok(Lives::default());
    }
    let parsed = text.trim_end().split_once(' ').and_then(|(mask, times)| {
        let mask = u64::from_str_radix(mask, 16).ok()?;
        Some(Lives { mask, times: times.parse().ok().filter(|times| *times <= TIMES_MAX)? })
    });
    parsed.ok_or_else(|| io::Error::other(format!("{FILE} is damaged: take it from a backup of this folder")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[test]
    fn a_backup_that_is_served_lives_in_a_time_of_its_own() {
        let folder = std::env::temp_dir().join(format!("tidegate-lives-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let drawn = Cell::new(6);
        let random = || {
            drawn.set(drawn.get() + 1);
            drawn.get() / 4
        };
        assert_eq!(begin(&folder, random).unwrap(), Lives::default(), "it never went back");
        mark(&folder).unwrap();
        let first = begin(&folder, random).unwrap();
        assert_eq!(first, Lives { mask: 1, times: 1 });
        assert_eq!(begin(&folder, random).unwrap(), first, "the same at each start");
        mark(&folder).unwrap();
        assert_eq!(begin(&folder, random).unwrap(), Lives { mask: 2, times: 2 }, "never the one before");
        assert_eq!(begin(&folder, random).unwrap().slices_from(), 2 << 40);
        small::replace(&folder, FILE, "nonsense").unwrap();
        assert!(begin(&folder, random).unwrap_err().to_string().contains("damaged"));
        fs::remove_dir_all(folder).unwrap();
    }
}
