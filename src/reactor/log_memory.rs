//! The log's memory as the disk executor wants it.

use crate::disk::executor::LogMemory;
use storage::log::Log;

impl LogMemory for Log {
    fn arena(&self, start: usize, len: usize) -> &[u8] {
        Log::arena(self, start, len)
    }

    fn read_buffer_mut(&mut self, slot: usize) -> &mut [u8] {
        Log::read_buffer_mut(self, slot)
    }
}
