//! Decodes x86_64's instructions as far as control flow and the stack pointer need it.

use iced_x86::{
    Code, Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic, OpKind, Register,
};

use crate::code::follow::step::{Effect, Flow, LONGEST, Place, Stack, Text};
use crate::code::placement::x86_64::refused;

/// The instruction at an address, if there is one.
pub(super) fn decode(text: &impl Text, address: u64) -> Option<Effect> {
    let mut buffer = [0; LONGEST];
    let code = text.code(address, &mut buffer);
    let instruction = instruction(code, address)?;
    let pointer = instruction
        .is_ip_rel_memory_operand()
        .then(|| instruction.ip_rel_memory_address());
    let target = instruction.near_branch_target();
    let flow = match instruction.flow_control() {
        FlowControl::Next if instruction.mnemonic() == Mnemonic::Endbr64 => Flow::Pad,
        FlowControl::Next => Flow::On,
        FlowControl::Call => Flow::Call(Place::Address(target)),
        FlowControl::IndirectCall => Flow::Call(pointer.map_or(Place::Register, Place::Pointer)),
        FlowControl::ConditionalBranch => Flow::Branch(target),
        FlowControl::UnconditionalBranch => Flow::Jump(Place::Address(target)),
        // A `notrack jmp`, for example, is refused.
        FlowControl::IndirectBranch | FlowControl::Return if refused(code) => {
            Flow::Jump(Place::Computed)
        }
        FlowControl::IndirectBranch => Flow::Jump(match pointer {
            Some(pointer) => Place::Pointer(pointer),
            None if instruction.op0_kind() == OpKind::Register => Place::Register,
            None => Place::Computed,
        }),
        FlowControl::Return => Flow::Return,
        FlowControl::Exception | FlowControl::Interrupt | FlowControl::XbeginXabortXend => {
            Flow::End
        }
    };
    let takes = match instruction.mnemonic() {
        Mnemonic::Lea => pointer.map(Place::Address),
        Mnemonic::Mov if instruction.op0_kind() == OpKind::Register => pointer.map(Place::Pointer),
        _ => None,
    };
    Some(Effect {
        next: instruction.next_ip(),
        flow,
        stack: stack(&instruction),
        writes: writes_memory(&instruction),
        takes,
    })
}

/// The pointer through which the stub at this address jumps. `None` if the code there is not a stub.
pub fn stub(text: &impl Text, address: u64) -> Option<u64> {
    let mut step = decode(text, address)?;
    if step.flow == Flow::Pad {
        step = decode(text, step.next)?;
    }
    match step.flow {
        Flow::Jump(Place::Pointer(pointer)) => Some(pointer),
        _ => None,
    }
}

fn instruction(code: &[u8], address: u64) -> Option<Instruction> {
    let mut decoder = Decoder::with_ip(64, code, address, DecoderOptions::NONE);
    decoder
        .can_decode()
        .then(|| decoder.decode())
        .filter(|instruction| !instruction.is_invalid())
}

fn writes_memory(instruction: &Instruction) -> bool {
    instruction.op_count() > 0
        && instruction.op0_kind() == OpKind::Memory
        && !matches!(
            instruction.mnemonic(),
            Mnemonic::Cmp | Mnemonic::Test | Mnemonic::Nop | Mnemonic::Bt
        )
}

fn stack(instruction: &Instruction) -> Stack {
    let displacement = instruction.memory_displacement64().cast_signed();
    match instruction.code() {
        Code::Mov_r64_rm64 | Code::Mov_rm64_r64
            if instruction.op0_kind() == OpKind::Register
                && instruction.op1_kind() == OpKind::Register =>
        {
            match (instruction.op0_register(), instruction.op1_register()) {
                (Register::RBP, Register::RSP) => Stack::SetsFrame(0),
                (Register::RSP, Register::RBP) => Stack::ToFrame(0),
                (Register::RSP, _) => Stack::Lost,
                _ => Stack::Same,
            }
        }
        Code::Leaveq => Stack::ToFrame(8),
        Code::Lea_r64_m if instruction.op0_register() == Register::RSP => {
            let plain = instruction.memory_index() == Register::None;
            match instruction.memory_base() {
                Register::RSP if plain => Stack::Grows(-displacement),
                Register::RBP if plain => Stack::ToFrame(displacement),
                _ => Stack::Lost,
            }
        }
        Code::Sub_rm64_imm8 | Code::Sub_rm64_imm32 | Code::Add_rm64_imm8 | Code::Add_rm64_imm32
            if instruction.op0_kind() == OpKind::Register
                && instruction.op0_register() == Register::RSP =>
        {
            let bytes = instruction.immediate(1).cast_signed();
            let grows = instruction.mnemonic() == Mnemonic::Sub;
            Stack::Grows(if grows { bytes } else { -bytes })
        }
        _ if instruction.is_stack_instruction() => {
            Stack::Grows(-i64::from(instruction.stack_pointer_increment()))
        }
        _ if instruction.op_count() > 0
            && instruction.op0_kind() == OpKind::Register
            && instruction.op0_register().full_register() == Register::RSP
            && !matches!(instruction.mnemonic(), Mnemonic::Cmp | Mnemonic::Test) =>
        {
            Stack::Lost
        }
        _ => Stack::Same,
    }
}
