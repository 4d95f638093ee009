//! Copies the memory of processes that are held at their ends, in a thread of its own. `verdicts` judges the copies.

use std::collections::VecDeque;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, Sender};
use std::thread;
use std::time::{Duration, Instant};

use libbpf_rs::{MapHandle, RingBuffer};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::Pid;

use crate::kernel::error::LoadError;
use crate::kernel::lists::{BYTES_A_BLOCK, BlockLists, Listed};
use crate::kernel::records;
use crate::kernel::rings::{Taken, call_with, ring};
use crate::kernel::settings::Reads;
use crate::kernel::skeletons::types::{ending, stop, thread_state};
use crate::kernel::verdicts::{Case, Heaps, Memory, ReadHeap, ReadingCosts};
use crate::lost::{Budget, Buffers, JudgedBlocks, Snapshot, State, Thread, Unread, judge};
use crate::model::reach::ReachUnknown;
use crate::os::priority::hurry;
use crate::os::room::memory_left;

/// How long a thread may take to stop before memleak looks again. It stops when it next enters the kernel, into which
/// an interrupt brings it.
const LOOK_AGAIN: Duration = Duration::from_micros(20);

/// The most bytes of processes that are copied, and not judged yet. It is less if half of the memory that is left is
/// less: memleak may share its limit of memory with the processes that it watches.
const MOST_COPIED: u64 = 2 << 30;

/// The most copies that are not judged yet. Each takes a huge page at least.
const MOST_AHEAD: usize = 32;

/// How often a process is read whose threads run on. Two readings in a row must find the same blocks lost.
const MOST_READINGS: u32 = 3;

/// The thread that copies.
pub(super) struct MemoryReader {
    pub(super) endings: MapHandle,
    pub(super) states: MapHandle,
    /// The program that stops a process's threads, or only looks at them.
    pub(super) stop_process: OwnedFd,
    pub(super) stops_threads: bool,
    pub(super) release_process: OwnedFd,
    pub(super) reads: Reads,
    pub(super) lists: BlockLists,
    pub(super) heaps: Heaps,
    pub(super) copies: Copies,
    pub(super) cases: Sender<Case>,
    pub(super) costs: Arc<ReadingCosts>,
}

/// The rings that the thread reads, and what it has taken off them.
struct Rings {
    endings: RingBuffer<'static>,
    ended: Taken<ending>,
    states: RingBuffer<'static>,
    told: Taken<thread_state>,
}

impl MemoryReader {
    /// Reads processes until memleak ends. First tells `ready` whether its rings could be opened.
    pub(super) fn run(mut self, ready: &Sender<Result<(), LoadError>>) {
        let rings = match self.rings() {
            Ok(rings) => rings,
            Err(error) => return drop(ready.send(Err(error))),
        };
        if ready.send(Ok(())).is_err() {
            return;
        }
        // Processes are held meanwhile.
        hurry();
        let mut waiting: VecDeque<ending> = VecDeque::new();
        loop {
            if waiting.is_empty() {
                // SAFETY: the descriptor is open as long as the ring exists.
                let fd = unsafe { BorrowedFd::borrow_raw(rings.endings.epoll_fd()) };
                let mut ready = [PollFd::new(fd, PollFlags::POLLIN)];
                // No signal interrupts this: the thread takes none.
                let _ = poll(&mut ready, PollTimeout::NONE);
            }
            if rings.endings.consume().is_err() {
                return;
            }
            waiting.extend(rings.ended.borrow_mut().drain(..));
            let Some(next) = waiting.pop_front() else {
                continue;
            };
            let case = self.read(&next, &rings);
            if self.cases.send(case).is_err() {
                return;
            }
        }
    }

    fn rings(&self) -> Result<Rings, LoadError> {
        let (endings, ended) = ring(&self.endings, records::plain_from_bytes)?;
        let (states, told) = ring(&self.states, records::plain_from_bytes)?;
        Ok(Rings {
            endings,
            ended,
            states,
            told,
        })
    }

    /// Reads the memory of a process, and lets the process go on.
    fn read(&mut self, ending: &ending, rings: &Rings) -> Case {
        let began = Instant::now();
        let deadline = began + self.reads.timeout;
        let mut stop = stop {
            heap: ending.heap,
            task: ending.task,
            ..stop::default()
        };
        let threads = self.stop(&mut stop, rings, deadline);
        let memory = match &threads {
            Ok(threads) if self.stops_threads || threads.len() == 1 => {
                let copy = self.copies.copy(ending, stop.hashed, threads, deadline);
                copy.map(Memory::Copied)
            }
            Ok(_) => self.read_running(ending, &mut stop, rings, deadline),
            Err(why) => Err(*why),
        };
        if !self.reads.delay.is_zero() {
            thread::sleep(self.reads.delay);
        }
        let was_held = call_with(&self.release_process, &mut stop) == 1;
        let took = began.elapsed().as_micros() as u64;
        self.costs.count.fetch_add(1, Ordering::Relaxed);
        self.costs.longest_us.fetch_max(took, Ordering::Relaxed);
        if let Ok(Memory::Copied(snapshot)) = &memory {
            self.costs
                .largest
                .fetch_max(snapshot.bytes(), Ordering::Relaxed);
        }
        let about = ReadHeap {
            listed: listed(&stop),
            began,
            threads: threads.map_or(0, |threads| threads.len()),
            files: files(&stop).to_vec(),
            was_held,
        };
        let unread = |why| Memory::Judged(ReachUnknown::from(why).into());
        Case {
            about,
            memory: memory.unwrap_or_else(unread),
        }
    }

