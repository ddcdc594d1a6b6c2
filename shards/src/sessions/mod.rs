//! The owner's side of a session: who waits for a commit, which shards are interested, which commands are parked
//! until something was read from disk.

pub(crate) mod interest;
pub(crate) mod parked;
pub(crate) mod waiters;

use crate::ids::{CommandId, ConnectionId, ShardId};
use crate::mailbox::codec::{Reader, Writer};
use crate::rights::{Capability, Rights};
use std::sync::Arc;

/// Where a command came from and where its answer goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Origin {
    /// A connection of this shard.
    Local(ConnectionId),
    /// A connection of another shard, and the bytes of room for the answer that are reserved there.
    Remote(ShardId, ConnectionId, u32),
}

/// Who asks: the principal of a command and how to answer it.
#[derive(Clone, Debug)]
pub(crate) struct Asker {
    pub origin: Origin,
    pub id: CommandId,
    pub tenant: Arc<str>,
    pub client_id: Arc<str>,
    /// What the session's owner is to hold the command against; `None`: nothing is left to be looked at.
    pub rights: Option<Arc<Rights>>,
}

/// Writes the principal of a command that is forwarded.
pub(crate) fn put_asker(w: &mut Writer<'_>, asker: &Asker) {
    w.text(&asker.tenant).text(&asker.client_id).u8(u8::from(asker.rights.is_some()));
    if let Some(rights) = &asker.rights {
        rights.put(w, Capability::Publish);
    }
}

/// Reads what [`put_asker`] wrote.
pub(crate) fn get_asker(r: &mut Reader<'_>, origin: Origin, id: CommandId) -> Asker {
    let (tenant, client_id) = (r.text().into(), r.text().into());
    let rights = (r.u8() == 1).then(|| Arc::new(Rights::get(r, Capability::Publish)));
    Asker { origin, id, tenant, client_id, rights }
}
