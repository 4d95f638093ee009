//! Shows images and the summary: as a table, as JSON lines, as CSV or as a document, in one place or in several.
//!
//! A new format has a file here or in `documents`, a variant in `Format`, and an arm in `Writer::of`.
//!
//! A renderer turns a value into the bytes of whole lines, and does not know where they go. [`Report`] writes the
//! lines. Each row is one write, and is written at once. `destination` opens the places where the report goes. The
//! caller decides what a failed write means.

use std::io::{self, Write};

use crate::model::bounds::Verdict;
use crate::model::finished::Finished;
use crate::model::grouping::Grouped;
use crate::model::image::Image;
use crate::model::ledger::Summary;
use crate::model::live::Live;
use crate::model::metrics::MetricLabels;
use crate::model::places::Located;
use crate::report::destination::{Filling, Output};
use crate::report::renaming::Renaming;
use crate::report::render::Render;

mod blocks;
mod cells;
mod closing;
mod compared;
mod csv;
mod group_objects;
mod influx;
mod json;
mod json_objects;
mod live;
mod places;
mod prometheus;
mod replacing;
mod rotating;
mod suppressed;
mod table;
mod words;

pub use closing::{closing_line, verdict_line};
pub use json_objects::{LossesObject, ReachObject};
pub use places::innermost_call;
pub use suppressed::{runtime_line, suppressed_lines};
pub use words::{counted_by_names, uncovered_name, walk_name};

pub mod destination;
mod documents;
mod renaming;
mod render;

pub use prometheus::Exposition;
pub use render::{Format, OldContent, Options, SCHEMA, Screen, StackRow, Verbosity, Window};

/// A report that is being written, to each of its sinks.
#[derive(Default)]
pub struct Report {
    sinks: Vec<Sink>,
    documents: Vec<DocumentSink>,
}

/// One place where the report goes, and the format that it has there.
struct Sink {
    /// The place's name in messages.
    name: String,
    verbosity: Verbosity,
    render: Box<dyn Render>,
    out: Box<dyn Write + Send>,
}

/// A document, and the place where it goes when all is known.
struct DocumentSink {
    name: String,
    verbosity: Verbosity,
    compose: Compose,
    out: Box<dyn Write + Send>,
    renaming: Option<Renaming>,
}

/// Makes a document.
type Compose = fn(&Finished) -> Vec<u8>;

/// What writes a format.
enum Writer {
    /// Row by row.
    Rows(fn(Options) -> Box<dyn Render>),
    /// All at the end.
    Document(Compose),
}

impl Writer {
    fn of(format: Format) -> Self {
        match format {
            Format::Table => Self::Rows(|options| Box::new(table::TableRender::new(options))),
            Format::Json => Self::Rows(|_| Box::new(json::Json::default())),
            Format::Csv => Self::Rows(|_| Box::new(csv::Csv::default())),
            Format::Influx => Self::Rows(|_| Box::new(influx::Influx::default())),
            Format::Prometheus => Self::Rows(|options| {
                Box::new(prometheus::Prometheus::new(
                    Exposition::Text,
                    options.labels,
                    options.lost,
                ))
            }),
            Format::Collapsed => Self::Document(documents::collapsed::collapsed),
            Format::Pprof => Self::Document(documents::pprof::pprof),
            Format::Html => Self::Document(documents::html::html),
            Format::Dhat => Self::Document(documents::dhat::dhat),
            Format::Junit => Self::Document(documents::junit::junit),
            Format::Sarif => Self::Document(documents::sarif::sarif),
            Format::Github => Self::Document(documents::github::github),
            Format::Gitlab => Self::Document(documents::gitlab::gitlab),
            Format::Markdown => Self::Document(documents::markdown::markdown),
        }
    }
}

impl Format {
    /// How a report in this format comes into its file.
    pub fn filling(self) -> Filling {
        match Writer::of(self) {
            Writer::Rows(_) => Filling::Rows(self.old_content()),
            Writer::Document(_) => Filling::Document,
        }
    }
}

/// A write that failed. What it should have written is lost. Later writes are tried again.
#[derive(Debug)]
pub struct Unwritten {
    /// The place's name.
    pub to: String,
    pub error: io::Error,
}

impl Sink {
    fn write(&mut self, lines: &[u8]) -> io::Result<()> {
        if lines.is_empty() {
            return Ok(());
        }
        self.out.write_all(lines)?;
        self.out.flush()
    }
}

impl DocumentSink {
    fn write(mut self, finished: &Finished) -> io::Result<()> {
        self.out.write_all(&(self.compose)(finished))?;
        self.out.flush()?;
        self.renaming.map_or(Ok(()), Renaming::finish)
    }
}

impl Report {
    /// Adds a place where the report goes.
    pub fn add(&mut self, format: Format, options: Options, to: Output) {
        let (name, out, renaming) = (to.name, to.writer, to.renaming);
        let verbosity = options.verbosity;
        match Writer::of(format) {
            Writer::Rows(render) => self.sinks.push(Sink {
                name,
                verbosity,
                render: render(options),
                out,
            }),
            Writer::Document(compose) => self.documents.push(DocumentSink {
                name,
                verbosity,
                compose,
                out,
                renaming,
            }),
        }
    }

    /// Whether a document is to be written.
    pub fn has_documents(&self) -> bool {
        !self.documents.is_empty()
    }

    /// Adds metrics that are made anew at each interval. `name` is the place's name in messages.
    pub fn add_metrics(
        &mut self,
        exposition: Exposition,
        labels: MetricLabels,
        lost: bool,
        name: String,
        out: Box<dyn Write + Send>,
    ) {
        self.sinks.push(Sink {
            name,
            verbosity: Verbosity::Normal,
            render: Box::new(prometheus::Prometheus::new(exposition, labels, lost)),
            out,
        });
    }

    /// Reports one image. `verdict` is the result of [`Ledger::record`](crate::model::ledger::Ledger::record) for this
    /// image.
    pub fn image(&mut self, image: &Image, verdict: Option<Verdict>) -> Vec<Unwritten> {
        self.write(false, |render| render.image(image, verdict))
    }

    /// Reports what an image of a process has allocated by one call stack, after the images.
    pub fn stack(&mut self, row: &StackRow<'_>) -> Vec<Unwritten> {
        self.write(false, |render| render.stack(row))
    }

    /// Reports what is added up by something that processes have in common, in its order.
    pub fn groups(&mut self, grouped: &Grouped) -> Vec<Unwritten> {
        self.write(false, |render| render.groups(grouped))
    }

    /// Reports the images that have ended in a window.
    pub fn window(&mut self, window: &Window) -> Vec<Unwritten> {
        self.write(false, |render| render.window(window))
    }

    /// Reports where the processes of the last window leaked.
    pub fn places(&mut self, located: &Located, alone: bool) -> Vec<Unwritten> {
        self.write(false, |render| render.places(located, alone))
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

    /// Writes the documents, after the summary.
    pub fn documents(&mut self, finished: &Finished) -> Vec<Unwritten> {
        let alarming = verdict_line(&finished.summary).is_some();
        let mut unwritten = Vec::new();
        for document in std::mem::take(&mut self.documents) {
            if document.verbosity == Verbosity::Quiet && !alarming {
                continue;
            }
            let to = document.name.clone();
            match document.write(finished) {
                Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                    unwritten.push(Unwritten { to, error });
                }
                Ok(()) | Err(_) => {}
            }
        }
        unwritten
    }

    /// Whether nothing can be written any more, because every reader has closed its end.
    pub fn is_unread(&self) -> bool {
        self.sinks.is_empty() && self.documents.is_empty()
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
