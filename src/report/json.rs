//! JSON lines for programs, with the schema `memleak/1`.
//!
//! Sizes are in bytes. Times are in seconds since the Unix epoch, with microseconds. A UTF-8 name is kept as it is.
//! Characters on which a terminal would act are written as `\uXXXX`, which is the same string for a JSON reader. In a
//! name that is not UTF-8, each invalid byte becomes the text `\xNN`, and each backslash becomes `\\`.

use std::borrow::Cow;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use serde::Serialize;
use serde_json::ser::Formatter;

use crate::model::exit::Outcome;
use crate::model::gate::{Judgement, Verdict};
use crate::model::image::{End, From, Image, Losses, Uncovered};
use crate::model::ledger::Summary;
use crate::model::live::Live;
use crate::report::render::{Render, SCHEMA, Screen, Window, end_name};
use crate::text::escape;

pub(super) struct Json;

impl Render for Json {
    fn image(&mut self, image: &Image, _verdict: Option<Verdict>) -> io::Result<Vec<u8>> {
        line(&ProcessLine::new(image))
    }

    fn summary(&mut self, summary: &Summary) -> io::Result<Vec<u8>> {
        line(&SummaryLine::new(summary))
    }

    fn window(&mut self, window: &Window) -> io::Result<Vec<u8>> {
        let lines: io::Result<Vec<_>> = window
            .images
            .iter()
            .map(|image| line(&ProcessLine::new(image)))
            .collect();
        Ok(lines?.concat())
    }

    fn live(&mut self, live: &Live, _screen: Option<&Screen>) -> io::Result<Vec<u8>> {
        let lines: io::Result<Vec<_>> = live
            .rows
            .iter()
            .map(|row| {
                line(&ProcessLine {
                    growth_bytes: Some(row.growth),
                    ..ProcessLine::new(&row.image)
                })
            })
            .collect();
        Ok(lines?.concat())
    }
}

/// The order of the fields is that of the schema.
#[derive(Serialize)]
struct ProcessLine<'a> {
    schema: &'static str,
    r#type: &'static str,
    pid: u32,
    ppid: u32,
    uid: u32,
    user: Option<&'a str>,
    comm: Cow<'a, str>,
    exe: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    args: Option<Vec<Cow<'a, str>>>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    args_cut: bool,
    image: u32,
    end: &'static str,
    exit_code: Option<u8>,
    signal: Option<u8>,
    from: &'static str,
    start_time: f64,
    end_time: f64,
    total_allocs_bytes: u64,
    alloc_count: u64,
    free_count: u64,
    leaked_bytes: u64,
    leaked_blocks: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    growth_bytes: Option<i64>,
    peak_live_bytes: Option<u64>,
    failed_allocs: u64,
    unknown_frees: u64,
    allocators: Vec<Cow<'a, str>>,
    complete: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    uncovered: Option<&'static str>,
    losses: LossesObject,
}

impl<'a> ProcessLine<'a> {
    fn new(image: &'a Image) -> Self {
        let counters = &image.counters;
        Self {
            schema: SCHEMA,
            r#type: "process",
            pid: image.pid,
            ppid: image.ppid,
            uid: image.uid,
            user: image.user.as_deref(),
            comm: escape::text(&image.comm),
            exe: image
                .exe
                .as_ref()
                .map(|exe| escape::text(exe.as_os_str().as_bytes())),
            args: image
                .args
                .as_ref()
                .map(|line| line.words.iter().map(|word| escape::text(word)).collect()),
            args_cut: image.args.as_ref().is_some_and(|line| line.is_cut),
            image: image.image,
            end: end_name(image.end),
            exit_code: exit_code(image.end),
            signal: signal(image.end),
            from: from_name(image.from),
            start_time: seconds(image.start_time),
            end_time: seconds(image.end_time),
            total_allocs_bytes: counters.total_allocs_bytes,
            alloc_count: counters.alloc_count,
            free_count: counters.free_count,
            leaked_bytes: counters.leaked_bytes,
            leaked_blocks: counters.leaked_blocks,
            growth_bytes: None,
            peak_live_bytes: counters.peak_live_bytes,
            failed_allocs: counters.failed_allocs,
            unknown_frees: counters.unknown_frees,
            allocators: image
                .allocators
                .iter()
                .map(|file| escape::text(file.as_os_str().as_bytes()))
                .collect(),
            complete: image.complete(),
            uncovered: image.uncovered.map(uncovered_name),
            losses: image.losses.into(),
        }
    }
}

#[derive(Serialize)]
struct SummaryLine {
    schema: &'static str,
    r#type: &'static str,
    outcome: Option<&'static str>,
    code: Option<u8>,
    signal: Option<u8>,
    core: bool,
    processes: u64,
    covered_processes: u64,
    total_allocs_bytes: u64,
    leaked_bytes: u64,
    leaked_blocks: u64,
    gate: Option<GateObject>,
    complete: bool,
    losses: LossesObject,
}

