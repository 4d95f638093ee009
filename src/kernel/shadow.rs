//! The blocks that a process remembers itself (`--probes=inside`), found in a copy of its memory. How they are remembered
//! is declared in `inside/layout.h`.
//!
//! The process may have written anything there. It can only spoil the verdict on its own blocks: what is read is bounded
//! by what was copied, and the number of blocks by the caller.

use std::mem::{offset_of, size_of};
use std::ops::Range;

use crate::kernel::live_counters::is_whole;
use crate::kernel::records::{Plain, plain_from_bytes};
use crate::kernel::skeletons::types::{
    inside_limits as limits, large, memory, state, wiped, wiped_head,
};
use crate::lost::{Block, LiveBlocks, Snapshot};
use crate::model::reach::ReachUnknown;

const CELL: u64 = 1 << limits::CELL_BITS.0;
const LEAF_SIZE: u64 = limits::LEAF_SIZE.0 as u64;
const SLACK_MASK: u8 = limits::SLACK_MASK.0 as u8;
const LONG_SLACK: u8 = limits::LONG_SLACK.0 as u8;
const SLACK_BYTES: u64 = limits::SLACK_BYTES.0 as u64;
const SECOND_HALF: u8 = limits::SECOND_HALF.0 as u8;

/// In a large block's place: no block is there, or one is about to be.
const NO_LARGE: Range<u64> = 0..2;

/// What a process remembers.
#[derive(Debug)]
pub struct Shadow {
    pub live: LiveBlocks,
    /// It had no room for some blocks.
    pub is_incomplete: bool,
}

impl Shadow {
    /// Reads what a process remembers at an address. `most`: how many blocks there may be.
    ///
    /// # Errors
    /// What is there makes no sense (`Unsure`), or there are too many blocks (`Memory`).
    pub fn read(snapshot: &Snapshot, at: u64, most: usize) -> Result<Self, ReachUnknown> {
        let end = at.checked_add(size_of::<memory>() as u64);
        let end = end.ok_or(ReachUnknown::Unsure)?;
        let state: Option<state> = plain(snapshot, at + offset_of!(memory, state) as u64);
        if !state.is_some_and(|state| is_whole(&state)) {
            return Err(ReachUnknown::Unsure);
        }
        let leaves = leaves(snapshot, at + offset_of!(memory, leaves) as u64)?;
        let wiped_at = at + offset_of!(memory, wiped) as u64;
        let head: Option<wiped_head> = plain(snapshot, wiped_at + offset_of!(wiped, head) as u64);
        let mut found = FoundBlocks {
            snapshot,
            most,
            blocks: Vec::new(),
            headers: 0,
        };
        for leaf in &leaves {
            found.add_leaf(leaf)?;
        }
        found.add_large(wiped_at + offset_of!(wiped, large) as u64)?;
        let mut lists: Vec<_> = leaves.iter().map(Leaf::range).collect();
        lists.push(at..end);
        Ok(Self {
            live: LiveBlocks {
                blocks: found.blocks,
                lists,
            },
            is_incomplete: head.is_none_or(|head| head.unrecorded > 0),
        })
    }
}

/// A part of the table of slacks.
struct Leaf {
    at: u64,
    /// The first address that it covers.
    covers: u64,
}

impl Leaf {
    fn range(&self) -> Range<u64> {
        self.at..self.at + LEAF_SIZE
    }
}

/// The leaves that a table names. No two of them overlap, nor cover the same.
fn leaves(snapshot: &Snapshot, table: u64) -> Result<Vec<Leaf>, ReachUnknown> {
    const ZONE_NUMBER: u64 = (1 << limits::ZONE_NUMBER_BITS.0) - 1;
    let mut leaves = Vec::new();
    let range = table..table + u64::from(limits::LEAVES.0) * 8;
    snapshot.scan(range, &mut 0, |_, entries| {
        let entries = entries.iter().filter(|&&entry| entry != 0);
        leaves.extend(entries.map(|entry| Leaf {
            at: entry >> limits::ZONE_NUMBER_BITS.0 << limits::PAGE_BITS.0,
            covers: (entry & ZONE_NUMBER) << limits::ZONE_BITS.0,
        }));
    });
    leaves.sort_unstable_by_key(|leaf| leaf.covers);
    let covers_twice = leaves.windows(2).any(|two| two[0].covers == two[1].covers);
    leaves.sort_unstable_by_key(|leaf| leaf.at);
    let overlaps = |two: &[Leaf]| two[1].at - two[0].at < LEAF_SIZE;
    match covers_twice || leaves.windows(2).any(overlaps) {
        true => Err(ReachUnknown::Unsure),
        false => Ok(leaves),
    }
}

/// Blocks that were found so far.
struct FoundBlocks<'a> {
    snapshot: &'a Snapshot,
    most: usize,
    blocks: Vec<Block>,
    /// Where the last header was found.
    headers: usize,
}

