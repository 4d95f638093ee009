//! Places probes in x86_64 code. The module above has the rules.

use iced_x86::{
    Decoder, DecoderOptions, FlowControl, Formatter, GasFormatter, Instruction,
    InstructionInfoFactory, Mnemonic, OpAccess, Register,
};

use crate::code::placement::place::{Kind, Placement, Reason, WINDOW};

/// Registers of the first arguments in the System V calling convention, in order. The first argument has number 1.
const ARGUMENTS: [Register; 6] = [
    Register::RDI,
    Register::RSI,
    Register::RDX,
    Register::RCX,
    Register::R8,
    Register::R9,
];

/// Places a probe in the function at the start of `code`. `arguments` are the numbers (from 1) of the arguments that
/// the probe's program reads. If `code` is the whole function, all its jumps that land near the entry are seen.
pub fn place(code: &[u8], arguments: &[u8]) -> Placement {
    let mut read: Vec<Register> = arguments
        .iter()
        .filter_map(|&n| ARGUMENTS.get(usize::from(n).wrapping_sub(1)).copied())
        .collect();
    // A return probe replaces the word at the stack pointer. The stack pointer also tells nested calls apart.
    read.push(Register::RSP);

    let instructions: Vec<Instruction> = Decoder::with_ip(64, code, 0, DecoderOptions::NONE)
        .into_iter()
        .collect();
    let targets: Vec<u64> = instructions.iter().filter_map(branch_target).collect();
    // The place if no emulated instruction can be used: the first instruction on which the kernel takes a probe, or
    // the entry.
    let mut taken = None;
    let stepped = |taken: Option<&Instruction>, reason| {
        let instruction = taken.or(instructions.first());
        let (offset, text) = instruction
            .map(|found| (found.ip(), text(found)))
            .unwrap_or_default();
        Placement::single_stepped(offset, text, reason)
    };

    let mut info = InstructionInfoFactory::new();
    for instruction in &instructions {
        let offset = instruction.ip();
        if offset >= WINDOW as u64 || instruction.is_invalid() {
            break;
        }
        if offset > 0 && targets.contains(&offset) {
            return stepped(taken, Reason::JumpLands);
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
        if !refused(&code[offset as usize..]) {
            taken.get_or_insert(instruction);
        }
        if instruction.flow_control() != FlowControl::Next {
            return stepped(taken, Reason::BlockEnds);
        }
        let changes = info.info(instruction).used_registers().iter().any(|used| {
            !matches!(used.access(), OpAccess::Read | OpAccess::CondRead)
                && read.contains(&used.register().full_register())
        });
        if changes {
            return stepped(taken, Reason::RegisterChanges);
        }
    }
    stepped(taken, Reason::NoneFound)
}

/// The instruction at the start of `code`, in AT&T syntax, and what the kernel does with it under a probe.
pub fn placed_on(code: &[u8]) -> (String, Kind) {
    let instruction = Decoder::with_ip(64, code, 0, DecoderOptions::NONE).decode();
    let kind = match emulated(&instruction, code) {
        true => Kind::Emulated,
        false => Kind::SingleStepped,
    };
    (text(&instruction), kind)
}

/// Whether the kernel emulates this instruction under a uprobe. See `branch_setup_xol_ops` and `push_setup_xol_ops` in
/// arch/x86/kernel/uprobes.c.
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
        // relative call, jmp and jcc without a prefix
        [0xe8 | 0xe9, ..] if bytes.len() == 5 => true,
        [0xeb, _] | [0x70..=0x7f, _] => true,
        [0x0f, 0x80..=0x8f, ..] if bytes.len() == 6 => true,
        _ => false,
    }
}

