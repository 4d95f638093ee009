use std::ffi::OsString;
use std::io::Write;
use std::process::exit;
use std::time::Duration;

use anyhow::Result;
use memleak::launch::{Ended, Stderr, Suspended};
use memleak::signals::{Event, NoWitness, Signals, die_of};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

fn main() {
    let command: Vec<OsString> = std::env::args_os().skip(3).collect();
    let ended = run(&command).unwrap_or_else(|error| {
        let _ = writeln!(std::io::stderr(), "memleak: {error:#}");
        exit(125)
    });
    let _ = writeln!(std::io::stderr(), "memleak: {ended:?}");
    match ended {
        Ended::Exited(code) => exit(code.into()),
        Ended::Signaled { signal, .. } => die_of(signal),
        Ended::NotExecuted(error) => exit(error.code().into()),
    }
}

fn run(command: &[OsString]) -> Result<Ended> {
    let suspended = Suspended::fork(command)?;
    let mut signals = Signals::take_over()?;
    std::thread::sleep(Duration::from_millis(20)); // stands for attaching
    let mut running = match suspended.release(Stderr::Keep) {
        Ok(running) => running,
        Err(error) => return Ok(Ended::NotExecuted(error)),
    };
    loop {
        poll(
            &mut [PollFd::new(signals.fd(), PollFlags::POLLIN)],
            PollTimeout::NONE,
        )?;
        for event in signals.dispatch(&mut running, &mut NoWitness)? {
            if let Event::Ended(ended) = event {
                return Ok(ended);
            }
        }
    }
}
