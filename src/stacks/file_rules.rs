//! Makes the rules of a whole file: one for each address of its code.
//!
//! A program that runs for a millisecond has to have its rules before it begins. So a file's table is read at once,
//! when the file is examined. That takes 2 ms for the C library, and 40 for a compiler.

use gimli::{
    BaseAddresses, CieOrFde, DebugFrame, EhFrame, LittleEndian, UnwindContext, UnwindOffset,
    UnwindSection,
};
use object::elf::SHF_COMPRESSED;

use crate::elf::file::{ElfFile, Segment};
use crate::elf::handlers::Slice;
use crate::elf::unwind::{Content, UnwindEntry, function_entry};
use crate::stacks::rules::{RuleKind, UnwindRule};

/// A larger table is not read. That of libLLVM has 12 MB.
const MAX_BYTES: u64 = 256 << 20;

/// A file with more rows has no rules. rustc's library has 1.2 million.
const MAX_ROWS: usize = 1 << 24;

/// The longest entry that functions share. Each of them begins with its rules, so a long one would be read again and again.
/// Compilers write some 20 bytes.
const MAX_SHARED: usize = 4096;

/// Bytes of an address.
const ADDRESS_SIZE: u8 = 8;

/// The rules of a file. Each holds from its place up to the next one's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FileRules {
    /// Offsets in the file, in ascending order, each with the rule from there on.
    pub rows: Vec<(u32, UnwindRule)>,
}

impl FileRules {
    /// Reads the rules of a file. What cannot be read has no rule. A file without tables has none at all.
    pub fn read(elf: &ElfFile<'_>) -> Self {
        Self::read_without(elf, None)
    }

    /// The same, but rules of this kind are unknown. For tests.
    pub fn read_without(elf: &ElfFile<'_>, left_out: Option<RuleKind>) -> Self {
        let mut rules = Self::default();
        if let Some(content) = Content::within(elf, MAX_BYTES) {
            let mut section = EhFrame::new(&content.bytes, LittleEndian);
            section.set_address_size(ADDRESS_SIZE);
            #[cfg(target_arch = "aarch64")]
            section.set_vendor(gimli::Vendor::AArch64);
            let bases = BaseAddresses::default().set_eh_frame(content.address);
            rules = Self::of(elf, &section, &bases);
        }
        if left_out != Some(RuleKind::DebugFrame)
            && let Some(bytes) = debug_frame(elf)
        {
            let mut section = DebugFrame::new(&bytes, LittleEndian);
            section.set_address_size(ADDRESS_SIZE);
            #[cfg(target_arch = "aarch64")]
            section.set_vendor(gimli::Vendor::AArch64);
            // Exceptions do not use it. So it counts where there is nothing else.
            rules = rules.or(&Self::of(elf, &section, &BaseAddresses::default()));
        }
        rules.end_at_start(elf);
        if let Some(kind) = left_out {
            for (_, rule) in &mut rules.rows {
                *rule = rule.without(kind);
            }
        }
        rules
    }

    /// The code at a file's entry point has no caller. That of a dynamic loader has no rule that says so.
    fn end_at_start(&mut self, elf: &ElfFile<'_>) {
        /// A dynamic loader's start code is shorter.
        const LONGEST: u32 = 256;
        let Some(start) = Code::of(elf).offset(elf.entry()) else {
            return;
        };
        let behind = self.rows.partition_point(|(offset, _)| *offset <= start);
        if self.at(start) != UnwindRule::Missing {
            return;
        }
        let next = self
            .rows
            .get(behind)
            .map_or(u32::MAX, |(offset, _)| *offset);
        let end = start.saturating_add(LONGEST);
        let rows = [(start, UnwindRule::Outermost), (end, UnwindRule::Missing)];
        let count = if next <= end { 1 } else { 2 };
        self.rows
            .splice(behind..behind, rows.into_iter().take(count));
    }

    fn of<'a, S>(elf: &ElfFile<'_>, section: &S, bases: &BaseAddresses) -> Self
    where
        S: UnwindSection<Slice<'a>>,
        S::Offset: UnwindOffset<usize>,
    {
        let mut code = Code::of(elf);
        code.add(section, bases);
        Self { rows: code.rows() }
    }

    /// These rules, and the others where these have none.
    fn or(self, others: &Self) -> Self {
        let mut offsets: Vec<u32> = [&self, others]
            .iter()
            .flat_map(|rules| rules.rows.iter().map(|(offset, _)| *offset))
            .collect();
        offsets.sort_unstable();
        offsets.dedup();
        let mut rows = RuleRows::default();
        for offset in offsets {
            rows.add(
                offset,
                match self.at(offset) {
                    UnwindRule::Missing => others.at(offset),
                    rule => rule,
                },
            );
        }
        Self { rows: rows.0 }
    }

    /// The rule at an offset in the file.
    pub fn at(&self, offset: u32) -> UnwindRule {
        let behind = self.rows.partition_point(|(start, _)| *start <= offset);
        let row = behind.checked_sub(1).and_then(|at| self.rows.get(at));
        row.map_or(UnwindRule::Missing, |(_, rule)| *rule)
    }
}

