//! The kernel's side at work: loads the programs, attaches them, and hands out images as they end. With
//! `probe`, the only modules that touch libbpf.

mod arrivals;
pub mod attach;
mod batch;
mod detach;
mod empty;
mod load;
mod object;
pub mod records;
pub mod separate;
pub mod skeletons;
mod sweep;
mod witness;

use std::cell::RefCell;
use std::collections::HashMap;
use std::fs;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use std::rc::Rc;
use std::thread as threads;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use libbpf_rs::{Iter, Link, MapCore, MapFlags, ProgramMut, RingBuffer, RingBufferBuilder};
use nix::errno::Errno;
use nix::unistd::{Pid, getpid};

use crate::kernel::attach::{Attached, Method, Target};
use crate::kernel::skeletons::types::{
    arrival, found_files, heap, heap_flags, limits, live_cell, thread, thread_sum,
};
use crate::kernel::skeletons::{FloorSkel, types};
use crate::model::image::{Image, Losses};
use crate::os::clock::{Clock, monotonic};
use crate::os::processes::{Process, field};
use arrivals::Known;
use batch::Walk;
use object::{Globals, Object};
use records::Context;
use sweep::Sweep;

pub use arrivals::Arrival;
pub use empty::EmptyProbes;
pub use load::{
    BTF, Cgroup, Holds, LoadError, MAX_CGROUPS, Scope, Settings, Wanted, ran_out_of_descriptors,
    take_messages,
};
pub use witness::SignalsSeen;

/// Blocks of ended heaps are swept when they fill this share of the table of live blocks. The kernel
/// does it by itself when the table is full, in the middle of somebody's malloc; this is to spare it that.
const SWEEP_SHARE: u64 = 4;

/// How many records of heaps are read at once: a few hundred kilobytes.
const HEAPS_AT_ONCE: u32 = 256;

/// How many records are taken off the ring before they are made images, a quarter of their size.
const AT_ONCE: usize = 64;

/// How often the counters of a living process are read until no thread left it or came meanwhile.
const SNAPSHOTS: u32 = 10;

/// The same, where it will be looked at again soon.
const GLANCES: u32 = 3;

/// Loaded programs, their links, and the ring of ended images.
pub struct Collector {
    object: Object,
    globals: Globals,
    floor: Option<FloorSkel<'static>>,
    method: Method,
    holds: Holds,
    told_twice: bool,
    links: Vec<Link>,
    ring: RingBuffer<'static>,
    /// Where processes are held.
    arrivals: Option<RingBuffer<'static>>,
    /// Threads that close links which nobody may wait for.
    closing: HashMap<arrivals::Key, threads::JoinHandle<()>>,
    arrived: Taken<heap>,
    unseen: Taken<arrival>,
    known: Known,
    /// Processes of which the kernel was told what they have mapped.
    found: Vec<u32>,
    context: Context,
    targets: Vec<Target>,
    rows_taken_from_map: u64,
    sweep: Option<Sweep>,
    max_blocks: u64,
}

impl Collector {
    /// Loads the programs and starts following forks, execs and exits; nobody is followed yet.
    ///
    /// # Errors
    /// See [`LoadError`].
    pub fn load(settings: &Settings) -> Result<Self, LoadError> {
        let loaded = load::load(settings)?;
        // Rings of their own: who takes the ended must not take an arrival off unnoticed.
        let (ended, arrived) = ring(loaded.object.ended(), records::heap_from_bytes)?;
        let (arrivals, unseen) = match loaded.object.newer() {
            Some(skel) => {
                let (ring, unseen) = ring(&skel.maps.arrivals, records::arrival_from_bytes)?;
                (Some(ring), unseen)
            }
            None => (None, Taken::default()),
        };
        Ok(Collector {
            object: loaded.object,
            globals: loaded.globals,
            floor: loaded.floor,
            method: loaded.method,
            holds: loaded.holds,
            told_twice: loaded.told_twice,
            links: loaded.links,
            ring: ended,
            arrivals,
            closing: HashMap::new(),
            arrived,
            unseen,
            known: Known::default(),
            found: Vec::new(),
            context: Context {
                clock: Clock::read(),
                files: Vec::new(),
            },
            targets: Vec::new(),
            rows_taken_from_map: 0,
            sweep: None,
            max_blocks: u64::from(settings.max_blocks),
        })
    }

    /// By which rows tell their times.
    pub fn clock(&self) -> Clock {
        self.context.clock
    }

    /// Looks at the clock again, for the rows to come.
    pub fn set_clock(&mut self) {
        self.context.clock = Clock::read();
    }

