//! Adds up images: what all processes together allocated, leaked and lost, what memleak missed, and the gate's verdict.
//!
//! The ledger takes each image as its record arrives. It keeps sums, also those of a bounded number of commands, and a
//! short list of names, but never the images. The figures of an image come from the kernel side. The ledger does not
//! check them.

use std::collections::{BTreeMap, HashMap};

use crate::model::baseline::Compared;
use crate::model::bounds::{Bounds, Verdict};
use crate::model::commands::{Command, Commands};
use crate::model::exit::Outcome;
use crate::model::gate::Gate;
use crate::model::image::{End, From, Image, Losses, Uncovered};
use crate::model::judgement::Judgement;
use crate::model::lost::LostSum;
use crate::model::places::Located;
use crate::model::selection::Selection;
use crate::model::suppressed::Suppressed;

/// How many of the processes that still run are named. The others are only counted, so that the closing line stays
/// readable.
pub const RUNNING_NAMED: usize = 16;

/// The sums so far.
#[derive(Clone, Debug)]
pub struct Ledger {
    processes: u64,
    complete_processes: u64,
    incomplete_images: u64,
    uncovered: BTreeMap<Uncovered, u64>,
    attached: u64,
    total_allocs_bytes: u64,
    leaked: Bounds,
    leaked_blocks: u64,
    lost: LostSum,
    replaced: u64,
    commands: Commands,
    losses: Losses,
    running: Vec<StillRunning>,
    running_count: u64,
    gate: Option<Gate>,
    suppressed: HashMap<(u32, u32), Suppressed>,
}

/// A process that was still running when memleak ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StillRunning {
    pub pid: u32,
    pub comm: Vec<u8>,
}

impl Ledger {
    pub fn new(gate: Option<Gate>) -> Self {
        Self {
            processes: 0,
            complete_processes: 0,
            incomplete_images: 0,
            uncovered: BTreeMap::new(),
            attached: 0,
            total_allocs_bytes: 0,
            leaked: Bounds::ZERO,
            leaked_blocks: 0,
            lost: LostSum::default(),
            replaced: 0,
            commands: Commands::default(),
            losses: Losses::default(),
            running: Vec::new(),
            running_count: 0,
            gate,
            suppressed: HashMap::new(),
        }
    }

    /// Takes an image into account, of which nothing is suppressed or known. Returns the verdict of the gate's limits for one
    /// process over this image, or `None` if there are none.
    pub fn record(&mut self, image: &Image) -> Option<Verdict> {
        self.add(image);
        self.judge(image, Suppressed::default())
    }

    /// Lets the gate judge an image, once it is known what of its leak is suppressed, or known from a baseline. Returns as
    /// [`record`](Self::record).
    pub fn judge(&mut self, image: &Image, suppressed: Suppressed) -> Option<Verdict> {
        let gate = self.gate.as_mut()?;
        if suppressed != Suppressed::default() {
            let key = (image.pid, image.image);
            self.suppressed.insert(key, suppressed);
        }
        gate.judge(image, suppressed)
    }

    /// Whether a gate may judge an image.
    pub fn judges(&self, image: &Image) -> bool {
        self.gate.as_ref().is_some_and(|gate| gate.judges(image))
    }

    /// Whether a gate may judge an image, or there is none.
    pub fn may_judge(&self, image: &Image) -> bool {
        self.gate.is_none() || self.judges(image)
    }

    /// Whom the gate judges.
    pub fn selection(&self) -> Selection {
        let gate = self.gate.as_ref();
        gate.map(|gate| gate.selection().clone())
            .unwrap_or_default()
    }

    /// Takes an image into account, but for the gate. Sums saturate.
    pub fn add(&mut self, image: &Image) {
        let complete = image.complete();
        self.total_allocs_bytes = self
            .total_allocs_bytes
            .saturating_add(image.counters.total_allocs_bytes);
        self.losses += image.losses;
        self.incomplete_images += u64::from(!complete);
        if let Some(why) = image.uncovered {
            *self.uncovered.entry(why).or_default() += 1;
        }
        self.attached += u64::from(image.from == From::Attach);
        if image.end != End::Exec {
            self.processes += 1;
            self.complete_processes += u64::from(complete);
        }
        match image.end {
            End::Exited(_) | End::Signaled { .. } => {
                self.leaked += Bounds::of(image);
                self.leaked_blocks = self
                    .leaked_blocks
                    .saturating_add(image.counters.leaked_blocks);
                self.lost.record(image);
                self.commands.record(image);
            }
            // The exec has discarded the heap. A running process may still free all its blocks.
            End::Exec => self.replaced += 1,
            End::Running => {
                self.running_count += 1;
                if self.running.len() < RUNNING_NAMED {
                    self.running.push(StillRunning {
                        pid: image.pid,
                        comm: image.comm.clone(),
                    });
                }
            }
        }
    }

