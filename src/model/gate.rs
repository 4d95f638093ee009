//! The gates: decide whether any process, or all processes together, leaked or lost more than allowed.
//!
//! A gate takes each image as it ends, and keeps a few sums, however long the job is. An amount may only be known within
//! bounds: if memleak missed something, or if a process was not scanned. A gate only passes if the bounds prove it, and
//! if it has judged a process at all. `judgement` has the result, and `exit` decides what it means for the exit code.

use crate::model::bounds::{Bounds, Verdict};
use crate::model::image::{End, Image, Losses};
use crate::model::judgement::{Culprit, Judged, Judgement, Reasons};
use crate::model::limits::{Allowed, Limits};
use crate::model::reach::{Reach, ReachUnknown};
use crate::model::selection::{Met, Selection};
use crate::model::suppressed::Suppressed;

/// Judges images one by one, in constant memory.
#[derive(Clone, Debug)]
pub struct Gate {
    selection: Selection,
    met: Met,
    judged: u64,
    leak: Option<Tally>,
    lost: Option<Tally>,
    rows_lost: bool,
}

impl Gate {
    /// A gate over the selected processes. `None` if there is no limit.
    pub fn new(allowed: Allowed, selection: Selection) -> Option<Self> {
        if allowed == Allowed::default() {
            return None;
        }
        Some(Self {
            met: Met::new(&selection),
            selection,
            judged: 0,
            leak: Tally::new(allowed.leak),
            lost: Tally::new(allowed.lost),
            rows_lost: false,
        })
    }

    /// Whom it judges.
    pub fn selection(&self) -> &Selection {
        &self.selection
    }

    /// Whether it judges by the paths of executables.
    pub fn is_by_path(&self) -> bool {
        !self.selection.paths.is_everything()
    }

    /// Whether it may judge an image.
    pub fn judges(&self, image: &Image) -> bool {
        !matches!(image.end, End::Exec | End::Running)
            && self.selection.choose(image) != Some(false)
    }

    /// Takes an image into account. Returns the verdict over this image alone, or `None` if no limit for one process
    /// applies to it. Images that an exec replaced, and images that still run, are not judged. What is suppressed,
    /// or known from a baseline, does not count.
    pub fn judge(&mut self, image: &Image, suppressed: Suppressed) -> Option<Verdict> {
        // Counts for every image, even one that is not judged: the missed row may belong to any process.
        self.rows_lost |= image.losses.rows_lost > 0;
        if matches!(image.end, End::Exec | End::Running) {
            return None;
        }
        let chosen = self.selection.choose(image);
        self.met.met(image, chosen != Some(false));
        match chosen {
            Some(true) => self.judged += 1,
            Some(false) => return None,
            None => {}
        }
        let is_known = matches!(image.reach, Reach::Known(_));
        let mut leak = suppressed.of_leak(Bounds::of(image));
        let mut lost = suppressed.of_lost(Bounds::of_lost(image), is_known);
        if chosen.is_none() {
            // It may be one of those that are judged, and what it leaked may count.
            (leak.lower, lost.lower) = (0, 0);
        }
        let why = match image.reach {
            Reach::Unknown(why) => Some(why),
            Reach::Known(_) | Reach::NotJudged => None,
        };
        let leak = (self.leak.as_mut()).and_then(|tally| {
            let without_stack = suppressed.unknown_leaked > 0;
            tally.suppressed = tally.suppressed.saturating_add(suppressed.leaked);
            tally.judge(image, leak, None, without_stack)
        });
        let lost = (self.lost.as_mut()).and_then(|tally| {
            let without_stack = suppressed.unknown_lost > 0;
            tally.suppressed = tally.suppressed.saturating_add(suppressed.lost);
            tally.judge(image, lost, why, without_stack)
        });
        leak.max(lost)
    }

    /// The verdict over all images. `losses` are the losses that belong to no image. `ran` says whether the command ran
    /// at all. If it did not, nothing is known.
    pub fn finish(self, losses: Losses, ran: bool) -> Judgement {
        let blind = self.rows_lost || losses != Losses::default() || !ran;
        let finish = |tally: Tally| tally.finish(blind, self.judged);
        Judgement {
            leak: self.leak.map(finish),
            lost: self.lost.map(finish),
            judged: self.judged,
            unjudged: self.met.finish(),
        }
    }
}

