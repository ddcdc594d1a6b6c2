//! The keys that resume tokens are signed with: a small file beside the log, made on the first start.
//!
//! ```text
//!   resume.keys   0600   "2 <64 hex digits>"     the newest signs
//!                        "1 <64 hex digits>"     older ones are believed until it is rotated again
//! ```
//! Replaced whole, like every file that is not appended to: a temporary one, synced, renamed, the folder synced.

use super::small;
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::Path;

const NAME: &str = "resume.keys";
/// Bytes of a secret.
const SECRET_BYTES: usize = 32;
/// Keys that are kept: the one that signs and the one before it.
const KEYS_MAX: usize = 2;

/// A secret and its number, which each rotation raises; it wraps.
#[derive(Clone, PartialEq, Eq)]
pub struct Key {
    /// Number.
    pub number: u8,
    /// Secret.
    pub secret: [u8; SECRET_BYTES],
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "key {}", self.number)
    }
}

/// The keys of a folder, the newest first; made where there are none.
///
/// # Errors
/// The file cannot be read or made, or is not what this module writes.
pub fn load(folder: &Path) -> io::Result<Vec<Key>> {
    match fs::read_to_string(folder.join(NAME)) {
        Ok(text) => parse(&text).ok_or_else(|| {
            let why = format!("{NAME} is damaged: remove it, and clients will have to subscribe anew");
            io::Error::new(io::ErrorKind::InvalidData, why)
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => rotate(folder),
        Err(error) => Err(error),
    }
}

/// Adds a new key; the one before it is still believed, those before that are not.
///
/// # Errors
/// The file cannot be replaced.
pub fn rotate(folder: &Path) -> io::Result<Vec<Key>> {
    let mut keys = fs::read_to_string(folder.join(NAME)).ok().and_then(|text| parse(&text)).unwrap_or_default();
    let mut secret = [0; SECRET_BYTES];
    fs::File::open("/dev/urandom").and_then(|mut random| io::Read::read_exact(&mut random, &mut secret))?;
    let number = keys.first().map_or(1, |key| key.number.wrapping_add(1));
    keys.insert(0, Key { number, secret });
    keys.truncate(KEYS_MAX);
    small::replace(folder, NAME, &text_of(&keys))?;
    Ok(keys)
}

fn text_of(keys: &[Key]) -> String {
    let mut text = String::new();
    for key in keys {
        // Writing to a string cannot fail.
        let _ = write!(text, "{} ", key.number);
        key.secret.iter().for_each(|byte| {
            let _ = write!(text, "{byte:02x}");
        });
        text.push('\n');
    }
    text
}

fn parse(text: &str) -> Option<Vec<Key>> {
    let keys: Option<Vec<Key>> = text.lines().map(parse_line).collect();
    keys.filter(|keys| (1..=KEYS_MAX).contains(&keys.len()))
}

fn parse_line(line: &str) -> Option<Key> {
    let (number, digits) = line.split_once(' ')?;
    let mut secret = [0; SECRET_BYTES];
    if digits.len() != 2 * SECRET_BYTES || !digits.is_ascii() {
        return None;
    }
    for (at, byte) in secret.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&digits[2 * at..2 * at + 2], 16).ok()?;
    }
    Some(Key { number: number.parse().ok()?, secret })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn are_made_once_and_rotated() {
        let path = std::env::temp_dir().join(format!("tidegate-keys-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        let first = load(&path).unwrap();
        assert_eq!(load(&path).unwrap(), first);
        let second = rotate(&path).unwrap();
        assert_eq!((second.len(), &second[1]), (2, &first[0]));
        let third = rotate(&path).unwrap();
        assert_eq!((third.len(), &third[1]), (2, &second[0]));
        assert_eq!(load(&path).unwrap(), third);
        fs::write(path.join(NAME), "1 zz").unwrap();
        assert!(load(&path).is_err());
        fs::remove_dir_all(path).unwrap();
    }
}
