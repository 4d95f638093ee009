//! What one instruction does, and what is known of the code that it stands in.

use std::collections::BTreeSet;

/// A function with more instructions is given up: the operators of known allocators have a few hundred.
pub(super) const MAX_INSTRUCTIONS: usize = 8192;

/// No instruction has more bytes than this.
pub const LONGEST: usize = 15;

/// The code of a file, and what is known of it.
pub trait Text {
    /// The code from an address on, as much of it as an instruction may have; empty outside of the file's code.
    fn code<'b>(&self, address: u64, buffer: &'b mut [u8; LONGEST]) -> &'b [u8];
    /// What the loader puts into the pointer at this address.
    fn pointer(&self, address: u64) -> Pointer;
    /// What is at this address, if it is the entry of a function with a row in the table.
    fn function(&self, address: u64) -> Option<Probed>;
}

/// What a pointer in a file's data points to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pointer {
    /// An address in the same file.
    Here(u64),
    /// A function that never returns.
    NeverReturns,
    /// A function of another file that carries a return probe there.
    Probed,
    Unknown,
}

/// What the table says of a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probed {
    /// It gives out blocks, and its return is probed.
    Allocates,
    /// The same, and may throw.
    MayThrow,
    Frees,
}

/// What following a function found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Followed {
    /// Addresses of its `ret`s.
    pub returns: BTreeSet<u64>,
    /// Addresses of jumps that leave it for code that cannot be followed.
    pub exits: BTreeSet<u64>,
    /// Calls of, and jumps to, functions that do the work.
    pub inner: BTreeSet<u64>,
    /// Other functions of the file that it calls.
    pub callees: BTreeSet<u64>,
    /// It never returns but by, or after a call of, such a function: that one's probes see all it does.
    pub delegates: bool,
}

/// Why a function could not be followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GaveUp {
    /// It jumps to an address that it computes.
    ComputedJump,
    /// It is too long, or not code.
    TooLong,
}

/// What an instruction does, as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Step {
    /// The instruction behind it.
    pub(super) next: u64,
    pub(super) flow: Flow,
    pub(super) stack: Stack,
    /// It writes to memory that is not its own stack's.
    pub(super) writes: bool,
    /// It takes an address, or what a pointer at an address holds.
    pub(super) takes: Option<Place>,
}

/// Where control goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flow {
    On,
    /// On, from where a jump through a register may land.
    Pad,
    Call(Place),
    Jump(Place),
    /// On, or there.
    Branch(u64),
    Return,
    /// Nowhere.
    End,
}

/// Where a call or a jump goes, or an address comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Address(u64),
    /// To what the loader puts into the pointer at this address.
    Pointer(u64),
    Register,
    /// By a table of jumps, or in a way that no probe can be on.
    Computed,
}

/// What becomes of the stack pointer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stack {
    Same,
    /// So many more bytes are on the stack.
    Grows(i64),
    /// The frame pointer is set to so many bytes above the stack pointer.
    SetsFrame(i64),
    /// The stack pointer is set to so many bytes above the frame pointer.
    ToFrame(i64),
    Lost,
}

/// What a function is followed for: which others may do its work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    Allocates,
    /// Frees, and it matters only whether it delegates.
    Frees,
    /// Frees, and may throw.
    FreesAndThrows,
}
