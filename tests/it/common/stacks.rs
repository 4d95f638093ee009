//! Compares memleak's stacks with those that libgcc walked in the same processes, frame by frame, in both directions.
//!
//! The two sides see the same calls but for these:
//!
//! - memleak's stacks begin with the frames of the library, through which all calls go. They are dropped.
//! - Which frames are an allocator's own, memleak decides by its probes. Operators new at the beginning are dropped on
//!   both sides.
//! - libgcc's own calls of the allocator have no stack in the truth, and are compared as a sum.
//! - Where libgcc cannot walk on, memleak may: by .debug_frame, by the frame pointer, or through the trampoline of a
//!   return probe. Where memleak says that its walk was cut short, libgcc's may be longer. Such stacks are compared as
//!   far as both go, and are listed by the reason.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;

use super::counter::Kind;
use super::symbols::{names, readable};
use super::unwinder::{Frame, Stack, Sums, Unwound, WalkEnd, canonical};
use super::{Counts, Row, by_pid};

/// A line of type `stack` of the schema `memleak/1`, as far as the comparison needs it.
#[derive(Clone, Debug, Deserialize)]
pub struct StackRecord {
    pub pid: u32,
    pub image: u32,
    pub alloc_bytes: u64,
    pub alloc_count: u64,
    pub leaked_bytes: u64,
    pub leaked_blocks: u64,
    /// Why the walk ended: `complete`, or a reason.
    pub walk: String,
    pub frames: Vec<RecordFrame>,
    /// All other fields.
    #[serde(flatten)]
    pub others: BTreeMap<String, serde_json::Value>,
}

impl StackRecord {
    /// The bytes and blocks of one kind, as `definite`, if they are known.
    pub fn kind(&self, kind: &str) -> Option<(u64, u64)> {
        let field = |unit| self.others.get(&format!("{kind}_{unit}"))?.as_u64();
        Some((field("bytes")?, field("blocks")?))
    }

    pub fn sums(&self) -> Sums {
        Sums {
            alloc_count: self.alloc_count,
            alloc_bytes: self.alloc_bytes,
            leaked_blocks: self.leaked_blocks,
            leaked_bytes: self.leaked_bytes,
        }
    }

    /// Whether a function of this name is on the stack.
    pub fn passes(&self, function: &str) -> bool {
        let mut frames = self.frames.iter();
        frames.any(|frame| frame.function.as_deref() == Some(function))
    }
}

#[derive(Clone, Debug, Deserialize)]
pub struct RecordFrame {
    pub function: Option<String>,
    pub module: Option<PathBuf>,
    pub build_id: Option<String>,
    pub offset: u64,
    /// An inlined call has no frame of its own.
    #[serde(default)]
    pub inlined: bool,
}

/// A stack of memleak's side, with the frames that the truth would have.
#[derive(Clone, Debug)]
pub struct Ours {
    pub frames: Vec<Frame>,
    pub complete: bool,
    pub sums: Sums,
}

/// Why a call cannot be compared to its outermost frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Why {
    /// libgcc has no rules where memleak went on or stopped, too.
    NoRules,
    /// libgcc found the trampoline of a return probe.
    Probed,
    /// memleak says that its walk is cut short, and it is right as far as it goes.
    CutShort,
    /// libgcc called the allocator itself.
    OfLibgcc,
}

/// How many calls may be equal only as far as both sides go, by the reason. More are a failure, and so is another reason.
pub type Partly = [(Why, u64)];

/// The result of a comparison.
#[derive(Debug, Default)]
pub struct Comparison {
    /// The calls whose stacks are equal.
    pub equal: Sums,
    /// The stacks that are equal.
    pub stacks: usize,
    /// The calls that are equal as far as both sides go.
    pub partly: BTreeMap<Why, Sums>,
    pub differences: Vec<Difference>,
}

/// A stack that one side lacks, or that has other sums there.
#[derive(Clone, Debug)]
pub struct Difference {
    pub pid: u32,
    pub image: u32,
    pub what: String,
    pub frames: Vec<Frame>,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        writeln!(f, "pid {} image {}: {}", self.pid, self.image, self.what)?;
        for frame in &self.frames {
            writeln!(f, "    {}", readable(frame))?;
        }
        Ok(())
    }
}

