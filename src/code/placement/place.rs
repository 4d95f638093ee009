//! The result of placing a probe: where it is, and why. Choosing the place is left to the architectures' modules.

use std::fmt;

/// How many bytes from the entry are searched. Emulated instructions come early or not at all.
pub const WINDOW: usize = 64;

/// Where a probe goes, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// Bytes from the function's entry.
    pub offset: u64,
    /// The instruction at that place, as `-v` shows it.
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

/// Why a probe is where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The instruction at the entry is emulated.
    Entry,
    /// The first emulated instruction of the entry's basic block.
    FirstEmulated,
    /// The first instruction in the entry's basic block on which the kernel takes a probe. The block has no emulated
    /// instruction that could be used.
    FirstTaken,
    /// An instruction before the first emulated one changes a register that the probe's program reads.
    RegisterChanges,
    /// The basic block ends before an emulated instruction.
    BlockEnds,
    /// A jump lands between the entry and the first emulated instruction.
    JumpLands,
    /// No emulated instruction is near, or the code cannot be decoded.
    NoneFound,
    /// Not an entry: a function that may throw returns here.
    Returns,
    /// Not an entry: a function that may throw goes from here to code that could not be followed.
    Leaves,
    /// The function may throw, and its code could not be followed. Each of its calls is missed.
    Unfollowed,
}

impl Placement {
    /// The placement if `reason` rules out every emulated instruction: at the entry, or at the first instruction on
    /// which the kernel takes a probe.
    pub(super) fn single_stepped(offset: u64, instruction: String, reason: Reason) -> Self {
        Placement {
            offset,
            instruction,
            kind: Kind::SingleStepped,
            reason: match offset {
                0 => reason,
                _ => Reason::FirstTaken,
            },
        }
    }
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
            Reason::FirstTaken => {
                "first instruction that a probe can be on, arguments and stack as at entry"
            }
            Reason::RegisterChanges => {
                "at entry: a register that is read changes before an emulated instruction"
            }
            Reason::BlockEnds => "at entry: the basic block ends before an emulated instruction",
            Reason::JumpLands => "at entry: a jump lands before the first emulated instruction",
            Reason::NoneFound => "at entry: no emulated instruction near",
            Reason::Returns => "it may throw, so there is no return probe; it returns here",
            Reason::Leaves => {
                "it may throw, and goes to code that is not followed: such calls are missed"
            }
            Reason::Unfollowed => {
                "it may throw, and its code cannot be followed: its calls are missed"
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
        // A place where the function returns may lie before its entry, so the offset may be negative.
        let offset = offset.cast_signed();
        write!(f, "{offset:+} {instruction} ({kind}): {reason}")
    }
}
