//! `tidegate serve`: the server itself, on sockets of its own, of a service manager's, or of the server that it takes over from.

use super::{ConfigArgs, Failure};
use crate::boot::{self, activation};
use clap::Args;
use std::process::ExitCode;

/// Run the server (the default).
#[derive(Args)]
pub(super) struct ServeArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Take the place of the server that runs on the same data folder: it hands over its listening sockets, drains and ends.
    #[arg(long)]
    takeover: bool,
}

pub(super) fn run(mut args: ServeArgs) -> Result<ExitCode, Failure> {
    if args.takeover {
        return Ok(boot::take_over(args.config.load().map_err(Failure::wrong)?));
    }
    // Before the configuration is checked: where the sockets listen is part of it.
    let activated = activation::take().map_err(Failure::wrong)?;
    if let Some(activated) = &activated {
        let address = activated.address.to_string();
        if args.config.listen.as_ref().is_some_and(|listen| *listen != address) {
            let cure = "leave --listen out, or change ListenStream= of the socket unit";
            return Err(Failure::wrong(format!("the service manager's sockets listen on {address}: {cure}")));
        }
        args.config.listen = Some(address);
    }
    let config = args.config.load().map_err(Failure::wrong)?;
    Ok(match activated {
        Some(activated) => boot::serve_from(activated, config),
        None => boot::serve(config),
    })
}
