//! Which memory is the program's, so that a pointer there reaches a block, and which is the allocator's. Pure.
//!
//! An allocator keeps pointers to blocks and beside blocks. If these counted, every lost block would seem reachable. If
//! too much was left out, blocks would seem lost that are not. So memory is left out only where it is known to be the
//! allocator's, and never a whole mapping of glibc's: the kernel merges neighbours of all kinds.

use std::ops::Range;

use super::area::{Area, Backing};
use super::arenas::Arenas;
use super::chunks::{self, HeapWalk, Unknown};
use super::copies::Snapshot;
use super::exit_frames::{self, ExitFrame};
use super::freed::Freed;
use super::index::BlockIndex;
use super::stacks::Stacks;

/// What is known of the allocators that gave a process its blocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Allocators {
    /// glibc's malloc.
    Glibc,
    /// An allocator whose anonymous mappings hold blocks and its own data, and nothing else: jemalloc, mimalloc. They ask
    /// for memory that the kernel does not account for, which it never joins with mappings that the program made.
    Mappings,
    /// An allocator that shares its memory with the program, page by page: tcmalloc. It takes it by sbrk(2), too, and it
    /// keeps no pointers to blocks elsewhere.
    Pages,
    /// Any other: musl, an allocator of the user's own, or several at once.
    #[default]
    Unknown,
}

/// What is left out of the roots.
#[derive(Debug, Default)]
pub struct Roots {
    /// By address. None overlaps another.
    left_out: Vec<Range<u64>>,
    /// The addresses of blocks that are reachable, though no pointer to them may be found.
    pub starts: Vec<u64>,
}

impl Roots {
    /// `lists`: where others than the program keep the addresses of blocks.
    pub fn find(
        snapshot: &Snapshot,
        index: &BlockIndex,
        allocators: Allocators,
        frames: &[ExitFrame],
        lists: Vec<Range<u64>>,
    ) -> Self {
        let stacks = Stacks::find(snapshot);
        let mut left_out = lists;
        left_out.extend(stacks.unused);
        left_out.extend(exit_frames::not_the_programs(snapshot, frames));
        match allocators {
            Allocators::Glibc => glibc(snapshot, index, &mut left_out),
            Allocators::Mappings => mappings(snapshot, index, &mut left_out),
            Allocators::Pages => pages(snapshot, index, &mut left_out),
            Allocators::Unknown => {}
        }
        Self {
            left_out: merged(left_out),
            starts: stacks.tables,
        }
    }

    /// Calls `each` with the words of all roots, in pieces. The blocks themselves are no roots, wherever they are.
    pub fn each(&self, snapshot: &Snapshot, index: &BlockIndex, mut each: impl FnMut(&[u64])) {
        let mut left_out = self.left_out.iter().peekable();
        let mut hint = 0;
        for copy in snapshot.copies.iter().filter(|copy| !copy.is_files) {
            let mut start = copy.start;
            while start < copy.end {
                while left_out.next_if(|range| range.end <= start).is_some() {}
                let (end, next) = match left_out.peek() {
                    Some(range) if range.start < copy.end => {
                        (range.start.max(start), range.end.min(copy.end))
                    }
                    _ => (copy.end, copy.end),
                };
                without_blocks(start..end, index, |range| {
                    snapshot.scan(range, &mut hint, |_, words| each(words));
                });
                start = next;
            }
        }
    }
}

/// Calls `each` with the parts of a range between the blocks.
fn without_blocks(range: Range<u64>, index: &BlockIndex, mut each: impl FnMut(Range<u64>)) {
    if range.is_empty() {
        return;
    }
    let first = index.first_from(range.start);
    let blocks = &index.blocks()[first.saturating_sub(1)..];
    let mut start = range.start;
    for block in blocks.iter().take_while(|block| block.address < range.end) {
        if start < block.address {
            each(start..block.address);
        }
        start = start.max(block.end());
    }
    if start < range.end {
        each(start..range.end);
    }
}

/// Leaves out what belongs to glibc's malloc: its arenas, the heaps that they have, and mappings for single blocks. A
/// chunk in use that is not one of the blocks stays a root. A process inherits such blocks by a fork, and memleak has not
/// seen those that are older than its probes: they are the program's, and never its leak.
fn glibc(snapshot: &Snapshot, index: &BlockIndex, left_out: &mut Vec<Range<u64>>) {
    let arenas = Arenas::find(snapshot);
    for main in &arenas.main {
        left_out.push(main.range());
    }
    for heap in &arenas.heaps {
        // What is before the first chunk, and at the end, is the arena's in any case.
        left_out.push(heap.start..heap.first_chunk.min(heap.end));
    }
    let mut unknown = Vec::new();
    let covered = merged(walk(snapshot, index, &arenas, |chunk| unknown.push(chunk)));
    unknown.sort_unstable_by_key(|chunk| chunk.block);
    let freed = Freed::find(snapshot, &arenas, &unknown);
    let in_use = unknown
        .iter()
        .enumerate()
        .filter(|(at, _)| !freed.contains(*at))
        .map(|(_, chunk)| chunk.content());
    alone(snapshot, index, &covered, left_out);
    subtract(covered, in_use, left_out);
}

