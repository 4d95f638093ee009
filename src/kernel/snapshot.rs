//! Reads the living processes and their counters as of one moment. The sums are made in `records`.

use std::collections::HashMap;

use anyhow::{Context as _, Result};
use libbpf_rs::{MapCore, MapFlags, ProgramMut};

use crate::kernel::ages::OldBlocks;
use crate::kernel::collector::Collector;
use crate::kernel::live_counters;
use crate::kernel::object::iterate;
use crate::kernel::records;
use crate::kernel::rings::bytes_of;
use crate::kernel::skeletons::types::{heap, heap_flags, limits, live_cell, thread_sum};
use crate::kernel::stack_tables::StackTables;
use crate::model::image::Image;
use crate::model::stack::StackShare;
use crate::os::clock::monotonic;

/// How often the counters of living processes are read, until no thread has come or gone during a reading.
const SNAPSHOTS: u32 = 10;

/// The same for readings that will soon be repeated.
const GLANCES: u32 = 3;

impl Collector {
    /// The images that have ended since the last [`take_ended`](Self::take_ended), then those that still run.
    ///
    /// # Errors
    /// The kernel's tables cannot be read.
    pub fn take_all(&mut self) -> Result<Vec<Image>> {
        let mut running = HashMap::new();
        let mut ended = Vec::new();
        for round in 1..=SNAPSHOTS {
            if !self.has_living_tasks() {
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
        ended.extend(self.wait_for_verdicts());
        // These images were seen running, and have ended since.
        for (id, _) in &ended {
            running.remove(id);
        }
        let mut images: Vec<_> = ended.into_iter().map(|(_, image)| image).collect();
        images.extend(oldest_first(running).into_iter().map(|(_, image)| image));
        Ok(images)
    }

    /// The images that run now, each with the id of its heap. Ids of heaps are never reused.
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

    /// The blocks that are old enough. `None`: the age of blocks does not matter.
    ///
    /// # Errors
    /// The kernel's tables cannot be read.
    pub fn old_blocks(&self) -> Result<Option<OldBlocks>> {
        let old = self.stacks.as_ref().map(StackTables::old_blocks);
        let old = old
            .transpose()
            .context("cannot read the table of live blocks");
        old.map(Option::flatten)
    }

    /// What a running image has allocated by each call stack. `id` is that of its heap. With `old`, it holds only those
    /// blocks. `None`: the image has ended, or no call stacks are recorded.
    pub fn stacks_of(&mut self, id: u64, old: Option<&OldBlocks>) -> Option<Vec<StackShare>> {
        let key = id.to_ne_bytes();
        let record = self.object.heaps().lookup(&key, MapFlags::ANY).ok()??;
        let record = records::heap_from_bytes(&record)?;
        let tables = self.stacks.as_mut()?;
        Some(tables.look(id, record.stacks, old))
    }

    /// Reads the running images. Returns false if a thread or process came or went during the reading. Images whose
    /// counters are then uncertain are left out, unless this is the `last` reading.
    fn snapshot(&self, last: bool, running: &mut HashMap<u64, Image>) -> Result<bool> {
        let before = self.living_heaps()?;
        let threads = self.thread_sums()?;
        let after = self.living_heaps()?;
        let now = monotonic().as_nanos() as u64;
        // A reading is settled if no heap came or went: a new process may be the child of one that ended.
        let mut settled = before.keys().all(|id| after.contains_key(id));
        running.retain(|id, _| after.contains_key(id));
        for (id, record) in &after {
            let threads = threads.get(id).map_or(&[][..], Vec::as_slice);
            // A thread that exits adds its sums to the heap. They must not be counted twice.
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
                let mut record = *record;
                live_counters::fill(&mut record);
                let mut image =
                    records::running_image(&record, threads, cell.as_ref(), now, &self.context);
                self.args
                    .add(&self.object, self.context.clock, *id, &mut image, false);
                running.insert(*id, image);
            }
        }
        Ok(settled)
    }

    fn living_heaps(&self) -> Result<HashMap<u64, heap>> {
        let mut living = HashMap::new();
        self.for_each_heap(|record| {
            // A heap without users is still being made.
            if record.flags & heap_flags::HEAP_ENDED.0 == 0 && record.users > 0 {
                living.insert(record.id, *record);
            }
        })?;
        Ok(living)
    }

    /// The counters of the living threads, by heap.
    pub(super) fn thread_sums(&self) -> Result<HashMap<u64, Vec<thread_sum>>> {
        let bytes = self.iterate(self.object.living())?;
        let mut threads: HashMap<u64, Vec<thread_sum>> = HashMap::new();
        for sum in records::thread_sums_from_bytes(&bytes) {
            threads.entry(sum.heap).or_default().push(sum);
        }
        Ok(threads)
    }

    /// Runs a program for each task of the machine. Returns the program's output.
    pub(super) fn iterate(&self, program: &ProgramMut<'_>) -> Result<Vec<u8>> {
        iterate(program).context("cannot list the living tasks")
    }

    /// The cell where the threads of a heap may share its live bytes.
    fn live_cell(&self, heap: u64) -> Option<live_cell> {
        let index = heap as u32 % limits::LIVE_CELLS.0;
        let cells = &self.object.newer()?.maps.live_cells;
        let bytes = cells.lookup(&index.to_ne_bytes(), MapFlags::ANY).ok()??;
        records::plain_from_bytes(&bytes)
    }
}

fn oldest_first(running: HashMap<u64, Image>) -> Vec<(u64, Image)> {
    let mut running: Vec<_> = running.into_iter().collect();
    running.sort_by_key(|(_, image)| image.start_time);
    running
}
