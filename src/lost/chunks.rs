//! glibc's chunks: which of a heap's memory malloc has, and what of it is in use. Pure.
//!
//! A heap is a chain of chunks. Each has its size and three bits in the word before the block, and the next chunk says
//! whether it is in use (malloc/malloc.c). A program can overwrite these words, so a chain may break anywhere.

use std::ops::Range;

use super::copies::Snapshot;
use super::index::BlockIndex;

/// The bits in the word that has a chunk's size.
const PREVIOUS_IN_USE: u64 = 1;
const MAPPED: u64 = 2;
const OTHER_ARENA: u64 = 4;
const BITS: u64 = 7;

/// From a chunk's address to its block.
pub const HEADER: u64 = 16;
/// The size of the smallest chunk.
pub const SMALLEST: u64 = 32;

/// The headers of the block with a thread's lists, by version (see `freed`).
const FIRST_HEADERS: [u64; 4] = [0x251, 0x291, 0x301, 0x311];
/// The least size of a thread control block, with which the memory for thread-local storage ends.
const CONTROL_BLOCK: u64 = 0x800;
/// How far from the beginning of a heap the chain may begin, and how many places are tried.
const MOST_BEFORE_CHAIN: u64 = 1 << 20;
const MOST_TRIES: u32 = 16;

/// A chunk that looks as if it were in use, and whose block is not one of those that are judged. Its block was freed,
/// and is kept for reuse, or it is inherited, or malloc's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unknown {
    /// The address of its block.
    pub block: u64,
    /// The size of the chunk.
    pub size: u64,
}

impl Unknown {
    /// What a program may have written to. The block extends into the next chunk's first word.
    pub fn content(&self) -> Range<u64> {
        self.block..self.block.saturating_add(self.size - 8)
    }
}

/// Walks over heaps.
#[derive(Debug)]
pub struct HeapWalk<F> {
    /// Ranges that are malloc's, in the order of the walks.
    pub covered: Vec<Range<u64>>,
    /// Is called with each chunk that looks as if it were in use, and whose block is not known.
    unknown: F,
}

impl<F: FnMut(Unknown)> HeapWalk<F> {
    pub fn new(unknown: F) -> Self {
        Self {
            covered: Vec::new(),
            unknown,
        }
    }

    fn cover(&mut self, range: Range<u64>) {
        match self.covered.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ if range.is_empty() => {}
            _ => self.covered.push(range),
        }
    }

    /// Walks over the chunks of a range. `top` is the chunk with which the chain ends. What the chain does not explain is
    /// left uncovered: it belongs to the program, which may call sbrk(2), too.
    pub fn walk(&mut self, snapshot: &Snapshot, index: &BlockIndex, range: Range<u64>, top: u64) {
        let blocks = index.blocks();
        let mut next_block = index.first_from(range.start);
        let mut reader = Reader { snapshot, hint: 0 };
        let mut chunk = first_chunk(&mut reader, index, &range, top);
        let mut header = reader.header(chunk);
        while chunk < range.end {
            let size = header.unwrap_or_default() & !BITS;
            let end = chunk.saturating_add(size);
            if chunk == top {
                // Behind the last chunk, all is the program's.
                self.cover(chunk..end.min(range.end));
                return;
            }
            if size == HEADER {
                // Two of these mark the end of a part that could not grow, since the program moved its break.
                let second = reader.header(end).unwrap_or_default() & !BITS;
                let end = match second {
                    0 | HEADER => end.saturating_add(HEADER),
                    _ => end,
                };
                self.cover(chunk..end.min(range.end));
                chunk = end;
                if chunk >= range.end {
                    return;
                }
                header = reader.header(chunk);
                if !is_plausible(header, chunk, range.end) {
                    chunk = self.resume(index, chunk, &range, top);
                    header = reader.header(chunk);
                }
                continue;
            }
            if !is_plausible(header, chunk, range.end) {
                chunk = self.resume(index, chunk, &range, top);
                header = reader.header(chunk);
                continue;
            }
            let block = chunk + HEADER;
            while blocks
                .get(next_block)
                .is_some_and(|found| found.address < block)
            {
                next_block += 1;
            }
            let is_own = blocks
                .get(next_block)
                .is_some_and(|found| found.address == block);
            header = reader.header(end);
            let in_use = header.is_none_or(|next| next & PREVIOUS_IN_USE != 0);
            if in_use && !is_own {
                (self.unknown)(Unknown { block, size });
            }
            self.cover(chunk..end);
            chunk = end;
        }
    }

    /// Where the chain goes on after it broke at `chunk`: at the next block that is known, or at the last chunk.
    fn resume(&mut self, index: &BlockIndex, chunk: u64, range: &Range<u64>, top: u64) -> u64 {
        let known = index.blocks()[index.first_from(chunk.saturating_add(HEADER))..].iter();
        let top = Some(top).filter(|&top| top > chunk);
        for block in known {
            if block.address >= range.end {
                break;
            }
            // The chunk of a block whose header was overwritten does not help.
            let at = block.address - HEADER;
            if at > chunk && at.is_multiple_of(16) {
                return top.map_or(at, |top| top.min(at));
            }
        }
        top.unwrap_or(range.end).min(range.end)
    }
}

