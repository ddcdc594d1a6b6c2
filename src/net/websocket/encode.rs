//! Frames a server sends: never masked, never fragmented.
//!
//! ```text
//!   0x80 | opcode   length < 126                 2 bytes
//!   0x80 | opcode   126   u16 big endian         4 bytes
//!   0x80 | opcode   127   u64 big endian        10 bytes
//! ```

use super::{CONTROL_BYTES_MAX, Opcode};

/// Longest frame head of a server.
pub const HEAD_BYTES_MAX: usize = 10;

/// A frame head, in place.
#[derive(Clone, Copy)]
pub struct Head {
    bytes: [u8; HEAD_BYTES_MAX],
    length: u8,
}

impl Head {
    /// The bytes that go before the payload.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }
}

/// Head of a whole message of `payload_bytes`.
pub fn head(opcode: Opcode, payload_bytes: usize) -> Head {
    let mut bytes = [0; HEAD_BYTES_MAX];
    bytes[0] = 0x80 | opcode as u8;
    let length = match payload_bytes {
        0..=125 => {
            bytes[1] = payload_bytes as u8;
            2
        }
        126..=0xffff => {
            bytes[1] = 126;
            bytes[2..4].copy_from_slice(&(payload_bytes as u16).to_be_bytes());
            4
        }
        _ => {
            bytes[1] = 127;
            bytes[2..10].copy_from_slice(&(payload_bytes as u64).to_be_bytes());
            10
        }
    };
    Head { bytes, length }
}

/// Appends a frame head.
pub fn append_head(out: &mut Vec<u8>, opcode: Opcode, payload_bytes: usize) {
    out.extend_from_slice(head(opcode, payload_bytes).as_bytes());
}

/// Appends a frame. A control frame's payload is cut to [`CONTROL_BYTES_MAX`]: a pong answers a ping that had no more.
pub fn append_frame(out: &mut Vec<u8>, opcode: Opcode, payload: &[u8]) {
    let payload = match opcode {
        Opcode::Text | Opcode::Binary => payload,
        _ => &payload[..payload.len().min(CONTROL_BYTES_MAX)],
    };
    append_head(out, opcode, payload.len());
    out.extend_from_slice(payload);
}

/// Appends a data frame whose payload `fill` appends. Room is left for a four-byte head, which fits most frames;
/// the payload is moved where that guess was wrong. Returns the payload's bytes.
pub fn append_with(out: &mut Vec<u8>, opcode: Opcode, fill: impl FnOnce(&mut Vec<u8>)) -> usize {
    const GUESS: usize = 4;
    let start = out.len();
    out.extend_from_slice(&[0; GUESS]);
    fill(out);
    let payload_bytes = out.len() - start - GUESS;
    let head = head(opcode, payload_bytes);
    let head = head.as_bytes();
    if head.len() != GUESS {
        out.resize(out.len().max(start + head.len() + payload_bytes), 0);
        out.copy_within(start + GUESS..start + GUESS + payload_bytes, start + head.len());
        out.truncate(start + head.len() + payload_bytes);
    }
    out[start..start + head.len()].copy_from_slice(head);
    payload_bytes
}

/// Appends a close frame; the reason is cut at a character boundary where it is too long. `None` sends no code,
/// which is how a close frame without one is answered.
pub fn append_close(out: &mut Vec<u8>, code: Option<u16>, reason: &str) {
    let Some(code) = code else { return append_frame(out, Opcode::Close, &[]) };
    let mut end = reason.len().min(CONTROL_BYTES_MAX - 2);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    append_head(out, Opcode::Close, 2 + end);
    out.extend_from_slice(&code.to_be_bytes());
    out.extend_from_slice(&reason.as_bytes()[..end]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_filled_in_later_gets_the_same_frame() {
        for length in [0, 1, 125, 126, 127, 65_535, 65_536, 70_000] {
            let payload: Vec<u8> = (0..length).map(|i| i as u8).collect();
            let mut direct = b"before".to_vec();
            append_frame(&mut direct, Opcode::Text, &payload);
            let mut filled = b"before".to_vec();
            assert_eq!(append_with(&mut filled, Opcode::Text, |out| out.extend_from_slice(&payload)), length);
            assert!(direct == filled, "{length}");
        }
    }

    #[test]
    fn a_close_reason_is_cut_between_characters() {
        let mut out = Vec::new();
        append_close(&mut out, Some(1000), &"ä".repeat(100));
        assert_eq!(out.len(), 2 + 2 + 122);
        assert!(std::str::from_utf8(&out[4..]).is_ok());
    }
}
