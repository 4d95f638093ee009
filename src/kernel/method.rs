//! How probes can be attached, and where processes can be held.

use std::fmt;

/// The kinds of uprobes, the best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Method {
    /// One program at entry and return, one link for all functions (6.13).
    Session,
    /// One link for all entries, one for all returns (6.6).
    Multi,
    /// A perf event for each function, entry and return.
    PerfEvent,
    /// The same, with a program for each of them, for kernels that lack what the others' programs use.
    Separate,
}

impl Method {
    /// What to try first.
    pub const BEST: Method = Method::Session;

    /// What to try where this one does not work.
    pub fn next_best(self) -> Option<Method> {
        match self {
            Method::Session => Some(Method::Multi),
            Method::Multi => Some(Method::PerfEvent),
            // A kernel that takes no other is known by what it has: to try would do harm.
            Method::PerfEvent | Method::Separate => None,
        }
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Method::Session => "session uprobes",
            Method::Multi => "multi uprobes",
            Method::PerfEvent | Method::Separate => "perf-event uprobes",
        })
    }
}

/// Where a process can be held until the files that it has mapped have been examined.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Holds {
    /// Nowhere: only what is found before the command starts is probed in time.
    Nowhere,
    /// Where the dynamic loader tells what it has mapped. A static program goes on unheld.
    Loader,
    /// There, and after every exec.
    Everywhere,
}

impl Holds {
    pub(super) fn at_loader(self) -> bool {
        self >= Holds::Loader
    }
}