    /// Closes the sums. `losses` are those that belong to no image.
    pub fn finish(mut self, mut losses: Losses, outcome: Outcome) -> Summary {
        // The command is a process, too. If there is no row at all, memleak missed it.
        if outcome.ran() && self.processes == 0 && losses.rows_lost == 0 {
            losses.rows_lost = 1;
        }
        self.losses += losses;
        if self.losses.rows_lost > 0 || !losses.is_empty() {
            self.leaked.upper = None;
            self.lost.bytes.upper = None;
        }
        Summary {
            outcome,
            processes: self.processes,
            complete_processes: self.complete_processes,
            uncovered: self.uncovered,
            attached: self.attached,
            total_allocs_bytes: self.total_allocs_bytes,
            leaked: self.leaked,
            leaked_blocks: self.leaked_blocks,
            lost: self.lost,
            replaced: self.replaced,
            has_several_hosts: self.commands.have_several_hosts(),
            commands: self.commands.finish(),
            gate: self
                .gate
                .map(|gate| gate.finish(losses, outcome.is_judged())),
            complete: self.incomplete_images == 0 && self.losses.is_empty(),
            losses: self.losses,
            unnamed_running: self.running_count - self.running.len() as u64,
            baseline: None,
            suppressed: self.suppressed,
            located: None,
            running: self.running,
        }
    }
}

/// The results of the whole job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    pub outcome: Outcome,
    /// Number of processes (pids, not images), including those that still run.
    pub processes: u64,
    /// Number of processes whose last image was counted completely.
    pub complete_processes: u64,
    /// Number of images of which not every call was counted, by reason.
    pub uncovered: BTreeMap<Uncovered, u64>,
    /// Number of images that started before memleak attached.
    pub attached: u64,
    /// Bytes that all images allocated, including replaced and running images.
    pub total_allocs_bytes: u64,
    /// Bytes that the ended processes leaked.
    pub leaked: Bounds,
    /// Blocks that the ended processes leaked. With losses, a lower bound.
    pub leaked_blocks: u64,
    /// What the ended processes lost, and how the rest of what they leaked could be reached.
    pub lost: LostSum,
    /// Number of images that an exec replaced. They count in the sum of allocations, and have no row in the table.
    pub replaced: u64,
    /// The processes that have ended, by their command names.
    pub commands: Vec<Command>,
    /// Whether the processes that have ended are of more than one machine.
    pub has_several_hosts: bool,
    /// `None` if the user asked for no gate.
    pub gate: Option<Judgement>,
    /// What is new, known and gone. `None`: nobody gave a baseline.
    pub baseline: Option<Compared>,
    /// What of the leaks of judged images does not count, by their pids and numbers.
    pub suppressed: HashMap<(u32, u32), Suppressed>,
    /// Whether everything was counted.
    pub complete: bool,
    pub losses: Losses,
    /// The first [`RUNNING_NAMED`] processes that still run.
    pub running: Vec<StillRunning>,
    /// How many more processes still run.
    pub unnamed_running: u64,
    /// Where processes leaked. `None`: no call stacks were recorded.
    pub located: Option<Located>,
}

