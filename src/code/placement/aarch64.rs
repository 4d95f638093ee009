//! Places probes in aarch64 code. The module above has the rules.
//!
//! The kernel simulates branches and `adr`, and single-steps all other instructions (`arm_probe_decode_insn` in
//! arch/arm64/kernel/probes/decode-insn.c).
//!
//! A return probe replaces the return address in x30 at the probed instruction. So no instruction before that may have
//! saved x30, signed it (`paciasp`), or moved the stack pointer, which tells calls apart. Most functions begin with
//! `stp x29, x30, [sp, #-N]!`, so most probes stay at the entry.
//!
//! All instructions have 32 bits. For most of them only the registers that they write matter. An instruction that is
//! unknown here counts as writing all registers. This takes a page of code. A disassembler would take its own crate,
//! and still a page of code about its operands.

use crate::code::placement::place::{Kind, Placement, Reason, WINDOW};

/// Registers as bits: x0 to x30, and the stack pointer.
type Registers = u32;

const LINK: Registers = 1 << 30;
const STACK: Registers = 1 << 31;
const ALL: Registers = !0;

/// In some fields this number is the stack pointer. In others it is a register that is always zero.
const SP_OR_ZERO: u32 = 31;

/// Places a probe in the function at the start of `code`. `arguments` are the numbers (from 1) of the arguments that
/// the probe's program reads. If `code` is the whole function, all its jumps that land near the entry are seen.
pub fn place(code: &[u8], arguments: &[u8]) -> Placement {
    let kept = arguments
        .iter()
        .filter_map(|&n| 1_u32.checked_shl(u32::from(n).wrapping_sub(1)))
        .fold(LINK | STACK, |kept, register| kept | register);
    let words = || {
        let words = code.chunks_exact(4).map(word);
        (0_u64..).step_by(4).zip(words)
    };
    let targets: Vec<u64> = words()
        .filter_map(|(at, word)| Some(at.wrapping_add_signed(distance(word)?)))
        .collect();
    // The place if no simulated instruction can be used: the first instruction on which the kernel takes a probe, or
    // the entry.
    let mut taken = None;
    let stepped = |taken: Option<u64>, reason| {
        let offset = taken.unwrap_or(0);
        let code = code.get(offset as usize..).unwrap_or_default();
        let text = code.first_chunk().map(text).unwrap_or_default();
        Placement::single_stepped(offset, text, reason)
    };

    for (offset, word) in words() {
        if offset >= WINDOW as u64 {
            break;
        }
        if offset > 0 && targets.contains(&offset) {
            return stepped(taken, Reason::JumpLands);
        }
        if simulated(word).is_some() {
            return Placement {
                offset,
                instruction: text(&word.to_le_bytes()),
                kind: Kind::Emulated,
                reason: match offset {
                    0 => Reason::Entry,
                    _ => Reason::FirstEmulated,
                },
            };
        }
        if !refused(word) {
            taken.get_or_insert(offset);
        }
        if leaves(word) {
            return stepped(taken, Reason::BlockEnds);
        }
        if (writes(word) | reads_link(word)) & kept != 0 {
            return stepped(taken, Reason::RegisterChanges);
        }
    }
    stepped(taken, Reason::NoneFound)
}

/// The instruction at the start of `code`, and what the kernel does with it under a probe.
pub fn placed_on(code: &[u8]) -> (String, Kind) {
    let Some(bytes) = code.first_chunk() else {
        return (String::new(), Kind::SingleStepped);
    };
    let kind = match simulated(word(bytes)) {
        Some(_) => Kind::Emulated,
        None => Kind::SingleStepped,
    };
    (text(bytes), kind)
}

fn word(bytes: &[u8]) -> u32 {
    bytes
        .iter()
        .rev()
        .fold(0, |word, &byte| word << 8 | u32::from(byte))
}

/// The mnemonic if the kernel simulates the instruction, otherwise the instruction's word in hexadecimal.
fn text(bytes: &[u8; 4]) -> String {
    let word = u32::from_le_bytes(*bytes);
    match simulated(word) {
        Some(name) => name.to_owned(),
        None => format!(".inst {word:#010x}"),
    }
}

