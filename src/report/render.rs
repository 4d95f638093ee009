//! The interface of the output formats, and the options that they share. The formats themselves are in `table`, `json`
//! and `csv`.

use std::io;
use std::time::Duration;

use clap::ValueEnum;

use crate::model::gate::Verdict;
use crate::model::image::{End, Image};
use crate::model::ledger::Summary;
use crate::model::live::Live;

/// Name and version of the schema of JSON and CSV.
pub const SCHEMA: &str = "memleak/1";

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Columns for people.
    #[default]
    Table,
    /// One JSON object a line.
    Json,
    /// Comma-separated values with one header.
    Csv,
}

/// How much is shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Verbosity {
    /// Only the summary, and that only if the gate failed or is unknown.
    Quiet,
    #[default]
    Normal,
    /// The table also has the images that an exec replaced and the processes that still run.
    Verbose,
}

impl Verbosity {
    /// The verbosity that `-q` and `-v` ask for.
    pub fn of(quiet: bool, verbose: bool) -> Self {
        match (quiet, verbose) {
            (true, _) => Self::Quiet,
            (false, true) => Self::Verbose,
            (false, false) => Self::Normal,
        }
    }
}

/// The look of a report.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    pub verbosity: Verbosity,
    /// Whether the table may use colour. Rows over a gate's limit are red.
    pub color: bool,
    /// Whether a table of running processes replaces the previous one. Only a terminal can show that.
    pub refresh: bool,
}

/// The images that have ended in a window. `start` and `end` are times since the Unix epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    pub start: Duration,
    pub end: Duration,
    pub images: Vec<Image>,
}

/// Turns values into whole lines. The result is empty if a format prints nothing for a value.
pub(super) trait Render: Send {
    /// `verdict` is the verdict of the gate's limit for one process over this image.
    fn image(&mut self, image: &Image, verdict: Option<Verdict>) -> io::Result<Vec<u8>>;
    fn summary(&mut self, summary: &Summary) -> io::Result<Vec<u8>>;
    fn window(&mut self, window: &Window) -> io::Result<Vec<u8>>;
    fn live(&mut self, live: &Live) -> io::Result<Vec<u8>>;
}

/// The spelling of an end in JSON and CSV.
pub(super) fn end_name(end: End) -> &'static str {
    match end {
        End::Exited(_) => "exited",
        End::Signaled { .. } => "signaled",
        End::Exec => "exec",
        End::Running => "running",
    }
}
