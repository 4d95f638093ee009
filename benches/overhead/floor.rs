//! The floor: a command under BPF programs that do nothing, at the places that memleak probes. No tool with probes at
//! these places can cost less.

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use memleak::find::functions::Table;
use memleak::find::loader::Environment;
use memleak::find::{self, Examined};
use memleak::kernel::empty::EmptyProbes;
use memleak::launch::descriptors::Stderr;
use memleak::launch::running::Ended;
use memleak::launch::{Mounts, Suspended};

/// The word that makes this program run a command so; the command's words follow.
pub const WORD: &str = "--floor";

/// The same with programs that ask the kernel for the stack of each call.
pub const WALKING: &str = "--floor-walking";

/// Runs the command as `memleak run` does, with empty programs and no report. Its exit code.
pub fn main(command: &[OsString], walks: bool) -> ExitCode {
    match run(command, walks) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("floor: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: &[OsString], walks: bool) -> Result<u8> {
    let command = Suspended::fork(command, None, Mounts::Callers)?;
    let table = Table::new(Vec::new())?;
    let environment = Environment::of_the_command();
    let files = find::at_start(command.candidates(), &environment, &table)?;
    let allocators = files
        .into_iter()
        .filter(|file| file.findings.is_allocator());
    let probes = allocators
        .map(
            |Examined {
                 path,
                 file,
                 findings,
                 ..
             }| { EmptyProbes::on_allocator(path, &file, findings.sites, walks) },
        )
        .collect::<Result<Vec<_>>>()?;
    ensure!(!probes.is_empty(), "the command has no allocator");
    let mut running = command.release(Stderr::Keep)?;
    match running.wait().context("cannot wait for the command")? {
        Ended::Exited(code) => Ok(code),
        Ended::Signaled { signal, .. } => Ok(128_u8.saturating_add(signal)),
        Ended::NotExecuted(error) => Err(error.into()),
    }
}
