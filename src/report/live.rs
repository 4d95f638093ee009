//! The table of running processes on a terminal. It is drawn again and again, and fits the terminal: columns that have
//! no room are left out, and no cell is cut.

use unicode_width::UnicodeWidthStr as _;

use crate::model::live::{Growing, Live};
use crate::model::reach::Amount;
use crate::report::cells::{
    age, args, container, cut, first_cells, in_blocks, job, name, note, signed_megabytes,
};
use crate::report::places::frame_lines;
use crate::report::render::Screen;
use crate::text::units::{counted, grouped, megabytes};

/// The most frames of a place where a process has grown.
const FEW_FRAMES: usize = 8;

/// The space between two columns.
const GAP: usize = 2;

/// A column, in the order in which columns are shown.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Column {
    Uid,
    User,
    Pid,
    Comm,
    Total,
    Held,
    Growth,
    Rate,
    Age,
    Job,
    Container,
    Note,
    Args,
}

/// How many columns there are.
const COUNT: usize = COLUMNS.len();

const COLUMNS: [Column; 13] = [
    Column::Uid,
    Column::User,
    Column::Pid,
    Column::Comm,
    Column::Total,
    Column::Held,
    Column::Growth,
    Column::Rate,
    Column::Age,
    Column::Job,
    Column::Container,
    Column::Note,
    Column::Args,
];

/// The columns that are there only if something is in them.
const OPTIONAL: [Column; 4] = [Column::Job, Column::Container, Column::Note, Column::Args];

/// The columns that may be left out, the least important first.
const EXPENDABLE: [Column; 10] = [
    Column::Args,
    Column::Note,
    Column::Total,
    Column::Uid,
    Column::Rate,
    Column::Age,
    Column::Container,
    Column::Job,
    Column::User,
    Column::Growth,
];

impl Column {
    /// The width that the column has at least, so that it rarely moves from one drawing to the next.
    fn least_width(self) -> usize {
        match self {
            Self::Uid => 10,
            Self::User | Self::Growth => 8,
            Self::Pid => 7,
            Self::Comm | Self::Total => 15,
            Self::Held => 9,
            Self::Rate => 5,
            Self::Age => 6,
            Self::Job => 8,
            Self::Container => 12,
            Self::Note | Self::Args => 0,
        }
    }

    fn is_figure(self) -> bool {
        matches!(
            self,
            Self::Total | Self::Held | Self::Growth | Self::Rate | Self::Age
        )
    }
}

/// The lines of the table. Lines that are longer than the screen is wide remain only if not even the most important
/// columns fit.
pub(super) fn lines(live: &Live, screen: &Screen) -> Vec<String> {
    // Beside the rows: two headings, the line that counts the others, and the line of the cursor.
    let room = screen.lines.saturating_sub(4).max(1);
    let shown = &live.rows[..live.rows.len().min(room)];
    let more = live.rest.len() + live.rows.len() - shown.len();
    let mut lines = vec![heading(live, screen)];
    let names = names(live);
    let rows = shown.iter().map(|row| {
        let mut cells = cells(row, live);
        let comm = &mut cells[Column::Comm as usize];
        *comm = capped(std::mem::take(comm));
        cells
    });
    let table: Vec<[String; COUNT]> = std::iter::once(names).chain(rows).collect();
    lines.extend(fitted(&table, screen.columns));
    if more > 0 {
        let more = counted(more as u64, "more process", "more processes");
        lines.push(format!("and {more}"));
    }
    // One line is left for the cursor.
    let room = screen.lines.saturating_sub(1);
    for block in growth_blocks(live) {
        if lines.len() + block.len() > room {
            break;
        }
        let block = block.into_iter();
        lines.extend(block.map(|line| cut(line, screen.columns)));
    }
    lines
}

/// A block of lines for each place where the processes have grown that grew most, or hold old blocks. An empty line is
/// before each.
pub(super) fn growth_blocks(live: &Live) -> Vec<Vec<String>> {
    let mut blocks = Vec::new();
    for row in &live.rows {
        for place in &row.places {
            let held = in_blocks(Amount {
                bytes: place.share.leaked_bytes,
                blocks: place.share.leaked_blocks,
            });
            let of = format!("{}[{}]", name(&row.image.comm), row.image.pid);
            let head = match (live.older, u64::try_from(place.growth)) {
                (Some(older), _) => {
                    format!("HOLDS {held} for {} s or longer, {of}", older.as_secs_f64())
                }
                (None, Ok(0) | Err(_)) => format!("HOLDS {held}, {of}"),
                (None, Ok(growth)) => format!("GREW by {} bytes to {held}, {of}", grouped(growth)),
            };
            let mut block = vec![String::new(), head];
            let frames = frame_lines(&place.stack, FEW_FRAMES, None);
            block.extend(frames.into_iter().map(|line| format!("    {line}")));
            blocks.push(block);
        }
    }
    blocks
}

