//! `tidegate revoke`: who does not come in any more, from now on. A server that runs on the folder hears of it by itself.

use super::{Failure, print_line};
use crate::auth::Revocation;
use crate::boot;
use crate::config::Config;
use clap::Args;
use shards::names::is_name;
use std::path::PathBuf;

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
    // The operator has all the room there is.
    let added = boot::revoke(&args.data, &[revocation], keep_s, usize::MAX).map_err(Failure::failed)?;
    if added != [true] {
        return Err(Failure::failed(format!("{}: {}", args.data.display(), boot::too_many())));
    }
    print_line(&format!("revoked: a server on {} closes what is open within a second", args.data.display()))
}
