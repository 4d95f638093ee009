//! The rules by which a stack is unwound: how to get from a frame to its caller.
//!
//! They are what compilers write for exceptions and debuggers (DWARF 5, section 6.4; the psABIs of x86-64 and aarch64),
//! in a form that a program in the kernel can apply (`bpf/stacks.bpf.h`). `file_rules` reads those of a whole file.

use clap::ValueEnum;
use gimli::{
    CfaRule, Encoding, Expression, Operation, Reader, Register, RegisterRule, UnwindExpression,
    UnwindTableRow,
};

/// Bytes of a word on the stack.
const WORD: i64 = 8;

/// The registers that an unwinder needs, by their DWARF numbers.
#[cfg(target_arch = "x86_64")]
mod registers {
    use gimli::{Register, X86_64};

    pub const STACK: Register = X86_64::RSP;
    pub const FRAME: Register = X86_64::RBP;
    pub const THIRD: Option<Register> = Some(X86_64::RBX);
    pub const RETURN: Register = X86_64::RA;
}
#[cfg(target_arch = "aarch64")]
mod registers {
    use gimli::{AArch64, Register};

    pub const STACK: Register = AArch64::SP;
    pub const FRAME: Register = AArch64::X29;
    pub const THIRD: Option<Register> = None;
    pub const RETURN: Register = AArch64::X30;
}

/// How to get from a frame to its caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum UnwindRule {
    /// No table says anything of this address.
    Missing,
    /// There is no caller: this is the outermost function of a thread or of a coroutine.
    Outermost,
    /// The kernel has made this frame, to call a signal handler. All registers are in it.
    Signal,
    /// An entry of a procedure linkage table. It has pushed a word on the stack from the byte `pushed_at` of an entry of
    /// 16 bytes on. (The x86-64 psABI; linkers write one rule for the whole table.)
    Linkage {
        pushed_at: u8,
    },
    Plain(StackRule),
    /// There is a rule, but not of a kind above.
    Unknown,
}

/// A rule that reads words at fixed distances.
///
/// The end of a frame is the canonical frame address (CFA): the stack pointer that the caller has when the call has
/// returned. All distances are in words of 8 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StackRule {
    /// The register that the end is computed from.
    pub base: Base,
    /// From the base to the end.
    pub distance: i32,
    /// The end is not there. It is the word that is there, plus this.
    pub indirect: Option<u8>,
    /// Never [`Saved::AtFrame`].
    pub return_address: Saved,
    pub frame_pointer: Saved,
    /// `rbx`. `None`: nobody knows.
    pub third: Option<Saved>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Base {
    StackPointer,
    FramePointer,
    /// `rbx`: where a dynamic loader's resolver keeps its stack pointer while it saves registers.
    Third,
}

/// Where the value is that a register has in the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Saved {
    InRegister,
    /// So many words below the frame's end: 1 to 254.
    BelowEnd(u8),
    /// So many words from where this frame's frame pointer points to. Frames that have a larger alignment than the stack
    /// save registers so.
    AtFrame(i8),
}

/// The most words below a frame's end that a rule can name.
const MOST_BELOW: u8 = 254;

/// Kinds of rules. Tests leave one out, to check that they see the difference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum RuleKind {
    /// Frames that are found by the stack pointer.
    StackPointer,
    /// Frames that are found by the frame pointer.
    FramePointer,
    /// Frames that are found by rbx.
    Third,
    /// Frames whose end is a word on the stack.
    Indirect,
    /// Frame pointers that are saved at a distance from the frame pointer.
    AtFrame,
    /// Frames that the kernel has made.
    Signal,
    /// Entries of procedure linkage tables.
    Linkage,
    /// Frames that have no caller.
    Outermost,
    /// All that is in .debug_frame alone.
    DebugFrame,
}

impl UnwindRule {
    fn is_of(self, kind: RuleKind) -> bool {
        let plain = match self {
            UnwindRule::Plain(plain) => plain,
            UnwindRule::Signal => return kind == RuleKind::Signal,
            UnwindRule::Linkage { .. } => return kind == RuleKind::Linkage,
            UnwindRule::Outermost => return kind == RuleKind::Outermost,
            UnwindRule::Missing | UnwindRule::Unknown => return false,
        };
        match kind {
            RuleKind::StackPointer => plain.base == Base::StackPointer,
            RuleKind::FramePointer => plain.base == Base::FramePointer,
            RuleKind::Third => plain.base == Base::Third,
            RuleKind::Indirect => plain.indirect.is_some(),
            RuleKind::AtFrame => matches!(plain.frame_pointer, Saved::AtFrame(_)),
            RuleKind::Signal | RuleKind::Linkage | RuleKind::Outermost | RuleKind::DebugFrame => {
                false
            }
        }
    }

    /// The rule, unless it is of the kind that is left out.
    pub(super) fn without(self, left_out: RuleKind) -> Self {
        match self.is_of(left_out) {
            true => UnwindRule::Unknown,
            false => self,
        }
    }
}

