//! glibc's arenas: where they are, and which memory each has. Pure.
//!
//! Layouts are those of malloc/malloc.c and malloc/arena.c, glibc 2.31 to 2.43, x86_64 and aarch64. They are told by
//! their content, not by a version: a static program does not name its version. Nothing that is read is trusted. What
//! does not look as it must is left as an ordinary root.

use std::collections::BTreeSet;
use std::ops::Range;

use super::area::Backing;
use super::copies::Snapshot;

/// `struct malloc_state`: the distances from its bins to what stands before and behind them, in bytes.
const TOP_BEFORE_BINS: u64 = 16;
const BINS_BYTES: u64 = 254 * 8;
const NEXT_BEHIND_BINS: u64 = BINS_BYTES + 16;
const END_BEHIND_BINS: u64 = NEXT_BEHIND_BINS + 5 * 8;
/// A bin is two words: the first and the last free chunk.
const BIN: u64 = 16;
const BINS: u64 = BINS_BYTES / BIN;
/// From the beginning of the structure to its bins, if the lists of small freed chunks stand between.
const HEAD: u64 = 0x70;
/// The same since glibc 2.43, which has no such lists.
const HEAD_WITHOUT_LISTS: u64 = 0x18;
/// Where these lists begin, from the beginning of the structure, and their number.
const FAST_LISTS: u64 = 0x10;
pub const FAST_BINS: u64 = 10;

/// Every heap of an arena but the main one's lies at a multiple of this, its greatest size (HEAP_MAX_SIZE).
pub const HEAP_ALIGNMENT: u64 = 64 << 20;

/// The most arenas and heaps that are followed. glibc makes eight arenas for each CPU.
const MOST: usize = 1 << 16;

/// An arena. What it has is found by way of its structure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arena {
    /// The structure's first address.
    pub start: u64,
    /// From there to its bins.
    head: u64,
}

impl Arena {
    fn bins(&self) -> u64 {
        self.start.saturating_add(self.head)
    }

    /// Where the structure is.
    pub fn range(&self) -> Range<u64> {
        self.start..self.bins().saturating_add(END_BEHIND_BINS)
    }

    /// The chunk from which new ones are cut, the last one of its heap.
    pub fn top(&self, snapshot: &Snapshot) -> Option<u64> {
        snapshot.word(self.bins().checked_sub(TOP_BEFORE_BINS)?)
    }

    /// Where the lists of small freed chunks begin.
    pub fn fast_lists(&self) -> Option<u64> {
        (self.head == HEAD).then_some(self.start + FAST_LISTS)
    }
}

/// A heap of an arena that is not the main one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heap {
    /// A multiple of `HEAP_ALIGNMENT`. The heap begins with `struct heap_info`, and the first one of an arena has the
    /// arena's structure behind that.
    pub start: u64,
    /// Behind the memory that the arena has in use.
    pub end: u64,
    /// The address of the first chunk.
    pub first_chunk: u64,
    /// The arena's last chunk, in this heap or another one.
    pub top: u64,
}

/// What a process has of glibc's malloc.
#[derive(Debug, Default)]
pub struct Arenas {
    /// The arenas of [heap], of which a process has one. It has several if a second C library is loaded beside the first.
    pub main: Vec<Arena>,
    pub others: Vec<Arena>,
    /// The heaps of `others`, by address.
    pub heaps: Vec<Heap>,
}

impl Arenas {
    pub fn find(snapshot: &Snapshot) -> Self {
        let mut arenas = Self {
            main: main_arenas(snapshot),
            ..Self::default()
        };
        for main in arenas.main.clone() {
            let mut seen = BTreeSet::from([main.start]);
            let mut arena = main;
            while let Some(start) = snapshot.word(arena.bins().saturating_add(NEXT_BEHIND_BINS)) {
                if seen.len() > MOST || !seen.insert(start) {
                    break;
                }
                arena = Arena { start, ..main };
                arenas.add(snapshot, arena);
            }
        }
        arenas.heaps.sort_by_key(|heap| heap.start);
        arenas.heaps.dedup_by_key(|heap| heap.start);
        arenas
    }

