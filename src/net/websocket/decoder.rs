//! Client frames, as the bytes come.
//!
//! ```text
//!             ┌─ head of a frame ◄──────────────────────────────────────────┐
//!  bytes ──►  │  2 to 14 bytes, may come in parts                           │
//!             └─► payload ─┬─ whole in the receive buffer, one fragment ────┤ Message borrows the receive buffer
//!                          └─ else appended to assembly, UTF-8 checked as   │
//!                             it grows; last byte of the last fragment ─────┤ Message borrows assembly
//!                                                                           │
//!  violation, or a close frame ──► closed: later bytes are swallowed        ┘
//!
//!  assembly:  [ fragments of the message so far | part of the frame now coming in ]
//!             0                      message_bytes          message_bytes + frame_taken
//! ```
//! A control frame between two fragments is put together behind them, in the same buffer.

use super::mask::unmask_whole;
use super::text::text;
use super::{CONTROL_BYTES_MAX, Opcode, close_code_is_valid, unmask};
use std::ops::Range;

/// Longest frame head of a client.
const CLIENT_HEAD_BYTES_MAX: usize = 14;

/// One whole message of a client, unmasked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Message<'a> {
    /// Text, valid UTF-8.
    Text(&'a str),
    /// Bytes.
    Binary(&'a [u8]),
    /// To be answered by a pong with the same bytes.
    Ping(&'a [u8]),
    /// The answer to a ping, or a sign of life nobody asked for.
    Pong(&'a [u8]),
    /// The client closes: echo the code and shut down. Nothing comes after it.
    Close {
        /// Its reason as a number.
        code: Option<u16>,
        /// Its reason in words.
        reason: &'a str,
    },
}

/// How a client broke RFC 6455. The connection is closed with [`Violation::close_code`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Violation {
    /// A reserved bit is set, though no extension was agreed on.
    ReservedBits,
    /// Opcode 3–7 or 11–15.
    ReservedOpcode,
    /// A client's frame without a mask.
    Unmasked,
    /// A length in more bytes than it needs.
    LengthNotMinimal,
    /// A control frame in fragments.
    FragmentedControl,
    /// A control frame of more than 125 bytes.
    LongControl,
    /// A continuation where no message was begun.
    UnexpectedContinuation,
    /// A new message inside another.
    ExpectedContinuation,
    /// A close code that may not be sent, or half of one.
    BadCloseCode,
    /// Text, or a close reason, that is no UTF-8.
    InvalidUtf8,
    /// More bytes than `frame_bytes_max`, in one frame or in all fragments of a message.
    TooLarge,
}

impl Violation {
    /// All of them, for tables and tests.
    pub const ALL: &'static [Violation] = &[
        Violation::ReservedBits,
        Violation::ReservedOpcode,
        Violation::Unmasked,
        Violation::LengthNotMinimal,
        Violation::FragmentedControl,
        Violation::LongControl,
        Violation::UnexpectedContinuation,
        Violation::ExpectedContinuation,
        Violation::BadCloseCode,
        Violation::InvalidUtf8,
        Violation::TooLarge,
    ];

    /// Code the connection is closed with (RFC 6455 §7.4.1).
    pub const fn close_code(self) -> u16 {
        match self {
            Violation::InvalidUtf8 => 1007,
            Violation::TooLarge => 1009,
            _ => 1002,
        }
    }

    /// What was wrong and the cure: the close frame's reason.
    pub const fn reason(self) -> &'static str {
        match self {
            Violation::ReservedBits => "reserved bit set: no extension was agreed on, send RSV1-3 as 0",
            Violation::ReservedOpcode => "reserved opcode: use text, close, ping or pong",
            Violation::Unmasked => "unmasked frame: a client masks every frame",
            Violation::LengthNotMinimal => "frame length not minimal: use the shortest form",
            Violation::FragmentedControl => "control frame in fragments: send it whole",
            Violation::LongControl => "control frame over 125 bytes: make it shorter",
            Violation::UnexpectedContinuation => "continuation of nothing: begin with a text frame",
            Violation::ExpectedContinuation => "new message inside another: finish the first with FIN",
            Violation::BadCloseCode => "close code not allowed: use 1000",
            Violation::InvalidUtf8 => "text is not UTF-8: send UTF-8",
            Violation::TooLarge => "message larger than frame_bytes_max: send less at once",
        }
    }
}

