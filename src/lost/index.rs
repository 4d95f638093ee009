//! Finds the block that a word points into. Pure.
//!
//! Nearly every word of a process's memory is looked up, so this decides how long a verdict takes. The blocks are
//! sorted, and a directory says for each 512 bytes of addresses which block is the first. A search then passes over a
//! few neighbours. Where blocks are far apart the directory has a gap, so that it is never much larger than the blocks.

use std::ops::Range;

use super::block::Block;

/// A cell of the directory covers `1 << CELL` bytes.
const CELL: u32 = 9;

/// Gaps between blocks from which on the directory is divided. The first for which it has few cells is taken.
const GAPS: [u64; 5] = [1 << 21, 1 << 18, 1 << 15, 1 << 12, 1 << CELL];

/// The directory may have this many cells for a block, and `FREE_CELLS` besides.
const CELLS_PER_BLOCK: u64 = 8;
const FREE_CELLS: u64 = 1 << 16;

/// A part of the directory, for blocks that are close together.
#[derive(Debug)]
struct Neighbours {
    /// The address of the first cell.
    start: u64,
    /// Its cells. One more stands behind the last, and names the block behind this part's last block.
    first_cell: usize,
    cells: usize,
}

/// Blocks that can be found by an address within them.
#[derive(Debug, Default)]
pub struct BlockIndex {
    /// By address, each address once.
    blocks: Vec<Block>,
    parts: Vec<Neighbours>,
    /// For each cell the index of the first block that begins in it or behind it.
    cells: Vec<u32>,
    /// The first address of the first block, and how far it is to the end of the one that ends last.
    lowest: u64,
    extent: u64,
}

impl BlockIndex {
    /// Sorts the blocks. Of two with the same address, the larger one stays.
    pub fn new(mut blocks: Vec<Block>) -> Self {
        // Blocks are known by 32 bits. memleak records fewer.
        blocks.truncate(u32::MAX as usize - 1);
        let key = |block: &Block| (block.address, std::cmp::Reverse(block.size));
        if !blocks.is_sorted_by_key(key) {
            blocks.sort_unstable_by_key(key);
        }
        blocks.dedup_by_key(|block| block.address);
        let (Some(first), Some(end)) = (blocks.first(), blocks.iter().map(Block::end).max()) else {
            return Self::default();
        };
        let lowest = first.address;
        let mut index = Self {
            lowest,
            extent: end - lowest,
            ..Self::default()
        };
        index.fill(&blocks);
        index.blocks = blocks;
        index
    }

    fn fill(&mut self, blocks: &[Block]) {
        let most = CELLS_PER_BLOCK * blocks.len() as u64 + FREE_CELLS;
        let fits = |gap: &u64| {
            let cells: u64 = parts(blocks, *gap).map(cells_of).sum();
            cells <= most
        };
        let gap = GAPS.into_iter().find(fits).unwrap_or(1 << CELL);
        let mut before = 0_u32;
        for part in parts(blocks, gap) {
            let start = part[0].address & !((1 << CELL) - 1);
            let first_cell = self.cells.len();
            for (at, block) in part.iter().enumerate() {
                let cell = first_cell + ((block.address - start) >> CELL) as usize;
                while self.cells.len() <= cell {
                    self.cells.push(before + at as u32);
                }
            }
            before += part.len() as u32;
            let cells = self.cells.len() - first_cell;
            self.cells.push(before);
            self.parts.push(Neighbours {
                start,
                first_cell,
                cells,
            });
        }
    }

    pub fn blocks(&self) -> &[Block] {
        &self.blocks
    }

    pub fn into_blocks(self) -> Vec<Block> {
        self.blocks
    }

    /// Whether a word may point into a block. Most words do not pass.
    #[inline(always)]
    pub fn may_be(&self, word: u64) -> bool {
        word.wrapping_sub(self.lowest) < self.extent
    }

