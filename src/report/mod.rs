//! Shows images and the summary: as a table, as JSON lines or as CSV, in one place or in several.
//!
//! A renderer turns a value into the bytes of whole lines, and does not know where they go. [`Report`] writes the
//! lines. Each row is one write, and is written at once. `destination` opens the places where the report goes. The
//! caller decides what a failed write means.

use std::io::{self, Write};

use crate::model::bounds::Verdict;
use crate::model::image::Image;
use crate::model::ledger::Summary;
use crate::model::live::Live;
use crate::model::metrics::Labels;
use crate::model::stack::{NamedStack, StackShare};
use crate::report::render::Render;

mod cells;
mod closing;
mod csv;
mod influx;
mod json;
mod live;
mod places;
mod prometheus;
mod replacing;
mod rotating;
mod suppressed;
mod table;

pub use closing::{closing_line, verdict_line};
pub use suppressed::{runtime_line, suppressed_lines};

pub mod destination;
mod render;

pub use prometheus::Exposition;
pub use render::{Format, OldContent, Options, SCHEMA, Screen, Verbosity, Window};

/// A report that is being written, to each of its sinks.
pub struct Report {
    sinks: Vec<Sink>,
}

/// One place where the report goes, and the format that it has there.
pub struct Sink {
    /// The place's name in messages.
    pub name: String,
    verbosity: Verbosity,
    render: Box<dyn Render>,
    out: Box<dyn Write + Send>,
}

/// A write that failed. What it should have written is lost. Later writes are tried again.
#[derive(Debug)]
pub struct Unwritten {
    /// The place's name.
    pub to: String,
    pub error: io::Error,
}

impl Sink {
    pub fn new(format: Format, options: Options, name: String, out: Box<dyn Write + Send>) -> Self {
        let render: Box<dyn Render> = match format {
            Format::Table => Box::new(table::TableRender::new(options)),
            Format::Json => Box::new(json::Json),
            Format::Csv => Box::new(csv::Csv::default()),
            Format::Influx => Box::new(influx::Influx::default()),
            Format::Prometheus => Box::new(prometheus::Prometheus::new(
                prometheus::Exposition::Text,
                options.labels,
                options.lost,
            )),
        };
        Self {
            name,
            verbosity: options.verbosity,
            render,
            out,
        }
    }

    /// Metrics that are made anew at each interval.
    pub fn metrics(
        exposition: Exposition,
        labels: Labels,
        lost: bool,
        name: String,
        out: Box<dyn Write + Send>,
    ) -> Self {
        Self {
            name,
            verbosity: Verbosity::Normal,
            render: Box::new(prometheus::Prometheus::new(exposition, labels, lost)),
            out,
        }
    }

    fn write(&mut self, lines: &[u8]) -> io::Result<()> {
        if lines.is_empty() {
            return Ok(());
        }
        self.out.write_all(lines)?;
        self.out.flush()
    }
}

impl Report {
    pub fn new(sinks: Vec<Sink>) -> Self {
        Self { sinks }
    }

    /// From now on, the report goes there, too.
    pub fn add(&mut self, sink: Sink) {
        self.sinks.push(sink);
    }

    /// Reports one image. `verdict` is the result of [`Ledger::record`](crate::model::ledger::Ledger::record) for this
    /// image.
    pub fn image(&mut self, image: &Image, verdict: Option<Verdict>) -> Vec<Unwritten> {
        self.write(false, |render| render.image(image, verdict))
    }

    /// Reports what an image of a process has allocated by one call stack, after all images.
    pub fn stack(
        &mut self,
        pid: u32,
        image: u32,
        share: &StackShare,
        stack: &NamedStack,
    ) -> Vec<Unwritten> {
        self.write(false, |render| render.stack(pid, image, share, stack))
    }

    /// Reports the images that have ended in a window.
    pub fn window(&mut self, window: &Window) -> Vec<Unwritten> {
        self.write(false, |render| render.window(window))
    }

    /// Reports the running processes. `screen` is the terminal, if one shows the report.
    pub fn live(&mut self, live: &Live, screen: Option<&Screen>) -> Vec<Unwritten> {
        self.write(false, |render| render.live(live, screen))
    }

    /// Whether any of the formats measures the running processes.
    pub fn measures(&self) -> bool {
        self.sinks.iter().any(|sink| sink.render.measures())
    }

    /// Gives the running processes to the formats that measure them.
    pub fn measure(&mut self, live: &Live, rows_lost: u64) -> Vec<Unwritten> {
        self.write(false, |render| render.measure(live, rows_lost))
    }

    /// What the user must know of the report.
    pub fn notices(&mut self) -> Vec<String> {
        let sinks = self.sinks.iter_mut();
        sinks.filter_map(|sink| sink.render.notice()).collect()
    }

    /// Reports the summary, at the end of the session.
    pub fn summary(&mut self, summary: &Summary) -> Vec<Unwritten> {
        let alarming = verdict_line(summary).is_some();
        self.write(alarming, |render| render.summary(summary))
    }

    /// Whether nothing can be written any more, because every reader has closed its end.
    pub fn is_unread(&self) -> bool {
        self.sinks.is_empty()
    }

    /// A quiet sink gets only what is `alarming`. A sink whose reader has closed its end is dropped: that is no
    /// failure.
    fn write(
        &mut self,
        alarming: bool,
        lines: impl Fn(&mut dyn Render) -> io::Result<Vec<u8>>,
    ) -> Vec<Unwritten> {
        let mut unwritten = Vec::new();
        self.sinks.retain_mut(|sink| {
            if sink.verbosity == Verbosity::Quiet && !alarming {
                return true;
            }
            let written = lines(&mut *sink.render).and_then(|lines| sink.write(&lines));
            match written {
                Ok(()) => true,
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => false,
                Err(error) => {
                    let to = sink.name.clone();
                    unwritten.push(Unwritten { to, error });
                    true
                }
            }
        });
        unwritten
    }
}

#[cfg(test)]
mod tests;
