//! Reads the memory of processes that are held at their ends, and judges the blocks that they never freed. Two threads
//! do that. No other work of memleak waits for a process whose memory cannot be read, and no process is held while
//! memleak writes a report or examines a file.
//!
//! The reader copies a process's memory and lets the process go on. The judge then reads the list of the process's
//! blocks, and judges the copy. `bpf/scans.bpf.h` has the kernel side.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};
use std::thread;

use libbpf_rs::MapHandle;
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::kernel::error::LoadError;
use crate::kernel::lists::BlockLists;
use crate::kernel::method::Holds;
use crate::kernel::reader::{Copies, MemoryReader};
use crate::kernel::settings::Reads;
use crate::kernel::skeletons::MemleakSkel;
use crate::kernel::verdicts::{HeapVerdict, Heaps, Judge, ReadingCosts};
use crate::lost::{Allocators, ExitFrame};

/// Both threads, as others see them. They end with memleak.
pub(super) struct Readings {
    verdicts: Receiver<(u64, HeapVerdict)>,
    /// Verdicts on heaps whose images have not come yet.
    known: HashMap<u64, HeapVerdict>,
    heaps: Heaps,
    wake: Arc<EventFd>,
    costs: Arc<ReadingCosts>,
}

impl Readings {
    /// Starts both threads. `compares`: what is counted inside is counted by probes, too.
    ///
    /// # Errors
    /// A ring or a table cannot be mapped, or no thread can be started.
    pub(super) fn start(
        skel: &MemleakSkel<'static>,
        holds: Holds,
        reads: Reads,
        compares: bool,
    ) -> Result<Self, LoadError> {
        let program = |fd: BorrowedFd<'_>| fd.try_clone_to_owned().map_err(LoadError::mapping);
        let wake = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK);
        let wake = Arc::new(wake.map_err(io::Error::from).map_err(LoadError::mapping)?);
        let stops_threads = holds == Holds::Everywhere;
        let heaps = Heaps::default();
        let costs = Arc::<ReadingCosts>::default();
        let (cases, to_judge) = mpsc::channel();
        let (back, judged) = mpsc::channel();
        let (said, verdicts) = mpsc::channel();
        let reader = MemoryReader {
            endings: MapHandle::try_from(&skel.maps.endings).map_err(LoadError::ring)?,
            states: MapHandle::try_from(&skel.maps.states).map_err(LoadError::ring)?,
            stop_process: program(match stops_threads {
                true => skel.progs.stop_process.as_fd(),
                false => skel.progs.look_at_process.as_fd(),
            })?,
            stops_threads,
            release_process: program(skel.progs.release_process.as_fd())?,
            reads,
            lists: BlockLists::open(skel, compares)?,
            heaps: heaps.clone(),
            copies: Copies::new(judged),
            cases,
            costs: Arc::clone(&costs),
        };
        let judge = Judge {
            cases: to_judge,
            lists: BlockLists::open(skel, compares)?,
            heaps: heaps.clone(),
            back,
            said,
            wake: Arc::clone(&wake),
            costs: Arc::clone(&costs),
        };
        let (ready, is_ready) = mpsc::channel();
        spawn("memleak-reader", move || reader.run(&ready)).map_err(LoadError::mapping)?;
        spawn("memleak-judge", move || judge.run()).map_err(LoadError::mapping)?;
        // Without its rings, no process would be read, and each would wait for that.
        let gone = |_| Err(LoadError::mapping(io::ErrorKind::Other.into()));
        is_ready.recv().unwrap_or_else(gone)?;
        Ok(Readings {
            verdicts,
            known: HashMap::new(),
            heaps,
            wake,
            costs,
        })
    }

    /// Tells where the allocator of the next file with probes keeps its blocks, and what the frames of its `exit` hold.
    pub(super) fn add_file(&self, heap: Allocators, frames: Vec<ExitFrame>) {
        self.heaps.add(heap, frames);
    }

    /// What reading has cost so far.
    pub(super) fn costs(&self) -> &ReadingCosts {
        &self.costs
    }

    /// Readable when there is a verdict.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    /// Collects the verdicts that there are. Until there is another one, [`fd`](Self::fd) is not readable.
    pub(super) fn collect(&mut self) {
        // It is not readable if there is none.
        let _ = self.wake.read();
        self.known.extend(self.verdicts.try_iter());
    }

    /// The verdict on a heap that was read, if it was collected. A verdict is taken once.
    pub(super) fn take(&mut self, heap: u64) -> Option<HeapVerdict> {
        self.known.remove(&heap)
    }

    /// Waits for the verdict on a heap that was read.
    pub(super) fn wait_for(&mut self, heap: u64) -> HeapVerdict {
        loop {
            if let Some(verdict) = self.take(heap) {
                return verdict;
            }
            match self.verdicts.recv() {
                Ok((judged, verdict)) => self.known.insert(judged, verdict),
                // The threads have failed.
                Err(_) => return HeapVerdict::none(),
            };
        }
    }
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let thread = thread::Builder::new().name(name.to_owned());
    thread.spawn(work).map(drop)
}
