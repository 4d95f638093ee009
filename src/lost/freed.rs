//! Blocks that were freed and that glibc keeps for reuse, though their chunks look as if they were in use. Pure.
//!
//! Each thread has lists of such blocks by size (`struct tcache_perthread_struct`), in a block that malloc takes for
//! itself. Each arena has lists of small ones (`fastbinsY`). The links of both are the next block's address, since glibc
//! 2.32 combined with the link's own address (PROTECT_PTR in malloc/malloc.c).

use std::collections::HashSet;

use super::arenas::{Arenas, FAST_BINS};
use super::chunks::{HEADER, Unknown};
use super::copies::Snapshot;

/// The lists of a thread, by the size of the chunk that they are in.
struct Lists {
    chunk: u64,
    /// From the block to the first list. Before it are counters.
    offset: u64,
    lists: u64,
}

const LISTS: [Lists; 4] = [
    // glibc 2.26 to 2.29
    Lists {
        chunk: 0x250,
        offset: 64,
        lists: 64,
    },
    // 2.30 to 2.41
    Lists {
        chunk: 0x290,
        offset: 128,
        lists: 64,
    },
    // since 2.42
    Lists {
        chunk: 0x300,
        offset: 152,
        lists: 76,
    },
    // The same. If malloc already knows the thread's arena, it takes a little more.
    Lists {
        chunk: 0x310,
        offset: 152,
        lists: 76,
    },
];

/// The lists whose blocks have one size each. Those behind them are for larger blocks.
const LISTS_OF_ONE_SIZE: u64 = 64;

/// Finds out which of the unknown chunks are not in use.
pub struct Freed<'a> {
    snapshot: &'a Snapshot,
    /// In the order of their blocks' addresses.
    unknown: &'a [Unknown],
    /// The indices of those that are not in use, or that hold nothing but lists.
    found: HashSet<usize>,
}

impl<'a> Freed<'a> {
    /// `unknown` must be in the order of addresses.
    pub fn find(snapshot: &'a Snapshot, arenas: &Arenas, unknown: &'a [Unknown]) -> Self {
        let mut freed = Self {
            snapshot,
            unknown,
            found: HashSet::new(),
        };
        for arena in arenas.main.iter().chain(&arenas.others) {
            let Some(lists) = arena.fast_lists() else {
                continue;
            };
            for list in 0..FAST_BINS {
                freed.follow(lists + list * 8, HEADER, |chunk| {
                    chunk.size == 32 + list * 16
                });
            }
        }
        for (at, chunk) in unknown.iter().enumerate() {
            if let Some(lists) = LISTS.iter().find(|lists| lists.chunk == chunk.size) {
                freed.thread(at, lists);
            }
        }
        freed
    }

    pub fn contains(&self, at: usize) -> bool {
        self.found.contains(&at)
    }

    /// Looks at a block that may have a thread's lists. An ordinary block of that size has other content.
    fn thread(&mut self, at: usize, lists: &Lists) {
        let start = self.unknown[at].block + lists.offset;
        let heads = (0..lists.lists).map(|list| (list, start + list * 8));
        let mut blocks = 0;
        for (list, head) in heads.clone() {
            match self.snapshot.word(head) {
                Some(0) => {}
                Some(block) if self.has_size(block, list) => blocks += 1,
                _ => return,
            }
        }
        if blocks == 0 {
            return;
        }
        self.found.insert(at);
        for (list, head) in heads {
            self.follow(head, 0, |chunk| is_of_list(chunk, list));
        }
    }

    fn has_size(&self, block: u64, list: u64) -> bool {
        self.position(block)
            .is_some_and(|at| is_of_list(&self.unknown[at], list))
    }

    fn position(&self, block: u64) -> Option<usize> {
        self.unknown
            .binary_search_by_key(&block, |chunk| chunk.block)
            .ok()
    }

    /// Follows a list from the word that has its first link. Links are addresses of chunks that lie `offset` before
    /// their blocks. The list ends at a chunk that is not one of its kind, or that was found before.
    fn follow(&mut self, head: u64, offset: u64, is_of_kind: impl Fn(&Unknown) -> bool) {
        let Some(mut link) = self.snapshot.word(head) else {
            return;
        };
        // The first link is the address as it is.
        let mut plain = link;
        loop {
            let found = [link, plain].into_iter().find_map(|link| {
                let at = self.position(link.checked_add(offset)?)?;
                is_of_kind(&self.unknown[at]).then_some(at)
            });
            let Some(at) = found else {
                return;
            };
            if !self.found.insert(at) {
                return;
            }
            let block = self.unknown[at].block;
            let Some(word) = self.snapshot.word(block) else {
                return;
            };
            plain = word;
            link = word ^ (block >> 12);
        }
    }
}

