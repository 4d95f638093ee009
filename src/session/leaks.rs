//! Where processes leaked. Keeps the call stacks of images until the end of the session, because names take time, and
//! processes may wait for memleak until then. Then names them, tries suppressions on them, and lets the gate judge the
//! images that had to wait for that.

use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::model::baseline::Comparison;
use crate::model::gathering::{Gathering, SiteShare};
use crate::model::image::{End, Image, Labels};
use crate::model::ledger::Ledger;
use crate::model::live::{GrowingPlace, Live};
use crate::model::places::Located;
use crate::model::reach::Amount;
use crate::model::stack::{NamedStack, StackShare};
use crate::model::stack_coverage::StackCoverage;
use crate::model::suppressed::SuppressionUse;
use crate::model::unfreed::Unfreed;
use crate::os::say::say;
use crate::report::{Report, Unwritten};
use crate::session::sifting::{ImageLeaks, LeakOwner, ShownLeaks, Sifted, Sifter};
use crate::stacks::namer::Namer;
use crate::stacks::perf_map::{MapOwner, PerfMap, PerfMaps};

/// Of the stacks beyond so many, only those that leaked are kept, and no more than as many again. One takes some 130
/// bytes.
const MOST_SHARES: usize = 1 << 20;

/// How long names of call stacks may take at the end of the session.
const NAMED_WITHIN: Duration = Duration::from_secs(20);

/// How many stacks get names at the end of a window, and how long that may take: processes may wait for memleak.
const MOST_AT_ONCE: usize = 64;
const AT_ONCE_WITHIN: Duration = Duration::from_secs(1);

/// In how many running processes, and in how many places of each, growth is shown.
const GROWING_PROCESSES: usize = 3;
const GROWING_PLACES: usize = 3;

/// An image that has call stacks.
struct StackOwner {
    pid: u32,
    image: u32,
    comm: Vec<u8>,
    exe: Option<PathBuf>,
    labels: Labels,
    end: End,
    /// Whose names the code has that it made at run time.
    map_owner: MapOwner,
    has_ended: bool,
    /// Whether a gate judges it.
    judged: bool,
}

impl StackOwner {
    fn of(image: &Image, judged: bool) -> Self {
        Self {
            pid: image.pid,
            image: image.image,
            comm: image.comm.clone(),
            exe: image.exe.clone(),
            labels: image.labels.clone(),
            end: image.end,
            map_owner: map_owner(image),
            has_ended: has_ended(image),
            judged,
        }
    }

    /// What documents get of a stack.
    fn share(&self, share: &StackShare, sifted: &Sifted) -> SiteShare<'_> {
        SiteShare {
            image: (self.pid, self.image),
            exe: self.exe.as_deref(),
            comm: &self.comm,
            labels: &self.labels,
            end: self.end,
            allocated: Amount {
                bytes: share.alloc_bytes,
                blocks: share.alloc_count,
            },
            leaked: sifted.leaked(),
            reached: sifted.reached(),
        }
    }
}

/// The call stacks of an image.
struct KeptStacks {
    owner: StackOwner,
    /// The image without its stacks, if the gate has not judged it yet.
    waits: Option<Box<Image>>,
    shares: Vec<StackShare>,
}

/// What also gets the named stacks of images.
pub(super) struct StackReaders<'a> {
    /// What documents are made of.
    pub(super) gathering: Option<&'a mut Gathering>,
    pub(super) comparison: Option<&'a mut Comparison>,
}

/// Keeps call stacks, and shows them.
pub(super) struct Leaks {
    namer: Namer,
    shown: ShownLeaks,
    kept: Vec<KeptStacks>,
    kept_shares: usize,
    /// How many shares found no room.
    left_out: u64,
    coverage: StackCoverage,
    /// How much suppressions have matched in windows.
    used: Vec<SuppressionUse>,
    /// How many bytes the processes that were last shown held, by their ids and stacks.
    held: HashMap<(u64, usize), u64>,
}

impl Leaks {
    pub(super) fn new(namer: Namer, shown: ShownLeaks) -> Self {
        Self {
            namer,
            shown,
            kept: Vec::new(),
            kept_shares: 0,
            left_out: 0,
            coverage: StackCoverage::default(),
            used: Vec::new(),
            held: HashMap::new(),
        }
    }

    /// Whether a gate has to wait for the names of the stacks of an image: something that it leaked may be suppressed.
    pub(super) fn may_suppress(&self, image: &Image) -> bool {
        self.shown.may_suppress(image)
    }