/// Where a heap's chain begins. A static program takes memory for thread-local storage from the beginning of [heap], and
/// any program may do so before its first block. Then the chain begins with the block that malloc takes for itself. Since
/// glibc 2.42 malloc may take that later: then it begins behind the first thread's control block.
fn first_chunk(reader: &mut Reader, index: &BlockIndex, range: &Range<u64>, top: u64) -> u64 {
    let mut tries = 0;
    let end = range.end.min(range.start.saturating_add(MOST_BEFORE_CHAIN));
    let threads = reader.snapshot.threads.iter().map(|thread| thread.tls);
    let behind = threads
        .filter(|tls| range.contains(tls))
        .map(|tls| tls.saturating_add(CONTROL_BLOCK))
        .max();
    for chunk in (range.start..end).step_by(16) {
        let header = reader.header(chunk);
        let may_begin = match chunk == range.start {
            true => is_plausible(header, chunk, range.end),
            false if behind.is_some_and(|behind| chunk >= behind) => {
                let is_first = header.is_some_and(|header| header & BITS == PREVIOUS_IN_USE);
                is_first && is_plausible(header, chunk, range.end)
            }
            false => header.is_some_and(|header| FIRST_HEADERS.contains(&header)),
        };
        if may_begin && leads_on(reader, index, chunk, range, top) {
            return chunk;
        }
        tries += u32::from(may_begin);
        if tries == MOST_TRIES {
            break;
        }
    }
    range.start
}

/// Whether a chain from a chunk leads to the next chunk that is known.
fn leads_on(
    reader: &mut Reader,
    index: &BlockIndex,
    start: u64,
    range: &Range<u64>,
    top: u64,
) -> bool {
    let known = index.blocks().get(index.first_from(start + HEADER));
    let known = known.map_or(top, |block| top.min(block.address.saturating_sub(HEADER)));
    let mut chunk = start;
    while chunk < known.min(range.end) {
        let header = reader.header(chunk);
        if !is_plausible(header, chunk, range.end) {
            return false;
        }
        chunk += header.unwrap_or_default() & !BITS;
    }
    chunk == known
}

/// Whether a chunk of a heap can have this header.
fn is_plausible(header: Option<u64>, chunk: u64, end: u64) -> bool {
    let Some(header) = header else {
        return false;
    };
    let size = header & !BITS;
    let fits = chunk.checked_add(size).is_some_and(|next| next <= end);
    header & MAPPED == 0 && size >= SMALLEST && size.is_multiple_of(16) && fits
}

struct Reader<'a> {
    snapshot: &'a Snapshot,
    hint: usize,
}

impl Reader<'_> {
    fn header(&mut self, chunk: u64) -> Option<u64> {
        let at = chunk.checked_add(8)?;
        self.snapshot
            .words_from(at, &mut self.hint)
            .first()
            .copied()
    }
}

/// Where the memory of a block is that malloc mapped for it alone. `None` if it is another kind of block.
pub fn mapped_alone(snapshot: &Snapshot, block: u64, size: u64) -> Option<Range<u64>> {
    const PAGE: u64 = 4096;
    let chunk = block.checked_sub(HEADER)?;
    let (before, header) = (snapshot.word(chunk)?, snapshot.word(chunk + 8)?);
    if header & MAPPED == 0 || header & OTHER_ARENA != 0 {
        return None;
    }
    // An aligned block may begin later in its mapping. The lowest bit is for huge pages in some versions.
    let start = chunk.checked_sub(before & !PREVIOUS_IN_USE)?;
    let end = chunk.checked_add(header & !BITS)?;
    let holds = start.is_multiple_of(PAGE) && end >= block.checked_add(size)?;
    // Some versions do not count the header.
    let end = [end, end.checked_add(HEADER)?]
        .into_iter()
        .find(|end| end.is_multiple_of(PAGE))?;
    let area = snapshot.area(block)?;
    (holds && area.start <= start && end <= area.end).then_some(start..end)
}

