//! Call stacks and their sums, as the programs leave them, and the rules by which the programs unwind.

use std::cell::RefCell;
use std::fs::File;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::time::Duration;

use anyhow::{Context as _, Result};
use libbpf_rs::RingBuffer;

use crate::kernel::ages::{DatedBlocks, OldBlocks};
use crate::kernel::error::LoadError;
use crate::kernel::known_stacks::KnownStacks;
use crate::kernel::mapped::{FirstWord, MapAccess, MappedArray};
use crate::kernel::rings::{Taken, ring};
use crate::kernel::rule_reading::{LARGE, RuleOptions, RuleReading, rules_of};
use crate::kernel::rule_tables::RuleTables;
use crate::kernel::settings::StackSettings;
use crate::kernel::skeletons::MemleakSkel;
use crate::kernel::skeletons::types::{frame_bits, stack_sum, walk_end};
use crate::model::reach::Amount;
use crate::model::stack::{CallStack, CodePlace, Frame, StackShare, UnlistedStacks, WalkEnd};
use crate::stacks::code_files::CodeFiles;

impl FirstWord for stack_sum {}

/// How long a process waits until the rules of a large file are loaded. memleak holds it for two seconds at the most.
const WAITED: Duration = Duration::from_millis(1200);

/// The tables of call stacks.
pub(super) struct StackTables {
    rules: RuleTables,
    sums: MappedArray<stack_sum>,
    ring: RingBuffer<'static>,
    arrived: Taken<(u64, CallStack)>,
    known: KnownStacks,
    /// The hashes that the programs have told of, and do not tell again.
    told: MappedArray<u64>,
    files: Rc<RefCell<CodeFiles>>,
    /// Large files whose rules are still being read.
    readings: Vec<RuleReading>,
    reading: RuleOptions,
    /// Whether stacks are reported by which nothing leaked.
    all: bool,
    /// `None`: the age of blocks does not matter.
    dated: Option<DatedBlocks>,
}

impl StackTables {
    /// # Errors
    /// There is no address space, or no descriptor, left.
    pub(super) fn open(
        skel: &MemleakSkel<'static>,
        settings: StackSettings,
    ) -> Result<Self, LoadError> {
        let (ring, arrived) = ring(&skel.maps.new_stacks, stack_from_bytes)?;
        Ok(Self {
            rules: RuleTables::open(skel)?,
            sums: MappedArray::map(&skel.maps.stack_sums, MapAccess::Write)
                .map_err(LoadError::mapping)?,
            ring,
            arrived,
            known: KnownStacks::new(settings.table as usize / 4),
            told: MappedArray::map(&skel.maps.told_stacks, MapAccess::Write)
                .map_err(LoadError::mapping)?,
            files: Rc::default(),
            readings: Vec::new(),
            reading: settings.reading,
            all: settings.all,
            dated: (settings.older)
                .map(|least| DatedBlocks::open(skel, least))
                .transpose()?,
        })
    }

    /// The files with code that have been examined, also those that come later.
    pub(super) fn files(&self) -> Rc<RefCell<CodeFiles>> {
        Rc::clone(&self.files)
    }

    /// Loads the rules of a file that was examined, because this process has mapped it, or will. Returns the file's number. 0: it has none.
    ///
    /// # Errors
    /// The kernel has no memory for them.
    pub(super) fn add_file(&mut self, path: &Path, file: &File, pid: Option<u32>) -> Result<u32> {
        let number = self.rules.add_module();
        if number != 0 {
            let is_large = file.metadata().is_ok_and(|file| file.len() >= LARGE);
            let reading = is_large.then(|| RuleReading::begin(number, file, self.reading));
            let rules = match reading {
                Some(Ok(reading)) => reading.within(WAITED),
                _ => Ok(rules_of(file, self.reading)),
            };
            match rules {
                Ok(rules) => {
                    let context = || format!("cannot load the unwind rules of {}", path.display());
                    self.rules.load(number, &rules).with_context(context)?;
                }
                Err(reading) => self.readings.push(reading),
            }
            self.files.borrow_mut().add(path, file, pid);
        }
        Ok(number)
    }