    /// Keeps the call stacks of an image. `judged`: a gate judges it. `waits`: it has not done so yet.
    pub(super) fn keep(&mut self, mut image: Image, judged: bool, waits: bool) {
        let owner = StackOwner::of(&image, judged);
        if let Some(coverage) = StackCoverage::of(&image).filter(|_| owner.has_ended) {
            self.coverage += coverage;
        }
        let mut shares = (image.stacks.as_mut())
            .map(std::mem::take)
            .unwrap_or_default();
        if self.kept_shares + shares.len() > MOST_SHARES {
            shares.retain(|share| share.leaked_blocks > 0);
        }
        if self.kept_shares + shares.len() > 2 * MOST_SHARES {
            self.left_out += shares.len() as u64;
            shares.clear();
        }
        self.kept_shares += shares.len();
        // They stay until the end.
        shares.shrink_to_fit();
        self.kept.push(KeptStacks {
            owner,
            waits: waits.then(|| Box::new(image)),
            shares,
        });
    }

    /// Names and reports the stacks, and lets the gate judge the images that waited for that.
    pub(super) fn show(
        mut self,
        ledger: &mut Ledger,
        report: &mut Report,
        mut readers: StackReaders,
    ) -> (Located, Vec<Unwritten>) {
        let shares = self.kept.iter().flat_map(|kept| &kept.shares);
        let stacks = shares.map(|share| &*share.stack);
        self.namer.look_up(stacks, Instant::now() + NAMED_WITHIN);
        let mut listing = Listing::new(&self.namer, &self.shown);
        let compares = readers.comparison.is_some();
        for kept in &self.kept {
            let mut leaks = ImageLeaks::default();
            for share in &kept.shares {
                let (stack, sifted) = listing.add(&kept.owner, share, report);
                if let Some(gathering) = &mut readers.gathering {
                    gathering.stack(kept.owner.share(share, &sifted), &stack);
                }
                if kept.waits.is_some() {
                    leaks.add(&stack, &sifted, compares);
                }
            }
            if let Some(image) = &kept.waits {
                let comparison = readers.comparison.as_deref_mut();
                leaks.judge(image, &self.shown, comparison, ledger);
            }
        }
        if self.left_out > 0 {
            let left_out = self.left_out;
            say(&format!(
                "{left_out} call stacks are left out of the report: there are too many"
            ));
        }
        let (mut located, unwritten) = listing.finish(self.coverage);
        add_uses(&mut located.suppressions, &self.used);
        (located, unwritten)
    }

    /// Names and reports the stacks by which the processes leaked most that have ended in a window.
    pub(super) fn show_window(&mut self, images: &[Image], report: &mut Report) -> Vec<Unwritten> {
        let ended: Vec<_> = images.iter().filter(|image| has_ended(image)).collect();
        let mut coverage = StackCoverage::default();
        let of_ended = ended.iter().filter_map(|image| StackCoverage::of(image));
        of_ended.for_each(|of_image| coverage += of_image);
        let shares = ended.iter().flat_map(|image| {
            let owner = || StackOwner::of(image, false);
            let shares = image.stacks.iter().flatten();
            shares.map(move |share| (owner(), share, Unfreed::of(share)))
        });
        let mut shares: Vec<_> = shares
            .filter(|(_, share, _)| share.leaked_blocks > 0)
            .collect();
        shares.sort_by_key(|(_, _, unfreed)| {
            Reverse((unfreed.alarming().bytes, unfreed.sum().bytes))
        });
        let mut named = HashSet::new();
        let most = MOST_AT_ONCE.max(self.shown.top);
        let (shares, rest): (Vec<_>, Vec<_>) = shares.into_iter().partition(|(_, share, _)| {
            let stack = Arc::as_ptr(&share.stack);
            named.contains(&stack) || named.len() < most && named.insert(stack)
        });
        let stacks = shares.iter().map(|(_, share, _)| &*share.stack);
        self.namer.look_up(stacks, Instant::now() + AT_ONCE_WITHIN);
        let mut listing = Listing::new(&self.namer, &self.shown);
        for (owner, share, _) in &shares {
            listing.add(owner, share, report);
        }
        let (mut located, mut unwritten) = listing.finish(coverage);
        let rest = rest
            .iter()
            .filter(|(_, _, unfreed)| unfreed.alarming().blocks > 0);
        let rest: HashSet<_> = rest
            .map(|(_, share, _)| Arc::as_ptr(&share.stack))
            .collect();
        located.places.more += rest.len();
        located.places.all += rest.len();
        add_uses(&mut self.used, &std::mem::take(&mut located.suppressions));
        unwritten.extend(report.places(&located, ended.len() == 1));
        unwritten
    }