fn is_of_list(chunk: &Unknown, list: u64) -> bool {
    list >= LISTS_OF_ONE_SIZE || chunk.size == 32 + list * 16
}

#[cfg(test)]
mod tests {
    use super::super::arenas::tests::state;
    use super::super::samples::Memory;
    use super::*;

    const HEAP: u64 = 0x5555_0000;
    const DATA: u64 = 0x7f00_0000_0000;

    /// The indices of the freed ones among a thread's lists, three chunks of 32 bytes and one of 48. `links` are the
    /// words in the chunks of 32 bytes, and `heads` the lists of the thread and of the arena.
    fn freed(links: [u64; 3], heads: [u64; 2], count: u64) -> Vec<usize> {
        let mut words = vec![0; 2 + 0x280 / 8];
        words[1] = 0x291;
        words[2] = count;
        words[2 + 16] = heads[0];
        for link in links {
            words.extend([0, 0x21, link, 0]);
        }
        words.extend([0, 0x31, 0, 0, 0, 0]);
        let mut data = state(DATA, 0, DATA);
        data[2] = heads[1];
        let snapshot = Memory::default()
            .heap(HEAP, &words)
            .data(DATA, &data)
            .snapshot();
        let unknown = [
            (0x10, 0x290),
            (0x2a0, 0x20),
            (0x2c0, 0x20),
            (0x2e0, 0x20),
            (0x300, 0x30),
        ];
        let unknown = unknown.map(|(block, size)| Unknown {
            block: HEAP + block,
            size,
        });
        let arenas = Arenas::find(&snapshot);
        assert_eq!(arenas.main.len(), 1);
        let freed = Freed::find(&snapshot, &arenas, &unknown);
        (0..5).filter(|at| freed.contains(*at)).collect()
    }

    const FIRST: u64 = HEAP + 0x2a0;
    const SECOND: u64 = HEAP + 0x2c0;
    const THIRD: u64 = HEAP + 0x2e0;
    const KEY: u64 = HEAP >> 12;

    #[test]
    fn the_lists_of_a_thread_are_followed() {
        // Until glibc 2.31, links are plain.
        assert_eq!(freed([SECOND, 0, 0], [FIRST, 0], 2), [0, 1, 2]);
        assert_eq!(freed([SECOND ^ KEY, KEY, 0], [FIRST, 0], 2), [0, 1, 2]);
        // A circle ends.
        assert_eq!(freed([SECOND, FIRST, 0], [FIRST, 0], 2), [0, 1, 2]);
    }

    #[test]
    fn the_lists_of_an_arena_are_followed() {
        let chunk = |block: u64| block - HEADER;
        let plain = [chunk(SECOND), chunk(THIRD), 0];
        assert_eq!(freed(plain, [0, chunk(FIRST)], 0), [1, 2, 3]);
        let combined = [chunk(SECOND) ^ KEY, chunk(THIRD) ^ KEY, KEY];
        assert_eq!(freed(combined, [0, chunk(FIRST)], 0), [1, 2, 3]);
    }

    #[test]
    fn the_lists_of_a_thread_may_be_in_a_chunk_of_either_size() {
        for size in [0x300, 0x310] {
            let chunk = HEAP + size;
            let mut words = vec![0; size as usize / 8];
            words[1] = size | 1;
            // The list behind those of one size, which has a chunk of any size.
            words[2 + 152 / 8 + 64] = chunk + HEADER;
            words.extend([0, 0x501, KEY, 0]);
            let snapshot = Memory::default().heap(HEAP, &words).snapshot();
            let unknown = [(HEAP, size), (chunk, 0x500)].map(|(chunk, size)| Unknown {
                block: chunk + HEADER,
                size,
            });
            let freed = Freed::find(&snapshot, &Arenas::default(), &unknown);
            assert!(freed.contains(0) && freed.contains(1), "{size:x}");
        }
    }

    #[test]
    fn an_ordinary_block_has_no_lists() {
        assert!(freed([0; 3], [0, 0], DATA).is_empty());
        // A block of another size than the list's.
        assert!(freed([0; 3], [HEAP + 0x300, 0], 1).is_empty());
        assert!(freed([0; 3], [FIRST + 8, 0], 1).is_empty());
    }
}
