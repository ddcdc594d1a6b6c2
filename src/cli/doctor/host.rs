//! The machine as its files tell it: `/proc` and `/sys`, below a root in whose place tests put another.
//!
//! ```text
//!   Host { root: /, process: self }     this machine: what only the kernel can say is tried as well (`is_live`)
//!   Host { root: DIR, process: self }   the files below DIR, and nothing else
//! ```

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Where the files are.
pub struct Host {
    root: PathBuf,
    /// Folder of a process in `/proc`: `self`, or its number.
    process: String,
}

/// One line of `mountinfo`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mount {
    /// `major:minor` of the device.
    pub device: String,
    /// Where it is mounted.
    pub point: PathBuf,
    /// Type of the file system.
    pub kind: String,
    /// Options of the mount and of the file system.
    pub options: Vec<String>,
}

impl Host {
    pub fn new(root: Option<&Path>, pid: Option<u32>) -> Host {
        let process = pid.map_or_else(|| "self".to_owned(), |pid| pid.to_string());
        Host { root: root.unwrap_or(Path::new("/")).to_owned(), process }
    }

    /// Its answers are this machine's.
    pub fn is_live(&self) -> bool {
        self.root == Path::new("/")
    }

    /// What is asked about is this very process.
    pub fn is_this_process(&self) -> bool {
        self.is_live() && self.process == "self"
    }

    fn path(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// A file's text without the space around it.
    pub fn text(&self, path: &str) -> Option<String> {
        fs::read_to_string(self.path(path)).ok().map(|text| text.trim().to_owned())
    }

    /// A file that holds one number.
    pub fn number(&self, path: &str) -> Option<u64> {
        self.text(path)?.parse().ok()
    }

    /// Names in a folder.
    pub fn names(&self, path: &str) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.path(path)) else { return Vec::new() };
        let mut names: Vec<String> = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
        names.sort();
        names
    }

    pub fn exists(&self, path: &str) -> bool {
        self.path(path).exists()
    }

    /// The last part of where a link points to.
    pub fn link_name(&self, path: &str) -> Option<String> {
        let to = fs::canonicalize(self.path(path)).ok()?;
        to.file_name()?.to_str().map(str::to_owned)
    }

    /// A file that lists cores: `0-3,8`.
    pub fn cores(&self, path: &str) -> Option<BTreeSet<usize>> {
        cores_of(&self.text(path)?)
    }

    /// A file of the process, such as `limits`.
    pub fn of_process(&self, file: &str) -> Option<String> {
        self.text(&format!("proc/{}/{file}", self.process))
    }

    /// A line `name: value` of the process's status.
    pub fn status(&self, name: &str) -> Option<String> {
        let status = self.of_process("status")?;
        let value = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        Some(value.trim().to_owned())
    }

    /// Cores that the process may run on.
    pub fn allowed_cores(&self) -> BTreeSet<usize> {
        self.status("Cpus_allowed_list").and_then(|list| cores_of(&list)).unwrap_or_default()
    }

    /// May the process do that? The number is the capability's bit.
    pub fn is_capable(&self, bit: u32) -> bool {
        let set = self.status("CapEff").and_then(|digits| u64::from_str_radix(&digits, 16).ok());
        set.is_some_and(|set| set & 1 << bit != 0)
    }

    /// A limit of the process, soft and hard; `u64::MAX` is none.
    pub fn limit(&self, name: &str) -> Option<(u64, u64)> {
        let limits = self.of_process("limits")?;
        let line = limits.lines().find_map(|line| line.strip_prefix(name))?;
        let mut numbers = line.split_whitespace().map(|word| match word {
            "unlimited" => Some(u64::MAX),
            word => word.parse().ok(),
        });
        Some((numbers.next()??, numbers.next()??))
    }

    /// Everything that is mounted, in the order of mounting.
    pub fn mounts(&self) -> Vec<Mount> {
        self.of_process("mountinfo").unwrap_or_default().lines().filter_map(mount_of_line).collect()
    }

    /// What a folder lies on: the longest mount point above it, the latest of equal ones.
    pub fn mount_of(&self, folder: &Path) -> Option<Mount> {
        let above = self.mounts().into_iter().filter(|mount| folder.starts_with(&mount.point));
        above.max_by_key(|mount| mount.point.components().count())
    }
}

/// `0-3,8`, and nothing else.
pub fn cores_of(list: &str) -> Option<BTreeSet<usize>> {
    let mut cores = BTreeSet::new();
    for part in list.trim().split(',').filter(|part| !part.is_empty()) {
        let (from, to) = part.split_once('-').unwrap_or((part, part));
        let (from, to): (usize, usize) = (from.trim().parse().ok()?, to.trim().parse().ok()?);
        if to >= from && to - from < 1 << 16 {
            cores.extend(from..=to);
        }
    }
    Some(cores)
}

/// Cores as the kernel writes them.
pub fn list_of(cores: &BTreeSet<usize>) -> String {
    let mut parts: Vec<(usize, usize)> = Vec::new();
    for core in cores {
        match parts.last_mut() {
            Some((_, to)) if *to + 1 == *core => *to = *core,
            _ => parts.push((*core, *core)),
        }
    }
    let parts: Vec<String> =
        parts.iter().map(|(from, to)| if from == to { from.to_string() } else { format!("{from}-{to}") }).collect();
    parts.join(",")
}

/// `27 1 254:0 / /data rw,noatime shared:1 - ext4 /dev/vda rw,nobarrier`
fn mount_of_line(line: &str) -> Option<Mount> {
    let (front, back) = line.split_once(" - ")?;
    let front: Vec<&str> = front.split(' ').collect();
    let back: Vec<&str> = back.split(' ').collect();
    let point = front.get(4)?.replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\");
    let options = [front.get(5)?, *back.get(2).unwrap_or(&"")];
    let mut options: Vec<String> = options.iter().flat_map(|list| list.split(',')).map(str::to_owned).collect();
    options.sort();
    options.dedup();
    Some(Mount { device: (*front.get(2)?).to_owned(), point: point.into(), kind: (*back.first()?).to_owned(), options })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_cores_are_read_and_written() {
        let cores = cores_of("0-2,5, 7-8\n").unwrap();
        assert_eq!(cores.iter().copied().collect::<Vec<_>>(), [0, 1, 2, 5, 7, 8]);
        assert_eq!(list_of(&cores), "0-2,5,7-8");
        assert_eq!(cores_of(""), Some(BTreeSet::new()));
        assert_eq!(cores_of("x"), None);
    }

    #[test]
    fn a_line_of_mountinfo_is_read() {
        let line = r"29 1 254:1 / /srv/my\040data rw,noatime shared:1 - ext4 /dev/vdb rw,nobarrier";
        let mount = mount_of_line(line).unwrap();
        assert_eq!((mount.device.as_str(), mount.kind.as_str()), ("254:1", "ext4"));
        assert_eq!(mount.point, Path::new("/srv/my data"));
        assert_eq!(mount.options, ["noatime", "nobarrier", "rw"]);
        assert_eq!(mount_of_line("nonsense"), None);
    }
}
