//! The table, for people and for awk: one row per line, columns separated by spaces.

use std::io;

use comfy_table::presets::NOTHING;
use comfy_table::{ColumnConstraint, Width};

use crate::model::bounds::Verdict;
use crate::model::commands;
use crate::model::exit::Outcome;
use crate::model::grouping::Grouped;
use crate::model::image::{End, Image};
use crate::model::ledger::Summary;
use crate::model::live::Live;
use crate::model::places::Located;
use crate::report::blocks;
use crate::report::cells::{args, container, first_cells, job, lost, note, verbose_note};
use crate::report::closing::{clauses, hint, reach_lines, stack_lines, verdict};
use crate::report::compared::baseline_lines;
use crate::report::live;
use crate::report::places::place_lines;
use crate::report::render::{Options, Render, Screen, Verbosity, Window};
use crate::text::signal_name::signal_name;
use crate::text::units::{counted, megabytes};

/// The columns with their minimum widths. Names and order of the first six are fixed. A longer value only widens its
/// own row. Later rows are not known when the header is written, so no column depends on the contents of the rows.
/// LOST_MB is only there if processes may have been scanned, LEAK_BLOCKS with -v, and ARGS with --args.
const COLUMNS: [(&str, u16); 11] = [
    UID,
    USER,
    PID,
    COMM,
    TOTAL,
    LEAK,
    LOST,
    BLOCKS,
    ("EXIT", 9),
    NOTE,
    ARGS,
];

/// The columns of a window. JOB and CONTAINER are only there if a process of the window has one, and so it is with those
/// that run. The last column has no heading if nothing is in it.
const WINDOW_COLUMNS: [(&str, u16); 12] = [
    UID, USER, PID, COMM, TOTAL, LEAK, LOST, BLOCKS, JOB, CONTAINER, NOTE, ARGS,
];

/// The columns of the running processes.
const LIVE_COLUMNS: [(&str, u16); 13] = [
    UID,
    USER,
    PID,
    COMM,
    TOTAL,
    ("LIVE_MB", 11),
    ("GROWTH_MB", 11),
    ("MB/h", 7),
    ("AGE", 7),
    JOB,
    CONTAINER,
    NOTE,
    ARGS,
];

const UID: (&str, u16) = ("UID", 8);
const USER: (&str, u16) = ("USER", 12);
const PID: (&str, u16) = ("PID", 6);
const COMM: (&str, u16) = ("COMM", 16);
const TOTAL: (&str, u16) = ("TOTAL_ALLOCS_MB", 15);
const LEAK: (&str, u16) = ("MEM_LEAK_MB", 11);
const LOST: (&str, u16) = ("LOST_MB", 8);
const BLOCKS: (&str, u16) = ("LEAK_BLOCKS", 11);
const JOB: (&str, u16) = ("JOB", 8);
const CONTAINER: (&str, u16) = ("CONTAINER", 12);
const NOTE: (&str, u16) = ("NOTE", 0);
const ARGS: (&str, u16) = ("ARGS", 0);

/// From how many processes on the table ends with a block by command, and how many commands it has at the most.
const MANY_PROCESSES: u64 = 10;
const MOST_COMMANDS: usize = 20;

const RED: &str = "\x1b[31m";
const YELLOW: &str = "\x1b[33m";
const PLAIN: &str = "\x1b[0m";

/// Makes a terminal cut long lines off, and wrap them again. Only lines that cannot be made to fit are cut.
pub(super) const NO_WRAP: &str = "\x1b[?7l";
pub(super) const WRAP: &str = "\x1b[?7h";

pub(super) struct TableRender {
    options: Options,
    began: bool,
    /// Whether groups were shown.
    is_grouped: bool,
    /// Number of lines on the terminal that the next output replaces.
    drawn: usize,
    /// The terminal's columns and lines when they were drawn.
    size: Option<(usize, usize)>,
}

impl TableRender {
    pub(super) fn new(options: Options) -> Self {
        Self {
            options,
            began: false,
            is_grouped: false,
            drawn: 0,
            size: None,
        }
    }

    /// Draws lines in place of those that were drawn before.
    fn draw(&mut self, lines: &[String], screen: &Screen) -> Vec<u8> {
        let size = (screen.columns, screen.lines);
        let is_resized = self.size.is_some_and(|before| before != size);
        self.size = Some(size);
        let erased = match is_resized {
            // The terminal may have wrapped or moved the old lines, so nobody knows where they are. What is on the screen
            // scrolls out of it, because the rows of processes that have ended come only once.
            true => {
                let lines = screen.lines;
                format!("\x1b[{lines}H{}\x1b[H\x1b[J", "\n".repeat(lines))
            }
            false => self.erased(),
        };
        self.drawn = lines.len();
        let block = lines.join("\n");
        format!("{erased}{NO_WRAP}{block}\n{WRAP}").into_bytes()
    }

