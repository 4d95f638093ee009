//! A small `memleak run`: loads the real programs, attaches the real probes, releases a child of memleak, and takes its
//! rows. The child's work is in `patient`. What the result means is decided in `verdict`.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use nix::sys::signal::{Signal, kill};

use crate::doctor::patient::{FIRST, PROGRAM};
use crate::kernel::error::{self, LoadError, ran_out_of_descriptors};
use crate::kernel::method::{Holds, Method};
use crate::kernel::settings::{NoStacks, Reads, Recorded};
use crate::launch::descriptors::Stderr;
use crate::launch::running::{Ended, Running};
use crate::launch::{Mounts, Suspended};
use crate::model::image::Image;
use crate::model::scan::ScanWanted;
use crate::options::switches::Switches;
use crate::options::{Probes, Probing, stacks};
use crate::session::prober::Prober;
use crate::session::pump::pump;

/// A child that takes longer than this is considered hung.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long to wait for an event before memleak checks the child.
const STEP: Duration = Duration::from_millis(100);

/// The result of the trial.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trial {
    /// The child could not be made, the programs could not be loaded, or the probes could not be attached.
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
    /// The error.
    pub error: String,
    /// What to do about the error.
    pub remedy: &'static str,
    /// The messages of libbpf and of the verifier, line by line.
    pub said: Vec<String>,
}

/// The step that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    Fork,
    Load,
    Attach,
}

/// What was missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    Rights,
    Memory,
    Descriptors,
    Other,
}

/// What memleak recorded of the child.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ran {
    pub method: Method,
    pub holds: Holds,
    /// Kernel memory of the maps, in bytes.
    pub kernel_bytes: u64,
    /// Open descriptors while the probes are attached.
    pub descriptors: u64,
    pub images: Vec<Image>,
    /// Why no call stacks were recorded.
    pub no_stacks: Option<NoStacks>,
    pub ended: Result<Ended, String>,
}

/// The remedy for errors that have none of their own.
pub const LOOK: &str = "see what else is not ok here, and what -v shows";

/// Runs the trial. Call it while the process has one thread. It gives up memleak's standard input and output.
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
    let command = match Suspended::fork(&words.map(OsStr::to_owned), None, Mounts::Callers) {
        Ok(command) => command,
        Err(error) => return refused(Stage::Fork, &error),
    };
    let probing = Probing::default();
    let reads = Reads {
        unseen: ScanWanted::Always,
        elsewhere: ScanWanted::Always,
        timeout: PATIENCE / 2,
        delay: switches.read_delay,
    };
    let recorded = Recorded {
        args: false,
        labels: Vec::new(),
        reads,
        stacks: Some(stacks::settings(&switches)),
    };
    match Prober::start(
        &probing,
        Probes::Shared,
        recorded,
        switches,
        false,
        &command,
    ) {
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
    // The child is over before a thread has read the rules of memleak's own file.
    prober.collector.await_rules(PATIENCE);
    let ended = match command.release(Stderr::Keep) {
        Ok(mut running) => {
            let ended = wait(&mut running, &mut prober);
            if ended.is_err() {
                // The child is not reaped yet, so its pid still belongs to it.
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
        // Without the descriptor that is open to count them.
        descriptors: descriptors.saturating_sub(1) as u64,
        images,
        no_stacks: prober.collector.no_stacks,
        ended: ended.map_err(|error| format!("{error:#}")),
    }
}

/// Waits for the child's end. Answers the processes that are held meanwhile.
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
