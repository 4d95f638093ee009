//! Where in a function a probe goes. Pure: bytes in, offset out.
//!
//! A uprobe costs what its instruction costs: one that the kernel emulates is done within the trap, any
//! other is executed out of line under single-step, which is a second trap, and in a virtual machine one
//! that leaves for the hypervisor. So the probe goes on the first instruction that is emulated, as long as
//! everything that its program reads (the argument registers, the stack pointer) is then
//! still what it was at the function's entry, and as long as that instruction runs exactly once a
//! call: in the entry's own basic block.

use std::fmt;

use iced_x86::{
    Decoder, DecoderOptions, FlowControl, Formatter, GasFormatter, Instruction,
    InstructionInfoFactory, Mnemonic, OpAccess, Register,
};

/// How many bytes from the entry are looked at: emulated instructions come early or not at all.
pub const WINDOW: usize = 64;

/// Where a probe goes, and why there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// Bytes from the function's entry.
    pub offset: u64,
    /// The instruction there, in AT&T syntax.
    pub instruction: String,
    pub kind: Kind,
    pub reason: Reason,
}

/// What the kernel does with the probed instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Emulated,
    SingleStepped,
}

/// Why a probe sits where it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The entry itself is emulated.
    Entry,
    /// The first emulated instruction of the entry's basic block.
    FirstEmulated,
    /// An instruction before the first emulated one changes a register that is read.
    RegisterChanges,
    /// The basic block ends before an emulated instruction.
    BlockEnds,
    /// A jump lands between the entry and the first emulated instruction.
    JumpLands,
    /// No emulated instruction near, or code that does not decode.
    NoneFound,
    /// The architecture's instructions are not looked into: the entry is used.
    NotDecoded,
    /// Not a function's entry: where one that may throw returns.
    Returns,
    /// Where one that may throw goes to code that could not be followed.
    Leaves,
    /// A function that may throw and could not be followed: each call is a loss.
    Unfollowed,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Emulated => "emulated",
            Kind::SingleStepped => "single-stepped",
        })
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Reason::Entry => "the entry is emulated",
            Reason::FirstEmulated => "first emulated instruction, arguments and stack as at entry",
            Reason::RegisterChanges => {
                "at entry: a register that is read changes before an emulated instruction"
            }
            Reason::BlockEnds => "at entry: the basic block ends before an emulated instruction",
            Reason::JumpLands => "at entry: a jump lands before the first emulated instruction",
            Reason::NoneFound => "at entry: no emulated instruction near",
            Reason::NotDecoded => "at entry: this architecture's code is not decoded",
            Reason::Returns => "it may throw, so there is no return probe; it returns here",
            Reason::Leaves => {
                "it may throw, and goes to code that is not followed: such calls are lost"
            }
            Reason::Unfollowed => {
                "it may throw, and its code cannot be followed: its calls are lost"
            }
        })
    }
}

impl fmt::Display for Placement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Placement {
            offset,
            instruction,
            kind,
            reason,
        } = self;
        // Where a function returns may lie before it.
        let offset = offset.cast_signed();
        write!(f, "{offset:+} {instruction} ({kind}): {reason}")
    }
}

/// Registers of the first arguments in the System V calling convention, from 1.
const ARGUMENTS: [Register; 6] = [
    Register::RDI,
    Register::RSI,
    Register::RDX,
    Register::RCX,
    Register::R8,
    Register::R9,
];

/// Places a probe in the x86_64 function that begins `code`. `arguments` are the numbers (from 1) of those
/// that the program reads. `code` may be the whole function: jumps in it are then seen to land.
pub fn place_x86_64(code: &[u8], arguments: &[u8]) -> Placement {
    let mut read: Vec<Register> = arguments
        .iter()
        .filter_map(|&n| ARGUMENTS.get(usize::from(n).wrapping_sub(1)).copied())
        .collect();
    // A return probe replaces the word at the stack pointer; nesting is told by it.
    read.push(Register::RSP);

    let instructions: Vec<Instruction> = Decoder::with_ip(64, code, 0, DecoderOptions::NONE)
        .into_iter()
        .collect();
    let targets: Vec<u64> = instructions.iter().filter_map(branch_target).collect();
    let at_entry = |reason| Placement {
        offset: 0,
        instruction: instructions.first().map(text).unwrap_or_default(),
        kind: Kind::SingleStepped,
        reason,
    };

    let mut info = InstructionInfoFactory::new();
    for instruction in &instructions {
        let offset = instruction.ip();
        if offset >= WINDOW as u64 || instruction.is_invalid() {
            break;
        }
        if offset > 0 && targets.contains(&offset) {
            return at_entry(Reason::JumpLands);
        }
        if emulated(instruction, code) {
            return Placement {
                offset,
                instruction: text(instruction),
                kind: Kind::Emulated,
                reason: if offset == 0 {
                    Reason::Entry
                } else {
                    Reason::FirstEmulated
                },
            };
        }
        if instruction.flow_control() != FlowControl::Next {
            return at_entry(Reason::BlockEnds);
        }
        let changes = info.info(instruction).used_registers().iter().any(|used| {
            !matches!(used.access(), OpAccess::Read | OpAccess::CondRead)
                && read.contains(&used.register().full_register())
        });
        if changes {
            return at_entry(Reason::RegisterChanges);
        }
    }
    at_entry(Reason::NoneFound)
}

/// The instruction that begins `code`, in AT&T syntax.
pub fn instruction_at(code: &[u8]) -> String {
    let mut decoder = Decoder::with_ip(64, code, 0, DecoderOptions::NONE);
    text(&decoder.decode())
}

