//! `memleak run` from beginning to end: launch, probe, release, follow, report.

use std::time::{Duration, Instant};

use anyhow::Result;

use crate::launch::Suspended;
use crate::launch::descriptors::Stderr;
use crate::launch::running::{Ended, ExecError, Running};
use crate::launch::signals::{Event, Signals};
use crate::model::exit::{self, Finish, Outcome};
use crate::model::image::Losses;
use crate::options::{GateArgs, Run, WaitAll};
use crate::os::capabilities;
use crate::os::identity::Identity;
use crate::os::say::say;
use crate::report::destination::{self, Standard};
use crate::session::books::{Books, say_detours, started};
use crate::session::prober::Prober;
use crate::session::pump::{TICK, pump};

/// Where Slurm says which of its scripts it runs.
const SLURM_CONTEXT: &str = "SLURM_SCRIPT_CONTEXT";

/// Runs the command and says how memleak is to end.
///
/// # Errors
/// Something failed before the command was released; it has not run.
pub fn run(options: &Run) -> Result<Finish> {
    capabilities::keep_what_is_used()?;
    let user = options
        .user
        .as_ref()
        .map(Identity::of_command)
        .transpose()?;
    let command = Suspended::fork(&options.command, user.as_ref())?;
    let mut signals = Signals::take_over()?;
    let report = destination::open(options.report.shown.output.as_deref(), Standard::Error)?;
    let verbose = options.report.shown.verbose;
    let switches = options.probing.test.switches();
    let prober = Prober::start(&options.probing, switches, verbose, &command);
    let mut prober = started(prober, verbose)?;
    // What -v still has to say needs it, too.
    let keep = if report.is_stderr || verbose {
        Stderr::Keep
    } else {
        Stderr::GiveUp
    };
    let mut books = Books::open(&options.report, options.gate.gate(), false, report);
    let outcome = match command.release(keep) {
        Ok(mut running) => {
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
    let mut collector = prober.collector;
    match collector.take_all() {
        Ok(images) => images.into_iter().for_each(|image| books.enter(image)),
        Err(error) => books.fail(&error),
    }
    if verbose {
        say_detours(&collector);
    }
    let finish = close(books, collector.losses(), outcome, &options.gate);
    collector.detach_at_exit();
    Ok(finish)
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

/// Follows what the command has left behind: to the last end, for as long as `limit` says, or until a
/// signal asks for the report.
fn wait_all(
    limit: WaitAll,
    command: &mut Running,
    signals: &mut Signals,
    prober: &mut Prober,
    books: &mut Books,
) {
    let began = Instant::now();
    // Each row that comes wakes us, that of the last process too; the tick is for a last process that
    // could not be given a row.
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

/// Waits for something to happen, at most `timeout`, and does what is to be done about it.
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
    // Whatever of the tree had ended before the command did is in the ring by now.
    match collector.take_ended() {
        Ok(images) => images.into_iter().for_each(|image| books.enter(image)),
        Err(error) => books.fail(&error),
    }
    let events = events.unwrap_or_else(|error| {
        books.fail(&error);
        Vec::new()
    });
    let ended = |event: &Event| matches!(event, Event::Ended(_));
    // Nobody should wait for memleak's end because of it.
    if !events.iter().any(ended)
        && let Err(error) = collector.sweep_if_due()
    {
        books.fail(&error);
    }
    events
}

/// Closes the books over the command's end, and decides memleak's own.
fn close(books: Books, losses: Losses, outcome: Outcome, gate: &GateArgs) -> Finish {
    let verdict = books.close(losses, outcome).verdict();
    let leak = gate.leak_exit();
    let context = std::env::var_os(SLURM_CONTEXT).unwrap_or_default();
    let counts = exit::that_counts(verdict, &context, gate.allow_drain);
    let finish = exit::finish(outcome, counts, leak);
    if finish != exit::finish(outcome, verdict, leak) {
        say(&format!(
            "the gate does not count, as a failure of Slurm's {} drains the node (see --allow-drain)",
            context.display()
        ));
    }
    finish
}

pub(super) fn not_executed(error: &ExecError) -> Outcome {
    say(&error.to_string());
    error.outcome()
}
