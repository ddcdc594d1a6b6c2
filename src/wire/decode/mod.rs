//! Text frames to commands.
//!
//! ```text
//!   {…}  or  [{…},{…}]      frame, borrowed
//!      │ one pass per object: known fields as ranges, the first thing wrong with them remembered
//!      │ escaped strings and base64 ──► scratch, reused for every command of a shard
//!      ▼
//!   Plan (ranges) ──► Command<'_> (borrows frame and scratch) ──► each(id, Ok(command) | Err(refused))
//! ```
//! The fields of a command may come in any order. A command that is wrong is refused alone. A frame that is broken is
//! refused whole: an array is checked to its end before the first of its commands is handed out.

mod commands;
mod fields;
mod groups;
mod jobs;
mod plan;
mod presence;
mod quota;
mod reader;
#[cfg(any(test, fuzzing))]
pub mod reference;
mod streams;
mod table;
#[cfg(test)]
mod tests;
mod work;

pub use table::commands;

use super::json::{Broken, Kind, Scanner};
use fields::{Field, Fields, Inside};
use groups::MarkerPlan;
use plan::{EventPlan, Place, Plan};
use shards::command::{Command, NewEntry, NewEvent, NewMarker, SeenEvent};
use shards::ids::CommandId;
use shards::limits::{FRAME_COMMANDS_MAX, Limits};
use shards::refusal::{Refusal, Refused};
use std::ops::ControlFlow;
use work::SetPlan;

/// Events of one page of history, at most and unless asked for fewer.
pub const HISTORY_EVENTS_MAX: u32 = 256;

/// Memory that decoding reuses. One per shard, touched only by its thread; it grows to the largest frame and stays.
#[derive(Debug)]
pub struct Scratch {
    event_bytes_max: usize,
    presence_bytes_max: usize,
    entry_bytes_max: usize,
    progress_bytes_max: usize,
    /// Unescaped text and decoded base64 of the command at hand.
    bytes: Vec<u8>,
    event_plans: Vec<EventPlan>,
    pattern_places: Vec<Place>,
    marker_plans: Vec<MarkerPlan>,
    seen_plans: Vec<(Place, u64, u64)>,
    entry_plans: Vec<SetPlan>,
    // Empty between commands: only their allocations are kept.
    events: Vec<NewEvent<'static>>,
    markers: Vec<NewMarker<'static>>,
    patterns: Vec<&'static str>,
    seen: Vec<SeenEvent<'static>>,
    entries: Vec<NewEntry<'static>>,
}

impl Scratch {
    /// For a shard with these limits.
    pub fn new(limits: &Limits) -> Self {
        Self {
            event_bytes_max: limits.event_bytes_max,
            presence_bytes_max: limits.presence.data_bytes_max,
            entry_bytes_max: limits.work.entry_bytes_max,
            progress_bytes_max: limits.work.progress_bytes_max,
            bytes: Vec::new(),
            event_plans: Vec::new(),
            pattern_places: Vec::new(),
            marker_plans: Vec::new(),
            seen_plans: Vec::new(),
            entry_plans: Vec::new(),
            entries: Vec::new(),
            events: Vec::new(),
            markers: Vec::new(),
            patterns: Vec::new(),
            seen: Vec::new(),
        }
    }

    /// Bytes held between frames.
    pub fn memory_bytes(&self) -> usize {
        self.bytes.capacity()
            + self.event_plans.capacity() * size_of::<EventPlan>()
            + self.pattern_places.capacity() * size_of::<Place>()
            + self.marker_plans.capacity() * size_of::<MarkerPlan>()
            + self.events.capacity() * size_of::<NewEvent<'_>>()
            + self.markers.capacity() * size_of::<NewMarker<'_>>()
            + self.patterns.capacity() * size_of::<&str>()
            + self.seen_plans.capacity() * size_of::<(Place, u64, u64)>()
            + self.seen.capacity() * size_of::<SeenEvent<'_>>()
            + self.entry_plans.capacity() * size_of::<SetPlan>()
            + self.entries.capacity() * size_of::<NewEntry<'_>>()
    }
}

