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
//! The same tables stand in the configuration and in the file of what was changed at run time; there a table takes the place of
//! the configuration's.

use super::layers::{ConfigError, Layers};
use super::value::Setting;
use shards::limits::{Kind, QUOTA_MAX, Quota, Quotas, WEIGHT_MAX};
use shards::names::is_name;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

/// Name of the table of tables.
pub(super) const TABLE: &str = "tenants";

/// Table for whoever is not named. It is the name of the tenant of clients without a key, too.
const OTHERS: &str = "default";

/// Tables by the tenant's name.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct TenantTables(BTreeMap<String, Quota>);

/// Reads what the file says of tenants.
pub(super) fn read(layers: &Layers) -> Result<Quotas, ConfigError> {
    let Some((path, content)) = &layers.file else { return Ok(Quotas::default()) };
    Ok(TenantTables::read(path, content)?.over(&Quotas::default()))
}

impl TenantTables {
    /// Reads all tables of tenants that `content` has; `path` is where it is said to stand.
    ///
    /// # Errors
    /// The first thing that is wrong, as one line with its place.
    pub fn read(path: &Path, content: &str) -> Result<Self, ConfigError> {
        let mut tables = Self::default();
        let table: toml::Table = content.parse().map_err(|why: toml::de::Error| refuse(path, TABLE, why.message()))?;
        let Some(tenants) = table.get(TABLE) else { return Ok(tables) };
        let tenants = tenants.as_table().ok_or_else(|| refuse(path, TABLE, "expected a table for each tenant"))?;
        for (name, bounds) in tenants {
            let place = format!("{TABLE}.{name}");
            if !is_name(name.as_bytes()) {
                return Err(refuse(path, &place, NO_NAME));
            }
            let bounds = bounds.as_table().ok_or_else(|| refuse(path, &place, "expected a table"))?;
            let mut quota = Quota::default();
            for (key, value) in bounds {
                let text = match value {
                    toml::Value::String(text) => text.clone(),
                    toml::Value::Integer(number) => number.to_string(),
                    _ => return Err(refuse(path, &format!("{place}.{key}"), "expected text or a whole number")),
                };
                set(&mut quota, key, &text).map_err(|why| refuse(path, &format!("{place}.{key}"), &why))?;
            }
            tables.0.insert(name.clone(), quota);
        }
        Ok(tables)
    }

    /// All that differs from a server without quotas.
    pub fn of(quotas: &Quotas) -> Self {
        let mut tables: BTreeMap<String, Quota> =
            quotas.tenants.iter().map(|(name, quota)| (name.to_string(), *quota)).collect();
        if quotas.others != Quota::default() {
            tables.insert(OTHERS.into(), quotas.others);
        }
        Self(tables)
    }

    /// The quotas, where these tables stand in place of those that `base` has.
    pub fn over(&self, base: &Quotas) -> Quotas {
        let mut quotas = base.clone();
        for (name, quota) in &self.0 {
            if name == OTHERS {
                quotas.others = *quota;
            } else {
                quotas.tenants.insert(name.as_str().into(), *quota);
            }
        }
        quotas
    }

    /// Of one tenant, if it has a table.
    pub fn get(&self, tenant: &str) -> Option<Quota> {
        self.0.get(tenant).copied()
    }

    /// Puts a tenant's table in place, or takes it away.
    ///
    /// # Errors
    /// The tenant's name is none.
    pub fn put(&mut self, tenant: &str, quota: Option<Quota>) -> Result<(), String> {
        if !is_name(tenant.as_bytes()) {
            return Err(format!("{tenant:?}: {NO_NAME}"));
        }
        match quota {
            Some(quota) => drop(self.0.insert(tenant.into(), quota)),
            None => drop(self.0.remove(tenant)),
        }
        Ok(())
    }

    /// As they are read again; empty where there is none.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for (name, quota) in &self.0 {
            let key =
                if name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-')) { "" } else { "\"" };
            let _infallible = write!(text, "[{TABLE}.{key}{name}{key}]\nweight = {}\n", quota.weight);
            for kind in Kind::ALL {
                if let Some(max) = quota.max[kind as usize] {
                    let _infallible = writeln!(text, "{} = {}", kind.name(), max.show(kind.name()));
                }
            }
        }
        text
    }
}

/// Sets one bound by its name. Without a value it is none any more, and the weight is 1.
///
/// # Errors
/// There is no such bound, or the value is none: why, as the end of a sentence.
pub fn set(quota: &mut Quota, key: &str, value: &str) -> Result<(), String> {
    let kind = Kind::ALL.into_iter().find(|kind| kind.name() == key);
    if kind.is_none() && key != "weight" {
        let known: Vec<&str> = Kind::ALL.iter().map(|kind| kind.name()).collect();
        return Err(format!("unknown key: there are weight, {}", known.join(", ")));
    }
    let number = if value.is_empty() { None } else { Some(u64::read(key, value)?) };
    match (kind, number) {
        (Some(kind), number) if number.is_none_or(|max| (1..=QUOTA_MAX).contains(&max)) => {
            quota.max[kind as usize] = number;
        }
        (Some(_), _) => return Err(format!("a quota is 1 to {QUOTA_MAX}; leave it out for none")),
        (None, number) => {
            let weight = u32::try_from(number.unwrap_or(1)).ok().filter(|weight| (1..=WEIGHT_MAX).contains(weight));
            quota.weight = weight.ok_or_else(|| format!("a weight is 1 to {WEIGHT_MAX}"))?;
        }
    }
    Ok(())
}

const NO_NAME: &str = "a tenant's name is 1 to 128 of A-Z a-z 0-9 _ . : -";

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
        assert_eq!((acme.weight, acme.max), (4, [None, Some(2 << 20), None, None, None, None, None]));
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

    #[test]
    fn what_was_changed_stands_in_place_of_the_configuration_and_is_read_again() {
        let configured =
            load("[tenants.default]\nweight = 2\n[tenants.acme]\nconnections_max = 5\n").expect("it is good");
        let mut changed = TenantTables::default();
        let mut quota = Quota::default();
        set(&mut quota, "bytes_per_second_max", "3MiB").expect("a bound");
        set(&mut quota, "weight", "7").expect("a weight");
        changed.put("acme", Some(quota)).expect("a name");
        changed.put("a.b:c", Some(Quota::default())).expect("a name");
        changed.put("a b", Some(quota)).expect_err("no name");
        let again = TenantTables::read(Path::new("q"), &changed.text()).expect("it is good");
        assert_eq!(again, changed);
        let quotas = again.over(&configured);
        assert_eq!((quotas.of("acme"), quotas.of("a.b:c"), quotas.of("x").weight), (quota, Quota::default(), 2));
        assert_eq!(TenantTables::of(&quotas).over(&Quotas::default()), quotas);
        set(&mut quota, "bytes_per_second_max", "").expect("it is taken away");
        assert_eq!(quota.max, [None; shards::limits::KINDS]);
        assert!(
            set(&mut quota, "events", "1").expect_err("no key").contains("there are weight, events_per_second_max")
        );
    }
}
