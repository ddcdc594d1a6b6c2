//! The file of those who were revoked: read by the server, written by it and by `tidegate revoke`, one at a time.
//!
//! ```text
//!   tidegate revoke ──────┐
//!                         ├► lock ► read ► add ► replace ► unlock          a server on the folder sees another file within REVOKED_WITHIN
//!   revoke.client, .token ┘
//! ```

use crate::auth::{REVOCATIONS_MAX, Revocation, Revocations};
use crate::disk::small;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

/// In the data folder.
const REVOKED_FILE: &str = "revoked";
/// Clocks differ: kept so much longer than a token may live.
const SLACK_S: u64 = 60;

/// All that count now.
///
/// # Errors
/// One line: what is wrong with the file.
pub(super) fn read(folder: &Path) -> Result<Revocations, String> {
    let path = folder.join(REVOKED_FILE);
    let text = small::read(folder, REVOKED_FILE).map_err(|why| format!("{}: {why}", path.display()))?;
    Revocations::read(&text, unix_s()).map_err(|line| {
        format!("{}: line {line} is no revocation: mend or remove it, or who was revoked comes in", path.display())
    })
}

/// By which a file that was replaced is told from the one before.
pub(super) type Mark = Option<(u64, u64, SystemTime)>;

/// That of the file as it is.
pub(super) fn mark(folder: &Path) -> Mark {
    use std::os::unix::fs::MetadataExt as _;
    let meta = std::fs::metadata(folder.join(REVOKED_FILE)).ok()?;
    Some((meta.ino(), meta.len(), meta.modified().ok()?))
}

/// Adds them, each unless its tenant has `tenant_max` already; which there was room for. On disk when it returns.
///
/// # Errors
/// One line: why the file is as it was.
pub fn revoke(folder: &Path, all: &[Revocation], keep_s: u64, tenant_max: usize) -> Result<Vec<bool>, String> {
    let now_s = unix_s();
    let mut added = Vec::new();
    let changed = small::change(folder, REVOKED_FILE, |text| {
        let mut kept = Revocations::read(&text, now_s)
            .map_err(|line| format!("line {line} of {REVOKED_FILE} is no revocation: mend or remove it"))?;
        for revocation in all {
            let until_s = now_s.saturating_add(keep_s).saturating_add(SLACK_S);
            added.push(kept.count(revocation.tenant()) < tenant_max && kept.add(revocation, now_s, until_s));
        }
        Ok(kept.text())
    });
    changed.map(|()| added).map_err(|why| format!("{}: {why}", folder.display()))
}

/// Says that there is no room.
pub fn too_many() -> String {
    format!("{REVOCATIONS_MAX} are kept already: change the key that tokens are signed with")
}

fn unix_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenant_has_its_share_and_no_more_and_what_it_has_may_be_said_again() {
        let folder = std::env::temp_dir().join(format!("tidegate-revocations-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let token = |tenant: &str, n: u32| Revocation::Token { tenant: tenant.into(), token: format!("t{n}") };
        let before = mark(&folder);
        let many: Vec<Revocation> = (0..4).map(|n| token("acme", n)).chain([token("bcorp", 0)]).collect();
        assert_eq!(revoke(&folder, &many, 60, 3).unwrap(), [true, true, true, false, true]);
        assert_ne!(mark(&folder), before);
        assert_eq!(read(&folder).unwrap().len(), 4);
        assert_eq!(revoke(&folder, &[token("acme", 0)], 60, usize::MAX).unwrap(), [true], "again");
        std::fs::write(folder.join(REVOKED_FILE), "nothing of the kind").unwrap();
        assert!(revoke(&folder, &many, 60, 3).unwrap_err().contains("line 1"));
        assert!(read(&folder).unwrap_err().contains("line 1"));
        std::fs::remove_dir_all(folder).unwrap();
    }
}
