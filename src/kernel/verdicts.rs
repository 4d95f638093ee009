//! Judges the blocks that processes never freed, on copies of their memory, in a thread of its own. `reader` makes the
//! copies.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use nix::sys::eventfd::EventFd;

use crate::find::heaps;
use crate::kernel::lists::{BlockLists, Listed};
use crate::lost::{Allocators, ExitFrame, JudgedBlocks, Snapshot, judge};
use crate::model::image::Image;
use crate::model::reach::{Reach, ReachUnknown, StackReached};

/// What the judge says of a heap.
pub(super) struct HeapVerdict {
    found: HeapReach,
    /// How many threads the process had.
    threads: usize,
}

/// How the blocks of a heap could be reached.
pub(super) struct HeapReach {
    reach: Reach,
    /// The same of the blocks of each call stack, by the stack's number.
    stacks: HashMap<u32, StackReached>,
}

impl std::convert::From<JudgedBlocks> for HeapReach {
    fn from(judged: JudgedBlocks) -> Self {
        Self {
            reach: Reach::Known(judged.reached),
            stacks: judged.by_stack(),
        }
    }
}

impl std::convert::From<ReachUnknown> for HeapReach {
    fn from(why: ReachUnknown) -> Self {
        Self {
            reach: Reach::Unknown(why),
            stacks: HashMap::new(),
        }
    }
}

impl HeapVerdict {
    /// What is said if the judge has failed.
    pub(super) fn none() -> Self {
        Self {
            found: ReachUnknown::Unsure.into(),
            threads: 0,
        }
    }

    /// Enters the verdict into the image of that heap, and into its stacks, which have these numbers. The list of blocks
    /// may lack those that the threads were about to replace by others. If it lacks more, or has more, nothing is known.
    pub(super) fn enter(self, image: &mut Image, stacks: &[u32]) {
        image.reach = self.found.reach;
        let Reach::Known(reached) = image.reach else {
            return;
        };
        let read = reached.sum();
        let missing = image.counters.leaked_blocks.checked_sub(read.blocks);
        if missing.is_none_or(|missing| missing > self.threads as u64) {
            image.reach = Reach::Unknown(ReachUnknown::Unsure);
            return;
        }
        for (share, number) in image.stacks.iter_mut().flatten().zip(stacks) {
            let reached = self.found.stacks.get(number).copied();
            share.reached = Some(reached.unwrap_or_default());
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
    pub(super) about: ReadHeap,
    pub(super) memory: Memory,
}

/// What is known of a heap whose process was read.
pub(super) struct ReadHeap {
    pub(super) listed: Listed,
    /// When its reading began.
    pub(super) began: Instant,
    pub(super) threads: usize,
    /// The indexes of the files whose allocators the process has used.
    pub(super) files: Vec<u16>,
    /// Whether the process was held until all was read. Otherwise its record says why.
    pub(super) was_held: bool,
}

/// What was read of a process.
pub(super) enum Memory {
    Copied(Snapshot),
    /// Nothing more is needed.
    Judged(HeapReach),
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
        while let Ok(Case { memory, about }) = self.cases.recv() {
            let (found, snapshot) = match memory {
                Memory::Copied(snapshot) if about.was_held => {
                    (self.judge(&about, &snapshot), Some(snapshot))
                }
                Memory::Copied(snapshot) => (ReachUnknown::Unsure.into(), Some(snapshot)),
                Memory::Judged(found) => (found, None),
            };
            let took = about.began.elapsed().as_micros() as u64;
            let longest = &self.costs.longest_verdict_us;
            longest.fetch_max(took, Ordering::Relaxed);
            self.lists.release(about.listed.heap);
            if about.was_held {
                let threads = about.threads;
                if (self
                    .said
                    .send((about.listed.heap, HeapVerdict { found, threads })))
                .is_err()
                {
                    return;
                }
                let _ = self.wake.write(1);
            }
            if let Some(snapshot) = snapshot {
                let _ = self.back.send(snapshot);
            }
        }
    }

    fn judge(&mut self, about: &ReadHeap, snapshot: &Snapshot) -> HeapReach {
        match self.lists.read(about.listed, snapshot) {
            Ok((live, has_unseen)) => {
                let (allocators, frames) = self.heaps.of(&about.files, has_unseen);
                judge(snapshot, live, allocators, &frames).into()
            }
            Err(why) => why.into(),
        }
    }
}
