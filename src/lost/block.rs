//! The blocks that a process never freed, and what is found about each.

use std::collections::HashMap;

use crate::model::reach::{Amount, Reached, StackReached};

/// A live block of the process that is judged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Block {
    /// What the allocator returned.
    pub address: u64,
    /// The bytes that were asked for.
    pub size: u64,
    /// The number of the call stack that allocated it. 0: unknown.
    pub stack: u32,
}

impl Block {
    /// The first address behind the block. A block of 0 bytes has one address, so that a pointer can lead to it.
    pub fn end(&self) -> u64 {
        self.address.saturating_add(self.size.max(1))
    }
}

/// How a block could be reached at the end of its process, as in [`Reached`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Definite,
    /// `owner` is the address of the definitely lost block through which this one would be reached.
    Indirect {
        owner: u64,
    },
    Possible,
    Reachable,
}

/// What is known of a block while blocks are marked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Level {
    /// No pointer to it was found. At the end, it is definitely lost.
    #[default]
    Unreached,
    /// It is reached from an unreached block.
    Indirect,
    Possible,
    Reachable,
}

/// The blocks of a process with their states.
#[derive(Debug, Default)]
pub struct JudgedBlocks {
    /// The sums of all blocks.
    pub reached: Reached,
    blocks: Vec<Block>,
    levels: Vec<Level>,
    /// For each indirectly lost block the index of its owner. Empty if there is none.
    owners: Vec<u32>,
}

impl JudgedBlocks {
    /// Adds up the blocks. `owners` may lead to a definitely lost block over several indirectly lost ones, but not in a
    /// circle.
    pub fn new(blocks: Vec<Block>, levels: Vec<Level>, mut owners: Vec<u32>) -> Self {
        let mut reached = Reached::default();
        for (block, level) in blocks.iter().zip(&levels) {
            add(&mut reached, block, *level);
        }
        shorten(&mut owners, &levels);
        Self {
            reached,
            blocks,
            levels,
            owners,
        }
    }

    /// The blocks in the order of their addresses.
    pub fn states(&self) -> impl Iterator<Item = (Block, State)> {
        let states = self
            .levels
            .iter()
            .enumerate()
            .map(|(at, level)| match level {
                Level::Unreached => State::Definite,
                Level::Indirect => State::Indirect {
                    owner: self.owner(at).map_or(0, |owner| owner.address),
                },
                Level::Possible => State::Possible,
                Level::Reachable => State::Reachable,
            });
        self.blocks.iter().copied().zip(states)
    }

    /// The sums of the blocks of each call stack. Blocks of which the stack is not known are in none.
    pub fn by_stack(&self) -> HashMap<u32, StackReached> {
        let mut stacks = HashMap::<u32, StackReached>::new();
        let mut pairs = self.blocks.iter().zip(&self.levels).peekable();
        while let Some((first, level)) = pairs.next() {
            let mut run = Reached::default();
            add(&mut run, first, *level);
            // Neighbours are often of the same stack.
            while let Some((block, level)) = pairs.next_if(|(next, _)| next.stack == first.stack) {
                add(&mut run, block, *level);
            }
            if first.stack != 0 {
                stacks.entry(first.stack).or_default().blocks += run;
            }
        }
        let levels = self.levels.iter().enumerate();
        let indirect = levels.filter(|&(_, level)| *level == Level::Indirect);
        let owned = indirect.filter_map(|(at, _)| {
            let owner = self.owner(at)?.stack;
            (owner != 0).then(|| (owner, amount(&self.blocks[at])))
        });
        let mut owned = owned.peekable();
        while let Some((owner, mut run)) = owned.next() {
            while let Some((_, block)) = owned.next_if(|(next, _)| *next == owner) {
                run += block;
            }
            stacks.entry(owner).or_default().owned += run;
        }
        stacks
    }

    /// The definitely lost block that an indirectly lost one is lost with.
    fn owner(&self, at: usize) -> Option<&Block> {
        let owner = self.owners.get(at)?;
        self.blocks.get(*owner as usize)
    }
}

/// Adds a block to the amount that its level belongs to.
fn add(reached: &mut Reached, block: &Block, level: Level) {
    let sum = match level {
        Level::Unreached => &mut reached.definite,
        Level::Indirect => &mut reached.indirect,
        Level::Possible => &mut reached.possible,
        Level::Reachable => &mut reached.reachable,
    };
    *sum += amount(block);
}

fn amount(block: &Block) -> Amount {
    Amount {
        bytes: block.size,
        blocks: 1,
    }
}

/// Lets each indirectly lost block name the definitely lost one at the end of its chain of owners.
fn shorten(owners: &mut [u32], levels: &[Level]) {
    let next = |owners: &[u32], at: u32| {
        let is_indirect = levels.get(at as usize) == Some(&Level::Indirect);
        is_indirect.then(|| owners[at as usize])
    };
    for at in 0..owners.len() {
        let Some(first) = next(owners, at as u32) else {
            continue;
        };
        let mut last = first;
        while let Some(owner) = next(owners, last) {
            last = owner;
        }
        // Whoever comes to a block of this chain later is there at once.
        let mut step = at as u32;
        while let Some(owner) = next(owners, step) {
            owners[step as usize] = last;
            step = owner;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_indirectly_lost_block_names_the_definitely_lost_one() {
        let blocks = [1, 2, 3, 4].map(|n| Block {
            address: n << 8,
            size: n,
            stack: n as u32 / 2,
        });
        let levels = [
            Level::Indirect,
            Level::Indirect,
            Level::Unreached,
            Level::Reachable,
        ];
        let judged = JudgedBlocks::new(blocks.to_vec(), levels.to_vec(), vec![1, 2, 0, 0]);
        let owner = State::Indirect { owner: 0x300 };
        let states: Vec<_> = judged.states().map(|(_, state)| state).collect();
        assert_eq!(states, [owner, owner, State::Definite, State::Reachable]);
        assert_eq!(
            judged.reached.lost(),
            Amount {
                bytes: 6,
                blocks: 3
            }
        );
        let amount = |bytes| Amount { bytes, blocks: 1 };
        let second = Reached {
            definite: amount(3),
            indirect: amount(2),
            ..Reached::default()
        };
        let third = Reached {
            reachable: amount(4),
            ..Reached::default()
        };
        // The stack of the first block is not known.
        let owned = Amount {
            bytes: 3,
            blocks: 2,
        };
        let of = |blocks, owned| StackReached { blocks, owned };
        let expected = [(1, of(second, owned)), (2, of(third, Amount::default()))];
        assert_eq!(judged.by_stack(), expected.into());
    }
}
