//! Quotas and weights, one table for each tenant that is named and one for all others.
//!
//! ```text
//!   [tenants.default]                      whoever is not named
//!   connections_max = 1000
//!   [tenants.acme]                         only this; nothing is taken over from `default`
//!   weight = 4
//!   events_per_second_max = 5000
//!   bytes_per_second_max = "2MiB"
//! ```

use super::layers::{ConfigError, Layers};
use super::value::Setting;
use shards::limits::{Kind, Quota, Quotas, WEIGHT_MAX};
use shards::names::is_name;
use std::path::Path;

/// Name of the table of tables.
pub(super) const TABLE: &str = "tenants";

/// Table for whoever is not named. It is the name of the tenant of clients without a key, too.
const OTHERS: &str = "default";

/// Reads what the file says of tenants.
pub(super) fn read(layers: &Layers) -> Result<Quotas, ConfigError> {
    let mut quotas = Quotas::default();
    let Some((path, content)) = &layers.file else { return Ok(quotas) };
    let table: toml::Table = content.parse().map_err(|why: toml::de::Error| refuse(path, TABLE, why.message()))?;
    let Some(tenants) = table.get(TABLE) else { return Ok(quotas) };
    let tenants = tenants.as_table().ok_or_else(|| refuse(path, TABLE, "expected a table for each tenant"))?;
    for (name, bounds) in tenants {
        let place = format!("{TABLE}.{name}");
        if !is_name(name.as_bytes()) {
            return Err(refuse(path, &place, "a tenant's name is 1 to 128 of A-Z a-z 0-9 _ . : -"));
        }
        let bounds = bounds.as_table().ok_or_else(|| refuse(path, &place, "expected a table"))?;
        let quota = quota(path, &place, bounds)?;
        if name == OTHERS {
            quotas.others = quota;
        } else {
            quotas.tenants.insert(name.as_str().into(), quota);
        }
    }
    Ok(quotas)
}

fn quota(path: &Path, place: &str, bounds: &toml::Table) -> Result<Quota, ConfigError> {
    let mut quota = Quota::default();
    for (key, value) in bounds {
        let place = format!("{place}.{key}");
        let text = match value {
            toml::Value::String(text) => text.clone(),
            toml::Value::Integer(number) => number.to_string(),
            _ => return Err(refuse(path, &place, "expected text or a whole number")),
        };
        let number = u64::read(key, &text).map_err(|why| refuse(path, &place, &why))?;
        if key == "weight" {
            let weight = u32::try_from(number).ok().filter(|weight| (1..=WEIGHT_MAX).contains(weight));
            quota.weight = weight.ok_or_else(|| refuse(path, &place, &format!("a weight is 1 to {WEIGHT_MAX}")))?;
            continue;
        }
        let Some(kind) = Kind::ALL.into_iter().find(|kind| kind.name() == key) else {
            let known: Vec<&str> = Kind::ALL.iter().map(|kind| kind.name()).collect();
            return Err(refuse(path, &place, &format!("unknown key: there are weight, {}", known.join(", "))));
        };
        if !(1..=QUOTA_MAX).contains(&number) {
            return Err(refuse(path, &place, &format!("a quota is 1 to {QUOTA_MAX}; leave it out for none")));
        }
        quota.max[kind as usize] = Some(number);
    }
    Ok(quota)
}

/// Largest bound: with it no sum of the accounts overflows.
const QUOTA_MAX: u64 = 1 << 40;

fn refuse(path: &Path, place: &str, why: &str) -> ConfigError {
    ConfigError::new(format!("{place} (file {}): {why}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(content: &str) -> Result<Quotas, String> {
        let layers = Layers { file: Some(("t.toml".into(), content.into())), ..Layers::default() };
        read(&layers).map_err(|why| why.to_string())
    }

    #[test]
    fn tables_of_tenants_become_quotas() {
        let quotas = load(
            "shards = 2\n[tenants.default]\nconnections_max = 10\n[tenants.acme]\nweight = 4\nbytes_per_second_max = \"2MiB\"\n",
        )
        .expect("it is good");
        assert_eq!(quotas.of("anybody").max[Kind::Connections as usize], Some(10));
        let acme = quotas.of("acme");
        assert_eq!((acme.weight, acme.max), (4, [None, Some(2 << 20), None, None]));
        assert_eq!(load("shards = 2\n"), Ok(Quotas::default()));
    }

    #[test]
    fn what_is_none_is_refused_by_its_place() {
        for (bad, words) in [
            ("tenants = 3", "tenants (file t.toml): expected a table"),
            ("[tenants.acme]\nevents = 3", "tenants.acme.events (file t.toml): unknown key"),
            ("[tenants.acme]\nweight = 0", "tenants.acme.weight (file t.toml): a weight is 1 to 100"),
            ("[tenants.acme]\nweight = 101", "a weight is 1 to 100"),
            ("[tenants.acme]\nconnections_max = 0", "leave it out for none"),
            ("[tenants.acme]\nconnections_max = \"many\"", "expected a whole number"),
            ("[tenants.acme]\nconnections_max = -1", "expected a whole number"),
            ("[tenants.'a b']\nweight = 1", "a tenant's name is"),
        ] {
            let why = load(bad).expect_err(bad);
            assert!(why.contains(words), "{bad}: {why}");
        }
    }
}
