//! CSV: the fields of JSON in one table, for spreadsheets and data frames.
//!
//! The report is one header, a row for every image, and a row for the summary. The column `type` tells images and the
//! summary apart: a sum over a column must filter by it. `losses` and `gate` are flattened (`losses_rows_lost`,
//! `gate_verdict`), and so is `reach`. The names of several limits are joined by `:`. A value that a row does not have, or that is null in JSON, is an empty field. Names are escaped as
//! in the table, because CSV has no escapes of its own. `allocators` are joined by `:`. A `:` in a path is written as
//! `\x3a`. `labels` are `NAME=value`, joined in the same way.
//!
//! Spreadsheets treat a field that begins with `=`, `+`, `-` or `@` as a formula, and any user can give a process such
//! a name. Such a name gets a `'` in front. A name that begins with `'` also gets one. So a reader gets every name back
//! by removing one leading `'`.

use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use csv::WriterBuilder;
use serde::Serialize;

use crate::model::baseline::Compared;
use crate::model::bounds::Verdict;
use crate::model::grouping::Grouped;
use crate::model::image::{Image, Labels, Losses};
use crate::model::judgement::Judgement;
use crate::model::ledger::Summary;
use crate::model::live::Live;
use crate::model::lost::reached;
use crate::model::origin::Origin;
use crate::model::reach::Reached;
use crate::report::cells::args;
use crate::report::group_objects::{GroupLine, GroupRow};
use crate::report::render::{Render, SCHEMA, Screen, Window, end_name};
use crate::report::words::{
    counted_by_names, exit_code, from_name, limits_that_are, lost, outcome_name, reach_unknown,
    seconds, signal, uncovered_name,
};
use crate::text::escape;

#[derive(Default)]
pub(super) struct Csv {
    began: bool,
    is_grouped: bool,
}

impl Render for Csv {
    fn image(&mut self, image: &Image, _verdict: Option<Verdict>) -> io::Result<Vec<u8>> {
        self.lines(&CsvRow::image(image))
    }

    fn groups(&mut self, grouped: &Grouped) -> io::Result<Vec<u8>> {
        self.is_grouped = true;
        let mut writer = WriterBuilder::new().from_writer(Vec::new());
        for group in GroupLine::all(grouped, |bytes| name(bytes).into()) {
            writer.serialize(GroupRow::from(group))?;
        }
        let lines = writer.into_inner();
        lines.map_err(|error| io::Error::other(error.to_string()))
    }

    fn summary(&mut self, summary: &Summary) -> io::Result<Vec<u8>> {
        // A row of the summary has other columns than groups have.
        if self.is_grouped {
            return Ok(Vec::new());
        }
        self.lines(&CsvRow::summary(summary))
    }

    fn window(&mut self, window: &Window) -> io::Result<Vec<u8>> {
        let lines: io::Result<Vec<_>> = window
            .images
            .iter()
            .map(|image| self.lines(&CsvRow::image(image)))
            .collect();
        Ok(lines?.concat())
    }

    fn live(&mut self, live: &Live, _screen: Option<&Screen>) -> io::Result<Vec<u8>> {
        let lines: io::Result<Vec<_>> = live
            .rows
            .iter()
            .map(|row| {
                self.lines(&CsvRow {
                    growth_bytes: Some(row.growth),
                    growth_bytes_per_hour: row.rate,
                    ..CsvRow::image(&row.image)
                })
            })
            .collect();
        Ok(lines?.concat())
    }
}

impl Csv {
    fn lines(&mut self, row: &CsvRow) -> io::Result<Vec<u8>> {
        let mut writer = WriterBuilder::new()
            .has_headers(!self.began)
            .from_writer(Vec::with_capacity(512));
        writer.serialize(row)?;
        self.began = true;
        writer
            .into_inner()
            .map_err(|error| io::Error::other(error.to_string()))
    }
}