/// The blocks of a range for which malloc has made mappings, one after the other. The kernel joins such mappings.
pub fn mapped_in(snapshot: &Snapshot, range: Range<u64>) -> Vec<u64> {
    let mut found = Vec::new();
    let mut chunk = range.start;
    while let Some(alone) = chunk
        .checked_add(HEADER)
        .and_then(|block| mapped_alone(snapshot, block, 0))
        .filter(|alone| alone.start == chunk && alone.end > chunk && alone.end <= range.end)
    {
        found.push(chunk + HEADER);
        chunk = alone.end;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::super::block::Block;
    use super::super::samples::Memory;
    use super::*;

    const HEAP: u64 = 0x5555_0000;

    /// A heap of chunks with these sizes and bits, and of foreign words where the size is 0.
    fn heap(chunks: &[(u64, u64)]) -> Vec<u64> {
        let mut words = Vec::new();
        for &(size, bits) in chunks {
            match size {
                0 => words.extend([0x6666; 8]),
                _ => {
                    words.extend([0, size | bits]);
                    words.extend(vec![0; size as usize / 8 - 2]);
                }
            }
        }
        words
    }

    /// What of a heap is malloc's, and the unknown chunks.
    fn walk(chunks: &[(u64, u64)], blocks: &[u64], top: u64) -> (Vec<Range<u64>>, Vec<Unknown>) {
        let words = heap(chunks);
        let end = HEAP + words.len() as u64 * 8;
        let snapshot = Memory::default().heap(HEAP, &words).snapshot();
        let blocks = blocks.iter().map(|at| Block {
            address: HEAP + at,
            size: 24,
            ..Block::default()
        });
        let index = BlockIndex::new(blocks.collect());
        let mut unknown = Vec::new();
        let mut walk = HeapWalk::new(|chunk| unknown.push(chunk));
        walk.walk(&snapshot, &index, HEAP..end, HEAP + top);
        (walk.covered, unknown)
    }

    #[test]
    fn a_chain_covers_the_heap_up_to_its_last_chunk() {
        // In use and known, free, in use and unknown, last.
        let chunks = [(32, 1), (48, 1), (64, 0), (96, 1), (0, 0)];
        let (covered, found) = walk(&chunks, &[16], 144);
        let ours: Range<u64> = HEAP..HEAP + 240;
        assert_eq!(covered, [ours]);
        let unknown = Unknown {
            block: HEAP + 96,
            size: 64,
        };
        assert_eq!(found, [unknown]);
        assert_eq!(unknown.content(), HEAP + 96..HEAP + 152);
    }

    #[test]
    fn what_the_program_took_by_sbrk_is_not_covered() {
        let chunks = [(32, 1), (16, 1), (16, 1), (0, 0), (32, 1), (96, 1)];
        let (covered, unknown) = walk(&chunks, &[16, 144], 160);
        assert_eq!(covered, [HEAP..HEAP + 64, HEAP + 128..HEAP + 256]);
        assert!(unknown.is_empty());
    }

    #[test]
    fn a_chain_may_begin_behind_what_the_program_took() {
        let chunks = [(0, 0), (0x290, 1), (32, 1), (64, 1)];
        let (covered, _) = walk(&chunks, &[], 0x2f0);
        assert_eq!(covered, vec![HEAP + 64..HEAP + 0x330]);
        // It leads nowhere.
        assert!(walk(&chunks, &[], 0x2e0).0.len() <= 1);
        assert_eq!(walk(&chunks, &[0x50], 0x2f0).0[0].start, HEAP + 64);
    }

    #[test]
    fn a_chain_may_begin_behind_a_control_block() {
        let mut chunks = vec![(0, 0); 0x840 / 64];
        chunks.extend([(48, 1), (0x300, 1), (64, 1)]);
        let words = heap(&chunks);
        let range = HEAP..HEAP + words.len() as u64 * 8;
        let walk = |tls| {
            let memory = Memory::default().heap(HEAP, &words);
            let snapshot = memory.thread(0, tls, &[]).snapshot();
            let mut walk = HeapWalk::new(|_| {});
            let index = BlockIndex::new(Vec::new());
            walk.walk(&snapshot, &index, range.clone(), range.end - 64);
            walk.covered[0].start
        };
        assert_eq!(walk(HEAP + 0x20), HEAP + 0x840);
        // Elsewhere, only the block that malloc takes for itself is sure.
        assert_eq!(walk(0), HEAP + 0x870);
    }

    #[test]
    fn a_broken_chain_goes_on_at_a_known_block() {
        // The second chunk has lost its size.
        let chunks = [(32, 1), (0, 0), (32, 1), (64, 1)];
        let (covered, _) = walk(&chunks, &[16, 48, 112], 128);
        assert_eq!(covered, [HEAP..HEAP + 32, HEAP + 96..HEAP + 192]);
        let (covered, _) = walk(&chunks, &[16], 128);
        assert_eq!(covered, [HEAP..HEAP + 32, HEAP + 128..HEAP + 192]);
        // No chain at all.
        assert!(walk(&[(0, 0), (0, 0)], &[], 0x1000).0.is_empty());
    }

    #[test]
    fn a_chunk_with_a_mapping_of_its_own_is_told_by_its_bit() {
        let mut words = vec![0; 1024];
        words[1] = 0x1000 | MAPPED;
        words[512 + 6] = 0x30;
        words[512 + 7] = (0x1000 - 0x30) | MAPPED;
        let snapshot = Memory::default().anonymous(0x7000_0000, &words).snapshot();
        let alone = |block, size| mapped_alone(&snapshot, block, size);
        assert_eq!(alone(0x7000_0010, 4000), Some(0x7000_0000..0x7000_1000));
        assert_eq!(alone(0x7000_0010, 5000), None);
        assert_eq!(alone(0x7000_1040, 100), Some(0x7000_1000..0x7000_2000));
        assert_eq!(alone(0x7000_0020, 100), None);
        assert_eq!(alone(8, 100), None);
    }
}
