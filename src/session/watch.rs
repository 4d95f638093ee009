//! `memleak -p` and `-a`: join what runs, report window by window who has ended in it.

use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use anyhow::Result;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::{TimeVal, TimeValLike};

use crate::model::exit::Outcome;
use crate::model::image::Image;
use crate::model::live::Growth;
use crate::options::Watch;
use crate::os::capabilities;
use crate::os::clock::monotonic;
use crate::os::processes::Process;
use crate::os::say::say;
use crate::report::closing_line;
use crate::report::destination::{self, Standard};
use crate::session::books::{Books, say_detours, started};
use crate::session::filter::{self, Filter};
use crate::session::prober::Prober;
use crate::session::pump::{TICK, pump};
use crate::session::requests::{Request, Requests};
use crate::text::units::megabytes;

/// Watches until the processes that were named have ended, or somebody asks for the end.
///
/// # Errors
/// Nobody can be watched.
pub fn watch(options: &Watch) -> Result<()> {
    capabilities::keep_what_is_used()?;
    let (wanted, filter) = filter::resolve(&options.filters)?;
    let processes: Result<Vec<_>> = options.pid.iter().map(|pid| Process::open(*pid)).collect();
    let processes = processes?;
    let mut requests = Requests::take_over()?;
    let report = destination::open(options.report.shown.output.as_deref(), Standard::Output)?;
    let clock = Instant::now();
    let prober = if options.all {
        Prober::watch_all(options, &wanted)
    } else {
        Prober::watch(options, &wanted, &processes)
    };
    let prober = started(prober, options.report.shown.verbose)?;
    let began = monotonic();
    let mut watching = Watching {
        prober,
        books: Books::open(&options.report, None, options.live, report),
        filter,
        ended: Vec::new(),
        opened: began,
        growth: Growth::since(began),
        options,
    };
    watching.follow(processes, &mut requests);
    watching.close(clock);
    Ok(())
}

/// Rows that wait for the end of their window at the most, about a kilobyte each. A window with more is reported in
/// parts, each with its own times.
const MOST_HELD: usize = 32_768;

struct Watching<'a> {
    prober: Prober,
    books: Books,
    filter: Filter,
    /// Who has ended in the window that is open.
    ended: Vec<Image>,
    /// When it was opened, by CLOCK_MONOTONIC.
    opened: Duration,
    growth: Growth,
    options: &'a Watch,
}

impl Watching<'_> {
    /// Follows until there is nobody left of whom to follow, or somebody asks for the end.
    fn follow(&mut self, mut processes: Vec<Process>, requests: &mut Requests) {
        let interval = self.options.interval;
        let mut due = Instant::now() + interval;
        loop {
            let rest = due.saturating_duration_since(Instant::now());
            self.wait(rest.min(TICK), &mut processes, requests);
            let asked = requests.take().unwrap_or_else(|error| {
                self.books.fail(&error);
                Vec::new()
            });
            // Before the rows are taken: whoever has ended by now has left its row.
            let over = !self.options.all
                && processes.is_empty()
                && self.prober.collector.everyone_has_ended();
            self.take();
            if asked.contains(&Request::Show) {
                self.show();
            }
            if over || asked.contains(&Request::Stop) || self.books.unread {
                return;
            }
            if Instant::now() >= due {
                self.close_window();
                if self.options.live {
                    self.show();
                }
                // A window that could not be closed in time is longer, and those after it are not shorter.
                due = (due + interval).max(Instant::now());
            }
            if let Err(error) = self.prober.collector.sweep_if_due() {
                self.books.fail(&error);
            }
        }
    }

    /// Waits for something to happen, and takes those who have ended off the list.
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

    /// Takes the rows of those who have ended.
    fn take(&mut self) {
        match self.prober.collector.take_ended() {
            Ok(images) => {
                let kept = images.into_iter().filter(|image| self.filter.keeps(image));
                self.ended.extend(kept);
            }
            Err(error) => self.books.fail(&error),
        }
        // In parts, rather than in any amount of memory.
        if self.ended.len() >= MOST_HELD {
            self.close_window();
        }
    }

    fn close_window(&mut self) {
        let end = monotonic();
        let ended = std::mem::take(&mut self.ended);
        // All times of a window by one clock, the rows' too: it does not end before it began because somebody has
        // set the clock back.
        let clock = self.prober.collector.clock();
        let [from, to] = [self.opened, end].map(|time| clock.unix(time));
        self.books.enter_window(from, to, ended);
        self.opened = end;
        self.prober.collector.set_clock();
    }

    /// Shows who still runs.
    fn show(&mut self) {
        match self.prober.collector.running() {
            Ok(running) => {
                let kept = |image: &Image| self.filter.keeps(image);
                let top = match self.books.refreshes {
                    true => self.options.top.min(room()),
                    false => self.options.top,
                };
                let mut live = self.growth.look(monotonic(), running, kept, top);
                let clock = self.prober.collector.clock();
                live.since = clock.unix(live.since);
                live.time = clock.unix(live.time);
                self.books.show(live);
            }
            Err(error) => self.books.fail(&error),
        }
    }

    /// Reports the window that is still open, and says what is to be said in the end.
    fn close(mut self, began: Instant) {
        self.take();
        self.close_window();
        let report = &self.options.report;
        let collector = self.prober.collector;
        if report.shown.verbose {
            say_detours(&collector);
        }
        let kernel = collector.kernel_memory();
        let summary = self.books.close(collector.losses(), Outcome::Watched);
        if report.shown.verbose || (!report.shown.quiet && !summary.losses.is_empty()) {
            say(&closing_line(&summary));
        }
        if report.shown.verbose
            && let Some(cost) = own_cost(began.elapsed(), kernel)
        {
            say(&cost);
        }
        collector.detach_at_exit();
    }
}

/// How many processes fit on the terminal, between two headings and a line of how many more there are.
fn room() -> usize {
    const LINES_BESIDE: usize = 4;
    let mut size = MaybeUninit::<libc::winsize>::zeroed();
    // SAFETY: the call fills in the structure, of integers, which are something even where it does not.
    let lines = unsafe {
        libc::ioctl(libc::STDOUT_FILENO, libc::TIOCGWINSZ, size.as_mut_ptr());
        usize::from(size.assume_init().ws_row)
    };
    match lines {
        0 => usize::MAX,
        lines => lines.saturating_sub(LINES_BESIDE).max(1),
    }
}

/// What watching has cost: `elapsed` is how long it took, `kernel` what maps and programs take, in bytes.
fn own_cost(elapsed: Duration, kernel: u64) -> Option<String> {
    let usage = getrusage(UsageWho::RUSAGE_SELF).ok()?;
    let seconds = |time: TimeVal| time.num_microseconds() as f64 / 1e6;
    let cpu = seconds(usage.user_time()) + seconds(usage.system_time());
    let elapsed = elapsed.as_secs_f64();
    // getrusage(2) tells kilobytes of 1024.
    let resident = megabytes(usage.max_rss().unsigned_abs() * 1024);
    let kernel = megabytes(kernel);
    Some(format!(
        "{cpu:.2} s of CPU in {elapsed:.1} s ({:.1} %), {resident} MB of memory at the most, {kernel} MB in the \
         kernel's maps",
        cpu / elapsed * 100.0,
    ))
}
