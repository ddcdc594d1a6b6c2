//! `mark`: move a named durable cursor of a session forward.

use super::Outcome;
use super::publish::{Form, append};
use crate::command::NewMarker;
use crate::ids::Now;
use crate::sessions::Asker;
use crate::sessions::parked::Known;
use crate::shard::Shard;

pub(crate) fn run(shard: &mut Shard, asker: &Asker, session: &str, marker: &NewMarker<'_>, now: Now) -> Outcome {
    append(shard, asker, session, &[], std::slice::from_ref(marker), Form::Mark, &Known::default(), now)
}