/// State of one connection's incoming side. One per connection, touched only by its shard's thread; it owns no
/// buffer, so an idle connection costs its size and nothing more.
#[derive(Clone, Debug)]
pub struct Decoder {
    frame_bytes_max: u32,
    /// Bytes of the message that finished fragments have put into assembly.
    message_bytes: u32,
    /// Bytes of the current frame that are in assembly.
    frame_taken: u32,
    /// Bytes of the current frame still to come.
    frame_rest: u32,
    /// Bytes of assembly that are known to be whole UTF-8 characters.
    text_checked: u32,
    /// The current frame's mask, turned to its next byte.
    mask: [u8; 4],
    /// The part of a head that has come.
    head: [u8; CLIENT_HEAD_BYTES_MAX],
    head_bytes: u8,
    opcode: RawOpcode,
    fin: bool,
    /// Kind of the message whose fragments are coming in.
    message: Option<Opcode>,
    state: State,
}

const _: () = assert!(std::mem::size_of::<Decoder>() <= 48, "an idle connection costs this much");

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Head,
    Payload,
    Closed,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum RawOpcode {
    Continuation,
    Data(Opcode),
    Control(Opcode),
}

/// A whole frame head.
struct ClientHead {
    bytes: usize,
    fin: bool,
    opcode: RawOpcode,
    payload_bytes: u64,
    mask: [u8; 4],
}

/// An unfragmented text frame, all of it there.
struct WholeText {
    payload: Range<usize>,
    mask: [u8; 4],
}

impl Decoder {
    /// At the start of a connection. `frame_bytes_max` bounds a message, whole or in fragments.
    pub fn new(frame_bytes_max: usize) -> Self {
        Self {
            frame_bytes_max: u32::try_from(frame_bytes_max).unwrap_or(u32::MAX),
            message_bytes: 0,
            frame_taken: 0,
            frame_rest: 0,
            text_checked: 0,
            mask: [0; 4],
            head: [0; CLIENT_HEAD_BYTES_MAX],
            head_bytes: 0,
            opcode: RawOpcode::Continuation,
            fin: false,
            message: None,
            state: State::Head,
        }
    }

    /// Whether the assembly buffer holds bytes of this connection. Where it does not, between two calls of
    /// [`Decoder::next`], the buffer may be taken back and another one lent for the next call.
    pub fn holds_assembly(&self) -> bool {
        self.message_bytes + self.frame_taken > 0
    }

    /// Whether the connection ended: by a close frame or a violation.
    pub fn is_closed(&self) -> bool {
        self.state == State::Closed
    }

