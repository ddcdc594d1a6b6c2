//! The WebSocket frame codec of a server (RFC 6455): bytes in, messages out, and back. No sockets, no clock.
//!
//! ```text
//!   recv buffer ──► Decoder::next ──► Message::{Text, Binary, Ping, Pong, Close}
//!        │               │                borrows the recv buffer, unmasked in place, where a frame is whole in it
//!        │               └── a part of a frame, or a fragment, is copied once into the assembly buffer
//!        └── Violation: the connection is closed with its code; later bytes are ignored
//!
//!   append_frame / append_with / append_close ──► send queue      server frames are never masked
//! ```
//!
//! A connection that waits for its next frame holds a [`Decoder`] (48 bytes) and no buffer.

mod decoder;
mod encode;
mod mask;
#[cfg(test)]
mod tests;
mod text;

pub use decoder::{Decoder, Message, Violation};
pub use encode::{HEAD_BYTES_MAX, Head, append_close, append_frame, append_head, append_with, head};
pub use mask::unmask;

/// What a frame carries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Opcode {
    /// UTF-8 text.
    Text = 1,
    /// Bytes.
    Binary = 2,
    /// The last frame of a connection.
    Close = 8,
    /// Asks for a pong.
    Ping = 9,
    /// Answers a ping.
    Pong = 10,
}

/// Most payload bytes of a close, ping or pong frame.
pub const CONTROL_BYTES_MAX: usize = 125;

/// May this code stand in a close frame? (RFC 6455 §7.4 and the IANA registry: 1004, 1005, 1006 and 1015 are never
/// sent, 1016–2999 are not assigned, 3000–4999 are free for libraries and applications.)
pub const fn close_code_is_valid(code: u16) -> bool {
    matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999)
}
