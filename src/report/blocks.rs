//! The blocks of a table that add processes up: by command, by what `--by` says, and the spread of that over ranks and
//! nodes. They fit on 80 columns as far as their figures leave room for that.

use std::sync::Arc;

use unicode_width::UnicodeWidthStr as _;

use crate::model::commands::{Command, Worst};
use crate::model::grouping::{Grouped, Grouping, JobRank};
use crate::model::lost::LostSum;
use crate::model::spread::{PartSpread, Spread};
use crate::report::cells::{UNKNOWN, cut, cut_front, name};
use crate::report::render::{Options, Verbosity};
use crate::report::words::grouping_name;
use crate::text::units::megabytes;

const NARROW: usize = 80;

/// The width of a column of names in which command names have room.
const SHORT_NAME: usize = 16;

/// The widest column of processes, unless all is whole: with it, the other figures and a short name fit on 80 columns.
const WORST_PID: usize = 16;

/// Stands for what is not there.
const NOTHING: &str = "\u{2013}";

/// Stands for the groups for which there was no room, and for all of them.
const OTHERS: &str = "(others)";
const ALL: &str = "(all)";

/// A line for each command. `with_hosts`: processes are named with their machines.
pub(super) fn commands(options: Options, commands: &[Command], with_hosts: bool) -> String {
    let rows = commands.iter().map(|command| (None, command));
    block(options, None, rows.collect(), with_hosts)
}

/// A line for each group.
pub(super) fn groups(options: Options, grouped: &Grouped) -> String {
    let by = grouped.by;
    let rows = grouped.groups.iter();
    let rows = rows.map(|group| (group.job.as_deref(), &group.sums));
    let rows = rows.map(|(job, sums)| (job.filter(|_| grouped.has_several_jobs), sums));
    let with_hosts = grouped.has_several_nodes() && by != Grouping::Node;
    block(options, Some(by), rows.collect(), with_hosts)
}

/// A line for each command or group, under a heading. The figures are aligned at the right.
fn block(
    options: Options,
    by: Option<Grouping>,
    commands: Vec<(Option<&str>, &Command)>,
    with_hosts: bool,
) -> String {
    let verbose = options.verbosity == Verbosity::Verbose;
    let mut heading = vec!["PROCESSES", "ALLOCS_MB", "LEAK_MB"];
    let mut widths = vec![9, 11, 11];
    if options.lost {
        heading.push("LOST_MB");
        widths.push(11);
    }
    if verbose {
        heading.push("LEAK_BLOCKS");
        widths.push(11);
    }
    // A stack has no process that is its worst.
    let has_worst = !by.is_some_and(Grouping::is_of_stacks);
    if has_worst {
        heading.push("WORST_PID");
    }
    let what = by.map_or_else(|| "COMMAND".to_owned(), heading_of);
    let mut rows = vec![(what, heading.into_iter().map(str::to_owned).collect())];
    for (job, command) in commands {
        let mut figures = vec![
            command.processes.to_string(),
            megabytes(command.total_allocs_bytes),
            megabytes(command.leaked_bytes),
        ];
        if options.lost {
            figures.push(lost_sum(&command.lost));
        }
        if verbose {
            figures.push(command.leaked_blocks.to_string());
        }
        if has_worst {
            let worst = match options.lost && command.lost.is_known() {
                true => &command.worst_lost,
                false => &command.worst,
            };
            figures.push(process(worst.as_ref(), with_hosts, verbose));
        }
        rows.push((group_name(job, command), figures));
    }
    if has_worst {
        let cells = rows
            .iter()
            .filter_map(|(_, figures): &(_, Vec<String>)| figures.last());
        widths.push(cells.map(|cell| cell.width()).max().unwrap_or_default());
    }
    let figures = |cells: Vec<String>| -> String {
        let cells = cells.iter().zip(&widths);
        cells.map(|(cell, width)| aligned(cell, *width)).collect()
    };
    let rows = rows.into_iter().map(|(name, cells)| (name, figures(cells)));
    lines(rows.collect(), by, verbose)
}

/// How what leaked is spread over ranks and nodes, where there is more than one. What was lost, if that is known. Empty if
/// there is nothing to spread.
pub(super) fn spreads(options: Options, grouped: &Grouped) -> String {
    let Some(all) = &grouped.all else {
        return String::new();
    };
    let verbose = options.verbosity == Verbosity::Verbose;
    let lost = options.lost
        && grouped
            .groups
            .iter()
            .all(|group| group.sums.lost.is_known());
    let heading = match lost {
        true => ["OF", "COUNT", "MIN_LOST_MB", "MEDIAN_MB", "MAX_MB", "WORST"],
        false => ["OF", "COUNT", "MIN_LEAK_MB", "MEDIAN_MB", "MAX_MB", "WORST"],
    };
    let [what, total] = [heading_of(grouped.by), ALL.to_owned()];
    let mut rows = vec![(what, spread_line(heading.map(str::to_owned), verbose))];
    let several = (grouped.groups.len() > 1).then_some((total, all, true));
    let groups = grouped.groups.iter().map(|group| {
        let job = group.job.as_deref().filter(|_| grouped.has_several_jobs);
        let is_other = group.sums.comm.is_none();
        (group_name(job, &group.sums), group, is_other)
    });
    for (name, group, is_mixed) in groups.chain(several) {
        let with_job = grouped.has_several_jobs && (is_mixed || grouped.by != Grouping::Job);
        let rank = |rank: &JobRank| rank_name(rank, with_job);
        let node = |node: &Arc<str>| self::name(node.as_bytes());
        for cells in [
            spread_cells("rank", group.ranks.as_ref(), lost, rank),
            spread_cells("node", group.nodes.as_ref(), lost, node),
        ] {
            rows.extend(cells.map(|cells| (name.clone(), spread_line(cells, verbose))));
        }
    }
    match rows.len() {
        1 => String::new(),
        _ => format!("\n{}", lines(rows, Some(grouped.by), verbose)),
    }
}

