//! `tidegate token`: a token for development. In production whoever knows the users signs them.

use super::{Failure, print_line};
use crate::auth::{CLAIM_AUDIENCE_DEFAULT, TOKEN_BYTES_MAX, Wish};
use crate::reactor::random_u64;
use clap::Args;
use shards::names::is_name;
use shards::rights::{Capability, Rights};
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

/// Print a token for development, signed with a key of `tidegate keys make`.
#[derive(Args)]
pub(super) struct TokenArgs {
    /// JWK set with a private key.
    #[arg(long, value_name = "FILE", env = "TIDEGATE_SIGNING_KEYS")]
    keys: PathBuf,
    /// Which of its keys; without it the first.
    #[arg(long, value_name = "KID")]
    key: Option<String>,
    /// Tenant.
    #[arg(long, default_value = "default")]
    tenant: String,
    /// Client; `*` = whichever it calls itself. Without it the server makes one up.
    #[arg(long)]
    client: Option<String>,
    /// Seconds until it expires.
    #[arg(long, value_name = "SECONDS", default_value_t = 3600)]
    life: u64,
    /// Audience.
    #[arg(long, default_value = CLAIM_AUDIENCE_DEFAULT)]
    audience: String,
    /// Name of the token, by which it can be revoked. Random when absent.
    #[arg(long)]
    token_id: Option<String>,
    /// May publish: [SESSION/]PATTERN, such as chat.> or room-*/chat.message. May be repeated, as the next ones.
    #[arg(long, value_name = "GRANT")]
    publish: Vec<String>,
    /// May subscribe: SESSION/> for sessions, a pattern for pattern feeds.
    #[arg(long, value_name = "GRANT")]
    subscribe: Vec<String>,
    /// May work off queues.
    #[arg(long, value_name = "GRANT")]
    queue: Vec<String>,
    /// May use entries.
    #[arg(long, value_name = "GRANT")]
    entries: Vec<String>,
    /// May run the tenant.
    #[arg(long, value_name = "GRANT")]
    admin: Vec<String>,
    /// May do everything in its tenant.
    #[arg(long)]
    all: bool,
}

pub(super) fn run(args: TokenArgs) -> Result<(), Failure> {
    let key = super::keys::read(&args.keys, args.key.as_deref())?;
    let mut grants = [
        (Capability::Publish, args.publish),
        (Capability::Subscribe, args.subscribe),
        (Capability::Queue, args.queue),
        (Capability::Entries, args.entries),
        (Capability::Admin, args.admin),
    ];
    let mut rights = Rights::none(true);
    for (capability, list) in &mut grants {
        if args.all {
            list.push(if matches!(capability, Capability::Publish | Capability::Subscribe) { ">" } else { "*" }.into());
        }
        for grant in list.iter() {
            rights.add(*capability, grant).map_err(|_| {
                let name = capability.name();
                Failure::wrong(format!("--{name} {grant:?} is no grant, or one too many: see PROTOCOL.md, Tokens"))
            })?;
        }
    }
    for (what, name) in
        [("--tenant", Some(&args.tenant)), ("--client", args.client.as_ref()), ("--token-id", args.token_id.as_ref())]
    {
        if let Some(name) = name.filter(|name| !(is_name(name.as_bytes()) || what == "--client" && *name == "*")) {
            return Err(Failure::wrong(format!("{what} {name:?}: names are 1 to 128 of A-Z a-z 0-9 _ . : -")));
        }
    }
    let issued_s = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let grants = grants.each_ref().map(|(capability, list)| (*capability, list.as_slice()));
    let token = key.sign(&Wish {
        tenant: &args.tenant,
        client: args.client.as_deref(),
        audience: &args.audience,
        issued_s,
        expires_s: issued_s.saturating_add(args.life),
        token_id: &args.token_id.unwrap_or_else(|| format!("{:016x}", random_u64())),
        grants: &grants,
    });
    let token = token.map_err(|why| Failure::failed(format!("the key {why}")))?;
    if token.len() > TOKEN_BYTES_MAX {
        let why = format!(
            "the token has {} characters and no server takes more than {TOKEN_BYTES_MAX}: grant less",
            token.len()
        );
        return Err(Failure::wrong(why));
    }
    print_line(&token)
}
