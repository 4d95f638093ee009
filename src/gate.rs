//! The leak gate: did any process, or all of them together, leak more than was allowed?
//!
//! A gate is fed each image as it ends and keeps a few sums, whatever the length of the job. Where
//! something was lost, a leak is known only within bounds, and a gate passes only where the bounds prove
//! it. What a verdict does to the exit code is decided in `status`.

use std::fmt;
use std::str::FromStr;

use glob::Pattern;
use thiserror::Error;

use crate::image::{End, From, Image, Losses};
use crate::text;

/// The longest command name that the kernel keeps, in bytes (`TASK_COMM_LEN` less its NUL).
const COMM_MAX: usize = 15;

/// What a gate says. In the order of how much they weigh: of several verdicts the greatest counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    Passed,
    /// Too much was lost to tell.
    Unknown,
    Failed,
}

impl Verdict {
    /// As JSON, CSV and the closing line spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Unknown => "unknown",
            Self::Failed => "failed",
        }
    }
}

/// Between how many bytes and how many a leak is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    pub lower: u64,
    /// `None`: no bound is known.
    pub upper: Option<u64>,
}

impl Bounds {
    /// Nothing leaked, and that is certain.
    pub const ZERO: Self = Self {
        lower: 0,
        upper: Some(0),
    };

    /// The bounds of what an image leaked. Blocks that were not recorded may have been freed or not; a
    /// call that never returned, a row that was lost, an allocator that was not seen and a life before
    /// memleak's may have leaked anything.
    pub fn of(image: &Image) -> Self {
        let lower = image.counters.leaked_bytes;
        let bounded = image.losses.calls_without_return == 0
            && image.losses.rows_lost == 0
            && !image.allocators.is_empty()
            && image.from == From::Start;
        Self {
            lower,
            upper: bounded.then(|| lower.saturating_add(image.losses.bytes_not_recorded)),
        }
    }

    /// Whether the leak is known to the byte.
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

/// How much may be leaked, in bytes: more than that fails.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// By any one process.
    pub process: Option<u64>,
    /// By all processes together.
    pub total: Option<u64>,
}

/// A pattern of command names, as `--gate-comm` takes it: `*`, `?`, `[abc]`, `[a-z]`, `[!abc]`, and a
/// leading `!` to exclude what matches. A name that is not UTF-8 is matched as JSON shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommGlob {
    exclude: bool,
    pattern: Pattern,
}

impl CommGlob {
    fn matches(&self, comm: &[u8]) -> bool {
        self.pattern.matches(&text::text(comm))
    }
}

/// Why a text is not a pattern of command names.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum GlobError {
    #[error(
        "the pattern is empty: write a command name, * and ? in it if need be, ! before it to exclude"
    )]
    Empty,
    #[error(
        "'{}' is not a pattern ({reason}): * and ? are wildcards, [abc] is one of a, b and c",
        text::escaped(.glob.as_bytes())
    )]
    Invalid { glob: String, reason: &'static str },
    #[error(
        "'{}' can match no process: the kernel keeps {COMM_MAX} bytes of a command name; try '{}'",
        text::escaped(.glob.as_bytes()),
        text::escaped(.shorter.as_bytes())
    )]
    TooLong { glob: String, shorter: String },
}

impl FromStr for CommGlob {
    type Err = GlobError;

    fn from_str(glob: &str) -> Result<Self, GlobError> {
        let (exclude, wanted) = match glob.strip_prefix('!') {
            Some(wanted) => (true, wanted),
            None => (false, glob),
        };
        if wanted.is_empty() {
            return Err(GlobError::Empty);
        }
        let pattern = Pattern::new(wanted).map_err(|error| GlobError::Invalid {
            glob: glob.to_owned(),
            reason: error.msg,
        })?;
        // A gate that waits for a name that cannot be would pass for ever. Patterns with brackets or
        // with the escapes of a name that is not UTF-8 are longer than what they match: not judged.
        let shortest = wanted.bytes().filter(|byte| *byte != b'*').count();
        if shortest > COMM_MAX && !wanted.contains(['[', '\\', '?']) {
            let kept = &wanted[..wanted.floor_char_boundary(COMM_MAX)];
            let bang = if exclude { "!" } else { "" };
            return Err(GlobError::TooLong {
                glob: glob.to_owned(),
                shorter: format!("{bang}{}*", kept.trim_end_matches('*')),
            });
        }
        Ok(Self { exclude, pattern })
    }
}

