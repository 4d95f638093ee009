//! `memleak -p` and `-a`: attach to running processes, and report window by window which processes have ended. The
//! steps themselves are in `prober`, `pump` and `books`.

use std::io::{self, IsTerminal};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::model::exit::Outcome;
use crate::model::image::Image;
use crate::model::live::{Growth, Live};
use crate::options::watch::{Interval, Watch};
use crate::os::capabilities::{self, Capabilities};
use crate::os::clock::monotonic;
use crate::os::processes::{self, Process};
use crate::os::say::say;
use crate::os::terminal;
use crate::report::destination::Standard;
use crate::report::{Format, Screen, closing_line, suppressed_lines};
use crate::session::books::{Books, Contents, Destinations, say_detours, started};
use crate::session::cost::own_cost;
use crate::session::filter::{self, Filter};
use crate::session::greeting::{greeting, unreadable};
use crate::session::leaks::Leaks;
use crate::session::listener::Listener;
use crate::session::prober::Prober;
use crate::session::pump::{TICK, pump};
use crate::session::requests::{Request, Requests};
use crate::session::sifting::ShownLeaks;
use crate::stacks::namer::Namer;
use crate::text::escape;

/// Watches until the named processes and all that they have started have ended, or until a signal asks for the end.
///
/// # Errors
/// memleak cannot begin to watch.
pub fn watch(options: &Watch) -> Result<()> {
    capabilities::keep_what_is_used()?;
    let (wanted, filter) = filter::resolve(&options.filters)?;
    let processes: Result<Vec<_>> = options.pid.iter().map(|pid| Process::open(*pid)).collect();
    let processes = processes?;
    if let Some(interval) = options.interval {
        ensure_is_no_pid(interval, &processes)?;
    }
    let mut requests = Requests::take_over()?;
    let destinations = Destinations::open(&options.report, Standard::Output, options.rotate)?;
    let shown_leaks = ShownLeaks::new(
        &options.stacks.leaks,
        options.stacks.gen_suppressions,
        options.top_places(),
    )?;
    let listener = options.listen.map(Listener::bind).transpose()?;
    let clock = Instant::now();
    let mut children = 0;
    let prober = if options.all {
        Prober::watch_all(options, &wanted)
    } else {
        let watched = Prober::watch(options, &wanted, &processes);
        watched.map(|(prober, found)| {
            children = found;
            prober
        })
    };
    let prober = started(prober, options.shown.verbose)?;
    let began = monotonic();
    let own = Capabilities::get().ok().filter(|_| options.all);
    if let Some(unreadable) = own.and_then(unreadable) {
        say(&unreadable);
    }
    if !options.shown.quiet && io::stderr().is_terminal() {
        if options.no_children {
            children = processes::count_descendants(&processes)?;
        }
        let stop = match requests.interrupts {
            true => "Ctrl-C ends".to_owned(),
            false => format!("kill {} ends", std::process::id()),
        };
        say(&greeting(options, &processes, children, &stop));
    }
    let lost = prober.collector.tells_lost();
    let mut books = Books::open(
        &options.shown,
        Contents::Watch {
            live: options.live,
            lost,
        },
        options.args,
        None,
        destinations,
        &[],
    );
    if let Some(listener) = listener {
        if !options.shown.quiet {
            say(&format!(
                "metrics are at http://{}/metrics",
                listener.address
            ));
        }
        books.serve(listener, options.every(), options.report.labels(), lost)?;
    }
    let mut watching = Watching {
        prober,
        books,
        filter,
        ended: Vec::new(),
        opened: began,
        growth: Growth::since(began),
        shown: false,
        options,
    };
    if let Some(files) = watching.prober.collector.code_files() {
        let leaks = Leaks::new(Namer::new(files), shown_leaks);
        watching.books.set_leaks(leaks);
    }
    let why = watching.follow(processes, &mut requests);
    watching.close(clock, why);
    Ok(())
}

/// `-p $(pidof nginx)` gives the second pid where the interval stands. So the interval must not be the pid of a process
/// of the same name.
fn ensure_is_no_pid(interval: Interval, processes: &[Process]) -> Result<()> {
    let Some(pid) = interval.pid else {
        return Ok(());
    };
    let Some(other) = Process::open_living(pid)? else {
        return Ok(());
    };
    let comm = other.comm();
    let twin = processes.iter().find(|process| process.comm() == comm);
    if let Some(&Process { pid: named, .. }) = twin
        && processes.iter().all(|process| process.pid != pid)
    {
        bail!(
            "-p {named} {pid}: the second word is the INTERVAL in seconds, but {pid} is a process '{}', as {named} is: \
             write -p {named},{pid} to watch both, or {pid}.0 for this INTERVAL",
            escape::escaped(&comm)
        );
    }
    Ok(())
}

