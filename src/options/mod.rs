//! The options of memleak as plain values, with the parsers of these values. This module opens and looks up nothing.
//!
//! The doc comments of the arguments are their help texts, and go into the manual page and the completions.

pub mod lost;
pub mod merge;
pub mod stacks;
pub mod switches;
pub mod watch;

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::{Args, ValueEnum, ValueHint};

use crate::find::notation::{self, Spec};
use crate::kernel::settings::{LabelName, Reads, Recorded};
use crate::model::commands::CommandOrder;
use crate::model::exit::{self, LeakExit};
use crate::model::gate::Gate;
use crate::model::limits::{Allowed, Limits};
use crate::model::metrics::{Label, MetricLabels};
use crate::model::scan::ScanWanted;
use crate::model::selection::Selection;
use crate::options::lost::LostArgs;
use crate::options::stacks::{StackArgs, StacksWhen};
use crate::options::switches::TestArgs;
use crate::os::identity::UserSpec;
use crate::report::{Format, Verbosity};
use crate::text::escape;
use crate::text::globs::{CommGlob, CommNames};
use crate::text::paths::{ExePaths, PathGlob};
use crate::text::units::{parse_seconds, parse_size};

/// How many live blocks the kernel's table holds by default.
pub const DEFAULT_MAX_ALLOCS: u32 = 2_097_152;

/// The largest size of this table. A BPF hash map has as many buckets as entries, rounded up to a power of two. The
/// kernel refuses a bucket array of 4 GiB (2^28 buckets of 16 bytes).
pub const MAX_MAX_ALLOCS: u32 = 1 << 27;

/// How many places in programs are shown by default.
pub const DEFAULT_PLACES: usize = 10;

/// The value of `--wait-all` without a number.
const NO_LIMIT: &str = "unlimited";

/// The options of `memleak run`.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
#[command(next_help_heading = "Measure")]
pub struct Run {
    /// Wait for all processes of the tree
    ///
    /// Waits until all processes of the tree have ended, at most SECONDS. INT, TERM, HUP or QUIT ends the wait.
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, require_equals = true)]
    #[arg(default_missing_value = NO_LIMIT, value_parser = parse_wait)]
    pub wait_all: Option<WaitAll>,

    /// Run the command as this user
    ///
    /// NAME, UID, UID:GID, or sudo for the user who called sudo. The command gets the user's groups and no capabilities.
    #[arg(long, value_name = "USER", value_hint = ValueHint::Username)]
    pub user: Option<UserSpec>,

    /// Probes: shared, private, inside
    ///
    /// shared: the system's files, so every process that uses them pays for the probes. private: copies that only the
    /// command sees, in a mount namespace of its own. Then nobody else pays. That takes root. inside: the same, and the
    /// copy of the C library counts by itself, in the processes. That is many times faster. It takes Linux 6.16, and tells
    /// nothing of call stacks.
    #[arg(long, value_enum, value_name = "FILES", default_value_t)]
    #[arg(hide_possible_values = true)]
    pub probes: Probes,

    #[command(flatten)]
    pub probing: Probing,

    #[command(flatten)]
    pub lost: LostArgs,

    #[command(flatten)]
    pub stacks: StackArgs,

    #[command(flatten)]
    pub gate: GateArgs,

    #[command(flatten)]
    pub shown: ShownArgs,

    /// Places in programs to show
    ///
    /// How many of those where processes leaked, the largest first.
    #[arg(long, value_name = "N", default_value_t = DEFAULT_PLACES, hide_short_help = true)]
    pub top: usize,

    /// Show command lines
    ///
    /// In a column, and in JSON and CSV. Command lines may hold secrets. Of a long one, the first 1,023 bytes are kept.
    #[arg(long)]
    pub args: bool,

    /// Record this variable of each process's environment
    ///
    /// As it was when the process executed its program, in JSON, CSV and the cases of junit: VAR may be the variable in which
    /// a test runner names the test. Of its value, the first 511 bytes are kept. May be given four times. PMI_RANK and its
    /// like become the rank of the record.
    #[arg(long, value_name = "VAR", hide_short_help = true)]
    pub label_env: Vec<LabelName>,

    /// Order of the block by command
    ///
    /// leak, lost, allocs or processes. From ten processes on, the table ends with a block that adds them up by command, the
    /// largest first.
    #[arg(long, value_enum, value_name = "BY", default_value_t)]
    #[arg(hide_possible_values = true)]
    pub sort: CommandOrder,

    #[command(flatten)]
    pub report: ReportArgs,

    /// The command and its arguments
    #[arg(help_heading = None::<&str>, hide_short_help = true)]
    #[arg(required = true, trailing_var_arg = true, value_names = ["COMMAND", "ARGS"])]
    #[arg(value_hint = ValueHint::CommandWithArguments)]
    pub command: Vec<OsString>,
}

