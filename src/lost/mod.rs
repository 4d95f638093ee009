//! Which of the blocks that a process never freed were lost: a copy of its memory is searched for pointers to them.
//!
//! A process is held only while its memory is copied ([`Snapshot::read`]). The verdict is found on the copy, when the
//! process is gone ([`judge`]). Holding processes, and recording their blocks, is left to `kernel`.
//!
//! What is lost is told as valgrind tells it, so that the sums of both are equal (`docs/design/lost.md`). All input
//! comes from a process that may be hostile. It can make its own verdict wrong, but not memleak slow or large: time and
//! memory are bounded by what was copied, and by the number of blocks.

mod area;
mod arenas;
mod block;
mod buffers;
mod candidates;
mod chunks;
mod copies;
mod exit_frames;
mod freed;
mod heuristics;
mod index;
mod live;
mod marking;
mod marks;
mod memory;
mod plan;
mod roots;
#[cfg(test)]
pub mod samples;
mod stacks;

pub use area::{Area, Backing};
pub use block::{Block, JudgedBlocks, State};
pub use buffers::{Buffer, Buffers, large_vec};
pub use candidates::candidates;
pub use copies::{Copied, Snapshot, Thread};
pub use exit_frames::ExitFrame;
pub use live::LiveBlocks;
pub use memory::{Budget, Unread};
pub use roots::Allocators;

use index::BlockIndex;
use marking::Marking;
use roots::Roots;

/// Judges the blocks that a process never freed. `frames` are those of the files that it has used.
pub fn judge(
    snapshot: &Snapshot,
    live: impl Into<LiveBlocks>,
    allocators: Allocators,
    frames: &[ExitFrame],
) -> JudgedBlocks {
    let LiveBlocks { blocks, lists } = live.into();
    let index = BlockIndex::new(blocks);
    if index.blocks().is_empty() {
        return JudgedBlocks::default();
    }
    let roots = Roots::find(snapshot, &index, allocators, frames, lists);
    let mut marking = Marking::new(snapshot, &index);
    let registers = snapshot.threads.iter().flat_map(|thread| &thread.registers);
    for &word in registers.chain(&roots.starts) {
        marking.root(word);
    }
    roots.each(snapshot, &index, |words| {
        for &word in words {
            marking.root(word);
        }
    });
    let (levels, owners) = marking.finish();
    JudgedBlocks::new(index.into_blocks(), levels, owners)
}