/// Walks over all heaps of glibc's. Returns what is malloc's. Calls `unknown` with each chunk that looks as if it were in
/// use, and whose block is not known.
pub(super) fn walk(
    snapshot: &Snapshot,
    index: &BlockIndex,
    arenas: &Arenas,
    unknown: impl FnMut(Unknown),
) -> Vec<Range<u64>> {
    let mut walk = HeapWalk::new(unknown);
    for heap in &arenas.heaps {
        walk.walk(snapshot, index, heap.first_chunk..heap.end, heap.top);
    }
    for heap in heaps(&snapshot.areas) {
        let mut tops = arenas.main.iter().filter_map(|main| main.top(snapshot));
        // If no arena has its last chunk here, this memory is not glibc's.
        if let Some(top) = tops.find(|top| heap.contains(top)) {
            walk.walk(snapshot, index, heap, top);
        }
    }
    walk.covered
}

/// Leaves out the mappings that glibc made for single blocks.
fn alone(
    snapshot: &Snapshot,
    index: &BlockIndex,
    covered: &[Range<u64>],
    left_out: &mut Vec<Range<u64>>,
) {
    let blocks = index.blocks();
    let mut covered = covered.iter().peekable();
    let mut at = 0;
    while let Some(block) = blocks.get(at) {
        while covered
            .next_if(|range| range.end <= block.address)
            .is_some()
        {}
        match covered.peek() {
            // All blocks up to the end of a heap have their place there.
            Some(range) if range.start <= block.address => {
                at += index.first_from(range.end).saturating_sub(at).max(1);
            }
            _ => {
                left_out.extend(chunks::mapped_alone(snapshot, block.address, block.size));
                at += 1;
            }
        }
    }
}

/// The ranges of [heap]. The program may have divided it by changing the protection of a part.
fn heaps(areas: &[Area]) -> Vec<Range<u64>> {
    let heaps = areas.iter().filter(|area| area.backing == Backing::Heap);
    merged(heaps.map(Area::range).collect())
}

/// Leaves out the anonymous mappings that hold blocks. A file's data, and what stands behind it, may hold blocks too:
/// they belong to the program, except for the blocks.
fn mappings(snapshot: &Snapshot, index: &BlockIndex, left_out: &mut Vec<Range<u64>>) {
    for area in mapped(&snapshot.areas) {
        let holds = index
            .blocks()
            .get(index.first_from(area.start))
            .is_some_and(|block| area.contains(block.address));
        if holds {
            left_out.push(area.range());
        }
    }
}

/// Leaves out the pages that hold blocks, with the freed blocks beside them.
fn pages(snapshot: &Snapshot, index: &BlockIndex, left_out: &mut Vec<Range<u64>>) {
    const PAGE: u64 = 4096;
    for area in mapped(&snapshot.areas) {
        let blocks = &index.blocks()[index.first_from(area.start)..];
        for block in blocks.iter().take_while(|block| block.address < area.end) {
            let start = block.address & !(PAGE - 1);
            let end = block.end().checked_next_multiple_of(PAGE);
            left_out.push(start..end.unwrap_or(area.end).min(area.end));
        }
    }
}

/// The areas that may be an allocator's: anonymous mappings and [heap], but not what stands behind a file's data.
fn mapped(areas: &[Area]) -> impl Iterator<Item = &Area> {
    areas.iter().enumerate().filter_map(|(at, area)| {
        let before = at.checked_sub(1).map(|before| &areas[before]);
        let is_behind_data = before.is_some_and(|before| {
            before.backing == Backing::File && before.end == area.start && before.writable
        });
        let is_mapped = match area.backing {
            Backing::Anonymous => !is_behind_data && !area.shared,
            Backing::Heap => true,
            _ => false,
        };
        is_mapped.then_some(area)
    })
}

/// Sorts ranges, and joins those that touch.
fn merged(mut ranges: Vec<Range<u64>>) -> Vec<Range<u64>> {
    ranges.retain(|range| !range.is_empty());
    ranges.sort_unstable_by_key(|range| range.start);
    ranges.dedup_by(|range, before| {
        let touches = range.start <= before.end;
        if touches {
            before.end = before.end.max(range.end);
        }
        touches
    });
    ranges
}