    /// How the probes are attached.
    pub fn method(&self) -> Method {
        self.method
    }

    /// Where processes are held until their files have been examined.
    pub fn holds(&self) -> Holds {
        self.holds
    }

    /// The files that carry probes.
    pub fn targets(&self) -> &[Target] {
        &self.targets
    }

    /// Follows a task from its next exec on, and all that it starts.
    ///
    /// # Errors
    /// The task is gone, or the kernel has no memory for it.
    pub fn follow(&mut self, pid: Pid, pidfd: BorrowedFd<'_>) -> Result<()> {
        let context = "cannot tell the kernel which process to follow";
        match &self.object {
            Object::Newer(skel) => {
                self.globals.living_tasks.add(1);
                let pidfd = pidfd.as_raw_fd().to_ne_bytes();
                let nothing = thread::default();
                let threads = &skel.maps.threads;
                threads
                    .update(&pidfd, bytes_of(&nothing), MapFlags::ANY)
                    .context(context)
            }
            // It is our child, so its pid is nobody else's.
            Object::Older(skel) => {
                let found = self.find(&skel.progs.follow, pid.as_raw().cast_unsigned())?;
                ensure!(found, context);
                Ok(())
            }
        }
    }

    /// Chooses a process that is there already, to be followed from [`adopt`](Self::adopt) on.
    ///
    /// # Errors
    /// The process is gone, or the kernel has no memory for it.
    pub fn choose(&self, process: &Process) -> Result<()> {
        let context = || format!("cannot follow process {}: it may have ended", process.pid);
        match &self.object {
            Object::Newer(skel) => {
                let chosen = types::process {
                    chosen: 1,
                    ..types::process::default()
                };
                let key = process.as_fd().as_raw_fd().to_ne_bytes();
                let processes = &skel.maps.processes;
                processes
                    .update(&key, bytes_of(&chosen), MapFlags::ANY)
                    .with_context(context)
            }
            Object::Older(skel) => {
                let found = self.find(&skel.progs.choose, process.pid)?;
                // As long as it has not ended, nobody else has had its pid.
                ensure!(found && !process.has_ended(), context());
                Ok(())
            }
        }
    }

    /// Tells the kernel which probed files a process that is there has mapped, by their numbers, for
    /// [`adopt`](Self::adopt). Where there is no room for it, the process's first call of an allocator tells.
    pub fn has_mapped(&mut self, pid: u32, numbers: &[u16]) {
        if numbers.is_empty() {
            return;
        }
        let mut files = found_files {
            count: numbers.len() as u32,
            ..found_files::default()
        };
        for (file, number) in files.files.iter_mut().zip(numbers) {
            *file = *number;
        }
        let found = self.object.found();
        let told = found.update(&pid.to_ne_bytes(), bytes_of(&files), MapFlags::ANY);
        self.found.extend(told.is_ok().then_some(pid));
    }

    /// Begins to count the processes that are there. To be called when all that they have mapped is
    /// probed: where the allocations of one were seen before its frees were, it would seem to leak.
    ///
    /// # Errors
    /// The kernel does not list its tasks.
    pub fn adopt(&mut self) -> Result<()> {
        self.globals.joining.set(1);
        self.iterate(self.object.adopt_all())?;
        // From now on the number may come to be another process's.
        for pid in self.found.drain(..) {
            // It is there.
            let _ = self.object.found().delete(&pid.to_ne_bytes());
        }
        Ok(())
    }

    /// Runs a program of the object for older kernels for the process that has this pid: the kernel knows it by its
    /// address, which only a program can tell. Whether it was found, and the program could do what it is for.
    fn find(&self, program: &ProgramMut<'_>, pid: u32) -> Result<bool> {
        let wanted = self.globals.wanted_pid.as_ref();
        let wanted = wanted.context("this object finds no process")?;
        wanted.set(pid);
        self.iterate(program)?;
        Ok(wanted.get() == 0)
    }

    /// Watches what is sent to memleak and to `command`.
    pub fn watch_signals(&mut self, command: Pid) {
        // The kernel's pids are positive.
        let [own, commands] = [getpid(), command].map(|pid| pid.as_raw().cast_unsigned());
        self.globals.memleak_pid.set(own);
        self.globals.command_pid.set(commands);
    }

