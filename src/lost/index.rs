//! Finds the block that a word points into. Pure.
//!
//! Nearly every word of a process's memory is looked up, so this decides how long a verdict takes. The blocks are
//! sorted, and a directory has a bit for each place at which a block may begin. It is small enough for the processor's
//! cache, where the list of blocks is not. So a pointer to the start of a block is told, and the block's content read,
//! before the block itself was looked at. Where blocks are far apart the directory has a gap, so that it is never much
//! larger than the blocks.

use super::block::Block;
use super::buffers;

/// A cell of the directory has this many places at which a block may begin.
const PLACES: u64 = u64::BITS as u64;

/// All addresses of blocks are multiples of the distance between two places. It is a power of two, at most this one.
const MOST_DISTANCE: u32 = 12;

/// Gaps between blocks, in cells, from which on the directory is divided. The first for which it has few cells is taken.
const GAPS: [u64; 5] = [1 << 12, 1 << 9, 1 << 6, 1 << 3, 1];

/// The directory may have this many cells for a block, and `FREE_CELLS` besides.
const CELLS_PER_BLOCK: u64 = 4;
const FREE_CELLS: u64 = 1 << 16;

/// A cell of the directory.
#[derive(Clone, Copy, Debug, Default)]
struct Cell {
    /// A bit for each place at which a block begins.
    starts: u64,
    /// The index of the first block that begins in the cell or behind it.
    first: u32,
}

/// A part of the directory, for blocks that are close together.
#[derive(Debug)]
struct Neighbours {
    /// The address of the first cell.
    start: u64,
    /// Its cells. One more stands behind the last, and names the block behind this part's last block.
    first_cell: usize,
    cells: usize,
}

/// A block that an address is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FoundBlock {
    /// Its index.
    pub at: u32,
    /// The address is that of the block.
    pub is_start: bool,
}

/// Blocks that can be found by an address within them.
#[derive(Debug, Default)]
pub struct BlockIndex {
    /// By address, each address once.
    blocks: Vec<Block>,
    parts: Vec<Neighbours>,
    cells: Vec<Cell>,
    /// Two places are `1 << distance` bytes apart.
    distance: u32,
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
            // Most of them are in order already, and this sort takes no time for those.
            blocks.sort_by_key(key);
        }
        blocks.dedup_by_key(|block| block.address);
        let Some(lowest) = blocks.first().map(|first| first.address) else {
            return Self::default();
        };
        let (addresses, end) = blocks.iter().fold((0, 0), |(all, end), block| {
            (all | block.address, end.max(block.end()))
        });
        let mut index = Self {
            distance: addresses.trailing_zeros().min(MOST_DISTANCE),
            lowest,
            extent: end - lowest,
            ..Self::default()
        };
        index.fill(&blocks);
        index.blocks = blocks;
        index
    }

    /// How many bytes a cell covers.
    fn cell_bytes(&self) -> u64 {
        PLACES << self.distance
    }

    fn fill(&mut self, blocks: &[Block]) {
        let bytes = self.cell_bytes();
        let most = CELLS_PER_BLOCK * blocks.len() as u64 + FREE_CELLS;
        let with_cells = |gap| {
            let parts = parts(blocks, gap * bytes);
            (gap * bytes, parts.map(|part| cells_of(part, bytes)).sum())
        };
        let mut choices = GAPS.into_iter().map(with_cells);
        let (gap, cells) = choices
            .find(|(gap, cells): &(u64, u64)| *cells <= most || *gap == bytes)
            .unwrap_or((bytes, 0));
        self.cells = buffers::large_vec(cells as usize);
        let mut before = 0_u32;
        for part in parts(blocks, gap) {
            let start = part[0].address & !(bytes - 1);
            let first_cell = self.cells.len();
            for (first, block) in (before..).zip(part) {
                let place = (block.address - start) >> self.distance;
                let cell = first_cell + (place / PLACES) as usize;
                let empty = Cell { starts: 0, first };
                while self.cells.len() <= cell {
                    self.cells.push(empty);
                }
                self.cells[cell].starts |= 1 << (place % PLACES);
            }
            before += part.len() as u32;
            let cells = self.cells.len() - first_cell;
            self.cells.push(Cell {
                starts: 0,
                first: before,
            });
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

    /// The cell that an address belongs to, and its place in the part.
    #[inline]
    fn place_of(&self, address: u64) -> Option<(usize, u64)> {
        let part = self.parts.partition_point(|part| part.start <= address);
        let part = &self.parts[part.checked_sub(1)?];
        let place = (address - part.start) >> self.distance;
        // Behind the last cell, only the last block can reach so far.
        let cell = (place / PLACES).min(part.cells as u64) as usize;
        Some((part.first_cell + cell, place))
    }

    /// Says that the block of an address will be looked for soon.
    #[inline]
    pub fn fetch(&self, address: u64) {
        if let Some((cell, _)) = self.place_of(address) {
            buffers::fetch(&raw const self.cells[cell]);
        }
    }

    /// The block that an address is in.
    #[inline]
    pub fn find(&self, address: u64) -> Option<FoundBlock> {
        if !self.may_be(address) {
            return None;
        }
        let (cell, place) = self.place_of(address)?;
        let cell = self.cells[cell];
        let up_to = cell.starts << (PLACES - 1 - place % PLACES);
        let at = (cell.first + up_to.count_ones()).checked_sub(1)?;
        // The last place is the address's own.
        let is_start = up_to >> (PLACES - 1) == 1 && address.is_multiple_of(1 << self.distance);
        let is_in = is_start || address < self.blocks[at as usize].end();
        is_in.then_some(FoundBlock { at, is_start })
    }

    /// How many bytes the content of each block has. A block ends before the next one begins, whatever sizes the process
    /// has claimed: so all contents together are no more than its memory.
    pub fn lengths(&self) -> impl Iterator<Item = u64> {
        let starts = self.blocks.iter().skip(1).map(|block| block.address);
        let starts = starts.chain([u64::MAX]);
        let pairs = self.blocks.iter().zip(starts);
        pairs.map(|(block, next)| block.size.min(next - block.address))
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

/// How many cells a part has at the most, with the one behind its last.
fn cells_of(part: &[Block], bytes: u64) -> u64 {
    match part {
        [first, .., last] => (last.address - first.address) / bytes + 3,
        _ => 2,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn block(address: u64, size: u64) -> Block {
        Block {
            address,
            size,
            stack: 0,
        }
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
                .map(|found| index.blocks()[found.at as usize].address)
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
        assert_eq!(index.lengths().collect::<Vec<_>>(), [0x1000, 8]);
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
            starts in prop::collection::btree_set(0_u64..1 << 20, 1..200),
            distance in 0_u32..14,
            sizes in prop::collection::vec(0_u64..100_000, 200),
            addresses in prop::collection::vec(0_u64..(1 << 24) + 1000, 200),
        ) {
            let starts: Vec<u64> = starts.into_iter().map(|start| start << distance).collect();
            let blocks: Vec<Block> = starts.iter().enumerate().map(|(at, start)| {
                let room = starts.get(at + 1).unwrap_or(&u64::MAX) - start;
                block(*start, sizes[at].min(room))
            }).collect();
            let index = BlockIndex::new(blocks.clone());
            for address in starts.iter().chain(&addresses) {
                let expected = blocks
                    .iter()
                    .position(|block| block.address <= *address && *address < block.end());
                let found = index.find(*address);
                prop_assert_eq!(found.map(|found| found.at as usize), expected);
                let is_start = starts.contains(address);
                prop_assert_eq!(found.is_some_and(|found| found.is_start), is_start);
            }
        }
    }
}