impl SummaryLine {
    fn new(summary: &Summary) -> Self {
        let (signal, core) = summary.outcome.signal();
        Self {
            schema: SCHEMA,
            r#type: "summary",
            outcome: outcome_name(summary.outcome),
            code: summary.outcome.code(),
            signal,
            core,
            processes: summary.processes,
            covered_processes: summary.complete_processes,
            total_allocs_bytes: summary.total_allocs_bytes,
            leaked_bytes: summary.leaked.lower,
            leaked_blocks: summary.leaked_blocks,
            gate: summary.gate.as_ref().map(GateObject::new),
            complete: summary.complete,
            losses: summary.losses.into(),
        }
    }
}

/// `limit_bytes` is always present, and is null if only the total is limited. `total_limit_bytes` is only present with
/// such a limit. The verdict is that of both limits together.
#[derive(Serialize)]
struct GateObject {
    limit_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    total_limit_bytes: Option<u64>,
    verdict: &'static str,
    judged: u64,
    /// Patterns that should have chosen a process and have not.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    unmatched: Vec<String>,
}

impl GateObject {
    fn new(gate: &Judgement) -> Self {
        Self {
            unmatched: gate.unjudged.unmatched.clone(),
            limit_bytes: gate.limits.process,
            total_limit_bytes: gate.limits.total,
            verdict: gate.verdict().as_str(),
            judged: gate.judged,
        }
    }
}

/// Only losses that are not zero are written.
#[derive(Serialize)]
struct LossesObject {
    #[serde(skip_serializing_if = "is_zero")]
    blocks_not_recorded: u64,
    #[serde(skip_serializing_if = "is_zero")]
    bytes_not_recorded: u64,
    #[serde(skip_serializing_if = "is_zero")]
    calls_without_return: u64,
    #[serde(skip_serializing_if = "is_zero")]
    rows_lost: u64,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde passes a reference"
)]
fn is_zero(count: &u64) -> bool {
    *count == 0
}

impl std::convert::From<Losses> for LossesObject {
    fn from(losses: Losses) -> Self {
        Self {
            blocks_not_recorded: losses.blocks_not_recorded,
            bytes_not_recorded: losses.bytes_not_recorded,
            calls_without_return: losses.calls_without_return,
            rows_lost: losses.rows_lost,
        }
    }
}

pub(super) fn exit_code(end: End) -> Option<u8> {
    match end {
        End::Exited(code) => Some(code),
        End::Signaled { .. } | End::Exec | End::Running => None,
    }
}

pub(super) fn signal(end: End) -> Option<u8> {
    match end {
        End::Signaled { signal, .. } => Some(signal),
        End::Exited(_) | End::Exec | End::Running => None,
    }
}

pub(super) fn uncovered_name(why: Uncovered) -> &'static str {
    match why {
        Uncovered::NoAllocator => "no_allocator",
        Uncovered::NoSymbols => "no_symbols",
        Uncovered::ThirtyTwoBit => "32_bit",
        Uncovered::Late => "late",
        Uncovered::Unexamined => "unexamined",
        Uncovered::Unreached => "unreached",
    }
}

pub(super) fn from_name(from: From) -> &'static str {
    match from {
        From::Start => "start",
        From::Attach => "attach",
    }
}

pub(super) fn outcome_name(outcome: Outcome) -> Option<&'static str> {
    Some(match outcome {
        Outcome::Watched => return None,
        Outcome::Exited(_) => "exited",
        Outcome::Signaled { .. } => "signaled",
        Outcome::ExecError(_) => "exec_error",
        Outcome::ToolError => "tool_error",
    })
}

/// Seconds with microseconds. A double is not more precise for the times of these centuries.
pub(super) fn seconds(time: Duration) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "exact up to the year 2255")]
    let micros = time.as_micros() as f64;
    micros / 1e6
}

fn line(value: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut line = Vec::with_capacity(512);
    value.serialize(&mut serde_json::Serializer::with_formatter(
        &mut line, Harmless,
    ))?;
    line.push(b'\n');
    Ok(line)
}

/// Writes compact JSON whose strings contain no character on which a terminal would act. serde_json itself only escapes
/// characters below U+0020, but U+009B also begins an escape sequence.
struct Harmless;

impl Formatter for Harmless {
    fn write_string_fragment<W>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()>
    where
        W: ?Sized + Write,
    {
        let mut rest = fragment;
        while let Some(at) = rest.find(|c| !escape::is_printable(c)) {
            let (plain, from) = rest.split_at(at);
            writer.write_all(plain.as_bytes())?;
            let mut chars = from.chars();
            if let Some(c) = chars.next() {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    write!(writer, "\\u{unit:04x}")?;
                }
            }
            rest = chars.as_str();
        }
        writer.write_all(rest.as_bytes())
    }
}