/// The bytes of `.debug_frame`, if the file has it, and not compressed.
fn debug_frame(elf: &ElfFile<'_>) -> Option<Vec<u8>> {
    let section = elf.section_named(".debug_frame")?;
    let is_plain = !section.flags.contains(SHF_COMPRESSED);
    if !is_plain || section.size > MAX_BYTES {
        return None;
    }
    elf.read(section.offset, section.size)
}

/// The rules that were found, not yet in order.
struct Code {
    /// Segments that are executed.
    segments: Vec<Segment>,
    found: Vec<RuleStart>,
}

/// A place in the file where a rule begins, or where one that began before ends.
struct RuleStart {
    offset: u32,
    /// Functions may overlap in broken tables. Then the rule of the last one that begins holds.
    is_end: bool,
    rule: UnwindRule,
}

impl Code {
    fn of(elf: &ElfFile<'_>) -> Self {
        Self {
            segments: elf.code(),
            found: Vec::new(),
        }
    }

    /// The place in the file of the code at an address.
    fn offset(&self, address: u64) -> Option<u32> {
        let at = |segment: &Segment| {
            let from_start = address.checked_sub(segment.address)?;
            // The end of the last function is the end of the segment, or before it.
            (from_start <= segment.size).then(|| segment.offset.checked_add(from_start))?
        };
        let offset = self.segments.iter().find_map(at)?;
        u32::try_from(offset).ok()
    }

    /// Adds what a section has, up to the first entry that cannot be read.
    fn add<'a, S>(&mut self, section: &S, bases: &BaseAddresses)
    where
        S: UnwindSection<Slice<'a>>,
        S::Offset: UnwindOffset<usize>,
    {
        let mut context = UnwindContext::new();
        let mut last = None;
        let mut entries = section.entries(bases);
        while let Ok(Some(entry)) = entries.next() {
            let CieOrFde::Fde(partial) = entry else {
                continue;
            };
            if let Ok(function) = function_entry(&partial, &mut last) {
                self.add_function(&function, section, bases, &mut context);
            }
            if self.found.len() > MAX_ROWS {
                self.found.clear();
                return;
            }
        }
    }

    fn add_function<'a, S>(
        &mut self,
        function: &UnwindEntry<'a>,
        section: &S,
        bases: &BaseAddresses,
        context: &mut UnwindContext<usize>,
    ) where
        S: UnwindSection<Slice<'a>>,
        S::Offset: UnwindOffset<usize>,
    {
        let (start, end) = (function.initial_address(), function.end_address());
        let (Some(offset), Some(end_offset)) = (self.offset(start), self.offset(end)) else {
            return;
        };
        if end_offset <= offset {
            return;
        }
        let encoding = function.cie().encoding();
        let is_signal = function.is_signal_trampoline();
        let mut add = |offset, is_end, rule| {
            self.found.push(RuleStart {
                offset,
                is_end,
                rule,
            });
        };
        add(end_offset, true, UnwindRule::Missing);
        if function.cie().entry_len() > MAX_SHARED {
            return add(offset, false, UnwindRule::Unknown);
        }
        let Ok(mut rows) = function.rows(section, bases, context) else {
            return add(offset, false, UnwindRule::Unknown);
        };
        let mut next = start;
        loop {
            let rule = match rows.next_row() {
                Ok(None) => break,
                Ok(Some(row)) => {
                    next = row.start_address().max(start);
                    match is_signal {
                        true => UnwindRule::Signal,
                        false => UnwindRule::of(row, encoding, |at| at.get(section).ok()),
                    }
                }
                // From the row before on, nothing is certain.
                Err(_) => {
                    add((next - start) as u32 + offset, false, UnwindRule::Unknown);
                    break;
                }
            };
            if next >= end {
                break;
            }
            add((next - start) as u32 + offset, false, rule);
        }
    }

    fn rows(mut self) -> Vec<(u32, UnwindRule)> {
        // Where one function ends and another begins, the beginning counts. Of two rules for one place, the later does.
        self.found
            .sort_by_key(|found| (found.offset, !found.is_end));
        let mut rows = RuleRows::default();
        for found in self.found {
            rows.add(found.offset, found.rule);
        }
        rows.0
    }
}

