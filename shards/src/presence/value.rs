//! What is known of one client, as the bytes that rooms keep and mail carries.
//!
//! ```text
//!   presence   state u8, LOG · data     no data: nothing behind the state
//!   receipt    delivered u64 · read u64
//! ```

use crate::command::{PresenceState, RosterKind};
use crate::ids::Offset;
use crate::outbox::RosterValue;

/// Beside the state: the member wants comings and goings logged.
const LOG: u8 = 0x80;

/// Bytes of a member's presence.
pub(crate) fn of_presence(state: PresenceState, data: Option<&[u8]>, log: bool) -> Vec<u8> {
    let mut value = vec![state as u8 | if log { LOG } else { 0 }];
    value.extend_from_slice(data.unwrap_or_default());
    value
}

/// State and data of a member.
pub(crate) fn presence(value: &[u8]) -> (PresenceState, Option<&[u8]>) {
    let (state, data) = value.split_first().unwrap_or((&0, &[]));
    (PresenceState::of_byte(*state & !LOG), (!data.is_empty()).then_some(data))
}

/// Does the member want comings and goings logged?
pub(crate) fn wants_log(value: &[u8]) -> bool {
    value.first().is_some_and(|state| state & LOG != 0)
}

/// Bytes of a receipt. What was read was delivered.
pub(crate) fn of_receipt(delivered: Offset, read: Offset) -> [u8; 16] {
    let mut value = [0; 16];
    value[..8].copy_from_slice(&delivered.max(read).to_le_bytes());
    value[8..].copy_from_slice(&read.to_le_bytes());
    value
}

/// Delivered and read.
pub(crate) fn receipt(value: &[u8]) -> (Offset, Offset) {
    let at = |from: usize| value.get(from..).and_then(|rest| rest.first_chunk()).map_or(0, |n| u64::from_le_bytes(*n));
    (at(0), at(8))
}

/// For a frame.
pub(crate) fn told(kind: RosterKind, value: &[u8]) -> RosterValue<'_> {
    match kind {
        RosterKind::Presence => {
            let (state, data) = presence(value);
            RosterValue::Presence { state, data }
        }
        RosterKind::Receipts => {
            let (delivered, read) = receipt(value);
            RosterValue::Receipt { delivered, read }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comes_back_as_it_was() {
        for state in PresenceState::ALL {
            for log in [false, true] {
                assert_eq!(presence(&of_presence(state, None, log)), (state, None));
                assert_eq!(presence(&of_presence(state, Some(b"{}"), log)), (state, Some(&b"{}"[..])));
                assert_eq!(wants_log(&of_presence(state, Some(b"{}"), log)), log);
            }
        }
        assert_eq!(receipt(&of_receipt(7, 3)), (7, 3));
        assert_eq!(receipt(&of_receipt(2, 3)), (3, 3), "what was read was delivered");
        assert_eq!((receipt(&[]), presence(&[])), ((0, 0), (PresenceState::Idle, None)));
    }
}