    /// The index of the block that an address is in.
    #[inline]
    pub fn find(&self, address: u64) -> Option<u32> {
        if !self.may_be(address) {
            return None;
        }
        let part = self.parts.partition_point(|part| part.start <= address);
        let part = &self.parts[part.checked_sub(1)?];
        let cell = ((address - part.start) >> CELL) as usize;
        // Behind the last cell, only the last block can reach so far.
        let cell = part.first_cell + cell.min(part.cells);
        let mut at = self.cells[cell] as usize;
        while self
            .blocks
            .get(at)
            .is_some_and(|block| block.address <= address)
        {
            at += 1;
        }
        let at = at.checked_sub(1)?;
        (address < self.blocks[at].end()).then_some(at as u32)
    }

    /// Where the content of a block is. A block ends before the next one begins, whatever sizes the process has claimed: so
    /// all contents together are no more than its memory.
    pub fn content(&self, at: u32) -> Range<u64> {
        let block = self.blocks[at as usize];
        let end = block.address.saturating_add(block.size);
        let next = self.blocks.get(at as usize + 1);
        block.address..next.map_or(end, |next| end.min(next.address))
    }

    /// The index of the first block at an address or behind it.
    pub fn first_from(&self, address: u64) -> usize {
        self.blocks.partition_point(|block| block.address < address)
    }
}

/// Divides blocks where the distance between two beginnings exceeds a gap.
fn parts(blocks: &[Block], gap: u64) -> impl Iterator<Item = &[Block]> {
    blocks.chunk_by(move |one, next| next.address - one.address <= gap)
}

fn cells_of(part: &[Block]) -> u64 {
    match part {
        [first, .., last] => ((last.address - first.address) >> CELL) + 2,
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn block(address: u64, size: u64) -> Block {
        Block { address, size }
    }

    #[test]
    fn a_block_is_found_by_each_of_its_addresses() {
        let index = BlockIndex::new(vec![
            block(0x5000, 0),
            block(0x1000, 16),
            block(0x1020, 5000),
            block(u64::MAX - 7, 100),
        ]);
        let found = |address| {
            index
                .find(address)
                .map(|at| index.blocks()[at as usize].address)
        };
        for (address, expected) in [
            (0, None),
            (0xfff, None),
            (0x1000, Some(0x1000)),
            (0x100f, Some(0x1000)),
            (0x1010, None),
            (0x1020, Some(0x1020)),
            (0x1020 + 4999, Some(0x1020)),
            (0x1020 + 5000, None),
            // A block of 0 bytes has one address.
            (0x5000, Some(0x5000)),
            (0x5001, None),
            (u64::MAX - 1, Some(u64::MAX - 7)),
        ] {
            assert_eq!(found(address), expected, "{address:x}");
        }
        assert_eq!(BlockIndex::default().find(0), None);
        // A block that claims to be larger than it can be.
        let index = BlockIndex::new(vec![block(0x1000, 1 << 40), block(0x2000, 8)]);
        assert_eq!(index.content(0), 0x1000..0x2000);
        assert_eq!(index.content(1), 0x2000..0x2008);
    }

    #[test]
    fn the_directory_stays_small_however_the_blocks_lie() {
        for distance in [16, 600, 5_000, 40_000, 1 << 20, 1 << 30] {
            let blocks: Vec<_> = (1..100_000).map(|n| block(n * distance, 1 << 40)).collect();
            let index = BlockIndex::new(blocks);
            assert!(index.cells.len() < 10 * 100_000, "{distance}");
            assert!(index.parts.len() <= 100_000, "{distance}");
        }
    }

    proptest! {
        #[test]
        fn what_is_found_is_what_a_search_of_all_blocks_finds(
            starts in prop::collection::btree_set(0_u64..1 << 24, 1..200),
            sizes in prop::collection::vec(0_u64..100_000, 200),
            addresses in prop::collection::vec(0_u64..(1 << 24) + 1000, 200),
        ) {
            let starts: Vec<u64> = starts.into_iter().collect();
            let blocks: Vec<Block> = starts.iter().enumerate().map(|(at, start)| {
                let room = starts.get(at + 1).unwrap_or(&u64::MAX) - start;
                block(*start, sizes[at].min(room))
            }).collect();
            let index = BlockIndex::new(blocks.clone());
            for address in starts.iter().chain(&addresses) {
                let expected = blocks
                    .iter()
                    .position(|block| block.address <= *address && *address < block.end());
                prop_assert_eq!(index.find(*address).map(|at| at as usize), expected);
            }
        }
    }
}
