//! The sums of a session and their report. The sums are computed in `model`, and the report is printed in `report`.

use std::io;
use std::time::Duration;

use anyhow::Result;
use users::{Users, UsersCache};

use crate::kernel::collector::Collector;
use crate::kernel::error;
use crate::model::exit::Outcome;
use crate::model::gate::Gate;
use crate::model::image::{Image, Losses};
use crate::model::ledger::{Ledger, Summary};
use crate::model::live::Live;
use crate::options::ReportArgs;
use crate::os::say::say;
use crate::report::destination::{self, Output};
use crate::report::{Format, Options, Report, Window};
use crate::session::prober::Prober;

/// With `verbose`, says by which method the probes were attached. If the start failed, prints the messages of the
/// kernel and of libbpf instead.
pub(super) fn started(prober: Result<Prober>, verbose: bool) -> Result<Prober> {
    if verbose {
        match &prober {
            Ok(prober) => say(&format!("attached by {}", prober.collector.method())),
            Err(_) => error::take_messages().lines().for_each(say),
        }
    }
    prober
}

/// Says how often something took a slower way without a loss.
pub(super) fn say_detours(collector: &Collector) {
    for (count, what) in collector.detours() {
        if count > 0 {
            say(&format!("{count} {what}"));
        }
    }
}

/// The sums and the report of them.
pub(super) struct Books {
    ledger: Ledger,
    report: Report,
    users: UsersCache,
    /// Name of the report's destination in messages.
    name: String,
    /// Whether memleak has said that the report could not be written. It says so once.
    unwritten: bool,
    /// Whether the reader of the report has closed its end.
    pub(super) unread: bool,
    /// How often memleak itself has failed since it began.
    failures: u64,
    /// Whether memleak has said why programs under valgrind die. It says so once.
    explained: bool,
    /// Whether a table of running processes replaces the previous one.
    pub(super) refreshes: bool,
}

impl Books {
    /// `live`: the running processes are shown repeatedly.
    pub(super) fn open(args: &ReportArgs, gate: Option<Gate>, live: bool, output: Output) -> Self {
        // A terminal that can move its cursor shows one table of running processes, not a history of tables.
        let is_dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
        let refreshes = live && output.terminal && !is_dumb && args.format == Format::Table;
        let look = Options {
            verbosity: args.shown.verbosity(),
            color: args
                .shown
                .color
                .wanted(output.terminal, destination::no_color()),
            refresh: refreshes,
        };
        Books {
            ledger: Ledger::new(gate),
            report: Report::new(args.format, look, output.writer),
            users: UsersCache::new(),
            name: output.name,
            unwritten: false,
            unread: false,
            failures: 0,
            explained: false,
            refreshes,
        }
    }

    fn name_user(&self, image: &mut Image) {
        let user = self.users.get_user_by_uid(image.uid);
        image.user = user.map(|user| user.name().to_string_lossy().into_owned());
    }

    /// Says once what killed a program that would have survived without memleak.
    fn explain(&mut self, image: &Image) {
        if !self.explained && image.died_under_valgrind() {
            self.explained = true;
            say(&format!(
                "process {} died of SIGTRAP under valgrind, which mistakes probes for the program's own \
                 instructions: run valgrind without memleak",
                image.pid
            ));
        }
    }

    /// Adds and reports an image that has ended, or that is left running.
    pub(super) fn enter(&mut self, mut image: Image) {
        self.name_user(&mut image);
        self.explain(&image);
        let verdict = self.ledger.record(&image);
        let written = self.report.image(&image, verdict);
        self.check(written);
    }

    /// Adds and reports the images that have ended in a window. `start` and `end` are times since the Unix epoch.
    pub(super) fn enter_window(&mut self, start: Duration, end: Duration, mut images: Vec<Image>) {
        for image in &mut images {
            self.name_user(image);
            self.explain(image);
            self.ledger.record(image);
        }
        let written = self.report.window(&Window { start, end, images });
        self.check(written);
    }

    /// Reports the running processes.
    pub(super) fn show(&mut self, mut live: Live) {
        for row in &mut live.rows {
            self.name_user(&mut row.image);
        }
        let written = self.report.live(&live);
        self.check(written);
    }

    /// Counts a failure of memleak during the session, and says the first one. The result is then incomplete. The
    /// watched processes are not disturbed.
    pub(super) fn fail(&mut self, error: &anyhow::Error) {
        if self.failures == 0 {
            say(&format!("{error:#}"));
        }
        self.failures += 1;
    }

    /// Closes the sums and reports them.
    pub(super) fn close(mut self, mut losses: Losses, outcome: Outcome) -> Summary {
        losses.rows_lost += self.failures;
        let ledger = std::mem::replace(&mut self.ledger, Ledger::new(None));
        let summary = ledger.finish(losses, outcome);
        let written = self.report.summary(&summary);
        self.check(written);
        summary
    }

    /// Handles the result of a write. A reader that has closed its end is not a failure. A full disk is a failure of
    /// the report, not of the command.
    fn check(&mut self, written: io::Result<()>) {
        let Err(error) = written else {
            return;
        };
        if error.kind() == io::ErrorKind::BrokenPipe {
            self.unread = true;
        } else if !self.unwritten {
            self.unwritten = true;
            say(&format!(
                "cannot write the report to {}: {error}",
                self.name
            ));
        }
    }
}
