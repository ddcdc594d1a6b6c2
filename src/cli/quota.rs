//! `tidegate quota`: what tenants may use, changed while the server runs or before it starts.
//!
//! ```text
//!   tidegate quota                                       every table that was changed
//!   tidegate quota acme                                  that of one tenant
//!   tidegate quota acme weight=4 connections_max=100     its table from now on, with these bounds changed
//!   tidegate quota acme connections_max=                 without this one
//!   tidegate quota acme --reset                          as the configuration says
//! ```

use super::{Failure, print_line};
use crate::boot::QUOTAS_FILE;
use crate::config::{TenantTables, set_bound};
use crate::disk::small;
use clap::Args;
use std::path::{Path, PathBuf};

/// Show or change what a tenant may use. A server that runs on the folder hears of it by itself; it is kept over restarts.
#[derive(Args)]
pub(super) struct QuotaArgs {
    /// Folder of the log.
    #[arg(long, value_name = "DIR", default_value = "tidegate-data")]
    data: PathBuf,
    /// Tenant; `default`: whoever has no table.
    tenant: Option<String>,
    /// Bounds, as in a table of the configuration; without a value a bound is none. The table stands in place of the configuration's.
    #[arg(value_name = "KEY=VALUE", requires = "tenant")]
    bounds: Vec<String>,
    /// Back to what the configuration says.
    #[arg(long, requires = "tenant", conflicts_with = "bounds")]
    reset: bool,
}

pub(super) fn run(args: &QuotaArgs) -> Result<(), Failure> {
    let path = args.data.join(QUOTAS_FILE);
    let failed = |why: std::io::Error| Failure::failed(format!("{}: {why}", args.data.display()));
    let Some(tenant) = &args.tenant else {
        let text = small::read(&args.data, QUOTAS_FILE).map_err(failed)?;
        let tables = TenantTables::read(&path, &text).map_err(Failure::failed)?;
        return match tables.text() {
            text if text.is_empty() => print_line("# nothing was changed: quotas are as the configuration says"),
            text => print_line(text.trim_end()),
        };
    };
    if args.reset || !args.bounds.is_empty() {
        small::change(&args.data, QUOTAS_FILE, |text| changed(&path, &text, tenant, args)).map_err(failed)?;
    }
    let text = small::read(&args.data, QUOTAS_FILE).map_err(failed)?;
    let mut shown = TenantTables::default();
    let own = TenantTables::read(&path, &text).map_err(Failure::failed)?.get(tenant);
    shown.put(tenant, own).map_err(Failure::wrong)?;
    match own {
        Some(_) => print_line(shown.text().trim_end()),
        None => print_line(&format!("# tenant {tenant}: as the configuration says")),
    }
}

fn changed(path: &Path, text: &str, tenant: &str, args: &QuotaArgs) -> Result<String, String> {
    let mut tables = TenantTables::read(path, text).map_err(|why| why.to_string())?;
    if args.reset {
        tables.put(tenant, None)?;
        return Ok(tables.text());
    }
    let mut quota = tables.get(tenant).unwrap_or_default();
    for pair in &args.bounds {
        let (key, value) = pair.split_once('=').ok_or_else(|| format!("{pair:?}: expected KEY=VALUE"))?;
        set_bound(&mut quota, key, value).map_err(|why| format!("{key}: {why}"))?;
    }
    tables.put(tenant, Some(quota))?;
    Ok(tables.text())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(data: &Path, tenant: Option<&str>, bounds: &[&str], reset: bool) -> QuotaArgs {
        let bounds = bounds.iter().map(|bound| bound.to_string()).collect();
        QuotaArgs { data: data.into(), tenant: tenant.map(str::to_string), bounds, reset }
    }

    #[test]
    fn a_table_is_made_changed_and_taken_away() {
        let folder = std::env::temp_dir().join(format!("tidegate-quota-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let done = |tenant: &str, bounds: &[&str], reset| run(&args(&folder, Some(tenant), bounds, reset)).is_ok();
        let text = || small::read(&folder, QUOTAS_FILE).unwrap();
        assert!(done("acme", &["weight=4", "connections_max=10"], false));
        assert!(done("default", &["bytes_per_second_max=1MiB"], false));
        assert!(done("acme", &["connections_max=", "events_per_second_max=7"], false));
        let both = "[tenants.acme]\nweight = 4\nevents_per_second_max = 7\n[tenants.default]\nweight = 1\nbytes_per_second_max = \"1MiB\"\n";
        assert_eq!(text(), both);
        for bad in ["weight", "weight=0", "events=3", "connections_max=many"] {
            assert!(!done("acme", &[bad], false), "{bad}");
        }
        assert!(!done("a b", &["weight=2"], false));
        assert_eq!(text(), both);
        assert!(done("acme", &[], true) && run(&args(&folder, None, &[], false)).is_ok());
        assert!(text().starts_with("[tenants.default]"));
        std::fs::remove_dir_all(folder).unwrap();
    }
}
