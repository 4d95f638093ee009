//! What valgrind and memleak say about a program, and what follows from a comparison. Pure: no program runs here.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::list::{Known, What};
pub use crate::common::Reached;

impl Reached {
    pub fn lost(&self) -> Lost {
        Lost {
            bytes: self.definite_bytes + self.indirect_bytes,
            blocks: self.definite_blocks + self.indirect_blocks,
        }
    }
}

/// What is lost, whether other lost blocks point to it or not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lost {
    pub bytes: u64,
    pub blocks: u64,
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{} in {}", self.bytes, self.blocks)
    }
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum End {
    Exit(i32),
    Signal(i32),
}

/// A run of a program under one of the two.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Judged {
    pub end: End,
    /// The processes in the order in which they started: the program itself, and of a tree also its children. For a
    /// process about which memleak does not know, the reason's word.
    pub processes: Vec<Result<Reached, String>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Equal,
    /// By how much memleak's sum is lower.
    Lower(Lost),
    /// memleak calls more lost than valgrind: bytes or blocks.
    Higher,
    Unknown(String),
    /// The two runs are not comparable.
    Unlike(String),
}

/// Compares two runs of one program. Equal means: each process has the same sum of definitely and indirectly lost
/// blocks. Which block of a ring is the definite one depends on the order of the blocks, so only the sum counts.
pub fn compare(valgrind: &Judged, memleak: &Judged) -> Outcome {
    if valgrind.end != memleak.end {
        return Outcome::Unlike(format!(
            "it ends with {:?} under valgrind, with {:?} under memleak",
            valgrind.end, memleak.end
        ));
    }
    if valgrind.processes.len() != memleak.processes.len() {
        return Outcome::Unlike(format!(
            "{} processes under valgrind, {} under memleak",
            valgrind.processes.len(),
            memleak.processes.len()
        ));
    }
    let mut less = Lost::default();
    let mut higher = false;
    for (theirs, ours) in valgrind.processes.iter().zip(&memleak.processes) {
        let theirs = match theirs {
            Ok(theirs) => theirs.lost(),
            Err(reason) => return Outcome::Unlike(format!("valgrind: {reason}")),
        };
        let ours = match ours {
            Ok(ours) => ours.lost(),
            Err(reason) => return Outcome::Unknown(reason.clone()),
        };
        higher |= ours.bytes > theirs.bytes || ours.blocks > theirs.blocks;
        less.bytes += theirs.bytes.saturating_sub(ours.bytes);
        less.blocks += theirs.blocks.saturating_sub(ours.blocks);
    }
    match (higher, less) {
        (true, _) => Outcome::Higher,
        (false, less) if less == Lost::default() => Outcome::Equal,
        (false, less) => Outcome::Lower(less),
    }
}

/// The comparison of a program.
#[derive(Clone, Debug)]
pub struct Compared {
    pub name: String,
    pub valgrind: Judged,
    pub memleak: Judged,
}

impl Compared {
    pub fn outcome(&self) -> Outcome {
        compare(&self.valgrind, &self.memleak)
    }

    /// Whether valgrind calls anything lost.
    pub fn loses(&self) -> bool {
        loses(&self.valgrind)
    }
}

pub fn loses(judged: &Judged) -> bool {
    let mut processes = judged.processes.iter().flatten();
    processes.any(|reached| reached.lost().blocks > 0)
}

/// The least share of programs that must be equal, in per cent.
const EQUAL_PERCENT: usize = 98;

/// What must not be: each is a line.
pub fn failures(compared: &[Compared], known: &[Known]) -> Vec<String> {
    let mut failures = Vec::new();
    let mut open: Vec<&Known> = known
        .iter()
        .filter(|known| compared.iter().any(|one| one.name == known.name))
        .collect();
    let mut equal = 0;
    for one in compared {
        let outcome = one.outcome();
        let found = match &outcome {
            Outcome::Equal => {
                equal += 1;
                continue;
            }
            Outcome::Lower(less) => Some(What::Lower {
                bytes: less.bytes,
                blocks: less.blocks,
            }),
            Outcome::Unknown(word) => Some(What::Unknown(word.clone())),
            // No reason excuses these.
            Outcome::Higher | Outcome::Unlike(_) => None,
        };
        let listed = open
            .iter()
            .position(|known| known.name == one.name && explains(&known.what, found.as_ref()));
        match listed {
            Some(place) => drop(open.swap_remove(place)),
            None => failures.push(format!("{}: {}", one.name, explain(&outcome))),
        }
    }
    open.retain(|known| !matches!(known.what, What::Varies { .. }));
    for known in open {
        failures.push(format!(
            "{}: the list of differences has {:?}, which is no longer so",
            known.name, known.what
        ));
    }
    if equal * 100 < compared.len() * EQUAL_PERCENT {
        failures.push(format!(
            "{equal} of {} programs are equal, fewer than {EQUAL_PERCENT} per cent",
            compared.len()
        ));
    }
    failures
}

