//! Adds images up: what the whole command allocated, leaked and lost, and what the gate says to it.
//!
//! Fed each image as its record arrives, the ledger keeps sums and a short list of names, never the
//! images. The figures of one image are the kernel's and are not questioned here.

use crate::gate::{Bounds, Gate, Judgement, Verdict};
use crate::image::{End, From, Image, Losses};
use crate::status::Outcome;

/// How many of the processes that still run are named; the rest is counted. A closing line is to be
/// read.
pub const RUNNING_NAMED: usize = 16;

/// The sums so far.
#[derive(Clone, Debug)]
pub struct Ledger {
    processes: u64,
    complete_processes: u64,
    incomplete_images: u64,
    without_allocator: u64,
    attached: u64,
    total_allocs_bytes: u64,
    leaked: Bounds,
    losses: Losses,
    running: Vec<Running>,
    running_count: u64,
    gate: Option<Gate>,
}

/// A process that was alive when memleak left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Running {
    pub pid: u32,
    pub comm: Vec<u8>,
}

impl Ledger {
    pub fn new(gate: Option<Gate>) -> Self {
        Self {
            processes: 0,
            complete_processes: 0,
            incomplete_images: 0,
            without_allocator: 0,
            attached: 0,
            total_allocs_bytes: 0,
            leaked: Bounds::ZERO,
            losses: Losses::default(),
            running: Vec::new(),
            running_count: 0,
            gate,
        }
    }

    /// Takes an image into account; returns what the gate's limit for one process says to it, `None`
    /// where it is not judged by one. Sums saturate.
    pub fn record(&mut self, image: &Image) -> Option<Verdict> {
        let complete = image.complete();
        self.total_allocs_bytes = self
            .total_allocs_bytes
            .saturating_add(image.counters.total_allocs_bytes);
        self.losses += image.losses;
        self.incomplete_images += u64::from(!complete);
        self.without_allocator += u64::from(image.allocators.is_empty());
        self.attached += u64::from(image.from == From::Attach);
        if image.end != End::Exec {
            self.processes += 1;
            self.complete_processes += u64::from(complete);
        }
        match image.end {
            End::Exited(_) | End::Signaled { .. } => self.leaked += Bounds::of(image),
            // An exec took the heap with it; what still runs may yet free all it has.
            End::Exec => {}
            End::Running => {
                self.running_count += 1;
                if self.running.len() < RUNNING_NAMED {
                    self.running.push(Running {
                        pid: image.pid,
                        comm: image.comm.clone(),
                    });
                }
            }
        }
        self.gate.as_mut().and_then(|gate| gate.judge(image))
    }

    /// Closes the sums. `losses` are those that belong to no image.
    pub fn finish(mut self, mut losses: Losses, outcome: Outcome) -> Summary {
        // The command is itself a process: without any row, its own is missing.
        if outcome.ran() && self.processes == 0 && losses.rows_lost == 0 {
            losses.rows_lost = 1;
        }
        self.losses += losses;
        if self.losses.rows_lost > 0 || !losses.is_empty() {
            self.leaked.upper = None;
        }
        Summary {
            outcome,
            processes: self.processes,
            complete_processes: self.complete_processes,
            without_allocator: self.without_allocator,
            attached: self.attached,
            total_allocs_bytes: self.total_allocs_bytes,
            leaked: self.leaked,
            gate: self.gate.map(|gate| gate.finish(losses, outcome.ran())),
            complete: self.incomplete_images == 0 && self.losses.is_empty(),
            losses: self.losses,
            unnamed_running: self.running_count - self.running.len() as u64,
            running: self.running,
        }
    }
}

/// The whole job in one value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    pub outcome: Outcome,
    /// Processes (pids), running ones among them; not images.
    pub processes: u64,
    /// Those whose last image was counted completely.
    pub complete_processes: u64,
    /// Images that had mapped no probed allocator.
    pub without_allocator: u64,
    /// Images that were there before memleak.
    pub attached: u64,
    /// Bytes allocated by all images, those that an exec replaced and running ones included.
    pub total_allocs_bytes: u64,
    /// Bytes leaked by the processes that ended.
    pub leaked: Bounds,
    /// `None` where no gate was asked for.
    pub gate: Option<Judgement>,
    /// Whether nothing at all escaped.
    pub complete: bool,
    pub losses: Losses,
    /// The first [`RUNNING_NAMED`] of the processes that still run.
    pub running: Vec<Running>,
    /// How many more still run.
    pub unnamed_running: u64,
}

impl Summary {
    /// The gate's verdict; `None` where no gate was asked for.
    pub fn verdict(&self) -> Option<Verdict> {
        self.gate.as_ref().map(Judgement::verdict)
    }
}
