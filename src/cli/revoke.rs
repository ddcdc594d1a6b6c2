//! `tidegate revoke`: who does not come in any more, from now on. A server that runs on the folder hears of it by itself.

use super::{Failure, print_line};
use crate::auth::{REVOCATIONS_MAX, Revocation, Revocations};
use crate::boot::REVOKED_FILE;
use crate::config::Config;
use crate::disk::small;
use clap::Args;
use shards::names::is_name;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

/// Close the connections of a client or a token, and let neither in again: tokens that were issued until now do not count.
#[derive(Args)]
#[command(group = clap::ArgGroup::new("who").required(true))]
pub(super) struct RevokeArgs {
    /// Folder of the log.
    #[arg(long, value_name = "DIR", default_value = "tidegate-data")]
    data: PathBuf,
    /// Tenant.
    #[arg(long)]
    tenant: String,
    /// This client, whatever its tokens.
    #[arg(long, group = "who")]
    client: Option<String>,
    /// The token of this name (`jti`).
    #[arg(long, group = "who", value_name = "JTI")]
    token: Option<String>,
    /// Kept for so many seconds: no less than tokens may live (`auth_token_life_ms_max`).
    #[arg(long, value_name = "SECONDS")]
    keep: Option<u64>,
}

pub(super) fn run(args: RevokeArgs) -> Result<(), Failure> {
    let tenant = args.tenant;
    let revocation = match (args.client, args.token) {
        (Some(client), _) => Revocation::Client { tenant, client },
        (None, Some(token)) => Revocation::Token { tenant, token },
        // The group asks for one of them.
        (None, None) => return Err(Failure::wrong("give --client or --token")),
    };
    let (Revocation::Client { tenant, client: name } | Revocation::Token { tenant, token: name }) = &revocation;
    if let Some(bad) = [tenant, name].into_iter().find(|name| !is_name(name.as_bytes())) {
        return Err(Failure::wrong(format!("{bad:?} is no name: names are 1 to 128 of A-Z a-z 0-9 _ . : -")));
    }
    let keep_s = match args.keep {
        Some(seconds) => seconds,
        None => Config::load(&super::layers()).map_err(Failure::wrong)?.auth_token_life_ms_max.div_ceil(1000),
    };
    let now_s = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let changed = small::change(&args.data, REVOKED_FILE, |text| {
        let mut all = Revocations::read(&text, now_s)
            .map_err(|line| format!("line {line} of {REVOKED_FILE} is no revocation: mend or remove it"))?;
        // A minute for clocks that differ.
        if !all.add(&revocation, now_s, now_s.saturating_add(keep_s).saturating_add(60)) {
            return Err(format!("{REVOCATIONS_MAX} are kept already: change the key that tokens are signed with"));
        }
        Ok(all.text())
    });
    changed.map_err(|why| Failure::failed(format!("{}: {why}", args.data.display())))?;
    print_line(&format!("revoked: a server on {} closes what is open within a second", args.data.display()))
}
