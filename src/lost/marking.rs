//! Marks the blocks that are reached, and divides those that are not. Pure.
//!
//! The states and their rules are valgrind's (memcheck/mc_leakcheck.c, valgrind 3.19). A block is reachable if a chain
//! of pointers leads to it from a root, and each counts as a pointer to the start of its block. A block that is reached
//! otherwise is possibly lost. Among the others, those that are reached from another one of them are indirectly lost.

use super::block::Level;
use super::buffers;
use super::copies::Snapshot;
use super::heuristics;
use super::index::{BlockIndex, FoundBlock};

/// Blocks on their way to a state.
pub struct Marking<'a> {
    snapshot: &'a Snapshot,
    index: &'a BlockIndex,
    marks: Vec<Mark>,
    /// Blocks whose content is to be searched, with their addresses. A block is there once at most.
    work: Vec<(u32, u64)>,
    hint: usize,
}

/// How many words are looked at before the blocks are looked up that they point to.
const AT_ONCE: usize = 16;

/// What a search needs to know of a block, in one place: each look at another one is a miss of the cache.
#[derive(Clone, Copy, Default)]
struct Mark(u64);

impl Mark {
    const LEVEL: u64 = 3;
    /// The block is in `work`.
    const WAITS: u64 = 4;
    /// The bytes that may be pointers, from here on.
    const LENGTH: u32 = 3;

    fn new(length: u64) -> Self {
        // Nobody has as much memory as the highest bits would say.
        Self(length.min(u64::MAX >> Self::LENGTH) << Self::LENGTH)
    }

    fn level(self) -> Level {
        match self.0 & Self::LEVEL {
            0 => Level::Unreached,
            1 => Level::Indirect,
            2 => Level::Possible,
            _ => Level::Reachable,
        }
    }

    fn set_level(&mut self, level: Level) {
        self.0 = self.0 & !Self::LEVEL | level as u64;
    }

    fn is_lost(self) -> bool {
        self.0 & Self::LEVEL == Level::Unreached as u64
    }

    fn length(self) -> u64 {
        self.0 >> Self::LENGTH
    }
}

impl<'a> Marking<'a> {
    pub fn new(snapshot: &'a Snapshot, index: &'a BlockIndex) -> Self {
        let count = index.blocks().len();
        let mut marks = Vec::with_capacity(count);
        buffers::prefer_huge_pages(marks.spare_capacity_mut());
        marks.extend(index.lengths().map(Mark::new));
        Self {
            snapshot,
            index,
            marks,
            work: Vec::new(),
            hint: 0,
        }
    }

    /// A word of a root.
    #[inline(always)]
    pub fn root(&mut self, word: u64) {
        if self.index.may_be(word) {
            self.meet(word, Level::Reachable);
        }
    }

    /// A word in a root, or in a block of this level.
    fn meet(&mut self, word: u64, from: Level) {
        let Some(FoundBlock { at, is_start }) = self.index.find(word) else {
            return;
        };
        let level = self.marks[at as usize].level();
        // What is reached already can only become reachable, and only by way of reachable blocks.
        if level == Level::Reachable || (level == Level::Possible && from == Level::Possible) {
            return;
        }
        let block = || self.index.blocks()[at as usize];
        let counts = || is_start || heuristics::counts_as_start(self.snapshot, block(), word);
        let reached = match from {
            Level::Reachable if counts() => Level::Reachable,
            _ => Level::Possible,
        };
        if reached != level {
            let address = if is_start { word } else { block().address };
            self.marks[at as usize].set_level(reached);
            self.push(at, address);
        }
    }

    fn push(&mut self, at: u32, address: u64) {
        let mark = &mut self.marks[at as usize];
        if mark.0 & Mark::WAITS == 0 {
            mark.0 |= Mark::WAITS;
            self.work.push((at, address));
        }
    }

    fn pop(&mut self) -> Option<(u32, u64)> {
        let (at, address) = self.work.pop()?;
        self.marks[at as usize].0 &= !Mark::WAITS;
        Some((at, address))
    }

    /// Calls `each` with the words of a block that may be pointers.
    #[inline]
    fn search(&mut self, (at, address): (u32, u64), mut each: impl FnMut(&mut Self, u64)) {
        let snapshot = self.snapshot;
        let mut hint = self.hint;
        let range = address..address + self.marks[at as usize].length();
        let at = hint;
        snapshot.scan(range, &mut hint, |_, words| {
            for words in words.chunks(AT_ONCE) {
                // Most of the time is spent waiting for memory. So the processor gets what comes next before it is needed.
                for &word in words {
                    if self.index.may_be(word) {
                        snapshot.fetch(word, at);
                    }
                }
                for &word in words {
                    if self.index.may_be(word) {
                        each(self, word);
                    }
                }
            }
        });
        self.hint = hint;
    }

    /// Follows the pointers in the blocks that were reached.
    pub fn follow(&mut self) {
        while let Some(block) = self.pop() {
            let level = self.marks[block.0 as usize].level();
            self.search(block, |marking, word| marking.meet(word, level));
        }
    }

