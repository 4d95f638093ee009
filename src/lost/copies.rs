//! A copy of a process's memory: what was read of it while it was held. Pure.

use std::ops::Range;

use super::area::{self, Area};
use super::buffers::{Buffer, Buffers};

/// A thread of a held process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Thread {
    /// Its general registers.
    pub registers: Vec<u64>,
    /// Its stack pointer.
    pub sp: u64,
    /// Where its thread control block is: the base of the segment `fs` on x86_64.
    pub tls: u64,
    /// Whether it is at the entry of a function that ends the process at once. The word at the stack pointer is then the
    /// return address.
    pub at_end: bool,
}

impl Thread {
    /// The first address of its stack that is in use. Code may use 128 bytes below the stack pointer (System V ABI for
    /// x86_64, "red zone"), except at its entry.
    pub fn used_from(&self) -> u64 {
        match self.at_end {
            true => self.sp,
            false => self.sp.saturating_sub(128),
        }
    }
}

/// A range of addresses whose content was copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Copied {
    /// A multiple of 8, as `end` is.
    pub start: u64,
    pub end: u64,
    /// Where its content begins in the buffer, in words.
    pub at: usize,
    /// The content is that of the file, which the process has not changed. So it has no pointers to blocks.
    pub is_files: bool,
}

impl Copied {
    pub fn bytes(&self) -> u64 {
        self.end - self.start
    }
}

/// The memory of a process as it was while the process was held.
#[derive(Debug)]
pub struct Snapshot {
    /// In the order of their addresses.
    pub areas: Vec<Area>,
    /// In the order of their addresses. None overlaps another.
    pub copies: Vec<Copied>,
    pub threads: Vec<Thread>,
    buffer: Buffer,
}

impl Snapshot {
    /// The copies must be in order, and lie within the buffer.
    pub fn new(
        areas: Vec<Area>,
        copies: Vec<Copied>,
        threads: Vec<Thread>,
        buffer: Buffer,
    ) -> Self {
        Self {
            areas,
            copies,
            threads,
            buffer,
        }
    }

    /// Gives the memory of the copy to the next process.
    pub fn recycle(self, buffers: &mut Buffers) {
        buffers.give_back(self.buffer);
    }

    /// The bytes of memory that the copy takes.
    pub fn memory(&self) -> u64 {
        self.buffer.bytes() as u64
    }

    /// The bytes that were copied.
    pub fn bytes(&self) -> u64 {
        self.copies.iter().map(Copied::bytes).sum()
    }

    pub fn area(&self, address: u64) -> Option<&Area> {
        area::find(&self.areas, address).map(|at| &self.areas[at])
    }

    /// The word at an address. `None` if it was not copied, or if the address is not aligned.
    #[inline]
    pub fn word(&self, address: u64) -> Option<u64> {
        self.words_from(address, &mut 0).first().copied()
    }

    /// The words from an aligned address to the end of what was copied in one piece. `hint` is where the last search
    /// ended: the next address is often in the same copy.
    #[inline]
    pub fn words_from(&self, address: u64, hint: &mut usize) -> &[u64] {
        let is_in = |copy: &&Copied| copy.start <= address && address < copy.end;
        let copy = match self.copies.get(*hint).filter(is_in) {
            Some(copy) => copy,
            None => {
                let at = self.copies.partition_point(|copy| copy.start <= address);
                *hint = at.saturating_sub(1);
                match self.copies.get(*hint).filter(is_in) {
                    Some(copy) => copy,
                    None => return &[],
                }
            }
        };
        if !address.is_multiple_of(8) {
            return &[];
        }
        let words = self.content(copy);
        &words[((address - copy.start) / 8) as usize..]
    }

    /// Says that an address will be read soon. It may be any. `hint` is where it is expected, and not changed.
    #[inline(always)]
    pub fn fetch(&self, address: u64, hint: usize) {
        if let Some(copy) = self.copies.get(hint) {
            let offset = address.wrapping_sub(copy.start);
            self.buffer
                .fetch(copy.at.wrapping_add((offset / 8) as usize));
        }
    }

    /// The content of a copy.
    pub fn content(&self, copy: &Copied) -> &[u64] {
        let length = (copy.bytes() / 8) as usize;
        &self.buffer.words()[copy.at..copy.at + length]
    }

    /// Calls `each` with the aligned words of a range, in pieces, and with the address of each piece.
    #[inline]
    pub fn scan(&self, range: Range<u64>, hint: &mut usize, mut each: impl FnMut(u64, &[u64])) {
        let end = range.end & !7;
        let Some(mut start) = range.start.checked_next_multiple_of(8) else {
            return;
        };
        while start < end {
            let words = self.words_from(start, hint);
            if words.is_empty() {
                // `hint` is the last copy before the address, if there is one.
                let next = self.copies[(*hint).min(self.copies.len())..]
                    .iter()
                    .find(|copy| copy.start > start);
                match next {
                    Some(copy) => start = copy.start,
                    None => return,
                }
                continue;
            }
            let length = words.len().min(((end - start) / 8) as usize);
            each(start, &words[..length]);
            start += length as u64 * 8;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::samples::Memory;
    use super::*;

    #[test]
    fn words_are_found_where_they_were_copied() {
        let snapshot = Memory::default()
            .anonymous(0x1000, &[1, 2, 3])
            .anonymous(0x3000, &[4])
            .snapshot();
        assert_eq!(snapshot.word(0x1008), Some(2));
        assert_eq!(snapshot.word(0x3000), Some(4));
        for address in [0, 0xff8, 0x1001, 0x1018, 0x2000, 0x3008, u64::MAX] {
            assert_eq!(snapshot.word(address), None, "{address:x}");
        }
    }

    #[test]
    fn a_scan_passes_over_what_is_not_there() {
        let snapshot = Memory::default()
            .anonymous(0x1000, &[1, 2, 3])
            .anonymous(0x3000, &[4, 5])
            .snapshot();
        let scan = |range: Range<u64>| {
            let mut found = Vec::new();
            let mut hint = 0;
            snapshot.scan(range, &mut hint, |start, words| {
                found.push((start, words.to_vec()));
            });
            found
        };
        assert_eq!(
            scan(0x1001..0x300f),
            [(0x1008, vec![2, 3]), (0x3000, vec![4])]
        );
        assert_eq!(scan(0..u64::MAX).len(), 2);
        assert!(scan(0x2000..0x3000).is_empty());
        assert!(scan(u64::MAX - 3..u64::MAX).is_empty());
    }
}
