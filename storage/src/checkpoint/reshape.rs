//! Dealing partitions out to another number of shards.

use super::page::{Entry, entries};
use super::write::Writer;
use super::{BadCheckpoint, CheckpointIndex, LogPosition, Made};
use crate::ids::{LogId, SLICES, SliceId};

/// A checkpoint to be made by [`reshape`]: its log and number.
pub type Target = (LogId, u32);

/// Deals the partitions of several checkpoints out to new ones by slice: how a folder changes its number of shards. Every
/// source must stand for the end of its log. Each target begins its log at position 0. Where two sources hold the same
/// partition (an older log kept a copy), the one changed last wins.
///
/// # Errors
/// The place of the source in `sources`, and what is wrong with it.
pub fn reshape(
    sources: &[(&CheckpointIndex, &[u8])],
    targets: &[Target],
    owner: impl Fn(SliceId) -> usize,
) -> Result<Vec<Made>, (usize, BadCheckpoint)> {
    // Slices spread evenly; a target with more than its share only has a filter that says "maybe" more often.
    let total: u64 = sources.iter().map(|(index, _)| index.entries).sum();
    let entries_max = total / targets.len().max(1) as u64 * 5 / 4 + 64;
    let mut writers: Vec<_> = targets.iter().map(|(log, number)| Writer::new(*log, *number, entries_max)).collect();
    let mut streams: Vec<_> = sources.iter().map(|(index, bytes)| entries(index, bytes).peekable()).collect();
    let mut slice_next = vec![1; SLICES.into()];
    for (index, _) in sources {
        slice_next.iter_mut().zip(&index.slice_next).for_each(|(max, next)| *max = (*max).max(*next));
    }
    loop {
        let mut newest: Option<Entry<'_>> = None;
        for (at, stream) in streams.iter_mut().enumerate() {
            match stream.peek() {
                Some(Ok(entry)) => {
                    let better = newest.is_none_or(|best| {
                        (entry.id, std::cmp::Reverse(entry.changed)) < (best.id, std::cmp::Reverse(best.changed))
                    });
                    newest = if better { Some(*entry) } else { newest };
                }
                Some(Err(bad)) => return Err((at, *bad)),
                None => {}
            }
        }
        let Some(entry) = newest else { break };
        for stream in &mut streams {
            stream.next_if(|next| next.is_ok_and(|next| next.id == entry.id));
        }
        writers[owner(entry.id.slice())].push(entry);
    }
    Ok(writers
        .into_iter()
        .map(|mut writer| {
            let index = writer.finish(LogPosition::default(), true, slice_next.clone());
            (writer.out, index)
        })
        .collect())
}
