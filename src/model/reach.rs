//! Whether the blocks that an image never freed could still be reached when it ended: the verdict that valgrind calls
//! definitely lost, indirectly lost, possibly lost and still reachable.

/// What is known of the blocks that an image never freed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    Known(Reached),
    Unknown(ReachUnknown),
    /// There is nothing to know: the image was replaced by an exec, or still runs.
    NotJudged,
}

/// How the blocks that an image never freed could be reached at its end. Each block is in one of the amounts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reached {
    /// Nothing points to the block.
    pub definite: Amount,
    /// Only blocks that are lost themselves point to the block.
    pub indirect: Amount,
    /// Something points into the block, but nothing points to its start.
    pub possible: Amount,
    /// The program could have freed the block.
    pub reachable: Amount,
}

impl std::ops::AddAssign for Reached {
    fn add_assign(&mut self, other: Self) {
        self.definite += other.definite;
        self.indirect += other.indirect;
        self.possible += other.possible;
        self.reachable += other.reachable;
    }
}

impl Reached {
    /// What the program could not have freed any more.
    pub fn lost(&self) -> Amount {
        self.definite + self.indirect
    }

    /// All blocks.
    pub fn sum(&self) -> Amount {
        self.lost() + self.possible + self.reachable
    }
}

/// How the blocks could be reached that an image allocated by one call stack, and never freed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StackReached {
    pub blocks: Reached,
    /// What is lost with the definitely lost ones: indirectly lost blocks of any stack to which only these lead.
    pub owned: Amount,
}

impl StackReached {
    /// The same with each indirectly lost block under its owner: whoever mends the owner's leak mends both.
    pub fn under_owners(self) -> Reached {
        Reached {
            indirect: self.owned,
            ..self.blocks
        }
    }
}

/// Some blocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amount {
    /// The sum of their requested sizes.
    pub bytes: u64,
    pub blocks: u64,
}

/// The sums saturate: an overflow must not end the report.
impl std::ops::Add for Amount {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            bytes: self.bytes.saturating_add(other.bytes),
            blocks: self.blocks.saturating_add(other.blocks),
        }
    }
}

impl std::ops::AddAssign for Amount {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

/// Why it is not known how an image's blocks could be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ReachUnknown {
    /// A signal ended the process, or arrived while it was held.
    Signal,
    /// A timer or a limit of processor time would have ended the process while it was held.
    Timer,
    /// The process ended by a system call that no function of the C library made.
    RawExit,
    /// Its memory was not read within `--lost-timeout`.
    TooLong,
    /// Its threads could not be stopped, and scans did not agree.
    Unsure,
    /// Another process goes on in the same memory.
    SharedHeap,
    /// A real-time task is never held.
    Realtime,
    /// Reading its memory would take more memory than memleak may use.
    Memory,
    /// memleak may not read its memory.
    Rights,
    /// This kernel cannot hold a process at its end.
    Kernel,
    /// Not asked for.
    Off,
}

impl ReachUnknown {
    /// All reasons.
    pub const ALL: [Self; 11] = [
        Self::Signal,
        Self::Timer,
        Self::RawExit,
        Self::TooLong,
        Self::Unsure,
        Self::SharedHeap,
        Self::Realtime,
        Self::Memory,
        Self::Rights,
        Self::Kernel,
        Self::Off,
    ];

    /// The word that JSON and CSV have for it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Signal => "signal",
            Self::Timer => "timer",
            Self::RawExit => "raw_exit",
            Self::TooLong => "too_long",
            Self::Unsure => "unsure",
            Self::SharedHeap => "shared_heap",
            Self::Realtime => "realtime",
            Self::Memory => "memory",
            Self::Rights => "rights",
            Self::Kernel => "kernel",
            Self::Off => "off",
        }
    }
    /// In a few words, for people.
    pub fn phrase(self) -> &'static str {
        match self {
            Self::Signal => "ended by a signal",
            Self::Timer => "a timer was about to expire",
            Self::RawExit => "ended by a system call of its own",
            Self::TooLong => "not read within --lost-timeout",
            Self::Unsure => "scans disagreed",
            Self::SharedHeap => "memory shared with another process",
            Self::Realtime => "real-time task",
            Self::Memory => "too large to read",
            Self::Rights => "memleak may not read it",
            Self::Kernel => "this kernel cannot hold it",
            Self::Off => "not scanned",
        }
    }
}