impl Comparison {
    /// Fails unless all calls have equal stacks, but for so many that may be equal in part.
    #[track_caller]
    pub fn assert_equal(&self, at_least: u64, partly: &Partly) {
        assert_eq!(self.check(at_least, partly), Ok(()));
    }

    /// An error if there is a difference, if fewer than `at_least` calls are equal, or if more calls than in `partly` are
    /// equal only as far as both sides go.
    pub fn check(&self, at_least: u64, partly: &Partly) -> Result<(), String> {
        let mut found = self.partly.iter();
        let is_allowed = found.all(|(why, sums)| {
            let most = partly.iter().find(|(allowed, _)| allowed == why);
            most.is_some_and(|(_, most)| sums.alloc_count <= *most)
        });
        match self.differences.is_empty() && self.equal.alloc_count >= at_least && is_allowed {
            true => Ok(()),
            false => Err(format!("expected {at_least} and {partly:?}: {self}")),
        }
    }

    /// The calls that were compared.
    pub fn calls(&self) -> u64 {
        let partly = self.partly.values().map(|sums| sums.alloc_count);
        self.equal.alloc_count + partly.sum::<u64>()
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        const SHOWN: usize = 10;
        writeln!(
            f,
            "{} calls at {} stacks are equal, partly {:?}, {} differences",
            self.equal.alloc_count,
            self.stacks,
            self.partly,
            self.differences.len()
        )?;
        for difference in self.differences.iter().take(SHOWN) {
            write!(f, "{difference}")?;
        }
        Ok(())
    }
}

/// Compares the stacks of all images. `rows` are memleak's rows without that of `preload`. `library` is the file that
/// the processes had preloaded.
pub fn compare_stacks(
    rows: &[Row],
    records: &[StackRecord],
    truth: &[Unwound],
    library: &Path,
) -> Comparison {
    let library = canonical(library);
    let mut comparison = Comparison::default();
    let rows = by_pid(rows, |row| row.pid);
    let images = by_pid(truth, |unwound| unwound.image.pid);
    let pids: BTreeSet<_> = rows.keys().chain(images.keys()).copied().collect();
    let mut known = BTreeSet::new();
    for pid in pids {
        let mut rows = rows.get(&pid).cloned().unwrap_or_default();
        rows.sort_by_key(|row| row.image);
        let images = images.get(&pid).map_or(&[][..], Vec::as_slice);
        // As in the comparison of counts: only memleak knows a fork that never allocated.
        if rows.len() == images.len() + 1
            && rows[0].counts == Counts::default()
            && images.first().is_none_or(|u| u.image.kind == Kind::Exec)
        {
            rows.remove(0);
        }
        if rows.len() != images.len() {
            let what = format!("{} images, the truth has {}", rows.len(), images.len());
            comparison.differ(pid, 0, what, &[]);
        }
        for (row, unwound) in rows.iter().zip(images) {
            known.insert((pid, row.image));
            let of_image = |record: &&StackRecord| (record.pid, record.image) == (pid, row.image);
            let records: Vec<_> = records.iter().filter(of_image).collect();
            comparison.compare_build_ids(pid, row.image, &records, unwound);
            let ours = records.iter().map(|record| ours(record, &library));
            comparison.compare_image(pid, row.image, ours.collect(), unwound);
        }
    }
    for record in records {
        if !known.contains(&(record.pid, record.image)) {
            let what = "a stack of an image that the truth lacks".to_string();
            let frames = ours(record, &library).frames;
            comparison.differ(record.pid, record.image, what, &frames);
        }
    }
    comparison
}

/// The physical frames of a record, without those of the library and of operators new at the beginning.
pub fn ours(record: &StackRecord, library: &Arc<Path>) -> Ours {
    let frames = record.frames.iter().filter(|frame| !frame.inlined);
    let frames: Vec<_> = frames
        .map(|frame| Frame {
            module: frame.module.as_deref().map(canonical),
            offset: frame.offset,
        })
        .skip_while(|frame| frame.module.as_ref() == Some(library) || is_wrapper(frame))
        .collect();
    Ours {
        frames: without_operators(&frames).to_vec(),
        complete: record.walk == "complete",
        sums: record.sums(),
    }
}

