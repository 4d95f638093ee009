//! The options of `memleak report`.

use std::path::PathBuf;

use clap::{Args, ValueHint};

use crate::model::commands::CommandOrder;
use crate::model::grouping::Grouping;
use crate::options::stacks::LeakArgs;
use crate::options::{DEFAULT_PLACES, GateArgs, ReportArgs, ShownArgs};

/// The options of `memleak report`.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct Merge {
    /// The JSON lines that sessions of memleak have saved
    #[arg(required = true, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub files: Vec<PathBuf>,

    /// Add up by: process, comm, user, job, rank, node, function, file
    ///
    /// A line for each, instead of each process. job, rank and node are those of the records. Where these name no node,
    /// the file's name stands for it. function and file are those of the innermost call, and need call stacks.
    #[arg(long, value_enum, value_name = "BY", hide_possible_values = true)]
    pub by: Option<Grouping>,

    #[command(flatten)]
    pub gate: GateArgs,

    #[command(flatten)]
    pub leaks: LeakArgs,

    #[command(flatten)]
    pub shown: ShownArgs,

    /// Places in programs to show
    ///
    /// How many of those where processes leaked, the largest first.
    #[arg(long, value_name = "N", default_value_t = DEFAULT_PLACES, help_heading = "Show")]
    pub top: usize,

    /// Show command lines
    ///
    /// In a column, and in JSON and CSV, where the files have them.
    #[arg(long, help_heading = "Show")]
    pub args: bool,

    /// Order of the block by command, and of --by
    ///
    /// leak, lost, allocs or processes.
    #[arg(long, value_enum, value_name = "BY", default_value_t)]
    #[arg(hide_possible_values = true, help_heading = "Show")]
    pub sort: CommandOrder,

    #[command(flatten)]
    pub report: ReportArgs,
}

impl Merge {
    /// By what is added up. `None`: each process has a row.
    pub fn grouping(&self) -> Option<Grouping> {
        self.by.filter(|by| *by != Grouping::Process)
    }
}
