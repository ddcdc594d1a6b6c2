//! `mark`: move a named durable cursor of a session forward.

use super::publish::{Form, NewParts, append};
use super::{Call, Outcome};
use crate::command::NewMarker;
use crate::shard::Shard;

pub(crate) fn run(shard: &mut Shard, call: Call<'_>, marker: &NewMarker<'_>) -> Outcome {
    append(shard, call, &NewParts { markers: std::slice::from_ref(marker), ..NewParts::default() }, Form::Mark)
}