/// The part of a frame's end that is given by an expression.
enum FrameEnd {
    Word {
        base: Register,
        offset: i64,
        plus: u64,
    },
    Linkage {
        pushed_at: u64,
    },
}

impl UnwindRule {
    /// What a row of a table states. `expression` looks an expression up.
    pub(super) fn of<R: Reader<Offset = usize>>(
        row: &UnwindTableRow<usize>,
        encoding: Encoding,
        expression: impl Fn(&UnwindExpression<usize>) -> Option<Expression<R>>,
    ) -> Self {
        let operations = |at: &UnwindExpression<usize>| decoded(expression(at)?, encoding);
        let return_rule = row.register(registers::RETURN);
        if matches!(return_rule, Some(RegisterRule::Undefined)) {
            return UnwindRule::Outermost;
        }
        let (base, offset, indirect) = match row.cfa() {
            CfaRule::RegisterAndOffset { register, offset } => (*register, *offset, None),
            CfaRule::Expression(at) => match operations(at).as_deref().and_then(end_by) {
                Some(FrameEnd::Word { base, offset, plus }) => (base, offset, Some(plus)),
                Some(FrameEnd::Linkage { pushed_at }) => match u8::try_from(pushed_at) {
                    Ok(pushed_at @ 0..=15) => return UnwindRule::Linkage { pushed_at },
                    _ => return UnwindRule::Unknown,
                },
                None => return UnwindRule::Unknown,
            },
        };
        let saved = |rule: Option<RegisterRule<usize>>| match rule {
            None | Some(RegisterRule::SameValue | RegisterRule::Undefined) => {
                Some(Saved::InRegister)
            }
            Some(RegisterRule::Offset(offset)) => below(offset).map(Saved::BelowEnd),
            Some(RegisterRule::Expression(at)) => match operations(&at)?[..] {
                [
                    Operation::RegisterOffset {
                        register: registers::FRAME,
                        offset,
                        ..
                    },
                ] => i8::try_from(words(offset)?).ok().map(Saved::AtFrame),
                _ => None,
            },
            _ => None,
        };
        let plain = || {
            let return_address = saved(return_rule)?;
            let in_register = return_address == Saved::InRegister;
            if matches!(return_address, Saved::AtFrame(_))
                || in_register && cfg!(target_arch = "x86_64")
            {
                return None;
            }
            Some(StackRule {
                base: match base {
                    registers::STACK => Base::StackPointer,
                    registers::FRAME => Base::FramePointer,
                    other if Some(other) == registers::THIRD => Base::Third,
                    _ => return None,
                },
                distance: words(offset)?.try_into().ok()?,
                indirect: match indirect {
                    Some(plus) => Some(words(plus.try_into().ok()?)?.try_into().ok()?),
                    None => None,
                },
                return_address,
                frame_pointer: saved(row.register(registers::FRAME))?,
                third: registers::THIRD.and_then(|third| saved(row.register(third))),
            })
        };
        plain().map_or(UnwindRule::Unknown, UnwindRule::Plain)
    }
}

/// The operations of an expression. `None` if they cannot be read, or are more than any that is known here.
fn decoded<R: Reader<Offset = usize>>(
    expression: Expression<R>,
    encoding: Encoding,
) -> Option<Vec<Operation<R>>> {
    const MOST: usize = 9;
    let mut operations = Vec::new();
    let mut rest = expression.operations(encoding);
    while let Some(operation) = rest.next().ok()? {
        if operations.len() == MOST {
            return None;
        }
        operations.push(operation);
    }
    Some(operations)
}

/// Recognises the expressions that compilers, linkers and hand-written assembly use for a frame's end.
fn end_by<R: Reader<Offset = usize>>(operations: &[Operation<R>]) -> Option<FrameEnd> {
    use Operation::{
        And, Deref, Ge, Plus, PlusConstant, RegisterOffset, Shl, UnsignedConstant as Constant,
    };
    match operations {
        [
            RegisterOffset {
                register, offset, ..
            },
            Deref { size: 8, .. },
            rest @ ..,
        ] => Some(FrameEnd::Word {
            base: *register,
            offset: *offset,
            plus: match rest {
                [] => 0,
                [PlusConstant { value }] => *value,
                _ => return None,
            },
        }),
        // rsp + 8 + ((rip & 15) >= pushed_at) * 8
        [
            RegisterOffset {
                register: registers::STACK,
                offset: 8,
                ..
            },
            RegisterOffset {
                register: registers::RETURN,
                offset: 0,
                ..
            },
            Constant { value: 15 },
            And,
            Constant { value: pushed_at },
            Ge,
            Constant { value: 3 },
            Shl,
            Plus,
        ] => Some(FrameEnd::Linkage {
            pushed_at: *pushed_at,
        }),
        _ => None,
    }
}

fn words(bytes: i64) -> Option<i64> {
    (bytes % WORD == 0).then_some(bytes / WORD)
}

/// Words below a frame's end.
fn below(offset: i64) -> Option<u8> {
    let below = u8::try_from(words(offset)?.checked_neg()?).ok()?;
    (1..=MOST_BELOW).contains(&below).then_some(below)
}
