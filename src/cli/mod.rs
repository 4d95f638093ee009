//! The command line.
//!
//! Words become validated values here, or one line that says what is wrong with them. Nothing is opened,
//! looked up or started.

pub mod manual;

use std::error::Error;
use std::ffi::OsString;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Args, Parser, Subcommand, ValueEnum, ValueHint};

use crate::doctor::{self, Patient};
use crate::find::functions::NAMES;
use crate::find::notation::{self, Spec, SpecError};
use crate::kernel::method::{Holds, Method};
use crate::kernel::settings::MAX_CGROUPS;
use crate::model::exit::{self, LeakExit};
use crate::model::gate::{Gate, Limits};
use crate::os::identity::{UserSpec, UserSpecError};
use crate::report::{Format, Verbosity};
use crate::text::escape;
use crate::text::globs::{CommGlob, CommNames, GlobError};
use crate::text::units::{SizeError, parse_size};

/// How many live blocks the kernel's table holds unless the user says otherwise.
pub const DEFAULT_MAX_ALLOCS: u32 = 2_097_152;

/// The most it can hold: a BPF hash map has as many buckets as entries, rounded up to a power of two,
/// and the kernel refuses a bucket array of 4 GiB (2^28 buckets of 16 bytes).
pub const MAX_MAX_ALLOCS: u32 = 1 << 27;

/// How many running processes `--live` shows.
pub const DEFAULT_TOP: usize = 20;

/// What `--wait-all` without a number stands for.
const NO_LIMIT: &str = "unlimited";

/// A leak monitor for Linux: counts what processes allocate and never free.
#[derive(Clone, Debug, PartialEq, Eq, Parser)]
#[command(name = "memleak", version, propagate_version = true)]
#[command(disable_help_subcommand = true, args_override_self = true)]
#[command(args_conflicts_with_subcommands = true, subcommand_value_name = "run")]
#[command(override_usage = manual::USAGE, after_help = manual::after_watch_help())]
pub struct Cli {
    #[command(subcommand)]
    mode: Option<Mode>,

    #[command(flatten)]
    watch: Watch,
}

#[derive(Clone, Debug, PartialEq, Eq, Subcommand)]
enum Mode {
    /// Launch a command and follow it and all its children to their ends
    Run(Box<Run>),
    /// Try whether memleak run works here, and say what is in its way and what to do about it
    Doctor(Doctor),
}

/// What memleak is asked to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Task {
    Run(Run),
    Watch(Watch),
    Doctor(Doctor),
}

/// The options of `memleak run`.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
#[command(after_help = manual::after_help(), args_override_self = true)]
#[command(override_usage = "memleak run [OPTIONS] [--] COMMAND [ARGS]...")]
pub struct Run {
    /// Wait until no process of the tree is left, at most SECONDS; INT, TERM, HUP or QUIT ends it
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, require_equals = true)]
    #[arg(default_missing_value = NO_LIMIT, value_parser = parse_wait)]
    pub wait_all: Option<WaitAll>,

    /// Run the command as this user, with the user's groups and no capabilities; sudo: as whoever called
    /// sudo
    #[arg(long, value_name = "NAME|UID[:GID]|sudo", value_hint = ValueHint::Username)]
    pub user: Option<UserSpec>,

    /// Attach programs that do nothing, to measure what any probes at these places cost.
    #[arg(long, hide = true)]
    pub floor: bool,

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
#[command(after_help = manual::after_doctor_help(), args_override_self = true)]
pub struct Doctor {
    /// Write to FILE instead of standard output; %p: memleak's pid, %h: the host, %q{VAR}: a variable
    #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub output: Option<PathBuf>,

