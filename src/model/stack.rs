//! Call stacks, and what was allocated by them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use crate::model::reach::{Amount, StackReached};

/// The calls that led to an allocation, as they were found on the stack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallStack {
    /// The innermost first. The allocator's own frames are left out.
    pub frames: Vec<Frame>,
    pub end: WalkEnd,
    /// How many frames were found by frame pointers alone, which may have left out others.
    pub guessed: u16,
}

impl CallStack {
    /// Whether some of its code is in no file: made at run time, for example.
    pub fn has_code_without_file(&self) -> bool {
        let mut frames = self.frames.iter();
        frames.any(|frame| matches!(frame.place, CodePlace::Address(_)))
    }
}

/// A frame: where a call returns to, or where code was interrupted by a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Frame {
    pub place: CodePlace,
    /// A signal has interrupted the code at this instruction. It does not follow a call.
    pub interrupted: bool,
}

/// A place in code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum CodePlace {
    /// In a file, by the file's number and the offset in the file.
    File { module: u32, offset: u64 },
    /// An address in memory, of code that is in no known file.
    Address(u64),
}

/// Why a walk up a stack has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum WalkEnd {
    /// The outermost function was reached.
    Complete,
    /// There are more frames than are recorded.
    TooDeep,
    /// Code without unwind rules, and no frame pointer that leads on.
    NoRule,
    /// An unwind rule of an unknown kind.
    OddRule,
    /// Code of a file whose rules were not loaded yet.
    Pending,
    /// The stack's memory could not be read.
    Unreadable,
    /// A return address that leads to no code.
    NoCode,
    /// Another probe has replaced a return address, and the original is not known.
    NoCall,
    /// Other threads were changing the mappings, and nothing was known of the code.
    Busy,
}

impl WalkEnd {
    /// All reasons.
    pub const ALL: [Self; 9] = [
        Self::Complete,
        Self::TooDeep,
        Self::NoRule,
        Self::OddRule,
        Self::Pending,
        Self::Unreadable,
        Self::NoCode,
        Self::NoCall,
        Self::Busy,
    ];

    /// Why callers are missing, for people.
    pub fn phrase(self) -> &'static str {
        match self {
            Self::Complete => "the outermost function",
            Self::TooDeep => "the stack is deeper",
            Self::NoRule => "code without unwind rules",
            Self::OddRule => "an unwind rule of an unknown kind",
            Self::Pending => "unwind rules that were not loaded yet",
            Self::Unreadable => "the stack could not be read",
            Self::NoCode => "a return address that leads to no code",
            Self::NoCall => "a return address that another probe has replaced",
            Self::Busy => "the mappings were being changed",
        }
    }
}

/// What an image has allocated by one call stack, and never freed. Sizes are in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StackShare {
    pub stack: Arc<CallStack>,
    pub alloc_bytes: u64,
    pub alloc_count: u64,
    pub leaked_bytes: u64,
    pub leaked_blocks: u64,
    /// How these blocks could be reached. `None`: it is not known.
    pub reached: Option<StackReached>,
}

/// What an image has allocated by known stacks that are not in its list. In a run, it has freed all that it allocated by
/// these: they are only listed if that was asked for. An image that was saved lists none, as its stacks come after it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UnlistedStacks {
    /// What was never freed of that.
    pub leaked: Amount,
    pub allocated: Amount,
    /// How many calls have a stack without its outermost frames, by the reason.
    pub early: BTreeMap<WalkEnd, u64>,
}

impl UnlistedStacks {
    /// Adds a stack that is not listed, by which nothing leaked.
    pub fn add(&mut self, stack: &CallStack, allocated: Amount) {
        // A stack without a frame says nothing.
        if stack.frames.is_empty() {
            return;
        }
        self.allocated += allocated;
        if stack.end != WalkEnd::Complete {
            *self.early.entry(stack.end).or_default() += allocated.blocks;
        }
    }
}

/// A call stack whose frames have names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedStack {
    /// The same in every run and for every build, as long as the functions have the same names.
    pub identity: u64,
    /// The innermost first. Stacks share frames.
    pub frames: Vec<Arc<NamedFrame>>,
    pub end: WalkEnd,
    pub guessed: u16,
}

impl NamedStack {
    /// The frames, the innermost first.
    pub fn frames(&self) -> impl DoubleEndedIterator<Item = &NamedFrame> + ExactSizeIterator {
        self.frames.iter().map(Arc::as_ref)
    }
}

/// A frame with what is known of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct NamedFrame {
    /// As in the source.
    pub function: Option<String>,
    /// As in the symbol table.
    pub linkage: Option<String>,
    /// The file with the code.
    pub module: Option<PathBuf>,
    pub build_id: Option<Vec<u8>>,
    /// The ELF address to which the call returns. Without a module, the address in memory.
    pub offset: u64,
    /// The source file.
    pub file: Option<PathBuf>,
    pub line: Option<u32>,
    /// The compiler has put the function into the one of the next frame.
    pub inlined: bool,
}