    /// Takes bytes from the front of `input` up to the end of one message. Returns how many, and the message if it
    /// is whole. Call again with the rest until all of `input` is taken; bytes that were taken are unmasked, the
    /// rest is untouched, so it can be kept and handed in later.
    ///
    /// `assembly` is this connection's while [`Decoder::holds_assembly`] says so; it grows with the bytes that come,
    /// not with the length a head announces, and never beyond `frame_bytes_max` + 125.
    ///
    /// # Errors
    /// The first violation closes the decoder; after it, and after a close frame, everything is swallowed.
    #[inline]
    pub fn next<'a>(
        &mut self,
        input: &'a mut [u8],
        assembly: &'a mut Vec<u8>,
    ) -> Result<(usize, Option<Message<'a>>), Violation> {
        let result = match self.whole_text(input) {
            Some(frame) => {
                let payload = &mut input[frame.payload.clone()];
                unmask_whole(payload, frame.mask);
                let text = text(payload).ok_or(Violation::InvalidUtf8);
                text.map(|text| (frame.payload.end, Some(Message::Text(text))))
            }
            None => self.step(input, assembly),
        };
        if result.is_err() {
            self.close();
        }
        result
    }

    /// Most messages are one text frame that is whole in the receive buffer: the place of such a one, if it is the
    /// next and nothing is wrong with its head. [`Decoder::step`] takes all others.
    #[inline(always)]
    fn whole_text(&self, input: &[u8]) -> Option<WholeText> {
        let &[first, second, a, b, c, d, e, f] = input.first_chunk()?;
        let at_head = self.state == State::Head && self.head_bytes == 0 && self.message.is_none();
        if !at_head || first != 0x81 {
            return None;
        }
        let (start, bytes, mask) = match second {
            0x80..=0xfd => (6, usize::from(second & 0x7f), [a, b, c, d]),
            0xfe => (8, usize::from(u16::from_be_bytes([a, b])), [c, d, e, f]),
            _ => return None,
        };
        let minimal = start == 6 || bytes >= 126;
        let fits = bytes <= self.frame_bytes_max as usize && bytes <= input.len() - start;
        (minimal && fits).then_some(WholeText { payload: start..start + bytes, mask })
    }

    fn close(&mut self) {
        self.state = State::Closed;
        self.message_bytes = 0;
        self.frame_taken = 0;
    }

    fn step<'a>(
        &mut self,
        input: &'a mut [u8],
        assembly: &'a mut Vec<u8>,
    ) -> Result<(usize, Option<Message<'a>>), Violation> {
        let mut at = 0;
        if self.state == State::Closed {
            return Ok((input.len(), None));
        }
        assembly.truncate((self.message_bytes + self.frame_taken) as usize);
        if self.state == State::Head {
            match self.take_head(input)? {
                Some(taken) => at = taken,
                None => return Ok((input.len(), None)),
            }
        }

        let here = input.len() - at;
        let rest = self.frame_rest as usize;
        let alone = match self.opcode {
            RawOpcode::Control(_) => true,
            RawOpcode::Data(_) => self.fin,
            RawOpcode::Continuation => false,
        };
        if alone && self.frame_taken == 0 && rest <= here {
            let (RawOpcode::Control(opcode) | RawOpcode::Data(opcode)) = self.opcode else {
                return Ok((at, None));
            };
            let payload = &mut input[at..at + rest];
            unmask(payload, self.mask);
            self.state = State::Head;
            self.frame_rest = 0;
            return Ok((at + rest, Some(self.message(opcode, payload)?)));
        }

        let part = &mut input[at..at + rest.min(here)];
        self.mask = unmask(part, self.mask);
        assembly.extend_from_slice(part);
        at += part.len();
        self.frame_taken += part.len() as u32;
        self.frame_rest -= part.len() as u32;

        if let RawOpcode::Control(opcode) = self.opcode {
            if self.frame_rest > 0 {
                return Ok((at, None));
            }
            self.state = State::Head;
            self.frame_taken = 0;
            let start = self.message_bytes as usize;
            return Ok((at, Some(self.message(opcode, &assembly[start..])?)));
        }

        let finished = self.frame_rest == 0 && self.fin;
        if self.message == Some(Opcode::Text) {
            self.check_text(assembly, finished)?;
        }
        if self.frame_rest > 0 {
            return Ok((at, None));
        }
        self.state = State::Head;
        self.message_bytes += self.frame_taken;
        self.frame_taken = 0;
        if !self.fin {
            return Ok((at, None));
        }
        self.message_bytes = 0;
        self.text_checked = 0;
        let message = match self.message.take() {
            // Checked as it came in; checking the whole again costs less than the copy did.
            Some(Opcode::Text) => Message::Text(text(assembly).ok_or(Violation::InvalidUtf8)?),
            _ => Message::Binary(assembly),
        };
        Ok((at, Some(message)))
    }

    /// A whole unfragmented frame.
    fn message<'a>(&mut self, opcode: Opcode, payload: &'a [u8]) -> Result<Message<'a>, Violation> {
        let text = |bytes: &'a [u8]| text(bytes).ok_or(Violation::InvalidUtf8);
        Ok(match opcode {
            Opcode::Text => {
                self.message = None;
                Message::Text(text(payload)?)
            }
            Opcode::Binary => {
                self.message = None;
                Message::Binary(payload)
            }
            Opcode::Ping => Message::Ping(payload),
            Opcode::Pong => Message::Pong(payload),
            Opcode::Close => {
                let (code, reason) = match payload {
                    [] => (None, ""),
                    [high, low, reason @ ..] => {
                        let code = u16::from_be_bytes([*high, *low]);
                        if !close_code_is_valid(code) {
                            return Err(Violation::BadCloseCode);
                        }
                        (Some(code), text(reason)?)
                    }
                    [_] => return Err(Violation::BadCloseCode),
                };
                self.close();
                Message::Close { code, reason }
            }
        })
    }

    /// Takes a head, or the part of it that is there. Returns the bytes taken once it is whole and allowed.
    fn take_head(&mut self, input: &[u8]) -> Result<Option<usize>, Violation> {
        let had = usize::from(self.head_bytes);
        let head = if had == 0 {
            read_head(input)?
        } else {
            let more = input.len().min(CLIENT_HEAD_BYTES_MAX - had);
            self.head[had..had + more].copy_from_slice(&input[..more]);
            self.head_bytes += more as u8;
            read_head(&self.head[..had + more])?
        };
        let Some(head) = head else {
            if had == 0 {
                // Not a whole head, so shorter than the longest one.
                self.head[..input.len()].copy_from_slice(input);
                self.head_bytes = input.len() as u8;
            }
            return Ok(None);
        };
        self.head_bytes = 0;

        match (head.opcode, self.message) {
            (RawOpcode::Continuation, None) => return Err(Violation::UnexpectedContinuation),
            (RawOpcode::Data(_), Some(_)) => return Err(Violation::ExpectedContinuation),
            (RawOpcode::Data(opcode), None) => {
                self.message = Some(opcode);
                self.text_checked = 0;
            }
            _ => {}
        }
        if !matches!(head.opcode, RawOpcode::Control(_))
            && head.payload_bytes.saturating_add(u64::from(self.message_bytes)) > u64::from(self.frame_bytes_max)
        {
            return Err(Violation::TooLarge);
        }
        self.opcode = head.opcode;
        self.fin = head.fin;
        self.mask = head.mask;
        self.frame_rest = head.payload_bytes as u32;
        self.frame_taken = 0;
        self.state = State::Payload;
        Ok(Some(head.bytes - had))
    }

    /// Fails on the first byte that no further byte could make right.
    fn check_text(&mut self, assembly: &[u8], finished: bool) -> Result<(), Violation> {
        let checked = self.text_checked as usize;
        match std::str::from_utf8(&assembly[checked..]) {
            Ok(_) => self.text_checked = assembly.len() as u32,
            Err(error) if error.error_len().is_none() && !finished => {
                self.text_checked = (checked + error.valid_up_to()) as u32;
            }
            Err(_) => return Err(Violation::InvalidUtf8),
        }
        Ok(())
    }
}

