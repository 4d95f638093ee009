//! Where processes leaked. Keeps the call stacks of images until the end of the session, because names take time, and
//! processes may wait for memleak until then. Then names them, tries suppressions on them, and lets the gate judge the
//! images that had to wait for that.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use crate::model::image::{End, Image};
use crate::model::leak_kind::{LeakKind, LeakKinds};
use crate::model::ledger::Ledger;
use crate::model::lost::reached;
use crate::model::places::{LargestPlaces, LeakPlace, LeakPlaces, Located, PlaceShare};
use crate::model::reach::Amount;
use crate::model::stack::StackShare;
use crate::model::stack_coverage::StackCoverage;
use crate::model::suppressed::SuppressedShares;
use crate::model::unfreed::Unfreed;
use crate::options::stacks::StackArgs;
use crate::os::say::say;
use crate::report::{Report, StackRow, Unwritten};
use crate::stacks::namer::Namer;
use crate::stacks::{Generated, LeakFilter, Suppressions, generate_for, known, passes_any};
use crate::text::wildcards::Wildcard;

/// Of the stacks beyond so many, only those that leaked are kept, and no more than as many again. One takes some 130
/// bytes.
const MOST_SHARES: usize = 1 << 20;

/// How long names of call stacks may take.
const NAMED_WITHIN: Duration = Duration::from_secs(20);

/// Which leaks are shown, and how.
pub(super) struct ShownLeaks {
    users: Suppressions,
    known: Suppressions,
    only: Vec<Wildcard>,
    generated: Option<Generated>,
    top: usize,
}

impl ShownLeaks {
    /// Reads the files of suppressions.
    ///
    /// # Errors
    /// A file cannot be read, or a line of it is wrong.
    pub(super) fn new(args: &StackArgs, top: usize) -> Result<Self> {
        let mut users = Suppressions::default();
        for file in &args.suppressions {
            let text = std::fs::read(file)
                .with_context(|| format!("cannot read the suppressions of {}", file.display()))?;
            users.add(&file.to_string_lossy(), &text)?;
        }
        Ok(Self {
            users,
            known: match args.no_default_suppressions {
                true => Suppressions::default(),
                false => known()?,
            },
            only: args.only_stack.clone(),
            generated: args.gen_suppressions,
            top,
        })
    }
}

/// The call stacks of an image.
struct KeptStacks {
    pid: u32,
    image: u32,
    comm: Vec<u8>,
    /// Whether it leaked what it never freed. An exec discards the heap, and a process that runs may free it yet.
    has_ended: bool,
    /// Whether a gate judges it.
    judged: bool,
    /// The image without its stacks, if the gate has not judged it yet.
    waits: Option<Box<Image>>,
    shares: Vec<StackShare>,
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
        }
    }

    /// Whether a gate has to wait for the names of the stacks of an image: something that it leaked may be suppressed.
    pub(super) fn may_suppress(&self, image: &Image) -> bool {
        !self.shown.users.is_empty() && image.counters.leaked_blocks > 0
    }

    /// Keeps the call stacks of an image. `judged`: a gate judges it. `waits`: it has not done so yet.
    pub(super) fn keep(&mut self, mut image: Image, judged: bool, waits: bool) {
        let has_ended = matches!(image.end, End::Exited(_) | End::Signaled { .. });
        if let Some(coverage) = StackCoverage::of(&image).filter(|_| has_ended) {
            self.coverage += coverage;
        }
        let mut shares = image.stacks.take().unwrap_or_default();
        if self.kept_shares + shares.len() > MOST_SHARES {
            shares.retain(|share| share.leaked_blocks > 0);
        }
        if self.kept_shares + shares.len() > 2 * MOST_SHARES {
            self.left_out += shares.len() as u64;
            shares.clear();
        }
        self.kept_shares += shares.len();
        self.kept.push(KeptStacks {
            pid: image.pid,
            image: image.image,
            comm: image.comm.clone(),
            has_ended,
            judged,
            waits: waits.then(|| Box::new(image)),
            shares,
        });
    }

    /// Names and reports the stacks, and lets the gate judge the images that waited for that.
    pub(super) fn show(
        mut self,
        ledger: &mut Ledger,
        report: &mut Report,
    ) -> (Located, Vec<Unwritten>) {
        let shares = self.kept.iter().flat_map(|kept| &kept.shares);
        let stacks = shares.map(|share| &*share.stack);
        self.namer.look_up(stacks, Instant::now() + NAMED_WITHIN);
        let ShownLeaks { users, known, .. } = &self.shown;
        let mut filter = LeakFilter::new(users, known);
        let mut places = LeakPlaces::default();
        let mut unwritten = Vec::new();
        for kept in &self.kept {
            let mut sums = SuppressedShares::default();
            for share in &kept.shares {
                let stack = self.namer.name(&share.stack);
                let unfreed = Unfreed::of(share);
                let mut row = StackRow {
                    pid: kept.pid,
                    image: kept.image,
                    share,
                    stack: &stack,
                    suppressed_by: None,
                    suppressed: Amount::default(),
                    kept: Amount::default(),
                };
                let is_shown = self.shown.only.is_empty() || passes_any(&stack, &self.shown.only);
                if kept.has_ended {
                    let sifted = filter.sift(&stack, unfreed);
                    row.suppressed_by = sifted.by.map(|number| &*users.list()[number].name);
                    row.suppressed = sifted.suppressed.sum();
                    row.kept = sifted.kept.sum();
                    if !stack.frames.is_empty() {
                        sums.add(unfreed, sifted.suppressed);
                    }
                    let place = PlaceShare {
                        left: sifted.left,
                        kept: sifted.kept,
                        judged: kept.judged,
                        shown: is_shown,
                    };
                    places.add(&kept.comm, stack.identity, &share.stack, place);
                }
                if is_shown {
                    unwritten.extend(report.stack(&row));
                }
            }
            if let Some(image) = &kept.waits {
                let leaked = image.counters.leaked_bytes;
                ledger.judge(image, sums.of_image(leaked, reached(image)));
            }
        }
        if self.left_out > 0 {
            let left_out = self.left_out;
            say(&format!(
                "{left_out} call stacks are left out of the report: there are too many"
            ));
        }
        let places = places.largest(self.shown.top, |stack| self.namer.name(stack));
        let [reachable, otherwise] = filter.by_known(known);
        let located = Located {
            generated: generated(self.shown.generated, &places),
            places,
            coverage: self.coverage,
            suppressions: filter.by_users(users).uses(users),
            kept_reachable: reachable.uses(known),
            kept_otherwise: otherwise.uses(known),
        };
        (located, unwritten)
    }
}

/// A suppression of each place that is shown.
fn generated(syntax: Option<Generated>, places: &LargestPlaces) -> Vec<String> {
    let Some(syntax) = syntax else {
        return Vec::new();
    };
    let texts = places.shown.iter();
    let texts = texts.filter_map(|place| generate_for(syntax, &place.stack, kinds(place)));
    texts.collect()
}

/// What the blocks of a place are, as far as they are listed.
fn kinds(place: &LeakPlace) -> LeakKinds {
    let mut unfreed = place.unfreed;
    let listed = [LeakKind::Definite, LeakKind::Indirect, LeakKind::Possible];
    if unfreed.unknown.blocks > 0 {
        // Only a suppression for all kinds matches these.
        return LeakKinds::NONE;
    }
    let listed = listed.into_iter();
    listed
        .filter(|kind| unfreed.of_kind(*kind).blocks > 0)
        .collect()
}
