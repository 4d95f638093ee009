//! The frames that the C library has on the stack when `exit` ends a process. Of the program, they hold only saved
//! registers. The rest is the C library's own, or left over from calls before.
//!
//! Only `exit` and the functions that it calls are looked into. Other callers of `_exit` may be the program's: in a
//! static program, they are in the same file.

use std::collections::BTreeSet;
use std::fs::File;
use std::ops::Range;

use crate::elf::file::ElfFile;
use crate::elf::frames::{CallFrame, MAX_CALLS};
use crate::elf::unwind::UnwindTable;
use crate::find::hooks;
use crate::lost::ExitFrame;

/// The function that ends a process in an orderly way.
pub const EXIT: &str = "exit";

/// The word of the return address.
const WORD: u64 = 8;

/// The most code of one function that is searched. That of glibc's exit has a few hundred bytes.
const MAX_CODE: u64 = 64 << 10;

/// The addresses of the functions by which a file ends a process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExitFunctions {
    /// Its `exit`.
    pub(super) orderly: BTreeSet<u64>,
    /// The functions that end a process at once.
    pub(super) at_once: Vec<u64>,
}

impl ExitFunctions {
    /// The frames of the file that has these functions. Empty if it has no unwind rules for `exit`, as most builds of
    /// musl, or cannot be read any more. This reads all unwind rules of the file.
    pub fn frames(&self, file: &File) -> Vec<ExitFrame> {
        let is_needed = cfg!(target_arch = "x86_64") && !self.orderly.is_empty();
        match ElfFile::open(file) {
            Ok(elf) if is_needed && !self.at_once.is_empty() => {
                find(&elf, &self.orderly, &self.at_once)
            }
            _ => Vec::new(),
        }
    }
}

fn find(elf: &ElfFile<'_>, exits: &BTreeSet<u64>, ends: &[u64]) -> Vec<ExitFrame> {
    let Some(table) = UnwindTable::read(elf) else {
        return Vec::new();
    };
    let mut calls = BTreeSet::new();
    for &exit in exits {
        let Some(exit) = FunctionCode::at(elf, &table, exit) else {
            continue;
        };
        calls.extend(exit.calls_of(ends));
        for callee in exit.callees().into_iter().take(MAX_CALLS) {
            let function = FunctionCode::at(elf, &table, callee);
            let in_callee = function.map_or_else(Vec::new, |callee| callee.calls_of(ends));
            if !in_callee.is_empty() {
                calls.extend(in_callee);
                calls.extend(exit.calls_of(&[callee]));
            }
        }
    }
    let calls: Vec<u64> = calls.into_iter().take(MAX_CALLS).collect();
    let frames = CallFrame::of(elf, &calls);
    frames
        .iter()
        .filter_map(|frame| exit_frame(elf, frame))
        .collect()
}

fn exit_frame(elf: &ElfFile<'_>, frame: &CallFrame) -> Option<ExitFrame> {
    let others = frame.others().into_iter();
    Some(ExitFrame {
        return_offset: hooks::offset_of(elf, frame.return_address.checked_sub(1)?)? + 1,
        size: frame.size,
        left_out: others
            .map(|range| range.start + WORD..range.end + WORD)
            .collect(),
    })
}

/// The code of a function.
struct FunctionCode {
    range: Range<u64>,
    text: Vec<u8>,
}

impl FunctionCode {
    /// The function that begins at an address, if the unwinder knows it.
    fn at(elf: &ElfFile<'_>, table: &UnwindTable, address: u64) -> Option<Self> {
        let range = table.covering(address)?.range;
        let size = range.end - range.start;
        if range.start != address || size > MAX_CODE {
            return None;
        }
        elf.text_segment(address)?;
        let text = elf.read(elf.mapped_at(address)?.start, size)?;
        Some(Self { range, text })
    }

    /// Where its direct calls of these functions return to.
    fn calls_of(&self, functions: &[u64]) -> Vec<u64> {
        let calls = hooks::targets(&self.text, self.range.start);
        let calls = calls.filter(|(_, target)| functions.contains(target));
        calls.map(|(next, _)| next).collect()
    }

    /// The functions that it calls, and perhaps other addresses.
    fn callees(&self) -> BTreeSet<u64> {
        let calls = hooks::targets(&self.text, self.range.start);
        calls.map(|(_, target)| target).collect()
    }
}
