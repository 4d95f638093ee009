//! `memleak run` from beginning to end: launch, probe, release, follow, report. The steps themselves are in `launch`,
//! `prober`, `pump` and `books`.

use std::fs::File;
use std::io::BufReader;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::launch::descriptors::Stderr;
use crate::launch::running::{Ended, ExecError, Running};
use crate::launch::signals::{Event, Signals};
use crate::launch::{Mounts, Suspended};
use crate::model::baseline::Comparison;
use crate::model::bounds::Verdict;
use crate::model::exit::{self, Finish, Outcome};
use crate::model::gate::Gate;
use crate::model::image::Losses;
use crate::options::{GateArgs, Probes, Run, WaitAll};
use crate::os::capabilities;
use crate::os::identity::Identity;
use crate::os::ptrace::Access;
use crate::os::say::say;
use crate::os::stages;
use crate::report::destination::Standard;
use crate::saved::read_baseline;
use crate::session::books::{Books, Contents, Destinations, say_detours, started};
use crate::session::cost::own_cost;
use crate::session::inside;
use crate::session::leaks::Leaks;
use crate::session::prober::Prober;
use crate::session::pump::{TICK, pump};
use crate::session::sifting::ShownLeaks;
use crate::stacks::namer::Namer;

/// The environment variable in which Slurm says which of its scripts it runs.
const SLURM_CONTEXT: &str = "SLURM_SCRIPT_CONTEXT";

/// Runs the command, and returns how memleak must end.
///
/// # Errors
/// Something failed before the command was released. The command has not run.
pub fn run(options: &Run) -> Result<Finish> {
    let began = Instant::now();
    let switches = options.probing.test.switches();
    if switches.stages {
        stages::turn_on();
    }
    if options.probes == Probes::Inside {
        inside::check(options)?;
    }
    capabilities::keep_what_is_used()?;
    let user = options
        .user
        .as_ref()
        .map(Identity::of_command)
        .transpose()?;
    let command = Suspended::fork(&options.command, user.as_ref(), mounts(options.probes))?;
    stages::mark("command forked");
    let mut signals = Signals::take_over()?;
    let destinations = Destinations::open(&options.report, Standard::Error, None)?;
    let gate = gate(&options.gate)?;
    let shown_leaks = ShownLeaks::new(
        &options.stacks.leaks,
        options.stacks.gen_suppressions,
        options.top,
    )?;
    let comparison = comparison(&options.gate)?;
    let verbose = options.shown.verbose;
    let barrier = Access::of_memleak().barrier(user.as_ref().map(Identity::uid));
    if let Some(barrier) = barrier.filter(|_| verbose) {
        say(&format!("no process can be read: {}", barrier.phrase()));
    }
    let prober = Prober::start(
        &options.probing,
        options.probes,
        options.recorded(barrier.is_none()),
        switches,
        verbose,
        &command,
    );
    let mut prober = started(prober, verbose)?;
    // The later messages of -v, and what a gate says, need standard error, too.
    let keep = if destinations.need_stderr() || verbose || gate.is_some() {
        Stderr::Keep
    } else {
        Stderr::GiveUp
    };
    let mut books = Books::open(
        &options.shown,
        Contents::Run {
            order: options.sort,
            lost: prober.collector.tells_lost(),
            stacks_left_out: prober.collector.leaves_out_stacks(),
        },
        options.args,
        gate,
        destinations,
        &options.command,
    );
    if let Some(files) = prober.collector.code_files() {
        books.set_leaks(Leaks::new(Namer::new(files), shown_leaks));
    }
    if let Some(comparison) = comparison {
        books.compare(comparison);
    }
    stages::mark("probes in place");
    let outcome = match command.release(keep) {
        Ok(mut running) => {
            stages::mark("command released");
            let ended = follow(&mut running, &mut signals, &mut prober, &mut books);
            if let Some(limit) = options.wait_all {
                wait_all(limit, &mut running, &mut signals, &mut prober, &mut books);
            }
            match ended {
                Ended::Exited(code) => Outcome::Exited(code),
                Ended::Signaled { signal, core } => Outcome::Signaled { signal, core },
                Ended::NotExecuted(error) => not_executed(&error),
            }
        }
        Err(error) => not_executed(&error),
    };
    stages::mark("command ended");
    let mut collector = prober.collector;
    match collector.take_all() {
        Ok(images) => images.into_iter().for_each(|image| books.enter(image)),
        Err(error) => books.fail(&error),
    }
    if verbose {
        say_detours(&collector);
    }
    let finish = close(books, collector.losses(), outcome, &options.gate);
    if verbose && let Some(cost) = own_cost(began.elapsed(), collector.kernel_memory()) {
        say(&cost);
    }
    stages::mark("report written");
    collector.detach_at_exit();
    stages::mark("probes left to the exit");
    Ok(finish)
}

