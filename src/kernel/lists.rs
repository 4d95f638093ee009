//! BlockLists of the blocks that a heap still has, for heaps whose processes have been read at their ends.

use libbpf_rs::{MapCore as _, MapHandle};

use crate::kernel::batch::BatchWalk;
use crate::kernel::error::LoadError;
use crate::kernel::skeletons::MemleakSkel;
use crate::kernel::slots::Slots;
use crate::lost::Block;

/// How many entries of the hash table are read at once.
const AT_ONCE: u32 = 65536;

/// The tables of live blocks.
pub(super) struct BlockLists {
    slots: Slots,
    blocks: MapHandle,
    /// Heaps in it keep their blocks.
    unlisted: MapHandle,
}

impl BlockLists {
    /// # Errors
    /// There is no address space, or no descriptor, left.
    pub(super) fn open(skel: &MemleakSkel<'static>) -> Result<Self, LoadError> {
        let slots = Slots::map(&skel.maps.slots);
        Ok(Self {
            slots: slots.map_err(|error| LoadError::ring(error.into()))?,
            blocks: MapHandle::try_from(&skel.maps.blocks).map_err(LoadError::ring)?,
            unlisted: MapHandle::try_from(&skel.maps.unlisted).map_err(LoadError::ring)?,
        })
    }

    /// The blocks of a heap. `hashed`: how many of them are in the hash table, or more. If its process runs, some may be
    /// missing.
    ///
    /// # Errors
    /// The kernel cannot read the table.
    pub(super) fn read(&self, heap: u64, hashed: u64) -> nix::Result<Vec<Block>> {
        let mut blocks = self.slots.blocks_of(heap);
        if hashed > 0 {
            self.add_hashed(heap, &mut blocks)?;
        }
        Ok(blocks)
    }

    /// The blocks of a heap that has ended may be dropped.
    pub(super) fn release(&self, heap: u64) {
        // There is no entry if the process was never read.
        let _ = self.unlisted.delete(&heap.to_ne_bytes());
    }

    fn add_hashed(&self, heap: u64, blocks: &mut Vec<Block>) -> nix::Result<()> {
        let word = |bytes: &[u8], at: usize| {
            let word = bytes.get(at..).and_then(<[u8]>::first_chunk);
            word.map_or(0, |word| u64::from_ne_bytes(*word))
        };
        let mut walk = BatchWalk::new(AT_ONCE);
        while let Some(batch) = walk.next(&self.blocks)? {
            let own = batch.keys.zip(batch.values);
            let own = own.filter(|(key, _)| word(key, 0) == heap);
            blocks.extend(own.map(|(key, size)| Block {
                address: word(key, 8),
                size: word(size, 0),
            }));
        }
        Ok(())
    }
}
