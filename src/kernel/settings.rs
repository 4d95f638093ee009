//! How the BPF programs are to be loaded, and which processes they follow.

use crate::kernel::automaton::NameAutomaton;
use crate::kernel::method::{Holds, Method};
use crate::kernel::skeletons::types::limits;
use crate::os::cgroup::Cgroup;

/// How the programs are to be loaded.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Entries in the table of live blocks.
    pub max_blocks: u32,
    /// The method to use; `None` for the best that works.
    pub method: Option<Method>,
    /// Keep every thread that is started in the slower table.
    pub all_late: bool,
    /// How many times, of two, half of what the kernel tells of tasks is to be missed.
    pub misses: u32,
    /// Where processes are to be held at the most; fewer places where this kernel cannot.
    pub holds: Holds,
    pub scope: Scope,
    pub wanted: Wanted,
}

/// Whom the kernel follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// A command, from its exec on, and all that it starts.
    Tree,
    /// Processes that are there already, and all that they start, unless without `children`.
    Chosen { children: bool },
    /// Every process of the machine but memleak itself, as far as it is wanted.
    All,
}

/// Which processes are wanted. Where a list is empty, it leaves nobody out. Out of all, only these are
/// followed; of those that are chosen, the kernel tells who is in none of the control groups.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// Real user ids, as the initial user namespace has them.
    pub uids: Vec<u32>,
    pub cgroups: Vec<Cgroup>,
    /// `None`: every command name, or too many patterns of them for the kernel.
    pub names: Option<NameAutomaton>,
}

/// How many control groups there can be.
pub const MAX_CGROUPS: usize = limits::MAX_CGROUPS.0 as usize;
