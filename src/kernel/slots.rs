//! Tables of the kernel side that are mapped into memleak: the slots that stand in front of the table of live blocks,
//! and the candidates that are looked up in it. Programs change them meanwhile.

use std::io;
use std::ops::Range;

use libbpf_rs::MapCore;

use crate::kernel::mapped::{MapAccess, MappedArray};
use crate::kernel::skeletons::types::{candidate, slot, slot_state};
use crate::lost::Block;

/// The mapped slots.
pub(super) struct Slots(MappedArray<slot>);

impl Slots {
    /// Maps the slots.
    ///
    /// # Errors
    /// There is no address space left.
    pub(super) fn map(map: &impl MapCore) -> io::Result<Self> {
        MappedArray::map(map, MapAccess::Read).map(Self)
    }

    /// The blocks of a heap. If its process runs, its slots may change meanwhile.
    pub(super) fn blocks_of(&self, heap: u64) -> Vec<Block> {
        let mut blocks = Vec::new();
        for at in 0..self.0.count() {
            // A slot that changes while it is read is not this heap's.
            if let Some(slot) = self.0.get(at)
                && slot.heap == heap
                && slot.state == slot_state::SLOT_FULL.0
            {
                let (address, size, stack) = (slot.address, slot.size, slot.stack);
                blocks.push(Block {
                    address,
                    size,
                    stack,
                });
            }
        }
        blocks
    }
}

/// A half of the candidates, mapped, for a thread of its own.
pub(super) struct CandidateTable {
    entries: MappedArray<candidate>,
    first: u32,
}

impl CandidateTable {
    /// Maps both halves.
    ///
    /// # Errors
    /// There is no address space left.
    pub(super) fn map_halves(map: &impl MapCore) -> io::Result<[Self; 2]> {
        let all = map.max_entries();
        let map = |half: Range<u32>| -> io::Result<Self> {
            let part = half.start as usize..half.end as usize;
            let entries = MappedArray::map_part(map, MapAccess::Write, part)?;
            let first = half.start;
            Ok(Self { entries, first })
        };
        Ok([map(0..all / 2)?, map(all / 2..all)?])
    }

    /// The index in the whole table of its first entry.
    pub(super) fn first(&self) -> u32 {
        self.first
    }

    /// How many there may be at once.
    pub(super) fn size(&self) -> usize {
        self.entries.count()
    }

    /// Puts addresses in. There is room for `size` of them.
    pub(super) fn put(&mut self, addresses: &[u64]) {
        for (at, &address) in addresses.iter().take(self.size()).enumerate() {
            self.entries.put(
                at,
                candidate {
                    address,
                    ..candidate::default()
                },
            );
        }
    }

    /// Those of the first `count` candidates that were found to be blocks.
    pub(super) fn found(&self, count: usize) -> impl Iterator<Item = Block> {
        let answers = (0..count).filter_map(|at| self.entries.get(at));
        answers.filter_map(|answer| {
            Some(Block {
                address: answer.address,
                size: answer.size.try_into().ok()?,
                stack: answer.stack,
            })
        })
    }
}
