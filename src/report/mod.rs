//! Shows images and the summary: as a table, as JSON lines or as CSV.
//!
//! A renderer turns one value into the bytes of whole lines, and knows nothing of where they go;
//! [`Report`] writes them, each row in one write and as it happens. Where the report goes, whether that
//! is a terminal, and what a failed write means are the caller's.

mod csv;
mod json;
mod table;

pub use table::closing_line;

pub mod destination;

use std::io::{self, Write};
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
trait Render: Send {
    /// `verdict` is what the gate's limit for one process says to the image.
    fn image(&mut self, image: &Image, verdict: Option<Verdict>) -> io::Result<Vec<u8>>;
    fn summary(&mut self, summary: &Summary) -> io::Result<Vec<u8>>;
    fn window(&mut self, window: &Window) -> io::Result<Vec<u8>>;
    fn live(&mut self, live: &Live) -> io::Result<Vec<u8>>;
}

/// A report on its way to where the user wants it.
pub struct Report {
    verbosity: Verbosity,
    render: Box<dyn Render>,
    out: Box<dyn Write + Send>,
}

impl Report {
    pub fn new(format: Format, options: Options, out: Box<dyn Write + Send>) -> Self {
        let render: Box<dyn Render> = match format {
            Format::Table => Box::new(table::Table::new(options)),
            Format::Json => Box::new(json::Json),
            Format::Csv => Box::new(csv::Csv::default()),
        };
        Self {
            verbosity: options.verbosity,
            render,
            out,
        }
    }

    /// Reports one image; `verdict` is what [`Ledger::record`](crate::model::ledger::Ledger::record) returned
    /// for it.
    ///
    /// # Errors
    /// What the writer says. The row is lost, later calls try again.
    pub fn image(&mut self, image: &Image, verdict: Option<Verdict>) -> io::Result<()> {
        if self.verbosity == Verbosity::Quiet {
            return Ok(());
        }
        let lines = self.render.image(image, verdict)?;
        self.write(&lines)
    }

    /// Reports who has ended in a window.
    ///
    /// # Errors
    /// What the writer says.
    pub fn window(&mut self, window: &Window) -> io::Result<()> {
        if self.verbosity == Verbosity::Quiet {
            return Ok(());
        }
        let lines = self.render.window(window)?;
        self.write(&lines)
    }

    /// Reports what runs.
    ///
    /// # Errors
    /// What the writer says.
    pub fn live(&mut self, live: &Live) -> io::Result<()> {
        if self.verbosity == Verbosity::Quiet {
            return Ok(());
        }
        let lines = self.render.live(live)?;
        self.write(&lines)
    }

    /// Reports the end.
    ///
    /// # Errors
    /// What the writer says.
    pub fn summary(&mut self, summary: &Summary) -> io::Result<()> {
        let alarming = matches!(summary.verdict(), Some(Verdict::Failed | Verdict::Unknown));
        if self.verbosity == Verbosity::Quiet && !alarming {
            return Ok(());
        }
        let lines = self.render.summary(summary)?;
        self.write(&lines)
    }

    fn write(&mut self, lines: &[u8]) -> io::Result<()> {
        if lines.is_empty() {
            return Ok(());
        }
        self.out.write_all(lines)?;
        self.out.flush()
    }
}

/// How JSON and CSV spell an end.
fn end_name(end: End) -> &'static str {
    match end {
        End::Exited(_) => "exited",
        End::Signaled { .. } => "signaled",
        End::Exec => "exec",
        End::Running => "running",
    }
}
#[cfg(test)]
mod tests;
