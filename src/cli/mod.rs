//! The command line.
//!
//! Turns the words of the command line into validated values, or into one line that says what is wrong with them. The
//! options themselves are in `options`. This module opens, looks up and starts nothing.

pub mod manual;
mod words;
mod wrong;

use std::ffi::{OsStr, OsString};

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, Subcommand};

use crate::cli::wrong::what_is_wrong;
use crate::kernel::settings::{MAX_CGROUPS, MAX_LABELS};
use crate::model::exit;
use crate::options::merge::Merge;
use crate::options::watch::Watch;
use crate::options::{Doctor, GateArgs, Run};

/// A leak monitor for Linux: counts what processes allocate and never free.
#[derive(Clone, Debug, PartialEq, Eq, Parser)]
#[command(name = "memleak", version, propagate_version = true)]
#[command(disable_help_subcommand = true, args_override_self = true)]
#[command(args_conflicts_with_subcommands = true, subcommand_value_name = "run")]
#[command(override_usage = manual::USAGE)]
#[command(after_help = manual::MORE, after_long_help = manual::after_watch_help())]
pub struct Cli {
    #[command(subcommand)]
    mode: Option<Mode>,

    #[command(flatten)]
    watch: Watch,
}

#[derive(Clone, Debug, PartialEq, Eq, Subcommand)]
enum Mode {
    /// Launch a command and follow it and all its children until they exit
    #[command(after_help = manual::after_short_help(), after_long_help = manual::after_help())]
    #[command(args_override_self = true)]
    #[command(override_usage = "memleak run [OPTIONS] [--] COMMAND [ARGS]...")]
    Run(Box<Run>),
    /// Test whether memleak run works here, and say what prevents it and how to fix that
    #[command(after_help = manual::after_doctor_help(), args_override_self = true)]
    Doctor(Doctor),
    /// Report and judge what sessions have saved as JSON lines, of one or of many
    #[command(after_help = manual::after_report_help(), args_override_self = true)]
    Report(Box<Merge>),
}

/// The task that the command line asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Task {
    Run(Run),
    Watch(Watch),
    Doctor(Doctor),
    Report(Merge),
}

/// Why there is no task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The user asked for help or for the version. This text goes to standard output.
    Told(String),
    /// The command line is wrong. This line goes to standard error. It has no line break at its end.
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

/// Reads the command line. The first word is the program's name.
///
/// # Errors
/// [`Stop`], if there is no task.
pub fn parse(words: impl IntoIterator<Item = OsString>) -> Result<Task, Stop> {
    let words = words.into_iter().collect();
    let words = words::in_order(words, &Cli::command());
    let help = match words.get(1) {
        Some(mode) if mode == "run" => "memleak run --help",
        Some(mode) if mode == "doctor" => "memleak doctor --help",
        Some(mode) if mode == "report" => "memleak report --help",
        _ => "memleak --help",
    };
    let wrong = |what: String| Stop::Wrong(format!("memleak: {what} (see '{help}')"));
    if words.len() < 2 {
        return Err(wrong(NOTHING_TO_DO.to_owned()));
    }
    let own = words.iter().skip(1).take_while(|word| *word != "--");
    let watches = own.into_iter().any(|word| {
        let word = word.as_encoded_bytes();
        ["-p", "-a", "--pid", "--all"]
            .iter()
            .any(|option| word.starts_with(option.as_bytes()))
    });
    if let Some(word) = words.get(1).filter(|word| !watches && is_no_mode(word)) {
        return Err(wrong(wrong::no_such_mode(&word.to_string_lossy(), &MODES)));
    }
    let cli = Cli::try_parse_from(words).map_err(|error| match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => Stop::Told(error.to_string()),
        _ => wrong(what_is_wrong(&error, watches, &hidden_options())),
    })?;
    let stacks = match &cli.mode {
        Some(Mode::Run(run)) => run.stacks.without_effect(),
        Some(Mode::Doctor(_) | Mode::Report(_)) => None,
        None => cli.watch.without_stacks(),
    };
    if let Some(option) = stacks {
        return Err(wrong(format!(
            "{option} needs call stacks: leave out --stacks=never"
        )));
    }
    match cli.mode {
        Some(Mode::Run(run)) if run.label_env.len() > MAX_LABELS => Err(wrong(too_many_labels())),
        Some(Mode::Run(run)) => {
            judges(&run.gate).map_err(wrong)?;
            Ok(Task::Run(*run))
        }
        Some(Mode::Report(report)) => {
            judges(&report.gate).map_err(wrong)?;
            Ok(Task::Report(*report))
        }
        Some(Mode::Doctor(doctor)) => Ok(Task::Doctor(doctor)),
        None if cli.watch.pid.is_empty() && !cli.watch.all => Err(wrong(NOTHING_TO_DO.to_owned())),
        None if cli.watch.filters.cgroup.len() > MAX_CGROUPS => Err(wrong(format!(
            "--cgroup can be given {MAX_CGROUPS} times at most: name a control group above them"
        ))),
        None if cli.watch.label_env.len() > MAX_LABELS => Err(wrong(too_many_labels())),
        None if cli.watch.rotates_nothing() => Err(wrong(
            "--rotate puts a file of json or influx aside and there is none: add -o json=FILE"
                .to_owned(),
        )),
        None => Ok(Task::Watch(cli.watch)),
    }
}

fn too_many_labels() -> String {
    format!("--label-env can be given {MAX_LABELS} times at most")
}

/// Whether options of a gate have an effect. If not, says which has none.
fn judges(gate: &GateArgs) -> Result<(), String> {
    match gate.without_effect() {
        None => Ok(()),
        Some(option) => Err(format!(
            "{option} changes a gate and there is none: add --fail-on-leak SIZE or --fail-on-lost SIZE"
        )),
    }
}

/// Whether a first word is neither an option nor something that memleak can be told to do.
fn is_no_mode(word: &OsStr) -> bool {
    let bytes = word.as_encoded_bytes();
    // A number may be an INTERVAL.
    let is_word = !bytes.starts_with(b"-") && !bytes.first().is_some_and(u8::is_ascii_digit);
    is_word && !MODES.iter().any(|mode| word == *mode)
}

/// The options that help does not show, in the form that users write.
fn hidden_options() -> Vec<String> {
    let memleak = Cli::command();
    let modes = memleak
        .get_subcommands()
        .flat_map(clap::Command::get_arguments);
    let hidden = memleak
        .get_arguments()
        .chain(modes)
        .filter(|option| option.is_hide_set());
    hidden
        .filter_map(|option| option.get_long())
        .map(|long| format!("--{long}"))
        .collect()
}

/// What memleak can be told to do by its first word.
const MODES: [&str; 4] = ["run", "doctor", "report", "help"];

const NOTHING_TO_DO: &str = "nothing to do: memleak run -- COMMAND launches a command and follows it, \
     memleak -p PID watches a process, memleak -a every process";

#[cfg(test)]
mod tests;
