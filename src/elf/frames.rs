//! What a function's frame on the stack holds while the function calls another one, by the rules with which a debugger
//! or an exception unwinds the frame (`.eh_frame`). `unwind` finds the table. x86_64 only.

use std::ops::Range;

use gimli::{CfaRule, RegisterRule, UnwindContext, X86_64};

use crate::elf::file::ElfFile;
use crate::elf::unwind::{Content, UnwindEntry};

/// Bytes of a saved register.
const WORD: u64 = 8;

/// A larger frame is not looked into. It may hold anything.
const MAX_SIZE: u64 = 4096;

/// The most calls whose frames are looked up in one file.
pub const MAX_CALLS: usize = 64;

/// The most bytes of rules for one function, and of those that functions share. A compiler makes a few dozen.
const MAX_RULES: usize = 4096;

/// The frame of a function at one of its calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallFrame {
    /// Where the call returns to.
    pub return_address: u64,
    /// The bytes from the stack pointer before the call to the end of the frame. The function's own return address comes
    /// last.
    pub size: u64,
    /// Where registers of callers are saved, as distances from that stack pointer, in order. The return address is one.
    saved: Vec<u64>,
}

impl CallFrame {
    /// The frames of calls that return to these addresses. A frame is left out if its rules are not of the plain kind:
    /// a fixed distance from the stack pointer, and registers saved at fixed places.
    pub fn of(elf: &ElfFile<'_>, return_addresses: &[u64]) -> Vec<Self> {
        let mut frames = Vec::new();
        let Some(content) = Content::of(elf) else {
            return frames;
        };
        let mut context = UnwindContext::new();
        let whole = content.each(|entry, section, bases| {
            let mut wanted = return_addresses.iter().copied().take(MAX_CALLS);
            // What never returns may be the last thing that a function calls.
            let is_in = |to: &u64| to.checked_sub(1).is_some_and(|at| entry.contains(at));
            while let Some(return_address) = wanted.find(is_in) {
                if has_many_rules(entry) || frames.len() == MAX_CALLS {
                    return None;
                }
                let row =
                    entry.unwind_info_for_address(section, bases, &mut context, return_address - 1);
                frames.extend(row.ok().and_then(|row| Self::by(row, return_address)));
            }
            Some(())
        });
        // A table that cannot be read may say something else of the same code.
        whole.map_or_else(Vec::new, |_| frames)
    }

    fn by(row: &gimli::UnwindTableRow<usize>, return_address: u64) -> Option<Self> {
        let CfaRule::RegisterAndOffset {
            register: X86_64::RSP,
            offset,
        } = *row.cfa()
        else {
            return None;
        };
        let size = u64::try_from(offset).ok()?;
        if !size.is_multiple_of(WORD) || !(WORD..=MAX_SIZE).contains(&size) {
            return None;
        }
        let mut saved = Vec::new();
        for (register, rule) in row.registers() {
            match rule {
                RegisterRule::Offset(from_end) => {
                    let at = size.checked_add_signed(*from_end)?;
                    let is_return_address = *register == X86_64::RA;
                    if is_return_address != (at == size - WORD) || !at.is_multiple_of(WORD) {
                        return None;
                    }
                    saved.push(at);
                }
                RegisterRule::Undefined | RegisterRule::SameValue | RegisterRule::Register(_)
                    if *register != X86_64::RA => {}
                _ => return None,
            }
        }
        saved.sort_unstable();
        (saved.last() == Some(&(size - WORD))).then_some(Self {
            return_address,
            size,
            saved,
        })
    }

    /// The parts of the frame between what is saved, as distances from the stack pointer before the call.
    pub fn others(&self) -> Vec<Range<u64>> {
        let mut start = 0;
        let mut others = Vec::new();
        for &at in &self.saved {
            if start < at {
                others.push(start..at);
            }
            start = at + WORD;
        }
        others
    }
}

fn has_many_rules(entry: &UnwindEntry<'_>) -> bool {
    entry.entry_len() > MAX_RULES || entry.cie().entry_len() > MAX_RULES
}

#[cfg(test)]
#[cfg(target_arch = "x86_64")]
#[expect(
    clippy::single_range_in_vec_init,
    reason = "lists of one range are meant"
)]
mod tests {
    use super::*;
    use crate::elf::samples::library;
    use crate::elf::symbols::{self, Names};

    /// What the rules say of a call in a function.
    fn frame(before: &str) -> Option<(u64, Vec<Range<u64>>)> {
        let text = format!(
            ".text; .globl f; .type f,@function; f: .cfi_startproc; {before}; call *%rax
            .globl end; .type end,@function; end: .cfi_endproc; .size f, . - f; nop; .size end, 1\n"
        );
        let bytes = library(&text, &[]);
        let elf = ElfFile::in_memory(&bytes[..]).unwrap();
        let found = symbols::find(&elf, &Names::new(["end"]), None).unwrap();
        let end = found.functions[0].address;
        let mut frames = CallFrame::of(&elf, &[end, end + 8]);
        let frame = frames.pop()?;
        assert!(frames.is_empty() && frame.return_address == end);
        Some((frame.size, frame.others()))
    }

    #[test]
    fn a_frame_is_what_its_rules_say() {
        let push = "push %rbx; .cfi_adjust_cfa_offset 8; .cfi_rel_offset rbx, 0";
        let sub = "sub $24, %rsp; .cfi_adjust_cfa_offset 24";
        assert_eq!(frame(""), Some((8, vec![])));
        assert_eq!(frame(push), Some((16, vec![])));
        assert_eq!(frame(&format!("{push}; {sub}")), Some((40, vec![0..24])));
        let between = format!("{sub}; .cfi_offset r12, -24; {push}");
        assert_eq!(frame(&between), Some((40, vec![8..16, 24..32])));
    }

    #[test]
    fn a_frame_with_other_rules_is_left_out() {
        for rules in [
            // By another register.
            "push %rbp; .cfi_def_cfa rbp, 16",
            // By an expression: DW_OP_breg7 8.
            ".cfi_escape 0x0f, 2, 0x77, 8",
            // A register by an expression: rbx, DW_OP_breg7 0.
            ".cfi_escape 0x10, 3, 2, 0x77, 0",
            ".cfi_undefined rip",
            ".cfi_adjust_cfa_offset 8; .cfi_offset rbx, -8",
            ".cfi_adjust_cfa_offset 4096",
            ".cfi_adjust_cfa_offset -8",
            ".cfi_adjust_cfa_offset 4",
        ] {
            assert_eq!(frame(rules), None, "{rules}");
        }
    }
}