    /// The escape sequence that erases the lines to be replaced. Empty if there are none.
    fn erased(&mut self) -> String {
        match std::mem::take(&mut self.drawn) {
            0 => String::new(),
            lines => format!("\x1b[{lines}F\x1b[J"),
        }
    }

    /// One row. A longer cell widens it.
    fn row<const N: usize>(&self, columns: [(&str, u16); N], cells: [String; N]) -> String {
        self.row_without(&[], columns, cells)
    }

    /// The same, without the columns that nothing is in.
    fn row_without<const N: usize>(
        &self,
        empty: &[(&str, u16)],
        columns: [(&str, u16); N],
        cells: [String; N],
    ) -> String {
        let verbose = self.options.verbosity == Verbosity::Verbose;
        let shown = |column: &(&str, u16)| {
            !empty.contains(column)
                && (*column != BLOCKS || verbose)
                && (*column != ARGS || self.options.args)
                && (*column != LOST || self.options.lost)
        };
        let mut table = comfy_table::Table::new();
        table.load_style(NOTHING);
        // With another column behind it, an empty note would shift that.
        let filled = |(column, cell): (&(&str, u16), String)| match cell.is_empty() {
            true if *column == NOTE && self.options.args => "-".to_owned(),
            true if [JOB, CONTAINER].contains(column) => "-".to_owned(),
            _ => cell,
        };
        let cells = columns
            .iter()
            .zip(cells)
            .filter(|(column, _)| shown(column));
        table.add_row(cells.map(filled));
        let columns = columns.iter().filter(|column| shown(column));
        for (column, (_, width)) in table.column_iter_mut().zip(columns) {
            // The space between columns is padding. A constraint includes the padding.
            column.set_padding((0, 1));
            column.set_constraint(ColumnConstraint::LowerBoundary(Width::Fixed(width + 1)));
        }
        table.trim_fmt()
    }

    /// The processes by command, if there are many processes.
    fn by_command(&self, summary: &Summary) -> String {
        if summary.processes < MANY_PROCESSES || self.is_grouped {
            return String::new();
        }
        let mut commands = summary.commands.clone();
        commands::sort(&mut commands, self.options.order, |command| command);
        let more = commands.len().saturating_sub(MOST_COMMANDS);
        commands.truncate(MOST_COMMANDS);
        let mut lines = format!(
            "\n{}",
            blocks::commands(self.options, &commands, summary.has_several_hosts)
        );
        if more > 0 {
            let more = counted(more as u64, "more command", "more commands");
            lines.push_str(&format!("and {more}\n"));
        }
        lines
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
        if !self.options.verbosity.shows(image.end) {
            return Ok(Vec::new());
        }
        let mut lines = String::new();
        if !self.began {
            self.began = true;
            lines.push_str(&self.row(COLUMNS, names(COLUMNS)));
            lines.push('\n');
        }
        let [uid, user, pid, comm, total] = first_cells(image);
        let [leaked, lost, blocks] = leak_cells(image);
        let note = match self.options.verbosity {
            Verbosity::Verbose => verbose_note(image, self.options.lost),
            Verbosity::Normal | Verbosity::Quiet => note(image, self.options.lost),
        };
        let exit = exit(image.end);
        let args = args(image);
        let cells = [
            uid, user, pid, comm, total, leaked, lost, blocks, exit, note, args,
        ];
        let row = self.row(COLUMNS, cells);
        lines.push_str(&self.painted(row, verdict.filter(|verdict| *verdict == Verdict::Failed)));
        lines.push('\n');
        Ok(lines.into_bytes())
    }

    fn groups(&mut self, grouped: &Grouped) -> io::Result<Vec<u8>> {
        self.is_grouped = true;
        let mut lines = blocks::groups(self.options, grouped);
        lines.push_str(&blocks::spreads(self.options, grouped));
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
        if self.options.verbosity == Verbosity::Quiet {
            let line = gate.map(|gate| verdict(summary, gate).join("; "));
            let line = line.map(|line| format!("memleak: {line}\n"));
            return Ok(line.unwrap_or_default().into_bytes());
        }
        let mut lines = self.by_command(summary);
        let located = summary.located.as_ref();
        let places = located.map(|located| place_lines(located, summary.processes == 1));
        lines.push_str(places.as_deref().unwrap_or_default());
        let mut below = match self.options.lost {
            true => reach_lines(summary),
            false => Vec::new(),
        };
        let verbose = self.options.verbosity == Verbosity::Verbose;
        below.extend(
            located
                .into_iter()
                .flat_map(|located| stack_lines(located, verbose)),
        );
        for (at, line) in below.iter().enumerate() {
            let gap = if at == 0 { "\n" } else { "" };
            lines.push_str(&format!("{gap}{line}\n"));
        }
        for text in located.iter().flat_map(|located| &located.generated) {
            lines.push_str(&format!("\n{text}"));
        }
        if places.is_some_and(|places| !places.is_empty()) {
            lines.push('\n');
        }
        if let Some(compared) = &summary.baseline {
            let text = baseline_lines(compared).join("\n");
            let gap = if lines.ends_with("\n\n") { "" } else { "\n" };
            lines.push_str(&format!("{gap}{text}\n\n"));
        }
        for line in clauses(summary, gate, self.options.lost) {
            lines.push_str(&format!("memleak: {line}\n"));
        }
        if let Some(hint) = hint(summary, self.options) {
            lines.push_str(&format!("memleak: {hint}\n"));
        }
        Ok(lines.into_bytes())
    }