/// Adds to `rest` what is left of ranges after others are taken out. Both are in order. None overlaps another of its
/// kind.
fn subtract(
    ranges: Vec<Range<u64>>,
    taken: impl Iterator<Item = Range<u64>>,
    rest: &mut Vec<Range<u64>>,
) {
    let mut taken = taken.peekable();
    for range in ranges {
        let mut start = range.start;
        while start < range.end {
            while taken.next_if(|taken| taken.end <= start).is_some() {}
            let (end, next) = match taken.peek() {
                Some(taken) if taken.start < range.end => (taken.start.max(start), taken.end),
                _ => (range.end, range.end),
            };
            if start < end {
                rest.push(start..end);
            }
            start = next;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::block::{Block, State};
    use super::super::judge;
    use super::super::samples::Memory;
    use super::*;

    const HEAP: u64 = 0x7f00_0000_0000;
    const DATA: u64 = 0x5555_0000_0000;
    const SIZE: usize = 512;

    /// Two blocks of 64 bytes: one in an anonymous mapping and one in a program's data. Beside each is a pointer to it.
    fn states(allocators: Allocators, backing: Backing) -> Vec<State> {
        let words = |start: u64| {
            let mut words = vec![0; SIZE];
            words[100] = start + 64;
            words
        };
        let snapshot = Memory::default()
            .data(DATA, &words(DATA))
            .area(HEAP, &words(HEAP), "rw", backing)
            .snapshot();
        let blocks = [DATA, HEAP].map(|start| Block {
            address: start + 64,
            size: 64,
            ..Block::default()
        });
        let judged = judge(&snapshot, blocks.to_vec(), allocators, &[]);
        judged.states().map(|(_, state)| state).collect()
    }

    #[test]
    fn other_allocators_keep_their_mappings() {
        use State::{Definite, Reachable};
        let anonymous = |allocators| states(allocators, Backing::Anonymous);
        assert_eq!(anonymous(Allocators::Mappings), [Reachable, Definite]);
        assert_eq!(anonymous(Allocators::Unknown), [Reachable, Reachable]);
        // Without a header that says so, nothing is malloc's.
        assert_eq!(anonymous(Allocators::Glibc), [Reachable, Reachable]);
        let heap = states(Allocators::Mappings, Backing::Heap);
        assert_eq!(heap, [Reachable, Definite]);
    }

    #[test]
    fn of_memory_that_is_shared_with_the_program_only_pages_are_left_out() {
        let mut words = vec![0; 2 * SIZE];
        let blocks = [HEAP + 64, HEAP + 256].map(|address| Block {
            address,
            size: 64,
            ..Block::default()
        });
        // The first pointer is in a page that has blocks.
        words[100] = blocks[0].address;
        words[SIZE + 100] = blocks[1].address;
        for backing in [Backing::Anonymous, Backing::Heap] {
            let snapshot = Memory::default()
                .area(HEAP, &words, "rw", backing)
                .snapshot();
            let judged = judge(&snapshot, blocks.to_vec(), Allocators::Pages, &[]);
            let states: Vec<_> = judged.states().map(|(_, state)| state).collect();
            assert_eq!(states, [State::Definite, State::Reachable]);
        }
    }

    #[test]
    fn what_stands_behind_a_files_data_belongs_to_the_program() {
        let mut bss = vec![0; SIZE];
        bss[100] = DATA + SIZE as u64 * 8 + 64;
        let snapshot = Memory::default()
            .data(DATA, &[0; SIZE])
            .anonymous(DATA + SIZE as u64 * 8, &bss)
            .snapshot();
        let block = Block {
            address: bss[100],
            size: 64,
            ..Block::default()
        };
        let judged = judge(&snapshot, vec![block], Allocators::Mappings, &[]);
        assert_eq!(judged.reached.reachable.blocks, 1);
    }

    #[test]
    fn registers_are_roots() {
        let snapshot = Memory::default()
            .anonymous(HEAP, &[0; SIZE])
            .thread(0, 0, &[HEAP + 64])
            .snapshot();
        let block = Block {
            address: HEAP + 64,
            size: 64,
            ..Block::default()
        };
        let judged = judge(&snapshot, vec![block], Allocators::Mappings, &[]);
        assert_eq!(judged.reached.reachable.blocks, 1);
    }

    #[test]
    fn ranges_are_merged_and_taken_apart() {
        let ranges = merged(vec![5..9, 1..3, 3..4, 20..20, 6..7]);
        assert_eq!(ranges, [1..4, 5..9]);
        let mut rest = Vec::new();
        subtract(ranges, [0..2, 3..6, 8..30].into_iter(), &mut rest);
        assert_eq!(rest, [2..3, 6..8]);
    }
}