/// Private probes are in files that only the command's own mounts lead to.
fn mounts(probes: Probes) -> Mounts {
    match probes {
        Probes::Shared => Mounts::Callers,
        Probes::Private | Probes::Inside => Mounts::Own,
    }
}

/// The gate that the user asked for, if any.
pub(super) fn gate(options: &GateArgs) -> Result<Option<Gate>> {
    let directory = match options.gate_exe.is_empty() {
        true => PathBuf::new(),
        false => {
            std::env::current_dir().context("--gate-exe: cannot tell the current directory")?
        }
    };
    options.gate(&directory).context("--gate-exe")
}

/// What leaks are compared with, if the user named a baseline.
pub(super) fn comparison(options: &GateArgs) -> Result<Option<Comparison>> {
    let Some(file) = &options.baseline else {
        return Ok(None);
    };
    let name = file.display();
    let open = File::open(file).with_context(|| format!("cannot open the baseline {name}"))?;
    let baseline = read_baseline(BufReader::new(open))
        .with_context(|| format!("cannot read the baseline {name}"))?;
    let counts_leaks = !options.allowed().leak.are_none();
    Ok(Some(Comparison::new(baseline, counts_leaks)))
}

/// Follows the command to its end.
fn follow(
    command: &mut Running,
    signals: &mut Signals,
    prober: &mut Prober,
    books: &mut Books,
) -> Ended {
    loop {
        for event in turn(TICK, command, signals, prober, books) {
            if let Event::Ended(ended) = event {
                return ended;
            }
        }
    }
}

/// Follows the processes that the command has left behind, until the last one has ended, `limit` is over, or a signal
/// asks for the report.
fn wait_all(
    limit: WaitAll,
    command: &mut Running,
    signals: &mut Signals,
    prober: &mut Prober,
    books: &mut Books,
) {
    let began = Instant::now();
    // Each row wakes memleak, including the row of the last process. The tick is for a last process for which there was
    // no row left.
    while !prober.collector.everyone_has_ended() {
        let rest = match limit {
            WaitAll::Unlimited => TICK,
            WaitAll::AtMost(limit) => limit.saturating_sub(began.elapsed()).min(TICK),
        };
        if rest.is_zero() {
            break;
        }
        let events = turn(rest, command, signals, prober, books);
        if events
            .iter()
            .any(|event| matches!(event, Event::Interrupted(_)))
        {
            break;
        }
    }
}

/// Waits for an event, at most for `timeout`, and handles it.
fn turn(
    timeout: Duration,
    command: &mut Running,
    signals: &mut Signals,
    prober: &mut Prober,
    books: &mut Books,
) -> Vec<Event> {
    let turn = pump(prober, &[signals.fd()], timeout);
    turn.failures.iter().for_each(|error| books.fail(error));
    let collector = &mut prober.collector;
    let events = signals.dispatch(command, &mut collector.signals_seen());
    // The ring now has the rows of all images of the tree that ended before the command did.
    match collector.take_ended() {
        Ok(images) => images.into_iter().for_each(|image| books.enter(image)),
        Err(error) => books.fail(&error),
    }
    let events = events.unwrap_or_else(|error| {
        books.fail(&error);
        Vec::new()
    });
    let ended = |event: &Event| matches!(event, Event::Ended(_));
    // No sweep after the command's end: it would delay memleak's own end.
    if !events.iter().any(ended)
        && let Err(error) = collector.sweep_if_due()
    {
        books.fail(&error);
    }
    events
}

/// Closes the books after the command's end, and decides how memleak ends.
fn close(books: Books, losses: Losses, outcome: Outcome, gate: &GateArgs) -> Finish {
    let verdict = books.close(losses, outcome).verdict();
    ending(outcome, verdict, gate)
}

/// Decides how memleak ends, and says if a gate does not count.
pub(super) fn ending(outcome: Outcome, verdict: Option<Verdict>, gate: &GateArgs) -> Finish {
    let leak = gate.leak_exit();
    let context = std::env::var_os(SLURM_CONTEXT).unwrap_or_default();
    let counts = exit::effective_verdict(verdict, &context, gate.allow_drain);
    let finish = exit::finish(outcome, counts, leak);
    if finish != exit::finish(outcome, verdict, leak) {
        say(&format!(
            "the gate does not count, as a failure of Slurm's {} drains the node (see --allow-drain)",
            context.display()
        ));
    }
    finish
}

fn not_executed(error: &ExecError) -> Outcome {
    say(&error.to_string());
    error.outcome()
}
