//! What memleak was asked to do, as plain values, with the parsers of these values. Nothing is opened or looked up
//! here.

pub mod switches;

use std::ffi::OsString;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum, ValueHint};

use crate::find::notation::{self, Spec};
use crate::model::exit::{self, LeakExit};
use crate::model::gate::{Gate, Limits};
use crate::options::switches::TestArgs;
use crate::os::identity::UserSpec;
use crate::report::{Format, Verbosity};
use crate::text::globs::{CommGlob, CommNames};
use crate::text::units::parse_size;

/// How many live blocks the kernel's table holds unless the user says otherwise.
pub const DEFAULT_MAX_ALLOCS: u32 = 2_097_152;

/// The most it can hold: a BPF hash map has as many buckets as entries, rounded up to a power of two,
/// and the kernel refuses a bucket array of 4 GiB (2^28 buckets of 16 bytes).
pub const MAX_MAX_ALLOCS: u32 = 1 << 27;

/// How many running processes `--live` shows.
pub const DEFAULT_TOP: usize = 20;

/// What `--wait-all` without a number stands for.
const NO_LIMIT: &str = "unlimited";

/// The options of `memleak run`.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct Run {
    /// Wait until no process of the tree is left, at most SECONDS; INT, TERM, HUP or QUIT ends it
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, require_equals = true)]
    #[arg(default_missing_value = NO_LIMIT, value_parser = parse_wait)]
    pub wait_all: Option<WaitAll>,

    /// Run the command as this user, with the user's groups and no capabilities; sudo: as whoever called
    /// sudo
    #[arg(long, value_name = "NAME|UID[:GID]|sudo", value_hint = ValueHint::Username)]
    pub user: Option<UserSpec>,

    /// The command and its arguments; options of memleak end at its first word
    #[arg(required = true, trailing_var_arg = true, value_names = ["COMMAND", "ARGS"])]
    #[arg(value_hint = ValueHint::CommandWithArguments)]
    pub command: Vec<OsString>,

    #[command(flatten)]
    pub probing: Probing,

    // Last, since the heading of a flattened group is kept by whatever follows it.
    #[command(flatten)]
    pub report: ReportArgs,

    #[command(flatten)]
    pub gate: GateArgs,
}

/// The options of `memleak -p` and `memleak -a`.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct Watch {
    /// Watch this process, from now on, and all that it starts; several: -p 1,2 or -p 1 -p 2
    #[arg(
        short,
        long,
        value_name = "PID",
        value_delimiter = ',',
        conflicts_with = "all"
    )]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=i64::from(i32::MAX)))]
    pub pid: Vec<u32>,

    /// Watch every process of the machine but memleak, those that start later too
    #[arg(short, long)]
    pub all: bool,

    /// Seconds from one report to the next
    #[arg(value_name = "INTERVAL", default_value = "5", value_parser = parse_interval)]
    pub interval: Duration,

    /// Watch the processes of -p alone, not what they start
    #[arg(long, conflicts_with = "all")]
    pub no_children: bool,

    /// Each interval, report the processes that still run too: what they hold, and how much more than before
    #[arg(long)]
    pub live: bool,

    /// How many of these, those that grew most
    #[arg(long, value_name = "N", default_value_t = DEFAULT_TOP)]
    pub top: usize,

    #[command(flatten)]
    pub probing: Probing,

    #[command(flatten)]
    pub report: ReportArgs,

    #[command(flatten)]
    pub filters: Filters,
}

/// The options of `memleak doctor`.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct Doctor {
    #[command(flatten)]
    pub shown: ShownArgs,

    /// What it looks like
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t)]
    pub format: DoctorFormat,

    #[command(flatten)]
    pub test: TestArgs,
}

/// Which processes are watched.
#[derive(Clone, Debug, Default, PartialEq, Eq, Args)]
#[command(next_help_heading = "Filters")]
pub struct Filters {
    /// Only processes of this real user id; several: --uid 1,2 or --uid 1 --uid 2
    #[arg(long, value_name = "UID", value_delimiter = ',', value_parser = parse_uid)]
    pub uid: Vec<u32>,

    /// Only processes of this user; may be repeated
    #[arg(long, value_name = "NAME", value_delimiter = ',', value_hint = ValueHint::Username)]
    pub user_name: Vec<String>,

    /// Only processes whose command name matches (!GLOB: does not match); may be repeated
    #[arg(long, value_name = "GLOB")]
    pub comm: Vec<CommGlob>,

    /// Only processes in this control group (version 2) and those below it; may be repeated
    #[arg(long, value_name = "PATH", value_hint = ValueHint::DirPath)]
    pub cgroup: Vec<PathBuf>,

    /// Report only processes that have not freed SIZE or more
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub min_leak: Option<u64>,
}

/// How allocators are found and probed.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct Probing {
    /// Live blocks that can be told apart at one time; beyond that, leaks are known within bounds
    #[arg(long, value_name = "N", default_value_t = DEFAULT_MAX_ALLOCS)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_MAX_ALLOCS)))]
    pub max_allocs: u32,

    /// Count a program's own allocator: PATH:alloc=FUNCTION,free=FUNCTION, as './app:alloc=pool_alloc(_,
    /// size),free=pool_free(_, block)', or a .toml file with such; may be repeated
    #[arg(long, value_name = "SPEC", value_parser = notation::parse)]
    pub allocator: Vec<Spec>,

    #[command(flatten)]
    pub test: TestArgs,
}

