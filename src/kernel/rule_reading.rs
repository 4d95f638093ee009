//! Reads the unwind rules of large files in threads. A process that waits for its files to be examined must not wait
//! long. Walks that come to such a file meanwhile say so.

use std::fs::File;
use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::Builder;
use std::time::Duration;

use crate::elf::file::ElfFile;
use crate::stacks::file_rules::FileRules;

/// Files of fewer bytes are read at once. That takes some 6 ms for the largest of them.
pub(super) const LARGE: u64 = 8 << 20;

/// A file whose rules are being read.
pub(super) struct RuleReading {
    /// The file's number.
    pub(super) number: u32,
    rules: Receiver<FileRules>,
}

impl RuleReading {
    /// Begins to read the rules of the file with this number.
    ///
    /// # Errors
    /// There is no descriptor or no thread left.
    pub(super) fn begin(number: u32, file: &File) -> io::Result<Self> {
        let file = file.try_clone()?;
        let (sender, rules) = channel();
        Builder::new().spawn(move || {
            // Nobody waits for it any more if memleak ends.
            let _ = sender.send(rules_of(&file));
        })?;
        Ok(Self { number, rules })
    }

    /// The rules, if they are read within this time.
    ///
    /// # Errors
    /// They are still being read.
    pub(super) fn within(self, time: Duration) -> Result<FileRules, Self> {
        match self.rules.recv_timeout(time) {
            Ok(rules) => Ok(rules),
            Err(RecvTimeoutError::Timeout) => Err(self),
            // A thread that failed has read none.
            Err(RecvTimeoutError::Disconnected) => Ok(FileRules::default()),
        }
    }
}

/// The rules of a file. What cannot be read has none.
pub(super) fn rules_of(file: &File) -> FileRules {
    let elf = ElfFile::open(file);
    elf.map(|elf| FileRules::read(&elf)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_that_take_longer_are_there_later() {
        let file = File::open("/proc/self/exe").unwrap();
        let reading = RuleReading::begin(7, &file).unwrap();
        assert_eq!(reading.number, 7);
        let reading = match reading.within(Duration::ZERO) {
            Err(reading) => reading,
            // This machine is quick.
            Ok(_) => RuleReading::begin(7, &file).unwrap(),
        };
        let rules = reading.within(Duration::from_secs(60));
        let rules = rules.unwrap_or_else(|_| panic!("not read within a minute"));
        assert_eq!(rules.rows.len(), rules_of(&file).rows.len());
        assert!(rules.rows.len() > 1000);
    }
}
