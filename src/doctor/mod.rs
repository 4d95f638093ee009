//! `memleak doctor`: whether `memleak run` works here, what is in its way, and what to do about it.
//!
//! What decides is a run in small (`trial`), of a child whose allocations are known (`patient`). The rest explains it:
//! each fact is found out by itself (`machine`, `c_library`, `price`), and what cannot be found out because of another
//! one says so. What facts mean is decided by pure functions (`judge`, `verdict`) over plain values.

mod c_library;
mod check;
mod judge;
mod machine;
mod output;
mod patient;
mod price;
mod trial;
mod verdict;

#[cfg(test)]
mod tests;

use std::io::ErrorKind;
use std::path::Path;

use anyhow::{Context, Result};

use crate::kernel::method::Method;
use crate::model::exit::TOOL_ERROR;
use crate::options;
use crate::options::switches::Switches;
use crate::os::capabilities;
use crate::report::destination::{self, Output, Standard};
use c_library::{Libc, Unusable};
use check::Diagnosis;
use machine::Machine;
use price::Price;
use trial::Trial;

/// Examines, reports, and says with what memleak is to end: 0 only if `memleak run` works.
///
/// # Errors
/// The report cannot be written.
pub fn doctor(options: &options::Doctor) -> Result<u8> {
    let switches = options.test.switches();
    if let Some(part) = switches.patient {
        return Ok(patient::live(part));
    }
    capabilities::keep_what_is_used()?;
    // A descriptor of its own: to let the child go is to give up standard output.
    let standard = Path::new("/dev/stdout");
    let file = options.shown.output.as_deref().unwrap_or(standard);
    let output = destination::open(Some(file), Standard::Output)?;
    let diagnosis = examine(switches);
    write(options, &diagnosis, output)?;
    Ok(match diagnosis.works() {
        true => 0,
        false => TOOL_ERROR,
    })
}

fn examine(switches: Switches) -> Diagnosis {
    let machine = Machine::look();
    let trial = trial::run(switches);
    let libc = c_library::find();
    let measure = |method| price::measure(method).map_err(|error| format!("{error:#}"));
    diagnose(&machine, &trial, &libc, measure)
}

/// What the facts mean. The price is measured only where the trial ran.
fn diagnose(
    machine: &Machine,
    trial: &Trial,
    libc: &Result<Option<Libc>, Unusable>,
    measure: impl FnOnce(Method) -> Result<Price, String>,
) -> Diagnosis {
    let mut checks = judge::machine(machine, trial);
    checks.extend(verdict::libc(libc));
    checks.extend(verdict::trial(trial));
    checks.push(verdict::return_probes(trial, machine));
    checks.push(match trial {
        Trial::Ran(ran) => verdict::price(&measure(ran.method)),
        Trial::Refused(refusal) => verdict::not_tried(verdict::PRICE, refusal),
    });
    let ran = trial.ran();
    Diagnosis {
        checks,
        method: ran.map(|ran| ran.method),
        holds: ran.map(|ran| ran.holds),
    }
}

fn write(options: &options::Doctor, diagnosis: &Diagnosis, mut to: Output) -> Result<()> {
    let verbosity = options.shown.verbosity();
    let color = options
        .shown
        .color
        .wanted(to.terminal, destination::no_color());
    let text = output::render(diagnosis, options.format, verbosity, color)?;
    let written = to.writer.write_all(text.as_bytes());
    match written.and_then(|()| to.writer.flush()) {
        // Nobody wants to read it any more.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => written.with_context(|| format!("cannot write to {}", to.name)),
    }
}
