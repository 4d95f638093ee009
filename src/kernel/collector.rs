//! The loaded programs at work: their links, and the ring of images that have ended.
//!
//! Loading is left to `load`, decoding to `records`, living processes to `snapshot`, and arriving files to `arrivals`.

use std::cell::{OnceCell, RefCell};
use std::collections::HashMap;
use std::os::fd::BorrowedFd;
use std::rc::Rc;
use std::thread as threads;
use std::time::Duration;

use anyhow::{Context as _, Result};
use libbpf_rs::{Link, MapCore, RingBuffer};
use nix::errno::Errno;
use nix::unistd::{Pid, getpid};

use crate::kernel::args::Args;
use crate::kernel::attach::{Attached, Target};
use crate::kernel::batch::BatchWalk;
use crate::kernel::error::LoadError;
use crate::kernel::files::{Key, Known};
use crate::kernel::keeper::Keeper;
use crate::kernel::method::{Holds, Method};
use crate::kernel::object::{Globals, Object};
use crate::kernel::readings::Readings;
use crate::kernel::records::{self, Context};
use crate::kernel::rings::{Taken, ring};
use crate::kernel::settings::{NoStacks, Reading, Settings};
use crate::kernel::skeletons::types::{arrival, heap, heap_flags};
use crate::kernel::stack_tables::StackTables;
use crate::kernel::sweep::Sweep;
use crate::kernel::verdicts::HeapVerdict;
use crate::kernel::witness::SignalsSeen;
use crate::kernel::{detach, load};
use crate::model::image::{End, Image};
use crate::os::clock::Clock;
use crate::stacks::code_files::CodeFiles;

/// Blocks of ended heaps are swept when they fill this share of the table of live blocks. If the table is full, the
/// kernel side sweeps by itself, in the middle of some process's malloc. Sweeping early avoids that.
const SWEEP_SHARE: u64 = 4;

/// How many records of heaps are read at once. Together they take a few hundred kilobytes.
const HEAPS_AT_ONCE: u32 = 256;

/// How many records are taken off the ring before they become images. An image is a quarter of a record's size.
const AT_ONCE: usize = 64;

/// Loaded programs, their links, and the ring of ended images.
pub struct Collector {
    pub(super) object: Object,
    pub(super) globals: Globals,
    pub(super) method: Method,
    pub(super) holds: Holds,
    pub(super) told_twice: bool,
    pub(super) only: Vec<u32>,
    links: Vec<Link>,
    /// Started when a process first waits.
    pub(super) keeper: OnceCell<Option<Keeper>>,
    ring: RingBuffer<'static>,
    /// The ring of files that processes wait for. `None` if no process can be held.
    pub(super) arrivals: Option<RingBuffer<'static>>,
    /// Threads that close links. Nothing waits for them before memleak detaches.
    pub(super) closing: HashMap<Key, threads::JoinHandle<()>>,
    arrived: Taken<heap>,
    pub(super) unseen: Taken<arrival>,
    pub(super) known: Known,
    /// Pids with an entry in the map `found`: the kernel was told which files these processes have mapped.
    pub(super) found: Vec<u32>,
    pub(super) context: Context,
    pub(super) args: Args,
    pub(super) targets: Vec<Target>,
    /// The thread that reads processes at their ends. `None`: none are read.
    pub(super) readings: Option<Readings>,
    /// `None`: allocations are not attributed to call stacks.
    pub(super) stacks: Option<StackTables>,
    /// Why they are not, though they were wanted where that is possible.
    pub no_stacks: Option<NoStacks>,
    /// Images whose memory was read, and on which there is no verdict yet.
    unjudged: Vec<ReadImage>,
    rows_taken_from_map: u64,
    sweep: Option<Sweep>,
    max_blocks: u64,
    pub(super) attach_delay: Duration,
}

/// An image whose memory was read.
struct ReadImage {
    heap: u64,
    image: Image,
    /// The numbers of its stacks.
    stacks: Vec<u32>,
}

impl ReadImage {
    fn judged(mut self, verdict: HeapVerdict) -> (u64, Image) {
        verdict.enter(&mut self.image, &self.stacks);
        (self.heap, self.image)
    }
}