    fn window(&mut self, window: &Window) -> io::Result<Vec<u8>> {
        let shown = |image: &&Image| self.options.verbosity.shows(image.end);
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
        if !self.options.args
            && images
                .iter()
                .all(|image| note(image, self.options.lost).is_empty())
        {
            let notes = heading.iter_mut().filter(|name| *name == NOTE.0);
            notes.for_each(String::clear);
        }
        let rows = images.iter().map(|image| {
            let [uid, user, pid, comm, total] = first_cells(image);
            let [leaked, lost, blocks] = leak_cells(image);
            [
                uid,
                user,
                pid,
                comm,
                total,
                leaked,
                lost,
                blocks,
                job(image),
                container(image),
                note(image, self.options.lost),
                args(image),
            ]
        });
        let empty = nowhere(images.iter().copied());
        for cells in std::iter::once(heading).chain(rows) {
            lines.push_str(&self.row_without(&empty, WINDOW_COLUMNS, cells));
            lines.push('\n');
        }
        Ok(lines.into_bytes())
    }

    fn places(&mut self, located: &Located, alone: bool) -> io::Result<Vec<u8>> {
        let mut lines = place_lines(located, alone);
        let below = stack_lines(located, false);
        if !below.is_empty() {
            lines.push_str(&format!("\n{}\n", below.join("\n")));
        }
        if !lines.is_empty() {
            lines = format!("{}{lines}\n", self.erased());
        }
        Ok(lines.into_bytes())
    }

    fn live(&mut self, live: &Live, screen: Option<&Screen>) -> io::Result<Vec<u8>> {
        if let Some(screen) = screen.filter(|_| self.options.refresh) {
            return Ok(self.draw(&live::lines(live, screen), screen));
        }
        let mut block = format!(
            "[{}] Memory Of Running Processes, Growth Since {}\n",
            live.time.as_secs(),
            live.since.as_secs()
        );
        let empty = nowhere(live.rows.iter().map(|row| &row.image));
        let rows = live.rows.iter().map(|row| live::cells(row, live));
        for cells in std::iter::once(names(LIVE_COLUMNS)).chain(rows) {
            block.push_str(&self.row_without(&empty, LIVE_COLUMNS, cells));
            block.push('\n');
        }
        if !live.rest.is_empty() {
            let more = counted(live.rest.len() as u64, "more process", "more processes");
            block.push_str(&format!("and {more}\n"));
        }
        let blocks = live::growth_blocks(live);
        let end = (!blocks.is_empty()).then(String::new);
        for line in blocks.concat().into_iter().chain(end) {
            block.push_str(&line);
            block.push('\n');
        }
        Ok(block.into_bytes())
    }
}

fn names<const N: usize>(columns: [(&str, u16); N]) -> [String; N] {
    columns.map(|(name, _)| name.to_owned())
}

/// Those of the columns JOB and CONTAINER that would be empty.
fn nowhere<'a>(images: impl Iterator<Item = &'a Image> + Clone) -> Vec<(&'static str, u16)> {
    let is_empty = |cell: fn(&Image) -> String| {
        let mut images = images.clone();
        images.all(|image| cell(image).is_empty())
    };
    [(JOB, is_empty(job)), (CONTAINER, is_empty(container))]
        .into_iter()
        .filter_map(|(column, is_empty)| is_empty.then_some(column))
        .collect()
}

/// The cells of a leak: megabytes, those that were lost, and blocks.
fn leak_cells(image: &Image) -> [String; 3] {
    let counters = &image.counters;
    [
        megabytes(counters.leaked_bytes),
        lost(image),
        counters.leaked_blocks.to_string(),
    ]
}

fn exit(end: End) -> String {
    match end {
        End::Exited(code) => code.to_string(),
        End::Signaled { signal, .. } => signal_name(signal).into_owned(),
        End::Exec => "exec".to_owned(),
        End::Running => "running".to_owned(),
    }
}