/// The mnemonic of an instruction that every kernel simulates. Newer kernels simulate `nop`, too. That makes a probe
/// cheaper on a function that begins with `nop`, but is no reason to move a probe to one. Probes on loads of a literal
/// are refused (before 6.12 they were simulated, and failed).
fn simulated(word: u32) -> Option<&'static str> {
    Some(match word {
        _ if word & 0xff00_0010 == 0x5400_0000 => "b.cond",
        _ if word & 0x7f00_0000 == 0x3400_0000 => "cbz",
        _ if word & 0x7f00_0000 == 0x3500_0000 => "cbnz",
        _ if word & 0x7f00_0000 == 0x3600_0000 => "tbz",
        _ if word & 0x7f00_0000 == 0x3700_0000 => "tbnz",
        _ if word & 0x9f00_0000 == 0x1000_0000 => "adr",
        _ if word & 0x9f00_0000 == 0x9000_0000 => "adrp",
        _ if word & 0xfc00_0000 == 0x1400_0000 => "b",
        _ if word & 0xfc00_0000 == 0x9400_0000 => "bl",
        _ if word & 0xffff_fc1f == 0xd61f_0000 => "br",
        _ if word & 0xffff_fc1f == 0xd63f_0000 => "blr",
        _ if word & 0xffff_fc1f == 0xd65f_0000 => "ret",
        _ => return None,
    })
}

/// How far a jump within the code goes, in bytes.
fn distance(word: u32) -> Option<i64> {
    // The lowest bit of the field, and its number of bits.
    let (low, bits) = match simulated(word)? {
        "b" => (0, 26),
        "b.cond" | "cbz" | "cbnz" => (5, 19),
        "tbz" | "tbnz" => (5, 14),
        _ => return None,
    };
    let field = (word >> low) << (32 - bits);
    Some(i64::from(field.cast_signed() >> (32 - bits)) * 4)
}

/// Whether a kernel refuses a probe on this instruction, or might single-step it wrongly. That holds for:
/// - exclusive loads and stores, which a trap between them undoes,
/// - loads of a literal beside the code,
/// - writes of system registers,
/// - hints, except those that sign or mark.
fn refused(word: u32) -> bool {
    leaves(word)
        || word & 0x3f80_0000 == 0x0800_0000
        || word & 0x3b00_0000 == 0x1800_0000
        || word & 0xfff0_0000 == 0xd510_0000
        || word & 0xfff8_f01f == 0xd500_401f
        || (word & 0xffff_f01f == 0xd503_201f
            && !matches!(
                word >> 5 & 0x7f,
                0 | 7 | 8 | 10 | 12 | 14 | 24..=32 | 34 | 36 | 38
            ))
}

/// Whether an instruction leaves the basic block without being simulated: a branch with authentication, an exception,
/// or an encoding that no program has.
fn leaves(word: u32) -> bool {
    let group = word >> 25 & 0b1111;
    (group & 0b1110 == 0b1010 && word >> 24 != 0xd5) || group & 0b1101 == 0
}

/// The registers that an instruction may change. The instruction must not be a branch.
fn writes(word: u32) -> Registers {
    let field = |low: u32| word >> low & 0b1_1111;
    let bit = |at: u32| word >> at & 1 == 1;
    // Register number 31 is either no register or the stack pointer.
    let or_nothing = |number: u32| match number {
        SP_OR_ZERO => 0,
        _ => 1 << number,
    };
    let or_stack = |number: u32| 1 << number;
    match word >> 25 & 0b1111 {
        // Data processing with a constant: additions, additions of tags, logic, and operations that cannot name the
        // stack pointer.
        0b1000 | 0b1001 => match word >> 23 & 0b111 {
            0b010 if !bit(29) => or_stack(field(0)),
            0b011 => or_stack(field(0)),
            0b100 if word >> 29 & 0b11 != 0b11 => or_stack(field(0)),
            _ => or_nothing(field(0)),
        },
        // Hints. Some of them sign x30, or remove its signature.
        0b1010 | 0b1011 if word & 0xffff_f01f == 0xd503_201f => match word >> 5 & 0x7f {
            7..=15 | 24..=31 | 39.. => ALL,
            _ => 0,
        },
        // Accesses of system registers.
        0b1010 | 0b1011 => match bit(21) {
            true => or_nothing(field(0)),
            false => 0,
        },
        // Loads and stores.
        0b0100 | 0b0110 | 0b1100 | 0b1110 => match word & 0x3a00_0000 {
            // A pair of registers. Bit 23 says that the address register is changed, too: after the access if bit 24 is
            // clear, before it if bit 24 is set.
            0x2800_0000 => {
                let loaded = match bit(22) && !bit(26) {
                    true => or_nothing(field(0)) | or_nothing(field(10)),
                    false => 0,
                };
                loaded | if bit(23) { or_stack(field(5)) } else { 0 }
            }
            // One register. The offset is a wide constant or a register, or the instruction is an atomic operation, or
            // the address register is changed as for a pair.
            0x3800_0000 => {
                let loaded = match word >> 22 & 0b11 != 0 && !bit(26) {
                    true => or_nothing(field(0)),
                    false => 0,
                };
                let plain = bit(24)
                    || match word >> 10 & 0b11 {
                        0b00 => !bit(21),
                        0b10 => true,
                        _ => false,
                    };
                let others = or_nothing(field(0)) | or_stack(field(5));
                loaded | if plain { 0 } else { others }
            }
            // A load of a literal beside the code, or only a prefetch of it.
            0x1800_0000 if !bit(24) => match bit(26) || word >> 30 == 0b11 {
                true => 0,
                false => or_nothing(field(0)),
            },
            _ => ALL,
        },
        // Data processing with registers. Additions of an extended register may name the stack pointer.
        0b0101 | 0b1101 => match word >> 24 & 0b1_1111 {
            0b0_1011 if bit(21) && !bit(29) => or_stack(field(0)),
            _ => or_nothing(field(0)),
        },
        // Floating point: writes at most one general register.
        0b0111 | 0b1111 => or_nothing(field(0)),
        _ => ALL,
    }
}

