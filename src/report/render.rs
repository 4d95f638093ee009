//! The interface of the output formats, and the options that they share. The formats themselves are in `table`, `json`,
//! `csv` and `documents`.

use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::time::Duration;

use clap::ValueEnum;

use crate::model::bounds::Verdict;
use crate::model::commands::CommandOrder;
use crate::model::grouping::Grouped;
use crate::model::image::{End, Image};
use crate::model::ledger::Summary;
use crate::model::live::Live;
use crate::model::metrics::MetricLabels;
use crate::model::places::Located;
use crate::model::reach::Amount;
use crate::model::stack::{NamedStack, StackShare};

/// Name and version of the schema of JSON and CSV.
pub const SCHEMA: &str = "memleak/1";

/// A format of the report. `Report` knows what writes it.
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
    /// A page to look at in a browser.
    Html,
    /// Call stacks and what leaked by them, one a line, for flame graphs.
    Collapsed,
    /// A profile for `go tool pprof` and others.
    Pprof,
    /// A profile for valgrind's `dh_view.html`.
    Dhat,
    /// Results of tests, as `JUnit`'s XML has them.
    Junit,
    /// Results of analysis (SARIF 2.1.0), each at a line of the sources.
    Sarif,
    /// Commands of GitHub's workflows, which annotate lines of the sources.
    Github,
    /// GitLab's report of code quality.
    Gitlab,
    /// Markdown, for summaries and comments.
    Markdown,
}

/// The suffixes of files that tell a format.
const SUFFIXES: [(&str, Format); 9] = [
    (".txt", Format::Table),
    (".json", Format::Json),
    (".csv", Format::Csv),
    (".prom", Format::Prometheus),
    (".html", Format::Html),
    (".pb.gz", Format::Pprof),
    (".xml", Format::Junit),
    (".sarif", Format::Sarif),
    (".md", Format::Markdown),
];

impl Format {
    /// The format that a file's name asks for, if its suffix is one of a format.
    pub fn of_suffix(file: &Path) -> Option<Self> {
        let name = file.file_name()?.as_bytes();
        let has = |suffix: &str| name.len() > suffix.len() && name.ends_with(suffix.as_bytes());
        let found = SUFFIXES.iter().find(|(suffix, _)| has(suffix));
        found.map(|(_, format)| *format)
    }

    /// Whether the report can go on in another file: it has no heading.
    pub fn rotates(self) -> bool {
        matches!(self, Self::Json | Self::Influx)
    }

    /// What becomes of the content that the file of a report in rows has.
    pub(super) fn old_content(self) -> OldContent {
        match self {
            Self::Influx => OldContent::Kept,
            Self::Prometheus => OldContent::Replaced,
            _ => OldContent::Removed,
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
    /// Whether call stacks could be recorded, and are not.
    pub stacks_left_out: bool,
    /// Whether the report also becomes a page to look at.
    pub has_page: bool,
    /// By which labels metrics are told apart.
    pub labels: MetricLabels,
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

/// What an image of a process has allocated by one call stack.
#[derive(Clone, Copy, Debug)]
pub struct StackRow<'a> {
    pub pid: u32,
    pub image: u32,
    pub share: &'a StackShare,
    pub stack: &'a NamedStack,
    /// The first of the user's suppressions that matches the leak, or a part of it.
    pub suppressed_by: Option<&'a str>,
    /// The part that is suppressed.
    pub suppressed: Amount,
    /// The part that is on memleak's own list.
    pub kept: Amount,
}

/// Turns values into whole lines. The result is empty if a format prints nothing for a value.
pub(super) trait Render: Send {
    /// `verdict` is the verdict of the gate's limit for one process over this image.
    fn image(&mut self, image: &Image, verdict: Option<Verdict>) -> io::Result<Vec<u8>>;

    /// What an image of a process has allocated by one call stack. Called after the images.
    fn stack(&mut self, _row: &StackRow<'_>) -> io::Result<Vec<u8>> {
        Ok(Vec::new())
    }

    /// What is added up by something that processes have in common. Called once, and then no image has a row.
    fn groups(&mut self, _grouped: &Grouped) -> io::Result<Vec<u8>> {
        Ok(Vec::new())
    }

    fn window(&mut self, window: &Window) -> io::Result<Vec<u8>>;

    /// Where the processes leaked that have ended in a window, after that window. `alone`: there is only one.
    fn places(&mut self, _located: &Located, _alone: bool) -> io::Result<Vec<u8>> {
        Ok(Vec::new())
    }

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