/// What the judged processes come to, in one kind of amount.
#[derive(Clone, Debug)]
struct Tally {
    limits: Limits,
    /// The verdict over each process so far.
    any: Verdict,
    over: u64,
    worst: Option<Culprit>,
    sum: Bounds,
    undecided: Reasons,
    undecided_in_sum: Reasons,
    suppressed: u64,
    without_stack: u64,
}

impl Tally {
    /// `None` if there is no limit.
    fn new(limits: Limits) -> Option<Self> {
        (!limits.are_none()).then_some(Self {
            limits,
            any: Verdict::Passed,
            over: 0,
            worst: None,
            sum: Bounds::ZERO,
            undecided: Reasons::new(),
            undecided_in_sum: Reasons::new(),
            suppressed: 0,
            without_stack: 0,
        })
    }

    /// Takes an image's amount into account. Returns the verdict over it, if there is a limit for one process. `why`: why
    /// the amount is not known, if there is such a reason. `without_stack`: a part of it is of stacks that are not known.
    fn judge(
        &mut self,
        image: &Image,
        amount: Bounds,
        why: Option<ReachUnknown>,
        without_stack: bool,
    ) -> Option<Verdict> {
        self.sum += amount;
        self.without_stack += u64::from(without_stack);
        let why = why.filter(|_| !amount.exact());
        if let Some(why) = why {
            *self.undecided_in_sum.entry(why).or_default() += 1;
        }
        let verdict = amount.verdict(self.limits.process?);
        if let Some(why) = why.filter(|_| verdict == Verdict::Unknown) {
            *self.undecided.entry(why).or_default() += 1;
        }
        self.any = self.any.max(verdict);
        if verdict == Verdict::Failed {
            self.over += 1;
            let worst = self.worst.as_ref().map_or(0, |worst| worst.bytes);
            // More than the limit is more than 0.
            if amount.lower > worst {
                self.worst = Some(Culprit {
                    pid: image.pid,
                    comm: image.comm.clone(),
                    bytes: amount.lower,
                });
            }
        }
        Some(verdict)
    }

