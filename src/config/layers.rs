//! Layers of configuration and how they are merged: the last one that names a key wins, and is remembered.

use std::fmt;
use std::path::PathBuf;

/// What each layer said, as text.
#[derive(Debug, Clone, Default)]
pub struct Layers {
    /// Path (for messages) and content of the TOML file.
    pub file: Option<(PathBuf, String)>,
    /// The process environment; only `TIDEGATE_…` is looked at.
    pub env: Vec<(String, String)>,
    /// Key and value of each flag given.
    pub flags: Vec<(String, String)>,
}

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Built in.
    Default,
    /// This file.
    File(PathBuf),
    /// This environment variable.
    Env(String),
    /// The command line.
    Flag,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => f.write_str("default"),
            Origin::File(path) => write!(f, "file {}", path.display()),
            Origin::Env(name) => write!(f, "environment {name}"),
            Origin::Flag => f.write_str("flag"),
        }
    }
}

/// One line of `check-config`.
#[derive(Debug, Clone)]
pub struct Row {
    /// Name of the setting.
    pub key: &'static str,
    /// Its value, as a TOML file would hold it.
    pub value: String,
    /// Where it came from.
    pub origin: Origin,
    /// What it means.
    pub help: String,
}

/// Why a configuration was refused: one line, for exit status 2.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError(String);

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for ConfigError {}

impl ConfigError {
    /// A refusal in the caller's words; line breaks are folded so that it stays one line.
    pub fn new(why: impl fmt::Display) -> Self {
        let why = why.to_string();
        ConfigError(why.split('\n').map(str::trim).filter(|part| !part.is_empty()).collect::<Vec<_>>().join("; "))
    }

    pub(super) fn bad_value(key: &str, layered: &Layered, why: &str) -> Self {
        ConfigError::new(format!("{key} = {:?} ({}): {why}", layered.text, layered.origin))
    }

    pub(super) fn relation(key: &str, origin: Option<&Origin>, why: &str) -> Self {
        ConfigError::new(format!("{key} ({}): {why}", origin.unwrap_or(&Origin::Default)))
    }

    pub(super) fn incomplete() -> Self {
        ConfigError::new("a layer lost a key")
    }

    fn unknown(key: &str, origin: &Origin, keys: &[&'static str]) -> Self {
        ConfigError::new(format!(
            "unknown key {key:?} ({origin}): did you mean {}? `tidegate check-config` lists them all",
            nearest(key, keys)
        ))
    }
}

/// Text of one key after merging, and where it stood.
#[derive(Debug, Clone)]
pub(super) struct Layered {
    pub text: String,
    pub origin: Origin,
}

/// One entry per key, in the order of `keys`.
pub(super) fn merge(layers: &Layers, keys: &[&'static str], defaults: &[&str]) -> Result<Vec<Layered>, ConfigError> {
    let mut merged: Vec<Layered> =
        defaults.iter().map(|text| Layered { text: text.to_string(), origin: Origin::Default }).collect();
    let mut set = |key: &str, text: String, origin: Origin| match keys.iter().position(|known| *known == key) {
        Some(i) => {
            merged[i] = Layered { text, origin };
            Ok(())
        }
        None => Err(ConfigError::unknown(key, &origin, keys)),
    };
    if let Some((path, content)) = &layers.file {
        let table: toml::Table = content
            .parse()
            .map_err(|why: toml::de::Error| ConfigError::new(format!("{}: {}", path.display(), why.message())))?;
        for (key, value) in table {
            // Tables of their own, read by `tenants`.
            if key == super::tenants::TABLE {
                continue;
            }
            let origin = Origin::File(path.clone());
            let text = match value {
                toml::Value::String(text) => text,
                toml::Value::Integer(n) => n.to_string(),
                toml::Value::Boolean(b) => b.to_string(),
                other if keys.contains(&key.as_str()) => {
                    let why = format!(
                        "a {} is not a value; expected text, a whole number, or true or false",
                        other.type_str()
                    );
                    return Err(ConfigError::relation(&key, Some(&origin), &why));
                }
                _ => String::new(), // an unknown key: refused below, by its name
            };
            set(&key, text, origin)?;
        }
    }
    for (name, text) in &layers.env {
        // An unknown TIDEGATE_… is no error: Kubernetes injects TIDEGATE_PORT and the like into every pod
        // beside a service of that name.
        let Some(key) = name.strip_prefix("TIDEGATE_").map(str::to_ascii_lowercase) else { continue };
        if keys.contains(&key.as_str()) {
            set(&key, text.clone(), Origin::Env(name.clone()))?;
        }
    }
    for (key, text) in &layers.flags {
        set(key, text.clone(), Origin::Flag)?;
    }
    Ok(merged)
}

/// The known key with the smallest edit distance.
fn nearest(key: &str, keys: &[&'static str]) -> &'static str {
    keys.iter().copied().min_by_key(|known| distance(key.as_bytes(), known.as_bytes())).unwrap_or("listen")
}

/// Levenshtein distance, one row at a time.
fn distance(a: &[u8], b: &[u8]) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_key_is_by_edits() {
        assert_eq!(distance(b"kitten", b"sitting"), 3);
        assert_eq!(nearest("shard", &["listen", "shards", "data"]), "shards");
        assert_eq!(nearest("Data", &["listen", "shards", "data"]), "data");
    }
}
