//! The `memleak` program: passes its command line to the library, and turns the result into an exit status. All else
//! is in the library.

use std::io::Write;
use std::process::ExitCode;

use memleak::cli::{self, Stop, Task};
use memleak::launch::signals;
use memleak::model::exit::{Finish, TOOL_ERROR};
use memleak::os::{say, stages};
use memleak::{doctor, session};

/// memleak's own allocator. The C library's allocator carries probes while memleak runs, and memleak's own calls would
/// reach them: these probes took half of memleak's time.
#[global_allocator]
static ALLOCATOR: dlmalloc::GlobalDlmalloc = dlmalloc::GlobalDlmalloc;

fn main() -> ExitCode {
    stages::begin();
    let task = match cli::parse(std::env::args_os()) {
        Ok(task) => task,
        Err(stop) => {
            match &stop {
                // A failed write to standard output cannot be reported anywhere.
                Stop::Told(text) => drop(write!(std::io::stdout(), "{text}")),
                Stop::Wrong(line) => say::tell(line),
            }
            return ExitCode::from(stop.code());
        }
    };
    let done = match &task {
        Task::Run(options) => session::run(options),
        Task::Watch(options) => session::watch(options).map(|()| Finish::Exit(0)),
        Task::Report(options) => session::merged(options),
        Task::Doctor(options) => doctor::doctor(options).map(Finish::Exit),
    };
    match done {
        Ok(Finish::Exit(code)) => ExitCode::from(code),
        Ok(Finish::Signal(signal)) => signals::die_of(signal),
        Err(error) => {
            say::say(&format!("{error:#}"));
            ExitCode::from(TOOL_ERROR)
        }
    }
}
