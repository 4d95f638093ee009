//! Which leaks count, and which are shown. Tries suppressions on leaks stack by stack, adds up where processes leaked, and
//! lets the gate judge an image once it is known what of its leak counts. For runs and for saved reports.

use anyhow::{Context as _, Result};

use crate::model::baseline::{Comparison, LeakSize, StackLeak};
use crate::model::bounds::Verdict;
use crate::model::image::Image;
use crate::model::leak_kind::{LeakKind, LeakKinds};
use crate::model::ledger::Ledger;
use crate::model::lost::reached;
use crate::model::places::{LargestPlaces, LeakPlace, LeakPlaces, Located, PlaceShare};
use crate::model::reach::{Amount, Reached};
use crate::model::stack::{CallStack, NamedStack, StackShare};
use crate::model::stack_coverage::StackCoverage;
use crate::model::suppressed::{Suppressed, SuppressedShares};
use crate::model::unfreed::Unfreed;
use crate::options::stacks::LeakArgs;
use crate::report::{Report, StackRow, Unwritten, innermost_call};
use crate::stacks::{
    Generated, LeakFilter, SiftedLeak, Suppressions, generate_for, known, passes_any,
};
use crate::text::wildcards::Wildcard;

/// Which leaks are shown, and how.
pub(super) struct ShownLeaks {
    users: Suppressions,
    known: Suppressions,
    only: Vec<Wildcard>,
    generated: Option<Generated>,
    pub(super) top: usize,
}

impl ShownLeaks {
    /// Reads the files of suppressions.
    ///
    /// # Errors
    /// A file cannot be read, or a line of it is wrong.
    pub(super) fn new(args: &LeakArgs, generated: Option<Generated>, top: usize) -> Result<Self> {
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
            generated,
            top,
        })
    }

    /// Whether the user has suppressions.
    pub(super) fn suppresses(&self) -> bool {
        !self.users.is_empty()
    }

    /// Whether only some of the stacks are shown.
    pub(super) fn chooses(&self) -> bool {
        !self.only.is_empty()
    }

    /// Whether a gate has to wait for the stacks of an image that it judges: something that it leaked may be suppressed.
    pub(super) fn may_suppress(&self, image: &Image) -> bool {
        self.suppresses() && image.counters.leaked_blocks > 0
    }

    /// Whether leaks by a stack are shown, if they are not suppressed.
    pub(super) fn shows(&self, stack: &NamedStack) -> bool {
        !self.chooses() || passes_any(stack, &self.only)
    }
}

/// Whose a leak is.
pub(super) struct LeakOwner<'a> {
    pub(super) pid: u32,
    pub(super) image: u32,
    pub(super) comm: &'a [u8],
    pub(super) has_ended: bool,
    /// Whether a gate judges it.
    pub(super) judged: bool,
}

/// What an image never freed of what it allocated by one stack.
#[derive(Clone, Copy, Default)]
pub(super) struct Sifted {
    unfreed: Unfreed,
    suppressed: Unfreed,
    /// What of it is not suppressed.
    counts: Unfreed,
    /// Whether the stack is among those that are to be shown.
    pub(super) is_shown: bool,
}

impl Sifted {
    /// What is not suppressed.
    pub(super) fn leaked(&self) -> Amount {
        self.counts.sum()
    }

    /// How that could be reached, if it is known.
    pub(super) fn reached(&self) -> Option<Reached> {
        (self.counts.unknown == Amount::default()).then_some(self.counts.reached)
    }
}

/// Sifts leaks, stack by stack.
pub(super) struct Sifter<'a> {
    shown: &'a ShownLeaks,
    filter: LeakFilter<'a>,
    places: LeakPlaces,
}

impl<'a> Sifter<'a> {
    pub(super) fn new(shown: &'a ShownLeaks) -> Self {
        Self {
            shown,
            filter: LeakFilter::new(&shown.users, &shown.known),
            places: LeakPlaces::default(),
        }
    }

