//! The table, for people and for awk: one row per line, columns separated by spaces.

use std::io;
use std::time::Duration;

use comfy_table::presets::NOTHING;
use comfy_table::{ColumnConstraint, Width};

use crate::model::exit::Outcome;
use crate::model::gate::{Bounds, Verdict};
use crate::model::image::{End, From, Image, Uncovered};
use crate::model::ledger::Summary;
use crate::model::live::{Growing, Live};
use crate::report::render::{Options, Render, Verbosity, Window};
use crate::text::escape;
use crate::text::signal_name::signal_name;
use crate::text::units::megabytes;

/// The columns with their minimum widths. Names and order of the first six are fixed. A longer value only widens its
/// own row. Later rows are not known when the header is written, so no column depends on the contents of the rows.
const COLUMNS: [(&str, u16); 8] = [
    UID,
    USER,
    PID,
    COMM,
    TOTAL,
    ("MEM_LEAK_MB", 11),
    ("EXIT", 9),
    NOTE,
];

/// The columns of a window. NOTE has no heading if no row has a note.
const WINDOW_COLUMNS: [(&str, u16); 7] = [UID, USER, PID, COMM, TOTAL, ("MEM_LEAK_MB", 11), NOTE];

/// The columns of the running processes.
const LIVE_COLUMNS: [(&str, u16); 9] = [
    UID,
    USER,
    PID,
    COMM,
    TOTAL,
    ("LIVE_MB", 11),
    ("GROWTH_MB", 11),
    ("AGE", 7),
    NOTE,
];

const UID: (&str, u16) = ("UID", 8);
const USER: (&str, u16) = ("USER", 12);
const PID: (&str, u16) = ("PID", 6);
const COMM: (&str, u16) = ("COMM", 16);
const TOTAL: (&str, u16) = ("TOTAL_ALLOCS_MB", 15);
const NOTE: (&str, u16) = ("NOTE", 0);

/// Shown for an empty command name. An empty cell would shift the columns of its row. No other name is shown as a lone
/// `\0`.
const EMPTY_NAME: &str = r"\0";

const RED: &str = "\x1b[31m";
const YELLOW: &str = "\x1b[33m";
const PLAIN: &str = "\x1b[0m";

/// Makes a terminal cut long lines off, and wrap them again.
pub(super) const NO_WRAP: &str = "\x1b[?7l";
pub(super) const WRAP: &str = "\x1b[?7h";

pub(super) struct TableRender {
    options: Options,
    began: bool,
    /// Number of lines on the terminal that the next output replaces.
    drawn: usize,
}

impl TableRender {
    pub(super) fn new(options: Options) -> Self {
        Self {
            options,
            began: false,
            drawn: 0,
        }
    }

