//! Shows images and the summary: as a table, as JSON lines or as CSV.
//!
//! A renderer turns one value into the bytes of whole lines, and knows nothing of where they go;
//! [`Report`] writes them, each row in one write and as it happens. Where the report goes, whether that
//! is a terminal, and what a failed write means are the caller's.

use std::io::{self, Write};

use crate::model::gate::Verdict;
use crate::model::image::Image;
use crate::model::ledger::Summary;
use crate::model::live::Live;
use crate::report::render::Render;

mod csv;
mod json;
mod table;

pub use table::closing_line;

pub mod destination;
mod render;

pub use render::{Format, Options, SCHEMA, Verbosity, Window};

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

#[cfg(test)]
mod tests;