    /// Adds an arena and its heaps, from the one that it filled last to its first one.
    fn add(&mut self, snapshot: &Snapshot, arena: Arena) {
        let first = arena.start & !(HEAP_ALIGNMENT - 1);
        let Some(top) = arena.top(snapshot) else {
            return;
        };
        let mut start = top & !(HEAP_ALIGNMENT - 1);
        let before = self.heaps.len();
        while start != 0 && self.heaps.len() < MOST {
            let [Some(owner), Some(previous), Some(size)] =
                [0, 8, 16].map(|at| snapshot.word(start + at))
            else {
                break;
            };
            if owner != arena.start || size > HEAP_ALIGNMENT || !size.is_multiple_of(4096) {
                break;
            }
            // The structure stands right behind `struct heap_info`, whose size depends on the version.
            let first_chunk = match start == first {
                true => (arena.range().end + 15) & !15,
                false => start + (arena.start - first),
            };
            self.heaps.push(Heap {
                start,
                end: start + size,
                first_chunk,
                top,
            });
            let is_known = self.heaps[before..]
                .iter()
                .any(|heap| heap.start == previous);
            if is_known || !previous.is_multiple_of(HEAP_ALIGNMENT) {
                break;
            }
            start = previous;
        }
        if self.heaps.len() > before {
            self.others.push(arena);
        }
    }
}

/// The main arenas. Each is a variable of libc or of a static program, with bins that name themselves while they are
/// empty.
fn main_arenas(snapshot: &Snapshot) -> Vec<Arena> {
    let mut found = Vec::new();
    let mut hint = 0;
    let is_data =
        |area: &&super::area::Area| area.backing == Backing::File && area.writable && !area.shared;
    for area in snapshot.areas.iter().filter(is_data) {
        // Behind an arena the search goes on, so that no bin is looked at twice.
        let mut behind = area.start;
        snapshot.scan(area.range(), &mut hint, |start, words| {
            for (at, pair) in (start..).step_by(8).zip(words.windows(2)) {
                // An empty bin has the address of a chunk whose links it would be.
                if pair[0] != at.wrapping_sub(16) || pair[1] != pair[0] || at < behind {
                    continue;
                }
                let bins = run_of_bins(snapshot, at);
                behind = bins.end;
                if (bins.end - bins.start) / BIN == BINS {
                    found.extend(arena_of(snapshot, bins.start));
                }
            }
        });
    }
    found
}

/// The bins that stand side by side, around an empty one.
fn run_of_bins(snapshot: &Snapshot, empty: u64) -> Range<u64> {
    let mut bins = empty..empty + BIN;
    while bins.end - bins.start < BINS_BYTES && is_bin(snapshot, bins.end) {
        bins.end += BIN;
    }
    while bins.end - bins.start < BINS_BYTES
        && bins.start > BIN
        && is_bin(snapshot, bins.start - BIN)
    {
        bins.start -= BIN;
    }
    bins
}

/// Whether a bin is there: its first and its last chunk link back to it.
fn is_bin(snapshot: &Snapshot, at: u64) -> bool {
    let (Some(first), Some(last)) = (snapshot.word(at), snapshot.word(at + 8)) else {
        return false;
    };
    let own = at.wrapping_sub(16);
    if first == own && last == own {
        return true;
    }
    let link = |chunk: u64, offset: u64| snapshot.word(chunk.wrapping_add(offset));
    link(first, 24) == Some(own) && link(last, 16) == Some(own)
}

/// The arena with these bins. Its beginning is the address by which arenas name it: each has a pointer to the next.
fn arena_of(snapshot: &Snapshot, bins: u64) -> Option<Arena> {
    let next = |bins: u64| snapshot.word(bins.checked_add(NEXT_BEHIND_BINS)?);
    [HEAD, HEAD_WITHOUT_LISTS].into_iter().find_map(|head| {
        let start = bins.checked_sub(head)?;
        let mut arena = start;
        for _ in 0..MOST {
            arena = next(arena.checked_add(head)?)?;
            if arena == start {
                return Some(Arena { start, head });
            }
        }
        None
    })
}

#[cfg(test)]
pub mod tests {
    use super::super::samples::Memory;
    use super::*;