/// Where decoding of a frame goes on. The default is its start.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Resume {
    at: u32,
    /// The frame is an array, known to be whole.
    in_array: bool,
}

impl Resume {
    /// As one number, to be kept with the frame. The start is 0.
    pub fn pack(self) -> u64 {
        u64::from(self.at) | u64::from(self.in_array) << 32
    }

    /// Back from [`Resume::pack`].
    pub fn unpack(packed: u64) -> Self {
        Self { at: packed as u32, in_array: packed >> 32 & 1 == 1 }
    }
}

/// Reads the commands of `frame` from `resume` on and hands each to `each`, with its id, or with why it is refused.
/// Where `each` breaks, decoding stops and the place of that very command is returned: keep the frame and hand both
/// in again, and the same command comes first.
pub fn decode(
    frame: &str,
    resume: Resume,
    scratch: &mut Scratch,
    mut each: impl FnMut(CommandId, Result<Command<'_>, Refused>) -> ControlFlow<()>,
) -> Option<Resume> {
    let mut scanner = Scanner::new(frame, resume.at as usize);
    let mut here = resume;
    if here == Resume::default() && scanner.take(b'[') {
        match check_array(scanner) {
            Ok(0) => return None,
            Ok(_) => here.in_array = true,
            Err(_) => {
                let flow = each(CommandId::None, Err(BAD_FRAME));
                return flow.is_break().then_some(resume);
            }
        }
    }
    loop {
        here.at = scanner.at() as u32;
        let mut reader = Reader { frame, scratch };
        let mut fields = Fields::new(Inside::Command);
        let more = reader.object(&mut scanner, here.in_array, &mut fields);
        let flow = match reader.plain_publish(&fields) {
            Some((id, command)) if more.is_ok() => each(id, Ok(command)),
            _ => {
                let (id, plan) = reader.plan_of(&fields, more.is_ok());
                match plan {
                    Ok(plan) => reader.hand_over(plan, |command| each(id, Ok(command))),
                    Err(refused) => each(id, Err(refused)),
                }
            }
        };
        if flow.is_break() {
            return Some(here);
        }
        if more != Ok(true) {
            return None;
        }
    }
}

/// Checks an array of commands, its `[` taken, to the end of the frame. Returns how many they are.
fn check_array(mut scanner: Scanner<'_>) -> Result<usize, Broken> {
    let mut count = 0;
    while scanner.element(count == 0)? {
        let is_object = scanner.value()?.kind == Kind::Object;
        count += 1;
        if !is_object || count > FRAME_COMMANDS_MAX {
            return Err(Broken::Syntax);
        }
    }
    scanner.end().map(|()| count)
}

struct Reader<'f, 's> {
    frame: &'f str,
    scratch: &'s mut Scratch,
}

const BAD_FRAME: Refused = Refused::field(Refusal::BadFrame, "");

impl Reader<'_, '_> {
    /// Reads the fields of one command and what must follow it. Says whether another command does.
    #[inline(always)]
    fn object(&mut self, scanner: &mut Scanner<'_>, in_array: bool, fields: &mut Fields) -> Result<bool, Broken> {
        self.scratch.bytes.clear();
        self.scratch.event_plans.clear();
        self.scan(scanner, fields)?;
        if in_array && scanner.element(false)? {
            return Ok(true);
        }
        scanner.end().map(|()| false)
    }

    /// The command that these fields are, or why they are none; `whole` is whether the frame is well-formed up to
    /// their end.
    #[inline(never)]
    fn plan_of(&mut self, fields: &Fields, whole: bool) -> (CommandId, Result<Plan, Refused>) {
        let id = self.id(fields);
        let plan = match (whole, id) {
            (false, _) if fields.broken == Some(Field::Data) => Err(fields.refused(Refusal::BadData, Field::Data)),
            (false, _) if fields.events.is_err_and(|refused| refused.refusal == Refusal::BadData) => {
                Err(fields.events.err().unwrap_or(BAD_FRAME))
            }
            (false, _) => Err(BAD_FRAME),
            (true, Err(refused)) => Err(refused),
            (true, Ok(_)) => self.plan(fields),
        };
        (id.unwrap_or(CommandId::None), plan)
    }
}
