//! The lines that end a report: sums, the gate's verdict, what was lost and what still runs.

use crate::model::gate::{Bounds, Verdict};
use crate::model::ledger::Summary;
use crate::report::cells::{name, uncovered};
use crate::text::units::{amount, counted};

/// The closing line without colours. It does not depend on the report's format.
pub fn closing_line(summary: &Summary) -> String {
    clauses(summary, summary.gate.as_ref().map(ToString::to_string)).join("; ")
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

/// The gate's text, and what was lost.
pub(super) fn verdict(summary: &Summary, gate: String) -> Vec<String> {
    let gate = std::iter::once(gate).chain(unmatched(summary));
    gate.chain(lost(summary)).collect()
}

pub(super) fn clauses(summary: &Summary, gate: Option<String>) -> Vec<String> {
    let mut clauses = vec![sums(summary)];
    clauses.extend(gate);
    clauses.extend(unmatched(summary));
    clauses.extend(lost(summary));
    clauses.extend(running(summary));
    clauses
}

fn sums(summary: &Summary) -> String {
    let mut processes = counted(summary.processes, "process", "processes");
    if summary.replaced > 0 {
        let images = counted(summary.replaced, "image", "images");
        processes.push_str(&format!(" (and {images} that an exec replaced)"));
    }
    let allocated = amount(summary.total_allocs_bytes);
    let leaked = match summary.leaked {
        exact if exact.exact() && exact.lower > 0 => {
            let blocks = counted(summary.leaked_blocks, "block", "blocks");
            format!("{} in {blocks}", amount(exact.lower))
        }
        exact if exact.exact() => amount(exact.lower),
        Bounds {
            lower,
            upper: Some(upper),
        } => format!("{} to {}", amount(lower), amount(upper)),
        Bounds { lower, upper: None } => format!("at least {}", amount(lower)),
    };
    format!("{processes}, {allocated} allocated, {leaked} leaked")
}

/// The patterns of a gate that matched no process, although the gate has judged others.
fn unmatched(summary: &Summary) -> Option<String> {
    let gate = summary.gate.as_ref()?;
    let patterns = &gate.unjudged.unmatched;
    (gate.judged > 0 && !patterns.is_empty())
        .then(|| format!("no process matched {}", patterns.join(" or ")))
}

/// The losses, with remedies where something can be done.
fn lost(summary: &Summary) -> Option<String> {
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
    if losses.rows_lost > 0 {
        parts.push(format!("{} lost", counted(losses.rows_lost, "row", "rows")));
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
