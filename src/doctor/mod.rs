//! `memleak doctor`: says whether `memleak run` works here, what prevents it, and how to fix that.
//!
//! A small run (`trial`) decides. Its command is a child whose allocations are known (`patient`). The other checks
//! explain the result. `machine`, `c_library` and `price` determine each fact separately. If a fact cannot be
//! determined because of another one, its check says so. Pure functions over plain values (`judge`, `verdict`, `lost`, `stacks`)
//! decide what the facts mean, and `output` prints the checks (`check`).

mod c_library;
mod check;
mod judge;
mod lost;
mod machine;
mod output;
mod patient;
mod price;
mod stacks;
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
use crate::report::OldContent;
use crate::report::destination::{self, Filling, Output, Standard};
use c_library::{Libc, Unusable};
use check::Diagnosis;
use machine::Machine;
use price::Price;
use trial::Trial;

/// Examines the machine and reports. Returns the exit code: 0 only if `memleak run` works.
///
/// # Errors
/// The report cannot be written.
pub fn doctor(options: &options::Doctor) -> Result<u8> {
    let switches = options.test.switches();
    if let Some(part) = switches.patient {
        return Ok(patient::live(part));
    }
    capabilities::keep_what_is_used()?;
    // The output needs its own descriptor, because memleak gives up standard output when it releases the child.
    let standard = Path::new("/dev/stdout");
    let file = options.output.as_deref().unwrap_or(standard);
    let filling = Filling::Rows(OldContent::Removed);
    let output = destination::open(Some(file), Standard::Output, filling, None)?;
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

/// Decides what the facts mean. The price is measured only if the trial ran.
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
    checks.push(lost::lost(trial, machine));
    checks.push(stacks::stacks(trial));
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
        // The reader has closed its end. That is not a failure.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => written.with_context(|| format!("cannot write to {}", to.name)),
    }
}
