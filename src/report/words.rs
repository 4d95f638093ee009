//! The words and numbers that JSON and CSV have in common.

use std::time::Duration;

use clap::ValueEnum;

use crate::model::bounds::Verdict;
use crate::model::exit::Outcome;
use crate::model::grouping::Grouping;
use crate::model::image::{CountedBy, End, From, Image, Uncovered};
use crate::model::judgement::Judgement;
use crate::model::lost::{LostSum, reached};
use crate::model::reach::{Amount, Reach};
use crate::model::stack::WalkEnd;

/// The word of the command line.
pub(super) fn grouping_name(by: Grouping) -> String {
    let word = by.to_possible_value();
    word.map(|word| word.get_name().to_owned())
        .unwrap_or_default()
}

pub fn walk_name(end: WalkEnd) -> &'static str {
    match end {
        WalkEnd::Complete => "complete",
        WalkEnd::TooDeep => "too_deep",
        WalkEnd::NoRule => "no_rule",
        WalkEnd::OddRule => "odd_rule",
        WalkEnd::Pending => "pending",
        WalkEnd::Unreadable => "unreadable",
        WalkEnd::NoCode => "no_code",
        WalkEnd::NoCall => "no_call",
        WalkEnd::Busy => "busy",
    }
}

pub fn counted_by_names(by: CountedBy) -> &'static [&'static str] {
    match by {
        CountedBy::Uprobes => &["uprobes"],
        CountedBy::Inside => &["inside"],
        CountedBy::Both => &["uprobes", "inside"],
    }
}

pub(super) fn exit_code(end: End) -> Option<u8> {
    match end {
        End::Exited(code) => Some(code),
        End::Signaled { .. } | End::Exec | End::Running => None,
    }
}

pub(super) fn signal(end: End) -> Option<u8> {
    match end {
        End::Signaled { signal, .. } => Some(signal),
        End::Exited(_) | End::Exec | End::Running => None,
    }
}

pub fn uncovered_name(why: Uncovered) -> &'static str {
    match why {
        Uncovered::NoAllocator => "no_allocator",
        Uncovered::NoSymbols => "no_symbols",
        Uncovered::ThirtyTwoBit => "32_bit",
        Uncovered::Late => "late",
        Uncovered::Unexamined => "unexamined",
        Uncovered::Unreached => "unreached",
        Uncovered::Unread => "unread",
        Uncovered::Twice => "twice",
    }
}

pub(super) fn from_name(from: From) -> &'static str {
    match from {
        From::Start => "start",
        From::Attach => "attach",
    }
}

pub(super) fn outcome_name(outcome: Outcome) -> Option<&'static str> {
    Some(match outcome {
        Outcome::Watched | Outcome::Saved => return None,
        Outcome::Exited(_) => "exited",
        Outcome::Signaled { .. } => "signaled",
        Outcome::ExecError(_) => "exec_error",
        Outcome::ToolError => "tool_error",
    })
}

/// Seconds with microseconds. A double is not more precise for the times of these centuries.
pub(super) fn seconds(time: Duration) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "exact up to the year 2255")]
    let micros = time.as_micros() as f64;
    micros / 1e6
}

/// The names of the limits with this verdict.
pub(super) fn limits_that_are(wanted: Verdict, gate: &Judgement) -> Vec<&'static str> {
    let verdicts = gate.verdicts().into_iter();
    let wanted = verdicts.filter(|(_, verdict)| *verdict == wanted);
    wanted.map(|(name, _)| name).collect()
}

/// Why it is not known how an image's blocks could be reached.
pub(super) fn reach_unknown(image: &Image) -> Option<&'static str> {
    match image.reach {
        Reach::Unknown(why) if reached(image).is_none() => Some(why.word()),
        Reach::Unknown(_) | Reach::Known(_) | Reach::NotJudged => None,
    }
}

/// What is known to be lost. `None` if nothing is known.
pub(super) fn lost(sum: &LostSum) -> Option<Amount> {
    sum.is_known().then(|| sum.known.lost())
}
