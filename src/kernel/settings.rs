//! How the BPF programs are to be loaded, and which processes they follow. `load` does the loading.

use std::str::FromStr;
use std::time::Duration;

use crate::kernel::automaton::NameAutomaton;
use crate::kernel::method::{Holds, Method};
use crate::kernel::rule_reading::RuleOptions;
use crate::kernel::skeletons::types::limits;
use crate::model::scan::ScanWanted;
use crate::os::cgroup::Cgroup;

/// How the programs are to be loaded.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Entries in the table of live blocks.
    pub max_blocks: u32,
    /// The method to use. `None`: the best method that works.
    pub method: Option<Method>,
    /// Keep every thread that is started in the slower table.
    pub all_late: bool,
    /// How many of the two programs for each event of a task ignore half of the events: 0 to 2. For tests.
    pub misses: u32,
    /// How much longer it takes to attach probes of a kind to a file. For tests.
    pub attach_delay: Duration,
    /// The most places where processes are held. Fewer places are used if this kernel cannot hold there.
    pub holds: Holds,
    pub scope: Scope,
    /// The processes that the probes are for, by their pids as memleak sees them, if this kernel can put probes into single
    /// processes. Empty: probes are for every process.
    pub only: Vec<u32>,
    /// Whether copies of the C library count, too.
    pub inside: bool,
    /// Whether all that is counted inside is counted by probes, too. For tests.
    pub compares: bool,
    pub wanted: Wanted,
    pub recorded: Recorded,
}

/// What is recorded beside the counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recorded {
    /// Command lines.
    pub args: bool,
    /// Variables of environments, by their names: at most [`MAX_LABELS`].
    pub labels: Vec<LabelName>,
    pub reads: Reads,
    /// `None`: allocations are not attributed to call stacks.
    pub stacks: Option<StackSettings>,
}

/// How call stacks are recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StackSettings {
    /// Entries in the table of call stacks, a power of two.
    pub table: u32,
    /// Where they cannot be recorded, memleak fails. Otherwise it counts without them.
    pub required: bool,
    /// Whether stacks are reported by which nothing leaked.
    pub all: bool,
    /// Of running processes, only blocks that are at least so old are of interest. Their times are recorded.
    pub older: Option<Duration>,
    /// How many of a thread's first walks are neither remembered nor looked up.
    pub few_walks: u32,
    pub reading: RuleOptions,
}

/// Why no call stacks are recorded, though they were wanted where that is possible.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoStacks {
    /// The kernel cannot run the programs that unwind.
    Kernel,
    /// Their tables would take memory that others may need.
    Memory,
    /// Code in the processes counts.
    Inside,
}

impl NoStacks {
    /// The reason, for people.
    pub fn phrase(self) -> &'static str {
        match self {
            Self::Kernel => "this kernel cannot unwind them",
            Self::Inside => "what is counted inside has none",
            Self::Memory => "too little memory is left for their tables",
        }
    }
}

/// Which processes are held at their ends, so that their memory can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reads {
    /// Where neither the process nor others can notice it (Linux 6.18).
    pub unseen: ScanWanted,
    /// Elsewhere.
    pub elsewhere: ScanWanted,
    /// How long a process may be held while its memory is read.
    pub timeout: Duration,
    /// How much longer a process is held. For tests.
    pub delay: Duration,
}

impl Reads {
    /// No process is held.
    pub const NONE: Self = Self {
        unseen: ScanWanted::Never,
        elsewhere: ScanWanted::Never,
        timeout: Duration::ZERO,
        delay: Duration::ZERO,
    };

    /// Those that are held by a kernel that can hold processes at these places.
    pub(super) fn wanted(&self, holds: Holds) -> ScanWanted {
        match holds {
            Holds::Everywhere => self.unseen,
            Holds::Loader => self.elsewhere,
            Holds::Nowhere => ScanWanted::Never,
        }
    }

    /// Whether processes are read where a kernel can hold them at these places.
    pub(super) fn reading(&self, holds: Holds) -> Reading {
        match holds {
            _ if self.wanted(holds).is_any() => Reading::On,
            // `elsewhere` has only what was asked for.
            Holds::Nowhere if self.elsewhere.is_any() => Reading::Impossible(self.elsewhere),
            Holds::Nowhere | Holds::Loader | Holds::Everywhere => Reading::Off,
        }
    }
}

/// Whether processes are read at their ends, as far as this kernel can hold them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reading {
    /// Nobody asked.
    Off,
    /// Those that are wanted are read.
    On,
    /// The wanted ones would be read, but this kernel cannot hold a process at its end.
    Impossible(ScanWanted),
}

/// Which processes the kernel side follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// A command, from its exec on, and all processes that it starts.
    Tree,
    /// Running processes and, with `children`, all processes that they have started and will start.
    Chosen { children: bool },
    /// Every wanted process of the machine, except memleak itself.
    All,
}

impl Scope {
    /// Whether children of the chosen processes are chosen, too.
    pub(super) fn has_children(self) -> bool {
        self == Self::Chosen { children: true }
    }
}

/// Which processes are wanted. An empty list excludes no process. With [`Scope::All`], only wanted processes are
/// followed. With [`Scope::Chosen`], the kernel side marks processes that are in none of the control groups.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// Real user ids, as in the initial user namespace.
    pub uids: Vec<u32>,
    pub cgroups: Vec<Cgroup>,
    /// `None`: every command name is wanted, or there are too many patterns for the kernel side.
    pub names: Option<NameAutomaton>,
}

/// The most control groups that can be named.
pub const MAX_CGROUPS: usize = limits::MAX_CGROUPS.0 as usize;

/// How many variables of environments can be recorded.
pub const MAX_LABELS: usize = limits::MAX_LABELS.0 as usize;

/// The longest name of such a variable, in bytes.
pub const LONGEST_LABEL: usize = limits::LABEL_WORDS.0 as usize * 8 - 1;

/// The name of a variable of an environment, as shells have them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LabelName(String);

impl LabelName {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for LabelName {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        if name.is_empty()
            || name.starts_with(|c: char| c.is_ascii_digit())
            || !name.bytes().all(is_plain)
        {
            return Err("it is the name of a variable: letters, digits and _".to_owned());
        }
        if name.len() > LONGEST_LABEL {
            return Err(format!("a name can have {LONGEST_LABEL} bytes at most"));
        }
        Ok(Self(name.to_owned()))
    }
}
