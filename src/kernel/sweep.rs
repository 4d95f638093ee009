//! Drops the blocks of ended heaps from the table of live blocks. A sweep works in parts, because processes may wait
//! meanwhile for files to be examined. It walks by buckets and not from key to key: a walk by keys begins again
//! whenever its key was deleted.
//!
//! When a sweep is due is decided in `collector`.

use std::collections::HashMap;

use libbpf_rs::{MapCore, MapFlags};

use crate::kernel::batch::{BatchWalk, delete_all};
use crate::kernel::records;
use crate::kernel::skeletons::types::heap_flags;

/// How many entries are looked at before memleak's other work gets its turn. They take about two milliseconds.
const PART: u32 = 4096;

/// A sweep that has begun.
pub(super) struct Sweep {
    walk: BatchWalk,
    /// Whether the heaps that were met have ended, by their ids.
    ended: HashMap<[u8; 8], bool>,
    /// The keys that are to be deleted.
    keys: Vec<u8>,
}

impl Sweep {
    pub(super) fn new() -> Self {
        Sweep {
            walk: BatchWalk::new(PART),
            ended: HashMap::new(),
            keys: Vec::new(),
        }
    }

    /// Sweeps the next part of `blocks`. Heaps in `unlisted` keep their blocks. Returns how many entries were deleted. `None`: the sweep is finished.
    ///
    /// # Errors
    /// The kernel cannot read or change its table.
    pub(super) fn step(
        &mut self,
        blocks: &impl MapCore,
        heaps: &impl MapCore,
        unlisted: Option<&impl MapCore>,
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
                .or_insert_with(|| has_ended(*id, heaps) && !is_unlisted(*id, unlisted))
            {
                self.keys.extend_from_slice(key);
            }
        }
        delete_all(blocks, &self.keys).map(Some)
    }
}

/// Whether the list of the heap's blocks is still to be read.
fn is_unlisted(id: [u8; 8], unlisted: Option<&impl MapCore>) -> bool {
    unlisted.is_some_and(|map| !matches!(map.lookup(&id, MapFlags::ANY), Ok(None)))
}

/// A heap is in the map of heaps before it has blocks. So a heap that is not in the map has ended.
fn has_ended(id: [u8; 8], heaps: &impl MapCore) -> bool {
    match heaps.lookup(&id, MapFlags::ANY) {
        Ok(Some(record)) => records::heap_from_bytes(&record)
            .is_some_and(|record| record.flags & heap_flags::HEAP_ENDED.0 != 0),
        Ok(None) => true,
        Err(_) => false,
    }
}