    /// The escape sequence that erases the lines to be replaced. Empty if there are none.
    fn erased(&mut self) -> String {
        match std::mem::take(&mut self.drawn) {
            0 => String::new(),
            lines => format!("\x1b[{lines}F\x1b[J"),
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

impl Render for TableRender {
    fn image(&mut self, image: &Image, verdict: Option<Verdict>) -> io::Result<Vec<u8>> {
        let ended = matches!(image.end, End::Exited(_) | End::Signaled { .. });
        if !ended && self.options.verbosity != Verbosity::Verbose {
            return Ok(Vec::new());
        }
        let mut lines = String::new();
        if !self.began {
            self.began = true;
            lines.push_str(&row(COLUMNS, names(COLUMNS)));
            lines.push('\n');
        }
        let [uid, user, pid, comm, total] = first_cells(image);
        let leaked = megabytes(image.counters.leaked_bytes);
        let cells = [
            uid,
            user,
            pid,
            comm,
            total,
            leaked,
            exit(image.end),
            note(image),
        ];
        let row = row(COLUMNS, cells);
        lines.push_str(&self.painted(row, verdict.filter(|verdict| *verdict == Verdict::Failed)));
        lines.push('\n');
        Ok(lines.into_bytes())
    }

    fn summary(&mut self, summary: &Summary) -> io::Result<Vec<u8>> {
        // The command never ran. The error that memleak printed is sufficient.
        if matches!(summary.outcome, Outcome::ExecError(_) | Outcome::ToolError)
            && summary.processes == 0
        {
            return Ok(Vec::new());
        }
        // A watch only prints its windows.
        if summary.outcome == Outcome::Watched {
            return Ok(Vec::new());
        }
        let gate = summary
            .gate
            .as_ref()
            .map(|gate| self.painted(gate.to_string(), Some(gate.verdict())));
        let line = match self.options.verbosity {
            Verbosity::Quiet => gate.into_iter().chain(lost(summary)).collect(),
            Verbosity::Normal | Verbosity::Verbose => clauses(summary, gate),
        };
        Ok(format!("memleak: {}\n", line.join("; ")).into_bytes())
    }

    fn window(&mut self, window: &Window) -> io::Result<Vec<u8>> {
        let shown = |image: &&Image| match image.end {
            End::Exited(_) | End::Signaled { .. } => true,
            End::Exec | End::Running => self.options.verbosity == Verbosity::Verbose,
        };
        let images: Vec<&Image> = window.images.iter().filter(shown).collect();
        if images.is_empty() {
            return Ok(Vec::new());
        }
        let mut lines = self.erased();
        lines.push_str(&format!(
            "[{} - {}] Report Of Memory Allocation Of Process Finished In The Time Window\n",
            window.start.as_secs(),
            window.end.as_secs()
        ));
        let mut heading = names(WINDOW_COLUMNS);
        if images.iter().all(|image| note(image).is_empty())
            && let Some(note) = heading.last_mut()
        {
            note.clear();
        }
        let rows = images.iter().map(|image| {
            let [uid, user, pid, comm, total] = first_cells(image);
            let leaked = megabytes(image.counters.leaked_bytes);
            [uid, user, pid, comm, total, leaked, note(image)]
        });
        for cells in std::iter::once(heading).chain(rows) {
            lines.push_str(&row(WINDOW_COLUMNS, cells));
            lines.push('\n');
        }
        Ok(lines.into_bytes())
    }

    fn live(&mut self, live: &Live) -> io::Result<Vec<u8>> {
        let mut block = format!(
            "[{}] Memory Of Running Processes, Growth Since {}\n",
            live.time.as_secs(),
            live.since.as_secs()
        );
        let rows = live.rows.iter().map(|Growing { image, growth }| {
            let [uid, user, pid, comm, total] = first_cells(image);
            let held = megabytes(image.counters.leaked_bytes);
            let sign = if *growth < 0 { "-" } else { "" };
            let growth = format!("{sign}{}", megabytes(growth.unsigned_abs()));
            let age = age(live.time.saturating_sub(image.start_time));
            [uid, user, pid, comm, total, held, growth, age, note(image)]
        });
        for cells in std::iter::once(names(LIVE_COLUMNS)).chain(rows) {
            block.push_str(&row(LIVE_COLUMNS, cells));
            block.push('\n');
        }
        if live.more > 0 {
            let more = counted(live.more as u64, "more process", "more processes");
            block.push_str(&format!("and {more}\n"));
        }
        if !self.options.refresh {
            return Ok(block.into_bytes());
        }
        let erased = self.erased();
        self.drawn = block.lines().count();
        Ok(format!("{erased}{NO_WRAP}{block}{WRAP}").into_bytes())
    }
}

/// The closing line without colours. It does not depend on the report's format.
pub fn closing_line(summary: &Summary) -> String {
    clauses(summary, summary.gate.as_ref().map(ToString::to_string)).join("; ")
}

fn clauses(summary: &Summary, gate: Option<String>) -> Vec<String> {
    let mut clauses = vec![sums(summary)];
    clauses.extend(gate);
    clauses.extend(lost(summary));
    clauses.extend(running(summary));
    clauses
}

fn names<const N: usize>(columns: [(&str, u16); N]) -> [String; N] {
    columns.map(|(name, _)| name.to_owned())
}

/// The cells of the columns with which every table begins.
fn first_cells(image: &Image) -> [String; 5] {
    let user = image.user.as_ref();
    [
        image.uid.to_string(),
        user.map_or_else(|| image.uid.to_string(), |user| name(user.as_bytes())),
        image.pid.to_string(),
        name(&image.comm),
        megabytes(image.counters.total_allocs_bytes),
    ]
}

fn row<const N: usize>(columns: [(&str, u16); N], cells: [String; N]) -> String {
    let mut table = comfy_table::Table::new();
    table.load_style(NOTHING);
    table.add_row(cells);
    for (column, (_, width)) in table.column_iter_mut().zip(columns) {
        // The space between columns is padding. A constraint includes the padding.
        column.set_padding((0, 1));
        column.set_constraint(ColumnConstraint::LowerBoundary(Width::Fixed(width + 1)));
    }
    table.trim_fmt()
}

/// A time in its two largest units: `12s`, `3m12s`, `4h05m`, `2d03h`.
fn age(age: Duration) -> String {
    let seconds = age.as_secs();
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    if days > 0 {
        format!("{days}d{:02}h", hours % 24)
    } else if hours > 0 {
        format!("{hours}h{:02}m", minutes % 60)
    } else if minutes > 0 {
        format!("{minutes}m{:02}s", seconds % 60)
    } else {
        format!("{seconds}s")
    }
}

fn name(name: &[u8]) -> String {
    if name.is_empty() {
        EMPTY_NAME.to_owned()
    } else {
        escape::escaped(name)
    }
}

fn exit(end: End) -> String {
    match end {
        End::Exited(code) => code.to_string(),
        End::Signaled { signal, .. } => signal_name(signal).into_owned(),
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
        notes.push("since attach".to_owned());
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
