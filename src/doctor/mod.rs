//! `memleak doctor`: whether `memleak run` works here, what is in its way, and what to do about it.
//!
//! What decides is a run in small (`trial`), of a child whose allocations are known (`patient`). The rest explains it:
//! each fact is found out by itself (`machine`, `libc`, `price`), and what cannot be found out because of another
//! one says so. What facts mean is decided by pure functions (`judge`, `verdict`) over plain values.

mod check;
mod judge;
mod libc;
mod machine;
mod patient;
mod price;
mod report;
mod trial;
mod verdict;

#[cfg(test)]
mod tests;

use std::io::ErrorKind;
use std::path::Path;

use anyhow::{Context, Result};

use crate::cli;
use crate::kernel::method::Method;
use crate::model::exit::TOOL_ERROR;
use crate::os::capabilities;
use crate::report::Verbosity;
use crate::report::destination::{self, Output, Standard};
use check::Diagnosis;
use libc::Libc;
use machine::Machine;
use price::Price;
use trial::Trial;

pub use patient::Patient;
pub use report::Format;

/// Examines, reports, and says with what memleak is to end: 0 only if `memleak run` works.
///
/// # Errors
/// The report cannot be written.
pub fn doctor(options: &cli::Doctor) -> Result<u8> {
    if let Some(patient) = options.patient {
        return Ok(patient.live());
    }
    capabilities::keep_what_is_used()?;
    // A descriptor of its own: to let the child go is to give up standard output.
    let standard = Path::new("/dev/stdout");
    let file = options.output.as_deref().unwrap_or(standard);
    let output = destination::open(Some(file), Standard::Output)?;
    let diagnosis = examine(options);
    write(options, &diagnosis, output)?;
    Ok(match diagnosis.works() {
        true => 0,
        false => TOOL_ERROR,
    })
}

fn examine(options: &cli::Doctor) -> Diagnosis {
    let machine = Machine::look();
    let trial = trial::run(options);
    let libc = libc::find().map_err(|error| format!("{error:#}"));
    let measure = |method| price::measure(method).map_err(|error| format!("{error:#}"));
    diagnose(&machine, &trial, &libc, measure)
}

/// What the facts mean. The price is measured only where the trial ran.
fn diagnose(
    machine: &Machine,
    trial: &Trial,
    libc: &Result<Option<Libc>, String>,
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

fn write(options: &cli::Doctor, diagnosis: &Diagnosis, mut output: Output) -> Result<()> {
    let verbosity = Verbosity::of(options.quiet, options.verbose);
    let color = options
        .color
        .wanted(output.terminal, destination::no_color());
    let text = report::render(diagnosis, options.format, verbosity, color)?;
    let written = output.writer.write_all(text.as_bytes());
    match written.and_then(|()| output.writer.flush()) {
        // Nobody wants to read it any more.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => written.with_context(|| format!("cannot write to {}", output.name)),
    }
}