/// A placement at the entry, where the code is not looked into.
pub fn place_at_entry() -> Placement {
    Placement {
        offset: 0,
        instruction: String::new(),
        kind: Kind::SingleStepped,
        reason: Reason::NotDecoded,
    }
}

/// Whether the kernel emulates this instruction under a uprobe: `branch_setup_xol_ops` and
/// `push_setup_xol_ops` in arch/x86/kernel/uprobes.c.
fn emulated(instruction: &Instruction, code: &[u8]) -> bool {
    let start = instruction.ip() as usize;
    let Some(bytes) = code.get(start..start + instruction.len()) else {
        return false;
    };
    match *bytes {
        // push of a 64-bit register, with or without the REX prefix that selects r8–r15
        [0x50..=0x57] | [0x41, 0x50..=0x57] => true,
        // nop (f3 90 is pause, which is single-stepped)
        [0x90] => instruction.mnemonic() == Mnemonic::Nop,
        // call, jmp, jcc, relative and with no prefix
        [0xe8 | 0xe9, ..] if bytes.len() == 5 => true,
        [0xeb, _] | [0x70..=0x7f, _] => true,
        [0x0f, 0x80..=0x8f, ..] if bytes.len() == 6 => true,
        _ => false,
    }
}

fn branch_target(instruction: &Instruction) -> Option<u64> {
    matches!(
        instruction.flow_control(),
        FlowControl::ConditionalBranch | FlowControl::UnconditionalBranch
    )
    .then(|| instruction.near_branch_target())
}

fn text(instruction: &Instruction) -> String {
    let mut text = String::new();
    GasFormatter::new().format(instruction, &mut text);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(code: &[u8], arguments: &[u8]) -> (u64, Kind, Reason) {
        let placement = place_x86_64(code, arguments);
        (placement.offset, placement.kind, placement.reason)
    }

    #[test]
    fn a_push_at_the_entry_is_taken() {
        // push %r12; mov %rdi,%r12
        let code = [0x41, 0x54, 0x49, 0x89, 0xfc];
        assert_eq!(place(&code, &[1]), (0, Kind::Emulated, Reason::Entry));
    }

    #[test]
    fn a_null_check_is_probed_at_its_jump() {
        // test %rdi,%rdi; je +0x70; push %rbp
        let code = [0x48, 0x85, 0xff, 0x74, 0x70, 0x55];
        assert_eq!(
            place(&code, &[1]),
            (3, Kind::Emulated, Reason::FirstEmulated)
        );
    }

    #[test]
    fn endbr64_is_passed_over() {
        // endbr64; push %r15
        let code = [0xf3, 0x0f, 0x1e, 0xfa, 0x41, 0x57];
        assert_eq!(
            place(&code, &[1]),
            (4, Kind::Emulated, Reason::FirstEmulated)
        );
    }

    #[test]
    fn nothing_beyond_a_change_of_an_argument() {
        // mov %rsi,%rdi; push %rbp
        let code = [0x48, 0x89, 0xf7, 0x55];
        assert_eq!(
            place(&code, &[1]),
            (0, Kind::SingleStepped, Reason::RegisterChanges)
        );
        // the same where the first argument is not read
        assert_eq!(
            place(&code, &[2]),
            (3, Kind::Emulated, Reason::FirstEmulated)
        );
        // a 32-bit write changes the whole register: xor %edi,%edi; push %rbp
        assert_eq!(place(&[0x31, 0xff, 0x55], &[1]).2, Reason::RegisterChanges);
    }

    #[test]
    fn nothing_beyond_a_change_of_the_stack_pointer() {
        // sub $0x18,%rsp; push %rbp
        let code = [0x48, 0x83, 0xec, 0x18, 0x55];
        assert_eq!(
            place(&code, &[1]),
            (0, Kind::SingleStepped, Reason::RegisterChanges)
        );
    }

    #[test]
    fn nothing_beyond_a_jump_that_is_not_emulated() {
        // jmp *%rax; push %rbp
        assert_eq!(
            place(&[0xff, 0xe0, 0x55], &[1]),
            (0, Kind::SingleStepped, Reason::BlockEnds)
        );
        // ret; push %rbp
        assert_eq!(place(&[0xc3, 0x55], &[1]).2, Reason::BlockEnds);
    }

    #[test]
    fn nothing_where_a_jump_lands() {
        // mov %edi,%eax; [1:] push %rbp; jmp 1b
        let code = [0x89, 0xf8, 0x55, 0xeb, 0xfd];
        assert_eq!(
            place(&code, &[1]),
            (0, Kind::SingleStepped, Reason::JumpLands)
        );
    }

    #[test]
    fn the_entry_where_nothing_decodes() {
        assert_eq!(
            place(&[], &[1]),
            (0, Kind::SingleStepped, Reason::NoneFound)
        );
        assert_eq!(
            place(&[0x06, 0x07], &[1]),
            (0, Kind::SingleStepped, Reason::NoneFound)
        );
    }

    #[test]
    fn prefixed_branches_and_pause_are_not_emulated() {
        // data16 jmp is a different instruction to the kernel; pause
        assert_eq!(place(&[0xf3, 0x90, 0xc3], &[1]).1, Kind::SingleStepped);
        assert_eq!(place(&[0x66, 0x50, 0xc3], &[1]).1, Kind::SingleStepped);
        // notrack and bnd prefixes
        assert_eq!(
            place(&[0xf2, 0xe9, 0, 0, 0, 0], &[1]).1,
            Kind::SingleStepped
        );
    }
}
