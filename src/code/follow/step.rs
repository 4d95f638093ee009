//! The types of following a function: what one instruction does, what is known about the code, and the result.
//! Decoding is left to the architectures' modules, and following to `walk`.

use std::collections::BTreeSet;

/// A function with more instructions is not followed to its end. The operators of known allocators have a few
/// hundred.
pub(super) const MAX_INSTRUCTIONS: usize = 8192;

/// The most bytes of an instruction.
pub const LONGEST: usize = 15;

/// The code of a file, and what is known about the code.
pub trait Text {
    /// The code from an address on, as many bytes as an instruction may have. Empty outside the file's code.
    fn code<'b>(&self, address: u64, buffer: &'b mut [u8; LONGEST]) -> &'b [u8];
    /// What the loader stores in the pointer at this address.
    fn pointer(&self, address: u64) -> Pointer;
    /// The function whose entry is at this address, if the table has a row for it.
    fn function(&self, address: u64) -> Option<Probed>;
}

/// What a pointer in a file's data points to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pointer {
    /// An address in the same file.
    Here(u64),
    /// A function that never returns.
    NeverReturns,
    /// A function of another file that has a return probe there.
    Probed,
    /// Anything else.
    Unknown,
}

/// What the table says about a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probed {
    /// The function gives out blocks, and has a return probe.
    Allocates,
    /// The function gives out blocks and may throw, as far as the table knows. Its returns are probed one by one, unless
    /// it is proved that no exception leaves it.
    MayThrow,
    /// The function takes blocks back.
    Frees,
}

/// What following a function found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Followed {
    /// Addresses of the function's `ret`s.
    pub returns: BTreeSet<u64>,
    /// Addresses of jumps that leave the function for code that cannot be followed.
    pub exits: BTreeSet<u64>,
    /// Addresses of calls and jumps to functions that do the work.
    pub inner: BTreeSet<u64>,
    /// Other functions of the file that the function calls.
    pub callees: BTreeSet<u64>,
    /// Addresses of all calls.
    pub calls: BTreeSet<u64>,
    /// Addresses of jumps to a computed address within the function. The code behind them is not followed.
    pub tables: BTreeSet<u64>,
    /// Addresses of jumps that may leave the function, and on which the kernel takes no probe.
    pub unprobed: BTreeSet<u64>,
    /// Whether all code that the function jumps to with the stack pointer as at the entry is known for certain. A
    /// jump to a function that throws, and one whose target is guessed, are not.
    pub certain: bool,
    /// Each return of the function is by a jump to, or after a call of, a function that does the work. The probes of
    /// that other function then see everything.
    pub delegates: bool,
}

impl Followed {
    /// Whether a probe can be on each place where the function returns, or leaves for code that is not followed.
    pub fn has_all_ends(&self) -> bool {
        self.tables.is_empty() && self.unprobed.is_empty()
    }
}

/// The function is too long, or is not code, and could not be followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooLong;

/// The effects of an instruction that matter here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Effect {
    /// The address of the instruction behind this one.
    pub(super) next: u64,
    pub(super) flow: Flow,
    pub(super) stack: Stack,
    /// Whether the instruction writes to memory outside the function's own stack.
    pub(super) writes: bool,
    /// The address that the instruction loads into a register: given directly, or read from a pointer in memory.
    pub(super) takes: Option<Place>,
}

/// Where control goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flow {
    /// To the next instruction.
    On,
    /// To the next instruction. The instruction is a landing pad: a jump through a register may land on it.
    Pad,
    Call(Place),
    Jump(Place),
    /// To the next instruction, or to this address.
    Branch(u64),
    Return,
    /// Nowhere: the path ends here.
    End,
}

/// Where a call or a jump goes, or where an address comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// This address.
    Address(u64),
    /// The address that the loader stores in the pointer at this address.
    Pointer(u64),
    /// The address in a register.
    Register,
    /// An address from a jump table. Also stands for any jump on which the kernel takes no probe.
    Computed,
}

/// What an instruction does to the stack pointer and the frame pointer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stack {
    Same,
    /// The stack grows by so many bytes; it shrinks if the number is negative.
    Grows(i64),
    /// The frame pointer is set to so many bytes above the stack pointer.
    SetsFrame(i64),
    /// The stack pointer is set to so many bytes above the frame pointer.
    ToFrame(i64),
    /// The stack pointer becomes unknown.
    Lost,
}

/// The work of the function that is followed. It decides which other functions may do that work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    Allocates,
    /// Frees. It only matters whether the function delegates.
    Frees,
    /// Frees, and may throw.
    FreesAndThrows,
}
