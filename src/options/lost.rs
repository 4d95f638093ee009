//! The options that decide which processes are scanned at their ends, to tell what they lost from what they could still
//! reach.

use std::time::Duration;

use clap::{Args, ValueEnum};

use crate::model::limits::Limits;
use crate::model::scan::ScanWanted;
use crate::text::units::parse_seconds;

/// How long a process is held at the most by default, in seconds.
const DEFAULT_TIMEOUT: &str = "2";

/// The longest time that a process may be held.
const MOST_TIMEOUT: Duration = Duration::from_secs(3600);

/// Which processes are scanned, and for how long they may be held for that.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct LostArgs {
    /// Tell lost from reachable
    ///
    /// auto, always or never. A process that ends with blocks that it never freed is held at its last instruction. Its
    /// memory is searched for pointers to these blocks, and it goes on. auto: in run, where the kernel lets memleak do
    /// that unseen; not with -p and -a. never: only where --fail-on-lost or --fail-on-total-lost cannot be judged
    /// otherwise. Without a value: always.
    #[arg(long, value_enum, value_name = "WHEN", default_value_t)]
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "always")]
    #[arg(hide_possible_values = true)]
    pub lost: Lost,

    /// Hold a process for that long at the most
    ///
    /// Counted from the moment at which memleak begins to read its memory. After that time the process goes on, and what
    /// it lost is not known.
    #[arg(long, value_name = "SECONDS", default_value = DEFAULT_TIMEOUT)]
    #[arg(value_parser = parse_timeout, hide_short_help = true)]
    pub lost_timeout: Duration,
}

/// When to tell lost from reachable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Lost {
    /// In `run`, where the kernel lets memleak hold processes unseen; elsewhere as `Never`.
    #[default]
    Auto,
    /// For each process with blocks that it never freed.
    Always,
    /// Only where a gate asks for it.
    Never,
}

impl LostArgs {
    /// Which processes are to be scanned. `auto`: whether `auto` scans here. `limits`: the gates of what is lost.
    pub(super) fn wanted(&self, auto: bool, limits: Limits) -> ScanWanted {
        match self.lost {
            Lost::Always => ScanWanted::Always,
            Lost::Auto if auto => ScanWanted::Always,
            Lost::Auto | Lost::Never => ScanWanted::for_gates(limits),
        }
    }
}

fn parse_timeout(text: &str) -> Result<Duration, String> {
    let time = parse_seconds(text)?;
    match time > Duration::ZERO && time <= MOST_TIMEOUT {
        true => Ok(time),
        false => Err("it is a number of seconds, more than 0 and at most 3600".to_owned()),
    }
}