/// Whether a known difference is the one that was found.
fn explains(known: &What, found: Option<&What>) -> bool {
    match (known, found) {
        (
            What::Varies { bytes, blocks },
            Some(What::Lower {
                bytes: by,
                blocks: of,
            }),
        ) => by <= bytes && of <= blocks,
        _ => Some(known) == found,
    }
}

fn explain(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Equal => "equal".to_owned(),
        Outcome::Lower(less) => format!(
            "memleak's sum is lower by {} bytes and {} blocks, and the list of differences lacks that",
            less.bytes, less.blocks
        ),
        Outcome::Higher => "memleak calls more lost than valgrind".to_owned(),
        Outcome::Unknown(word) => {
            format!("memleak does not know ({word}), and the list of differences lacks that")
        }
        Outcome::Unlike(why) => format!("not comparable: {why}"),
    }
}

/// A table of the programs that differ, and a line with the sums.
pub fn table(compared: &[Compared]) -> String {
    let mut text = String::new();
    let mut numbers: BTreeMap<&str, usize> = BTreeMap::new();
    let mut reasons: BTreeMap<String, usize> = BTreeMap::new();
    let mut split = 0;
    let heading = format!(
        "{:<28} {:>3} {:<8} {:>12} {:>7} {:>12} {:>7} {:>12} {:>12}\n",
        "program",
        "",
        "lost by",
        "definite",
        "blocks",
        "indirect",
        "blocks",
        "possible",
        "reachable"
    );
    for one in compared {
        let outcome = one.outcome();
        let word = match &outcome {
            Outcome::Equal => "equal",
            Outcome::Lower(_) => "lower",
            Outcome::Higher => "higher",
            Outcome::Unknown(word) => {
                *reasons.entry(word.clone()).or_default() += 1;
                "unknown"
            }
            Outcome::Unlike(_) => "unlike",
        };
        *numbers.entry(word).or_default() += 1;
        let processes = || one.valgrind.processes.iter().zip(&one.memleak.processes);
        let splits = |(theirs, ours): (&Result<Reached, String>, &Result<Reached, String>)| {
            let definite = |one: &Result<Reached, String>| {
                let one = one.as_ref().ok()?;
                Some((one.definite_bytes, one.definite_blocks))
            };
            definite(theirs) != definite(ours)
        };
        let split_differs = outcome == Outcome::Equal && processes().any(splits);
        split += usize::from(split_differs);
        if outcome == Outcome::Equal && !split_differs {
            continue;
        }
        if text.is_empty() {
            text.push_str(&heading);
        }
        for (number, (theirs, ours)) in processes().enumerate() {
            let number = if number == 0 {
                String::new()
            } else {
                format!("+{number}")
            };
            for (by, reached) in [("valgrind", theirs), ("memleak", ours)] {
                text.push_str(&row(&one.name, &number, by, reached));
            }
        }
        if let Outcome::Unlike(why) = &outcome {
            text.push_str(&format!("{:<28} {why}\n", one.name));
        }
    }
    let number = |word: &str| numbers.get(word).copied().unwrap_or(0);
    let reasons: Vec<_> = reasons
        .iter()
        .map(|(word, count)| format!("{word} {count}"))
        .collect();
    let reasons = match &reasons[..] {
        [] => String::new(),
        reasons => format!(" ({})", reasons.join(", ")),
    };
    text.push_str(&format!(
        "{} programs: {} equal, {} lower, {} higher, {} unknown{reasons}, {} not comparable; {} had lost blocks; {split} \
         split into definite and indirect in another way\n",
        compared.len(),
        number("equal"),
        number("lower"),
        number("higher"),
        number("unknown"),
        number("unlike"),
        compared.iter().filter(|one| one.loses()).count(),
    ));
    text
}

/// A line of the table.
pub fn row(name: &str, number: &str, by: &str, reached: &Result<Reached, String>) -> String {
    match reached {
        Ok(r) => format!(
            "{name:<28} {number:>3} {by:<8} {:>12} {:>7} {:>12} {:>7} {:>12} {:>12}\n",
            r.definite_bytes,
            r.definite_blocks,
            r.indirect_bytes,
            r.indirect_blocks,
            r.possible_bytes,
            r.reachable_bytes
        ),
        Err(reason) => format!("{name:<28} {number:>3} {by:<8} unknown: {reason}\n"),
    }
}
