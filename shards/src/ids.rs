//! Identifiers of the running process. Those of the log come from `storage::ids`.

pub use storage::ids::{Epoch, HashKey, Offset, PartitionId, SLICES, SliceId, SliceSeq};

/// A core with all that it owns, `0..shards`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct ShardId(pub u16);

/// A socket of one shard: slot of its table and the slot's generation, so that an answer for a socket that is
/// gone can never reach the one that took its slot.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct ConnectionId {
    /// Slot in the shard's connection table.
    pub slot: u32,
    /// Raised each time the slot is given away.
    pub generation: u32,
}

/// Time of a turn, read once by the edge.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Now {
    /// Monotonic, microseconds from an arbitrary start.
    pub mono_us: u64,
    /// Wall clock, Unix ms.
    pub wall_ms: u64,
}

/// Longest text id of a command, bytes.
pub const COMMAND_ID_BYTES_MAX: usize = 64;

/// What the client calls its command; the reply carries it back. Copied about inline: no allocation per command.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum CommandId {
    /// The client gave none.
    None,
    /// An integer below 2^53.
    Number(u64),
    /// Text.
    Text(InlineText),
}

/// At most [`COMMAND_ID_BYTES_MAX`] bytes of text, stored in place.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct InlineText {
    length: u8,
    bytes: [u8; COMMAND_ID_BYTES_MAX],
}

impl InlineText {
    /// `None` if the text is too long.
    pub fn new(text: &str) -> Option<Self> {
        let mut bytes = [0; COMMAND_ID_BYTES_MAX];
        bytes.get_mut(..text.len())?.copy_from_slice(text.as_bytes());
        Some(Self { length: text.len() as u8, bytes })
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.bytes[..usize::from(self.length)]).unwrap_or("")
    }
}

impl std::fmt::Debug for CommandId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            CommandId::None => f.write_str("-"),
            CommandId::Number(n) => write!(f, "{n}"),
            CommandId::Text(t) => write!(f, "{:?}", t.as_str()),
        }
    }
}

/// An epoch by another name; the same mask takes it back. 0, which is none, stays so.
pub fn masked(epoch: Epoch, mask: u64) -> Epoch {
    if epoch == 0 || epoch == mask { epoch } else { epoch ^ mask }
}

/// Names one life of a client. The generation counts in the client's hidden session, and where that begins anew under another epoch
/// (a folder that was restored, or lost), it begins at 1 again: only both together name one life for ever.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct LifeId {
    /// Generation.
    pub generation: u64,
    /// Epoch of the hidden session; 0 in tokens that were signed before it stood in them: then only the generation counts.
    pub epoch: Epoch,
}

impl LifeId {
    /// Could it be a life of a session with this epoch?
    pub fn is_of(self, epoch: Epoch) -> bool {
        self.epoch == 0 || self.epoch == epoch
    }
}
