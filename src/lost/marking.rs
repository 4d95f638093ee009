//! Marks the blocks that are reached, and divides those that are not. Pure.
//!
//! The states and their rules are valgrind's (memcheck/mc_leakcheck.c, valgrind 3.19). A block is reachable if a chain
//! of pointers leads to it from a root, and each counts as a pointer to the start of its block. A block that is reached
//! otherwise is possibly lost. Among the others, those that are reached from another one of them are indirectly lost.

use super::block::Level;
use super::copies::Snapshot;
use super::heuristics;
use super::index::{BlockIndex, FoundBlock};
use super::marks::{Mark, Pointers, Trails, marks};

/// Blocks on their way to a state.
pub struct Marking<'a> {
    snapshot: &'a Snapshot,
    index: &'a BlockIndex,
    marks: Vec<Mark>,
    trails: Trails,
    /// Blocks that are to be searched, with their addresses, or 0 where the mark says all. A block is there once at most.
    work: Vec<(u32, u64)>,
    hint: usize,
}

/// How many words are looked at before the blocks are looked up that they point to.
const AT_ONCE: usize = 16;

/// A pointer to the start of a block, or into it.
#[derive(Clone, Copy)]
struct FoundPointer {
    to: FoundBlock,
    /// `None`: it is the address of the block.
    word: Option<u64>,
}

impl<'a> Marking<'a> {
    pub fn new(snapshot: &'a Snapshot, index: &'a BlockIndex) -> Self {
        let mut marks = marks(snapshot, index);
        let trails = Trails::find(&mut marks);
        Self {
            snapshot,
            index,
            marks,
            trails,
            work: Vec::new(),
            hint: 0,
        }
    }

    /// A word of a root.
    #[inline(always)]
    pub fn root(&mut self, word: u64) {
        if let Some(to) = self.index.find(word) {
            let word = Some(word);
            let pointer = FoundPointer { to, word };
            if self.meet(pointer, Level::Reachable) {
                self.push(pointer);
            }
        }
    }

    /// A pointer in a root, or in a block of this level. Returns whether its block has another level now.
    #[inline]
    fn meet(&mut self, pointer: FoundPointer, from: Level) -> bool {
        let FoundBlock { at, is_start } = pointer.to;
        let level = self.marks[at as usize].level();
        // What is reached already can only become reachable, and only by way of reachable blocks.
        if level == Level::Reachable || (level == Level::Possible && from == Level::Possible) {
            return false;
        }
        let counts = |word| {
            let block = self.index.blocks()[at as usize];
            heuristics::counts_as_start(self.snapshot, block, word)
        };
        let reached = match from {
            Level::Reachable if is_start || pointer.word.is_some_and(counts) => Level::Reachable,
            _ => Level::Possible,
        };
        self.marks[at as usize].set_level(reached);
        reached != level
    }

    /// The block that a pointer leads to is to be searched.
    fn push(&mut self, FoundPointer { to, word }: FoundPointer) {
        let mark = &mut self.marks[to.at as usize];
        let address = match (mark.pointers(), word) {
            (Pointers::Unknown(0), _) => return,
            (Pointers::Unknown(_), Some(word)) if to.is_start => word,
            (Pointers::Unknown(_), _) => self.index.blocks()[to.at as usize].address,
            _ => 0,
        };
        if !mark.waits() {
            mark.set_waits(true);
            self.work.push((to.at, address));
        }
    }

    fn pop(&mut self) -> Option<(u32, u64)> {
        let (at, address) = self.work.pop()?;
        self.marks[at as usize].set_waits(false);
        Some((at, address))
    }

    /// Follows the pointers in a block. `takes` says whether it was right to come to a block: then that one is to be
    /// searched, too.
    #[inline]
    fn search(
        &mut self,
        (at, address): (u32, u64),
        mut takes: impl FnMut(&mut Self, FoundPointer) -> bool,
    ) {
        let length = match self.marks[at as usize].pointers() {
            Pointers::Unknown(length) => length,
            Pointers::One(at) => return self.walk(&[at], takes),
            Pointers::Trail(number) => {
                let trails = std::mem::take(&mut self.trails);
                self.walk(trails.get(number), takes);
                self.trails = trails;
                return;
            }
        };
        let snapshot = self.snapshot;
        let mut hint = self.hint;
        let at = hint;
        snapshot.scan(address..address + length, &mut hint, |_, words| {
            for words in words.chunks(AT_ONCE) {
                // Most of the time is spent waiting for memory. So the processor gets what comes next before it is needed.
                for &word in words {
                    if self.index.may_be(word) {
                        snapshot.fetch(word, at);
                    }
                }
                for &word in words {
                    if let Some(to) = self.index.find(word) {
                        let word = Some(word);
                        let pointer = FoundPointer { to, word };
                        if takes(self, pointer) {
                            self.push(pointer);
                        }
                    }
                }
            }
        });
        self.hint = hint;
    }

