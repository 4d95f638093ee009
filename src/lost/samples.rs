//! Memory made by hand, for tests.

use super::area::{Area, Backing};
use super::buffers::Buffer;
use super::copies::{Copied, Snapshot, Thread};

/// A process's memory, to which ranges are added in any order.
#[derive(Default)]
pub struct Memory {
    areas: Vec<Area>,
    contents: Vec<(u64, Vec<u64>, bool)>,
    pub threads: Vec<Thread>,
}

impl Memory {
    /// Adds a range of words with its own area.
    pub fn area(mut self, start: u64, words: &[u64], access: &str, backing: Backing) -> Self {
        self.areas.push(Area {
            start,
            end: start + words.len() as u64 * 8,
            offset: 0,
            readable: access.contains('r'),
            writable: access.contains('w'),
            executable: access.contains('x'),
            shared: access.contains('s'),
            backing,
        });
        if access.contains('r') {
            self.contents.push((start, words.to_vec(), false));
        }
        self
    }

    pub fn anonymous(self, start: u64, words: &[u64]) -> Self {
        self.area(start, words, "rw", Backing::Anonymous)
    }

    pub fn data(self, start: u64, words: &[u64]) -> Self {
        self.area(start, words, "rw", Backing::File)
    }

    pub fn heap(self, start: u64, words: &[u64]) -> Self {
        self.area(start, words, "rw", Backing::Heap)
    }

    pub fn thread(mut self, sp: u64, tls: u64, registers: &[u64]) -> Self {
        self.threads.push(Thread {
            registers: registers.to_vec(),
            sp,
            tls,
            at_end: false,
        });
        self
    }

    pub fn snapshot(mut self) -> Snapshot {
        self.areas.sort_by_key(|area| area.start);
        self.contents.sort();
        let words: Vec<u64> = self
            .contents
            .iter()
            .flat_map(|(_, words, _)| words)
            .copied()
            .collect();
        let mut buffer = Buffer::new(words.len() * 8).expect("there is memory");
        for (bytes, word) in buffer.bytes_mut().chunks_exact_mut(8).zip(&words) {
            bytes.copy_from_slice(&word.to_ne_bytes());
        }
        let mut at = 0;
        let copies = self.contents.iter().map(|(start, words, is_files)| {
            let copy = Copied {
                start: *start,
                end: start + words.len() as u64 * 8,
                at,
                is_files: *is_files,
            };
            at += words.len();
            copy
        });
        let copies = copies.collect();
        Snapshot::new(self.areas, copies, self.threads, buffer)
    }
}