impl Summary {
    /// The gate's verdict. `None` if the user asked for no gate.
    pub fn verdict(&self) -> Option<Verdict> {
        self.gate.as_ref().map(Judgement::verdict)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::image::samples::{any_image, any_parts, image, reach};
    use crate::model::limits::{Allowed, Limits};
    use crate::model::reach::{Amount, Reach, Reached};
    use crate::model::selection::Selection;
    use crate::text::globs::CommNames;

    const OK: Outcome = Outcome::Exited(0);

    fn summary(images: &[Image]) -> Summary {
        let mut ledger = Ledger::new(None);
        for image in images {
            ledger.record(image);
        }
        ledger.finish(Losses::default(), OK)
    }

    fn leaking_at_most(leak: Limits) -> Allowed {
        Allowed {
            leak,
            ..Allowed::default()
        }
    }

    fn leaking(bytes: u64, end: End) -> Image {
        let mut image = image();
        image.counters.total_allocs_bytes = 10_000;
        image.counters.leaked_bytes = bytes;
        image.end = end;
        image
    }

    #[test]
    fn the_sums_include_the_allocations_of_a_replaced_image_but_not_its_leaks() {
        let summary = summary(&[leaking(300, End::Exec), leaking(50, End::Exited(0))]);
        assert_eq!(summary.processes, 1);
        assert_eq!(summary.total_allocs_bytes, 20_000);
        assert_eq!((summary.leaked.lower, summary.leaked.exact()), (50, true));
    }

    #[test]
    fn a_running_process_is_named_and_counted_but_leaks_nothing_yet() {
        let summary = summary(&[leaking(300, End::Running), leaking(50, End::Exited(0))]);
        assert_eq!(summary.processes, 2);
        assert_eq!(summary.total_allocs_bytes, 20_000);
        assert_eq!((summary.leaked.lower, summary.leaked.exact()), (50, true));
        let comm = b"python3".to_vec();
        assert_eq!(summary.running, [StillRunning { pid: 12345, comm }]);
    }

    #[test]
    fn only_the_first_running_processes_are_named() {
        let summary = summary(&vec![leaking(0, End::Running); RUNNING_NAMED + 3]);
        assert_eq!(summary.running.len(), RUNNING_NAMED);
        assert_eq!(summary.unnamed_running, 3);
    }

    #[test]
    fn unrecorded_blocks_bound_the_leak_and_calls_without_return_leave_it_unbounded() {
        let mut bounded = leaking(50, End::Exited(0));
        bounded.losses.blocks_not_recorded = 1;
        bounded.losses.bytes_not_recorded = 7;
        let images = [bounded, leaking(3, End::Exited(0))];
        assert_eq!(
            summary(&images).leaked,
            Bounds {
                lower: 53,
                upper: Some(60)
            }
        );
        let mut unbounded = leaking(0, End::Exited(0));
        unbounded.losses.calls_without_return = 1;
        let images = [images[0].clone(), unbounded];
        assert_eq!(
            summary(&images).leaked,
            Bounds {
                lower: 50,
                upper: None
            }
        );
    }

    #[test]
    fn losses_that_belong_to_no_image_make_the_summary_incomplete() {
        let mut ledger = Ledger::new(None);
        ledger.record(&image());
        let lost = Losses {
            rows_lost: 2,
            ..Losses::default()
        };
        let summary = ledger.finish(lost, OK);
        assert!(!summary.complete);
        assert_eq!(summary.losses, lost);
        assert_eq!(summary.leaked.upper, None);
        assert_eq!((summary.processes, summary.complete_processes), (1, 1));
    }

    #[test]
    fn a_command_that_ran_without_leaving_a_row_counts_as_a_missed_row() {
        let gate = || {
            let leak = Limits {
                process: Some(0),
                total: None,
            };
            Gate::new(leaking_at_most(leak), Selection::default())
        };
        let summary = Ledger::new(gate()).finish(Losses::default(), OK);
        assert_eq!(summary.losses.rows_lost, 1);
        assert_eq!(summary.verdict(), Some(Verdict::Unknown));
        let never_ran = Ledger::new(gate()).finish(Losses::default(), Outcome::ToolError);
        assert!(never_ran.losses.is_empty());
        assert_eq!(never_ran.verdict(), Some(Verdict::Unknown));
    }

    #[test]
    fn each_image_gets_its_own_verdict() {
        let limits = Limits {
            process: Some(100),
            total: Some(1),
        };
        let mut ledger = Ledger::new(Gate::new(leaking_at_most(limits), Selection::default()));
        assert_eq!(
            ledger.record(&leaking(100, End::Exited(0))),
            Some(Verdict::Passed)
        );
        assert_eq!(
            ledger.record(&leaking(101, End::Exited(0))),
            Some(Verdict::Failed)
        );
        assert_eq!(ledger.record(&leaking(101, End::Exec)), None);
        let summary = ledger.finish(Losses::default(), OK);
        assert_eq!(summary.verdict(), Some(Verdict::Failed));
        assert_eq!(
            Ledger::new(None).record(&leaking(101, End::Exited(0))),
            None
        );
    }

    /// A sum that is computed without overflow and saturated at its end. The ledger's sums must be equal to it.
    fn sum(images: &[Image], of: impl Fn(&Image) -> u64) -> u64 {
        let sum: u128 = images.iter().map(|image| u128::from(of(image))).sum();
        u64::try_from(sum).unwrap_or(u64::MAX)
    }

    proptest! {
        #[test]
        fn the_sums_are_those_of_the_images(
            images in prop::collection::vec(any_image(), 0..40),
            lost in 0..3_u64,
            limit in 0..60_000_u64,
        ) {
            let limits = Limits { process: Some(limit), total: None };
            let mut ledger = Ledger::new(Gate::new(leaking_at_most(limits), Selection::default()));
            let verdicts: Vec<_> = images.iter().map(|image| ledger.record(image)).collect();
            let global = Losses { rows_lost: lost, ..Losses::default() };
            let summary = ledger.finish(global, OK);

            let is_process = |image: &&Image| image.end != End::Exec;
            let ended: Vec<Image> = images
                .iter()
                .filter(|image| !matches!(image.end, End::Exec | End::Running))
                .cloned()
                .collect();
            let running: Vec<u32> = images
                .iter()
                .filter(|image| image.end == End::Running)
                .map(|image| image.pid)
                .collect();
            let processes = images.iter().filter(is_process).count();
            let nothing_seen = u64::from(processes == 0 && lost == 0);

            prop_assert_eq!(summary.processes, processes as u64);
            prop_assert_eq!(
                summary.complete_processes,
                images.iter().filter(is_process).filter(|image| image.complete()).count() as u64
            );
            prop_assert_eq!(
                summary.total_allocs_bytes,
                sum(&images, |image| image.counters.total_allocs_bytes)
            );
            prop_assert_eq!(summary.leaked.lower, sum(&ended, |image| image.counters.leaked_bytes));
            prop_assert_eq!(summary.losses, Losses {
                blocks_not_recorded: sum(&images, |image| image.losses.blocks_not_recorded),
                bytes_not_recorded: sum(&images, |image| image.losses.bytes_not_recorded),
                calls_without_return: sum(&images, |image| image.losses.calls_without_return),
                calls_in_flight: sum(&images, |image| image.losses.calls_in_flight),
                rows_lost: sum(&images, |image| image.losses.rows_lost) + lost + nothing_seen,
            });
            prop_assert_eq!(
                summary.complete,
                images.iter().all(Image::complete) && lost + nothing_seen == 0
            );
            let known = summary.losses.rows_lost == 0
                && ended.iter().all(|image| Bounds::of(image).upper.is_some());
            prop_assert_eq!(
                summary.leaked.upper,
                known.then(|| sum(&ended, |image| {
                    let not_recorded = image.losses.bytes_not_recorded;
                    image.counters.leaked_bytes.saturating_add(not_recorded)
                }))
            );
            let reached = |of: fn(Reached) -> Amount| {
                sum(&ended, move |image| match image.reach {
                    Reach::Known(reached) => of(reached).bytes,
                    Reach::Unknown(_) | Reach::NotJudged => 0,
                })
            };
            let lost = &summary.lost;
            prop_assert_eq!(lost.known.definite.bytes, reached(|reached| reached.definite));
            prop_assert_eq!(lost.known.indirect.bytes, reached(|reached| reached.indirect));
            prop_assert_eq!(lost.known.possible.bytes, reached(|reached| reached.possible));
            prop_assert_eq!(lost.known.reachable.bytes, reached(|reached| reached.reachable));
            prop_assert_eq!(lost.bytes.lower, reached(|reached| reached.lost()));
            prop_assert_eq!(lost.bytes.upper.is_some(), summary.leaked.upper.is_some());
            prop_assert!(lost.bytes.upper.is_none_or(|upper| Some(upper) <= summary.leaked.upper));
            let undecided = lost.unknown.values().sum::<u64>();
            let unknown = |image: &&Image| {
                matches!(image.reach, Reach::Unknown(_)) && Bounds::of_lost(image) != Bounds::ZERO
            };
            prop_assert_eq!(undecided, ended.iter().filter(unknown).count() as u64);

            let named: Vec<u32> = summary.running.iter().map(|running| running.pid).collect();
            prop_assert_eq!(&named[..], &running[..running.len().min(RUNNING_NAMED)]);
            prop_assert_eq!(summary.unnamed_running as usize, running.len() - named.len());

            let worst = verdicts.iter().flatten().copied().max().unwrap_or(Verdict::Passed);
            // A gate that judged nobody knows nothing.
            let blind = summary.losses.rows_lost > 0 || ended.is_empty();
            let verdict = if blind { worst.max(Verdict::Unknown) } else { worst };
            prop_assert_eq!(summary.verdict(), Some(verdict));
        }
    }

    /// A process: what it really did, and what the kernel side reports about it.
    #[derive(Clone, Debug)]
    struct Life {
        images: Vec<Seen>,
    }

    #[derive(Clone, Debug)]
    struct Seen {
        image: Image,
        /// The image's true leak in bytes.
        leaked: u64,
        /// How much of that it could not reach any more.
        lost: u64,
        /// Delay of its record after the previous record of the same process.
        after: u32,
    }

    fn any_seen() -> impl Strategy<Value = Seen> {
        let missed = prop_oneof![3 => Just((0, 0)), 1 => (1..3_000_u64, 0..3_000_u64)];
        let blind = prop_oneof![8 => Just(None), 1 => (0..9_000_u64, any::<bool>()).prop_map(Some)];
        let reached = (any_parts(), prop::bool::weighted(0.7));
        (
            0..5_000_u64,
            0..3_000_u64,
            missed,
            blind,
            (0..50_u32, reached),
        )
            .prop_map(
                |(freed, recorded, (missed, held), blind, (after, (parts, is_scanned)))| {
                    let mut image = image();
                    let mut leaked = recorded + held.min(missed);
                    let truth = reach(image.end, recorded, parts.or(Some([0.5; 3])));
                    let Reach::Known(reached) = truth else {
                        panic!("the process ended");
                    };
                    // What was not recorded is lost, too.
                    let mut lost = reached.lost().bytes + held.min(missed);
                    if is_scanned {
                        image.reach = truth;
                    }
                    image.counters.total_allocs_bytes = freed + recorded + missed;
                    image.counters.leaked_bytes = recorded;
                    image.losses.bytes_not_recorded = missed;
                    image.losses.blocks_not_recorded = u64::from(missed > 0);
                    if let Some((unseen, is_call)) = blind {
                        leaked += unseen;
                        lost += unseen;
                        image.losses.calls_without_return = u64::from(is_call);
                        image.uncovered = (!is_call).then_some(Uncovered::Late);
                    }
                    Seen {
                        image,
                        leaked,
                        lost,
                        after,
                    }
                },
            )
    }

    fn any_life() -> impl Strategy<Value = Life> {
        let end = prop_oneof![
            5 => any::<u8>().prop_map(End::Exited),
            1 => Just(End::Signaled { signal: 9, core: false }),
            1 => Just(End::Running),
        ];
        (prop::collection::vec(any_seen(), 1..4), "[ab]", end).prop_map(
            |(mut images, comm, end)| {
                let last = images.len() - 1;
                for (n, seen) in images.iter_mut().enumerate() {
                    seen.image.image = n as u32;
                    seen.image.comm = comm.clone().into_bytes();
                    seen.image.end = if n == last { end } else { End::Exec };
                    if matches!(seen.image.end, End::Exec | End::Running) {
                        seen.image.reach = Reach::NotJudged;
                    }
                }
                Life { images }
            },
        )
    }

    /// The records of all processes in the order of their arrival. The records of one process keep their order.
    fn arriving(lives: &[Life]) -> Vec<Image> {
        let mut records = Vec::new();
        for (pid, life) in (1..).zip(lives) {
            let mut at = 0;
            for seen in &life.images {
                at += seen.after;
                let image = Image {
                    pid,
                    ..seen.image.clone()
                };
                records.push((at, image));
            }
        }
        records.sort_by_key(|(at, _)| *at);
        records.into_iter().map(|(_, image)| image).collect()
    }

    proptest! {
        #[test]
        fn a_verdict_never_contradicts_the_true_leaks_in_any_order_of_arrival(
            lives in prop::collection::vec(any_life(), 0..8),
            process in prop::option::of(0..6_000_u64),
            total in prop::option::of(0..20_000_u64),
            lost in prop::option::of(0..4_000_u64),
            total_lost in prop::option::of(0..10_000_u64),
            rows_lost in prop_oneof![4 => Just(0_u64), 1 => 1..3_u64],
        ) {
            let selection = Selection {
                names: CommNames::new(vec!["a".parse().unwrap()]),
                ..Selection::default()
            };
            let allowed = Allowed {
                leak: Limits { process, total },
                lost: Limits { process: lost, total: total_lost },
            };
            let mut ledger = Ledger::new(Gate::new(allowed, selection));
            for image in arriving(&lives) {
                let verdict = ledger.record(&image);
                let is_judged = (process.is_some() || lost.is_some())
                    && image.comm == b"a"
                    && !matches!(image.end, End::Exec | End::Running);
                prop_assert_eq!(verdict.is_some(), is_judged);
            }
            let summary = ledger.finish(Losses { rows_lost, ..Losses::default() }, OK);

            let images = || lives.iter().flat_map(|life| &life.images);
            let last = |life: &Life| life.images[life.images.len() - 1].clone();
            let runs = |life: &&Life| last(life).image.end == End::Running;
            prop_assert_eq!(summary.processes, lives.len() as u64);
            prop_assert_eq!(summary.running.len(), lives.iter().filter(runs).count());
            prop_assert_eq!(
                summary.total_allocs_bytes,
                images().map(|seen| seen.image.counters.total_allocs_bytes).sum::<u64>()
            );

            // Only processes that have ended can have leaked, and only with their last images.
            let ended = lives.iter().filter(|life| !runs(life)).map(last);
            let ended: Vec<Seen> = ended.collect();
            let leaked: u64 = ended.iter().map(|seen| seen.leaked).sum();
            prop_assert!(summary.leaked.lower <= leaked);
            prop_assert!(summary.leaked.upper.is_none_or(|upper| leaked <= upper));
            let lossless = |seen: &Seen| seen.image.complete();
            let blind = rows_lost > 0 || lives.is_empty();
            if ended.iter().all(lossless) && !blind {
                prop_assert_eq!(summary.leaked, Bounds { lower: leaked, upper: Some(leaked) });
            }

            let true_lost: u64 = ended.iter().map(|seen| seen.lost).sum();
            prop_assert!(summary.lost.bytes.lower <= true_lost);
            prop_assert!(summary.lost.bytes.upper.is_none_or(|upper| true_lost <= upper));

            let judged: Vec<&Seen> = ended.iter().filter(|seen| seen.image.comm == b"a").collect();
            let exceeds = |of: fn(&Seen) -> u64, process: Option<u64>, total: Option<u64>| {
                let sum: u64 = judged.iter().map(|seen| of(seen)).sum();
                [
                    process.map(|limit| judged.iter().any(|seen| of(seen) > limit)),
                    total.map(|limit| sum > limit),
                ]
            };
            let over = [
                exceeds(|seen| seen.leaked, process, total),
                exceeds(|seen| seen.lost, lost, total_lost),
            ];
            let over: Vec<bool> = over.into_iter().flatten().flatten().collect();
            let Some(judgement) = &summary.gate else {
                prop_assert!(over.is_empty());
                return Ok(());
            };
            // Nothing is unknown without a reason.
            let scanned = |seen: &&Seen| {
                lossless(seen) && (matches!(seen.image.reach, Reach::Known(_)) || seen.leaked == 0)
            };
            let known = [judged.iter().all(|seen| lossless(seen)), judged.iter().all(scanned)];
            let verdicts = judgement.verdicts();
            prop_assert_eq!(verdicts.len(), over.len());
            for ((name, verdict), over) in verdicts.into_iter().zip(over) {
                let is_known = known[usize::from(name.ends_with("lost"))];
                match verdict {
                    Verdict::Passed => prop_assert!(!over && !blind, "{}", name),
                    Verdict::Failed => prop_assert!(over, "{}", name),
                    Verdict::Unknown => {
                        prop_assert!(blind || judged.is_empty() || !is_known, "{}", name);
                    }
                }
            }
        }
    }
}
