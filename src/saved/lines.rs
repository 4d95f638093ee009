//! The lines of a saved report, one after the other.

use std::io::{self, BufRead, Read as _};

use crate::saved::record::{LineError, Record, record};

/// The longest line that is read. A record of a call stack with the most frames is far shorter.
const LONGEST: u64 = 16 << 20;

/// A line that is not empty.
#[derive(Debug)]
pub struct SavedLine {
    /// From 1.
    pub number: u64,
    pub record: Result<Record, LineError>,
    /// The file ends within the line.
    pub is_cut: bool,
}

/// Reads a saved report line by line.
pub struct SavedLines<R> {
    input: R,
    line: Vec<u8>,
    number: u64,
}

impl<R: BufRead> SavedLines<R> {
    pub fn new(input: R) -> Self {
        Self {
            input,
            line: Vec::new(),
            number: 0,
        }
    }
}

impl<R: BufRead> Iterator for SavedLines<R> {
    type Item = io::Result<SavedLine>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            self.line.clear();
            let mut part = (&mut self.input).take(LONGEST);
            match part.read_until(b'\n', &mut self.line) {
                Ok(0) => return None,
                Ok(_) => self.number += 1,
                Err(error) => return Some(Err(error)),
            }
            let is_whole = self.line.last() == Some(&b'\n');
            let text = self.line.trim_ascii();
            if !text.is_empty() {
                return Some(Ok(SavedLine {
                    number: self.number,
                    record: record(text),
                    is_cut: !is_whole && (self.line.len() as u64) < LONGEST,
                }));
            }
        }
    }
}
