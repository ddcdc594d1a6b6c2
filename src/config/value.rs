//! How one value is read from text and shown again: `"256KiB"` ⇄ 262144.
//!
//! The unit of a number follows from its key: `bytes` anywhere in the name, `_ms` at its end or before its bound, otherwise a
//! plain count.

use std::net::SocketAddr;
use std::path::PathBuf;

/// A type that a configuration value can have.
pub trait Setting: Sized {
    /// Reads `text`, the value of `key`.
    ///
    /// # Errors
    /// What was expected, as the end of a sentence.
    fn read(key: &str, text: &str) -> Result<Self, String>;
    /// The value as it would be written in a file; [`Setting::read`] takes it back.
    fn show(&self, key: &str) -> String;
}

/// `on` or `off`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Switch {
    /// `on`
    On,
    /// `off`
    Off,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One object a line.
    Json,
}

/// An address, or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OptionalAddress(pub Option<SocketAddr>);

const BYTE_UNITS: &[(&str, u64)] = &[("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];
const TIME_UNITS: &[(&str, u64)] = &[("d", 86_400_000), ("h", 3_600_000), ("ms", 1), ("m", 60_000), ("s", 1_000)];

fn units(key: &str) -> &'static [(&'static str, u64)] {
    if ["_ms", "_ms_min", "_ms_max"].iter().any(|end| key.ends_with(end)) {
        TIME_UNITS
    } else if key.contains("bytes") {
        BYTE_UNITS
    } else {
        &[]
    }
}

fn read_number(key: &str, text: &str) -> Result<u64, String> {
    let units = units(key);
    let expected = || match units.iter().map(|(name, _)| *name).collect::<Vec<_>>() {
        names if names.is_empty() => "expected a whole number".to_string(),
        names => format!("expected a whole number, or one followed by {}", names.join(", ")),
    };
    let (digits, factor) = units
        .iter()
        .find_map(|(name, factor)| text.strip_suffix(name).map(|digits| (digits.trim_end(), *factor)))
        .unwrap_or((text, 1));
    let digits = digits.replace('_', "");
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(expected());
    }
    digits.parse::<u64>().ok().and_then(|n| n.checked_mul(factor)).ok_or_else(|| "the number is too big".into())
}

fn show_number(key: &str, n: u64) -> String {
    let mut units = units(key).to_vec();
    units.sort_by_key(|(_, factor)| std::cmp::Reverse(*factor));
    match units.iter().find(|(_, factor)| n > 0 && *factor > 1 && n.is_multiple_of(*factor)) {
        Some((name, factor)) => format!("\"{}{name}\"", n / factor),
        None => n.to_string(),
    }
}

macro_rules! number {
    ($($kind:ty),+) => {$(
        impl Setting for $kind {
            fn read(key: &str, text: &str) -> Result<Self, String> {
                let n = read_number(key, text)?;
                <$kind>::try_from(n).map_err(|_| format!("{n} is more than {}", <$kind>::MAX))
            }
            fn show(&self, key: &str) -> String {
                show_number(key, u64::from(*self))
            }
        }
    )+};
}
number!(u16, u32, u64);

impl Setting for bool {
    fn read(_: &str, text: &str) -> Result<Self, String> {
        text.parse().map_err(|_| "expected true or false".into())
    }
    fn show(&self, _: &str) -> String {
        self.to_string()
    }
}

impl Setting for Switch {
    fn read(_: &str, text: &str) -> Result<Self, String> {
        match text {
            "on" | "true" => Ok(Switch::On),
            "off" | "false" => Ok(Switch::Off),
            _ => Err("expected on or off".into()),
        }
    }
    fn show(&self, _: &str) -> String {
        if *self == Switch::On { "\"on\"" } else { "\"off\"" }.into()
    }
}

impl Setting for SocketAddr {
    fn read(_: &str, text: &str) -> Result<Self, String> {
        text.parse().map_err(|_| "expected an address and a port, such as 127.0.0.1:7777".into())
    }
    fn show(&self, _: &str) -> String {
        format!("\"{self}\"")
    }
}

impl Setting for LogFormat {
    fn read(_: &str, text: &str) -> Result<Self, String> {
        match text {
            "text" => Ok(LogFormat::Text),
            "json" => Ok(LogFormat::Json),
            _ => Err("expected text or json".into()),
        }
    }
    fn show(&self, _: &str) -> String {
        if *self == LogFormat::Text { "\"text\"" } else { "\"json\"" }.into()
    }
}

impl Setting for OptionalAddress {
    fn read(key: &str, text: &str) -> Result<Self, String> {
        match text {
            "off" => Ok(OptionalAddress(None)),
            text => SocketAddr::read(key, text)
                .map(|address| OptionalAddress(Some(address)))
                .map_err(|why| format!("{why}, or off")),
        }
    }
    fn show(&self, key: &str) -> String {
        self.0.map_or("\"off\"".into(), |address| address.show(key))
    }
}

impl Setting for PathBuf {
    fn read(_: &str, text: &str) -> Result<Self, String> {
        if text.is_empty() { Err("expected a path".into()) } else { Ok(text.into()) }
    }
    fn show(&self, _: &str) -> String {
        format!("{:?}", self.display().to_string())
    }
}

/// A path that may be left out: empty = none.
impl Setting for Option<PathBuf> {
    fn read(_: &str, text: &str) -> Result<Self, String> {
        Ok(Some(text).filter(|text| !text.is_empty()).map(Into::into))
    }
    fn show(&self, key: &str) -> String {
        self.as_ref().map_or_else(|| "\"\"".into(), |path| path.show(key))
    }
}

impl Setting for String {
    fn read(_: &str, text: &str) -> Result<Self, String> {
        Ok(text.into())
    }
    fn show(&self, _: &str) -> String {
        format!("{self:?}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_keep_their_unit_both_ways() {
        for (key, text, n) in [
            ("x_bytes_max", "256KiB", 262_144),
            ("x_bytes", "1 GiB", 1 << 30),
            ("x_bytes", "17", 17),
            ("x_bytes", "17B", 17),
            ("x_ms", "90s", 90_000),
            ("x_ms", "250ms", 250),
            ("x_ms", "7d", 604_800_000),
            ("x_ms_min", "1s", 1000),
            ("x_ms_max", "10m", 600_000),
            ("x_max", "65_536", 65_536),
            ("x_bytes", "0", 0),
        ] {
            assert_eq!(u64::read(key, text), Ok(n), "{key} {text}");
            let shown = u64::show(&n, key);
            assert_eq!(u64::read(key, shown.trim_matches('"')), Ok(n), "{key} {shown}");
        }
        assert_eq!(u64::show(&(3 << 20), "x_bytes"), "\"3MiB\"");
        assert_eq!(u64::show(&90_000, "x_ms"), "\"90s\"");
    }

    #[test]
    fn a_unit_of_the_wrong_kind_is_refused() {
        for (key, text) in [
            ("x_bytes", "3s"),
            ("x_ms", "3KiB"),
            ("x_max", "3KiB"),
            ("x_ms", ""),
            ("x_ms", "s"),
            ("x_bytes", "-1"),
            ("x_ms", "1.5s"),
        ] {
            assert!(u64::read(key, text).is_err(), "{key} {text}");
        }
        assert!(u64::read("x_bytes", "99999999TiB").unwrap_err().contains("too big"));
        assert!(u16::read("shards", "70000").unwrap_err().contains("65535"));
    }
}