    /// Adds where the processes have grown that grew most, since they were last shown, or where they hold old blocks.
    /// `stacks` has those of a process.
    pub(super) fn add_growth(
        &mut self,
        live: &mut Live,
        mut stacks: impl FnMut(u64) -> Option<Vec<StackShare>>,
    ) {
        let before: HashSet<u64> = self.held.keys().map(|(id, _)| *id).collect();
        let mut held = HashMap::new();
        let mut grown = Vec::new();
        for (at, row) in live.rows.iter().enumerate() {
            let shares = stacks(row.id).unwrap_or_default();
            let is_known = before.contains(&row.id);
            let of_row: Vec<_> = shares
                .into_iter()
                .filter(|share| share.leaked_blocks > 0)
                .map(|share| {
                    let key = (row.id, Arc::as_ptr(&share.stack) as usize);
                    held.insert(key, share.leaked_bytes);
                    // What it held before memleak first looked is not known.
                    let then = match is_known {
                        true => self.held.get(&key).copied().unwrap_or(0),
                        false => share.leaked_bytes,
                    };
                    // No process holds 2^63 bytes.
                    let growth = share.leaked_bytes.wrapping_sub(then).cast_signed();
                    (growth, share)
                })
                .collect();
            // What is old need not have grown.
            let amount = match live.older {
                Some(_) => {
                    let held = of_row.iter().map(|(_, share)| share.leaked_bytes);
                    held.fold(0, u64::saturating_add).cast_signed()
                }
                None => row.growth,
            };
            if amount > 0 {
                grown.push((amount, at, of_row));
            }
        }
        // The rows are in the order of their growth.
        if live.older.is_some() {
            grown.sort_by_key(|(amount, ..)| Reverse(*amount));
        }
        grown.truncate(GROWING_PROCESSES);
        for (_, _, of_row) in &mut grown {
            of_row.sort_by_key(|(growth, share)| {
                let growth = live.older.is_none().then_some(*growth);
                Reverse((growth, share.leaked_bytes))
            });
            of_row.truncate(GROWING_PLACES);
        }
        self.held = held;
        let shares = grown.iter().flat_map(|(_, _, shares)| shares);
        let stacks = shares.map(|(_, share)| &*share.stack);
        self.namer.look_up(stacks, Instant::now() + AT_ONCE_WITHIN);
        for (_, at, shares) in grown {
            let mut maps = PerfMaps::default();
            let made = match shares
                .iter()
                .any(|(_, share)| share.stack.has_code_without_file())
            {
                true => maps.of(map_owner(&live.rows[at].image)),
                false => &PerfMap::default(),
            };
            let places = shares.into_iter().map(|(growth, share)| GrowingPlace {
                stack: self.namer.name_with(&share.stack, made),
                share,
                growth,
            });
            let shown = places.filter(|place| self.shown.shows(&place.stack));
            live.rows[at].places = shown.collect();
        }
    }
}

/// A list of leaks that is being made.
struct Listing<'a> {
    namer: &'a Namer,
    sifter: Sifter<'a>,
    maps: PerfMaps,
    unwritten: Vec<Unwritten>,
}

impl<'a> Listing<'a> {
    fn new(namer: &'a Namer, shown: &'a ShownLeaks) -> Self {
        Self {
            namer,
            sifter: Sifter::new(shown),
            maps: PerfMaps::default(),
            unwritten: Vec::new(),
        }
    }

    /// Reports what an image has allocated by one stack.
    fn add(
        &mut self,
        owner: &StackOwner,
        share: &StackShare,
        report: &mut Report,
    ) -> (Arc<NamedStack>, Sifted) {
        let is_made = share.stack.has_code_without_file();
        let stack = match is_made {
            true => {
                let made = self.maps.of(owner.map_owner);
                Arc::new(self.namer.name_with(&share.stack, made))
            }
            false => self.namer.name(&share.stack),
        };
        let owner = LeakOwner {
            pid: owner.pid,
            image: owner.image,
            comm: &owner.comm,
            has_ended: owner.has_ended,
            judged: owner.judged,
        };
        let (sifted, unwritten) = self
            .sifter
            .add(&owner, share, &stack, is_made, Some(report));
        self.unwritten.extend(unwritten);
        (stack, sifted)
    }

    fn finish(self, coverage: StackCoverage) -> (Located, Vec<Unwritten>) {
        let namer = self.namer;
        let located = self.sifter.finish(coverage, |stack| {
            namer.name_with(stack, &PerfMap::default())
        });
        (located, self.unwritten)
    }
}

fn map_owner(image: &Image) -> MapOwner {
    MapOwner {
        pid: image.pid,
        user: image.uid,
        began: image.start_time,
    }
}

/// Whether an image leaked what it never freed. An exec discards the heap, and a process that runs may free it yet.
fn has_ended(image: &Image) -> bool {
    matches!(image.end, End::Exited(_) | End::Signaled { .. })
}

/// Adds up how much the same suppressions have matched.
fn add_uses(sums: &mut Vec<SuppressionUse>, uses: &[SuppressionUse]) {
    if sums.is_empty() {
        sums.extend_from_slice(uses);
        return;
    }
    for (sum, used) in sums.iter_mut().zip(uses) {
        sum.amount += used.amount;
        sum.places += used.places;
    }
}