    /// What it looks like
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t)]
    pub format: doctor::Format,

    /// Print only what is not ok
    #[arg(short, long, conflicts_with = "verbose")]
    pub quiet: bool,

    /// Tell about each probe too, and what the kernel said to programs that it refused
    #[arg(short, long)]
    pub verbose: bool,

    /// When to use colour; auto: where it goes to a terminal and `NO_COLOR` is not set
    #[arg(long, value_enum, value_name = "WHEN", default_value_t)]
    pub color: Color,

    /// How to attach the probes, instead of the best way that works.
    #[arg(long, value_enum, value_name = "METHOD", hide = true)]
    pub method: Option<Method>,

    /// Where processes are held until their files have been examined, at the most.
    #[arg(
        long,
        value_enum,
        value_name = "WHERE",
        default_value = "everywhere",
        hide = true
    )]
    pub holds: Holds,

    /// Be the child whose allocations are counted.
    #[arg(long, value_parser = Patient::parse, value_name = "PART", hide = true)]
    pub patient: Option<Patient>,
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

    /// Leave a row out of the probe table, to see that its absence is noticed.
    #[arg(long, value_name = "NAME", hide = true, value_parser = NAMES)]
    pub without_probe: Vec<String>,

    /// Keep all threads that are started in the table for those that come at a bad time.
    #[arg(long, hide = true)]
    pub late_threads: bool,

    /// Let half of what the kernel tells of forks, execs and ends be missed the first time, or each of so many times.
    #[arg(
        long,
        value_name = "TIMES",
        num_args = 0..=1,
        require_equals = true,
        default_value_t = 0,
        default_missing_value = "1",
        hide = true
    )]
    pub missed_events: u32,

    /// Where processes are held until their files have been examined, at the most.
    #[arg(
        long,
        value_enum,
        value_name = "WHERE",
        default_value = "everywhere",
        hide = true
    )]
    pub holds: Holds,

    /// Leave those who are held waiting for so many milliseconds more.
    #[arg(long, value_name = "MS", default_value_t = 0, hide = true)]
    pub hold_delay: u64,

    /// How to attach the probes, instead of the best way that works.
    #[arg(long, value_enum, value_name = "METHOD", hide = true)]
    pub method: Option<Method>,
}

/// How long to wait for what the command leaves behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitAll {
    Unlimited,
    AtMost(Duration),
}

fn parse_wait(text: &str) -> Result<WaitAll, String> {
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
    /// Write the report to FILE instead of standard error (run) or output (-p, -a); %p: memleak's pid, %h: the host, %q{VAR}: a
    /// variable
    #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub output: Option<PathBuf>,

    /// What the report looks like
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t)]
    pub format: Format,

    /// Report errors and a failed or unknown gate, nothing else
    #[arg(short, long, conflicts_with = "verbose")]
    pub quiet: bool,

    /// Tell about probes too, and about images that an exec replaced
    #[arg(short, long)]
    pub verbose: bool,

    /// When to use colour; auto: where the report goes to a terminal and `NO_COLOR` is not set
    #[arg(long, value_enum, value_name = "WHEN", default_value_t)]
    pub color: Color,
}

impl ReportArgs {
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
    fn without_effect(&self) -> Option<&'static str> {
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

/// Why there is nothing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stop {
    /// Help or the version was asked for: this text, for standard output.
    Told(String),
    /// The words make no sense: one line, without its end, for standard error.
    Wrong(String),
}

impl Stop {
    /// The exit code.
    pub fn code(&self) -> u8 {
        match self {
            Self::Told(_) => 0,
            Self::Wrong(_) => exit::TOOL_ERROR,
        }
    }
}

/// Reads the command line; the first word is the program's own name.
///
/// # Errors
/// [`Stop`], when there is nothing to do.
pub fn parse(words: impl IntoIterator<Item = OsString>) -> Result<Task, Stop> {
    let words: Vec<OsString> = words.into_iter().collect();
    let help = match words.get(1) {
        Some(mode) if mode == "run" => "memleak run --help",
        Some(mode) if mode == "doctor" => "memleak doctor --help",
        _ => "memleak --help",
    };
    let wrong = |what: String| Stop::Wrong(format!("memleak: {what} (see '{help}')"));
    if words.len() < 2 {
        return Err(wrong(NOTHING_TO_DO.to_owned()));
    }
    let watches = words.iter().skip(1).any(|word| {
        let word = word.as_encoded_bytes();
        ["-p", "-a", "--pid", "--all"]
            .iter()
            .any(|option| word.starts_with(option.as_bytes()))
    });
    let cli = Cli::try_parse_from(words).map_err(|error| match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => Stop::Told(error.to_string()),
        _ => wrong(what_is_wrong(&error, watches)),
    })?;
    match cli.mode {
        Some(Mode::Run(run)) => match run.gate.without_effect() {
            None => Ok(Task::Run(*run)),
            Some(option) => Err(wrong(format!(
                "{option} changes a gate and there is none: add --fail-on-leak SIZE or --fail-on-total-leak SIZE"
            ))),
        },
        Some(Mode::Doctor(doctor)) => Ok(Task::Doctor(doctor)),
        None if cli.watch.pid.is_empty() && !cli.watch.all => Err(wrong(NOTHING_TO_DO.to_owned())),
        None if cli.watch.filters.cgroup.len() > MAX_CGROUPS => Err(wrong(format!(
            "--cgroup can be given {MAX_CGROUPS} times: name one above them"
        ))),
        None => Ok(Task::Watch(cli.watch)),
    }
}