    /// What was sent since [`watch_signals`](Self::watch_signals).
    pub fn signals_seen(&self) -> SignalsSeen<'_> {
        SignalsSeen::new(self.object.signals_seen())
    }

    /// Readable when images have ended, and when processes wait for files to be examined.
    pub fn fds(&self) -> Vec<BorrowedFd<'_>> {
        std::iter::once(&self.ring)
            .chain(&self.arrivals)
            // SAFETY: the descriptors are open for as long as the rings are.
            .map(|ring| unsafe { BorrowedFd::borrow_raw(ring.epoll_fd()) })
            .collect()
    }

    /// The images that have ended since the last call, in the order of their ends as far as they came by the ring.
    ///
    /// # Errors
    /// A map cannot be read.
    pub fn take_ended(&mut self) -> Result<Vec<Image>> {
        let ended = self.take_records()?;
        Ok(ended.into_iter().map(|(_, image)| image).collect())
    }

    /// The same, each with the id of its heap.
    fn take_records(&mut self) -> Result<Vec<(u64, Image)>> {
        let mut ended = Vec::new();
        loop {
            let taken = self.ring.consume_raw_n(AT_ONCE);
            let taken = usize::try_from(taken).map_err(|_| Errno::from_raw(-taken));
            let taken = taken.context("cannot read the ring of ended images")?;
            let records = std::mem::take(&mut *self.arrived.borrow_mut());
            ended.extend(records.iter().filter_map(|record| self.ended(record)));
            if taken < AT_ONCE {
                break;
            }
        }
        let waiting = self.globals.rows_waiting.get();
        if waiting > self.rows_taken_from_map {
            self.rows_taken_from_map += self.take_waiting(&mut ended)?;
            ended.sort_by_key(|(_, image)| image.end_time);
        }
        Ok(ended)
    }

    /// What a record tells, unless it is of nobody's interest.
    fn ended(&self, record: &heap) -> Option<(u64, Image)> {
        (!records::is_outside(record, &[]))
            .then(|| (record.id, records::ended_image(record, &self.context)))
    }

    /// Drops blocks of ended heaps where they fill much of the table of live blocks, or goes on with that: a part of
    /// them, as it may take some hundred milliseconds to drop all. To be done when rows are out.
    ///
    /// # Errors
    /// The table cannot be walked.
    pub fn sweep_if_due(&mut self) -> Result<()> {
        let dead = self.globals.dead_blocks.get();
        if !self.is_sweeping() && dead.saturating_mul(SWEEP_SHARE) < self.max_blocks {
            return Ok(());
        }
        let mut sweep = self.sweep.take().unwrap_or_else(Sweep::new);
        let step = sweep.step(self.object.blocks(), self.object.heaps());
        if let Some(dropped) = step.context("cannot walk the table of live blocks")? {
            self.sweep = Some(sweep);
            self.globals.dead_blocks.subtract(dropped);
        }
        Ok(())
    }

    /// How long to wait for something to happen, of so long: not at all, while there is something left to be swept.
    pub fn patience(&self, most: Duration) -> Duration {
        if self.is_sweeping() {
            Duration::ZERO
        } else {
            most
        }
    }

    fn is_sweeping(&self) -> bool {
        self.sweep.is_some()
    }

    /// Whether anything is left of what is followed. Where nothing is, [`take_ended`](Self::take_ended) has
    /// all there is.
    fn anyone_lives(&self) -> bool {
        self.globals.living_tasks.get() > 0
    }

    /// Whether everybody who is followed has ended. Where an end was missed the count stays too high for ever: then who
    /// is there is looked for.
    pub fn everyone_has_ended(&self) -> bool {
        !self.anyone_lives()
            || (self.told_twice
                && self.missed_events() > 0
                && self.thread_sums().is_ok_and(|sums| sums.is_empty()))
    }

    /// Images that found the ring full stay in the map until they are taken here. Returns how many were.
    fn take_waiting(&self, ended: &mut Vec<(u64, Image)>) -> Result<u64> {
        let mut waiting = Vec::new();
        self.for_each_heap(|record| {
            if record.flags & heap_flags::HEAP_ENDED.0 != 0 {
                waiting.push((record.id, self.ended(record)));
            }
        })?;
        for (id, _) in &waiting {
            self.object
                .heaps()
                .delete(&id.to_ne_bytes())
                .context("cannot take an ended image")?;
        }
        let taken = waiting.len() as u64;
        ended.extend(waiting.into_iter().filter_map(|(_, image)| image));
        Ok(taken)
    }

    /// Reads the heaps that are in their map.
    fn for_each_heap(&self, mut each: impl FnMut(&heap)) -> Result<()> {
        let mut walk = Walk::new(HEAPS_AT_ONCE);
        while let Some(batch) = walk
            .next(self.object.heaps())
            .context("cannot read the table of images")?
        {
            for record in batch.values.filter_map(records::heap_from_bytes) {
                each(&record);
            }
        }
        Ok(())
    }

    /// The images that have ended since the last [`take_ended`](Self::take_ended), then those that still run.
    ///
    /// # Errors
    /// The kernel's tables cannot be read.
    pub fn take_all(&mut self) -> Result<Vec<Image>> {
        let mut running = HashMap::new();
        let mut ended = Vec::new();
        for round in 1..=SNAPSHOTS {
            if !self.anyone_lives() {
                break;
            }
            let mut settled = self.snapshot(round == SNAPSHOTS, &mut running)?;
            let gone = self.take_records()?;
            settled &= gone.iter().all(|(id, _)| !running.contains_key(id));
            ended.extend(gone);
            if settled {
                break;
            }
        }
        ended.extend(self.take_records()?);
        // What was seen running has ended since.
        for (id, _) in &ended {
            running.remove(id);
        }
        let mut images: Vec<_> = ended.into_iter().map(|(_, image)| image).collect();
        images.extend(oldest_first(running).into_iter().map(|(_, image)| image));
        Ok(images)
    }

    /// The images that run at the moment, each with the id of its heap, which is its own for ever.
    ///
    /// # Errors
    /// The kernel's tables cannot be read.
    pub fn running(&self) -> Result<Vec<(u64, Image)>> {
        let mut running = HashMap::new();
        for round in 1..=GLANCES {
            if self.snapshot(round == GLANCES, &mut running)? {
                break;
            }
        }
        Ok(oldest_first(running))
    }

    /// Looks at who runs. False if somebody came or went meanwhile: whose counters are not certain is left
    /// out then, but for the `last` time.
    fn snapshot(&self, last: bool, running: &mut HashMap<u64, Image>) -> Result<bool> {
        let before = self.living_heaps()?;
        let threads = self.thread_sums()?;
        let after = self.living_heaps()?;
        let now = monotonic().as_nanos() as u64;
        // Until nobody comes or goes meanwhile: who comes may be the child of one who goes.
        let mut settled = before.keys().all(|id| after.contains_key(id));
        running.retain(|id, _| after.contains_key(id));
        for (id, record) in &after {
            let threads = threads.get(id).map_or(&[][..], Vec::as_slice);
            // A thread that leaves takes its sums to the heap: they must not be taken twice.
            let sure = before.get(id).is_some_and(|before| {
                bytes_of(&before.sum) == bytes_of(&record.sum)
                    && [before, record].map(records::users) == [records::joined(threads); 2]
            });
            settled &= sure;
            if records::is_outside(record, threads) {
                continue;
            }
            if sure || (last && !running.contains_key(id)) {
                let cell = self.live_cell(*id);
                let image =
                    records::running_image(record, threads, cell.as_ref(), now, &self.context);
                running.insert(*id, image);
            }
        }
        Ok(settled)
    }

    fn living_heaps(&self) -> Result<HashMap<u64, heap>> {
        let mut living = HashMap::new();
        self.for_each_heap(|record| {
            // Without users it is being made.
            if record.flags & heap_flags::HEAP_ENDED.0 == 0 && record.users > 0 {
                living.insert(record.id, *record);
            }
        })?;
        Ok(living)
    }

    /// The counters of the living threads, by heap.
    fn thread_sums(&self) -> Result<HashMap<u64, Vec<thread_sum>>> {
        let bytes = self.iterate(self.object.living())?;
        let mut threads: HashMap<u64, Vec<thread_sum>> = HashMap::new();
        for sum in records::thread_sums_from_bytes(&bytes) {
            threads.entry(sum.heap).or_default().push(sum);
        }
        Ok(threads)
    }

    /// Runs a program for each task of the machine, and returns what it wrote.
    fn iterate(&self, program: &ProgramMut<'_>) -> Result<Vec<u8>> {
        let link = program.attach().context("cannot list the living tasks")?;
        let mut bytes = Vec::new();
        Iter::new(&link)
            .context("cannot list the living tasks")?
            .read_to_end(&mut bytes)
            .context("cannot read the counters of the living tasks")?;
        Ok(bytes)
    }

    /// Where the threads of a heap may share its live bytes.
    fn live_cell(&self, heap: u64) -> Option<live_cell> {
        let index = heap as u32 % limits::LIVE_CELLS.0;
        let cells = &self.object.newer()?.maps.live_cells;
        let bytes = cells.lookup(&index.to_ne_bytes(), MapFlags::ANY).ok()??;
        records::live_cell_from_bytes(&bytes)
    }

    /// What was lost and belongs to no image.
    pub fn losses(&self) -> Losses {
        Losses {
            rows_lost: self.globals.rows_lost.get() + self.missed_events(),
            ..Losses::default()
        }
    }

    /// How many forks, execs and ends, and chances to hold who has executed something, were missed, at the most. What
    /// was told the second time is not, nor can more be than neither program was called for. The kernel counts what
    /// happens to anybody, so some of it may be nobody's of interest.
    fn missed_events(&self) -> u64 {
        let programs = self.object.second_chances().into_iter().flatten();
        let programs = programs.chain(self.object.holds_after_exec(self.holds));
        let globals = &self.globals;
        let missed = programs.zip(globals.retold.iter().zip(&globals.ignored));
        let missed = missed.map(|([first, again], (retold, [ignored, ignored_again]))| {
            let missed = (times_missed(first) + ignored.get()).saturating_sub(retold.get());
            match self.told_twice {
                true => missed.min(times_missed(again) + ignored_again.get()),
                false => missed,
            }
        });
        missed.sum()
    }

    /// What took a slower way, and lost nothing by it: how many, and of what. For `-v`.
    pub fn detours(&self) -> [(u64, &'static str); 4] {
        [
            (
                self.globals.holds.get(),
                "times a process waited for its files to be examined",
            ),
            (
                self.globals.longest_hold_ns.get() / 1000,
                "microseconds was the longest of these waits",
            ),
            (
                self.globals.rows_waiting.get(),
                "rows found the ring full and waited in the map",
            ),
            (
                // Of the object for older kernels it is the only one.
                self.object
                    .newer()
                    .map_or(0, |_| self.globals.late_count.get()),
                "threads were kept in the slower table",
            ),
        ]
    }

    /// How many bytes of the kernel's memory the maps take, as far as it tells that.
    pub fn kernel_memory(&self) -> u64 {
        let entries = fs::read_dir("/proc/self/fdinfo").into_iter().flatten();
        let of_map = |info: String| {
            let is_map = info.contains("map_type:");
            is_map.then(|| field::<u64>(&info, "memlock:")).flatten()
        };
        entries
            .filter_map(|entry| fs::read_to_string(entry.ok()?.path()).ok())
            .filter_map(of_map)
            .sum()
    }

    /// Takes the probes off.
    pub fn detach(&mut self) {
        self.stop_answering();
        let links = std::mem::take(&mut self.links);
        let mut links: Vec<_> = links.into_iter().map(Attached::Link).collect();
        links.extend(self.known.take_links());
        detach::close(links);
        self.wait_for_closing();
    }

    /// Leaves it to memleak's end to take the probes off, which is to come now: whatever kills it meanwhile, none
    /// stays behind.
    pub fn detach_at_exit(mut self) {
        self.stop_answering();
        self.wait_for_closing();
        detach::at_exit();
        // The links are not its own to close any more.
        std::mem::forget(self);
    }

    fn wait_for_closing(&mut self) {
        for (_, thread) in self.closing.drain() {
            // It has nothing to say.
            let _ = thread.join();
        }
    }
}

