//! Reads the unwind rules of large files in threads. A process that waits for its files to be examined must not wait
//! long. Walks that come to such a file meanwhile say so.

use std::fs::File;
use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::{Builder, sleep};
use std::time::Duration;

use crate::elf::file::ElfFile;
use crate::stacks::file_rules::FileRules;
use crate::stacks::rules::RuleKind;

/// Files of fewer bytes are read at once. That takes some 6 ms for the largest of them.
pub(super) const LARGE: u64 = 8 << 20;

/// How rules are read. The default is what users get.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RuleOptions {
    /// Rules of this kind are left out. For tests.
    pub left_out: Option<RuleKind>,
    /// How much longer it takes to read a large file. For tests.
    pub delay: Duration,
}

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
    pub(super) fn begin(number: u32, file: &File, options: RuleOptions) -> io::Result<Self> {
        let file = file.try_clone()?;
        let (sender, rules) = channel();
        Builder::new().spawn(move || {
            sleep(options.delay);
            // Nobody waits for it any more if memleak ends.
            let _ = sender.send(rules_of(&file, options));
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
pub(super) fn rules_of(file: &File, options: RuleOptions) -> FileRules {
    let elf = ElfFile::open(file);
    let rules = elf.map(|elf| FileRules::read_without(&elf, options.left_out));
    rules.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_that_take_longer_are_there_later() {
        let file = File::open("/proc/self/exe").unwrap();
        let options = RuleOptions::default();
        let reading = RuleReading::begin(7, &file, options).unwrap();
        assert_eq!(reading.number, 7);
        let reading = match reading.within(Duration::ZERO) {
            Err(reading) => reading,
            // This machine is quick.
            Ok(_) => RuleReading::begin(7, &file, options).unwrap(),
        };
        let rules = reading.within(Duration::from_secs(60));
        let rules = rules.unwrap_or_else(|_| panic!("not read within a minute"));
        assert_eq!(rules.rows.len(), rules_of(&file, options).rows.len());
        assert!(rules.rows.len() > 1000);
    }
}