    /// The words of `struct malloc_state` at an address, without free chunks.
    pub fn state(at: u64, top: u64, next: u64) -> Vec<u64> {
        let mut words = vec![0; 12];
        words.extend([top, 0]);
        for bin in 0..BINS {
            let own = at + HEAD + bin * BIN - 16;
            words.extend([own, own]);
        }
        words.extend([0, 0, next, 0, 1, 0, 0]);
        words
    }

    const DATA: u64 = 0x7f00_0000_0000;
    const HEAP: u64 = 0x7e00_0000_0000;

    #[test]
    fn the_main_arena_is_told_by_its_empty_bins() {
        let mut data = vec![1; 8];
        data.extend(state(DATA + 64, 0x5555_0000, DATA + 64));
        data.extend([1; 8]);
        let arenas = Arenas::find(&Memory::default().data(DATA, &data).snapshot());
        assert_eq!(arenas.main.len(), 1);
        let main = arenas.main[0];
        assert_eq!(main.range(), DATA + 64..DATA + 64 + 0x898);
        assert!(arenas.heaps.is_empty());
        // Without a way back to it, it may be anything.
        data[8 + (0x870 / 8)] = 0;
        let arenas = Arenas::find(&Memory::default().data(DATA, &data).snapshot());
        assert!(arenas.main.is_empty());
    }

    #[test]
    fn an_arena_may_have_no_lists_of_small_chunks() {
        let own = DATA + HEAD_WITHOUT_LISTS - HEAD;
        // The words before `top` are those of the lists, except for the first one.
        let mut data = state(own, 0x5555_0000, DATA).split_off(11);
        data[0] = 0;
        let snapshot = Memory::default().data(DATA, &data).snapshot();
        let arenas = Arenas::find(&snapshot);
        assert_eq!(arenas.main.len(), 1);
        let main = arenas.main[0];
        assert_eq!(main.range(), DATA..DATA + 0x840);
        assert_eq!(main.top(&snapshot), Some(0x5555_0000));
        assert_eq!(main.fast_lists(), None);
    }

    #[test]
    fn the_first_bins_may_have_chunks() {
        let mut data = state(DATA, 0x5555_0000, DATA);
        for (bin, chunk) in [(0, 0x5555_0100), (1, 0x5555_0200)] {
            data[14 + bin * 2] = chunk;
            data[15 + bin * 2] = chunk;
        }
        let mut heap = vec![0; 256];
        for (chunk, bin) in [(0x100, 0), (0x200, 1)] {
            let own = DATA + HEAD + bin * BIN - 16;
            heap[chunk / 8 + 2] = own;
            heap[chunk / 8 + 3] = own;
        }
        let memory = Memory::default().data(DATA, &data);
        let snapshot = memory.heap(0x5555_0000, &heap).snapshot();
        let arenas = Arenas::find(&snapshot);
        assert_eq!(
            arenas.main,
            [Arena {
                start: DATA,
                head: HEAD
            }]
        );
        assert_eq!(arenas.main[0].top(&snapshot), Some(0x5555_0000));
    }

    #[test]
    fn the_heaps_of_other_arenas_are_followed() {
        let (first, second) = (HEAP, HEAP + HEAP_ALIGNMENT);
        let arena = first + 0x30;
        let data = state(DATA, 0x5555_0000, arena);
        let mut heap = vec![arena, 0, 0x1000, 0x1000, 4096, 0];
        heap.extend(state(arena, second + 0x100, DATA));
        let next = [arena, first, 0x2000, 0x2000, 4096, 0];
        let snapshot = Memory::default()
            .data(DATA, &data)
            .anonymous(first, &heap)
            .anonymous(second, &next)
            .snapshot();
        let arenas = Arenas::find(&snapshot);
        assert_eq!(
            arenas.others,
            [Arena {
                start: arena,
                head: HEAD
            }]
        );
        let heap = |start, end, first_chunk| Heap {
            start,
            end,
            first_chunk,
            top: second + 0x100,
        };
        let expected = [
            heap(first, first + 0x1000, first + 0x8d0),
            heap(second, second + 0x2000, second + 0x30),
        ];
        assert_eq!(arenas.heaps, expected);
    }
}
