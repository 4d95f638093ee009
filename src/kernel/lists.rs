//! Lists of the blocks that a heap still has, for heaps whose processes have been read at their ends.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::{Mutex, PoisonError};
use std::thread;

use libbpf_rs::{MapCore as _, MapHandle};

use crate::kernel::batch::BatchWalk;
use crate::kernel::error::LoadError;
use crate::kernel::rings::call_with;
use crate::kernel::shadow::Shadow;
use crate::kernel::skeletons::MemleakSkel;
use crate::kernel::skeletons::types::look_up;
use crate::kernel::slots::{CandidateTable, LiveBlock, Slots};
use crate::lost::{Block, LiveBlocks, Snapshot, candidates, large_vec};
use crate::model::reach::ReachUnknown;
use crate::os::room::memory_left;

/// How many entries of the hash table are read at once.
const AT_ONCE: u32 = 65536;

/// How many bytes a block takes while it is judged, at the most.
pub(super) const BYTES_A_BLOCK: u64 = 128;

/// How many candidates are worth a second thread. The look-up of so many takes some milliseconds.
const WORTH_A_THREAD: usize = 32768;

/// The tables of live blocks.
pub(super) struct BlockLists {
    slots: Slots,
    blocks: MapHandle,
    /// Heaps in it keep their blocks.
    unlisted: MapHandle,
    candidates: [CandidateTable; 2],
    look_up_blocks: OwnedFd,
    /// What is counted inside is counted by probes, too.
    compares: bool,
}

/// Which blocks are to be listed.
#[derive(Clone, Copy)]
pub(super) struct Listed {
    pub(super) heap: u64,
    /// How many of them are in the hash table, or more.
    pub(super) hashed: u64,
    /// Where the process remembers blocks itself. 0: nowhere.
    pub(super) inside_at: u64,
    /// Whether there may be blocks that are in no list.
    pub(super) has_unseen: bool,
}

impl BlockLists {
    /// `compares`: blocks that processes remember are in the tables, too.
    ///
    /// # Errors
    /// There is no address space, or no descriptor, left.
    pub(super) fn open(skel: &MemleakSkel<'static>, compares: bool) -> Result<Self, LoadError> {
        let program = skel.progs.look_up_blocks.as_fd();
        Ok(Self {
            slots: Slots::map(&skel.maps.slots).map_err(LoadError::mapping)?,
            candidates: CandidateTable::map_halves(&skel.maps.candidates)
                .map_err(LoadError::mapping)?,
            look_up_blocks: program.try_clone_to_owned().map_err(LoadError::mapping)?,
            blocks: MapHandle::try_from(&skel.maps.blocks).map_err(LoadError::ring)?,
            unlisted: MapHandle::try_from(&skel.maps.unlisted).map_err(LoadError::ring)?,
            compares,
        })
    }

    /// The blocks of a heap, and whether there may be further ones. `snapshot`: the memory of its process. If its process
    /// runs, some may be missing.
    ///
    /// # Errors
    /// The tables cannot be read, or what the process remembers makes no sense, or is too much.
    pub(super) fn read(
        &mut self,
        listed: Listed,
        snapshot: &Snapshot,
    ) -> Result<(LiveBlocks, bool), ReachUnknown> {
        let blocks = self.recorded(listed.heap, listed.hashed, snapshot);
        let blocks = blocks.map_err(|_| ReachUnknown::Unsure)?;
        if listed.inside_at == 0 {
            return Ok((blocks.into(), listed.has_unseen));
        }
        let most = memory_left() / 2 / BYTES_A_BLOCK;
        let shadow = Shadow::read(snapshot, listed.inside_at, most as usize)?;
        let mut live = shadow.live;
        match self.compares {
            false => live.blocks.extend(blocks),
            true if !are_equal(&mut live.blocks, blocks) => return Err(ReachUnknown::Unsure),
            true => {}
        }
        Ok((live, listed.has_unseen || shadow.is_incomplete))
    }

    /// The blocks of a heap that probes have recorded.
    fn recorded(&mut self, heap: u64, hashed: u64, snapshot: &Snapshot) -> nix::Result<Vec<Block>> {
        let mut blocks = self.slots.blocks_of(heap);
        if hashed == 0 {
            return Ok(blocks);
        }
        // Looking up what the memory names is much faster than reading the table.
        let known = blocks.len();
        let candidates = candidates(snapshot, known as u64 + hashed);
        blocks = self.look_up(heap, &candidates, blocks);
        if ((blocks.len() - known) as u64) < hashed {
            blocks.truncate(known);
            self.add_hashed(heap, &mut blocks)?;
        }
        Ok(blocks)
    }

