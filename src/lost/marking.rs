//! Marks the blocks that are reached, and divides those that are not. Pure.
//!
//! The states and their rules are valgrind's (memcheck/mc_leakcheck.c, valgrind 3.19). A block is reachable if a chain
//! of pointers leads to it from a root, and each counts as a pointer to the start of its block. A block that is reached
//! otherwise is possibly lost. Among the others, those that are reached from another one of them are indirectly lost.

use super::block::Level;
use super::copies::Snapshot;
use super::heuristics;
use super::index::BlockIndex;

/// Blocks on their way to a state.
pub struct Marking<'a> {
    snapshot: &'a Snapshot,
    index: &'a BlockIndex,
    marks: Vec<Mark>,
    /// Blocks whose content is to be searched. A block is there once at most.
    work: Vec<u32>,
    hint: usize,
}

/// What is known of a block. Both are side by side, since looking at either is a miss of the cache.
#[derive(Clone, Copy, Default)]
struct Mark {
    level: Level,
    /// It is in `work`.
    waits: bool,
}

impl<'a> Marking<'a> {
    pub fn new(snapshot: &'a Snapshot, index: &'a BlockIndex) -> Self {
        let blocks = index.blocks().len();
        Self {
            snapshot,
            index,
            marks: vec![Mark::default(); blocks],
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
        let Some(at) = self.index.find(word) else {
            return;
        };
        let level = self.marks[at as usize].level;
        // What is reached already can only become reachable, and only by way of reachable blocks.
        if level == Level::Reachable || (level == Level::Possible && from == Level::Possible) {
            return;
        }
        let block = self.index.blocks()[at as usize];
        let is_start =
            || word == block.address || heuristics::counts_as_start(self.snapshot, block, word);
        let reached = match from {
            Level::Reachable if is_start() => Level::Reachable,
            _ => Level::Possible,
        };
        if reached != level {
            self.marks[at as usize].level = reached;
            self.push(at);
        }
    }

    fn push(&mut self, at: u32) {
        let mark = &mut self.marks[at as usize];
        if !mark.waits {
            mark.waits = true;
            self.work.push(at);
        }
    }

    fn pop(&mut self) -> Option<u32> {
        let at = self.work.pop()?;
        self.marks[at as usize].waits = false;
        Some(at)
    }

    /// Calls `each` with the words of a block that may be pointers.
    #[inline]
    fn search(&mut self, at: u32, mut each: impl FnMut(&mut Self, u64)) {
        let snapshot = self.snapshot;
        let mut hint = self.hint;
        let range = self.index.content(at);
        snapshot.scan(range, &mut hint, |_, words| {
            for &word in words {
                if self.index.may_be(word) {
                    each(self, word);
                }
            }
        });
        self.hint = hint;
    }

    /// Follows the pointers in the blocks that were reached.
    pub fn follow(&mut self) {
        while let Some(at) = self.pop() {
            let level = self.marks[at as usize].level;
            self.search(at, |marking, word| marking.meet(word, level));
        }
    }

    /// Divides what was not reached. Each block in turn takes the ones that are reached from it, and whatever those
    /// own. So of blocks in a circle, the first is definitely lost. Returns the blocks' owners.
    fn divide(&mut self) -> Vec<u32> {
        let is_lost = |mark: &Mark| mark.level == Level::Unreached;
        let Some(first) = self.marks.iter().position(is_lost) else {
            return Vec::new();
        };
        let mut owners = vec![0; self.marks.len()];
        for leader in first..self.marks.len() {
            if !is_lost(&self.marks[leader]) {
                continue;
            }
            let leader = leader as u32;
            self.push(leader);
            while let Some(at) = self.pop() {
                self.search(at, |marking, word| {
                    let Some(found) = marking.index.find(word) else {
                        return;
                    };
                    let mark = &mut marking.marks[found as usize];
                    if found != leader && is_lost(mark) {
                        mark.level = Level::Indirect;
                        owners[found as usize] = leader;
                        marking.push(found);
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
        let levels = self.marks.iter().map(|mark| mark.level);
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
