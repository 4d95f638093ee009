//! Shows images and the summary: as a table, as JSON lines or as CSV.
//!
//! A renderer turns a value into the bytes of whole lines, and does not know where they go. [`Report`] writes the
//! lines. Each row is one write, and is written at once. `destination` opens the place where the report goes. The
//! caller says whether that is a terminal, and decides what a failed write means.

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

/// A report that is being written to its destination.
pub struct Report {
    verbosity: Verbosity,
    render: Box<dyn Render>,
    out: Box<dyn Write + Send>,
}

impl Report {
    pub fn new(format: Format, options: Options, out: Box<dyn Write + Send>) -> Self {
        let render: Box<dyn Render> = match format {
            Format::Table => Box::new(table::TableRender::new(options)),
            Format::Json => Box::new(json::Json),
            Format::Csv => Box::new(csv::Csv::default()),
        };
        Self {
            verbosity: options.verbosity,
            render,
            out,
        }
    }

    /// Reports one image. `verdict` is the result of [`Ledger::record`](crate::model::ledger::Ledger::record) for this
    /// image.
    ///
    /// # Errors
    /// The write fails. The row is lost. Later calls try to write again.
    pub fn image(&mut self, image: &Image, verdict: Option<Verdict>) -> io::Result<()> {
        if self.verbosity == Verbosity::Quiet {
            return Ok(());
        }
        let lines = self.render.image(image, verdict)?;
        self.write(&lines)
    }

    /// Reports the images that have ended in a window.
    ///
    /// # Errors
    /// The write fails.
    pub fn window(&mut self, window: &Window) -> io::Result<()> {
        if self.verbosity == Verbosity::Quiet {
            return Ok(());
        }
        let lines = self.render.window(window)?;
        self.write(&lines)
    }

    /// Reports the running processes.
    ///
    /// # Errors
    /// The write fails.
    pub fn live(&mut self, live: &Live) -> io::Result<()> {
        if self.verbosity == Verbosity::Quiet {
            return Ok(());
        }
        let lines = self.render.live(live)?;
        self.write(&lines)
    }

    /// Reports the summary, at the end of the session.
    ///
    /// # Errors
    /// The write fails.
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