/// A row. The header consists of the names of these fields, in this order.
#[derive(Default, Serialize)]
struct CsvRow {
    schema: &'static str,
    r#type: &'static str,
    pid: Option<u32>,
    ppid: Option<u32>,
    uid: Option<u32>,
    user: Option<String>,
    comm: Option<String>,
    exe: Option<String>,
    image: Option<u32>,
    end: Option<&'static str>,
    exit_code: Option<u8>,
    signal: Option<u8>,
    from: Option<&'static str>,
    start_time: Option<f64>,
    end_time: Option<f64>,
    total_allocs_bytes: u64,
    alloc_count: Option<u64>,
    free_count: Option<u64>,
    leaked_bytes: u64,
    leaked_blocks: Option<u64>,
    peak_live_bytes: Option<u64>,
    failed_allocs: Option<u64>,
    unknown_frees: Option<u64>,
    allocators: Option<String>,
    complete: bool,
    losses_blocks_not_recorded: u64,
    losses_bytes_not_recorded: u64,
    losses_calls_without_return: u64,
    losses_rows_lost: u64,
    outcome: Option<&'static str>,
    code: Option<u8>,
    core: Option<bool>,
    processes: Option<u64>,
    gate_limit_bytes: Option<u64>,
    gate_total_limit_bytes: Option<u64>,
    gate_verdict: Option<&'static str>,
    uncovered: Option<&'static str>,
    covered_processes: Option<u64>,
    growth_bytes: Option<i64>,
    gate_judged: Option<u64>,
    args: Option<String>,
    reach_definite_bytes: Option<u64>,
    reach_definite_blocks: Option<u64>,
    reach_indirect_bytes: Option<u64>,
    reach_indirect_blocks: Option<u64>,
    reach_possible_bytes: Option<u64>,
    reach_possible_blocks: Option<u64>,
    reach_reachable_bytes: Option<u64>,
    reach_reachable_blocks: Option<u64>,
    reach_unknown: Option<&'static str>,
    lost_bytes: Option<u64>,
    lost_blocks: Option<u64>,
    reach_unknown_processes: Option<u64>,
    gate_lost_limit_bytes: Option<u64>,
    gate_total_lost_limit_bytes: Option<u64>,
    gate_failed: Option<String>,
    gate_unknown: Option<String>,
    labels: Option<String>,
    baseline_new: Option<u64>,
    baseline_new_bytes: Option<u64>,
    baseline_known: Option<u64>,
    baseline_known_bytes: Option<u64>,
    baseline_gone: Option<u64>,
    counted_by: Option<String>,
    losses_calls_in_flight: u64,
    growth_bytes_per_hour: Option<u64>,
    host: Option<String>,
    job: Option<String>,
    step: Option<String>,
    rank: Option<u32>,
    container: Option<String>,
    pod: Option<String>,
}

impl CsvRow {
    fn image(image: &Image) -> Self {
        let counters = &image.counters;
        let allocators: Vec<String> = image.allocators.iter().map(|file| path(file)).collect();
        Self {
            schema: SCHEMA,
            r#type: "process",
            pid: Some(image.pid),
            ppid: Some(image.ppid),
            uid: Some(image.uid),
            user: image.user.as_ref().map(|user| name(user.as_bytes())),
            comm: Some(name(&image.comm)),
            exe: image
                .exe
                .as_ref()
                .map(|exe| name(exe.as_os_str().as_bytes())),
            image: Some(image.image),
            end: Some(end_name(image.end)),
            exit_code: exit_code(image.end),
            signal: signal(image.end),
            from: Some(from_name(image.from)),
            start_time: Some(seconds(image.start_time)),
            end_time: Some(seconds(image.end_time)),
            total_allocs_bytes: counters.total_allocs_bytes,
            alloc_count: Some(counters.alloc_count),
            free_count: Some(counters.free_count),
            leaked_bytes: counters.leaked_bytes,
            leaked_blocks: Some(counters.leaked_blocks),
            peak_live_bytes: counters.peak_live_bytes,
            failed_allocs: Some(counters.failed_allocs),
            unknown_frees: Some(counters.unknown_frees),
            allocators: Some(inert(allocators.join(":"))),
            counted_by: Some(counted_by_names(image.counted_by).join(":")),
            complete: image.complete(),
            uncovered: image.uncovered.map(uncovered_name),
            args: image.args.is_some().then(|| inert(args(image))),
            reach_unknown: reach_unknown(image),
            labels: (!image.labels.is_empty()).then(|| labels(&image.labels)),
            ..Self::default()
        }
        .with(image.losses)
        .with_reach(reached(image))
        .with_origin(image.origin.as_deref())
    }

