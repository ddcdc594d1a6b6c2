//! Sessions whose state is being read from the checkpoint.
//!
//! ```text
//!   open ─► Waiting (no buffer yet) ─► Reading ─► Loaded event ─► open again: Ready or Absent
//! ```
//! One load per session, however many commands wait for it; the commands are parked above.

use super::reader::{Purpose, ReadFault};
use super::{Log, LogEvent, Open};
use crate::catalog::{KeyMap, Load, Lookup, PartitionSlot};
use crate::checkpoint::PageAt;
use crate::disk::DiskFault;
use crate::ids::{Epoch, PartitionId};
use slab::Slab;
use std::collections::VecDeque;

/// Sessions remembered as absent after a page was read in vain (a false positive of the checkpoint's filter), so that the
/// open that follows the event does not read it again.
const ABSENT_MAX: usize = 256;

#[derive(Debug)]
struct Waiting {
    id: PartitionId,
    tenant: Box<str>,
    session: Box<str>,
    create: Option<Epoch>,
    /// Page being read; none while there is no buffer.
    page: Option<PageAt>,
}

#[derive(Debug)]
pub(super) struct Loads {
    waiting: Slab<Waiting>,
    by_id: KeyMap<PartitionId, u32>,
    /// Those without a buffer, oldest first.
    queue: VecDeque<u32>,
    absent: VecDeque<PartitionId>,
    max: usize,
}

impl Loads {
    pub(super) fn new(max: usize) -> Loads {
        Loads {
            waiting: Slab::with_capacity(max),
            by_id: KeyMap::default(),
            queue: VecDeque::with_capacity(max),
            absent: VecDeque::with_capacity(ABSENT_MAX),
            max,
        }
    }

    /// A new checkpoint may hold sessions that the last one did not.
    pub(super) fn forget_absent(&mut self) {
        self.absent.clear();
    }
}

impl Log {
    pub(super) fn open_partition(
        &mut self,
        id: PartitionId,
        tenant: &str,
        session: &str,
        create: Option<Epoch>,
    ) -> Open {
        match self.catalog.lookup(id, tenant, session) {
            Lookup::Resident(slot) => return Open::Ready(slot),
            Lookup::Collision => return Open::Collision,
            Lookup::Absent => return self.absent(id, tenant, session, create),
            Lookup::NeedsPage(_) => {}
        }
        if self.loads.absent.contains(&id) {
            return self.absent(id, tenant, session, create);
        }
        if let Some(&load) = self.loads.by_id.get(&id) {
            let waiting = &mut self.loads.waiting[load as usize];
            waiting.create = waiting.create.or(create);
            return Open::Loading;
        }
        if self.loads.waiting.len() >= self.loads.max {
            return Open::Full;
        }
        let load = self.loads.waiting.insert(Waiting {
            id,
            tenant: tenant.into(),
            session: session.into(),
            create,
            page: None,
        }) as u32;
        self.loads.by_id.insert(id, load);
        self.loads.queue.push_back(load);
        self.begin_loads();
        Open::Loading
    }

    fn absent(&mut self, id: PartitionId, tenant: &str, session: &str, create: Option<Epoch>) -> Open {
        let Some(epoch) = create else { return Open::Absent };
        match self.catalog.create(id, tenant, session, epoch) {
            Ok(slot) => Open::Ready(slot),
            Err(_) => Open::Full,
        }
    }

    /// Starts reads for those that wait, while there are buffers.
    pub(super) fn begin_loads(&mut self) {
        while self.reader.free_for_loads()
            && let Some(load) = self.loads.queue.pop_front()
        {
            let Waiting { id, tenant, session, .. } = &self.loads.waiting[load as usize];
            match self.catalog.lookup(*id, tenant, session) {
                Lookup::NeedsPage(page) => {
                    self.loads.waiting[load as usize].page = Some(page);
                    let wanted = self.reader.begin(Purpose::Page { load }, page.file, page.at, page.len);
                    self.ask(wanted.expect("a buffer is free"));
                }
                // It came into memory, or a new checkpoint knows that it does not exist: the open that follows sees it.
                Lookup::Resident(_) | Lookup::Absent | Lookup::Collision => self.loaded(load, None),
            }
        }
    }

    /// A page of the checkpoint was read, or not.
    pub(super) fn page_read(&mut self, load: u32, slot: u16, result: Result<usize, DiskFault>) {
        let Waiting { id, tenant, session, create, page } = &self.loads.waiting[load as usize];
        let (create, page) = (*create, page.expect("it was read"));
        let fault = match result {
            Ok(bytes) => {
                let bytes = &self.reader.buffer(slot)[..bytes.min(page.len)];
                match self.catalog.load(*id, tenant, session, page, bytes) {
                    // No room for it: the open that follows finds that out by itself, and says so.
                    Load::Resident(_) | Load::Collision | Load::Full => None,
                    Load::Absent => {
                        if self.loads.absent.len() == ABSENT_MAX {
                            self.loads.absent.pop_front();
                        }
                        self.loads.absent.push_back(*id);
                        if let Some(epoch) = create {
                            let _full: Option<PartitionSlot> = self.catalog.create(*id, tenant, session, epoch).ok();
                        }
                        None
                    }
                    Load::Stale => return self.load_again(load, slot),
                    Load::Corrupt { file, at } => Some(ReadFault::Corrupt { file, at }),
                }
            }
            // The file went because a newer checkpoint took its place.
            Err(DiskFault::Missing) if self.catalog.checkpoint().is_some_and(|now| now.file() != page.file) => {
                return self.load_again(load, slot);
            }
            Err(fault) => Some(ReadFault::Disk(fault)),
        };
        self.reader.put_back(slot);
        self.loaded(load, fault);
    }

    fn load_again(&mut self, load: u32, slot: u16) {
        self.reader.put_back(slot);
        self.loads.waiting[load as usize].page = None;
        self.loads.queue.push_front(load);
    }

    fn loaded(&mut self, load: u32, fault: Option<ReadFault>) {
        let Waiting { id, .. } = self.loads.waiting.remove(load as usize);
        self.loads.by_id.remove(&id);
        self.events.push_back(LogEvent::Loaded { id, fault });
    }
}