impl FoundBlocks<'_> {
    fn add_leaf(&mut self, leaf: &Leaf) -> Result<(), ReachUnknown> {
        let snapshot = self.snapshot;
        let mut result = Ok(());
        // Cells up to here hold the slack of the block before them.
        let mut taken_up_to = 0;
        snapshot.scan(leaf.range(), &mut 0, |start, words| {
            let words = (start..).step_by(8).zip(words);
            for (at, word) in words.filter(|&(_, &word)| word != 0) {
                for (at, cell) in (at..).zip(word.to_ne_bytes()) {
                    if cell == 0 || at < taken_up_to || result.is_err() {
                        continue;
                    }
                    let slack = match cell & SLACK_MASK {
                        LONG_SLACK => {
                            taken_up_to = at + 1 + SLACK_BYTES;
                            long_slack(snapshot, at + 1)
                        }
                        more => u64::from(more.wrapping_sub(1)),
                    };
                    let half = u64::from(cell & SECOND_HALF != 0) * (CELL / 2);
                    let block = leaf.covers + (at - leaf.at) * CELL + half;
                    result = self.add(block, slack);
                }
            }
        });
        result
    }

    fn add_large(&mut self, table: u64) -> Result<(), ReachUnknown> {
        let count = u64::from(limits::BUCKETS.0) * u64::from(limits::IN_BUCKET.0);
        let size = size_of::<large>() as u64;
        let mut all: Vec<[u64; 2]> = Vec::new();
        let snapshot = self.snapshot;
        snapshot.scan(table..table + count * size, &mut 0, |_, words| {
            // What is copied begins and ends with whole pages.
            let (places, _) = words.as_chunks::<2>();
            let in_use = places.iter().filter(|place| !NO_LARGE.contains(&place[0]));
            all.extend(in_use.copied());
        });
        for [block, slack] in all {
            self.add(block, slack)?;
        }
        Ok(())
    }

    /// Adds a block whose usable bytes exceed those that were asked for by `slack`. If its header was not copied, or says
    /// something else, there is no such block.
    fn add(&mut self, address: u64, slack: u64) -> Result<(), ReachUnknown> {
        let header = self
            .snapshot
            .words_from(address.wrapping_sub(8), &mut self.headers);
        let size = header.first().and_then(|&header| usable(header));
        let Some(size) = size.and_then(|usable| usable.checked_sub(slack)) else {
            return Ok(());
        };
        if self.blocks.len() >= self.most {
            return Err(ReachUnknown::Memory);
        }
        self.blocks.push(Block {
            address,
            size,
            stack: 0,
        });
        Ok(())
    }
}

/// The usable bytes of a block with this header: as `usable` in inside.c.
fn usable(header: u64) -> Option<u64> {
    const IS_MAPPED: u64 = 2;
    let beside = if header & IS_MAPPED != 0 { 16 } else { 8 };
    (header & !7).checked_sub(beside)
}

fn long_slack(snapshot: &Snapshot, at: u64) -> u64 {
    let cell = |at: u64| {
        let word = snapshot.word(at & !7).unwrap_or_default();
        word.to_ne_bytes()[(at % 8) as usize]
    };
    (0..SLACK_BYTES).fold(0, |slack, i| slack | u64::from(cell(at + i)) << (8 * i))
}

