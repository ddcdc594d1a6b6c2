//! What each command does, one file each. Commands of a session run on its owner's shard; the others where the client
//! is.
//!
//! A command first proves that there is room for all it will cause, then checks, then changes. It ends as:
//!
//! ```text
//! Done    taken: its answer was given or will be
//! Later   nothing was changed and there is no room yet: the connection keeps it
//! Park    its partition or a dedupe lookup must come from disk first: it is parked behind that read
//! ```

pub(crate) mod acknowledge;
pub(crate) mod commit;
pub(crate) mod entries;
pub(crate) mod groups;
pub(crate) mod hello;
pub(crate) mod history;
pub(crate) mod mark;
pub(crate) mod permit;
pub(crate) mod ping;
pub(crate) mod presence;
pub(crate) mod publish;
pub(crate) mod queues;
pub(crate) mod resume;
pub(crate) mod stream_append;
pub(crate) mod stream_close;
pub(crate) mod subscribe;
pub(crate) mod subscribe_patterns;
pub(crate) mod unsubscribe;

use crate::ids::{Now, PartitionId};
use crate::sessions::Asker;
use crate::sessions::parked::Known;

/// A session command in the hands of its session's owner: what all of them need.
#[derive(Clone, Copy)]
pub(crate) struct Call<'a> {
    pub asker: &'a Asker,
    pub partition: PartitionId,
    pub session: &'a str,
    /// Lookups it was parked for.
    pub known: &'a Known,
    pub now: Now,
}

/// How a command ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Outcome {
    /// Taken.
    Done,
    /// No room; nothing changed.
    Later,
    /// Waits for the disk; nothing changed.
    Park,
}