/// What the whole is about: `14:02:10  memleak -a 5  142 processes  812.400 MB live  +1.200 MB  Ctrl-C ends`. Parts that
/// have no room are left out.
fn heading(live: &Live, screen: &Screen) -> String {
    let processes = live.rows.len() + live.rest.len();
    let parts = [
        screen.time_of_day.clone(),
        screen.command.clone(),
        counted(processes as u64, "process", "processes"),
        format!("{} MB live", megabytes(live.held_bytes)),
        format!("{} MB", plus_or_minus(live.growth_bytes)),
        "Ctrl-C ends".to_owned(),
    ];
    // By their index, the least important first.
    let mut kept = [true; 6];
    let length = |kept: &[bool; 6]| {
        let widths = parts.iter().zip(kept).filter(|(_, kept)| **kept);
        let widths: Vec<usize> = widths.map(|(part, _)| part.width()).collect();
        widths.iter().sum::<usize>() + GAP * widths.len().saturating_sub(1)
    };
    for part in [5, 1, 4, 2, 0] {
        if length(&kept) <= screen.columns {
            break;
        }
        kept[part] = false;
    }
    let kept = parts.into_iter().zip(kept).filter(|(_, kept)| *kept);
    kept.map(|(part, _)| part).collect::<Vec<_>>().join("  ")
}

fn plus_or_minus(growth: i64) -> String {
    let plus = if growth < 0 { "" } else { "+" };
    format!("{plus}{}", signed_megabytes(growth))
}

fn names(live: &Live) -> [String; COUNT] {
    let period = live.time.saturating_sub(live.since).as_secs_f64();
    let tenths = (period * 10.0).round() / 10.0;
    let growth = format!("+{tenths}s_MB");
    [
        "UID",
        "USER",
        "PID",
        "COMM",
        "TOTAL_ALLOCS_MB",
        "LIVE_MB",
        &growth,
        "MB/h",
        "AGE",
        "JOB",
        "CONTAINER",
        "NOTE",
        "ARGS",
    ]
    .map(str::to_owned)
}

pub(super) fn cells(row: &Growing, live: &Live) -> [String; COUNT] {
    let image = &row.image;
    let [uid, user, pid, comm, total] = first_cells(image);
    let held = megabytes(image.counters.leaked_bytes);
    let age = age(live.time.saturating_sub(image.start_time));
    let growth = signed_megabytes(row.growth);
    let rate = rate(row.rate);
    let (job, container) = (job(image), container(image));
    let (note, args) = (note(image, false), args(image));
    [
        uid, user, pid, comm, total, held, growth, rate, age, job, container, note, args,
    ]
}

/// Megabytes an hour. `–` if nothing is known yet.
fn rate(bytes: Option<u64>) -> String {
    match bytes {
        None => "\u{2013}".to_owned(),
        Some(0) => "0".to_owned(),
        #[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
        Some(bytes) => match bytes as f64 / 1e6 {
            rate if rate < 9.995 => format!("{rate:.2}"),
            rate => format!("{rate:.0}"),
        },
    }
}

/// A name that takes no more room than the column has. Only a name of characters that are escaped is longer.
fn capped(name: String) -> String {
    cut(name, Column::Comm.least_width())
}

/// The lines of a table, the headings first, without the columns that have no room.
fn fitted(table: &[[String; COUNT]], columns: usize) -> Vec<String> {
    let widths: Vec<usize> = (COLUMNS.iter().enumerate())
        .map(|(at, column)| {
            let cells = table.iter().map(|row| row[at].width());
            cells.max().unwrap_or(0).max(column.least_width())
        })
        .collect();
    let is_empty = |at: usize| table.iter().skip(1).all(|row| row[at].is_empty());
    let mut kept: Vec<usize> = (0..COLUMNS.len())
        .filter(|at| !OPTIONAL.contains(&COLUMNS[*at]) || !is_empty(*at))
        .collect();
    for expendable in EXPENDABLE {
        let needed = kept.iter().map(|at| widths[*at] + GAP).sum::<usize>() - GAP;
        if needed <= columns {
            break;
        }
        kept.retain(|at| COLUMNS[*at] != expendable);
    }
    table
        .iter()
        .map(|row| {
            let mut line = String::new();
            for &at in &kept {
                let pad = " ".repeat(widths[at] - row[at].width());
                let (before, after) = match COLUMNS[at].is_figure() {
                    true => (&*pad, ""),
                    false => ("", &*pad),
                };
                if !line.is_empty() {
                    line.push_str(&" ".repeat(GAP));
                }
                line.extend([before, &row[at], after]);
            }
            line.truncate(line.trim_end().len());
            line
        })
        .collect()
}