    /// Adds to the known blocks those of the candidates that are in the hash table. Nearly all of that time is spent waiting
    /// for memory. So where there are many, two threads look them up.
    fn look_up(&mut self, heap: u64, candidates: &[u64], known: Vec<Block>) -> Vec<Block> {
        // All lists share the table.
        static ONE: Mutex<()> = Mutex::new(());
        let mut blocks = large_vec(known.len() + candidates.len());
        blocks.extend(known);
        let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
        let program = &self.look_up_blocks;
        let [own, others] = &mut self.candidates;
        let is_worth_it = candidates.len() >= WORTH_A_THREAD;
        let (first, second) = candidates.split_at(match is_worth_it {
            true => candidates.len() / 2,
            false => candidates.len(),
        });
        let room = &mut blocks.spare_capacity_mut()[..candidates.len()];
        let (to, others_to) = room.split_at_mut(first.len());
        let (count, helped) = thread::scope(|scope| {
            let work = || find_blocks(program, others, heap, second, others_to);
            let helper = thread::Builder::new().name("memleak-judge".to_owned());
            let helper = is_worth_it.then(|| helper.spawn_scoped(scope, work));
            let count = find_blocks(program, own, heap, first, to);
            let helped = helper.and_then(Result::ok);
            (
                count,
                helped.map(|helper| helper.join().unwrap_or_default()),
            )
        });
        // If there is no other thread to be had, this one does it.
        let more = helped
            .unwrap_or_else(|| find_blocks(program, own, heap, second, &mut room[first.len()..]));
        room.copy_within(first.len()..first.len() + more, count);
        let all = blocks.len() + count + more;
        // SAFETY: so many blocks behind those that were there have been written.
        unsafe { blocks.set_len(all) };
        blocks
    }

    /// The blocks of a heap that has ended may be dropped.
    pub(super) fn release(&self, heap: u64) {
        // There is no entry if the process was never read.
        let _ = self.unlisted.delete(&heap.to_ne_bytes());
    }

    fn add_hashed(&self, heap: u64, blocks: &mut Vec<Block>) -> nix::Result<()> {
        for_each_hashed(&self.blocks, |live| {
            if live.heap == heap {
                blocks.push(live.block);
            }
        })
    }
}

/// Whether these are the same blocks, wherever they were allocated.
fn are_equal(blocks: &mut [Block], mut others: Vec<Block>) -> bool {
    let key = |block: &Block| (block.address, block.size);
    blocks.sort_unstable_by_key(key);
    others.sort_unstable_by_key(key);
    blocks.iter().map(key).eq(others.iter().map(key))
}

/// Reads the hash table of blocks, of all heaps.
///
/// # Errors
/// The kernel cannot read it.
pub(super) fn for_each_hashed(
    blocks: &MapHandle,
    mut each: impl FnMut(LiveBlock),
) -> nix::Result<()> {
    let word = |bytes: &[u8], at: usize| {
        let word = bytes.get(at..).and_then(<[u8]>::first_chunk);
        word.map_or(0, |word| u64::from_ne_bytes(*word))
    };
    let half = |bytes: &[u8], at: usize| {
        let half = bytes.get(at..).and_then(<[u8]>::first_chunk);
        half.map_or(0, |half| u32::from_ne_bytes(*half))
    };
    let mut walk = BatchWalk::new(AT_ONCE);
    while let Some(batch) = walk.next(blocks)? {
        for (key, block) in batch.keys.zip(batch.values) {
            each(LiveBlock {
                heap: word(key, 0),
                block: Block {
                    address: word(key, 8),
                    size: word(block, 0),
                    stack: half(block, 8),
                },
                born: half(block, 12),
            });
        }
    }
    Ok(())
}

/// Looks candidates up. Writes those that are blocks to the beginning of `to`, in the same order, and returns how many
/// these are. There must be room for all.
fn find_blocks(
    program: &OwnedFd,
    table: &mut CandidateTable,
    heap: u64,
    candidates: &[u64],
    to: &mut [MaybeUninit<Block>],
) -> usize {
    let mut count = 0;
    for some in candidates.chunks(table.size().max(1)) {
        table.put(some);
        let mut look_up = look_up {
            heap,
            first: table.first(),
            count: some.len() as u32,
            ..look_up::default()
        };
        call_with(program, &mut look_up);
        if look_up.found > 0 {
            for block in table.found(some.len()) {
                to[count].write(block);
                count += 1;
            }
        }
    }
    count
}
