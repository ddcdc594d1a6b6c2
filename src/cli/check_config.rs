//! `tidegate check-config`: every value as a TOML line, and where it came from.

use super::Failure;
use crate::boot;
use crate::config::{Config, TenantTables};
use std::fmt::Write as _;

pub(super) fn run(config: &Config) -> Result<(), Failure> {
    super::print_line(&table(config))?;
    let plan = boot::memory_plan(config);
    for line in plan.to_string().lines() {
        super::print_line(&format!("# {line}"))?;
    }
    plan.check().map_err(Failure::wrong)
}

/// The output is itself a configuration file: origins and meanings are comments.
fn table(config: &Config) -> String {
    let rows = config.rows();
    let lines: Vec<String> = rows.iter().map(|row| format!("{} = {}", row.key, row.value)).collect();
    let width = lines.iter().map(String::len).max().unwrap_or(0);
    let mut out = String::new();
    for (line, row) in lines.iter().zip(&rows) {
        let _infallible = writeln!(out, "{line:width$}  # {}; {}", row.origin, row.help);
    }
    // Last: whatever followed would belong to the last tenant.
    out + &TenantTables::of(&config.quotas).text()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Layers;

    #[test]
    fn the_table_is_a_configuration_file_with_the_same_values() {
        let flags = vec![("data".to_string(), "a \"quoted\" place".to_string()), ("sync".into(), "off".into())];
        let config = Config::load(&Layers { flags, ..Layers::default() }).unwrap();
        let text = table(&config);
        assert!(text.lines().any(|line| line.starts_with("sync = \"off\"") && line.contains("# flag;")), "{text}");
        let again = Config::load(&Layers { file: Some(("t".into(), text.clone())), ..Layers::default() }).unwrap();
        let values = |c: &Config| c.rows().into_iter().map(|row| (row.key, row.value)).collect::<Vec<_>>();
        assert_eq!(values(&config), values(&again));
    }

    #[test]
    fn tenants_are_in_the_table() {
        let content = "shards = 1\n[tenants.acme]\nweight = 3\nbytes_per_second_max = \"2MiB\"\n[tenants.default]\nconnections_max = 9\n";
        let load =
            |text: &str| Config::load(&Layers { file: Some(("t".into(), text.into())), ..Layers::default() }).unwrap();
        let config = load(content);
        let text = table(&config);
        assert!(text.ends_with("[tenants.default]\nweight = 1\nconnections_max = 9\n"), "{text}");
        assert_eq!(load(&text).quotas, config.quotas);
    }
}