/// Reads a head; `None` if it is not whole. What is wrong in its first two bytes is said as soon as they are there.
#[inline]
fn read_head(bytes: &[u8]) -> Result<Option<ClientHead>, Violation> {
    let [first, rest @ ..] = bytes else { return Ok(None) };
    if first & 0x70 != 0 {
        return Err(Violation::ReservedBits);
    }
    let fin = first & 0x80 != 0;
    let opcode = match first & 0x0f {
        0 => RawOpcode::Continuation,
        1 => RawOpcode::Data(Opcode::Text),
        2 => RawOpcode::Data(Opcode::Binary),
        8 => RawOpcode::Control(Opcode::Close),
        9 => RawOpcode::Control(Opcode::Ping),
        10 => RawOpcode::Control(Opcode::Pong),
        _ => return Err(Violation::ReservedOpcode),
    };
    let control = matches!(opcode, RawOpcode::Control(_));
    if control && !fin {
        return Err(Violation::FragmentedControl);
    }
    let [second, rest @ ..] = rest else { return Ok(None) };
    if second & 0x80 == 0 {
        return Err(Violation::Unmasked);
    }
    let short = usize::from(second & 0x7f);
    if control && short > CONTROL_BYTES_MAX {
        return Err(Violation::LongControl);
    }
    let (payload_bytes, rest) = match short {
        126 => {
            let Some((length, rest)) = rest.split_first_chunk::<2>() else { return Ok(None) };
            (u64::from(u16::from_be_bytes(*length)), rest)
        }
        127 => {
            let Some((length, rest)) = rest.split_first_chunk::<8>() else { return Ok(None) };
            (u64::from_be_bytes(*length), rest)
        }
        _ => (short as u64, rest),
    };
    if (short == 126 && payload_bytes < 126) || (short == 127 && payload_bytes < 1 << 16) {
        return Err(Violation::LengthNotMinimal);
    }
    let Some((mask, rest)) = rest.split_first_chunk::<4>() else { return Ok(None) };
    Ok(Some(ClientHead { bytes: bytes.len() - rest.len(), fin, opcode, payload_bytes, mask: *mask }))
}