    /// Divides what was not reached. Each block in turn takes the ones that are reached from it, and whatever those
    /// own. So of blocks in a circle, the first is definitely lost. Returns the blocks' owners.
    fn divide(&mut self) -> Vec<u32> {
        let Some(first) = self.marks.iter().position(|mark| mark.is_lost()) else {
            return Vec::new();
        };
        let mut owners = vec![0; self.marks.len()];
        for leader in first..self.marks.len() {
            if !self.marks[leader].is_lost() {
                continue;
            }
            let leader = leader as u32;
            self.push(leader, self.index.blocks()[leader as usize].address);
            while let Some(block) = self.pop() {
                self.search(block, |marking, word| {
                    let Some(FoundBlock { at, is_start }) = marking.index.find(word) else {
                        return;
                    };
                    let mark = &mut marking.marks[at as usize];
                    if at != leader && mark.is_lost() {
                        let address = match is_start {
                            true => word,
                            false => marking.index.blocks()[at as usize].address,
                        };
                        mark.set_level(Level::Indirect);
                        owners[at as usize] = leader;
                        marking.push(at, address);
                    }
                });
            }
        }
        owners
    }

    /// The states of all blocks.
    pub fn finish(mut self) -> (Vec<Level>, Vec<u32>) {
        self.follow();
        let owners = self.divide();
        let levels = self.marks.iter().map(|mark| mark.level());
        (levels.collect(), owners)
    }
}

#[cfg(test)]
mod tests {
    use super::super::block::{Block, JudgedBlocks, State};
    use super::super::samples::Memory;
    use super::*;

    const AT: u64 = 0x7000_0000;

    /// Four blocks of four words each, with the given content. Block `n` is at `AT + 64 * n`.
    fn states(content: [[u64; 4]; 4], roots: &[u64]) -> Vec<State> {
        let words: Vec<u64> = content
            .iter()
            .flat_map(|block| [*block, [0; 4]].concat())
            .collect();
        let snapshot = Memory::default().anonymous(AT, &words).snapshot();
        let blocks = (0..4).map(|n| Block {
            address: AT + n * 64,
            size: 32,
            ..Block::default()
        });
        let index = BlockIndex::new(blocks.collect());
        let mut marking = Marking::new(&snapshot, &index);
        roots.iter().for_each(|&word| marking.root(word));
        let (levels, owners) = marking.finish();
        let judged = JudgedBlocks::new(index.into_blocks(), levels, owners);
        judged.states().map(|(_, state)| state).collect()
    }

    const fn at(block: u64) -> u64 {
        AT + 64 * block
    }

    const fn owned_by(block: u64) -> State {
        State::Indirect { owner: at(block) }
    }

    use State::{Definite, Possible, Reachable};

    #[test]
    fn a_chain_of_starts_is_reachable() {
        let content = [[0, 0, 0, at(1)], [at(2), 0, 0, 0], [0; 4], [0; 4]];
        assert_eq!(
            states(content, &[at(0)]),
            [Reachable, Reachable, Reachable, Definite]
        );
        assert_eq!(
            states(content, &[]),
            [Definite, owned_by(0), owned_by(0), Definite]
        );
    }

    #[test]
    fn behind_a_pointer_into_a_block_all_is_possible() {
        let content = [[at(1), 0, 0, 0], [at(2), 0, 0, 0], [0; 4], [0; 4]];
        let found = states(content, &[at(0) + 16]);
        assert_eq!(found, [Possible, Possible, Possible, Definite]);
        // A better pointer that is found later counts, for all that follow.
        let found = states(content, &[at(0) + 16, at(1) + 16, at(0)]);
        assert_eq!(found, [Reachable, Reachable, Reachable, Definite]);
        let found = states(content, &[at(2), at(0) + 16]);
        assert_eq!(found, [Possible, Possible, Reachable, Definite]);
    }

    #[test]
    fn a_later_owner_takes_what_an_earlier_one_has() {
        // 1 → 0 → 2, found in the order of addresses.
        let content = [
            [at(2), 0, 0, 0],
            [at(0) + 8, 0, 0, 0],
            [0; 4],
            [at(3), 0, 0, 0],
        ];
        assert_eq!(
            states(content, &[]),
            [owned_by(1), Definite, owned_by(1), Definite]
        );
    }

    #[test]
    fn of_a_circle_the_first_block_is_definitely_lost() {
        let content = [[0; 4], [at(2), 0, 0, 0], [at(3), 0, 0, 0], [at(1), 0, 0, 0]];
        assert_eq!(
            states(content, &[]),
            [Definite, Definite, owned_by(1), owned_by(1)]
        );
        // A later block points into the circle, but not at its owner.
        let content = [[at(1), 0, 0, 0], [at(0), 0, 0, 0], [at(1), 0, 0, 0], [0; 4]];
        assert_eq!(
            states(content, &[]),
            [Definite, owned_by(0), Definite, Definite]
        );
    }
}
