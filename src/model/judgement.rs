//! The result of the gates, and how it is said in one line.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fmt;

use crate::model::bounds::{Bounds, Verdict};
use crate::model::limits::{Allowed, Limits};
use crate::model::reach::ReachUnknown;
use crate::model::selection::Unjudged;
use crate::text::escape;
use crate::text::units::counted;

/// The result of all gates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judgement {
    /// What the limits of leaks say, if there are any.
    pub leak: Option<Judged>,
    /// What the limits of what is lost say, if there are any.
    pub lost: Option<Judged>,
    /// How many processes were judged. If it is none, every verdict is unknown.
    pub judged: u64,
    /// The processes that were not judged.
    pub unjudged: Unjudged,
}

/// What the limits of one kind of amount say. Amounts are in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judged {
    pub limits: Limits,
    /// The verdict of the limit for one process, if there is such a limit.
    pub process: Option<Verdict>,
    /// The verdict of the limit for all processes together, if there is such a limit.
    pub total: Option<Verdict>,
    /// How many of the judged processes are certainly over the limit for one process.
    pub over: u64,
    /// The process with the largest amount of those over the limit.
    pub worst: Option<Culprit>,
    /// The amount of all judged processes together.
    pub sum: Bounds,
    /// The processes that may be over the limit for one process, because it is not known how their blocks could be
    /// reached.
    pub undecided: Reasons,
    /// The processes whose part of the sum is for that reason only known within bounds.
    pub undecided_in_sum: Reasons,
    /// How much of the judged processes was suppressed, and does not count.
    pub suppressed: u64,
    /// How many of the judged processes have a part of the amount by stacks that are not known. It may be suppressed.
    pub without_stack: u64,
}

/// For how many processes each reason holds.
pub type Reasons = BTreeMap<ReachUnknown, u64>;

/// The process with the largest amount of those over the limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Culprit {
    pub pid: u32,
    pub comm: Vec<u8>,
    /// Lower bound of its amount, in bytes.
    pub bytes: u64,
}

impl Judgement {
    /// The limits. Those of a kind that has none are `None`.
    pub fn allowed(&self) -> Allowed {
        let limits = |judged: &Option<Judged>| judged.as_ref().map(|judged| judged.limits);
        Allowed {
            leak: limits(&self.leak).unwrap_or_default(),
            lost: limits(&self.lost).unwrap_or_default(),
        }
    }

    /// The verdict of each limit that there is, with the limit's name in JSON and CSV.
    pub fn verdicts(&self) -> Vec<(&'static str, Verdict)> {
        let of = |judged: &Option<Judged>| {
            let verdicts = judged.as_ref().map(|judged| [judged.process, judged.total]);
            verdicts.unwrap_or_default()
        };
        let names = ["leak", "total_leak", "lost", "total_lost"];
        let verdicts = of(&self.leak).into_iter().chain(of(&self.lost));
        let named = names.into_iter().zip(verdicts);
        named
            .filter_map(|(name, verdict)| Some((name, verdict?)))
            .collect()
    }

    /// The verdict of all limits together.
    pub fn verdict(&self) -> Verdict {
        let verdicts = self.verdicts().into_iter().map(|(_, verdict)| verdict);
        verdicts.max().unwrap_or(Verdict::Passed)
    }

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

/// One line without a line break: what each limit says, the failed ones first. Sizes are in bytes, so that an amount just
/// over the limit is visible as such.
impl fmt::Display for Judgement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "gate {}: ", self.verdict().as_str())?;
        if self.judged == 0 {
            return self.say_nobody(f);
        }
        let leak = self.leak.iter().map(|judged| (judged, "leaked"));
        let kinds = leak.chain(self.lost.iter().map(|judged| (judged, "lost")));
        let mut clauses: Vec<_> = kinds
            .flat_map(|(judged, did)| judged.clauses(did, self.judged))
            .collect();
        clauses.sort_by_key(|(verdict, _)| Reverse(*verdict));
        let clauses: Vec<_> = clauses.into_iter().map(|(_, clause)| clause).collect();
        f.write_str(&clauses.join("; "))
    }
}

impl Judged {
    /// What each limit says. `did`: what the processes did, as `leaked`. `judged`: how many processes there are.
    fn clauses(&self, did: &str, judged: u64) -> Vec<(Verdict, String)> {
        let judged = counted(judged, "process", "processes");
        let mut clauses = Vec::new();
        if let (Some(limit), Some(verdict)) = (self.limits.process, self.process) {
            let mut clause = match verdict {
                Verdict::Passed => format!("none of {judged} {did} more than {limit} bytes"),
                Verdict::Unknown => format!(
                    "whether any of {judged} {did} more than {limit} bytes cannot be told{}",
                    self.because(&self.undecided)
                ),
                Verdict::Failed => {
                    format!("{} of {judged} {did} more than {limit} bytes", self.over)
                }
            };
            if let Some(worst) = &self.worst {
                let comm = escape::escaped(&worst.comm);
                let bytes = counted(worst.bytes, "byte", "bytes");
                clause.push_str(&format!(" (most: {comm}[{}], {bytes})", worst.pid));
            }
            clauses.push((verdict, clause));
        }
        if let (Some(limit), Some(verdict)) = (self.limits.total, self.total) {
            let clause = match verdict {
                Verdict::Passed => format!("{judged} {did} not more than {limit} bytes together"),
                Verdict::Unknown => format!(
                    "whether {judged} {did} more than {limit} bytes together cannot be told{}",
                    self.because(&self.undecided_in_sum)
                ),
                Verdict::Failed => format!(
                    "{judged} {did} {} bytes together, more than {limit} bytes",
                    self.sum.lower
                ),
            };
            clauses.push((verdict, clause));
        }
        if let Some((_, last)) = clauses.last_mut().filter(|_| self.suppressed > 0) {
            let suppressed = counted(self.suppressed, "byte is", "bytes are");
            last.push_str(&format!(" ({suppressed} suppressed)"));
        }
        clauses
    }

    /// Why an amount is not known, and of how many processes: ` (ended by a signal: 2, not scanned: 1)`.
    fn because(&self, reasons: &Reasons) -> String {
        let reasons = reasons.iter();
        let reasons = reasons.map(|(why, count)| format!("{}: {count}", why.phrase()));
        let without = self.without_stack;
        let without = (without > 0).then(|| format!("stack unknown, maybe suppressed: {without}"));
        let reasons: Vec<_> = reasons.chain(without).collect();
        match &reasons[..] {
            [] => String::new(),
            reasons => format!(" ({})", reasons.join(", ")),
        }
    }
}