/// x30, if an instruction may read it: the instruction could save x30 where a return probe does not find it. Checks
/// every field that may hold a register number.
fn reads_link(word: u32) -> Registers {
    let constant = word >> 26 & 0b111 == 0b100;
    let fields = if constant {
        &[5, 16][..]
    } else {
        &[0, 5, 10, 16]
    };
    match fields.iter().any(|low| word >> low & 0b1_1111 == 30) {
        true => LINK,
        false => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STP_FRAME: u32 = 0xa9bc_7bfd; // stp x29, x30, [sp, #-64]!
    const CBZ_X0: u32 = 0xb400_0880; // cbz x0, +0x110
    const BTI_C: u32 = 0xd503_245f;
    const PACIASP: u32 = 0xd503_233f;
    const NOP: u32 = 0xd503_201f;
    const RET: u32 = 0xd65f_03c0;

    fn placed(words: &[u32], arguments: &[u8]) -> (u64, Kind, Reason) {
        let code: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let placement = place(&code, arguments);
        (placement.offset, placement.kind, placement.reason)
    }

    #[test]
    fn a_null_check_at_the_entry_is_probed() {
        assert_eq!(
            placed(&[CBZ_X0, STP_FRAME], &[1]),
            (0, Kind::Emulated, Reason::Entry)
        );
    }

    #[test]
    fn instructions_that_the_kernel_refuses_are_skipped() {
        let further = (4, Kind::SingleStepped, Reason::FirstTaken);
        // yield; ldr q0, +8; prfm pldl1keep, +8; msr tpidr_el0, x1
        for word in [0xd503_203f, 0x9c00_0040, 0xd800_0040, 0xd51b_d041] {
            assert_eq!(
                placed(&[word, 0xaa00_03e1, STP_FRAME], &[1]),
                further,
                "{word:#x}"
            );
        }
        // The kernel takes a probe on dmb ish.
        assert_eq!(placed(&[0xd503_3bbf, STP_FRAME], &[1]).0, 0);
        // A simulated instruction is better.
        assert_eq!(
            placed(&[0xd503_203f, CBZ_X0], &[1]),
            (4, Kind::Emulated, Reason::FirstEmulated)
        );
        // If there is no better place, the entry is tried. ldxr x1, [x2]; ldr x0, +8
        for word in [0xc85f_7c41, 0x5800_0040] {
            assert_eq!(placed(&[word, STP_FRAME], &[1, 2]).0, 0, "{word:#x}");
        }
    }

    #[test]
    fn no_probe_behind_an_instruction_that_makes_a_frame() {
        let kept = (0, Kind::SingleStepped, Reason::RegisterChanges);
        // adrp x23, 0
        assert_eq!(placed(&[STP_FRAME, 0x9000_0017], &[1]), kept);
        // sub sp, sp, #32; str x30, [sp, #16]; sub sp, sp, x16; mov sp, x29; ldr x30, [sp], #16
        for word in [
            0xd100_83ff,
            0xf900_0bfe,
            0xcb30_63ff,
            0x9100_03bf,
            0xf841_07fe,
        ] {
            assert_eq!(placed(&[word, CBZ_X0], &[1]), kept, "{word:x}");
        }
    }

    #[test]
    fn no_probe_behind_an_instruction_that_signs_or_saves_the_return_address() {
        let kept = (0, Kind::SingleStepped, Reason::RegisterChanges);
        // paciasp; mov x9, x30; str x30, [x18], #8
        for word in [PACIASP, 0xaa1e_03e9, 0xf800_865e] {
            assert_eq!(placed(&[word, CBZ_X0], &[1]), kept, "{word:x}");
        }
    }

    #[test]
    fn landing_pads_and_nops_are_skipped() {
        let beyond = (4, Kind::Emulated, Reason::FirstEmulated);
        assert_eq!(placed(&[BTI_C, CBZ_X0], &[1]), beyond);
        assert_eq!(placed(&[NOP, CBZ_X0], &[1]), beyond);
    }

    #[test]
    fn no_probe_behind_a_change_of_an_argument() {
        let kept = (0, Kind::SingleStepped, Reason::RegisterChanges);
        let beyond = (4, Kind::Emulated, Reason::FirstEmulated);
        // mul x1, x1, x2: reallocarray begins with it, and three of its arguments are read.
        assert_eq!(placed(&[0x9b02_7c21, CBZ_X0], &[1, 2, 3]), kept);
        assert_eq!(placed(&[0x9b02_7c21, CBZ_X0], &[1]), beyond);
        // mov w0, #12; ldr x0, [x2]; ldp x3, x0, [x2]; mrs x0, tpidr_el0; swp x1, x0, [x2]; ldr x2, [x0], #8
        for word in [
            0x5280_0180,
            0xf940_0040,
            0xa940_0043,
            0xd53b_d040,
            0xf821_8040,
            0xf840_8402,
        ] {
            assert_eq!(placed(&[word, CBZ_X0], &[1]), kept, "{word:x}");
        }
        // mov x3, x0; str x0, [x2]; stp x0, x1, [x2]; cmp x0, #0; mrs x3, tpidr_el0; ldr x3, [x0, #8];
        // ldr x3, +8
        for word in [
            0xaa00_03e3,
            0xf900_0040,
            0xa900_0440,
            0xf100_001f,
            0xd53b_d043,
            0xf940_0403,
            0x5800_0043,
        ] {
            assert_eq!(placed(&[word, CBZ_X0], &[1]), beyond, "{word:x}");
        }
    }

    #[test]
    fn no_probe_behind_an_unknown_instruction() {
        // An exclusive load, a load of vectors, an SVE instruction, and a word that is not an instruction.
        for word in [0xc85f_7c43, 0x4c40_7043, 0x0420_4021, 0] {
            assert_eq!(placed(&[word, CBZ_X0], &[1]).0, 0, "{word:x}");
        }
    }

    #[test]
    fn no_probe_behind_a_branch_that_is_not_simulated() {
        // retaa; svc #0
        for word in [0xd65f_0bff, 0xd400_0001] {
            assert_eq!(
                placed(&[word, CBZ_X0], &[1]),
                (0, Kind::SingleStepped, Reason::BlockEnds),
                "{word:x}"
            );
        }
        assert_eq!(
            placed(&[RET, CBZ_X0], &[1]),
            (0, Kind::Emulated, Reason::Entry)
        );
    }

    #[test]
    fn no_probe_where_a_jump_lands() {
        // mov x3, x0; 1: cbz x0, 2f; b 1b; 2: ret; and the same by cbz and tbnz
        for back in [0x17ff_ffff, 0xb4ff_ffe3, 0x3707_ffe3] {
            assert_eq!(
                placed(&[0xaa00_03e3, 0xb400_0040, back, RET], &[1]),
                (0, Kind::SingleStepped, Reason::JumpLands),
                "{back:x}"
            );
        }
    }

    #[test]
    fn code_without_a_simulated_instruction_is_probed_at_the_entry() {
        assert_eq!(
            placed(&[], &[1]),
            (0, Kind::SingleStepped, Reason::NoneFound)
        );
        assert_eq!(placed(&[NOP; 20], &[1]).2, Reason::NoneFound);
    }

    #[test]
    fn the_instruction_at_a_place_is_told() {
        let told = |word: u32| placed_on(&word.to_le_bytes());
        assert_eq!(told(RET), ("ret".to_owned(), Kind::Emulated));
        assert_eq!(
            told(STP_FRAME),
            (".inst 0xa9bc7bfd".to_owned(), Kind::SingleStepped)
        );
        assert_eq!(placed_on(&[]).1, Kind::SingleStepped);
    }
}
