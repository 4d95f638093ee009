//! `memleak run` in small: loads the real programs, attaches the real probes, lets a child of memleak's own
//! go, and takes its rows.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use nix::sys::signal::{Signal, kill};

use crate::doctor::patient::{FIRST, PROGRAM};
use crate::kernel::error::{self, LoadError, ran_out_of_descriptors};
use crate::kernel::method::{Holds, Method};
use crate::launch::Suspended;
use crate::launch::descriptors::Stderr;
use crate::launch::running::{Ended, Running};
use crate::model::image::Image;
use crate::options::Probing;
use crate::options::switches::Switches;
use crate::session::prober::Prober;
use crate::session::pump::pump;

/// A child that takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(10);

/// Between looks at a child that nothing is heard of.
const STEP: Duration = Duration::from_millis(100);

/// How it went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trial {
    /// The programs could not be loaded, or the probes not be attached.
    Refused(Refusal),
    Ran(Ran),
}

impl Trial {
    pub fn ran(&self) -> Option<&Ran> {
        match self {
            Trial::Ran(ran) => Some(ran),
            Trial::Refused(_) => None,
        }
    }
}

/// Why nothing could be counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub stage: Stage,
    pub cause: Cause,
    /// What is wrong.
    pub error: String,
    /// What to do about it.
    pub remedy: &'static str,
    /// What libbpf and the verifier said, line by line.
    pub said: Vec<String>,
}

/// What could not be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    Fork,
    Load,
    Attach,
}

/// What it was for want of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    Rights,
    Memory,
    Descriptors,
    Other,
}

/// What was seen of the child.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ran {
    pub method: Method,
    pub holds: Holds,
    /// Bytes of the kernel's memory that the maps take.
    pub kernel_bytes: u64,
    /// Open descriptors, with the probes attached.
    pub descriptors: u64,
    pub images: Vec<Image>,
    pub ended: Result<Ended, String>,
}

/// What to do where the error does not say it.
pub const LOOK: &str = "see what else is not ok here, and what -v shows";

/// Tries. To be called while the process has one thread; gives up memleak's standard input and output.
pub fn run(switches: Switches) -> Trial {
    let refused = |stage, error: &anyhow::Error| {
        let said = error::take_messages();
        let (stage, what, remedy) = match error.downcast_ref::<LoadError>() {
            Some(error) => (Stage::Load, error.what(), error.remedy()),
            None => (stage, format!("{error:#}"), LOOK),
        };
        Trial::Refused(Refusal {
            stage,
            cause: cause(error),
            error: what,
            remedy,
            said: said.lines().map(str::to_owned).collect(),
        })
    };
    let words = [
        OsStr::from_bytes(PROGRAM.to_bytes()),
        OsStr::new("doctor"),
        OsStr::new(FIRST),
    ];
    let command = match Suspended::fork(&words.map(OsStr::to_owned), None) {
        Ok(command) => command,
        Err(error) => return refused(Stage::Fork, &error),
    };
    let probing = Probing::default();
    match Prober::start(&probing, switches, false, &command) {
        Ok(prober) => Trial::Ran(follow(command, prober)),
        Err(error) => refused(Stage::Attach, &error),
    }
}

fn cause(error: &anyhow::Error) -> Cause {
    match error.downcast_ref::<LoadError>() {
        Some(LoadError::Rights(_)) => Cause::Rights,
        Some(LoadError::Memory { .. }) => Cause::Memory,
        _ if ran_out_of_descriptors(error.as_ref()) => Cause::Descriptors,
        _ => Cause::Other,
    }
}

fn follow(command: Suspended, mut prober: Prober) -> Ran {
    let ended = match command.release(Stderr::Keep) {
        Ok(mut running) => {
            let ended = wait(&mut running, &mut prober);
            if ended.is_err() {
                // A child of ours that is not reaped yet.
                let _ = kill(running.pid(), Signal::SIGKILL);
                let _ = running.wait();
            }
            ended
        }
        Err(error) => Err(error.into()),
    };
    let descriptors = std::fs::read_dir("/proc/self/fd").map_or(0, |entries| entries.count());
    let collector = &mut prober.collector;
    let images = collector.take_all();
    let kernel_bytes = collector.kernel_memory();
    collector.detach();
    let (images, ended) = match (images, ended) {
        (Ok(images), ended) => (images, ended),
        (Err(error), Ok(_)) => (Vec::new(), Err(error)),
        (Err(_), Err(error)) => (Vec::new(), Err(error)),
    };
    Ran {
        method: prober.collector.method(),
        holds: prober.collector.holds(),
        kernel_bytes,
        // The one by which they are counted is not one of them.
        descriptors: descriptors.saturating_sub(1) as u64,
        images,
        ended: ended.map_err(|error| format!("{error:#}")),
    }
}

/// Waits for the child's end, and for its rows.
fn wait(running: &mut Running, prober: &mut Prober) -> Result<Ended> {
    let began = Instant::now();
    loop {
        let turn = pump(prober, &[running.pidfd()], STEP);
        if let Some(error) = turn.failures.into_iter().next() {
            return Err(error);
        }
        if let Some(ended) = running.try_wait()? {
            return Ok(ended);
        }
        ensure!(
            began.elapsed() < PATIENCE,
            "the child did not end within {} s",
            PATIENCE.as_secs()
        );
    }
}