    /// Waits until all threads of a process have stopped, if this kernel can stop them. Returns what they had in their
    /// registers.
    ///
    /// # Errors
    /// The process is not held any more, or its threads have not stopped in time.
    fn stop(
        &self,
        stop: &mut stop,
        rings: &Rings,
        deadline: Instant,
    ) -> Result<Vec<Thread>, Unread> {
        loop {
            let mut threads = Vec::new();
            stop.skip = 0;
            loop {
                call_with(&self.stop_process, stop);
                rings.states.consume().map_err(|_| Unread::Rights)?;
                let told = std::mem::take(&mut *rings.told.borrow_mut());
                threads.extend(told.iter().map(|state| Thread {
                    registers: state.registers.to_vec(),
                    sp: state.sp,
                    tls: state.tls,
                    at_end: state.at_end != 0,
                }));
                stop.skip += stop.told;
                // The ring may be too small for all threads.
                if stop.told == 0 || stop.unsettled > 0 || stop.skip >= stop.threads {
                    break;
                }
            }
            if stop.is_held == 0 {
                return Err(Unread::Gone);
            }
            if stop.unsettled == 0 {
                return Ok(threads);
            }
            if Instant::now() > deadline {
                return Err(Unread::TooLong);
            }
            thread::sleep(LOOK_AGAIN);
        }
    }

    /// Reads a process whose other threads run on, until two readings agree. What is lost stays lost, but a pointer that
    /// moves during a reading may be missed.
    fn read_running(
        &mut self,
        ending: &ending,
        stop: &mut stop,
        rings: &Rings,
        deadline: Instant,
    ) -> Result<Memory, Unread> {
        let mut before = None;
        for _ in 0..MOST_READINGS {
            let threads = self.stop(stop, rings, deadline)?;
            let snapshot = self.copies.copy(ending, stop.hashed, &threads, deadline)?;
            let live = self.lists.read(listed(stop), &snapshot);
            let judged = live.map(|(live, has_unseen)| {
                let (allocators, frames) = self.heaps.of(files(stop), has_unseen);
                judge(&snapshot, live, allocators, &frames)
            });
            self.copies.take_back(snapshot);
            let Ok(judged) = judged else {
                break;
            };
            let now = lost(&judged);
            if before.is_some_and(|before| before == now) {
                return Ok(Memory::Judged(judged.into()));
            }
            before = Some(now);
        }
        Ok(Memory::Judged(ReachUnknown::Unsure.into()))
    }
}

/// The addresses of the blocks that are lost.
fn lost(judged: &JudgedBlocks) -> Vec<u64> {
    let is_lost = |state| matches!(state, State::Definite | State::Indirect { .. });
    let lost = judged.states().filter(|(_, state)| is_lost(*state));
    lost.map(|(block, _)| block.address).collect()
}

/// The blocks of a process that is stopped.
fn listed(stop: &stop) -> Listed {
    Listed {
        heap: stop.heap,
        hashed: stop.hashed,
        inside_at: stop.inside_at,
        has_unseen: stop.has_unseen != 0,
    }
}

/// The indexes of the files whose allocators the process has used.
fn files(stop: &stop) -> &[u16] {
    let count = stop.files.len().min(stop.file_count as usize);
    &stop.files[..count]
}

/// The copies of memory, and the buffers for them.
pub(super) struct Copies {
    buffers: Buffers,
    /// Copies that were judged come back here.
    judged: Receiver<Snapshot>,
    /// The copies that have not come back, and the memory that they take.
    ahead: usize,
    out: u64,
}

impl Copies {
    pub(super) fn new(judged: Receiver<Snapshot>) -> Self {
        Self {
            buffers: Buffers::default(),
            judged,
            ahead: 0,
            out: 0,
        }
    }

    /// Copies the memory of a process that has `hashed` blocks in the hash table.
    fn copy(
        &mut self,
        ending: &ending,
        hashed: u64,
        threads: &[Thread],
        deadline: Instant,
    ) -> Result<Snapshot, Unread> {
        let blocks_take = hashed.saturating_mul(BYTES_A_BLOCK);
        let tid = Pid::from_raw(ending.tid.cast_signed());
        loop {
            while let Ok(snapshot) = self.judged.try_recv() {
                self.take_back(snapshot);
            }
            if self.ahead >= MOST_AHEAD {
                self.await_judged(deadline).ok_or(Unread::TooLong)?;
                continue;
            }
            let read = |bytes, buffers: &mut Buffers| {
                let budget = Budget { bytes, deadline };
                Snapshot::read(tid, ending.proc_tid, threads, &budget, buffers)
            };
            // Memory that memleak has already needs no look at what others have left.
            let mut snapshot = read(self.buffers.kept() as u64, &mut self.buffers);
            if matches!(snapshot, Err(Unread::Memory)) {
                let most = MOST_COPIED.saturating_sub(self.out).min(memory_left() / 2);
                snapshot = read(most.saturating_sub(blocks_take), &mut self.buffers);
            }
            match snapshot {
                // There will be room.
                Err(Unread::Memory) if self.out > 0 => {}
                read => {
                    self.ahead += usize::from(read.is_ok());
                    self.out += read.as_ref().map_or(0, Snapshot::memory);
                    return read;
                }
            }
            self.await_judged(deadline).ok_or(Unread::Memory)?;
        }
    }

    /// Waits until another copy was judged. `None`: none was.
    fn await_judged(&mut self, deadline: Instant) -> Option<()> {
        let rest = deadline.saturating_duration_since(Instant::now());
        let snapshot = self.judged.recv_timeout(rest).ok()?;
        self.take_back(snapshot);
        Some(())
    }

    fn take_back(&mut self, snapshot: Snapshot) {
        self.ahead = self.ahead.saturating_sub(1);
        self.out = self.out.saturating_sub(snapshot.memory());
        snapshot.recycle(&mut self.buffers);
    }
}
