//! The leaks that the formats for CI name: which they are, how much they weigh, and where they are in the project's own
//! sources. Pure.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use crate::model::baseline::Compared;
use crate::model::bounds::{Bounds, Verdict};
use crate::model::finished::{Finished, Site};
use crate::model::image::{End, Image};
use crate::model::judgement::Judged;
use crate::model::ledger::Summary;
use crate::model::reach::{Amount, Reach, Reached};
use crate::model::stack::NamedStack;
use crate::report::cells::{in_blocks, name};
use crate::report::places::{frame_lines, plain};
use crate::text::units::counted;

/// How much a leak weighs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Weight {
    /// It is one of those for which a gate failed.
    Error,
    /// Whether it is allowed is not known, or nobody asked.
    Warning,
    /// The gates allow it.
    Note,
}

/// What happened to the memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// The program could not have freed it any more.
    Lost,
    /// It was never freed.
    Leaked,
}

impl Fate {
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Lost => "lost",
            Self::Leaked => "leaked",
        }
    }
}

/// A leak, by one call stack.
pub(super) struct Finding<'a> {
    pub(super) weight: Weight,
    pub(super) fate: Fate,
    pub(super) amount: Amount,
    pub(super) stack: &'a NamedStack,
    /// The command names of the processes.
    comms: BTreeSet<&'a [u8]>,
    images: u64,
    /// The innermost frame of the project's own sources.
    pub(super) own: Option<OwnLine>,
}

/// A line of the project's own sources.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct OwnLine {
    /// Relative to the directory in which memleak was started.
    pub(super) file: PathBuf,
    /// From 1.
    pub(super) line: u32,
}

/// The longest line of text in a document. A function's name may have any length.
const LONGEST_LINE: usize = 400;

/// The most calls of a stack that are shown.
const MOST_FRAMES: usize = 24;

/// How many command names are listed.
const NAMED: usize = 4;

impl Finding<'_> {
    /// As `lost 7,050 bytes in 100 blocks`.
    pub(super) fn title(&self) -> String {
        format!("{} {}", self.fate.word(), in_blocks(self.amount))
    }

    /// As `leak (100 processes)`.
    pub(super) fn processes(&self) -> String {
        let names = self.comms.iter().take(NAMED);
        let mut names: Vec<_> = names.map(|comm| name(comm)).collect();
        if self.comms.len() > NAMED {
            names.push(format!("{} more", self.comms.len() - NAMED));
        }
        let names = names.join(", ");
        match self.images {
            0 | 1 => names,
            images => format!("{names} ({})", counted(images, "process", "processes")),
        }
    }

    /// A line for each call, the innermost first.
    pub(super) fn calls(&self) -> Vec<String> {
        let lines = frame_lines(self.stack, MOST_FRAMES, None).into_iter();
        lines.map(|line| shortened(&line)).collect()
    }

    /// In one line, as `lost 700 bytes in 10 blocks by make(int) in leak.cpp:7, leak (3 processes)`.
    pub(super) fn sentence(&self) -> String {
        let innermost = self.stack.frames.first().map(|frame| {
            let stack = NamedStack {
                frames: vec![frame.clone()],
                ..*self.stack
            };
            let call = frame_lines(&stack, 1, None)
                .into_iter()
                .next()
                .unwrap_or_default();
            let words = call.split("  ").filter(|word| !word.is_empty());
            let words: Vec<_> = words.map(shortened).collect();
            format!(" by {}", words.join(" in "))
        });
        let by = innermost.unwrap_or_default();
        format!("{}{by}, {}", self.title(), self.processes())
    }

    /// The title with the processes, and then the calls.
    pub(super) fn text(&self) -> String {
        let mut text = format!("{}, {}", self.title(), self.processes());
        for call in self.calls() {
            text.push_str(&format!("\n    {call}"));
        }
        text
    }
}

/// A text that is not longer than a line may be.
pub(super) fn shortened(text: &str) -> String {
    match text.char_indices().nth(LONGEST_LINE) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}\u{2026}", &text[..end]),
    }
}

/// The leaks that count, the heaviest first, and of these the largest. What can still be reached is none unless a gate
/// counts it. What no gate judges is none.
pub(super) fn findings(finished: &Finished) -> Vec<Finding<'_>> {
    findings_of(finished, |_| true)
}

/// The same of some sites only.
pub(super) fn findings_of(finished: &Finished, wanted: impl Fn(&Site) -> bool) -> Vec<Finding<'_>> {
    let gate = finished.summary.gate.as_ref();
    let counts_leaks = gate.is_some_and(|gate| gate.leak.is_some());
    let executables = Executables::of(finished);
    let mut found: HashMap<u64, Merged> = HashMap::new();
    for site in finished.sites.iter().filter(|site| wanted(site)) {
        if !executables.are_judged(finished, site) {
            continue;
        }
        let weight = executables.weight(finished, site);
        found
            .entry(site.stack.identity)
            .and_modify(|merged| merged.add(site, weight))
            .or_insert_with(|| Merged::new(site, weight));
    }
    let directory = finished.about.directory.as_deref();
    let mut findings: Vec<_> = found
        .into_values()
        .filter_map(|merged| merged.finding(counts_leaks, directory))
        .collect();
    findings.sort_by_key(|finding| {
        let Amount { bytes, blocks } = finding.amount;
        (
            finding.weight,
            Reverse((bytes, blocks)),
            finding.stack.identity,
        )
    });
    findings
}