/// RuleRows in the order of their offsets.
#[derive(Default)]
struct RuleRows(Vec<(u32, UnwindRule)>);

impl RuleRows {
    /// Adds a row at the end. It replaces one for the same offset.
    fn add(&mut self, offset: u32, rule: UnwindRule) {
        if self.0.last().is_some_and(|(last, _)| *last == offset) {
            self.0.pop();
        }
        if self.0.last().is_none_or(|(_, last)| *last != rule) {
            self.0.push((offset, rule));
        }
    }
}

#[cfg(test)]
#[cfg(target_arch = "x86_64")]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::elf::samples::{library, mapped_libraries};
    use crate::elf::symbols::{self, Names};
    use crate::stacks::rules::{Base, Saved, StackRule};

    /// The rules of a file, and the offset of a symbol in it.
    fn read(bytes: &[u8], name: &'static str) -> (FileRules, u32) {
        let elf = ElfFile::in_memory(bytes).unwrap();
        let found = symbols::find(&elf, &Names::new([name]), None).unwrap();
        let offset = Code::of(&elf).offset(found.functions[0].address).unwrap();
        (FileRules::read(&elf), offset)
    }

    /// The rule at the end of a function that begins with `directives`, each at an instruction of its own.
    fn rule_after(directives: &str) -> UnwindRule {
        let text = format!(
            ".text; .globl f; .type f,@function; f: .cfi_startproc; nop; {directives}; nop; .cfi_endproc; .size f, . - f\n"
        );
        let (rules, offset) = read(&library(&text, &[]), "f");
        rules.at(offset + 1)
    }

    const FIRST: StackRule = StackRule {
        base: Base::StackPointer,
        distance: 1,
        indirect: None,
        return_address: Saved::BelowEnd(1),
        frame_pointer: Saved::InRegister,
        third: Some(Saved::InRegister),
    };

    #[test]
    fn rules_are_what_the_directives_say() {
        let frame = "rbp, 16; .cfi_offset rbp, -16";
        for (directives, rule) in [
            ("", FIRST),
            (
                ".cfi_adjust_cfa_offset 24; .cfi_offset rbx, -32; .cfi_offset r12, -24",
                StackRule {
                    distance: 4,
                    third: Some(Saved::BelowEnd(4)),
                    ..FIRST
                },
            ),
            (
                &format!(".cfi_def_cfa {frame}"),
                StackRule {
                    base: Base::FramePointer,
                    distance: 2,
                    frame_pointer: Saved::BelowEnd(2),
                    ..FIRST
                },
            ),
            // Where a dynamic loader's resolver keeps its stack pointer.
            (
                ".cfi_def_cfa rbx, 16; .cfi_offset rbx, -16",
                StackRule {
                    base: Base::Third,
                    distance: 2,
                    third: Some(Saved::BelowEnd(2)),
                    ..FIRST
                },
            ),
            // A frame with a larger alignment: DW_CFA_def_cfa_expression (DW_OP_breg6 -8, DW_OP_deref), and rbp at
            // DW_OP_breg6 0.
            (
                ".cfi_escape 0x0f, 3, 0x76, 0x78, 6; .cfi_escape 0x10, 6, 2, 0x76, 0",
                StackRule {
                    base: Base::FramePointer,
                    distance: -1,
                    indirect: Some(0),
                    frame_pointer: Saved::AtFrame(0),
                    ..FIRST
                },
            ),
            // As in OpenSSL's assembly: DW_OP_breg7 40, DW_OP_deref, DW_OP_plus_uconst 8.
            (
                ".cfi_escape 0x0f, 5, 0x77, 40, 6, 0x23, 8",
                StackRule {
                    distance: 5,
                    indirect: Some(1),
                    ..FIRST
                },
            ),
            // A third register that is saved somewhere else is lost, and nothing more.
            (
                ".cfi_register rbx, r12",
                StackRule {
                    third: None,
                    ..FIRST
                },
            ),
        ] {
            assert_eq!(
                rule_after(directives),
                UnwindRule::Plain(rule),
                "{directives}"
            );
        }
    }

    #[test]
    fn special_frames_are_recognised() {
        assert_eq!(rule_after(".cfi_undefined rip"), UnwindRule::Outermost);
        assert_eq!(rule_after(".cfi_signal_frame"), UnwindRule::Signal);
        // rsp + 8 + ((rip & 15) >= 11) * 8
        let linkage =
            ".cfi_escape 0x0f, 11, 0x77, 8, 0x80, 0, 0x3f, 0x1a, 0x3b, 0x2a, 0x33, 0x24, 0x22";
        assert_eq!(rule_after(linkage), UnwindRule::Linkage { pushed_at: 11 });
    }

    #[test]
    fn a_rule_of_another_kind_is_unknown_and_not_taken_for_none() {
        for directives in [
            ".cfi_def_cfa r10, 0",
            ".cfi_def_cfa rsp, 12",
            ".cfi_register rip, r11",
            ".cfi_same_value rip",
            ".cfi_register rbp, r12",
            // DW_OP_breg6 0, DW_OP_deref, DW_OP_deref
            ".cfi_escape 0x0f, 4, 0x76, 0, 6, 6",
        ] {
            assert_eq!(rule_after(directives), UnwindRule::Unknown, "{directives}");
        }
    }

    #[test]
    fn code_between_functions_has_no_rule() {
        let text = ".text; .globl f; .type f,@function; f: nop
            .cfi_startproc; nop; .cfi_endproc; nop; .cfi_startproc; nop; .cfi_endproc; .size f, . - f\n";
        let (rules, offset) = read(&library(text, &[]), "f");
        let found = [0, 1, 2, 3, 4].map(|at| rules.at(offset + at));
        let rule = UnwindRule::Plain(FIRST);
        assert_eq!(
            found,
            [
                UnwindRule::Missing,
                rule,
                UnwindRule::Missing,
                rule,
                UnwindRule::Missing
            ]
        );
    }

    #[test]
    fn the_table_for_debuggers_is_used_where_there_is_no_other() {
        let text = |section| {
            format!(
                ".cfi_sections {section}; .text; .globl f; .type f,@function
                f: .cfi_startproc; nop; .cfi_adjust_cfa_offset 8; nop; .cfi_endproc; .size f, . - f\n"
            )
        };
        let second = UnwindRule::Plain(StackRule {
            distance: 2,
            ..FIRST
        });
        for section in [".eh_frame", ".debug_frame", ".eh_frame, .debug_frame"] {
            let (rules, offset) = read(&library(&text(section), &[]), "f");
            assert_eq!(rules.at(offset), UnwindRule::Plain(FIRST), "{section}");
            assert_eq!(rules.at(offset + 1), second, "{section}");
        }
    }

    #[test]
    fn an_entry_that_takes_long_for_each_function_is_not_followed() {
        // A table by hand: an entry with so many DW_CFA_GNU_args_size, and 3,000 functions that begin with it.
        let text = |nothing: u32| {
            format!(
                ".text; .globl f; .type f,@function; f: .fill 48000, 1, 0x90; .size f, . - f
                .section .eh_frame, \"a\", @progbits; .balign 8
                1: .long 3f - 2f; 2: .long 0; .byte 1; .asciz \"\"; .uleb128 1; .sleb128 -8; .byte 16
                .byte 0x0c, 7, 8, 0x90, 1; .fill {nothing}, 2, 0x2e; .balign 8; 3:
                .set at, 0
                .rept 3000; .long 5f - 4f; 4: .long . - 1b; .quad f + at; .quad 16; 5: .set at, at + 16; .endr\n"
            )
        };
        for (nothing, rule) in [
            (100, UnwindRule::Plain(FIRST)),
            (1 << 20, UnwindRule::Unknown),
        ] {
            let bytes = library(&text(nothing), &[]);
            let began = Instant::now();
            let (rules, offset) = read(&bytes, "f");
            assert_eq!(rules.at(offset), rule);
            assert_eq!(rules.at(offset + 47_999), rule);
            assert!(began.elapsed() < Duration::from_secs(5), "{nothing}");
        }
    }

    #[test]
    fn the_entry_point_of_a_file_has_no_caller() {
        let text =
            ".text; nop; .globl _start; .type _start,@function; _start: nop; nop; .size _start, 2
            .cfi_startproc; nop; .cfi_endproc\n";
        let (rules, offset) = read(&library(text, &["-Wl,-e,_start"]), "_start");
        assert_eq!(rules.at(offset - 1), UnwindRule::Missing);
        assert_eq!(rules.at(offset), UnwindRule::Outermost);
        assert_eq!(rules.at(offset + 1), UnwindRule::Outermost);
        assert_eq!(rules.at(offset + 2), UnwindRule::Plain(FIRST));
    }

    #[test]
    fn the_rules_of_this_systems_libraries_cover_their_code() {
        let libraries = mapped_libraries();
        for (path, file) in &libraries {
            let rules = FileRules::read(&ElfFile::open(file).unwrap());
            let unknown = rules
                .rows
                .iter()
                .filter(|(_, rule)| *rule == UnwindRule::Unknown);
            let (unknown, all) = (unknown.count(), rules.rows.len());
            assert!(
                all > 100 && unknown * 20 < all,
                "{path}: {unknown} of {all}"
            );
        }
        assert!(libraries.len() > 1);
    }
}
