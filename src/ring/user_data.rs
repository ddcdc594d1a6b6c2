//! What rides on every request and comes back on its completion: who asked, and which life of the slot it was.
//!
//! ```text
//!   bit 63       56 55                    32 31                            0
//!      ┌──────────┬─────────────────────────┬──────────────────────────────┐
//!      │   Kind   │          slot           │          generation          │
//!      └──────────┴─────────────────────────┴──────────────────────────────┘
//! ```
//! A completion whose generation is not the slot's present one belongs to a former owner of the slot and is dropped.

/// Who asked. The reactor routes a completion by this and by nothing else.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Kind {
    /// Accept of one connection by the shard's listener.
    Accept = 1,
    /// Single-shot receive of an upgrade request.
    Upgrade,
    /// Multishot receive of an open connection.
    Recv,
    /// Send of a connection.
    Send,
    /// Cancellation of a connection's receive.
    Cancel,
    /// Shutdown of a connection's sending side.
    Shutdown,
    /// Close of a connection's socket.
    Close,
    /// Move of a connection's socket to a peer, seen by the shard that gives.
    HandOffSent,
    /// Close of the giver's own reference, linked behind the move.
    HandOffClosed,
    /// A socket from a peer, seen by the shard that takes: slot = giver, generation = ticket, result = direct slot.
    HandOff,
    /// A peer has put mail into a mailbox.
    Wake,
    /// Waking a peer failed (success is silent).
    WakeSent,
    /// The shard's waker was rung: look at the control channel and at finished background work.
    Control,
    /// Cancellation of the shard's accepts.
    AcceptCancel,
    /// Any request of the disk executor; the generation is its token.
    Disk,
}

impl Kind {
    const ALL: [Kind; 15] = [
        Kind::Accept,
        Kind::Upgrade,
        Kind::Recv,
        Kind::Send,
        Kind::Cancel,
        Kind::Shutdown,
        Kind::Close,
        Kind::HandOffSent,
        Kind::HandOffClosed,
        Kind::HandOff,
        Kind::Wake,
        Kind::WakeSent,
        Kind::Control,
        Kind::AcceptCancel,
        Kind::Disk,
    ];
}

/// Slots a kind may number.
pub const SLOTS_MAX: u32 = 1 << 24;

/// Kind, slot, generation in one word.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UserData(u64);

impl UserData {
    /// Packs. `slot` < [`SLOTS_MAX`].
    pub const fn new(kind: Kind, slot: u32, generation: u32) -> Self {
        assert!(slot < SLOTS_MAX, "every table of slots is bounded by SLOTS_MAX");
        Self((kind as u64) << 56 | (slot as u64) << 32 | generation as u64)
    }

    /// For kinds of which a shard has only one.
    pub const fn only(kind: Kind) -> Self {
        Self::new(kind, 0, 0)
    }

    /// The word as the kernel carries it.
    pub const fn raw(self) -> u64 {
        self.0
    }

    /// From the kernel; `None` for a kind this process never sends.
    pub fn from_raw(raw: u64) -> Option<Self> {
        let kind = (raw >> 56) as usize;
        (1..=Kind::ALL.len()).contains(&kind).then_some(Self(raw))
    }

    /// Who asked.
    pub fn kind(self) -> Kind {
        Kind::ALL[(self.0 >> 56) as usize - 1]
    }

    /// Slot.
    pub const fn slot(self) -> u32 {
        (self.0 >> 32) as u32 & (SLOTS_MAX - 1)
    }

    /// Life of the slot.
    pub const fn generation(self) -> u32 {
        self.0 as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_comes_back_with_its_slot_and_generation() {
        for (i, kind) in Kind::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, i + 1, "ALL is in order of the discriminants");
            for (slot, generation) in [(0, 0), (SLOTS_MAX - 1, u32::MAX), (7, 1 << 31)] {
                let packed = UserData::new(kind, slot, generation);
                let back = UserData::from_raw(packed.raw()).unwrap();
                assert_eq!((back.kind(), back.slot(), back.generation()), (kind, slot, generation));
            }
        }
        assert_eq!(UserData::from_raw(0), None);
        assert_eq!(UserData::from_raw(u64::MAX), None);
    }
}