    fn summary(summary: &Summary) -> Self {
        let (signal, core) = summary.outcome.signal();
        let gate = summary.gate.as_ref();
        let allowed = gate.map(Judgement::allowed).unwrap_or_default();
        let lost = lost(&summary.lost);
        let baseline = summary.baseline.as_ref();
        let limits = |verdict| {
            let names = limits_that_are(verdict, gate?);
            (!names.is_empty()).then(|| names.join(":"))
        };
        Self {
            schema: SCHEMA,
            r#type: "summary",
            signal,
            total_allocs_bytes: summary.total_allocs_bytes,
            leaked_bytes: summary.leaked.lower,
            leaked_blocks: Some(summary.leaked_blocks),
            complete: summary.complete,
            outcome: outcome_name(summary.outcome),
            code: summary.outcome.code(),
            core: Some(core),
            processes: Some(summary.processes),
            covered_processes: Some(summary.complete_processes),
            gate_limit_bytes: allowed.leak.process,
            gate_total_limit_bytes: allowed.leak.total,
            gate_lost_limit_bytes: allowed.lost.process,
            gate_total_lost_limit_bytes: allowed.lost.total,
            gate_verdict: summary.verdict().map(Verdict::as_str),
            gate_judged: gate.map(|gate| gate.judged),
            gate_failed: limits(Verdict::Failed),
            gate_unknown: limits(Verdict::Unknown),
            lost_bytes: lost.map(|lost| lost.bytes),
            lost_blocks: lost.map(|lost| lost.blocks),
            reach_unknown_processes: Some(summary.lost.unknown.values().sum()),
            baseline_new: baseline.map(|compared| compared.new.len() as u64),
            baseline_new_bytes: baseline.map(Compared::new_bytes),
            baseline_known: baseline.map(|compared| compared.known),
            baseline_known_bytes: baseline.map(|compared| compared.known_bytes),
            baseline_gone: baseline.map(|compared| compared.gone.len() as u64),
            ..Self::default()
        }
        .with(summary.losses)
        .with_reach(lost.map(|_| summary.lost.known))
    }

    fn with_origin(self, origin: Option<&Origin>) -> Self {
        let Some(origin) = origin else {
            return self;
        };
        let text = |text: &Option<String>| text.as_ref().map(|text| name(text.as_bytes()));
        Self {
            host: text(&origin.host),
            job: text(&origin.job),
            step: text(&origin.step),
            rank: origin.rank,
            container: text(&origin.container),
            pod: text(&origin.pod),
            ..self
        }
    }

    fn with_reach(self, reached: Option<Reached>) -> Self {
        Self {
            reach_definite_bytes: reached.map(|reached| reached.definite.bytes),
            reach_definite_blocks: reached.map(|reached| reached.definite.blocks),
            reach_indirect_bytes: reached.map(|reached| reached.indirect.bytes),
            reach_indirect_blocks: reached.map(|reached| reached.indirect.blocks),
            reach_possible_bytes: reached.map(|reached| reached.possible.bytes),
            reach_possible_blocks: reached.map(|reached| reached.possible.blocks),
            reach_reachable_bytes: reached.map(|reached| reached.reachable.bytes),
            reach_reachable_blocks: reached.map(|reached| reached.reachable.blocks),
            ..self
        }
    }

    fn with(self, losses: Losses) -> Self {
        Self {
            losses_blocks_not_recorded: losses.blocks_not_recorded,
            losses_bytes_not_recorded: losses.bytes_not_recorded,
            losses_calls_without_return: losses.calls_without_return,
            losses_calls_in_flight: losses.calls_in_flight,
            losses_rows_lost: losses.rows_lost,
            ..self
        }
    }
}

fn name(name: &[u8]) -> String {
    inert(escape::escaped(name))
}

fn path(path: &Path) -> String {
    escape::escaped(path.as_os_str().as_bytes()).replace(':', r"\x3a")
}

/// As `NAME=value`, joined by `:`. A name begins with no sign that a spreadsheet acts on.
fn labels(labels: &Labels) -> String {
    let label = |(name, value): (&String, &Vec<u8>)| {
        let value = escape::escaped(value).replace(':', r"\x3a");
        format!("{name}={value}")
    };
    let labels: Vec<_> = labels.iter().map(label).collect();
    labels.join(":")
}

/// Prevents a spreadsheet from treating a name as a formula. Some spreadsheets remove a leading tab or carriage return
/// first, but these are escaped already.
fn inert(name: String) -> String {
    if name.starts_with(['=', '+', '-', '@', '\'']) {
        format!("'{name}")
    } else {
        name
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_a_spreadsheet_would_run_are_quoted() {
        for (plain, shown) in [
            ("=1+1", "'=1+1"),
            ("+1", "'+1"),
            ("-bash", "'-bash"),
            ("@sum", "'@sum"),
            ("'quoted", "''quoted"),
            ("\t=1", r"\x09=1"),
            ("a=1", "a=1"),
            ("(sd-pam)", "(sd-pam)"),
            ("", ""),
        ] {
            assert_eq!(name(plain.as_bytes()), shown);
        }
    }
}