/// Judges images one by one, in constant memory.
#[derive(Clone, Debug)]
pub struct Gate {
    limits: Limits,
    globs: Vec<CommGlob>,
    judged: u64,
    over: u64,
    worst: Option<Culprit>,
    any: Verdict,
    total: Bounds,
    rows_lost: bool,
}

/// The process that leaked most of those over the limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Culprit {
    pub pid: u32,
    pub comm: Vec<u8>,
    /// What it leaked at least, in bytes.
    pub leaked_bytes: u64,
}

impl Gate {
    /// A gate over the processes that the globs choose: those that one of the including globs matches
    /// (all, if there is none), without those that an excluding one matches. `None` without a limit.
    pub fn new(limits: Limits, globs: Vec<CommGlob>) -> Option<Self> {
        if limits == Limits::default() {
            return None;
        }
        Some(Self {
            limits,
            globs,
            judged: 0,
            over: 0,
            worst: None,
            any: Verdict::Passed,
            total: Bounds::ZERO,
            rows_lost: false,
        })
    }

    /// Takes an image into account; the verdict over it alone, or `None` where the limit for one process
    /// does not apply to it. Images that an exec replaced and ones still running are not judged.
    pub fn judge(&mut self, image: &Image) -> Option<Verdict> {
        // Whoever lost a row: what is missing could have been anyone.
        self.rows_lost |= image.losses.rows_lost > 0;
        if matches!(image.end, End::Exec | End::Running) || !self.chooses(&image.comm) {
            return None;
        }
        self.judged += 1;
        let leak = Bounds::of(image);
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

    fn chooses(&self, comm: &[u8]) -> bool {
        let mut including = self.globs.iter().filter(|glob| !glob.exclude).peekable();
        let included = including.peek().is_none() || including.any(|glob| glob.matches(comm));
        included
            && !self
                .globs
                .iter()
                .any(|glob| glob.exclude && glob.matches(comm))
    }

    /// The verdict over everything. `losses` are those that no image carries; `ran` is whether the
    /// command ran at all: of one that did not, nothing is known.
    pub fn finish(mut self, losses: Losses, ran: bool) -> Judgement {
        let blind = self.rows_lost || losses != Losses::default() || !ran;
        if blind {
            self.any = self.any.max(Verdict::Unknown);
            self.total.upper = None;
        }
        Judgement {
            limits: self.limits,
            process: self.limits.process.map(|_| self.any),
            total: self.limits.total.map(|limit| self.total.verdict(limit)),
            judged: self.judged,
            over: self.over,
            worst: self.worst,
            leaked: self.total,
        }
    }
}

/// What a gate found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judgement {
    pub limits: Limits,
    /// The verdict of the limit for one process, if there was one.
    pub process: Option<Verdict>,
    /// The verdict of the limit for all together, if there was one.
    pub total: Option<Verdict>,
    /// How many processes were judged.
    pub judged: u64,
    /// How many of them leaked more than the limit for one process, for certain.
    pub over: u64,
    /// The one that leaked most of those.
    pub worst: Option<Culprit>,
    /// What the judged processes leaked together.
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

/// One line without its end, in bytes so that a leak just over the limit looks like one.
impl fmt::Display for Judgement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "gate {}: ", self.verdict().as_str())?;
        let judged = match self.judged {
            1 => "1 process".to_owned(),
            n => format!("{n} processes"),
        };
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
                let comm = text::escaped(&worst.comm);
                write!(
                    f,
                    " (most: {comm}[{}], {} bytes)",
                    worst.pid, worst.leaked_bytes
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
