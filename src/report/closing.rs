//! The lines that end a report: sums, the gate's verdict, what memleak missed and what still runs.

use crate::model::bounds::{Bounds, Verdict};
use crate::model::ledger::Summary;
use crate::model::reach::{ReachUnknown, Reached};
use crate::report::cells::{in_blocks, name, uncovered};
use crate::text::units::{amount, counted, grouped};

/// The closing line without colours. It does not depend on the report's format. `lost`: whether processes may have been
/// scanned.
pub fn closing_line(summary: &Summary, lost: bool) -> String {
    let gate = summary.gate.as_ref().map(ToString::to_string);
    clauses(summary, gate, lost).join("; ")
}

/// What a gate has to say that failed or is unknown, or that has a pattern which matched nothing, on one line. `None`
/// for any other gate, and if the command never ran.
pub fn verdict_line(summary: &Summary) -> Option<String> {
    let gate = summary.gate.as_ref().filter(|_| summary.outcome.ran())?;
    match gate.verdict() {
        Verdict::Passed => unmatched(summary),
        _ => Some(verdict(summary, gate.to_string()).join("; ")),
    }
}

/// The gate's text, and what memleak missed.
pub(super) fn verdict(summary: &Summary, gate: String) -> Vec<String> {
    let gate = std::iter::once(gate).chain(unmatched(summary));
    gate.chain(missed(summary)).collect()
}

pub(super) fn clauses(summary: &Summary, gate: Option<String>, lost: bool) -> Vec<String> {
    let mut clauses = vec![sums(summary, lost)];
    clauses.extend(gate);
    clauses.extend(unmatched(summary));
    clauses.extend(unknown(summary).filter(|_| lost));
    clauses.extend(missed(summary));
    clauses.extend(running(summary));
    clauses
}

/// How much there is of what processes lost, possibly lost, and could still reach: a line for each that there is.
pub(super) fn reach_lines(summary: &Summary) -> Vec<String> {
    let Reached {
        definite,
        indirect,
        possible,
        reachable,
    } = summary.lost.known;
    let lines = [
        ("lost", definite + indirect),
        ("possibly lost", possible),
        ("reachable", reachable),
    ];
    let lines = lines.into_iter().filter(|(_, amount)| amount.blocks > 0);
    let lines = lines.map(|(what, amount)| {
        let parts = match what == "lost" && indirect.blocks > 0 {
            true => format!(
                " ({} direct, {} indirect)",
                grouped(definite.bytes),
                grouped(indirect.bytes)
            ),
            false => String::new(),
        };
        format!("{what}: {}{parts}", in_blocks(amount))
    });
    lines.collect()
}

/// What to do about what was lost, beside looking at it: a gate, if there is none.
pub(super) fn hint(summary: &Summary) -> Option<&'static str> {
    let has_gate = (summary.gate.as_ref()).is_some_and(|gate| gate.lost.is_some());
    (summary.lost.bytes.lower > 0 && !has_gate).then_some("gate: --fail-on-lost 0")
}

fn sums(summary: &Summary, lost: bool) -> String {
    let mut processes = counted(summary.processes, "process", "processes");
    if summary.replaced > 0 {
        let images = counted(summary.replaced, "image", "images");
        processes.push_str(&format!(" (and {images} that an exec replaced)"));
    }
    let allocated = amount(summary.total_allocs_bytes);
    let leaked = bounded(summary.leaked, summary.leaked_blocks);
    let mut sums = format!("{processes}, {allocated} allocated, {leaked} leaked");
    if lost {
        let blocks = summary.lost.known.lost().blocks;
        sums.push_str(&format!(", {} lost", bounded(summary.lost.bytes, blocks)));
    }
    sums
}

/// An amount as far as it is known. `blocks`: in how many blocks, if it is known exactly.
fn bounded(bytes: Bounds, blocks: u64) -> String {
    match bytes {
        exact if exact.exact() && exact.lower > 0 => {
            let blocks = counted(blocks, "block", "blocks");
            format!("{} in {blocks}", amount(exact.lower))
        }
        exact if exact.exact() => amount(exact.lower),
        Bounds {
            lower,
            upper: Some(upper),
        } => format!("{} to {}", amount(lower), amount(upper)),
        Bounds { lower, upper: None } => format!("at least {}", amount(lower)),
    }
}

/// Of how many processes it is not known what they lost, and why. Processes that nobody wanted to scan are not counted.
fn unknown(summary: &Summary) -> Option<String> {
    let reasons = summary.lost.unknown.iter();
    let reasons: Vec<_> = reasons
        .filter(|(why, _)| **why != ReachUnknown::Off)
        .collect();
    let sum = reasons.iter().map(|(_, count)| **count).sum();
    let parts = reasons.iter();
    let parts: Vec<_> = parts
        .map(|(why, count)| format!("{}: {count}", why.phrase()))
        .collect();
    let processes = counted(sum, "process", "processes");
    match &reasons[..] {
        [] => None,
        [(why, _)] => Some(format!("lost unknown of {processes} ({})", why.phrase())),
        _ => Some(format!(
            "lost unknown of {processes} ({})",
            parts.join(", ")
        )),
    }
}

/// The patterns of a gate that matched no process, although the gate has judged others.
fn unmatched(summary: &Summary) -> Option<String> {
    let gate = summary.gate.as_ref()?;
    let patterns = &gate.unjudged.unmatched;
    (gate.judged > 0 && !patterns.is_empty())
        .then(|| format!("no process matched {}", patterns.join(" or ")))
}

/// What memleak missed, with remedies where something can be done.
fn missed(summary: &Summary) -> Option<String> {
    if summary.complete {
        return None;
    }
    let losses = summary.losses;
    let mut parts = Vec::new();
    if losses.blocks_not_recorded > 0 {
        parts.push(format!(
            "{} of {} bytes not recorded (raise --max-allocs)",
            counted(losses.blocks_not_recorded, "block", "blocks"),
            losses.bytes_not_recorded
        ));
    }
    if losses.calls_without_return > 0 {
        let calls = counted(losses.calls_without_return, "call", "calls");
        parts.push(format!("{calls} without return"));
    }
    if losses.calls_in_flight > 0 {
        let calls = counted(losses.calls_in_flight, "call", "calls");
        parts.push(format!("{calls} in flight"));
    }
    if losses.rows_lost > 0 {
        let rows = counted(losses.rows_lost, "row", "rows");
        parts.push(format!("{rows} missed"));
    }
    for (&why, &count) in &summary.uncovered {
        let images = counted(count, "image", "images");
        parts.push(format!("{images}: {}", uncovered(why)));
    }
    if summary.attached > 0 {
        let images = counted(summary.attached, "image", "images");
        parts.push(format!("{images} counted from attach"));
    }
    let covered = format!(
        "{} of {} fully covered",
        summary.complete_processes,
        counted(summary.processes, "process", "processes")
    );
    parts.insert(0, covered);
    Some(format!("incomplete: {}", parts.join(", ")))
}

fn running(summary: &Summary) -> Option<String> {
    if summary.running.is_empty() {
        return None;
    }
    let mut names: Vec<String> = summary
        .running
        .iter()
        .map(|running| format!("{}[{}]", name(&running.comm), running.pid))
        .collect();
    if summary.unnamed_running > 0 {
        names.push(format!("{} more", summary.unnamed_running));
    }
    Some(format!("still running: {}", names.join(", ")))
}