    /// Takes what an image has allocated by one stack. `named`: the names are not to be had again. `report`: shows the
    /// stack.
    pub(super) fn add(
        &mut self,
        owner: &LeakOwner,
        share: &StackShare,
        stack: &NamedStack,
        named: bool,
        report: Option<&mut Report>,
    ) -> (Sifted, Vec<Unwritten>) {
        let unfreed = Unfreed::of(share);
        let is_shown = self.shown.shows(stack);
        // What did not leak is nothing that a suppression could match.
        let sifted = match owner.has_ended {
            true => self.filter.sift(stack, unfreed),
            false => SiftedLeak::default(),
        };
        let place = PlaceShare {
            left: sifted.left,
            kept: sifted.kept,
            judged: owner.judged,
            shown: is_shown && report.is_some(),
        };
        let named = Some(stack).filter(|_| named);
        self.places
            .add(owner.comm, stack.identity, &share.stack, named, place);
        let mut unwritten = Vec::new();
        if let Some(report) = report.filter(|_| is_shown) {
            let users = self.shown.users.list();
            let by = sifted.by.and_then(|number| users.get(number));
            unwritten = report.stack(&StackRow {
                pid: owner.pid,
                image: owner.image,
                share,
                stack,
                suppressed_by: by.map(|suppression| &*suppression.name),
                suppressed: sifted.suppressed.sum(),
                kept: sifted.kept.sum(),
            });
        }
        let mut counts = sifted.left;
        counts += sifted.kept;
        let sifted = Sifted {
            unfreed,
            suppressed: sifted.suppressed,
            counts,
            is_shown,
        };
        (sifted, unwritten)
    }

    /// Where processes leaked, and how much suppressions have matched. `name` gives a stack its names.
    pub(super) fn finish(
        self,
        coverage: StackCoverage,
        name: impl Fn(&CallStack) -> NamedStack,
    ) -> Located {
        let ShownLeaks { users, known, .. } = self.shown;
        let places = self.places.largest(self.shown.top, name);
        let [reachable, otherwise] = self.filter.by_known(known);
        Located {
            generated: generated(self.shown.generated, &places),
            places,
            coverage,
            suppressions: self.filter.by_users(users).uses(users),
            kept_reachable: reachable.uses(known),
            kept_otherwise: otherwise.uses(known),
            directory: std::env::current_dir().ok(),
        }
    }
}

/// What an image leaked stack by stack, until a gate judges it.
#[derive(Default)]
pub(super) struct ImageLeaks {
    sums: SuppressedShares,
    leaks: Vec<StackLeak>,
}

impl ImageLeaks {
    /// Adds what it leaked by one stack. `compares`: leaks are compared with a baseline.
    pub(super) fn add(&mut self, stack: &NamedStack, sifted: &Sifted, compares: bool) {
        if !stack.frames.is_empty() {
            self.sums.add(sifted.unfreed, sifted.suppressed);
        }
        if compares && sifted.leaked().blocks > 0 {
            self.leaks.push(StackLeak {
                identity: stack.identity,
                size: LeakSize {
                    leaked: sifted.leaked().bytes,
                    lost: sifted.reached().map(|reached| reached.lost().bytes),
                },
                place: innermost_call(stack),
            });
        }
    }

    /// Lets the gate judge the image. To be called when all its stacks were added.
    pub(super) fn judge(
        &self,
        image: &Image,
        shown: &ShownLeaks,
        comparison: Option<&mut Comparison>,
        ledger: &mut Ledger,
    ) {
        let all = LeakSize::of(image);
        let mut suppressed = match shown.suppresses() {
            true => self.sums.of_image(all.leaked, reached(image)),
            false => Suppressed::default(),
        };
        if let Some(comparison) = comparison {
            let all = all.less(LeakSize {
                leaked: suppressed.leaked,
                lost: Some(suppressed.lost),
            });
            let stacks = image.stacks.is_some().then_some(&*self.leaks);
            suppressed.known = comparison.image(image, all, stacks);
        }
        ledger.judge(image, suppressed);
    }
}

/// Takes an image into account. If it `waits` for its stacks, the gate judges it later: see [`ImageLeaks::judge`]. Returns
/// the verdict of the gate's limits for one process, if there are any.
pub(super) fn enter(
    image: &Image,
    waits: bool,
    comparison: Option<&mut Comparison>,
    ledger: &mut Ledger,
) -> Option<Verdict> {
    match comparison {
        _ if waits => {
            ledger.add(image);
            None
        }
        Some(comparison) if ledger.may_judge(image) => {
            ledger.add(image);
            let known = comparison.image(image, LeakSize::of(image), None);
            let suppressed = Suppressed {
                known,
                ..Suppressed::default()
            };
            ledger.judge(image, suppressed)
        }
        Some(_) | None => ledger.record(image),
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
    // An indirectly lost block goes with its owner.
    let listed = [LeakKind::Definite, LeakKind::Possible];
    if unfreed.unknown.blocks > 0 {
        // Only a suppression for all kinds matches these.
        return LeakKinds::NONE;
    }
    let listed = listed.into_iter();
    listed
        .filter(|kind| unfreed.of_kind(*kind).blocks > 0)
        .collect()
}
