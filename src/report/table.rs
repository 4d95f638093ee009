//! The table, for people (and for awk: one row a line, columns split by spaces).

use std::io;

use comfy_table::presets::NOTHING;
use comfy_table::{ColumnConstraint, Width};

use super::{Options, Render, Verbosity};
use crate::gate::{Bounds, Verdict};
use crate::image::{End, From, Image, Uncovered};
use crate::ledger::Summary;
use crate::status::{self, Outcome};
use crate::text;
use crate::units::megabytes;

/// Every column and how wide it is at least. The first six are fixed, names and order; a longer value
/// widens its own row. Later rows are not known when the header is written, so no column ever depends
/// on what the rows hold.
const COLUMNS: [(&str, u16); 8] = [
    ("UID", 8),
    ("USER", 12),
    ("PID", 6),
    ("COMM", 16),
    ("TOTAL_ALLOCS_MB", 15),
    ("MEM_LEAK_MB", 11),
    ("EXIT", 9),
    ("NOTE", 0),
];

/// A command name may be empty; a cell may not, or the columns of its row would shift. A lone `\0` is
/// what no other name is shown as.
const EMPTY_NAME: &str = r"\0";

const RED: &str = "\x1b[31m";
const YELLOW: &str = "\x1b[33m";
const PLAIN: &str = "\x1b[0m";

pub(super) struct Table {
    options: Options,
    began: bool,
}

impl Table {
    pub(super) fn new(options: Options) -> Self {
        Self {
            options,
            began: false,
        }
    }

    fn painted(&self, line: String, verdict: Option<Verdict>) -> String {
        let color = match verdict {
            Some(Verdict::Failed) => RED,
            Some(Verdict::Unknown) => YELLOW,
            Some(Verdict::Passed) | None => return line,
        };
        if self.options.color {
            format!("{color}{line}{PLAIN}")
        } else {
            line
        }
    }
}

impl Render for Table {
    fn image(&mut self, image: &Image, verdict: Option<Verdict>) -> io::Result<Vec<u8>> {
        let ended = matches!(image.end, End::Exited(_) | End::Signaled { .. });
        if !ended && self.options.verbosity != Verbosity::Verbose {
            return Ok(Vec::new());
        }
        let mut lines = String::new();
        if !self.began {
            self.began = true;
            lines.push_str(&row(COLUMNS.map(|(name, _)| name.to_owned())));
            lines.push('\n');
        }
        let row = row([
            image.uid.to_string(),
            image
                .user
                .as_ref()
                .map_or_else(|| image.uid.to_string(), |user| name(user.as_bytes())),
            image.pid.to_string(),
            name(&image.comm),
            megabytes(image.counters.total_allocs_bytes),
            megabytes(image.counters.leaked_bytes),
            exit(image.end),
            note(image),
        ]);
        lines.push_str(&self.painted(row, verdict.filter(|verdict| *verdict == Verdict::Failed)));
        lines.push('\n');
        Ok(lines.into_bytes())
    }

    fn summary(&mut self, summary: &Summary) -> io::Result<Vec<u8>> {
        // Nothing ran: the error that was printed says all there is to say.
        if matches!(summary.outcome, Outcome::ExecError(_) | Outcome::ToolError)
            && summary.processes == 0
        {
            return Ok(Vec::new());
        }
        let mut clauses = Vec::new();
        if self.options.verbosity != Verbosity::Quiet {
            clauses.push(sums(summary));
        }
        if let Some(gate) = &summary.gate {
            clauses.push(self.painted(gate.to_string(), Some(gate.verdict())));
        }
        clauses.extend(lost(summary));
        if self.options.verbosity != Verbosity::Quiet {
            clauses.extend(running(summary));
        }
        Ok(format!("memleak: {}\n", clauses.join("; ")).into_bytes())
    }
}

fn row(cells: [String; COLUMNS.len()]) -> String {
    let mut table = comfy_table::Table::new();
    table.load_style(NOTHING);
    table.add_row(cells);
    for (column, (_, width)) in table.column_iter_mut().zip(COLUMNS) {
        // The space between columns is padding, and a constraint counts the padding too.
        column.set_padding((0, 1));
        column.set_constraint(ColumnConstraint::LowerBoundary(Width::Fixed(width + 1)));
    }
    table.trim_fmt()
}

fn name(name: &[u8]) -> String {
    if name.is_empty() {
        EMPTY_NAME.to_owned()
    } else {
        text::escaped(name)
    }
}

fn exit(end: End) -> String {
    match end {
        End::Exited(code) => code.to_string(),
        End::Signaled { signal, .. } => status::signal_name(signal).into_owned(),
        End::Exec => "exec".to_owned(),
        End::Running => "running".to_owned(),
    }
}

fn note(image: &Image) -> String {
    let mut notes = Vec::new();
    if let Some(why) = image.uncovered {
        notes.push(uncovered(why).to_owned());
    }
    if !image.losses.is_empty() {
        notes.push(format!("incomplete: {} lost", image.losses.count()));
    }
    if image.from == From::Attach {
        notes.push("incomplete: counted from attach".to_owned());
    }
    notes.join("; ")
}

fn uncovered(why: Uncovered) -> &'static str {
    match why {
        Uncovered::NoAllocator => "no probed allocator",
        Uncovered::NoSymbols => "no allocator symbols",
        Uncovered::ThirtyTwoBit => "32-bit program",
        Uncovered::Late => "allocator probed late",
        Uncovered::Unexamined => "allocator not examined",
    }
}

fn counted(count: u64, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}

fn sums(summary: &Summary) -> String {
    let processes = counted(summary.processes, "process", "processes");
    let allocated = megabytes(summary.total_allocs_bytes);
    let leaked = match summary.leaked {
        exact if exact.exact() => megabytes(exact.lower),
        Bounds {
            lower,
            upper: Some(upper),
        } => format!("{} to {}", megabytes(lower), megabytes(upper)),
        Bounds { lower, upper: None } => format!("at least {}", megabytes(lower)),
    };
    format!("{processes}, {allocated} MB allocated, {leaked} MB leaked")
}

/// What was lost, and what to do about it where something can be done.
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