impl Run {
    /// An option that was given and does not go with counting inside, if it is asked for.
    pub fn against_inside(&self) -> Option<&'static str> {
        let always = (self.stacks.stacks == StacksWhen::Always).then_some("--stacks=always");
        let given = always.or(self.stacks.needed_by());
        given.filter(|_| self.probes == Probes::Inside)
    }

    /// Which processes are to be scanned at their ends. `unseen`: whether this kernel lets memleak do that unseen.
    pub fn scan_wanted(&self, unseen: bool) -> ScanWanted {
        self.lost.wanted(unseen, self.gate.allowed().lost)
    }

    /// What the kernel side records. `may_read`: whether memleak may read any process. If not, only what was asked for
    /// is tried.
    pub fn recorded(&self, may_read: bool) -> Recorded {
        let switches = self.probing.test.switches();
        let inside = self.probes == Probes::Inside;
        Recorded {
            args: self.args,
            labels: self.label_env.clone(),
            reads: Reads {
                unseen: self.scan_wanted(may_read),
                elsewhere: self.scan_wanted(false),
                timeout: self.lost.lost_timeout,
                delay: switches.read_delay,
            },
            stacks: match inside {
                true => None,
                false => self.stacks.wanted(true, &switches),
            },
        }
    }
}

/// The options of `memleak doctor`.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct Doctor {
    /// Write to FILE instead of standard output; %p in FILE is memleak's pid, %h the host name, %q{VAR} an environment
    /// variable
    #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub output: Option<PathBuf>,

    #[command(flatten)]
    pub shown: ShownArgs,

    /// Format of the findings
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t)]
    pub format: DoctorFormat,

    #[command(flatten)]
    pub test: TestArgs,
}

/// How allocators are found and probed.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct Probing {
    /// Live blocks to track
    ///
    /// How many, at one time, in all processes together. Beyond that, leaks are only known within bounds.
    #[arg(long, value_name = "N", default_value_t = DEFAULT_MAX_ALLOCS)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_MAX_ALLOCS)))]
    pub max_allocs: u32,

    /// Count a program's own allocator
    ///
    /// PATH:alloc=FUNCTION,free=FUNCTION, for example './app:alloc=pool_alloc(_, size),free=pool_free(_, block)', or a
    /// .toml file of allocators. May be repeated.
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

/// Which files get the probes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Probes {
    /// The system's files.
    #[default]
    Shared,
    /// Copies that only the command sees.
    Private,
    /// The same, and the copy of the C library counts by itself.
    Inside,
}

impl fmt::Display for Probes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Probes::Shared => "shared",
            Probes::Private => "private",
            Probes::Inside => "inside",
        })
    }
}

/// How long to wait for the processes that the command leaves behind.
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

/// Destinations and formats of the report.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
#[command(next_help_heading = "Output")]
pub struct ReportArgs {
    /// Write the report to FILE
    ///
    /// A single FILE takes the report instead of standard error (run) or standard output (-p, -a, report). FORMAT=FILE,
    /// or several -o, write it there as well. Without FORMAT the suffix tells the format (.txt .json .csv .prom .html .pb.gz .xml
    /// .sarif .md), else --format.
    /// %p in FILE is memleak's pid, %h the host name, %q{VAR} an environment variable. May be repeated.
    #[arg(short, long, value_name = "[FORMAT=]FILE", value_hint = ValueHint::FilePath)]
    #[arg(value_parser = OsStringValueParser::new().try_map(parse_output))]
    pub output: Vec<OutputFile>,

