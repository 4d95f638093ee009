//! Tables of the kernel side that are mapped into memleak: the slots that stand in front of the table of live blocks,
//! and the candidates that are looked up in it. Programs change them meanwhile.

use std::io;
use std::ops::Range;

use libbpf_rs::MapCore;

use crate::kernel::mapped::{MapAccess, MappedArray};
use crate::kernel::skeletons::types::{birth, candidate, slot, slot_state};
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
        // A slot that changes while it is read is not this heap's.
        let own = self.blocks().filter(|live| live.heap == heap);
        own.map(|live| live.block).collect()
    }

    /// The blocks of all heaps.
    pub(super) fn blocks(&self) -> impl Iterator<Item = LiveBlock> {
        const STATES: u32 = (1 << birth::BORN_IN_STATE.0) - 1;
        let slots = (0..self.0.count()).filter_map(|at| self.0.get(at));
        let full = slots.filter(|slot| slot.state & STATES == slot_state::SLOT_FULL.0);
        full.map(|slot| LiveBlock {
            heap: slot.heap,
            block: Block {
                address: slot.address,
                size: slot.size,
                stack: slot.stack,
            },
            born: slot.state >> birth::BORN_IN_STATE.0,
        })
    }
}

/// A block that a heap has.
pub(super) struct LiveBlock {
    pub(super) heap: u64,
    pub(super) block: Block,
    /// When it was allocated: CLOCK_MONOTONIC in units of 1 << `BORN_SHIFT` ns. 0: not recorded.
    pub(super) born: u32,
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