/// The largest number of rows that wait for the end of their window. A row takes about a kilobyte. A window with more
/// rows is reported in parts, each with its own times.
const MOST_HELD: usize = 32_768;

/// What is said if there is nothing to show.
const NOTHING: &str = "nothing to report: since memleak attached, no process that matches has ended, and none runs now";

struct Watching<'a> {
    prober: Prober,
    books: Books,
    filter: Filter,
    /// The images that have ended in the open window.
    ended: Vec<Image>,
    /// When the window was opened, by CLOCK_MONOTONIC.
    opened: Duration,
    growth: Growth,
    /// Whether the report has a row.
    shown: bool,
    options: &'a Watch,
}

/// Why a watch ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum WatchEnd {
    /// All watched processes have ended, or the report's reader has closed its end.
    Over,
    /// A signal asked for the end.
    Asked,
}

impl Watching<'_> {
    /// Follows until no process is left to follow, until a signal asks for the end, or until the report's reader has
    /// closed its end.
    fn follow(&mut self, mut processes: Vec<Process>, requests: &mut Requests) -> WatchEnd {
        let interval = self.options.every();
        let mut due = Instant::now() + interval;
        // Who reads metrics need not wait for the first interval.
        if self.books.measures() {
            match self.look() {
                Ok(mut live) => self.measure(&mut live),
                Err(error) => self.books.fail(&error),
            }
        }
        loop {
            let rest = due.saturating_duration_since(Instant::now());
            self.wait(rest.min(TICK), &mut processes, requests);
            let asked = requests.take().unwrap_or_else(|error| {
                self.books.fail(&error);
                Vec::new()
            });
            // Checked before the rows are taken: a process that has ended by now has left its row.
            let over = !self.options.all
                && processes.is_empty()
                && self.prober.collector.everyone_has_ended();
            self.take();
            if asked.contains(&Request::Show) {
                self.show();
            } else if asked.contains(&Request::Resize) {
                self.books.redraw(self.screen());
            }
            if over || self.books.is_unread() {
                return WatchEnd::Over;
            }
            if asked.contains(&Request::Stop) {
                return WatchEnd::Asked;
            }
            if Instant::now() >= due {
                self.close_window();
                if self.options.live || self.books.measures() {
                    self.look_around();
                }
                // A window that was closed late is longer. The windows after it are not shorter.
                due = (due + interval).max(Instant::now());
            }
            if let Err(error) = self.prober.collector.sweep_if_due() {
                self.books.fail(&error);
            }
        }
    }

    /// Waits for an event, and removes the processes that have ended from the list.
    fn wait(&mut self, timeout: Duration, processes: &mut Vec<Process>, requests: &Requests) {
        let others: Vec<_> = std::iter::once(requests.as_fd())
            .chain(processes.iter().map(AsFd::as_fd))
            .collect();
        let turn = pump(&mut self.prober, &others, timeout);
        turn.failures
            .iter()
            .for_each(|error| self.books.fail(error));
        let mut ended = turn.readable.into_iter().skip(1);
        processes.retain(|_| !ended.next().unwrap_or_default());
    }

    /// Takes the rows of the images that have ended.
    fn take(&mut self) {
        match self.prober.collector.take_ended() {
            Ok(images) => self.keep(images),
            Err(error) => self.books.fail(&error),
        }
        // Reports the window in parts, so that memory use stays bounded.
        if self.ended.len() >= MOST_HELD {
            self.close_window();
        }
    }

    fn keep(&mut self, images: impl IntoIterator<Item = Image>) {
        let kept = images.into_iter().filter(|image| self.filter.keeps(image));
        let kept = kept.map(|mut image| {
            self.books.locate(&mut image);
            image
        });
        self.ended.extend(kept);
    }

    fn close_window(&mut self) {
        let end = monotonic();
        let ended = std::mem::take(&mut self.ended);
        // All times of a window and of its rows use one clock. Otherwise a system clock that was set back could make a
        // window end before it began.
        let clock = self.prober.collector.clock();
        let [from, to] = [self.opened, end].map(|time| clock.unix(time));
        let verbosity = self.options.shown.verbosity();
        self.shown |= ended.iter().any(|image| verbosity.shows(image.end));
        self.books.enter_window(from, to, ended);
        self.opened = end;
        self.prober.collector.set_clock();
    }

    /// Measures the running processes, and shows them if that was asked for.
    fn look_around(&mut self) {
        match self.look() {
            Ok(mut live) => {
                self.measure(&mut live);
                if self.options.live {
                    self.shown = true;
                    self.books.show(live, self.screen());
                }
            }
            Err(error) => self.books.fail(&error),
        }
    }

    fn measure(&mut self, live: &mut Live) {
        if self.books.measures() {
            let losses = self.prober.collector.losses();
            self.books.measure(live, losses.rows_lost);
        }
    }

    /// Shows the running processes.
    fn show(&mut self) {
        match self.look() {
            Ok(live) => {
                self.shown = true;
                self.books.show(live, self.screen());
            }
            Err(error) => self.books.fail(&error),
        }
    }

    /// The terminal on which the running processes are drawn, if they are.
    fn screen(&self) -> Option<Screen> {
        if !self.books.refreshes {
            return None;
        }
        let size = terminal::size(std::io::stdout().as_fd());
        let (columns, lines) = size.unwrap_or(terminal::USUAL_SIZE);
        let now = self.prober.collector.clock().unix(monotonic());
        Some(Screen {
            columns,
            lines,
            time_of_day: terminal::time_of_day(now),
            command: self.options.in_short(),
        })
    }

    /// Looks at the running processes.
    fn look(&mut self) -> Result<Live> {
        let running = self.prober.collector.running()?;
        let kept = |image: &Image| self.filter.keeps(image);
        let mut live = self
            .growth
            .look(monotonic(), running, kept, self.options.top_processes());
        for row in live.rows.iter_mut().chain(&mut live.rest) {
            self.books.locate(&mut row.image);
        }
        let clock = self.prober.collector.clock();
        live.since = clock.unix(live.since);
        live.time = clock.unix(live.time);
        live.older = self.options.older;
        let collector = &mut self.prober.collector;
        let old = collector.old_blocks()?;
        self.books
            .add_growth(&mut live, |id| collector.stacks_of(id, old.as_ref()));
        Ok(live)
    }

    /// Measures what the running processes hold at the end. Shows it if nothing else was shown: who stops memleak wants
    /// to see a result. JSON and CSV are for programs. For these, what a report has must not depend on what ended.
    fn look_back(&mut self, why: WatchEnd) {
        let outputs = self.options.report.outputs();
        let is_table = outputs.iter().any(|(format, _)| *format == Format::Table);
        let is_wanted = is_table && why == WatchEnd::Asked;
        let is_shown = is_wanted && !self.shown && !self.options.shown.quiet;
        if !is_shown && !self.books.measures() {
            return;
        }
        match self.look() {
            Ok(mut live) => {
                self.measure(&mut live);
                match (is_shown, live.rows.is_empty()) {
                    (false, _) => {}
                    (true, true) => say(NOTHING),
                    (true, false) => self.books.show(live, self.screen()),
                }
            }
            Err(error) => self.books.fail(&error),
        }
    }

    /// Reports the window that is still open, and says the closing messages.
    fn close(mut self, began: Instant, why: WatchEnd) {
        self.take();
        // Of a process that has just ended, the verdict may not be there yet.
        let judged = self.prober.collector.wait_for_verdicts();
        self.keep(judged.into_iter().map(|(_, image)| image));
        self.close_window();
        self.look_back(why);
        let shown = &self.options.shown;
        let collector = self.prober.collector;
        if shown.verbose {
            say_detours(&collector);
        }
        let kernel = collector.kernel_memory();
        let summary = self.books.close(collector.losses(), Outcome::Watched);
        if shown.verbose || (!shown.quiet && !summary.losses.is_empty()) {
            say(&closing_line(&summary, collector.tells_lost()));
        }
        let located = summary.located.as_ref().filter(|_| !shown.quiet);
        let suppressed = located.map(|located| suppressed_lines(&located.suppressions));
        suppressed.iter().flatten().for_each(|line| say(line));
        if shown.verbose
            && let Some(cost) = own_cost(began.elapsed(), kernel)
        {
            say(&cost);
        }
        collector.detach_at_exit();
    }
}