/// The cells of a spread. `None` without several parts.
fn spread_cells<K>(
    of: &str,
    parts: Option<&PartSpread<K>>,
    lost: bool,
    name: impl Fn(&K) -> String,
) -> Option<[String; 6]> {
    let parts = parts.filter(|parts| parts.parts > 1)?;
    let Spread { least, max, worst } = match lost {
        true => &parts.lost,
        false => &parts.leaked,
    };
    let at_least = if parts.is_partial { "\u{2265}" } else { "" };
    let [min, median] = match least {
        Some((min, median)) => [megabytes(*min), megabytes(*median)],
        None => [UNKNOWN, UNKNOWN].map(str::to_owned),
    };
    Some([
        of.to_owned(),
        format!("{at_least}{}", parts.parts),
        min,
        median,
        megabytes(*max),
        worst.as_ref().map_or_else(|| NOTHING.to_owned(), name),
    ])
}

fn spread_line([of, count, min, median, max, worst]: [String; 6], verbose: bool) -> String {
    let figures = [(count, 7), (min, 11), (median, 11), (max, 11)];
    let figures = figures.map(|(cell, width)| aligned(&cell, width));
    let mut line = format!(" {of:<4}{}", figures.concat());
    let room = (NARROW - SHORT_NAME).saturating_sub(line.width() + 1);
    let worst = if verbose { worst } else { cut(worst, room) };
    line.push_str(&format!(" {worst}"));
    line
}

/// Names and what is behind them, in columns.
fn lines(rows: Vec<(String, String)>, by: Option<Grouping>, verbose: bool) -> String {
    let longest = |part: fn(&(String, String)) -> &String| {
        let widths = rows.iter().map(|row| part(row).width());
        widths.max().unwrap_or_default()
    };
    let room = NARROW.saturating_sub(longest(|(_, figures)| figures));
    let column = match by {
        None => SHORT_NAME,
        Some(_) => longest(|(name, _)| name).clamp(SHORT_NAME, room.max(SHORT_NAME)),
    };
    let mut lines = String::new();
    for (name, figures) in rows {
        let name = match (verbose, by) {
            // Whole names, which move the figures of their own rows.
            (true, _) | (_, None) => name,
            (_, Some(Grouping::File)) => cut_front(name, column),
            (_, Some(_)) => cut(name, column),
        };
        // Names may have wide characters, which the padding of format! would count as one column.
        let pad = " ".repeat(column.saturating_sub(name.width()));
        lines.push_str(&format!("{name}{pad}{figures}\n"));
    }
    lines
}

fn aligned(cell: &str, width: usize) -> String {
    format!(" {}{cell}", " ".repeat(width.saturating_sub(cell.width())))
}

fn heading_of(by: Grouping) -> String {
    grouping_name(by).to_uppercase()
}

/// The name of a command or group. That of a rank with the job, if there are several: `1234/7`.
fn group_name(job: Option<&str>, command: &Command) -> String {
    let own = command.comm.as_deref();
    let own = own.map_or_else(|| OTHERS.to_owned(), name);
    match job {
        Some(job) => format!("{}/{own}", name(job.as_bytes())),
        None => own,
    }
}

fn rank_name(rank: &JobRank, with_job: bool) -> String {
    match &rank.job {
        Some(job) if with_job => format!("{}/{}", name(job.as_bytes()), rank.rank),
        _ => rank.rank.to_string(),
    }
}

/// A process: its pid, with its machine as `4711@n17`.
fn process(worst: Option<&Worst>, with_host: bool, verbose: bool) -> String {
    let Some(worst) = worst else {
        return NOTHING.to_owned();
    };
    let pid = worst.pid.to_string();
    match worst.host.as_ref().filter(|_| with_host) {
        Some(host) => {
            let whole = format!("{pid}@{}", name(host.as_bytes()));
            if verbose {
                whole
            } else {
                cut(whole, WORST_PID)
            }
        }
        None => pid,
    }
}

/// What several processes lost, in megabytes. With `≥` if it is not known of all of them.
fn lost_sum(lost: &LostSum) -> String {
    match lost.is_known() {
        true if lost.unknown.is_empty() => megabytes(lost.bytes.lower),
        true => format!("\u{2265}{}", megabytes(lost.bytes.lower)),
        false => UNKNOWN.to_owned(),
    }
}