    /// Format where no suffix tells it
    #[arg(long, value_enum, value_name = "FORMAT", hide_possible_values = true)]
    #[arg(long_help = formats())]
    pub format: Option<Format>,

    /// Labels of metrics
    ///
    /// Of comm, user, cgroup, jobid, container and pod. By these, sums are told apart, for at most 500 combinations at a
    /// time. The rest is 'other'.
    #[arg(
        long,
        value_enum,
        value_name = "LABEL",
        value_delimiter = ',',
        hide_short_help = true
    )]
    #[arg(default_value = "comm,user", hide_possible_values = true)]
    pub metrics_labels: Vec<Label>,
}

/// The long help of `--format`.
fn formats() -> String {
    format!(
        "Format where no suffix tells it\n\n{}.",
        switches::names::<Format>()
    )
}

impl ReportArgs {
    /// By which labels metrics are told apart.
    pub fn labels(&self) -> MetricLabels {
        MetricLabels::of(&self.metrics_labels)
    }

    /// The formats of the report and the files that they go to; `None` is the standard stream. A single plain FILE takes
    /// the report there. Anything else comes beside the report on the standard stream.
    pub fn outputs(&self) -> Vec<(Format, Option<&Path>)> {
        let format = self.format.unwrap_or_default();
        let files = self.output.iter().map(|output| {
            let suffix = || Format::of_suffix(&output.file);
            let format = output.format.or_else(suffix).unwrap_or(format);
            (format, Some(&*output.file))
        });
        let moves = matches!(&self.output[..], [OutputFile { format: None, .. }]);
        let standard = (!moves).then_some((format, None));
        standard.into_iter().chain(files).collect()
    }
}

/// A value of `-o`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutputFile {
    /// `None`: the suffix tells, or `--format`.
    pub format: Option<Format>,
    pub file: PathBuf,
}

/// Reads `[FORMAT=]FILE`. A path may consist of any bytes.
fn parse_output(value: OsString) -> Result<OutputFile, String> {
    let bytes = value.as_bytes();
    let plain = |format, file: &[u8]| OutputFile {
        format,
        file: PathBuf::from(OsStr::from_bytes(file)),
    };
    let Some(at) = bytes.iter().position(|&byte| byte == b'=') else {
        let word = value.to_str().unwrap_or_default();
        return match word {
            "" if bytes.is_empty() => Err("the name of the file is missing".to_owned()),
            "-" => Err("standard output is /dev/stdout (a file of this name is ./-)".to_owned()),
            word if Format::from_str(word, false).is_ok() => Err(format!(
                "a format needs a file: {word}=FILE (a file of this name is ./{word})"
            )),
            _ => Ok(plain(None, bytes)),
        };
    };
    let (word, file) = (&bytes[..at], &bytes[at + 1..]);
    // A path has a slash or a dot before it can have a sign like this. A word without them is meant as a format.
    if word.is_empty() || !word.iter().all(u8::is_ascii_alphanumeric) {
        return Ok(plain(None, bytes));
    }
    let word = String::from_utf8_lossy(word);
    let Ok(format) = Format::from_str(&word, false) else {
        return Err(format!(
            "the formats are {} (a file of this name is ./{})",
            switches::names::<Format>(),
            escape::escaped(bytes)
        ));
    };
    match file {
        b"" => Err(format!("the name of the file is missing after {word}=")),
        file => Ok(plain(Some(format), file)),
    }
}

/// The options that reports and the doctor share.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
#[command(next_help_heading = "Show")]
pub struct ShownArgs {
    /// Print only errors and bad news
    ///
    /// Errors, a failed or unknown gate, and findings of the doctor that are not ok. Files that -o names get all.
    #[arg(short, long, conflicts_with = "verbose")]
    pub quiet: bool,

    /// Print more
    ///
    /// Also prints the numbers of leaked blocks, the images that an exec replaced, the probes, and the kernel's messages
    /// about BPF programs that it refused.
    #[arg(short, long)]
    pub verbose: bool,

