//! Where processes meet a server: sockets in its data folder, which nobody but its owner can enter.
//!
//! ```text
//!   bind      by the holder of the folder's lock, so a socket that is there already is a dead process's
//!   connect   by whoever wants to take over, or to know something
//! ```

use std::fs::{self, File, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// For a process that takes over.
pub(super) const TAKEOVER: &str = "takeover.sock";
/// For operators: `tidegate top`, `tidegate why`, metrics.
pub(super) const ADMIN: &str = "admin.sock";
/// Bytes of a path that the kernel takes for a socket.
const PATH_BYTES_MAX: usize = 107;

/// Makes the socket anew. The caller holds the folder's lock.
pub(super) fn bind(folder: &Path, name: &str) -> io::Result<UnixListener> {
    let path = folder.join(name);
    remove(folder, name)?;
    let listener = by_short_path(folder, name, |short| UnixListener::bind(short))?;
    fs::set_permissions(path, Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Takes the socket away. The caller holds the folder's lock.
pub(super) fn remove(folder: &Path, name: &str) -> io::Result<()> {
    match fs::remove_file(folder.join(name)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Reaches whoever listens there.
pub(super) fn connect(folder: &Path, name: &str) -> io::Result<UnixStream> {
    by_short_path(folder, name, |short| UnixStream::connect(short))
}

/// A folder may lie deeper than a socket's address can say; then it is named by a descriptor.
fn by_short_path<T>(folder: &Path, name: &str, then: impl FnOnce(&Path) -> io::Result<T>) -> io::Result<T> {
    let path = folder.join(name);
    if path.as_os_str().len() <= PATH_BYTES_MAX {
        return then(&path);
    }
    let open = File::open(folder)?;
    then(&PathBuf::from(format!("/proc/self/fd/{}", open.as_raw_fd())).join(name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    #[test]
    fn a_socket_of_a_dead_process_is_replaced_and_a_deep_folder_will_do() {
        let root = std::env::temp_dir().join(format!("tidegate-place-{}", std::process::id()));
        for folder in [root.join("near"), root.join("x".repeat(90)).join("y".repeat(90))] {
            fs::create_dir_all(&folder).unwrap();
            assert_eq!(connect(&folder, TAKEOVER).unwrap_err().kind(), io::ErrorKind::NotFound);
            drop(bind(&folder, TAKEOVER).unwrap());
            assert_eq!(connect(&folder, TAKEOVER).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
            let listener = bind(&folder, TAKEOVER).unwrap();
            assert_eq!(fs::metadata(folder.join(TAKEOVER)).unwrap().permissions().mode() & 0o777, 0o600);
            let mut there = connect(&folder, TAKEOVER).unwrap();
            let mut here = listener.accept().unwrap().0;
            there.write_all(b"x").unwrap();
            here.read_exact(&mut [0]).unwrap();
            remove(&folder, TAKEOVER).unwrap();
            remove(&folder, TAKEOVER).unwrap();
            assert_eq!(connect(&folder, TAKEOVER).unwrap_err().kind(), io::ErrorKind::NotFound);
        }
        fs::remove_dir_all(root).unwrap();
    }
}
