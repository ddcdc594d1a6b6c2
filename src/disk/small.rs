//! Small files beside the log: replaced whole, and changed by one process at a time.
//!
//! ```text
//!   replace   NAME.tmp written, synced ─► renamed to NAME ─► folder synced
//!   change    NAME.lock taken ─► read ─► replace ─► let go         also while a server has the folder
//! ```

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

/// The file's text; empty where there is none.
///
/// # Errors
/// It is there and cannot be read.
pub fn read(folder: &Path, name: &str) -> io::Result<String> {
    match fs::read_to_string(folder.join(name)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        read => read,
    }
}

/// Replaces the file. Only its owner can read it.
///
/// # Errors
/// It cannot be replaced: then it is as before.
pub fn replace(folder: &Path, name: &str, text: &str) -> io::Result<()> {
    let temporary = folder.join(format!("{name}.tmp"));
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(temporary, folder.join(name))?;
    File::open(folder)?.sync_all()
}

/// Replaces the file by what `change` makes of it, while nobody else does.
///
/// # Errors
/// It cannot be read or replaced, or `change` says why not.
pub fn change(folder: &Path, name: &str, change: impl FnOnce(String) -> Result<String, String>) -> io::Result<()> {
    let lock = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(folder.join(format!("{name}.lock")))?;
    // SAFETY: takes a descriptor that is open here and touches no memory. It is let go with the file.
    if unsafe { libc::flock(lock.as_raw_fd(), libc::LOCK_EX) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let changed = change(read(folder, name)?).map_err(io::Error::other)?;
    replace(folder, name, &changed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn two_that_change_it_at_once_both_count() {
        let folder = std::env::temp_dir().join(format!("tidegate-small-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        assert_eq!(read(&folder, "list").unwrap(), "");
        std::thread::scope(|scope| {
            for who in ["a", "b", "c", "d"] {
                let folder = &folder;
                scope.spawn(move || {
                    for _ in 0..10 {
                        change(folder, "list", |text| Ok(text + who)).unwrap();
                    }
                });
            }
        });
        assert_eq!(read(&folder, "list").unwrap().len(), 40);
        assert_eq!(fs::metadata(folder.join("list")).unwrap().permissions().mode() & 0o777, 0o600);
        change(&folder, "list", |_| Err("no".into())).unwrap_err();
        assert_eq!(read(&folder, "list").unwrap().len(), 40);
        fs::remove_dir_all(folder).unwrap();
    }
}