/// Whether a frame is of the library that is linked into a static program.
fn is_wrapper(frame: &Frame) -> bool {
    names(frame, false)
        .iter()
        .any(|name| name.starts_with("__wrap_") || name.starts_with("counter_"))
}

/// The frames behind those of operators new at the beginning.
pub fn without_operators(frames: &[Frame]) -> &[Frame] {
    let is_operator = |frame: &&Frame| {
        names(frame, false)
            .iter()
            .any(|name| name.starts_with("_Znw") || name.starts_with("_Zna"))
    };
    &frames[frames.iter().take_while(is_operator).count()..]
}

/// Whether libgcc has allocated, or the C library of a static program before libgcc could walk.
fn is_unwalked(frames: &[Frame]) -> bool {
    let is_named = |frame: &Frame| {
        let names = names(frame, false);
        let early = ["_Unwind_Backtrace", "__libc_init_first"];
        names.iter().any(|name| early.contains(&name.as_str()))
    };
    frames.first().is_some_and(is_libgcc) || frames.iter().any(is_named)
}

/// Whether the file is libgcc's shared library.
fn is_libgcc(frame: &Frame) -> bool {
    let name = frame.module.as_ref().and_then(|module| module.file_name());
    name.is_some_and(|name| name.to_string_lossy().starts_with("libgcc_s"))
}

impl Comparison {
    fn differ(&mut self, pid: u32, image: u32, what: String, frames: &[Frame]) {
        self.differences.push(Difference {
            pid,
            image,
            what,
            frames: frames.to_vec(),
        });
    }

    fn compare_build_ids(
        &mut self,
        pid: u32,
        image: u32,
        records: &[&StackRecord],
        truth: &Unwound,
    ) {
        let frames = records.iter().flat_map(|record| &record.frames);
        let ours: BTreeSet<_> = frames
            .filter_map(|frame| Some((canonical(frame.module.as_ref()?), frame.build_id.as_ref()?)))
            .collect();
        for (module, build_id) in ours {
            if let Some(theirs) = truth.build_ids.get(&module)
                && build_id != theirs
            {
                let module = module.display();
                let what = format!("{module} has build-id {build_id}, in the truth {theirs}");
                self.differ(pid, image, what, &[]);
            }
        }
    }

    fn compare_image(&mut self, pid: u32, image: u32, ours: Vec<Ours>, truth: &Unwound) {
        let mut left: BTreeMap<Vec<Frame>, (Sums, bool)> = BTreeMap::new();
        for stack in ours {
            let (sums, complete) = left.entry(stack.frames).or_insert((Sums::default(), true));
            *sums += stack.sums;
            *complete &= stack.complete;
        }
        let mut theirs: BTreeMap<Vec<Frame>, (Sums, WalkEnd)> = BTreeMap::new();
        for stack in &truth.stacks {
            let frames = without_operators(&stack.frames).to_vec();
            let (sums, end) = theirs.entry(frames).or_insert((Sums::default(), stack.end));
            *sums += stack.sums;
            // One place may be reached with and without an operator. The end is that of the same outermost frame.
            *end = stack.end;
        }
        // First the stacks that both have. What is left may be equal as far as both go.
        let mut shorter = Vec::new();
        for (frames, (sums, end)) in theirs {
            match left.remove(&frames) {
                // Without its end, a walk may lack frames.
                Some((found, false)) if found == sums && end == WalkEnd::Complete => {
                    *self.partly.entry(Why::CutShort).or_default() += sums;
                }
                Some((found, _)) if found == sums => {
                    self.equal += sums;
                    self.stacks += 1;
                }
                Some((found, _)) => self.differ(pid, image, sums_differ(found, sums), &frames),
                None => shorter.push((frames, sums, end)),
            }
        }
        let mut missing = Vec::new();
        for (frames, sums, end) in shorter {
            let why = match end {
                WalkEnd::NoRules => Why::NoRules,
                WalkEnd::Probed => Why::Probed,
                _ => {
                    missing.push((frames, sums));
                    continue;
                }
            };
            let longer = take_where(&mut left, |ours, _| ours.starts_with(&frames));
            if longer.is_empty() {
                missing.push((frames, sums));
            } else {
                self.add_partly(pid, image, why, &frames, sum(&longer), sums);
            }
        }
        self.match_cut_short(pid, image, &mut left, &mut missing);
        self.match_libgcc(pid, image, &mut left, truth.unwalked);
        for (frames, sums) in missing {
            let what = format!("memleak lacks this stack, with {}", said(sums));
            self.differ(pid, image, what, &frames);
        }
        for (frames, (sums, _)) in left {
            let what = format!("the truth lacks this stack, with {}", said(sums));
            self.differ(pid, image, what, &frames);
        }
    }

