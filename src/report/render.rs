//! The interface of the output formats, and the options that they share. The formats themselves are in `table`, `json`
//! and `csv`.

use std::io;
use std::path::Path;
use std::time::Duration;

use clap::ValueEnum;

use crate::model::bounds::Verdict;
use crate::model::commands::CommandOrder;
use crate::model::image::{End, Image};
use crate::model::ledger::Summary;
use crate::model::live::Live;
use crate::model::metrics::Labels;
use crate::model::stack::{NamedStack, StackShare};

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
    /// Sums for Prometheus, in its text format.
    Prometheus,
    /// Points for InfluxDB, in its line protocol.
    Influx,
}

impl Format {
    /// The format that a file's name asks for, if its suffix is one of a format.
    pub fn of_suffix(file: &Path) -> Option<Self> {
        match file.extension()?.to_str()? {
            "txt" => Some(Self::Table),
            "json" => Some(Self::Json),
            "csv" => Some(Self::Csv),
            "prom" => Some(Self::Prometheus),
            _ => None,
        }
    }

    /// Whether the report can go on in another file: it has no heading.
    pub fn rotates(self) -> bool {
        matches!(self, Self::Json | Self::Influx)
    }

    /// What becomes of the content that a report's file has.
    pub fn old_content(self) -> OldContent {
        match self {
            Self::Table | Self::Json | Self::Csv => OldContent::Removed,
            Self::Influx => OldContent::Kept,
            Self::Prometheus => OldContent::Replaced,
        }
    }
}

/// What becomes of the content that a report's file has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OldContent {
    /// It is removed at once.
    Removed,
    /// It stays, and the report comes behind it.
    Kept,
    /// Each part of the report is the whole content, in place of what was there before.
    Replaced,
}

/// How much is shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Verbosity {
    /// Only the summary, and that only if the gate failed, is unknown or has a pattern that matched no process.
    Quiet,
    #[default]
    Normal,
    /// The table also has the images that an exec replaced, the processes that still run, and the numbers of blocks.
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

    /// Whether the table has a row for an image with this end.
    pub fn shows(self, end: End) -> bool {
        match end {
            End::Exited(_) | End::Signaled { .. } => true,
            End::Exec | End::Running => self == Self::Verbose,
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
    /// The order of the block by command.
    pub order: CommandOrder,
    /// Whether the table has command lines.
    pub args: bool,
    /// Whether the table says what processes lost: any of them may have been scanned.
    pub lost: bool,
    /// By which labels metrics are told apart.
    pub labels: Labels,
}

/// A terminal on which the running processes are drawn, and what is said above them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Screen {
    pub columns: usize,
    pub lines: usize,
    /// As `14:02:10`.
    pub time_of_day: String,
    /// The command line in short, as `memleak -a 5`.
    pub command: String,
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

    /// What an image of a process has allocated by one call stack. Called after all images.
    fn stack(
        &mut self,
        _pid: u32,
        _image: u32,
        _share: &StackShare,
        _stack: &NamedStack,
    ) -> io::Result<Vec<u8>> {
        Ok(Vec::new())
    }

    fn window(&mut self, window: &Window) -> io::Result<Vec<u8>>;

    /// `screen` is the terminal on which a table of running processes replaces the one before.
    fn live(&mut self, live: &Live, screen: Option<&Screen>) -> io::Result<Vec<u8>>;

    /// Whether it wants to [`measure`](Self::measure).
    fn measures(&self) -> bool {
        false
    }

    /// What runs, at the end of each window. `rows_lost`: how many rows memleak has missed so far.
    fn measure(&mut self, _live: &Live, _rows_lost: u64) -> io::Result<Vec<u8>> {
        Ok(Vec::new())
    }

    /// What the user must know of the report, told once.
    fn notice(&mut self) -> Option<String> {
        None
    }

    /// The end of the report. Called once.
    fn summary(&mut self, summary: &Summary) -> io::Result<Vec<u8>>;
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