    /// Takes the blocks of a trail in turn. The last one is to be searched.
    #[inline]
    fn walk(&mut self, trail: &[u32], mut takes: impl FnMut(&mut Self, FoundPointer) -> bool) {
        let pointers = trail.iter().map(|&at| FoundPointer {
            to: FoundBlock { at, is_start: true },
            word: None,
        });
        let mut last = None;
        for pointer in pointers {
            if !takes(self, pointer) {
                return;
            }
            last = Some(pointer);
        }
        last.into_iter().for_each(|last| self.push(last));
    }

    /// Follows the pointers in the blocks that were reached.
    pub fn follow(&mut self) {
        while let Some(block) = self.pop() {
            let level = self.marks[block.0 as usize].level();
            self.search(block, |marking, pointer| marking.meet(pointer, level));
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
            let at = leader as u32;
            let to = FoundBlock { at, is_start: true };
            self.push(FoundPointer { to, word: None });
            while let Some(block) = self.pop() {
                self.search(block, |marking, pointer| {
                    let at = pointer.to.at as usize;
                    let mark = &mut marking.marks[at];
                    let takes = at != leader && mark.is_lost();
                    if takes {
                        mark.set_level(Level::Indirect);
                        owners[at] = leader as u32;
                    }
                    takes
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
        let blocks = (0..4).map(|n| Block {
            address: at(n),
            size: 32,
            ..Block::default()
        });
        judged(&words, blocks.collect(), roots)
    }

    /// Marks blocks in memory that begins at `AT`, and judges them.
    fn judged(words: &[u64], blocks: Vec<Block>, roots: &[u64]) -> Vec<State> {
        let snapshot = Memory::default().anonymous(AT, words).snapshot();
        let index = BlockIndex::new(blocks);
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

    /// The states of many blocks of two words each. The first word of block `n` leads to block `links[n]`, if there is
    /// one. A link behind the last block has two pointers, to both of its neighbours.
    fn many(links: &[usize], roots: &[u64]) -> Vec<State> {
        let at = |block: usize| AT + 16 * block as u64;
        let blocks = (0..links.len()).map(|block| Block {
            address: at(block),
            size: 16,
            ..Block::default()
        });
        let words: Vec<u64> = (0..)
            .zip(links)
            .flat_map(|(block, &link)| match link {
                NONE => [0, 1],
                BOTH => [at(block - 1), at(block + 1)],
                link => [at(link), 1],
            })
            .collect();
        judged(&words, blocks.collect(), roots)
    }

    const NONE: usize = usize::MAX;
    const BOTH: usize = usize::MAX - 1;
    /// So many that lists are followed from several places.
    const COUNT: usize = 40_000;
    /// Has no divisor in common with `COUNT`: this is how far the next block of a list is.
    const STEP: usize = 12_347;

    /// A list of all blocks that begins with the first one.
    fn list() -> Vec<usize> {
        let mut links: Vec<usize> = (0..COUNT).map(|block| (block + STEP) % COUNT).collect();
        links[COUNT - STEP] = NONE;
        links
    }

    #[test]
    fn a_long_list_is_followed_to_its_end() {
        let links = list();
        let nth = |n: usize| n * STEP % COUNT;
        let address = |block: usize| AT + 16 * block as u64;
        let states = many(&links, &[address(0)]);
        assert!(states.iter().all(|state| *state == Reachable));
        let states = many(&links, &[address(0) + 8]);
        assert!(states.iter().all(|state| *state == Possible));
        // From the middle on. What comes before is lost.
        let middle = 1234;
        let states = many(
            &links,
            &[address(nth(middle)) + 8, address(nth(2 * middle))],
        );
        for n in 0..COUNT {
            let expected = match n {
                0 => Definite,
                n if n < middle => State::Indirect { owner: AT },
                n if n < 2 * middle => Possible,
                _ => Reachable,
            };
            assert_eq!(states[nth(n)], expected, "{n}");
        }
    }

    #[test]
    fn long_lists_may_end_in_one_another() {
        let owned = State::Indirect { owner: AT };
        // A circle.
        let mut links = list();
        links[COUNT - STEP] = 0;
        let states = many(&links, &[]);
        assert_eq!(
            (states[0], states[1], states[COUNT - 1]),
            (Definite, owned, owned)
        );
        let states = many(&links, &[AT + 16 * 77]);
        assert!(states.iter().all(|state| *state == Reachable));
        // A block that leads to two others, and so to both ends of what was a list.
        let mut links = list();
        links[STEP] = BOTH;
        let states = many(&links, &[AT + 16 * STEP as u64]);
        let reached = states.iter().filter(|state| **state == Reachable).count();
        let position = |block: usize| (0..COUNT).position(|n| n * STEP % COUNT == block);
        let (before, behind) = (position(STEP - 1), position(STEP + 1));
        let first = before.min(behind).expect("all are in the list");
        assert_eq!(reached, COUNT - first + 1);
    }
}
