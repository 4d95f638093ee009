//! Drops the blocks of ended heaps from the table of live blocks, a part at a time: processes may wait for files
//! to be examined meanwhile. By buckets, not from key to key: such a walk begins again whenever its key is deleted
//! under it.

use std::collections::HashMap;

use libbpf_rs::{MapCore, MapFlags};

use crate::kernel::batch::{Walk, delete_all};
use crate::kernel::records;
use crate::kernel::skeletons::types::heap_flags;

/// Entries that are looked at before anybody else gets their turn: about two milliseconds.
const PART: u32 = 4096;

/// A sweep that has begun.
pub(super) struct Sweep {
    walk: Walk,
    /// Of the heaps that have been met, by their ids: have they ended?
    ended: HashMap<[u8; 8], bool>,
    /// The keys that are to go.
    keys: Vec<u8>,
}

impl Sweep {
    pub(super) fn new() -> Self {
        Sweep {
            walk: Walk::new(PART),
            ended: HashMap::new(),
            keys: Vec::new(),
        }
    }

    /// Sweeps the next part of `blocks`. Returns how many entries are gone; `None` if there is nothing left to look at.
    ///
    /// # Errors
    /// The kernel cannot read or change its table.
    pub(super) fn step(
        &mut self,
        blocks: &impl MapCore,
        heaps: &impl MapCore,
    ) -> nix::Result<Option<u64>> {
        let Some(batch) = self.walk.next(blocks)? else {
            return Ok(None);
        };
        self.keys.clear();
        for key in batch.keys {
            let Some(id) = key.first_chunk() else {
                continue;
            };
            if *self
                .ended
                .entry(*id)
                .or_insert_with(|| has_ended(*id, heaps))
            {
                self.keys.extend_from_slice(key);
            }
        }
        delete_all(blocks, &self.keys).map(Some)
    }
}

/// A heap is in its map before it has blocks: one that is not there now has ended.
fn has_ended(id: [u8; 8], heaps: &impl MapCore) -> bool {
    match heaps.lookup(&id, MapFlags::ANY) {
        Ok(Some(record)) => records::heap_from_bytes(&record)
            .is_some_and(|record| record.flags & heap_flags::HEAP_ENDED.0 != 0),
        Ok(None) => true,
        Err(_) => false,
    }
}