fn plain<T: Plain>(snapshot: &Snapshot, at: u64) -> Option<T> {
    let words = snapshot.words_from(at, &mut 0);
    let words = words.get(..size_of::<T>().div_ceil(8))?;
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    plain_from_bytes(&bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::live_counters::MAGIC;
    use crate::lost::samples::Memory;

    const AT: u64 = 0x7f00_0000_0000;
    const HEAP: u64 = 0x5555_5540_0000;
    const POOL: u64 = AT + offset_of!(memory, pool) as u64;
    const TABLE: usize = offset_of!(memory, leaves);
    const LARGE: usize = offset_of!(memory, wiped) + offset_of!(wiped, large);

    /// A process that remembers blocks.
    struct Process {
        memory: Vec<u8>,
        heap: Vec<u8>,
    }

    fn put(bytes: &mut [u8], at: usize, word: u64) {
        bytes[at..at + 8].copy_from_slice(&word.to_ne_bytes());
    }

    impl Process {
        fn new() -> Self {
            let mut process = Self {
                memory: vec![0; size_of::<memory>()],
                heap: vec![0; 1 << 16],
            };
            put(&mut process.memory, 0, MAGIC);
            process.leaf(0, POOL, HEAP);
            process
        }

        fn leaf(&mut self, number: usize, at: u64, covers: u64) {
            let zone = covers >> limits::ZONE_BITS.0;
            let entry = at >> limits::PAGE_BITS.0 << limits::ZONE_NUMBER_BITS.0 | zone;
            put(&mut self.memory, TABLE + number * 8, entry);
        }

        /// A chunk of this size, whose block has these cells.
        fn block(mut self, address: u64, chunk: u64, cells: &[u8]) -> Self {
            let offset = (address - HEAP) as usize;
            put(&mut self.heap, offset - 8, chunk | 1);
            let at = (POOL - AT) as usize + offset / CELL as usize;
            self.memory[at..at + cells.len()].copy_from_slice(cells);
            self
        }

        fn large(mut self, place: usize, block: u64, slack: u64) -> Self {
            put(&mut self.memory, LARGE + place * 16, block);
            put(&mut self.memory, LARGE + place * 16 + 8, slack);
            self
        }

        fn read(&self, most: usize) -> Result<Shadow, ReachUnknown> {
            let words = |bytes: &[u8]| -> Vec<u64> {
                let words = bytes.as_chunks().0.iter();
                words.map(|word| u64::from_ne_bytes(*word)).collect()
            };
            let snapshot = Memory::default()
                .data(AT, &words(&self.memory))
                .heap(HEAP, &words(&self.heap))
                .snapshot();
            Shadow::read(&snapshot, AT, most)
        }

        fn blocks(&self) -> Vec<(u64, u64)> {
            let live = self.read(100).expect("it makes sense").live;
            let blocks = live.blocks.iter();
            blocks
                .map(|block| (block.address - HEAP, block.size))
                .collect()
        }
    }

    #[test]
    fn blocks_are_found_by_their_cells() {
        let process = Process::new()
            .block(HEAP + 0x10, 0x20, &[SECOND_HALF | 1])
            .block(HEAP + 0x40, 0x20, &[9])
            .block(HEAP + 0x60, 0x110, &[25]);
        let expected = [(0x10, 0x18), (0x40, 0x10), (0x60, 0xf0)];
        assert_eq!(process.blocks(), expected);
    }

    #[test]
    fn a_long_slack_is_in_the_next_cells() {
        let process = Process::new()
            .block(HEAP + 0x20, 0x2010, &[LONG_SLACK, 1, 0x10, 0, 0, 0, 0])
            .block(HEAP + 0x2030, 0x20, &[SECOND_HALF | 1]);
        assert_eq!(process.blocks(), [(0x20, 0x1007), (0x2030, 0x18)]);
    }

    #[test]
    fn large_blocks_are_in_a_table_of_their_own() {
        // One is being entered, and one has no header.
        let process = Process::new()
            .block(HEAP + 0x1010, 0x2_0000, &[])
            .large(0, HEAP + 0x1010, 0x18)
            .large(5, 1, 0)
            .large(6, HEAP + 0x40_0000, 0)
            .large(4095, HEAP + 0x1010, 0);
        let size = 0x2_0000 - 8;
        assert_eq!(process.blocks(), [(0x1010, size - 0x18), (0x1010, size)]);
    }

    #[test]
    fn a_cell_whose_chunk_is_smaller_than_its_slack_is_no_block() {
        let process = Process::new().block(HEAP + 0x20, 0x20, &[27]);
        assert!(process.blocks().is_empty());
    }

    #[test]
    fn the_lists_are_all_that_is_kept_in_the_process() {
        let mut process = Process::new();
        process.leaf(3, AT + 0x1000_0000, HEAP + 0x40_0000);
        let lists = process.read(0).expect("it makes sense").live.lists;
        let end = AT + size_of::<memory>() as u64;
        let outside = AT + 0x1000_0000;
        assert!(lists.contains(&(AT..end)));
        assert!(lists.contains(&(outside..outside + LEAF_SIZE)));
    }

    #[test]
    fn what_makes_no_sense_is_not_believed() {
        let unsure = |change: fn(&mut Process)| {
            let mut process = Process::new().block(HEAP + 0x20, 0x20, &[1]);
            change(&mut process);
            assert_eq!(process.read(100).err(), Some(ReachUnknown::Unsure));
        };
        unsure(|process| process.memory[0] = 0);
        unsure(|process| process.memory[12] = 2);
        unsure(|process| process.leaf(1, POOL + LEAF_SIZE, HEAP));
        unsure(|process| process.leaf(1, POOL + LEAF_SIZE / 2, HEAP + (1 << 22)));
        let snapshot = Memory::default().snapshot();
        for at in [AT, u64::MAX, u64::MAX - 7] {
            assert_eq!(
                Shadow::read(&snapshot, at, 1).err(),
                Some(ReachUnknown::Unsure)
            );
        }
    }

    #[test]
    fn the_number_of_blocks_is_bounded() {
        let process = Process::new()
            .block(HEAP + 0x20, 0x20, &[1])
            .block(HEAP + 0x40, 0x20, &[1]);
        assert!(process.read(2).is_ok());
        assert_eq!(process.read(1).err(), Some(ReachUnknown::Memory));
    }

    #[test]
    fn a_process_that_had_no_room_for_a_block_says_so() {
        let mut process = Process::new();
        assert!(!process.read(1).expect("it makes sense").is_incomplete);
        let head = offset_of!(memory, wiped) + offset_of!(wiped_head, unrecorded);
        put(&mut process.memory, head, 1);
        assert!(process.read(1).expect("it makes sense").is_incomplete);
    }
}
