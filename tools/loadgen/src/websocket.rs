//! The client's half of RFC 6455 framing, over byte slices.
//!
//! ```text
//!   out: FIN+opcode │ MASK+length (7, 16 or 64 bits) │ key │ payload ⊕ key
//!   in:  FIN+opcode │ length │ payload                      (a server never masks)
//! ```

/// Opcodes that matter here.
pub const TEXT: u8 = 1;
pub const BINARY: u8 = 2;
pub const CLOSE: u8 = 8;
pub const PING: u8 = 9;
pub const PONG: u8 = 10;

/// Constant: it costs the server the same as a random key, and this process nothing.
const KEY: [u8; 4] = [0x5a, 0xc3, 0x17, 0x8e];
/// What the upgrade request sends as `Sec-WebSocket-Key`.
pub const HANDSHAKE_KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

/// Appends one masked frame.
pub fn encode(out: &mut Vec<u8>, opcode: u8, payload: &[u8]) {
    encode_with(out, opcode, |to| to.extend_from_slice(payload));
}

/// Bytes of head and key of a frame with a 16-bit length, the usual one here.
const HEAD_BYTES: usize = 8;

/// Appends one masked frame whose payload `write` appends.
pub fn encode_with(out: &mut Vec<u8>, opcode: u8, write: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.resize(start + HEAD_BYTES, 0);
    write(out);
    let length = out.len() - start - HEAD_BYTES;
    let mut head = [0u8; 14];
    head[0] = 0x80 | opcode;
    let size = match length {
        n @ 0..126 => {
            head[1] = 0x80 | n as u8;
            2
        }
        n @ 126..65536 => {
            head[1] = 0x80 | 126;
            head[2..4].copy_from_slice(&(n as u16).to_be_bytes());
            4
        }
        n => {
            head[1] = 0x80 | 127;
            head[2..10].copy_from_slice(&(n as u64).to_be_bytes());
            10
        }
    };
    head[size..size + 4].copy_from_slice(&KEY);
    let size = size + 4;
    if size == HEAD_BYTES {
        out[start..start + HEAD_BYTES].copy_from_slice(&head[..HEAD_BYTES]);
    } else {
        out.splice(start..start + HEAD_BYTES, head[..size].iter().copied());
    }
    let key = u64::from_ne_bytes(std::array::from_fn(|i| KEY[i & 3]));
    let mut words = out[start + size..].chunks_exact_mut(8);
    for word in &mut words {
        let value = u64::from_ne_bytes(std::array::from_fn(|i| word[i])) ^ key;
        word.copy_from_slice(&value.to_ne_bytes());
    }
    words.into_remainder().iter_mut().zip(KEY.iter().cycle()).for_each(|(byte, key)| *byte ^= key);
}

/// The payload of a frame that [`encode`] wrote.
#[cfg(test)]
pub fn unmasked(frame: &[u8]) -> Vec<u8> {
    let head = match frame[1] & 0x7f {
        126 => 4,
        127 => 10,
        _ => 2,
    };
    frame[head + 4..].iter().zip(KEY.iter().cycle()).map(|(byte, key)| byte ^ key).collect()
}

/// The frame at the start of `bytes` as (opcode, payload, bytes after it), if it is whole.
pub fn decode(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (opcode, length) = (bytes.first()? & 0x0f, bytes.get(1)? & 0x7f);
    let (head, length) = match length {
        126 => (4, usize::from(u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?))),
        127 => (10, usize::try_from(u64::from_be_bytes(bytes.get(2..10)?.try_into().ok()?)).ok()?),
        n => (2, usize::from(n)),
    };
    let end = head + length;
    Some((opcode, bytes.get(head..end)?, &bytes[end..]))
}

/// The upgrade request for `path`. `token`: shown beside the subprotocol, as a Tidegate server wants it.
pub fn upgrade_request(
    path: &str,
    host: &str,
    subprotocol: Option<&str>,
    token: Option<&str>,
    bearer: Option<&str>,
) -> Vec<u8> {
    let token = token.map(|token| format!(", tidegate.resume.{token}")).unwrap_or_default();
    let line = |name| format!("Sec-WebSocket-Protocol: {name}{token}\r\n");
    let subprotocol = subprotocol.map(line).unwrap_or_default();
    let bearer = bearer.map(|bearer| format!("Authorization: Bearer {bearer}\r\n")).unwrap_or_default();
    format!(
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: {HANDSHAKE_KEY}\r\nSec-WebSocket-Version: 13\r\n{bearer}{subprotocol}\r\n"
    )
    .into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_of_every_class_survive_and_partial_frames_wait() {
        for n in [0, 1, 125, 126, 65_535, 65_536] {
            let payload: Vec<u8> = (0..n).map(|i| i as u8).collect();
            let mut masked = Vec::new();
            encode(&mut masked, TEXT, &payload);
            assert_eq!(unmasked(&masked), payload);
            let head = masked.len() - n - 4;
            // As a server would send it: the mask bit and the key removed, the payload unmasked.
            let mut plain = masked[..head].to_vec();
            plain[1] &= 0x7f;
            plain.extend(masked[head + 4..].iter().enumerate().map(|(i, b)| b ^ KEY[i & 3]));
            plain.push(0x81);
            assert_eq!(decode(&plain), Some((TEXT, &payload[..], &[0x81][..])));
            assert_eq!(decode(&plain[..plain.len() - 2]), None);
        }
    }
}