/// The sites with one stack. Several executables may have them, such as two that leak in one library.
struct Merged<'a> {
    weight: Weight,
    leaked: Amount,
    /// `None`: not known of all.
    reached: Option<Reached>,
    stack: &'a NamedStack,
    comms: BTreeSet<&'a [u8]>,
    images: u64,
}

impl<'a> Merged<'a> {
    fn new(site: &'a Site, weight: Weight) -> Self {
        Self {
            weight,
            leaked: site.leaked,
            reached: site.reached,
            stack: &site.stack,
            comms: BTreeSet::from([&*site.comm]),
            images: site.images,
        }
    }

    fn add(&mut self, site: &'a Site, weight: Weight) {
        self.weight = self.weight.min(weight);
        self.leaked += site.leaked;
        self.reached = self.reached.zip(site.reached).map(|(mut sum, reached)| {
            sum += reached;
            sum
        });
        self.comms.insert(&site.comm);
        self.images = self.images.saturating_add(site.images);
    }

    /// `None` if it is no leak that counts.
    fn finding(self, counts_leaks: bool, directory: Option<&Path>) -> Option<Finding<'a>> {
        let (fate, amount) = match self.reached {
            Some(reached) if !counts_leaks => (Fate::Lost, reached.lost()),
            _ => (Fate::Leaked, self.leaked),
        };
        let weight = match fate {
            // It may not be one of those that are lost.
            Fate::Leaked if !counts_leaks => self.weight.max(Weight::Warning),
            _ => self.weight,
        };
        (amount != Amount::default()).then(|| Finding {
            weight,
            fate,
            amount,
            stack: self.stack,
            comms: self.comms,
            images: self.images,
            own: own_line(self.stack, directory),
        })
    }
}

/// The innermost line of sources below `directory`. Everything is below the root directory, so that one tells nothing.
fn own_line(stack: &NamedStack, directory: Option<&Path>) -> Option<OwnLine> {
    let directory = directory.filter(|directory| directory.parent().is_some())?;
    stack.frames().find_map(|frame| {
        let file = plain(frame.file.as_deref()?);
        let file = file.strip_prefix(directory).ok()?.to_owned();
        let line = frame.line.filter(|line| *line > 0)?;
        (!file.as_os_str().is_empty()).then_some(OwnLine { file, line })
    })
}

/// Whether an image is judged by the gates, if there are any. What an exec replaced, and what still runs, is not.
pub(super) fn is_judged(finished: &Finished, image: &Image) -> bool {
    !matches!(image.end, End::Exec | End::Running)
        && finished.selection.choose(image) != Some(false)
}

/// The verdict of the limits for one process over an image that is judged, by kind of amount.
pub(super) fn verdicts(summary: &Summary, image: &Image) -> [Option<Verdict>; 2] {
    let Some(gate) = &summary.gate else {
        return [None; 2];
    };
    let suppressed = summary.suppressed.get(&(image.pid, image.image));
    let suppressed = suppressed.copied().unwrap_or_default();
    let leak = suppressed.of_leak(Bounds::of(image));
    let is_known = matches!(image.reach, Reach::Known(_));
    let lost = suppressed.of_lost(Bounds::of_lost(image), is_known);
    let limit = |judged: &Option<Judged>| judged.as_ref()?.limits.process;
    [
        limit(&gate.leak).map(|limit| leak.verdict(limit)),
        limit(&gate.lost).map(|limit| lost.verdict(limit)),
    ]
}

/// What the gates say of executables: the heaviest verdict of the limits for one process. Those that are not judged are
/// not in it.
struct Executables<'a>(HashMap<Option<&'a Path>, Verdict>);

impl<'a> Executables<'a> {
    fn of(finished: &'a Finished) -> Self {
        let mut heaviest = HashMap::new();
        let judged = finished.images.iter();
        for image in judged.filter(|image| is_judged(finished, image)) {
            let verdicts = verdicts(&finished.summary, image);
            let verdict = verdicts.into_iter().flatten().max();
            let verdict = verdict.unwrap_or(Verdict::Passed);
            let heaviest = heaviest.entry(image.exe.as_deref()).or_insert(verdict);
            *heaviest = verdict.max(*heaviest);
        }
        Self(heaviest)
    }

    /// Not all images are kept. A site of which none is kept is judged if nothing says otherwise.
    fn are_judged(&self, finished: &Finished, site: &Site) -> bool {
        let exe = site.exe.as_deref();
        let may_be = || finished.selection.may_choose(&site.comm, exe);
        self.0.contains_key(&exe) || finished.more_images > 0 && may_be()
    }

    fn weight(&self, finished: &Finished, site: &Site) -> Weight {
        let baseline = finished.summary.baseline.as_ref();
        let is_new = |compared: &Compared| {
            compared.is_new(site.stack.identity, site.exe.as_deref(), &site.comm)
        };
        if baseline.is_some_and(|compared| !is_new(compared)) {
            return Weight::Note;
        }
        let Some(gate) = &finished.summary.gate else {
            return Weight::Warning;
        };
        let together = [&gate.leak, &gate.lost].into_iter().flatten();
        let together = together.filter_map(|judged| judged.total).max();
        let single = self.0.get(&site.exe.as_deref()).copied();
        match single.max(together) {
            Some(Verdict::Failed) => Weight::Error,
            Some(Verdict::Unknown) => Weight::Warning,
            Some(Verdict::Passed) if finished.more_images == 0 => Weight::Note,
            Some(Verdict::Passed) if gate.verdict() == Verdict::Passed => Weight::Note,
            Some(Verdict::Passed) | None => Weight::Warning,
        }
    }
}