    /// Readable when many new stacks have come.
    pub(super) fn ring(&self) -> &RingBuffer<'static> {
        &self.ring
    }

    /// Loads the rules of large files. Waits for each that is still being read, for at most this time.
    pub(super) fn load_rules(&mut self, wait: Duration) {
        for reading in std::mem::take(&mut self.readings) {
            let number = reading.number;
            match reading.within(wait) {
                // Without memory for them, walks go on saying that they are missing.
                Ok(rules) => drop(self.rules.load(number, &rules)),
                Err(reading) => self.readings.push(reading),
            }
        }
    }

    /// Takes the new stacks off their ring, and loads the rules that were read meanwhile.
    pub(super) fn learn(&mut self) {
        self.load_rules(Duration::ZERO);
        // What cannot be read now is read the next time.
        let _ = self.ring.consume();
        self.add_arrived();
        if self.known.is_full() {
            self.drop_unused();
        }
    }

    fn add_arrived(&mut self) {
        for (hash, stack) in self.arrived.take() {
            self.known.add(hash, stack);
        }
    }

    /// Drops the stacks of which neither a heap nor anybody else has sums.
    fn drop_unused(&mut self) {
        // From here on the programs tell of each stack of a new sum. What they have told before is in a sum by now.
        for at in 0..self.told.count() {
            self.told.put(at, 0);
        }
        fence(Ordering::SeqCst);
        let _ = self.ring.consume();
        self.add_arrived();
        let sums = (0..self.sums.count()).filter_map(|at| self.sums.get(at));
        let used = sums.filter(|sum| sum.heap != 0).map(|sum| sum.stack);
        self.known.keep(&used.collect());
    }

    /// Takes the sums of a heap that has ended, each with the number that its blocks have. `first`: the beginning of its
    /// chain.
    pub(super) fn take(
        &mut self,
        heap: u64,
        first: u32,
    ) -> (Vec<(u32, StackShare)>, UnlistedStacks) {
        self.read(heap, first, true)
    }

    /// The blocks that are old enough. `None`: the age of blocks does not matter.
    ///
    /// # Errors
    /// The kernel cannot read its table.
    pub(super) fn old_blocks(&self) -> nix::Result<Option<OldBlocks>> {
        self.dated.as_ref().map(DatedBlocks::old).transpose()
    }

    /// The sums of a heap as they are now. With `old`, these blocks are all that has leaked.
    pub(super) fn look(
        &mut self,
        heap: u64,
        first: u32,
        old: Option<&OldBlocks>,
    ) -> Vec<StackShare> {
        let (shares, _) = self.read(heap, first, false);
        let shares = shares.into_iter().map(|(number, mut share)| {
            if let Some(old) = old {
                let held = old.of(heap, number);
                (share.leaked_bytes, share.leaked_blocks) = (held.bytes, held.blocks);
            }
            share
        });
        shares.collect()
    }

    /// Reads the sums of a heap, each with the number that its blocks have. With `take`, their entries are used again.
    fn read(
        &mut self,
        heap: u64,
        first: u32,
        take: bool,
    ) -> (Vec<(u32, StackShare)>, UnlistedStacks) {
        self.learn();
        let mut shares = Vec::new();
        let mut freed = UnlistedStacks::default();
        let mut at = first as usize;
        // A chain has no circle. But it is in memory that others write to.
        for _ in 0..self.sums.count() {
            let Some(sum) = self.sums.get(at).filter(|sum| at != 0 && sum.heap == heap) else {
                break;
            };
            if take {
                let cleared = stack_sum {
                    heap,
                    ..stack_sum::default()
                };
                self.sums.put(at, cleared);
                self.sums.set_first_word(at, 0);
            }
            let number = at as u32;
            at = sum.next as usize;
            // Of a stack that user space was never told of, nothing is known.
            let Some(stack) = self.known.get(sum.stack) else {
                continue;
            };
            if !self.all && sum.alloc_count <= sum.free_count {
                let allocated = Amount {
                    bytes: sum.alloc_bytes,
                    blocks: sum.alloc_count,
                };
                freed.add(stack, allocated);
                continue;
            }
            let share = StackShare {
                stack: Arc::clone(stack),
                alloc_bytes: sum.alloc_bytes,
                alloc_count: sum.alloc_count,
                leaked_bytes: sum.alloc_bytes.saturating_sub(sum.free_bytes),
                leaked_blocks: sum.alloc_count.saturating_sub(sum.free_count),
                reached: None,
            };
            shares.push((number, share));
        }
        (shares, freed)
    }
}

fn frame(word: u64) -> Frame {
    let has = |bit: frame_bits| word >> bit.0 & 1 != 0;
    let number = word & ((1 << frame_bits::FRAME_EXACT.0) - 1);
    let place = match has(frame_bits::FRAME_ADDRESS) {
        true => CodePlace::Address(number),
        false => CodePlace::File {
            module: (number >> frame_bits::FRAME_MODULE.0) as u32,
            offset: number & ((1 << frame_bits::FRAME_MODULE.0) - 1),
        },
    };
    Frame {
        place,
        interrupted: has(frame_bits::FRAME_EXACT),
    }
}

/// Decodes a record: its hash, and the stack.
fn stack_from_bytes(bytes: &[u8]) -> Option<(u64, CallStack)> {
    const HEAD: usize = 16;
    let (head, frames) = bytes.split_at_checked(HEAD)?;
    let hash = u64::from_ne_bytes(*head.first_chunk()?);
    let depth = u32::from_ne_bytes(*head[8..].first_chunk()?) as usize;
    let [end, guessed] = [12, 14].map(|at| u16::from_ne_bytes([head[at], head[at + 1]]));
    let frames = frames.chunks_exact(8).take(depth);
    let frames: Vec<Frame> = frames
        .filter_map(|word| Some(frame(u64::from_ne_bytes(*word.first_chunk()?))))
        .collect();
    (frames.len() == depth).then_some((
        hash,
        CallStack {
            frames,
            end: match walk_end(end.into()) {
                walk_end::WALK_COMPLETE => WalkEnd::Complete,
                walk_end::WALK_TOO_DEEP => WalkEnd::TooDeep,
                walk_end::WALK_NO_RULE => WalkEnd::NoRule,
                walk_end::WALK_PENDING => WalkEnd::Pending,
                walk_end::WALK_UNREADABLE => WalkEnd::Unreadable,
                walk_end::WALK_NO_CODE => WalkEnd::NoCode,
                walk_end::WALK_NO_CALL => WalkEnd::NoCall,
                walk_end::WALK_BUSY => WalkEnd::Busy,
                _ => WalkEnd::OddRule,
            },
            guessed,
        },
    ))
}