/// How often the kernel did not call a loaded program because it was at work on the same CPU; 0 where it does not
/// tell (before 5.12).
fn times_missed(program: &ProgramMut<'_>) -> u64 {
    let fdinfo = format!("/proc/self/fdinfo/{}", program.as_fd().as_raw_fd());
    let fdinfo = fs::read_to_string(fdinfo).unwrap_or_default();
    field(&fdinfo, "recursion_misses:").unwrap_or_default()
}

fn oldest_first(running: HashMap<u64, Image>) -> Vec<(u64, Image)> {
    let mut running: Vec<_> = running.into_iter().collect();
    running.sort_by_key(|(_, image)| image.start_time);
    running
}

/// Taken off a ring, and not yet looked at.
type Taken<T> = Rc<RefCell<Vec<T>>>;

/// A ring, and where its records go when it is read.
fn ring<T: 'static>(
    map: &dyn MapCore,
    decode: fn(&[u8]) -> Option<T>,
) -> Result<(RingBuffer<'static>, Taken<T>), LoadError> {
    let taken = Taken::default();
    let sink = Rc::clone(&taken);
    let mut builder = RingBufferBuilder::new();
    builder
        .add(map, move |bytes| {
            sink.borrow_mut().extend(decode(bytes));
            0
        })
        .map_err(LoadError::ring)?;
    Ok((builder.build().map_err(LoadError::ring)?, taken))
}

/// The bytes of a C struct, for a map.
fn bytes_of<T: Copy>(value: &T) -> &[u8] {
    // SAFETY: the types put into maps are C structs of integers without implicit padding.
    unsafe { std::slice::from_raw_parts(std::ptr::from_ref(value).cast(), size_of::<T>()) }
}