impl Default for Probing {
    fn default() -> Self {
        Self {
            max_allocs: DEFAULT_MAX_ALLOCS,
            allocator: Vec::new(),
            test: TestArgs::default(),
        }
    }
}

/// How long to wait for what the command leaves behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitAll {
    Unlimited,
    AtMost(Duration),
}

pub(crate) fn parse_wait(text: &str) -> Result<WaitAll, String> {
    if text == NO_LIMIT {
        return Ok(WaitAll::Unlimited);
    }
    parse_seconds(text).map(WaitAll::AtMost)
}

/// Reads a number of seconds, whole or with decimals.
fn parse_seconds(text: &str) -> Result<Duration, String> {
    let why = || "it is a number of seconds, as 60 or 0.5".to_owned();
    // f64 would take "inf" and "1e3" too.
    if !text
        .bytes()
        .all(|byte| byte.is_ascii_digit() || byte == b'.')
    {
        return Err(why());
    }
    let seconds = text.parse().map_err(|_| why())?;
    Duration::try_from_secs_f64(seconds).map_err(|_| why())
}

fn parse_uid(text: &str) -> Result<u32, String> {
    let why = |_| "it is a user's number (--user-name takes a name)".to_owned();
    text.parse().map_err(why)
}

/// The shortest and the longest time from one report to the next.
const INTERVALS: RangeInclusive<Duration> =
    Duration::from_millis(100)..=Duration::from_secs(86_400);

fn parse_interval(text: &str) -> Result<Duration, String> {
    let interval = parse_seconds(text)?;
    if INTERVALS.contains(&interval) {
        Ok(interval)
    } else {
        Err("it is a number of seconds from 0.1 to 86400".to_owned())
    }
}

/// Where the report goes and what it looks like.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
#[command(next_help_heading = "Report")]
pub struct ReportArgs {
    #[command(flatten)]
    pub shown: ShownArgs,

    /// What the report looks like
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t)]
    pub format: Format,
}

/// What reports and the doctor have in common.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct ShownArgs {
    /// Write to FILE instead of standard error (run) or standard output (-p, -a, doctor); %p: memleak's pid, %h: the
    /// host, %q{VAR}: a variable
    #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub output: Option<PathBuf>,

    /// Print errors, a failed or unknown gate, and what the doctor finds not ok; nothing else
    #[arg(short, long, conflicts_with = "verbose")]
    pub quiet: bool,

    /// Tell about probes too, about images that an exec replaced, and what the kernel said to programs that it
    /// refused
    #[arg(short, long)]
    pub verbose: bool,

    /// When to use colour; auto: where the output goes to a terminal and `NO_COLOR` is not set
    #[arg(long, value_enum, value_name = "WHEN", default_value_t)]
    pub color: Color,
}

impl ShownArgs {
    pub fn verbosity(&self) -> Verbosity {
        Verbosity::of(self.quiet, self.verbose)
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Color {
    #[default]
    Auto,
    Always,
    Never,
}

impl Color {
    /// Whether to use colour, given whether the report goes to a terminal and whether `NO_COLOR` is set
    /// (and not empty).
    pub fn wanted(self, terminal: bool, no_color: bool) -> bool {
        match self {
            Self::Auto => terminal && !no_color,
            Self::Always => true,
            Self::Never => false,
        }
    }
}

/// What makes a leak a failure.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
#[command(next_help_heading = "Gate")]
pub struct GateArgs {
    /// Fail if any one process leaks more than SIZE; 0: any leak
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub fail_on_leak: Option<u64>,

    /// Fail if all processes together leak more than SIZE
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub fail_on_total_leak: Option<u64>,

    /// Judge only processes whose command name matches (!GLOB: does not match); may be repeated
    #[arg(long, value_name = "GLOB")]
    pub gate_comm: Vec<CommGlob>,

    /// Exit code of a failed gate, 1 to 255 [default: 23]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..))]
    pub leak_exitcode: Option<u8>,

    /// Let that code come before a non-zero code of the command's
    #[arg(long)]
    pub leak_exitcode_wins: bool,

    /// Let the gate fail a Slurm prolog or epilog too, which takes the node out of service
    #[arg(long)]
    pub allow_drain: bool,
}

impl GateArgs {
    /// The gate that was asked for, if one was.
    pub fn gate(&self) -> Option<Gate> {
        let limits = Limits {
            process: self.fail_on_leak,
            total: self.fail_on_total_leak,
        };
        Gate::new(limits, CommNames::new(self.gate_comm.clone()))
    }

    pub fn leak_exit(&self) -> LeakExit {
        LeakExit {
            code: self.leak_exitcode.unwrap_or(exit::LEAK),
            wins: self.leak_exitcode_wins,
        }
    }

    /// An option that would silently do nothing, as there is no gate for it to change.
    pub fn without_effect(&self) -> Option<&'static str> {
        if self.fail_on_leak.is_some() || self.fail_on_total_leak.is_some() {
            None
        } else if !self.gate_comm.is_empty() {
            Some("--gate-comm")
        } else if self.leak_exitcode.is_some() {
            Some("--leak-exitcode")
        } else if self.leak_exitcode_wins {
            Some("--leak-exitcode-wins")
        } else if self.allow_drain {
            Some("--allow-drain")
        } else {
            None
        }
    }
}

/// What the doctor's findings look like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum DoctorFormat {
    /// A line for each check.
    #[default]
    Table,
    /// One JSON object a line.
    Json,
}
