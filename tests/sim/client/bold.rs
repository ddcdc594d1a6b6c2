//! What no careful client does, and some do beside their work. Each of it is refused, or does no harm.
//!
//! ```text
//!   a number of a stream again, with another text ──► stream_seq_reused, while the server can tell
//!   the end of a stream that nobody began ──────────► unknown_stream
//!   somebody else's token, once it has subscribed ──► resume_too_late: a connection has one client
//!   `read` with less than before ───────────────────► read_backwards
//!   its own token lost ─────────────────────────────► a new life; what an older connection claims late is fenced
//! ```

use super::provoke::{perhaps, sure};
use super::*;
use crate::world::TENANT;
use shards::ids::LifeId;

impl Client {
    /// Says something about streams that must not be taken.
    pub(super) fn tell_wrongly(&mut self, workload: &mut Random, net: &mut Random) {
        if self.pending.len() >= PENDING_MAX || !workload.chance(40) {
            return;
        }
        match self.tells.newest().filter(|_| workload.chance(700)) {
            Some((session, stream, seq)) => {
                let fields = format!(
                    "\"session\":\"{session}\",\"stream\":\"{stream}\",\"seq\":{seq},\"delta\":\"another text\""
                );
                // Its end may be on its way, and of what was said long ago only that it was said is known.
                self.provoke_with(net, "stream.append", &fields, perhaps("stream_seq_reused"));
            }
            None => {
                let Some(session) = self.role.tells.first() else { return };
                let fields = format!("\"session\":\"{session}\",\"stream\":\"never-begun\",\"status\":\"complete\"");
                self.provoke_with(net, "stream.close", &fields, sure("unknown_stream"));
            }
        }
    }

    /// Shows the token of somebody else on a connection that has a subscription.
    pub(super) fn resume_as_another(&mut self, net: &mut Random, wall_ms: u64) {
        if self.role.rude || !self.follows.values().any(|follow| follow.state == State::Live) {
            return;
        }
        let (token, _) =
            crate::edge::tokens().sign(TENANT, "somebody-else", LifeId { generation: 1, epoch: 0 }, wall_ms);
        self.provoke_with(net, "resume", &format!("\"token\":\"{token}\""), sure("resume_too_late"));
    }

    /// Says that it has read less of a session than it said before. Nobody minds its receipts.
    pub(super) fn read_backwards(&mut self, net: &mut Random, session: &str) {
        let id = self.command(Pending::Other);
        self.send(net, &format!("{{\"type\":\"read\",\"id\":{id},\"session\":\"{session}\",\"offset\":1}}"));
        let fields = format!("\"session\":\"{session}\",\"offset\":0");
        self.provoke_with(net, "read", &fields, perhaps("read_backwards"));
    }
}