    /// When to use colour
    ///
    /// always, never, or auto: if the output goes to a terminal and `NO_COLOR` is not set.
    #[arg(long, value_enum, value_name = "WHEN", default_value_t)]
    #[arg(hide_possible_values = true)]
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
    /// Whether to use colour. `terminal`: the report goes to a terminal. `no_color`: `NO_COLOR` is set and not empty.
    pub fn wanted(self, terminal: bool, no_color: bool) -> bool {
        match self {
            Self::Auto => terminal && !no_color,
            Self::Always => true,
            Self::Never => false,
        }
    }
}

/// The options that decide what is a failure.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
#[command(next_help_heading = "Gate")]
pub struct GateArgs {
    /// Fail if a process leaks more than SIZE
    ///
    /// 0: any leak. A process leaks what it never freed, whether it lost it or not.
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub fail_on_leak: Option<u64>,

    /// Fail if all together leak more than SIZE
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub fail_on_total_leak: Option<u64>,

    /// Fail if a process loses more than SIZE
    ///
    /// Lost is what it never freed and could not have freed any more, because it had no pointer to it left. 0: any byte.
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub fail_on_lost: Option<u64>,

    /// Fail if all together lose more than SIZE
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub fail_on_total_lost: Option<u64>,

    /// Count only what leaks beyond a baseline
    ///
    /// FILE is a report in JSON (-o json=FILE). What a process leaked there may leak again, as much, by the same call stack,
    /// or without call stacks in the same executable. New, known and gone leaks are named.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, hide_short_help = true)]
    pub baseline: Option<PathBuf>,

    /// Judge only processes of these names
    ///
    /// Of which the command name matches GLOB, or with !GLOB does not match. May be repeated. The name is the one that
    /// a process has at its end, and has 15 bytes at the most. If nobody is judged, the gate is unknown.
    #[arg(long, value_name = "GLOB")]
    pub gate_comm: Vec<CommGlob>,

    /// Judge only processes of these paths
    ///
    /// Of which the executable's path matches GLOB, or with !GLOB does not match. './**' is all below the current
    /// directory, '**/app' any app. A script's path is its own, not its interpreter's. May be repeated.
    #[arg(long, value_name = "GLOB")]
    pub gate_exe: Vec<PathGlob>,

    /// Exit code of a failed gate [default: 23]
    ///
    /// 1 to 255.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..))]
    pub leak_exitcode: Option<u8>,

    /// Let it replace the command's own code
    ///
    /// A non-zero exit code of the command. It never replaces a signal.
    #[arg(long, hide_short_help = true)]
    pub leak_exitcode_wins: bool,

    /// Let the gate fail a Slurm prolog or epilog
    ///
    /// A failed prolog or epilog drains the node, that is, takes it out of service.
    #[arg(long, hide_short_help = true)]
    pub allow_drain: bool,
}

impl GateArgs {
    /// The gate that the user asked for, if any. `directory` is the current one.
    ///
    /// # Errors
    /// A pattern does not parse. That does not happen to a parsed one.
    pub fn gate(&self, directory: &Path) -> Result<Option<Gate>, glob::PatternError> {
        let selection = Selection {
            names: CommNames::new(self.gate_comm.clone()),
            paths: ExePaths::new(&self.gate_exe, directory)?,
        };
        Ok(Gate::new(self.allowed(), selection))
    }

    /// What processes are allowed to leak and to lose.
    pub fn allowed(&self) -> Allowed {
        Allowed {
            leak: Limits {
                process: self.fail_on_leak,
                total: self.fail_on_total_leak,
            },
            lost: Limits {
                process: self.fail_on_lost,
                total: self.fail_on_total_lost,
            },
        }
    }

    pub fn leak_exit(&self) -> LeakExit {
        LeakExit {
            code: self.leak_exitcode.unwrap_or(exit::LEAK),
            wins: self.leak_exitcode_wins,
        }
    }

    /// An option that would silently have no effect, because there is no gate that it changes.
    pub fn without_effect(&self) -> Option<&'static str> {
        if self.allowed() != Allowed::default() {
            None
        } else if !self.gate_comm.is_empty() {
            Some("--gate-comm")
        } else if !self.gate_exe.is_empty() {
            Some("--gate-exe")
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

/// Format of the doctor's findings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum DoctorFormat {
    /// A line for each check.
    #[default]
    Table,
    /// One JSON object a line.
    Json,
}
