//! The leak gate: decides whether any process, or all processes together, leaked more than allowed.
//!
//! A gate takes each image as it ends, and keeps a few sums, however long the job is. If something was lost, a leak is
//! only known within bounds. A gate only passes if the bounds prove it, and if it has judged a process at all. The effect
//! of a verdict on the exit code is decided in `exit`.

use std::fmt;

use crate::model::image::{End, From, Image, Losses};
use crate::model::selection::{Met, Selection, Unjudged};
use crate::text::escape;
use crate::text::units::counted;

/// A verdict of a gate. The verdicts are in ascending order of weight: of several verdicts, the greatest counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    Passed,
    /// Too much was lost to decide, or nobody was judged.
    Unknown,
    Failed,
}

impl Verdict {
    /// The spelling in JSON, CSV and the closing line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Unknown => "unknown",
            Self::Failed => "failed",
        }
    }
}

/// The bounds of a leak, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    pub lower: u64,
    /// `None`: no upper bound is known.
    pub upper: Option<u64>,
}

impl Bounds {
    /// Certainly nothing leaked.
    pub const ZERO: Self = Self {
        lower: 0,
        upper: Some(0),
    };

    /// The bounds of an image's leak. Blocks that were not recorded may or may not have been freed. There is no upper
    /// bound after a call that never returned, with a lost row, with an allocator that was not followed, or if the
    /// image ran before memleak attached.
    pub fn of(image: &Image) -> Self {
        let lower = image.counters.leaked_bytes;
        let bounded = image.losses.calls_without_return == 0
            && image.losses.rows_lost == 0
            && image.uncovered.is_none()
            && image.from == From::Start;
        Self {
            lower,
            upper: bounded.then(|| lower.saturating_add(image.losses.bytes_not_recorded)),
        }
    }

    /// Whether the leak is known exactly.
    pub fn exact(self) -> bool {
        self.upper == Some(self.lower)
    }

    fn verdict(self, limit: u64) -> Verdict {
        if self.lower > limit {
            Verdict::Failed
        } else if self.upper.is_some_and(|upper| upper <= limit) {
            Verdict::Passed
        } else {
            Verdict::Unknown
        }
    }
}

impl std::ops::AddAssign for Bounds {
    fn add_assign(&mut self, other: Self) {
        self.lower = self.lower.saturating_add(other.lower);
        self.upper = match (self.upper, other.upper) {
            (Some(a), Some(b)) => Some(a.saturating_add(b)),
            _ => None,
        };
    }
}

/// The allowed leaks in bytes. A larger leak fails the gate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Limit for each single process.
    pub process: Option<u64>,
    /// Limit for all processes together.
    pub total: Option<u64>,
}

/// Judges images one by one, in constant memory.
#[derive(Clone, Debug)]
pub struct Gate {
    limits: Limits,
    selection: Selection,
    met: Met,
    judged: u64,
    over: u64,
    worst: Option<Culprit>,
    any: Verdict,
    total: Bounds,
    rows_lost: bool,
}

/// The process with the largest leak of those over the limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Culprit {
    pub pid: u32,
    pub comm: Vec<u8>,
    /// Lower bound of its leak, in bytes.
    pub leaked_bytes: u64,
}

impl Gate {
    /// A gate over the selected processes. `None` if there is no limit.
    pub fn new(limits: Limits, selection: Selection) -> Option<Self> {
        if limits == Limits::default() {
            return None;
        }
        Some(Self {
            limits,
            met: Met::new(&selection),
            selection,
            judged: 0,
            over: 0,
            worst: None,
            any: Verdict::Passed,
            total: Bounds::ZERO,
            rows_lost: false,
        })
    }

    /// Whether it judges by the paths of executables.
    pub fn is_by_path(&self) -> bool {
        !self.selection.paths.is_everything()
    }

    /// Takes an image into account. Returns the verdict over this image alone, or `None` if the limit for one process
    /// does not apply to it. Images that an exec replaced, and images that still run, are not judged.
    pub fn judge(&mut self, image: &Image) -> Option<Verdict> {
        // Counts for every image, even one that is not judged: the lost row may belong to any process.
        self.rows_lost |= image.losses.rows_lost > 0;
        if matches!(image.end, End::Exec | End::Running) {
            return None;
        }
        let chosen = self.selection.choose(image);
        self.met.met(image, chosen != Some(false));
        let mut leak = Bounds::of(image);
        match chosen {
            Some(true) => self.judged += 1,
            Some(false) => return None,
            // It may be one of those that are judged, and what it leaked may count.
            None => leak.lower = 0,
        }
        self.total += leak;
        let verdict = leak.verdict(self.limits.process?);
        self.any = self.any.max(verdict);
        if verdict == Verdict::Failed {
            self.over += 1;
            if self
                .worst
                .as_ref()
                .is_none_or(|worst| worst.leaked_bytes < leak.lower)
            {
                self.worst = Some(Culprit {
                    pid: image.pid,
                    comm: image.comm.clone(),
                    leaked_bytes: leak.lower,
                });
            }
        }
        Some(verdict)
    }

    /// The verdict over all images. `losses` are the losses that belong to no image. `ran` says whether the command ran
    /// at all. If it did not, nothing is known.
    pub fn finish(mut self, losses: Losses, ran: bool) -> Judgement {
        let blind = self.rows_lost || losses != Losses::default() || !ran;
        if blind {
            self.any = self.any.max(Verdict::Unknown);
            self.total.upper = None;
        }
        if self.judged == 0 {
            self.any = Verdict::Unknown;
        }
        let total = |limit| match self.judged {
            0 => Verdict::Unknown,
            _ => self.total.verdict(limit),
        };
        Judgement {
            limits: self.limits,
            process: self.limits.process.map(|_| self.any),
            total: self.limits.total.map(total),
            unjudged: self.met.finish(),
            judged: self.judged,
            over: self.over,
            worst: self.worst,
            leaked: self.total,
        }
    }
}

