//! The ways to attach probes, and the places where processes can be held. `features` finds out what this kernel can do.

use std::fmt;

/// The kinds of uprobes, the best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Method {
    /// One program at entry and return, and one link for all functions (6.13).
    Session,
    /// One link for all entries, and one for all returns (6.6).
    Multi,
    /// One perf event for each entry and one for each return.
    PerfEvent,
    /// Perf events, each with a program of its own. For kernels that lack what the programs for newer kernels use.
    Separate,
}

impl Method {
    /// The method to try first.
    pub const BEST: Method = Method::Session;

    /// The method to try if this one does not work.
    pub fn next_best(self) -> Option<Method> {
        match self {
            Method::Session => Some(Method::Multi),
            Method::Multi => Some(Method::PerfEvent),
            // `Separate` is chosen by the features of the kernel. Trying other methods there would do harm.
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
    /// Nowhere: only files found before the command starts are probed in time.
    Nowhere,
    /// At the place where the dynamic loader reports what it has mapped. A static program is not held.
    Loader,
    /// At the dynamic loader, and after every exec.
    Everywhere,
}

impl Holds {
    /// The next fewer places.
    pub(super) fn fewer(self) -> Self {
        match self {
            Self::Everywhere => Self::Loader,
            Self::Loader | Self::Nowhere => Self::Nowhere,
        }
    }
}
