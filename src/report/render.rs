//! What every output format needs: how much it shows, and what it is given to show.

use std::io;
use std::time::Duration;

use clap::ValueEnum;

use crate::model::gate::Verdict;
use crate::model::image::{End, Image};
use crate::model::ledger::Summary;
use crate::model::live::Live;

/// The name and version of what JSON and CSV say.
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
    /// By `-q` and `-v`.
    pub fn of(quiet: bool, verbose: bool) -> Self {
        match (quiet, verbose) {
            (true, _) => Self::Quiet,
            (false, true) => Self::Verbose,
            (false, false) => Self::Normal,
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    pub verbosity: Verbosity,
    /// Whether the table may use colour: what is over a gate in red.
    pub color: bool,
    /// Whether the table of what runs takes the place of the one before, as a terminal can show it.
    pub refresh: bool,
}

/// Who has ended from one time to another, since the Unix epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    pub start: Duration,
    pub end: Duration,
    pub images: Vec<Image>,
}

/// Turns values into whole lines; empty where a format has nothing to say to a value.
pub(super) trait Render: Send {
    /// `verdict` is what the gate's limit for one process says to the image.
    fn image(&mut self, image: &Image, verdict: Option<Verdict>) -> io::Result<Vec<u8>>;
    fn summary(&mut self, summary: &Summary) -> io::Result<Vec<u8>>;
    fn window(&mut self, window: &Window) -> io::Result<Vec<u8>>;
    fn live(&mut self, live: &Live) -> io::Result<Vec<u8>>;
}

/// How JSON and CSV spell an end.
pub(super) fn end_name(end: End) -> &'static str {
    match end {
        End::Exited(_) => "exited",
        End::Signaled { .. } => "signaled",
        End::Exec => "exec",
        End::Running => "running",
    }
}
