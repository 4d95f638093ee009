//! Judges the blocks that processes never freed, on copies of their memory, in a thread of its own. `reader` makes the
//! copies.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use nix::sys::eventfd::EventFd;

use crate::find::heaps;
use crate::kernel::lists::BlockLists;
use crate::lost::{Allocators, ExitFrame, Snapshot, judge};
use crate::model::image::Image;
use crate::model::reach::{Reach, ReachUnknown};

/// What the judge says of a heap.
#[derive(Clone, Copy)]
pub(super) struct HeapVerdict {
    reach: Reach,
    /// How many threads the process had.
    threads: usize,
}

impl HeapVerdict {
    /// What is said if the judge has failed.
    pub(super) const NONE: Self = Self {
        reach: Reach::Unknown(ReachUnknown::Unsure),
        threads: 0,
    };

    /// The verdict on the image of that heap. The list of blocks may lack those that the threads were about to replace
    /// by others. If it lacks more, or has more, nothing is known.
    pub(super) fn on(self, image: &Image) -> Reach {
        let Reach::Known(reached) = self.reach else {
            return self.reach;
        };
        let read = reached.lost() + reached.possible + reached.reachable;
        let missing = image.counters.leaked_blocks.checked_sub(read.blocks);
        match missing.is_some_and(|missing| missing <= self.threads as u64) {
            true => self.reach,
            false => Reach::Unknown(ReachUnknown::Unsure),
        }
    }
}

/// What is known of a file with probes.
struct HeapFile {
    /// Where its allocator keeps its blocks.
    heap: Allocators,
    /// What the frames of its `exit` hold.
    frames: Vec<ExitFrame>,
}

/// What is known of the files with probes, by the files' indexes.
#[derive(Clone, Default)]
pub(super) struct Heaps(Arc<Mutex<Vec<HeapFile>>>);

impl Heaps {
    /// Adds the next file.
    pub(super) fn add(&self, heap: Allocators, frames: Vec<ExitFrame>) {
        self.lock().push(HeapFile { heap, frames });
    }

    /// Of a process that has used these files. `has_unseen`: it may have blocks that are in no list.
    pub(super) fn of(&self, files: &[u16], has_unseen: bool) -> (Allocators, Vec<ExitFrame>) {
        let known = self.lock();
        let of_file = |file: &u16| known.get(usize::from(*file));
        let files = files.iter().map(of_file);
        let frames = files.clone().flatten().flat_map(|file| &file.frames);
        let heaps = files.map(|file| file.map_or_else(Allocators::default, |file| file.heap));
        (
            heaps::of_process(heaps, has_unseen),
            frames.cloned().collect(),
        )
    }

    fn lock(&self) -> MutexGuard<'_, Vec<HeapFile>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the reader gives to the judge.
pub(super) struct Case {
    pub(super) heap: u64,
    /// When its reading began.
    pub(super) began: Instant,
    /// How many blocks are in the hash table, or more.
    pub(super) hashed: u64,
    pub(super) threads: usize,
    /// The indexes of the files whose allocators the process has used.
    pub(super) files: Vec<u16>,
    /// Whether it may have blocks that are in no list.
    pub(super) has_unseen: bool,
    /// Whether the process was held until all was read. Otherwise its record says why.
    pub(super) was_held: bool,
    pub(super) memory: Memory,
}

/// What was read of a process.
pub(super) enum Memory {
    Copied(Snapshot),
    /// Nothing more is needed.
    Judged(Reach),
}

/// What reading and judging has cost.
#[derive(Default)]
pub(super) struct ReadingCosts {
    /// How many processes were read.
    pub(super) count: AtomicU64,
    /// The longest time from the beginning of a reading to the process's release, in microseconds.
    pub(super) longest_us: AtomicU64,
    /// The bytes of the largest copy.
    pub(super) largest: AtomicU64,
    /// The longest time from the beginning of a reading to the verdict, in microseconds.
    pub(super) longest_verdict_us: AtomicU64,
}

/// The thread that judges.
pub(super) struct Judge {
    pub(super) cases: Receiver<Case>,
    pub(super) lists: BlockLists,
    pub(super) heaps: Heaps,
    /// Copies go back to the reader.
    pub(super) back: Sender<Snapshot>,
    pub(super) said: Sender<(u64, HeapVerdict)>,
    pub(super) wake: Arc<EventFd>,
    pub(super) costs: Arc<ReadingCosts>,
}

impl Judge {
    pub(super) fn run(mut self) {
        while let Ok(case) = self.cases.recv() {
            let reach = match &case.memory {
                Memory::Copied(snapshot) if case.was_held => self.judge(&case, snapshot),
                Memory::Copied(_) => Reach::Unknown(ReachUnknown::Unsure),
                Memory::Judged(reach) => *reach,
            };
            let took = case.began.elapsed().as_micros() as u64;
            let longest = &self.costs.longest_verdict_us;
            longest.fetch_max(took, Ordering::Relaxed);
            self.lists.release(case.heap);
            if case.was_held {
                let threads = case.threads;
                if (self.said.send((case.heap, HeapVerdict { reach, threads }))).is_err() {
                    return;
                }
                let _ = self.wake.write(1);
            }
            if let Memory::Copied(snapshot) = case.memory {
                let _ = self.back.send(snapshot);
            }
        }
    }

    fn judge(&mut self, case: &Case, snapshot: &Snapshot) -> Reach {
        match self.lists.read(case.heap, case.hashed, snapshot) {
            Ok(blocks) => {
                let (allocators, frames) = self.heaps.of(&case.files, case.has_unseen);
                Reach::Known(judge(snapshot, blocks, allocators, &frames).reached)
            }
            Err(_) => Reach::Unknown(ReachUnknown::Unsure),
        }
    }
}
