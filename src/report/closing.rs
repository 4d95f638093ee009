//! The lines that end a report: sums, the gate's verdict, what memleak missed and what still runs.

use crate::model::bounds::{Bounds, Verdict};
use crate::model::judgement::Judged;
use crate::model::ledger::Summary;
use crate::model::places::Located;
use crate::model::reach::{Amount, ReachUnknown, Reached};
use crate::model::stack_coverage::StackCoverage;
use crate::model::suppressed::SuppressionUse;
use crate::report::cells::{direct_and_indirect, in_blocks, name, uncovered};
use crate::report::compared::baseline_clause;
use crate::report::places::in_short;
use crate::report::render::Options;
use crate::report::suppressed::{self, runtime_line, suppressed_lines};
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
    let gate = summary
        .gate
        .as_ref()
        .filter(|_| summary.outcome.is_judged())?;
    match gate.verdict() {
        Verdict::Passed => unmatched(summary),
        _ => Some(verdict(summary, gate.to_string()).join("; ")),
    }
}

/// The gate's text, and what memleak missed.
pub(super) fn verdict(summary: &Summary, gate: String) -> Vec<String> {
    let gate = std::iter::once(gate).chain(worst(summary));
    let gate = gate.chain(unmatched(summary));
    let baseline = summary.baseline.as_ref().map(baseline_clause);
    gate.chain(baseline).chain(missed(summary)).collect()
}

/// Where the processes that made a gate fail leaked or lost most.
fn worst(summary: &Summary) -> Option<String> {
    let gate = summary.gate.as_ref()?;
    let located = summary.located.as_ref()?;
    let places = &located.places;
    let failed = |judged: &Option<Judged>| {
        let verdicts = judged.as_ref().map(|judged| [judged.process, judged.total]);
        verdicts.is_some_and(|verdicts| verdicts.contains(&Some(Verdict::Failed)))
    };
    let (place, amount) = if failed(&gate.lost) {
        let place = places.worst_lost.as_ref()?;
        (place, place.unfreed.reached.lost())
    } else if failed(&gate.leak) {
        let place = places.worst_leak.as_ref()?;
        (place, place.unfreed.sum())
    } else {
        return None;
    };
    let at = in_short(&place.stack, located.directory.as_deref())?;
    Some(format!("largest leak: {at}, {}", in_blocks(amount)))
}

pub(super) fn clauses(summary: &Summary, gate: Option<String>, lost: bool) -> Vec<String> {
    let mut clauses = vec![sums(summary, lost)];
    clauses.extend(gate);
    clauses.extend(worst(summary));
    clauses.extend(unmatched(summary));
    clauses.extend(unknown(summary).filter(|_| lost));
    clauses.extend(missed(summary));
    clauses.extend(running(summary));
    clauses
}

/// How much there is of what processes lost, possibly lost, and could still reach: a line for each that there is. What
/// is shown by place needs no line.
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
    let located = summary.located.as_ref();
    let shown = located.iter().flat_map(|located| &located.places.shown);
    let mut by_place = Reached::default();
    shown.for_each(|place| by_place += place.unfreed.reached);
    let has_place = |what: &str| match what {
        "lost" => by_place.lost().blocks > 0,
        "possibly lost" => by_place.possible.blocks > 0,
        _ => false,
    };
    let lines = lines.into_iter();
    let lines = lines.filter(|(what, amount)| amount.blocks > 0 && !has_place(what));
    let lines = lines.map(|(what, amount)| {
        let parts = match what == "lost" && indirect.blocks > 0 {
            true => direct_and_indirect(summary.lost.known),
            false => String::new(),
        };
        let kept = match what == "reachable" {
            true => located.and_then(|located| kept_of(&located.kept_reachable, amount)),
            false => None,
        };
        let kept = kept.unwrap_or_default();
        format!("{what}: {}{parts}{kept}", in_blocks(amount))
    });
    lines.collect()
}

/// What the C and C++ libraries have of an amount, as ` (libstdc++ pool, stdio)` where that is all of it.
fn kept_of(known: &[SuppressionUse], amount: Amount) -> Option<String> {
    let (kept, names) = suppressed::kept(known)?;
    Some(match kept == amount {
        true => format!(" ({names})"),
        false => format!(" ({} of them in {names})", grouped(kept.bytes)),
    })
}

/// What is said of call stacks behind the places: what the libraries keep, what is suppressed, and what has no stack.
/// `verbose`: also of what did not leak, and of stacks without their outermost frames.
pub(super) fn stack_lines(located: &Located, verbose: bool) -> Vec<String> {
    let mut lines: Vec<String> = runtime_line(&located.kept_otherwise).into_iter().collect();
    let StackCoverage {
        leaked,
        allocated,
        early,
    } = &located.coverage;
    if leaked.blocks > 0 {
        lines.push(format!("stack unknown: {}", in_blocks(*leaked)));
    }
    if verbose {
        let calls = counted(allocated.blocks, "allocation", "allocations");
        lines.push(format!("stack unknown of {calls}"));
        for (end, calls) in early {
            let calls = counted(*calls, "allocation", "allocations");
            lines.push(format!("stack incomplete of {calls}: {}", end.phrase()));
        }
    }
    lines.extend(suppressed_lines(&located.suppressions));
    lines
}

/// What to do about what leaked, in one line: how to see where, if that can be seen and was not, how to look at it in a
/// browser, and a gate, if there is none. Only what is lost counts where that is known.
pub(super) fn hint(summary: &Summary, options: Options) -> Option<String> {
    let lost = summary.lost.bytes.lower > 0;
    let leaks = match options.lost && summary.lost.is_known() {
        true => lost,
        false => summary.leaked.lower > 0,
    };
    let has_gate = (summary.gate.as_ref()).is_some_and(|gate| gate.lost.is_some());
    let has_places = (summary.located.as_ref()).is_some_and(|located| located.places.all > 0);
    let hints = [
        (has_places && !options.has_page).then_some("browse: -o html=leaks.html"),
        (leaks && options.stacks_left_out).then_some("where: --stacks"),
        (lost && options.lost && !has_gate).then_some("gate: --fail-on-lost 0"),
    ];
    let hints: Vec<_> = hints.into_iter().flatten().collect();
    (!hints.is_empty()).then(|| hints.join("   "))
}

fn sums(summary: &Summary, lost: bool) -> String {
    let mut processes = counted(summary.processes, "process", "processes");
    if summary.replaced > 0 {
        let images = counted(summary.replaced, "image", "images");
        processes.push_str(&format!(" (and {images} that an exec replaced)"));
    }
    let allocated = amount(summary.total_allocs_bytes);
    let leaked = bounded(summary.leaked, summary.leaked_blocks);
    let in_places = |count: Option<usize>| match count {
        None | Some(0) => String::new(),
        Some(count) => format!(" in {}", counted(count as u64, "place", "places")),
    };
    let places = summary.located.as_ref().map(|located| &located.places);
    let leaks = in_places(places.filter(|_| !lost).map(|places| places.all));
    let mut sums = format!("{processes}, {allocated} allocated, {leaked} leaked{leaks}");
    if lost {
        let blocks = summary.lost.known.lost().blocks;
        let lost = bounded(summary.lost.bytes, blocks);
        let places = in_places(places.map(|places| places.lost));
        sums.push_str(&format!(", {lost} lost{places}"));
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
