//! The sums of a session and their report. The sums are computed in `model`, and the report is printed in `report`.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use users::{Users, UsersCache};

use crate::kernel::collector::Collector;
use crate::kernel::error;
use crate::model::commands::CommandOrder;
use crate::model::exit::Outcome;
use crate::model::gate::Gate;
use crate::model::image::{Image, Losses};
use crate::model::ledger::{Ledger, Summary};
use crate::model::live::Live;
use crate::model::metrics::Labels;
use crate::model::places::LeakPlaces;
use crate::model::stack::StackShare;
use crate::options::{ReportArgs, ShownArgs};
use crate::os::say::say;
use crate::report::destination::{self, Output, Standard};
use crate::report::{
    Format, Options, Report, Screen, Sink, Unwritten, Verbosity, Window, verdict_line,
};
use crate::session::listener::Listener;
use crate::session::origins::Origins;
use crate::session::prober::Prober;
use crate::stacks::namer::Namer;

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

/// The call stacks of an image.
struct KeptStacks {
    pid: u32,
    image: u32,
    comm: Vec<u8>,
    shares: Vec<StackShare>,
}

/// Of the stacks beyond so many, only those that leaked are kept, and no more than as many again. One takes 48 bytes.
const MOST_SHARES: usize = 1 << 20;

/// How long names of call stacks may take.
const NAMED_WITHIN: Duration = Duration::from_secs(20);

/// How many places in programs are shown.
const PLACES_SHOWN: usize = 10;

/// The sums and the report of them.
pub(super) struct Books {
    ledger: Ledger,
    report: Report,
    /// `None`: no call stacks are reported.
    namer: Option<Namer>,
    /// The call stacks that are reported at the end.
    stacks: Vec<KeptStacks>,
    kept_shares: usize,
    /// How many found no room.
    shares_left_out: u64,
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
    Run { order: CommandOrder, lost: bool },
    /// Windows. `live`: the running processes are shown repeatedly.
    Watch { live: bool, lost: bool },
}

/// The opened destinations of a report.
pub(super) struct Destinations {
    outputs: Vec<(Format, Output)>,
    labels: Labels,
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
                destination::open(file, standard, format.old_content(), rotate)?,
            ))
        };
        let outputs = args.outputs().into_iter().map(open);
        let outputs: Vec<(Format, Output)> = outputs.collect::<Result<_>>()?;
        for (at, (_, output)) in outputs.iter().enumerate() {
            let same = |(_, other): &&(Format, Output)| other.identity == output.identity;
            let twice = outputs[..at].iter().find(same);
            if let Some((_, other)) = twice.filter(|_| output.identity.is_some()) {
                bail!("-o {} and -o {} are the same file", other.name, output.name);
            }
        }
        let labels = args.labels();
        Ok(Self { outputs, labels })
    }

    /// Whether memleak needs its standard error for the report.
    pub(super) fn need_stderr(&self) -> bool {
        self.outputs.iter().any(|(_, output)| output.is_stderr)
    }
}

impl Books {
    pub(super) fn open(
        shown: &ShownArgs,
        contents: Contents,
        args: bool,
        gate: Option<Gate>,
        destinations: Destinations,
    ) -> Self {
        let (live, order, lost) = match contents {
            Contents::Run { order, lost } => (false, order, lost),
            Contents::Watch { live, lost } => (live, CommandOrder::default(), lost),
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
        let labels = destinations.labels;
        let sinks = destinations.outputs.into_iter().map(|(format, output)| {
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
                labels,
            };
            Sink::new(format, look, output.name, output.writer)
        });
        Books {
            by_path: gate.as_ref().is_some_and(Gate::is_by_path),
            ledger: Ledger::new(gate),
            report: Report::new(sinks.collect()),
            users: UsersCache::new(),
            namer: None,
            stacks: Vec::new(),
            kept_shares: 0,
            shares_left_out: 0,
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
        let verdict = self.ledger.record(&image);
        let unwritten = self.report.image(&image, verdict);
        self.check(unwritten);
        self.keep_stacks(&mut image);
    }

    /// Keeps the call stacks of an image until the end of the report: processes may wait now, and names take time.
    fn keep_stacks(&mut self, image: &mut Image) {
        let mut shares = std::mem::take(&mut image.stacks);
        if self.namer.is_none() {
            return;
        }
        if self.kept_shares + shares.len() > MOST_SHARES {
            shares.retain(|share| share.leaked_blocks > 0);
        }
        if self.kept_shares + shares.len() > 2 * MOST_SHARES {
            self.shares_left_out += shares.len() as u64;
            return;
        }
        self.kept_shares += shares.len();
        self.stacks.push(KeptStacks {
            pid: image.pid,
            image: image.image,
            comm: image.comm.clone(),
            shares,
        });
    }

    /// Names and reports the call stacks that were kept. Returns where processes leaked.
    fn show_stacks(&mut self) -> LeakPlaces {
        let mut places = LeakPlaces::default();
        let Some(mut namer) = self.namer.take() else {
            return places;
        };
        let kept = std::mem::take(&mut self.stacks);
        let shares = kept.iter().flat_map(|kept| &kept.shares);
        namer.look_up(
            shares.map(|share| &*share.stack),
            Instant::now() + NAMED_WITHIN,
        );
        for kept in &kept {
            for share in &kept.shares {
                let stack = namer.name(&share.stack);
                let unwritten = self.report.stack(kept.pid, kept.image, share, &stack);
                self.check(unwritten);
                places.add(&kept.comm, share, &stack);
            }
        }
        if self.shares_left_out > 0 {
            let left_out = self.shares_left_out;
            say(&format!(
                "{left_out} call stacks are left out of the report: there are too many"
            ));
        }
        places
    }

    /// From now on, call stacks are reported, too.
    pub(super) fn set_namer(&mut self, namer: Namer) {
        self.namer = Some(namer);
    }

    /// Adds and reports the images that have ended in a window. `start` and `end` are times since the Unix epoch.
    pub(super) fn enter_window(&mut self, start: Duration, end: Duration, mut images: Vec<Image>) {
        for image in &mut images {
            self.name_user(image);
            self.explain(image);
            self.ledger.record(image);
        }
        let unwritten = self.report.window(&Window { start, end, images });
        self.check(unwritten);
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
        labels: Labels,
        lost: bool,
    ) -> Result<()> {
        let name = listener.address.to_string();
        for (exposition, writer) in listener.serve(every)? {
            let sink = Sink::metrics(exposition, labels, lost, name.clone(), Box::new(writer));
            self.report.add(sink);
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
        let ledger = std::mem::replace(&mut self.ledger, Ledger::new(None));
        let mut summary = ledger.finish(losses, outcome);
        (summary.places, summary.more_places) = self.show_stacks().largest(PLACES_SHOWN);
        let unwritten = self.report.summary(&summary);
        self.check(unwritten);
        if !self.table_on_stderr
            && let Some(line) = verdict_line(&summary)
        {
            say(&line);
        }
        summary
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