/// Whether a kernel may refuse a probe on the instruction at the start of `code`. See `is_prefix_bad` and the tables in
/// the same file, which have grown from version to version. If this is wrong for an accepted instruction, the probe is
/// only further on.
pub fn refused(code: &[u8]) -> bool {
    let mut bytes = code;
    while let [
        prefix @ (0x26 | 0x2e | 0x36 | 0x3e | 0x64..=0x67 | 0xf0 | 0xf2 | 0xf3),
        rest @ ..,
    ] = bytes
    {
        // The segment prefixes except fs and gs (`notrack` is one of them), and lock.
        if matches!(prefix, 0x26 | 0x2e | 0x36 | 0x3e | 0xf0) {
            return true;
        }
        bytes = rest;
    }
    if let [0x40..=0x4f, rest @ ..] = bytes {
        bytes = rest;
    }
    match bytes {
        // Opcodes with two bytes: system instructions, prefetches, fences.
        [0x0f, second, ..] => matches!(
            second,
            0x00..=0x0d | 0x18 | 0x24..=0x27 | 0x30 | 0x34..=0x3f | 0x78..=0x7d | 0xa6 | 0xa7 | 0xae | 0xb8
        ),
        // Newer vector instructions, input and output, interrupts, and stopping the processor.
        [first, ..] => matches!(
            first,
            0x62 | 0x6c..=0x6f | 0xc4 | 0xc5 | 0xcc..=0xcf | 0xe4..=0xe7 | 0xec..=0xef | 0xf1 | 0xf4 | 0xfa | 0xfb
        ),
        [] => true,
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
        let placement = super::place(code, arguments);
        (placement.offset, placement.kind, placement.reason)
    }

    #[test]
    fn a_push_at_the_entry_is_probed() {
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
    fn endbr64_is_skipped() {
        // endbr64; push %r15
        let code = [0xf3, 0x0f, 0x1e, 0xfa, 0x41, 0x57];
        assert_eq!(
            place(&code, &[1]),
            (4, Kind::Emulated, Reason::FirstEmulated)
        );
    }

    #[test]
    fn no_probe_behind_a_change_of_an_argument() {
        // mov %rsi,%rdi; push %rbp
        let code = [0x48, 0x89, 0xf7, 0x55];
        assert_eq!(
            place(&code, &[1]),
            (0, Kind::SingleStepped, Reason::RegisterChanges)
        );
        // the same if the first argument is not read
        assert_eq!(
            place(&code, &[2]),
            (3, Kind::Emulated, Reason::FirstEmulated)
        );
        // a 32-bit write changes the whole register: xor %edi,%edi; push %rbp
        assert_eq!(place(&[0x31, 0xff, 0x55], &[1]).2, Reason::RegisterChanges);
    }

    #[test]
    fn no_probe_behind_a_change_of_the_stack_pointer() {
        // sub $0x18,%rsp; push %rbp
        let code = [0x48, 0x83, 0xec, 0x18, 0x55];
        assert_eq!(
            place(&code, &[1]),
            (0, Kind::SingleStepped, Reason::RegisterChanges)
        );
    }

    #[test]
    fn no_probe_behind_a_jump_that_is_not_emulated() {
        // jmp *%rax; push %rbp
        assert_eq!(
            place(&[0xff, 0xe0, 0x55], &[1]),
            (0, Kind::SingleStepped, Reason::BlockEnds)
        );
        // ret; push %rbp
        assert_eq!(place(&[0xc3, 0x55], &[1]).2, Reason::BlockEnds);
    }

    #[test]
    fn no_probe_where_a_jump_lands() {
        // mov %edi,%eax; [1:] push %rbp; jmp 1b
        let code = [0x89, 0xf8, 0x55, 0xeb, 0xfd];
        assert_eq!(
            place(&code, &[1]),
            (0, Kind::SingleStepped, Reason::JumpLands)
        );
    }

    #[test]
    fn code_that_cannot_be_decoded_is_probed_at_the_entry() {
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
    fn instructions_that_the_kernel_refuses_are_skipped() {
        let further = |offset| (offset, Kind::SingleStepped, Reason::FirstTaken);
        // lock addq $1,0x2e87(%rip); ret
        let lock = [0xf0, 0x48, 0x83, 0x05, 0x87, 0x2e, 0, 0, 1, 0xc3];
        assert_eq!(place(&lock, &[1]), further(9));
        // lock incl (%rdi); cs mov (%rdi),%eax; mfence; prefetchw (%rdi); mov (%rdi),%eax; ret
        let code = [
            0xf0, 0xff, 0x07, 0x2e, 0x8b, 0x07, 0x0f, 0xae, 0xf0, 0x0f, 0x0d, 0x0f, 0x8b, 0x07,
            0xc3,
        ];
        assert_eq!(place(&code, &[1]), further(12));
        // An emulated instruction is better: the same, and push %rbp
        let pushed = [&lock[..9], &[0x55]].concat();
        assert_eq!(
            place(&pushed, &[1]),
            (9, Kind::Emulated, Reason::FirstEmulated)
        );
        // If there is no better place, the entry is tried. lock xadd %rdi,(%rsi); ret
        let code = [0xf0, 0x48, 0x0f, 0xc1, 0x3e, 0xc3];
        assert_eq!(
            place(&code, &[1]),
            (0, Kind::SingleStepped, Reason::RegisterChanges)
        );
        // The kernel takes a probe on mov %fs:0,%rax.
        let code = [0x64, 0x48, 0x8b, 0x04, 0x25, 0, 0, 0, 0, 0xc3];
        assert_eq!(place(&code, &[1]).0, 0);
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
