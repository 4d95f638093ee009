//! The sums of a session and their report. The sums are computed in `model`, and the report is printed in `report`.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Result, bail};
use users::{Users, UsersCache};

use crate::kernel::collector::Collector;
use crate::kernel::error;
use crate::model::baseline::Comparison;
use crate::model::commands::CommandOrder;
use crate::model::exit::Outcome;
use crate::model::finished::{About, Finished};
use crate::model::gate::Gate;
use crate::model::gathering::Gathering;
use crate::model::image::{Image, Losses};
use crate::model::ledger::{Ledger, Summary};
use crate::model::live::Live;
use crate::model::metrics::MetricLabels;
use crate::model::stack::StackShare;
use crate::options::{ReportArgs, ShownArgs};
use crate::os::say::say;
use crate::report::destination::{self, Output, Standard};
use crate::report::{Format, Options, Report, Screen, Unwritten, Verbosity, Window, verdict_line};
use crate::session::leaks::{Leaks, StackReaders};
use crate::session::listener::Listener;
use crate::session::origins::Origins;
use crate::session::prober::Prober;
use crate::session::sifting::enter;

/// With `verbose`, says by which method the probes were attached. If the start failed, prints the messages of the
/// kernel and of libbpf instead.
pub(super) fn started(prober: Result<Prober>, verbose: bool) -> Result<Prober> {
    if verbose {
        match &prober {
            Ok(prober) => {
                let collector = &prober.collector;
                let only = if collector.is_filtered() {
                    ", in the named processes only"
                } else {
                    ""
                };
                say(&format!("attached by {}{only}", collector.method()));
                if let Some(why) = collector.no_stacks {
                    say(&format!("no call stacks are recorded: {}", why.phrase()));
                }
            }
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
    /// What documents are made of. `None`: there are none.
    gathering: Option<Gathering>,
    about: About,
    /// Compares leaks with a baseline.
    comparison: Option<Comparison>,
    /// `None`: no call stacks are reported.
    leaks: Option<Leaks>,
    users: UsersCache,
    /// The destinations of the report for which memleak has said that it could not be written. It says so once.
    unwritten: BTreeSet<String>,
    /// What the report's formats had to say. It is said once, however many of them say it.
    noticed: BTreeSet<String>,
    origins: Origins,
    /// How often memleak itself has failed since it began.
    failures: u64,
    /// Whether memleak has said why programs under valgrind die. It says so once.
    explained: bool,
    /// Whether a table of running processes replaces the previous one.
    pub(super) refreshes: bool,
    /// Whether a gate judges by paths.
    by_path: bool,
    /// The running processes that a terminal shows.
    shown: Option<(Live, Screen)>,
    /// Whether a table goes to standard error, and with it what a gate says.
    table_on_stderr: bool,
}

/// What a report consists of.
pub(super) enum Contents {
    /// Rows as processes end, and at the end a block by command in this order. `lost`: processes may be scanned.
    /// `stacks_left_out`: call stacks could be recorded, and are not.
    Run {
        order: CommandOrder,
        lost: bool,
        stacks_left_out: bool,
    },
    /// Windows. `live`: the running processes are shown repeatedly.
    Watch { live: bool, lost: bool },
}

/// The opened destinations of a report.
pub(super) struct Destinations {
    outputs: Vec<(Format, Output)>,
    labels: MetricLabels,
}

impl Destinations {
    /// Opens the destinations that the options name, the standard stream first. `rotate`: the size at which a file is put
    /// aside, where the format allows that.
    ///
    /// # Errors
    /// A file cannot be opened.
    pub(super) fn open(args: &ReportArgs, standard: Standard, rotate: Option<u64>) -> Result<Self> {
        let open = |(format, file): (Format, Option<&Path>)| {
            let rotate = rotate.filter(|_| format.rotates());
            Ok((
                format,
                destination::open(file, standard, format.filling(), rotate)?,
            ))
        };
        let outputs = args.outputs().into_iter().map(open);
        let outputs: Vec<(Format, Output)> = outputs.collect::<Result<_>>()?;
        for (at, (_, output)) in outputs.iter().enumerate() {
            let same = outputs[..at]
                .iter()
                .find(|(_, other)| other.is_same(output));
            if let Some((_, other)) = same {
                bail!("-o {} and -o {} are the same file", other.name, output.name);
            }
        }
        let labels = args.labels();
        Ok(Self { outputs, labels })
    }

    /// By which labels metrics are told apart.
    pub(super) fn labels(&self) -> MetricLabels {
        self.labels
    }

    pub(super) fn into_outputs(self) -> Vec<(Format, Output)> {
        self.outputs
    }

    /// Whether one of them is a page to look at.
    pub(super) fn have_page(&self) -> bool {
        self.outputs
            .iter()
            .any(|(format, _)| *format == Format::Html)
    }

    /// Whether memleak needs its standard error for the report, or for what metrics had no room for.
    pub(super) fn need_stderr(&self) -> bool {
        let needs =
            |(format, output): &(Format, Output)| output.is_stderr || *format == Format::Prometheus;
        self.outputs.iter().any(needs)
    }
}

impl Books {
    pub(super) fn open(
        shown: &ShownArgs,
        contents: Contents,
        args: bool,
        gate: Option<Gate>,
        destinations: Destinations,
        command: &[OsString],
    ) -> Self {
        let (live, order, lost, stacks_left_out) = match contents {
            Contents::Run {
                order,
                lost,
                stacks_left_out,
            } => (false, order, lost, stacks_left_out),
            Contents::Watch { live, lost } => (live, CommandOrder::default(), lost, false),
        };
        let origins = match contents {
            Contents::Run { .. } => Origins::of_command(),
            Contents::Watch { .. } => Origins::of_machine(),
        };
        // A terminal that can move its cursor shows one table of running processes, not a history of tables.
        let is_dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
        let refreshes = |format, output: &Output| {
            live && output.terminal && !is_dumb && format == Format::Table
        };
        let table_on_stderr = destinations
            .outputs
            .iter()
            .any(|(format, output)| output.is_stderr && *format == Format::Table);
        let any_refreshes = destinations
            .outputs
            .iter()
            .any(|(format, output)| refreshes(*format, output));
        let has_page = destinations.have_page();
        let labels = destinations.labels;
        let mut report = Report::default();
        for (format, output) in destinations.outputs {
            let look = Options {
                verbosity: match output.is_file {
                    // Who names a file wants what is in it.
                    true => Verbosity::of(false, shown.verbose),
                    false => shown.verbosity(),
                },
                color: shown.color.wanted(output.terminal, destination::no_color()),
                refresh: refreshes(format, &output),
                order,
                args,
                lost,
                stacks_left_out,
                has_page,
                labels,
            };
            report.add(format, look, output);
        }
        let gathering = report.has_documents().then(Gathering::default);
        Books {
            comparison: None,
            by_path: gate.as_ref().is_some_and(Gate::is_by_path),
            ledger: Ledger::new(gate),
            report,
            gathering,
            about: about(command),
            users: UsersCache::new(),
            leaks: None,
            unwritten: BTreeSet::new(),
            noticed: BTreeSet::new(),
            origins,
            failures: 0,
            explained: false,
            refreshes: any_refreshes,
            shown: None,
            table_on_stderr,
        }
    }

    /// Whether every reader of the report has closed its end.
    pub(super) fn is_unread(&self) -> bool {
        self.report.is_unread()
    }

    /// Looks up where a process belongs, while its control group is still there.
    pub(super) fn locate(&mut self, image: &mut Image) {
        self.origins.find(image);
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
        self.locate(&mut image);
        self.explain(&image);
        if self.by_path {
            // As memleak sees the path. In another root, and for a file that is gone, it may lead nowhere.
            image.real_exe = image.exe.as_ref().and_then(|exe| exe.canonicalize().ok());
        }
        let judged = self.ledger.judges(&image);
        let may_judge = self.ledger.may_judge(&image);
        let by_stack = (self.comparison.as_ref()).is_some_and(Comparison::is_by_stack);
        // Until its stacks have names, nobody knows what is suppressed, and what is new.
        let waits = (self.leaks.as_ref())
            .is_some_and(|leaks| judged && leaks.may_suppress(&image) || may_judge && by_stack);
        let verdict = enter(&image, waits, self.comparison.as_mut(), &mut self.ledger);
        let unwritten = self.report.image(&image, verdict);
        self.check(unwritten);
        self.gather(&image);
        if let Some(leaks) = &mut self.leaks {
            leaks.keep(image, judged, waits);
        }
    }

    /// Keeps an image for documents.
    fn gather(&mut self, image: &Image) {
        if let Some(gathering) = &mut self.gathering {
            gathering.image(image);
        }
    }

    /// From now on, leaks are compared with a baseline.
    pub(super) fn compare(&mut self, comparison: Comparison) {
        self.comparison = Some(comparison);
    }

    /// From now on, call stacks are reported, too.
    pub(super) fn set_leaks(&mut self, leaks: Leaks) {
        self.leaks = Some(leaks);
    }

    /// Adds and reports the images that have ended in a window. `start` and `end` are times since the Unix epoch.
    pub(super) fn enter_window(&mut self, start: Duration, end: Duration, mut images: Vec<Image>) {
        for image in &mut images {
            self.name_user(image);
            self.explain(image);
            self.ledger.record(image);
            self.gather(image);
        }
        let window = Window { start, end, images };
        let unwritten = self.report.window(&window);
        self.check(unwritten);
        if let Some(leaks) = &mut self.leaks {
            let unwritten = leaks.show_window(&window.images, &mut self.report);
            self.check(unwritten);
        }
    }

    /// Adds where the running processes have grown. `stacks` has those of a process.
    pub(super) fn add_growth(
        &mut self,
        live: &mut Live,
        stacks: impl FnMut(u64) -> Option<Vec<StackShare>>,
    ) {
        if let Some(leaks) = &mut self.leaks {
            leaks.add_growth(live, stacks);
        }
    }

    /// Reports the running processes.
    pub(super) fn show(&mut self, mut live: Live, screen: Option<Screen>) {
        for row in &mut live.rows {
            self.name_user(&mut row.image);
        }
        let unwritten = self.report.live(&live, screen.as_ref());
        self.check(unwritten);
        self.shown = screen.map(|screen| (live, screen));
    }

    /// From now on, metrics are also served at an address.
    ///
    /// # Errors
    /// There is no room for a thread or a descriptor.
    pub(super) fn serve(
        &mut self,
        listener: Listener,
        every: Duration,
        labels: MetricLabels,
        lost: bool,
    ) -> Result<()> {
        let name = listener.address.to_string();
        for (exposition, writer) in listener.serve(every)? {
            let (name, out) = (name.clone(), Box::new(writer));
            self.report.add_metrics(exposition, labels, lost, name, out);
        }
        Ok(())
    }

    /// Whether the running processes are measured in each window.
    pub(super) fn measures(&self) -> bool {
        self.report.measures()
    }

    /// Measures the running processes. `rows_lost`: how many rows the kernel side has lost so far.
    pub(super) fn measure(&mut self, live: &mut Live, rows_lost: u64) {
        for row in live.rows.iter_mut().chain(&mut live.rest) {
            self.name_user(&mut row.image);
        }
        let unwritten = self.report.measure(live, rows_lost + self.failures);
        self.check(unwritten);
    }

    /// Draws the running processes that were shown last again, because the terminal has another size.
    pub(super) fn redraw(&mut self, screen: Option<Screen>) {
        let Some(((live, before), screen)) = self.shown.take().zip(screen) else {
            return;
        };
        let time_of_day = before.time_of_day;
        self.show(
            live,
            Some(Screen {
                time_of_day,
                ..screen
            }),
        );
    }

    /// Counts a failure of memleak during the session, and says the first one. The result is then incomplete. The
    /// watched processes are not disturbed.
    pub(super) fn fail(&mut self, error: &anyhow::Error) {
        if self.failures == 0 {
            say(&format!("{error:#}"));
        }
        self.failures += 1;
    }

    /// Closes the sums and reports them. If the gate failed, is unknown or has a pattern that matched no process, that is
    /// said on standard error, wherever the report goes. A table there says it itself.
    pub(super) fn close(mut self, mut losses: Losses, outcome: Outcome) -> Summary {
        losses.rows_lost += self.failures;
        let mut ledger = std::mem::replace(&mut self.ledger, Ledger::new(None));
        let located = self.leaks.take().map(|leaks| {
            let readers = StackReaders {
                gathering: self.gathering.as_mut(),
                comparison: self.comparison.as_mut(),
            };
            let (located, unwritten) = leaks.show(&mut ledger, &mut self.report, readers);
            self.check(unwritten);
            located
        });
        let selection = ledger.selection();
        let mut summary = ledger.finish(losses, outcome);
        summary.located = located;
        let comparison = self.comparison.take();
        summary.baseline = comparison.map(|comparison| comparison.finish(&selection));
        let unwritten = self.report.summary(&summary);
        self.check(unwritten);
        if !self.table_on_stderr
            && let Some(line) = verdict_line(&summary)
        {
            say(&line);
        }
        let Some(gathering) = self.gathering.take() else {
            return summary;
        };
        let about = About {
            ended: now(),
            ..std::mem::take(&mut self.about)
        };
        let finished = gathering.finish(about, selection, summary);
        say_more_sites(&finished);
        let unwritten = self.report.documents(&finished);
        self.check(unwritten);
        finished.summary
    }

    /// Says which writes have failed. A full disk is a failure of the report, not of the command.
    fn check(&mut self, unwritten: Vec<Unwritten>) {
        for Unwritten { to, error } in unwritten {
            if self.unwritten.insert(to.clone()) {
                say(&format!("cannot write the report to {to}: {error}"));
            }
        }
        for notice in self.report.notices() {
            if !self.noticed.contains(&notice) {
                say(&notice);
                self.noticed.insert(notice);
            }
        }
    }
}

/// Says if documents do not have all call stacks.
pub(super) fn say_more_sites(finished: &Finished) {
    if finished.has_more_sites {
        say(
            "pages, profiles and results of tests have no room for all call stacks: those that leaked least are left out",
        );
    }
}

/// What is known of the session when it begins.
fn about(command: &[OsString]) -> About {
    let host = nix::unistd::gethostname().ok();
    About {
        command: command
            .iter()
            .map(|word| word.as_bytes().to_vec())
            .collect(),
        directory: std::env::current_dir().ok(),
        hosts: host
            .iter()
            .map(|host| host.to_string_lossy().into_owned())
            .collect(),
        began: now(),
        ended: Duration::default(),
    }
}

/// Since the Unix epoch.
fn now() -> Duration {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.unwrap_or_default()
}
