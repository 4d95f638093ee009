//! The blocks that are to be judged.

use std::ops::Range;

use super::block::Block;

/// The live blocks of a process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LiveBlocks {
    /// Those that the process allocated itself, not those that it inherited by a fork, in any order.
    pub blocks: Vec<Block>,
    /// Where somebody keeps a list of them in the process's own memory. A pointer there reaches nothing.
    pub lists: Vec<Range<u64>>,
}

impl From<Vec<Block>> for LiveBlocks {
    /// Blocks that are listed outside of the process.
    fn from(blocks: Vec<Block>) -> Self {
        Self {
            blocks,
            lists: Vec::new(),
        }
    }
}