    /// `blind`: something of which nobody knows to which process it belongs was missed.
    fn finish(mut self, blind: bool, judged: u64) -> Judged {
        if blind {
            self.any = self.any.max(Verdict::Unknown);
            self.sum.upper = None;
        }
        if judged == 0 {
            self.any = Verdict::Unknown;
        }
        let total = |limit| match judged {
            0 => Verdict::Unknown,
            _ => self.sum.verdict(limit),
        };
        Judged {
            limits: self.limits,
            process: self.limits.process.map(|_| self.any),
            total: self.limits.total.map(total),
            over: self.over,
            worst: self.worst,
            sum: self.sum,
            undecided: self.undecided,
            undecided_in_sum: self.undecided_in_sum,
            suppressed: self.suppressed,
            without_stack: self.without_stack,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::image::samples::{any_image, image};
    use crate::model::image::{From, Uncovered};
    use crate::model::reach::{Amount, Reached};
    use crate::model::scan::ScanWanted;
    use crate::text::globs::CommNames;
    use crate::text::paths::ExePaths;

    /// Limits of leaks.
    fn limits(process: Option<u64>, total: Option<u64>) -> Allowed {
        Allowed {
            leak: Limits { process, total },
            ..Allowed::default()
        }
    }

    fn names(globs: &[&str]) -> Selection {
        Selection {
            names: CommNames::new(globs.iter().map(|glob| glob.parse().unwrap()).collect()),
            paths: ExePaths::default(),
        }
    }

    fn leaking(bytes: u64) -> Image {
        let mut image = image();
        image.counters.leaked_bytes = bytes;
        image
    }

    fn judgement(limits: Allowed, comms: &[&str], images: &[Image]) -> Judgement {
        let mut gate = Gate::new(limits, names(comms)).unwrap();
        for image in images {
            gate.judge(image, Suppressed::default());
        }
        gate.finish(Losses::default(), true)
    }

    #[test]
    fn without_a_limit_there_is_no_gate() {
        assert!(Gate::new(Allowed::default(), names(&["sh"])).is_none());
        assert!(Gate::new(limits(Some(0), None), Selection::default()).is_some());
        assert!(Gate::new(limits(None, Some(0)), Selection::default()).is_some());
    }

    #[test]
    fn only_a_leak_over_the_limit_fails() {
        for (limit, leaked, verdict) in [
            (0, 0, Verdict::Passed),
            (0, 1, Verdict::Failed),
            (1_000_000, 1_000_000, Verdict::Passed),
            (1_000_000, 1_000_001, Verdict::Failed),
            (u64::MAX, u64::MAX, Verdict::Passed),
        ] {
            for limits in [limits(Some(limit), None), limits(None, Some(limit))] {
                let judgement = judgement(limits, &[], &[leaking(leaked)]);
                assert_eq!(judgement.verdict(), verdict, "{limits:?} {leaked}");
            }
        }
    }

    #[test]
    fn one_limit_is_for_each_process_and_the_other_for_the_sum() {
        let images = [leaking(600), leaking(600)];
        let passed = judgement(limits(Some(1_000), None), &[], &images);
        assert_eq!(passed.verdict(), Verdict::Passed);
        let failed = judgement(limits(None, Some(1_000)), &[], &images);
        assert_eq!(failed.verdict(), Verdict::Failed);
        let both = judgement(limits(Some(1_000), Some(1_000)), &[], &images);
        assert_eq!(
            both.verdicts(),
            [("leak", Verdict::Passed), ("total_leak", Verdict::Failed)]
        );
        assert_eq!(both.verdict(), Verdict::Failed);
    }

    #[test]
    fn with_losses_a_gate_only_passes_if_the_bounds_prove_it() {
        for (leaked, not_recorded, verdict) in [
            (0, 1_000, Verdict::Passed),
            (400, 600, Verdict::Passed),
            (400, 601, Verdict::Unknown),
            (1_000, 1, Verdict::Unknown),
            (1_001, 1, Verdict::Failed),
            (1_000, u64::MAX, Verdict::Unknown),
        ] {
            let mut image = leaking(leaked);
            image.losses.blocks_not_recorded = 1;
            image.losses.bytes_not_recorded = not_recorded;
            for limits in [limits(Some(1_000), None), limits(None, Some(1_000))] {
                let judgement = judgement(limits, &[], std::slice::from_ref(&image));
                assert_eq!(
                    judgement.verdict(),
                    verdict,
                    "{limits:?} {leaked} {not_recorded}"
                );
            }
        }
    }

    #[test]
    fn an_image_without_an_upper_bound_can_fail_a_gate_but_never_pass_it() {
        let spoilers: [fn(&mut Image); 4] = [
            |image| image.losses.calls_without_return = 1,
            |image| image.losses.rows_lost = 1,
            |image| image.uncovered = Some(Uncovered::NoAllocator),
            |image| image.from = From::Attach,
        ];
        for spoil in spoilers {
            for (leaked, verdict) in [(0, Verdict::Unknown), (1_001, Verdict::Failed)] {
                let mut image = leaking(leaked);
                spoil(&mut image);
                for limits in [limits(Some(1_000), None), limits(None, Some(1_000))] {
                    let judgement = judgement(limits, &[], std::slice::from_ref(&image));
                    assert_eq!(judgement.verdict(), verdict, "{limits:?} {image:?}");
                }
            }
        }
    }

    #[test]
    fn losses_that_belong_to_no_image_leave_a_gate_unknown_unless_it_failed() {
        let lost = Losses {
            rows_lost: 1,
            ..Losses::default()
        };
        for (leaked, verdict) in [(0, Verdict::Unknown), (1_001, Verdict::Failed)] {
            for limits in [limits(Some(1_000), None), limits(None, Some(1_000))] {
                let mut gate = Gate::new(limits, Selection::default()).unwrap();
                gate.judge(&leaking(leaked), Suppressed::default());
                assert_eq!(gate.finish(lost, true).verdict(), verdict, "{limits:?}");
            }
        }
    }

    #[test]
    fn a_missed_row_makes_the_gate_unknown_even_if_its_image_is_not_judged() {
        for (comm, end) in [
            ("sh", End::Exec),
            ("sh", End::Running),
            ("other", End::Exited(0)),
        ] {
            let mut image = leaking(0);
            image.comm = comm.into();
            image.end = end;
            image.losses.rows_lost = 1;
            let judgement = judgement(limits(Some(1_000), None), &["sh"], &[image]);
            assert_eq!(judgement.verdict(), Verdict::Unknown, "{comm} {end:?}");
            assert_eq!(judgement.judged, 0);
        }
    }

    #[test]
    fn a_command_that_never_ran_leaves_its_gate_unknown() {
        let gate = Gate::new(limits(Some(1_000), None), Selection::default()).unwrap();
        assert_eq!(
            gate.finish(Losses::default(), false).verdict(),
            Verdict::Unknown
        );
    }

    #[test]
    fn replaced_and_running_images_are_not_judged() {
        for end in [End::Exec, End::Running] {
            let mut image = leaking(5_000);
            image.end = end;
            // Their unrecorded blocks do not make the gate unknown either.
            image.losses.blocks_not_recorded = 1;
            image.losses.bytes_not_recorded = 5_000;
            for limits in [limits(Some(0), None), limits(None, Some(0))] {
                let judgement = judgement(limits, &[], &[image.clone(), leaking(0)]);
                assert_eq!(judgement.judged, 1);
                assert_eq!(judgement.verdict(), Verdict::Passed, "{limits:?} {end:?}");
            }
        }
    }

    #[test]
    fn a_process_is_judged_however_it_ended() {
        for end in [
            End::Exited(0),
            End::Exited(3),
            End::Signaled {
                signal: 9,
                core: false,
            },
        ] {
            let mut image = leaking(1);
            image.end = end;
            let judgement = judgement(limits(Some(0), None), &[], &[image]);
            assert_eq!(judgement.verdict(), Verdict::Failed, "{end:?}");
        }
    }

    #[test]
    fn globs_choose_the_processes_that_are_judged() {
        for (comms, comm, judged) in [
            (&[][..], &b"anything"[..], true),
            (&["my_app"], b"my_app", true),
            (&["my_app"], b"my_app2", false),
            (&["my_*"], b"my_app", true),
            (&["a", "b"], b"b", true),
            (&["a", "b"], b"c", false),
            (&["!cc1"], b"cc1", false),
            (&["!cc1"], b"as", true),
            (&["!cc1", "!as"], b"as", false),
            (&["c*", "!cc1"], b"cc1", false),
            (&["!cc1", "c*"], b"cc1", false),
            (&["c*", "!cc1"], b"cat", true),
            (&["c*", "!cc1"], b"dog", false),
            (&["*"], b"", true),
            (&["*"], b".hidden/with space", true),
            (&["?op"], b"top", true),
            (&["[a-c]x"], b"bx", true),
            (&["[!a-c]x"], b"bx", false),
            (&["a*"], b"a\xff", true),
            (&[r"a\xff"], b"a\xff", true),
            (&["MY_APP"], b"my_app", false),
        ] {
            let mut image = leaking(1);
            image.comm = comm.to_vec();
            let judgement = judgement(limits(Some(0), None), comms, &[image]);
            assert_eq!(judgement.judged, u64::from(judged), "{comms:?} {comm:?}");
            let verdict = match judged {
                true => Verdict::Failed,
                false => Verdict::Unknown,
            };
            assert_eq!(judgement.verdict(), verdict, "{comms:?} {comm:?}");
        }
    }

    #[test]
    fn a_gate_that_judged_nobody_is_unknown_and_says_whom_there_was() {
        let mut other = leaking(0);
        other.comm = b"sh\x1b".to_vec();
        let images = [leaking(9_000), other.clone(), other];
        for limits in [limits(Some(1), None), limits(None, Some(1))] {
            let said = |comms: &[&str], images: &[Image]| {
                let judgement = judgement(limits, comms, images);
                assert_eq!(judgement.verdict(), Verdict::Unknown);
                judgement.to_string()
            };
            assert_eq!(
                said(&["app", "tool*", "!x"], &images),
                r"gate unknown: no process was judged, none matches --gate-comm 'app' or --gate-comm 'tool*': there were sh\x1b (2), python3"
            );
            assert_eq!(
                said(&["!python3", "!sh*"], &images[..1]),
                "gate unknown: no process was judged, all that ended are excluded: there were python3"
            );
            assert_eq!(said(&[], &[]), "gate unknown: no process was judged");
        }
    }

    #[test]
    fn only_some_of_very_many_names_are_said() {
        let images: Vec<_> = (0..2_000)
            .map(|number| {
                let mut image = leaking(0);
                image.comm = format!("p{number}").into_bytes();
                image
            })
            .collect();
        let said = judgement(limits(Some(1), None), &["x"], &images).to_string();
        assert!(said.ends_with(" and 1988 more"), "{said}");
    }

    #[test]
    fn a_pattern_that_matched_nothing_is_named_beside_one_that_did() {
        let judgement = judgement(limits(Some(1), None), &["py*", "typo"], &[leaking(0)]);
        assert_eq!(judgement.verdict(), Verdict::Passed);
        assert_eq!(judgement.unjudged.unmatched, ["--gate-comm 'typo'"]);
    }

    #[test]
    fn paths_choose_the_processes_that_are_judged() {
        let selection = |globs: &[&str]| {
            let globs: Vec<_> = globs.iter().map(|glob| glob.parse().unwrap()).collect();
            Selection {
                paths: ExePaths::new(&globs, "/home/a".as_ref()).unwrap(),
                ..Selection::default()
            }
        };
        for (globs, exe, leaked, verdict) in [
            (&["./**"][..], Some("/home/a/t/app"), 9, Verdict::Failed),
            (&["./**"], Some("/usr/bin/app"), 9, Verdict::Unknown),
            // Whether it is judged is not known. That matters only if it leaked.
            (&["./**"], None, 9, Verdict::Unknown),
            // And it is nobody of whom it is known.
            (&["./**"], None, 5, Verdict::Unknown),
            (&["!/usr/**"], Some("/home/a/app"), 9, Verdict::Failed),
            (&["!/usr/**"], Some("/usr/bin/app"), 9, Verdict::Unknown),
        ] {
            for limits in [limits(Some(5), None), limits(None, Some(5))] {
                let mut gate = Gate::new(limits, selection(globs)).unwrap();
                let mut image = leaking(leaked);
                image.exe = exe.map(Into::into);
                gate.judge(&image, Suppressed::default());
                let judgement = gate.finish(Losses::default(), true);
                assert_eq!(judgement.verdict(), verdict, "{globs:?} {exe:?} {leaked}");
            }
        }
        let mut gate = Gate::new(limits(Some(5), None), selection(&["./b*"])).unwrap();
        let mut image = leaking(0);
        image.exe = Some("/usr/bin/python3".into());
        gate.judge(&image, Suppressed::default());
        assert_eq!(
            gate.finish(Losses::default(), true).to_string(),
            "gate unknown: no process was judged, none matches --gate-exe './b*': there were /usr/bin/python3"
        );
    }

    #[test]
    fn a_failure_names_the_process_that_leaked_most() {
        let mut worst = leaking(3_000);
        worst.pid = 77;
        worst.comm = b"bad\x1b".to_vec();
        let judgement = judgement(
            limits(Some(1_000), Some(2_000)),
            &[],
            &[leaking(2_000), worst, leaking(1_000)],
        );
        let over = judgement.leak.as_ref().map(|judged| judged.over);
        assert_eq!((judgement.judged, over), (3, Some(2)));
        assert_eq!(
            judgement.to_string(),
            r"gate failed: 2 of 3 processes leaked more than 1000 bytes (most: bad\x1b[77], 3000 bytes); 3 processes leaked 6000 bytes together, more than 2000 bytes"
        );
    }

    #[test]
    fn the_text_of_a_verdict_names_what_was_judged() {
        let say = |limits, image: Image| judgement(limits, &[], &[image]).to_string();
        let mut lossy = leaking(1);
        lossy.losses.calls_without_return = 1;
        assert_eq!(
            say(limits(Some(5), None), leaking(1)),
            "gate passed: none of 1 process leaked more than 5 bytes"
        );
        assert_eq!(
            say(limits(Some(5), None), lossy.clone()),
            "gate unknown: whether any of 1 process leaked more than 5 bytes cannot be told"
        );
        assert_eq!(
            say(limits(None, Some(5)), leaking(1)),
            "gate passed: 1 process leaked not more than 5 bytes together"
        );
        assert_eq!(
            say(limits(None, Some(5)), lossy),
            "gate unknown: whether 1 process leaked more than 5 bytes together cannot be told"
        );
    }

    /// Limits of what is lost.
    fn lost_limits(process: Option<u64>, total: Option<u64>) -> Allowed {
        Allowed {
            lost: Limits { process, total },
            ..Allowed::default()
        }
    }

    /// An image that leaked and lost so many bytes.
    fn losing(leaked: u64, lost: u64) -> Image {
        let mut image = leaking(leaked);
        let amount = |bytes| Amount {
            bytes,
            blocks: u64::from(bytes > 0),
        };
        image.reach = Reach::Known(Reached {
            definite: amount(lost / 2),
            indirect: amount(lost - lost / 2),
            reachable: amount(leaked - lost),
            ..Reached::default()
        });
        image
    }

    fn unknown(leaked: u64, why: ReachUnknown) -> Image {
        let mut image = leaking(leaked);
        image.reach = Reach::Unknown(why);
        image
    }

    #[test]
    fn only_what_is_lost_counts_for_a_limit_of_what_is_lost() {
        for (limit, lost, verdict) in [
            (0, 0, Verdict::Passed),
            (0, 1, Verdict::Failed),
            (1_000, 1_000, Verdict::Passed),
            (1_000, 1_001, Verdict::Failed),
        ] {
            for limits in [
                lost_limits(Some(limit), None),
                lost_limits(None, Some(limit)),
            ] {
                let judgement = judgement(limits, &[], &[losing(90_000, lost)]);
                assert_eq!(judgement.verdict(), verdict, "{limits:?} {lost}");
            }
        }
        let images = [losing(900, 600), losing(900, 600)];
        let both = judgement(lost_limits(Some(1_000), Some(1_000)), &[], &images);
        assert_eq!(
            both.verdicts(),
            [("lost", Verdict::Passed), ("total_lost", Verdict::Failed)]
        );
    }

    #[test]
    fn unknown_is_unknown_unless_what_was_never_freed_is_within_the_limit() {
        for why in ReachUnknown::ALL {
            for (leaked, verdict) in [
                (0, Verdict::Passed),
                (1_000, Verdict::Passed),
                (1_001, Verdict::Unknown),
            ] {
                let image = unknown(leaked, why);
                for limits in [
                    lost_limits(Some(1_000), None),
                    lost_limits(None, Some(1_000)),
                ] {
                    let judgement = judgement(limits, &[], std::slice::from_ref(&image));
                    assert_eq!(judgement.verdict(), verdict, "{why:?} {limits:?} {leaked}");
                }
                let none = judgement(lost_limits(Some(0), None), &[], &[image]);
                let verdict = if leaked == 0 {
                    Verdict::Passed
                } else {
                    Verdict::Unknown
                };
                assert_eq!(none.verdict(), verdict);
            }
        }
        // One that certainly lost too much decides.
        let images = [unknown(5_000, ReachUnknown::Signal), losing(9, 9)];
        let failed = judgement(lost_limits(Some(8), Some(8)), &[], &images);
        assert_eq!(
            failed.verdicts(),
            [("lost", Verdict::Failed), ("total_lost", Verdict::Failed)]
        );
    }

    #[test]
    fn what_memleak_missed_bounds_what_is_lost_as_it_bounds_leaks() {
        let mut image = losing(5_000, 400);
        image.losses.blocks_not_recorded = 1;
        for (not_recorded, verdict) in [(600, Verdict::Passed), (601, Verdict::Unknown)] {
            image.losses.bytes_not_recorded = not_recorded;
            for limits in [
                lost_limits(Some(1_000), None),
                lost_limits(None, Some(1_000)),
            ] {
                let judgement = judgement(limits, &[], std::slice::from_ref(&image));
                assert_eq!(judgement.verdict(), verdict, "{limits:?} {not_recorded}");
            }
        }
        image.losses.calls_without_return = 1;
        for (limit, verdict) in [(399, Verdict::Failed), (u64::MAX, Verdict::Unknown)] {
            let judgement = judgement(
                lost_limits(Some(limit), None),
                &[],
                std::slice::from_ref(&image),
            );
            assert_eq!(judgement.verdict(), verdict, "{limit}");
        }
    }

    #[test]
    fn an_exec_and_a_process_that_still_runs_leave_no_gate_unknown() {
        for end in [End::Exec, End::Running] {
            for reach in [Reach::NotJudged, Reach::Unknown(ReachUnknown::Off)] {
                let mut image = leaking(5_000);
                (image.end, image.reach) = (end, reach);
                for limits in [lost_limits(Some(0), None), lost_limits(None, Some(0))] {
                    let judgement = judgement(limits, &[], &[image.clone(), losing(9, 0)]);
                    assert_eq!(judgement.verdict(), Verdict::Passed, "{limits:?} {end:?}");
                }
            }
        }
    }

    #[test]
    fn a_limit_of_leaks_does_not_depend_on_what_is_lost() {
        for image in [losing(9, 0), unknown(9, ReachUnknown::Signal)] {
            let mut gate = Gate::new(limits(Some(8), None), Selection::default()).unwrap();
            assert_eq!(
                gate.judge(&image, Suppressed::default()),
                Some(Verdict::Failed)
            );
            let both = Allowed {
                lost: lost_limits(Some(100), None).lost,
                ..limits(Some(8), None)
            };
            // The row has the worse of its verdicts.
            let mut gate = Gate::new(both, Selection::default()).unwrap();
            assert_eq!(
                gate.judge(&image, Suppressed::default()),
                Some(Verdict::Failed)
            );
            let judgement = gate.finish(Losses::default(), true);
            assert_eq!(
                judgement.verdicts(),
                [("leak", Verdict::Failed), ("lost", Verdict::Passed)]
            );
        }
    }

    #[test]
    fn the_text_says_which_limits_failed_and_first_these() {
        let mut worst = losing(9_000, 3_000);
        worst.pid = 77;
        let images = [worst, losing(50, 2), unknown(7, ReachUnknown::Signal)];
        let allowed = Allowed {
            leak: limits(Some(1_000_000), None).leak,
            lost: lost_limits(Some(5), Some(1_000_000)).lost,
        };
        assert_eq!(
            judgement(allowed, &[], &images).to_string(),
            "gate failed: 1 of 3 processes lost more than 5 bytes (most: python3[77], 3000 bytes); \
             none of 3 processes leaked more than 1000000 bytes; \
             3 processes lost not more than 1000000 bytes together"
        );
        let allowed = lost_limits(Some(5), Some(5));
        assert_eq!(
            judgement(allowed, &[], &images[1..]).to_string(),
            "gate unknown: whether any of 2 processes lost more than 5 bytes cannot be told (ended by a signal: 1); \
             whether 2 processes lost more than 5 bytes together cannot be told (ended by a signal: 1)"
        );
    }

    #[test]
    fn what_is_suppressed_counts_for_no_limit_and_what_has_no_stack_leaves_it_open() {
        let suppressed = |leaked, unknown_leaked| Suppressed {
            leaked,
            unknown_leaked,
            ..Suppressed::default()
        };
        for (suppressed, verdict) in [
            (suppressed(0, 0), Verdict::Failed),
            (suppressed(900, 0), Verdict::Passed),
            (suppressed(899, 0), Verdict::Failed),
            (suppressed(899, 1), Verdict::Unknown),
            (suppressed(0, 900), Verdict::Unknown),
            // More than the limit is of known stacks.
            (suppressed(0, 899), Verdict::Failed),
        ] {
            for allowed in [limits(Some(100), None), limits(None, Some(100))] {
                let mut gate = Gate::new(allowed, Selection::default()).unwrap();
                gate.judge(&leaking(1_000), suppressed);
                let judgement = gate.finish(Losses::default(), true);
                assert_eq!(judgement.verdict(), verdict, "{suppressed:?} {allowed:?}");
            }
        }
    }

    #[test]
    fn the_text_says_how_much_was_suppressed_and_what_may_be() {
        let text = |suppressed| {
            let both = lost_limits(Some(5), Some(5_000));
            let mut gate = Gate::new(both, Selection::default()).unwrap();
            gate.judge(&losing(9_000, 3_000), suppressed);
            gate.finish(Losses::default(), true).to_string()
        };
        let suppressed = Suppressed {
            leaked: 2_990,
            lost: 2_990,
            ..Suppressed::default()
        };
        assert_eq!(
            text(suppressed),
            "gate failed: 1 of 1 process lost more than 5 bytes (most: python3[12345], 10 bytes); \
             1 process lost not more than 5000 bytes together (2990 bytes are suppressed)"
        );
        let suppressed = Suppressed {
            unknown_leaked: 10,
            unknown_lost: 10,
            ..suppressed
        };
        assert_eq!(
            text(suppressed),
            "gate unknown: whether any of 1 process lost more than 5 bytes cannot be told (stack unknown, maybe \
             suppressed: 1); 1 process lost not more than 5000 bytes together (2990 bytes are suppressed)"
        );
    }

    #[test]
    fn whom_a_gate_judges_is_known_before_it_does() {
        let gate = Gate::new(limits(Some(5), None), names(&["py*"])).unwrap();
        let mut image = leaking(9);
        assert!(gate.judges(&image));
        image.comm = b"sh".to_vec();
        assert!(!gate.judges(&image));
        image.comm = b"python3".to_vec();
        image.end = End::Exec;
        assert!(!gate.judges(&image));
    }

    proptest! {
        #[test]
        fn a_verdict_over_what_is_lost_is_right_whatever_it_is(
            image in any_image(),
            truth in 0.0..=1.0_f64,
            limit in 0..60_000_u64,
        ) {
            let bounds = Bounds::of_lost(&image);
            prop_assert!(bounds.upper.is_none_or(|upper| bounds.lower <= upper));
            let upper = bounds.upper.unwrap_or(u64::MAX);
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
            let part = (truth * (upper - bounds.lower) as f64) as u64;
            let lost = bounds.lower.saturating_add(part).min(upper);
            let mut gate = Gate::new(lost_limits(Some(limit), None), Selection::default()).unwrap();
            match gate.judge(&image, Suppressed::default()) {
                None => prop_assert!(matches!(image.end, End::Exec | End::Running)),
                Some(Verdict::Passed) => prop_assert!(lost <= limit),
                Some(Verdict::Failed) => prop_assert!(lost > limit),
                Some(Verdict::Unknown) => prop_assert!(bounds.lower <= limit && limit < upper),
            }
        }

        #[test]
        fn scans_where_they_are_wanted_decide_every_process(
            images in prop::collection::vec((0..2_000_u64, 0.0..=1.0_f64), 1..10),
            process in 0..2_000_u64,
            total in 0..5_000_u64,
        ) {
            let allowed = lost_limits(Some(process), Some(total));
            let wanted = ScanWanted::for_gates(allowed.lost);
            let mut gate = Gate::new(allowed, Selection::default()).unwrap();
            let (mut unscanned, mut most, mut sum) = (0, 0, 0);
            for (leaked, part) in images {
                #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
                let lost = (leaked as f64 * part) as u64;
                let unfreed = Amount { bytes: leaked, blocks: 1 };
                if wanted.wants(unfreed, unscanned) {
                    gate.judge(&losing(leaked, lost), Suppressed::default());
                } else {
                    unscanned += leaked;
                    gate.judge(&unknown(leaked, ReachUnknown::Off), Suppressed::default());
                }
                most = most.max(lost);
                sum += lost;
            }
            let verdicts = gate.finish(Losses::default(), true).verdicts();
            let verdict = |over| if over { Verdict::Failed } else { Verdict::Passed };
            prop_assert_eq!(verdicts[0], ("lost", verdict(most > process)));
            // The sum is only unknown if it is within what was not scanned of the limit.
            match verdicts[1].1 {
                Verdict::Unknown => prop_assert!(sum + unscanned > total && sum <= total + unscanned),
                known => prop_assert_eq!(known, verdict(sum > total)),
            }
        }

        #[test]
        fn a_known_verdict_is_right_for_every_true_leak_within_the_bounds(
            lower in 0..2_000_u64,
            spread in 0..2_000_u64,
            part in 0.0..=1.0_f64,
            limit in 0..3_000_u64,
        ) {
            let mut image = leaking(lower);
            image.losses.blocks_not_recorded = u64::from(spread > 0);
            image.losses.bytes_not_recorded = spread;
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
            let truth = lower + (part * spread as f64) as u64;
            match judgement(limits(Some(limit), None), &[], &[image]).verdict() {
                Verdict::Passed => prop_assert!(truth <= limit),
                Verdict::Failed => prop_assert!(truth > limit),
                Verdict::Unknown => prop_assert!(lower <= limit && limit < lower + spread),
            }
        }

        #[test]
        fn the_order_in_which_images_end_does_not_matter(
            mut images in prop::collection::vec(any_image(), 0..8),
            process: Option<u16>,
            total in 0..100_000_u64,
            lost in prop::option::of(0..50_000_u64),
        ) {
            let leak = Limits { process: process.map(u64::from), total: Some(total) };
            let limits = Allowed { leak, lost: Limits { process: lost, total: Some(total / 2) } };
            let one_way = judgement(limits, &["!b*"], &images);
            images.reverse();
            let other_way = judgement(limits, &["!b*"], &images);
            let figures = |judgement: &Judgement| {
                let kinds = [judgement.leak.clone(), judgement.lost.clone()];
                let kinds = kinds.map(|judged| judged.map(|judged| (judged.sum, judged.over, judged.undecided)));
                (judgement.verdicts(), judgement.judged, kinds)
            };
            prop_assert_eq!(figures(&one_way), figures(&other_way));
        }
    }
}