    /// Stacks of memleak that say that they are cut short, and that the truth has longer.
    fn match_cut_short(
        &mut self,
        pid: u32,
        image: u32,
        left: &mut BTreeMap<Vec<Frame>, (Sums, bool)>,
        missing: &mut Vec<(Vec<Frame>, Sums)>,
    ) {
        let short = take_where(left, |_, complete| !complete);
        for (frames, (sums, complete)) in short {
            let is_longer = |theirs: &Vec<Frame>| !frames.is_empty() && theirs.starts_with(&frames);
            let (longer, others) = std::mem::take(missing)
                .into_iter()
                .partition::<Vec<_>, _>(|(theirs, _)| is_longer(theirs));
            *missing = others;
            if longer.is_empty() {
                left.insert(frames, (sums, complete));
                continue;
            }
            let mut theirs = Sums::default();
            longer.iter().for_each(|&(_, sums)| theirs += sums);
            self.add_partly(pid, image, Why::CutShort, &frames, sums, theirs);
        }
    }

    /// The calls by libgcc itself, which have no stack in the truth.
    fn match_libgcc(
        &mut self,
        pid: u32,
        image: u32,
        left: &mut BTreeMap<Vec<Frame>, (Sums, bool)>,
        unwalked: Sums,
    ) {
        let found = take_where(left, |frames, _| is_unwalked(frames));
        let mut found = sum(&found);
        // The truth does not know which of these blocks were freed.
        found.leaked_blocks = 0;
        found.leaked_bytes = 0;
        if found != Sums::default() || unwalked != Sums::default() {
            self.add_partly(pid, image, Why::OfLibgcc, &[], found, unwalked);
        }
    }

    fn add_partly(
        &mut self,
        pid: u32,
        image: u32,
        why: Why,
        frames: &[Frame],
        ours: Sums,
        theirs: Sums,
    ) {
        if ours == theirs {
            *self.partly.entry(why).or_default() += theirs;
        } else {
            let what = format!("{why:?}: {}", sums_differ(ours, theirs));
            self.differ(pid, image, what, frames);
        }
    }
}

type Left = BTreeMap<Vec<Frame>, (Sums, bool)>;

/// Takes the stacks out for which `wanted` holds.
fn take_where(left: &mut Left, wanted: impl Fn(&[Frame], bool) -> bool) -> Left {
    let (taken, others) = std::mem::take(left)
        .into_iter()
        .partition(|(frames, (_, complete))| wanted(frames, *complete));
    *left = others;
    taken
}

fn sum(stacks: &Left) -> Sums {
    let mut sum = Sums::default();
    stacks.values().for_each(|&(sums, _)| sum += sums);
    sum
}

fn said(sums: Sums) -> String {
    let words = sums.named().map(|(name, value)| format!("{name} {value}"));
    words.join(", ")
}

fn sums_differ(ours: Sums, theirs: Sums) -> String {
    let mut text = String::new();
    for ((name, ours), (_, theirs)) in ours.named().into_iter().zip(theirs.named()) {
        if ours != theirs {
            let more = i128::from(ours) - i128::from(theirs);
            write!(text, "{name} is {ours}, in the truth {theirs} ({more:+}). ")
                .expect("a string can be written to");
        }
    }
    text.trim_end().to_string()
}

/// The deepest stack of an image, in frames.
pub fn deepest(stacks: &[Stack]) -> usize {
    stacks
        .iter()
        .map(|stack| stack.frames.len())
        .max()
        .unwrap_or(0)
}