const NOTHING_TO_DO: &str = "nothing to do: memleak run -- COMMAND launches a command and follows it, \
     memleak -p PID watches a process, memleak -a every process";

/// clap's error, which is a paragraph or two, in one line.
/// `watches`: it names processes.
fn what_is_wrong(error: &clap::Error, watches: bool) -> String {
    let word = |kind| match error.get(kind) {
        Some(ContextValue::String(word)) => Some(escape::escaped(word.as_bytes())),
        _ => None,
    };
    // Our own errors name the value themselves, and name it harmlessly.
    if let Some(source) = error.source()
        && (source.is::<SizeError>()
            || source.is::<GlobError>()
            || source.is::<UserSpecError>()
            || source.is::<SpecError>())
        && let Some(option) = word(ContextKind::InvalidArg)
    {
        return format!("{option}: {source}");
    }
    match error.kind() {
        // A word after the interval may be a subcommand, for clap.
        ErrorKind::ArgumentConflict | ErrorKind::UnknownArgument if watches => {
            let number = [ContextKind::InvalidSubcommand, ContextKind::InvalidArg]
                .into_iter()
                .filter_map(word)
                .find(|word| word.parse::<u32>().is_ok());
            if let Some(number) = number {
                return format!(
                    "unexpected argument '{number}': after PID there is one INTERVAL; several processes are \
                     -p 1,2 or -p 1 -p 2"
                );
            }
        }
        ErrorKind::MissingRequiredArgument => {
            return "no command: write it after the options, as in memleak run -- ./my_app"
                .to_owned();
        }
        // These quote a word of the user's, which may hold line breaks and escape sequences.
        ErrorKind::UnknownArgument => {
            if let Some(option) = word(ContextKind::InvalidArg) {
                let similar = word(ContextKind::SuggestedArg)
                    .map_or_else(String::new, |similar| format!("; did you mean {similar}?"));
                return format!("unexpected argument '{option}'{similar}");
            }
        }
        ErrorKind::InvalidValue | ErrorKind::ValueValidation => {
            let value = word(ContextKind::InvalidValue).filter(|value| !value.is_empty());
            if let (Some(option), Some(value)) = (word(ContextKind::InvalidArg), value) {
                if !watches && option == "[INTERVAL]" {
                    return format!(
                        "'{value}' is not something memleak does: to launch a command, write memleak run -- COMMAND"
                    );
                }
                let why = match (error.get(ContextKind::ValidValue), error.source()) {
                    (Some(ContextValue::Strings(valid)), _) => {
                        format!("; it is one of {}", valid.join(", "))
                    }
                    (_, Some(source)) => {
                        format!("; {}", escape::escaped(source.to_string().as_bytes()))
                    }
                    (_, None) => String::new(),
                };
                return format!("{option} cannot be '{value}'{why}");
            }
        }
        _ => {}
    }
    let paragraphs = error.to_string();
    let said = paragraphs.strip_prefix("error: ").unwrap_or(&paragraphs);
    let first = said.split("\n\n").next().unwrap_or(said);
    let line: Vec<&str> = first.lines().map(str::trim).collect();
    escape::escaped(line.join(" ").as_bytes())
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt;

    use super::*;

    fn words(words: &[&[u8]]) -> Vec<OsString> {
        words
            .iter()
            .map(|word| OsString::from_vec(word.to_vec()))
            .collect()
    }

    fn stop(line: &[&str]) -> Stop {
        let words = std::iter::once("memleak")
            .chain(line.iter().copied())
            .map(OsString::from);
        parse(words).unwrap_err()
    }

    fn launched(words: impl IntoIterator<Item = OsString>) -> Run {
        match parse(words).unwrap() {
            Task::Run(run) => run,
            other => panic!("{other:?}"),
        }
    }

    fn watch(line: &[&str]) -> Watch {
        let words = ["memleak"].iter().chain(line).map(OsString::from);
        match parse(words).unwrap() {
            Task::Watch(watch) => watch,
            other => panic!("{other:?}"),
        }
    }

    fn run(line: &[&str]) -> Run {
        let words = ["memleak", "run"].iter().chain(line).map(OsString::from);
        launched(words)
    }

    fn wrong(line: &[&str]) -> String {
        let stop = stop(line);
        assert_eq!(stop.code(), 125, "{line:?}");
        let Stop::Wrong(said) = stop else {
            panic!("{line:?} is not wrong: {stop:?}");
        };
        assert!(said.starts_with("memleak: "), "{said}");
        assert!(!said.contains(char::is_control), "{said:?}");
        said
    }

    #[test]
    fn the_command_gets_its_words_to_the_byte() {
        let given: &[&[u8]] = &[
            b"prog",
            b"-x",
            b"",
            b"\xff\xfe",
            b"--format",
            b"json",
            b"--",
            b"-q",
            b"a b\n",
        ];
        let prefixes: [&[&[u8]]; 4] = [
            &[b"memleak", b"run"],
            &[b"memleak", b"run", b"--"],
            &[b"memleak", b"run", b"-v"],
            &[b"memleak", b"run", b"-v", b"--"],
        ];
        for prefix in prefixes {
            let run = launched(words(&[prefix, given].concat()));
            assert_eq!(run.command, words(given), "{prefix:?}");
            assert_eq!(run.report.format, Format::Table);
            assert!(!run.report.quiet);
        }
    }

    #[test]
    fn after_two_dashes_even_an_option_is_a_command() {
        for command in [&b"-x"[..], b"--help", b"", b"\xff", b"run"] {
            let line = words(&[b"memleak", b"run", b"--", command, b"--", b"--version"]);
            let run = launched(line);
            assert_eq!(run.command, words(&[command, b"--", b"--version"]));
        }
    }

    #[test]
    fn without_options_there_is_a_table_and_no_gate() {
        let run = run(&["true"]);
        assert_eq!(run.report.output, None);
        assert_eq!(run.report.format, Format::Table);
        assert_eq!(run.report.verbosity(), Verbosity::Normal);
        assert_eq!(run.report.color, Color::Auto);
        assert!(run.gate.gate().is_none());
        assert_eq!(run.gate.leak_exit(), LeakExit::default());
        assert_eq!(run.probing.max_allocs, DEFAULT_MAX_ALLOCS);
        assert!(run.probing.without_probe.is_empty());
    }

    #[test]
    fn every_option_reaches_its_value() {
        let run = run(&[
            "-o",
            "out file",
            "--format",
            "json",
            "-v",
            "--color=never",
            "--fail-on-leak",
            "1MB",
            "--fail-on-total-leak=2MiB",
            "--gate-comm",
            "app*",
            "--gate-comm",
            "!app_x",
            "--leak-exitcode",
            "7",
            "--leak-exitcode-wins",
            "--allow-drain",
            "--user",
            "alice",
            "--max-allocs",
            "100",
            "--without-probe",
            "free",
            "--without-probe",
            "calloc",
            "true",
        ]);
        assert_eq!(run.report.output, Some("out file".into()));
        assert_eq!(run.report.format, Format::Json);
        assert_eq!(run.report.verbosity(), Verbosity::Verbose);
        assert_eq!(run.report.color, Color::Never);
        assert_eq!(run.gate.fail_on_leak, Some(1_000_000));
        assert_eq!(run.gate.fail_on_total_leak, Some(2_097_152));
        assert_eq!(run.gate.gate_comm.len(), 2);
        assert!(run.gate.gate().is_some());
        assert_eq!(
            run.gate.leak_exit(),
            LeakExit {
                code: 7,
                wins: true
            }
        );
        assert!(run.gate.allow_drain);
        assert_eq!(run.user, Some(UserSpec::Name("alice".to_owned(), None)));
        assert_eq!(run.probing.max_allocs, 100);
        assert_eq!(run.probing.without_probe, ["free", "calloc"]);
        assert_eq!(run.command, ["true"]);
    }

    #[test]
    fn the_last_of_a_repeated_option_counts() {
        let run = run(&[
            "--format",
            "csv",
            "--fail-on-leak",
            "1",
            "-q",
            "-q",
            "--fail-on-leak",
            "2",
            "--format",
            "json",
            "true",
        ]);
        assert_eq!(run.gate.fail_on_leak, Some(2));
        assert_eq!(run.report.format, Format::Json);
        assert_eq!(run.report.verbosity(), Verbosity::Quiet);
    }

    #[test]
    fn bad_words_are_one_line_that_says_what_is_wrong_with_which() {
        for (line, says) in [
            (&[][..], "nothing to do: memleak run -- COMMAND"),
            (
                &["./my_app"],
                "'./my_app' is not something memleak does: to launch a command, write memleak run",
            ),
            (&["--frob"], "'--frob'"),
            (&["run"], "no command"),
            (&["run", "--"], "no command"),
            (&["run", "-q"], "no command"),
            (&["run", "--frob", "true"], "unexpected argument '--frob'"),
            (&["run", "-x", "true"], "unexpected argument '-x'"),
            (
                &["run", "--forma", "json", "true"],
                "did you mean --format?",
            ),
            (&["run", "--format", "xml", "true"], "'xml'"),
            (&["run", "--format", "xml", "true"], "table, json, csv"),
            (
                &["run", "--color", "sometimes", "true"],
                "auto, always, never",
            ),
            (&["run", "-q", "-v", "true"], "cannot be used with"),
            (&["run", "-o", "", "true"], "--output"),
            (
                &["run", "--fail-on-leak", "1M", "true"],
                "--fail-on-leak <SIZE>: '1M' is not a size",
            ),
            (
                &["run", "--fail-on-leak=-1", "true"],
                "--fail-on-leak <SIZE>: '-1' is not a size",
            ),
            (
                &["run", "--fail-on-total-leak", "99999999TB", "true"],
                "too large",
            ),
            (
                &["run", "--gate-comm", "[", "--fail-on-leak", "1", "true"],
                "--gate-comm <GLOB>: '[' is not a pattern",
            ),
            (
                &["run", "--gate-comm", "sh", "true"],
                "--gate-comm changes a gate and there is none",
            ),
            (
                &["run", "--leak-exitcode", "7", "true"],
                "--leak-exitcode changes a gate",
            ),
            (
                &["run", "--leak-exitcode-wins", "true"],
                "--leak-exitcode-wins changes a gate",
            ),
            (
                &["run", "--leak-exitcode", "0", "--fail-on-leak", "1", "true"],
                "1..=255",
            ),
            (
                &[
                    "run",
                    "--leak-exitcode",
                    "256",
                    "--fail-on-leak",
                    "1",
                    "true",
                ],
                "1..=255",
            ),
            (
                &["run", "--allow-drain", "true"],
                "--allow-drain changes a gate",
            ),
            (
                &["run", "--user", "a\nb:c", "true"],
                r"'a\x0ab:c' names no user",
            ),
            (&["run", "--max-allocs", "0", "true"], "1..=134217728"),
            (
                &["run", "--max-allocs", "134217729", "true"],
                "1..=134217728",
            ),
            (&["run", "--max-allocs", "many", "true"], "'many'"),
            (
                &["run", "--allocator", "./app:alloc=f(length)", "true"],
                "--allocator <SPEC>: 'length' in 'f(length)' is not size, count,",
            ),
            (
                &["run", "--allocator", "./a\npp", "true"],
                r"'./a\x0app' names no function",
            ),
            (
                &["run", "--format", "\x1b[31m\n\nUsage: x", "true"],
                r"\x1b[31m",
            ),
        ] {
            let said = wrong(line);
            assert!(said.contains(says), "{line:?}: {said}");
            let help = if line.first() == Some(&"run") {
                "(see 'memleak run --help')"
            } else {
                "(see 'memleak --help')"
            };
            assert!(said.ends_with(help), "{line:?}: {said}");
        }
    }

    #[test]
    fn waiting_for_all_may_have_a_limit_and_takes_no_word_of_the_command() {
        let seconds = |text| parse_wait(text).unwrap();
        assert_eq!(run(&["true"]).wait_all, None);
        let unlimited = run(&["--wait-all", "2"]);
        assert_eq!(unlimited.wait_all, Some(WaitAll::Unlimited));
        assert_eq!(unlimited.command, words(&[b"2"]));
        assert_eq!(run(&["--wait-all=2", "true"]).wait_all, Some(seconds("2")));
        assert_eq!(seconds("0.5"), WaitAll::AtMost(Duration::from_millis(500)));
        assert_eq!(seconds("0"), WaitAll::AtMost(Duration::ZERO));
        for text in ["", ".", "-1", "+1", "1e3", "inf", "2s", "1.2.3", "\u{661}"] {
            assert!(parse_wait(text).is_err(), "{text:?}");
        }
        assert!(parse_wait(&"9".repeat(400)).is_err());
        assert!(
            wrong(&["run", "--wait-all=2s", "true"])
                .contains("cannot be '2s'; it is a number of seconds")
        );
        assert!(wrong(&["run", "--wait-all=", "true"]).contains("--wait-all"));
    }

    #[test]
    fn every_option_of_watching_reaches_its_value() {
        let one = watch(&["-p", "1234"]);
        assert_eq!((&one.pid[..], one.all), (&[1234][..], false));
        assert_eq!(one.interval, Duration::from_secs(5));
        assert_eq!(one.filters, Filters::default());
        assert_eq!(one.top, DEFAULT_TOP);
        for line in [&["-p", "1,2", "0.5"][..], &["-p", "1", "-p", "2", "0.5"]] {
            let two = watch(line);
            assert_eq!(two.pid, [1, 2]);
            assert_eq!(two.interval, Duration::from_millis(500));
        }
        let all = watch(&[
            "-a",
            "30",
            "--live",
            "--top",
            "3",
            "--uid",
            "1,2",
            "--user-name",
            "root",
            "--comm",
            "a*",
            "--comm",
            "!ab",
            "--cgroup",
            "/x",
            "--min-leak",
            "1kB",
            "--format",
            "json",
            "-o",
            "f",
            "--max-allocs",
            "9",
            "-v",
        ]);
        assert!(all.all && all.live && all.report.verbose);
        assert_eq!((all.interval.as_secs(), all.top), (30, 3));
        assert_eq!(all.filters.uid, [1, 2]);
        assert_eq!(all.filters.user_name, ["root"]);
        assert_eq!(all.filters.comm.len(), 2);
        assert_eq!(all.filters.cgroup, [PathBuf::from("/x")]);
        assert_eq!(all.filters.min_leak, Some(1000));
        assert_eq!(all.probing.max_allocs, 9);
        assert!(watch(&["-p1", "--no-children"]).no_children);
    }

    #[test]
    fn every_option_of_doctor_reaches_its_value() {
        let doctor = |line: &[&str]| {
            let words = ["memleak", "doctor"].iter().chain(line).map(OsString::from);
            match parse(words).unwrap() {
                Task::Doctor(doctor) => doctor,
                other => panic!("{other:?}"),
            }
        };
        let plain = doctor(&[]);
        assert_eq!(
            (&plain.output, plain.format),
            (&None, doctor::Format::Table)
        );
        assert!(!plain.quiet && !plain.verbose && plain.method.is_none());
        assert_eq!((plain.holds, plain.patient), (Holds::Everywhere, None));
        let line = ["-o", "f", "--format", "json", "-v", "--color=always"];
        let all = doctor(&line);
        assert_eq!(
            (all.output, all.format),
            (Some("f".into()), doctor::Format::Json)
        );
        assert!(all.verbose && all.color == Color::Always);
        assert!(doctor(&["-q"]).quiet);
    }

    #[test]
    fn bad_words_about_doctor_are_one_line_too() {
        for (line, says) in [
            (
                &["--format", "csv"][..],
                "--format <FORMAT> cannot be 'csv'; it is one of table, json",
            ),
            (&["now"], "unexpected argument 'now'"),
            (&["-q", "-v"], "cannot be used with"),
            (&["--max-allocs", "1"], "'--max-allocs'"),
        ] {
            let said = wrong(&[&["doctor"], line].concat());
            assert!(said.contains(says), "{line:?}: {said}");
            assert!(said.ends_with("(see 'memleak doctor --help')"), "{said}");
        }
    }

    #[test]
    fn bad_words_about_watching_are_one_line_too() {
        for (line, says) in [
            (&["-q"][..], "nothing to do: memleak run -- COMMAND"),
            (
                &["--uid", "1"],
                "memleak -p PID watches a process, memleak -a every",
            ),
            (&["7"], "nothing to do"),
            (&["-p"], "--pid"),
            (&["-p", "x"], "--pid <PID> cannot be 'x'"),
            (&["-p", "0"], "--pid <PID> cannot be '0'"),
            (&["-p", "1,"], "--pid"),
            (
                &["-p", "1", "2", "5"],
                "unexpected argument '5': after PID there is one INTERVAL; several processes are -p 1,2 or -p 1 -p 2",
            ),
            (&["-p", "1", "-a"], "cannot be used with"),
            (&["-a", "--no-children"], "cannot be used with"),
            (&["-a", "run", "true"], "cannot be used with: --all"),
            (
                &["-a", "soon"],
                "[INTERVAL] cannot be 'soon'; it is a number of seconds",
            ),
            (&["-a", "0"], "0.1 to 86400"),
            (&["-a", "86401"], "0.1 to 86400"),
            (
                &["-a", "--comm", "["],
                "--comm <GLOB>: '[' is not a pattern",
            ),
            (
                &["-a", "--min-leak", "1M"],
                "--min-leak <SIZE>: '1M' is not a size",
            ),
            (&["-a", "--top", "-1"], "-1"),
            (&["-a", "--fail-on-leak", "1"], "'--fail-on-leak'"),
        ] {
            let said = wrong(line);
            assert!(said.contains(says), "{line:?}: {said}");
            assert!(said.ends_with("(see 'memleak --help')"), "{line:?}: {said}");
        }
        let many = ["--cgroup", "/x"].repeat(MAX_CGROUPS + 1);
        let line = [&["-a"][..], &many].concat();
        assert!(wrong(&line).contains("--cgroup can be given 8 times"));
    }

    #[test]
    fn an_option_value_that_is_not_utf8_is_an_error_and_a_file_name_is_not() {
        let line = words(&[b"memleak", b"run", b"--fail-on-leak", b"\xff", b"true"]);
        assert!(matches!(parse(line), Err(Stop::Wrong(_))));
        let run = launched(words(&[b"memleak", b"run", b"-o", b"\xff", b"true"]));
        assert_eq!(
            run.report.output,
            Some(PathBuf::from(OsString::from_vec(vec![0xff])))
        );
    }

    #[test]
    fn help_and_version_are_told_and_no_error() {
        for line in [
            &["--help"][..],
            &["-h"],
            &["run", "--help"],
            &["--version"],
            &["run", "-V"],
        ] {
            let stop = stop(line);
            assert_eq!(stop.code(), 0, "{line:?}");
            let Stop::Told(said) = stop else {
                panic!("{line:?}: {stop:?}");
            };
            assert!(said.contains("memleak"), "{said}");
            assert!(!said.contains('\u{1b}'), "{said:?}");
        }
        let Stop::Told(help) = stop(&["run", "--help"]) else {
            panic!("no help");
        };
        insta::assert_snapshot!("run_help", help);
        let Stop::Told(help) = stop(&["doctor", "--help"]) else {
            panic!("no help");
        };
        insta::assert_snapshot!("doctor_help", help);
        let Stop::Told(help) = stop(&["--help"]) else {
            panic!("no help");
        };
        insta::assert_snapshot!("help", help);
    }

    #[test]
    fn the_options_of_clap_do_not_contradict_each_other() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn colour_is_for_terminals_unless_told_otherwise() {
        for (color, terminal, no_color, wanted) in [
            (Color::Auto, true, false, true),
            (Color::Auto, true, true, false),
            (Color::Auto, false, false, false),
            (Color::Always, false, true, true),
            (Color::Never, true, false, false),
        ] {
            assert_eq!(
                color.wanted(terminal, no_color),
                wanted,
                "{color:?} {terminal} {no_color}"
            );
        }
    }
}