impl Collector {
    /// Loads the programs and starts to follow forks, execs and exits. No process is followed yet.
    ///
    /// # Errors
    /// See [`LoadError`].
    pub fn load(settings: &Settings) -> Result<Self, LoadError> {
        let loaded = load::load(settings)?;
        // Each kind of record has a ring of its own, so that reading ended images takes no arrivals off.
        let (ended, arrived) = ring(loaded.object.ended(), records::heap_from_bytes)?;
        let (arrivals, unseen) = match loaded.object.newer() {
            Some(skel) => {
                let (ring, unseen) = ring(&skel.maps.arrivals, records::plain_from_bytes)?;
                (Some(ring), unseen)
            }
            None => (None, Taken::default()),
        };
        let reading = settings.recorded.reads.reading(loaded.holds);
        let readings = match loaded.object.newer() {
            Some(skel) if reading == Reading::On => Some(Readings::start(
                skel,
                loaded.holds,
                settings.recorded.reads,
                settings.compares,
            )?),
            _ => None,
        };
        let stacks = match (loaded.object.newer(), loaded.stacks) {
            (Some(skel), Some(stacks)) => Some(StackTables::open(skel, stacks)?),
            _ => None,
        };
        Ok(Collector {
            object: loaded.object,
            globals: loaded.globals,
            method: loaded.method,
            holds: loaded.holds,
            told_twice: loaded.told_twice,
            only: loaded.only,
            links: loaded.links,
            keeper: OnceCell::new(),
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
                reading,
                compares: settings.compares,
            },
            args: Args::new(settings.recorded.args, settings.recorded.labels.clone()),
            targets: Vec::new(),
            readings,
            stacks,
            no_stacks: loaded.no_stacks,
            unjudged: Vec::new(),
            rows_taken_from_map: 0,
            sweep: None,
            max_blocks: u64::from(settings.max_blocks),
            attach_delay: settings.attach_delay,
        })
    }

    /// The clock that converts the times of rows.
    pub fn clock(&self) -> Clock {
        self.context.clock
    }

    /// Reads the clock again, for later rows.
    pub fn set_clock(&mut self) {
        self.context.clock = Clock::read();
    }

    /// How the probes are attached.
    pub fn method(&self) -> Method {
        self.method
    }

    /// Whether the probes are for the chosen processes only.
    pub fn is_filtered(&self) -> bool {
        !self.only.is_empty()
    }

    /// Where processes are held until their files have been examined.
    pub fn holds(&self) -> Holds {
        self.holds
    }

    /// Whether it was asked what processes lost, also if this kernel cannot tell.
    pub fn tells_lost(&self) -> bool {
        self.context.reading != Reading::Off
    }

    /// The files with code that have been examined, also those that come later. `None` if no call stacks are recorded.
    pub fn code_files(&self) -> Option<Rc<RefCell<CodeFiles>>> {
        self.stacks.as_ref().map(StackTables::files)
    }

    /// Waits until call stacks are whole in all files that were examined, for at most this time for each of the large ones.
    pub fn await_rules(&mut self, time: Duration) {
        if let Some(stacks) = &mut self.stacks {
            stacks.load_rules(time);
        }
    }

    /// Whether this kernel could record call stacks, and that was not asked for.
    pub fn leaves_out_stacks(&self) -> bool {
        self.stacks.is_none() && self.no_stacks.is_none() && self.object.newer().is_some()
    }

    /// The files with probes.
    pub fn targets(&self) -> &[Target] {
        &self.targets
    }

    /// Watches the signals that are sent to memleak and to `command`.
    pub fn watch_signals(&mut self, command: Pid) {
        // The kernel's pids are positive.
        let [own, commands] = [getpid(), command].map(|pid| pid.as_raw().cast_unsigned());
        self.globals.memleak_pid.set(own);
        self.globals.command_pid.set(commands);
    }

    /// The signals that were sent since [`watch_signals`](Self::watch_signals).
    pub fn signals_seen(&self) -> SignalsSeen<'_> {
        SignalsSeen::new(self.object.signals_seen())
    }

    /// These are readable when images have ended, when processes wait for files to be examined, and when a process wants
    /// to sleep and there is no keeper.
    pub fn fds(&self) -> Vec<BorrowedFd<'_>> {
        let stacks = self.stacks.as_ref().map(StackTables::ring);
        std::iter::once(&self.ring)
            .chain(&self.arrivals)
            .chain(stacks)
            // SAFETY: the descriptors are open as long as the rings exist.
            .map(|ring| unsafe { BorrowedFd::borrow_raw(ring.epoll_fd()) })
            .chain(self.readings.as_ref().map(Readings::fd))
            .chain(self.sleepers())
            .collect()
    }

    /// The images that have ended since the last call. Those that came through the ring are in the order of their ends.
    ///
    /// # Errors
    /// A map cannot be read.
    pub fn take_ended(&mut self) -> Result<Vec<Image>> {
        let ended = self.take_records()?;
        Ok(ended.into_iter().map(|(_, image)| image).collect())
    }

    /// Like [`take_ended`](Self::take_ended), with the id of each image's heap.
    pub(super) fn take_records(&mut self) -> Result<Vec<(u64, Image)>> {
        let mut ended = Vec::new();
        self.start_keeper_if_needed();
        if let Some(stacks) = &mut self.stacks {
            stacks.learn();
        }
        self.take_judged(&mut ended);
        loop {
            let taken = self.ring.consume_raw_n(AT_ONCE);
            let taken = usize::try_from(taken).map_err(|_| Errno::from_raw(-taken));
            let taken = taken.context("cannot read the ring of ended images")?;
            let records = std::mem::take(&mut *self.arrived.borrow_mut());
            for record in &records {
                let image = self.ended(record);
                self.enter(record, image, &mut ended);
            }
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

    /// The image of a record, unless its process is outside the wanted control groups.
    fn ended(&self, record: &heap) -> Option<(u64, Image)> {
        let mut image = records::ended_image(record, &self.context);
        self.args.add(
            &self.object,
            self.context.clock,
            record.id,
            &mut image,
            true,
        );
        (!records::is_outside(record, &[])).then_some((record.id, image))
    }

    /// Drops blocks of ended heaps if they fill much of the table of live blocks, or continues a sweep. One call drops
    /// a part of them, because dropping all may take some hundred milliseconds. To be called after rows were written.
    ///
    /// # Errors
    /// The table cannot be walked.
    pub fn sweep_if_due(&mut self) -> Result<()> {
        let dead = self.globals.dead_blocks.get();
        if !self.is_sweeping() && dead.saturating_mul(SWEEP_SHARE) < self.max_blocks {
            return Ok(());
        }
        let mut sweep = self.sweep.take().unwrap_or_else(Sweep::new);
        let unlisted = self.object.newer().map(|skel| &skel.maps.unlisted);
        let step = sweep.step(self.object.blocks(), self.object.heaps(), unlisted);
        if let Some(dropped) = step.context("cannot walk the table of live blocks")? {
            self.sweep = Some(sweep);
            self.globals.dead_blocks.subtract(dropped);
        }
        Ok(())
    }

    /// How long to wait for events: `most`, but not at all while a sweep is not finished.
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

    /// Takes images that found the ring full. They stay in the map until they are taken here. Returns how many there
    /// were.
    fn take_waiting(&mut self, ended: &mut Vec<(u64, Image)>) -> Result<u64> {
        let mut waiting = Vec::new();
        self.for_each_heap(|record| {
            if record.flags & heap_flags::HEAP_ENDED.0 != 0 {
                waiting.push((*record, self.ended(record)));
            }
        })?;
        let taken = waiting.len() as u64;
        for (record, image) in waiting {
            self.object
                .heaps()
                .delete(&record.id.to_ne_bytes())
                .context("cannot take an ended image")?;
            self.enter(&record, image, ended);
        }
        Ok(taken)
    }

    /// Adds an image that has ended, or puts it aside until there is a verdict on it.
    fn enter(&mut self, record: &heap, image: Option<(u64, Image)>, ended: &mut Vec<(u64, Image)>) {
        let stacks = self.stacks.as_mut();
        let stacks = stacks.map(|tables| tables.take(record.id, record.stacks));
        let Some((heap, mut image)) = image else {
            return;
        };
        let (stacks, freed) = stacks.unzip();
        let stacks: Option<(Vec<_>, Vec<_>)> = stacks.map(|stacks| stacks.into_iter().unzip());
        let (stacks, shares) = stacks.unzip();
        image.stacks = shares;
        image.unlisted_stacks = freed.unwrap_or_default();
        if records::was_read(record)
            && image.end != End::Exec
            && let Some(readings) = &mut self.readings
        {
            let read = ReadImage {
                heap,
                image,
                stacks: stacks.unwrap_or_default(),
            };
            match readings.take(heap) {
                Some(verdict) => ended.push(read.judged(verdict)),
                None => self.unjudged.push(read),
            }
            return;
        }
        ended.push((heap, image));
    }

    /// Adds the images that were put aside, and on which there is a verdict now.
    fn take_judged(&mut self, ended: &mut Vec<(u64, Image)>) {
        let Some(readings) = &mut self.readings else {
            return;
        };
        readings.collect();
        for read in std::mem::take(&mut self.unjudged) {
            match readings.take(read.heap) {
                Some(verdict) => ended.push(read.judged(verdict)),
                None => self.unjudged.push(read),
            }
        }
    }

    /// The images that were put aside, once there is a verdict on each, with the id of each image's heap.
    pub fn wait_for_verdicts(&mut self) -> Vec<(u64, Image)> {
        let Some(readings) = &mut self.readings else {
            return Vec::new();
        };
        let unjudged = std::mem::take(&mut self.unjudged).into_iter();
        let judged = unjudged.map(|read| {
            let verdict = readings.wait_for(read.heap);
            read.judged(verdict)
        });
        judged.collect()
    }

    /// Calls `each` for every heap in the map of heaps.
    pub(super) fn for_each_heap(&self, mut each: impl FnMut(&heap)) -> Result<()> {
        let mut walk = BatchWalk::new(HEAPS_AT_ONCE);
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

    /// Removes the probes.
    pub fn detach(&mut self) {
        self.stop_answering();
        let links = std::mem::take(&mut self.links);
        let mut links: Vec<_> = links.into_iter().map(Attached::Link).collect();
        links.extend(self.known.take_links());
        detach::close(links);
        self.wait_for_closing();
    }

    /// Leaves the removal of the probes to memleak's own exit, which must follow at once. No probe stays behind,
    /// whatever kills memleak meanwhile.
    pub fn detach_at_exit(mut self) {
        self.stop_answering();
        self.wait_for_closing();
        detach::at_exit(self.method != Method::Separate);
        drop(self.keeper.take());
        // memleak's exit closes the links, so they must not be dropped here.
        std::mem::forget(self);
    }

    fn wait_for_closing(&mut self) {
        for (_, thread) in self.closing.drain() {
            // The thread returns no result.
            let _ = thread.join();
        }
    }
}