/// The result of a gate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judgement {
    pub limits: Limits,
    /// The verdict of the limit for one process, if there is such a limit.
    pub process: Option<Verdict>,
    /// The verdict of the limit for all processes together, if there is such a limit.
    pub total: Option<Verdict>,
    /// How many processes were judged. If it is none, every verdict is unknown.
    pub judged: u64,
    /// The processes that were not judged.
    pub unjudged: Unjudged,
    /// How many of the judged processes certainly leaked more than the limit for one process.
    pub over: u64,
    /// The process with the largest leak of those over the limit.
    pub worst: Option<Culprit>,
    /// The leak of all judged processes together.
    pub leaked: Bounds,
}

impl Judgement {
    /// The verdict of all limits together.
    pub fn verdict(&self) -> Verdict {
        self.process
            .into_iter()
            .chain(self.total)
            .max()
            .unwrap_or(Verdict::Passed)
    }
}

impl Judgement {
    /// Says that no process was judged, and which processes there were.
    fn say_nobody(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no process was judged")?;
        let Unjudged { unmatched, .. } = &self.unjudged;
        if self.unjudged.is_empty() {
            return Ok(());
        }
        match &unmatched[..] {
            [] => f.write_str(", all that ended are excluded")?,
            patterns => write!(f, ", none matches {}", patterns.join(" or "))?,
        }
        write!(f, ": there were {}", self.unjudged)
    }
}

/// One line without a line break. Sizes are in bytes, so that a leak just over the limit is visible as such.
impl fmt::Display for Judgement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "gate {}: ", self.verdict().as_str())?;
        if self.judged == 0 {
            return self.say_nobody(f);
        }
        let judged = counted(self.judged, "process", "processes");
        if let (Some(limit), Some(verdict)) = (self.limits.process, self.process) {
            match verdict {
                Verdict::Passed => write!(f, "none of {judged} leaked more than {limit} bytes")?,
                Verdict::Unknown => write!(
                    f,
                    "whether any of {judged} leaked more than {limit} bytes cannot be told"
                )?,
                Verdict::Failed => {
                    write!(
                        f,
                        "{} of {judged} leaked more than {limit} bytes",
                        self.over
                    )?;
                }
            }
            if let Some(worst) = &self.worst {
                let comm = escape::escaped(&worst.comm);
                write!(
                    f,
                    " (most: {comm}[{}], {})",
                    worst.pid,
                    counted(worst.leaked_bytes, "byte", "bytes")
                )?;
            }
            if self.total.is_some() {
                f.write_str("; ")?;
            }
        }
        if let (Some(limit), Some(verdict)) = (self.limits.total, self.total) {
            let leaked = self.leaked.lower;
            match verdict {
                Verdict::Passed => {
                    write!(f, "{judged} leaked not more than {limit} bytes together")?;
                }
                Verdict::Unknown => write!(
                    f,
                    "whether {judged} leaked more than {limit} bytes together cannot be told"
                )?,
                Verdict::Failed => write!(
                    f,
                    "{judged} leaked {leaked} bytes together, more than {limit} bytes"
                )?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::image::Uncovered;
    use crate::model::image::samples::{any_image, image};
    use crate::text::globs::CommNames;
    use crate::text::paths::ExePaths;

    fn limits(process: Option<u64>, total: Option<u64>) -> Limits {
        Limits { process, total }
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

    fn judgement(limits: Limits, comms: &[&str], images: &[Image]) -> Judgement {
        let mut gate = Gate::new(limits, names(comms)).unwrap();
        for image in images {
            gate.judge(image);
        }
        gate.finish(Losses::default(), true)
    }

    #[test]
    fn without_a_limit_there_is_no_gate() {
        assert!(Gate::new(Limits::default(), names(&["sh"])).is_none());
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
        assert_eq!(both.process, Some(Verdict::Passed));
        assert_eq!(both.total, Some(Verdict::Failed));
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
                gate.judge(&leaking(leaked));
                assert_eq!(gate.finish(lost, true).verdict(), verdict, "{limits:?}");
            }
        }
    }

    #[test]
    fn a_lost_row_makes_the_gate_unknown_even_if_its_image_is_not_judged() {
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
                gate.judge(&image);
                let judgement = gate.finish(Losses::default(), true);
                assert_eq!(judgement.verdict(), verdict, "{globs:?} {exe:?} {leaked}");
            }
        }
        let mut gate = Gate::new(limits(Some(5), None), selection(&["./b*"])).unwrap();
        let mut image = leaking(0);
        image.exe = Some("/usr/bin/python3".into());
        gate.judge(&image);
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
        assert_eq!((judgement.judged, judgement.over), (3, 2));
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

    proptest! {
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
        ) {
            let limits = limits(process.map(u64::from), Some(total));
            let one_way = judgement(limits, &["!b*"], &images);
            images.reverse();
            let other_way = judgement(limits, &["!b*"], &images);
            prop_assert_eq!(
                (one_way.process, one_way.total, one_way.judged, one_way.over, one_way.leaked),
                (other_way.process, other_way.total, other_way.judged, other_way.over, other_way.leaked)
            );
        }
    }
}
