//! JSON lines for programs, with the schema `memleak/1`.
//!
//! Sizes are in bytes. Times are in seconds since the Unix epoch, with microseconds. A UTF-8 name is kept as it is.
//! Characters on which a terminal would act are written as `\uXXXX`, which is the same string for a JSON reader. In a
//! name that is not UTF-8, each invalid byte becomes the text `\xNN`, and each backslash becomes `\\`.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::io::{self, Write};
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;

use serde::Serialize;
use serde_json::ser::Formatter;

use crate::model::bounds::Verdict;
use crate::model::grouping::Grouped;
use crate::model::image::Image;
use crate::model::judgement::{Judged, Judgement};
use crate::model::ledger::Summary;
use crate::model::limits::Allowed;
use crate::model::live::Live;
use crate::model::lost::reached;
use crate::model::reach::Amount;
use crate::model::stack::NamedFrame;
use crate::model::stack_coverage::StackCoverage;
use crate::model::suppressed::SuppressionUse;
use crate::report::compared::BaselineObject;
use crate::report::group_objects::GroupLine;
use crate::report::json_objects::{LossesObject, OriginFields, ReachObject, is_zero};
use crate::report::render::{Render, SCHEMA, Screen, StackRow, Window, end_name};
use crate::report::words::{
    counted_by_names, exit_code, from_name, limits_that_are, lost, outcome_name, reach_unknown,
    seconds, signal, uncovered_name, walk_name,
};
use crate::text::escape;

#[derive(Default)]
pub(super) struct Json {
    frames: FrameTexts,
}

impl Render for Json {
    fn image(&mut self, image: &Image, _verdict: Option<Verdict>) -> io::Result<Vec<u8>> {
        line(&ProcessLine::new(image))
    }

    fn stack(&mut self, row: &StackRow<'_>) -> io::Result<Vec<u8>> {
        self.stack_line(&StackLine::new(row), &row.stack.frames)
    }

    fn groups(&mut self, grouped: &Grouped) -> io::Result<Vec<u8>> {
        let groups = GroupLine::all(grouped, escape::text);
        let lines: io::Result<Vec<_>> = groups.map(|group| line(&group)).collect();
        Ok(lines?.concat())
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
        let mut lines = Vec::new();
        for row in &live.rows {
            lines.extend(line(&ProcessLine {
                growth_bytes: Some(row.growth),
                growth_bytes_per_hour: row.rate,
                ..ProcessLine::new(&row.image)
            })?);
            for place in &row.places {
                let held = StackRow {
                    pid: row.image.pid,
                    image: row.image.image,
                    share: &place.share,
                    stack: &place.stack,
                    suppressed_by: None,
                    suppressed: Amount::default(),
                    kept: Amount::default(),
                };
                let held = StackLine {
                    growth_bytes: Some(place.growth),
                    older_seconds: live.older.map(|older| older.as_secs_f64()),
                    ..StackLine::new(&held)
                };
                lines.extend(self.stack_line(&held, &place.stack.frames)?);
            }
        }
        Ok(lines)
    }
}

impl Json {
    /// The frames come last: they are many, and most are in several stacks.
    fn stack_line(&mut self, head: &StackLine, frames: &[Arc<NamedFrame>]) -> io::Result<Vec<u8>> {
        let mut line = object(head)?;
        let end = line.pop();
        line.extend_from_slice(b",\"frames\":[");
        for (at, frame) in frames.iter().enumerate() {
            if at > 0 {
                line.push(b',');
            }
            self.frames.write(frame, &mut line)?;
        }
        line.push(b']');
        line.extend(end);
        line.push(b'\n');
        Ok(line)
    }
}

/// Frames as they are written, so that a frame of many stacks is made only once.
#[derive(Default)]
struct FrameTexts {
    /// By the frame's address, where its text is. The frame is kept, so that no other one gets its address.
    places: HashMap<usize, (Arc<NamedFrame>, Range<usize>)>,
    text: Vec<u8>,
}

impl FrameTexts {
    /// Some 50,000 frames.
    const MOST_TEXT: usize = 16 << 20;

    fn write(&mut self, frame: &Arc<NamedFrame>, line: &mut Vec<u8>) -> io::Result<()> {
        let address = Arc::as_ptr(frame) as usize;
        if let Some((_, place)) = self.places.get(&address) {
            line.extend_from_slice(&self.text[place.clone()]);
            return Ok(());
        }
        let text = object(&FrameObject::new(frame))?;
        line.extend_from_slice(&text);
        // Of a saved report, each stack has frames of its own.
        if Arc::strong_count(frame) > 1 {
            if self.text.len() > Self::MOST_TEXT {
                *self = Self::default();
            }
            let start = self.text.len();
            self.text.extend_from_slice(&text);
            let place = (Arc::clone(frame), start..self.text.len());
            self.places.insert(address, place);
        }
        Ok(())
    }
}

/// What an image has allocated by one call stack.
#[derive(Serialize)]
struct StackLine<'a> {
    schema: &'static str,
    r#type: &'static str,
    pid: u32,
    image: u32,
    stack: String,
    alloc_bytes: u64,
    alloc_count: u64,
    leaked_bytes: u64,
    leaked_blocks: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    growth_bytes: Option<i64>,
    /// What leaked is what blocks of this age hold.
    #[serde(skip_serializing_if = "Option::is_none")]
    older_seconds: Option<f64>,
    #[serde(flatten)]
    reach: Option<ReachObject>,
    #[serde(skip_serializing_if = "Option::is_none")]
    owned_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    owned_blocks: Option<u64>,
    walk: &'static str,
    #[serde(skip_serializing_if = "is_zero")]
    guessed: u64,
    suppressed_by: Option<&'a str>,
    #[serde(skip_serializing_if = "is_zero")]
    suppressed_bytes: u64,
    #[serde(skip_serializing_if = "is_zero")]
    suppressed_blocks: u64,
    #[serde(skip_serializing_if = "is_zero")]
    kept_bytes: u64,
    #[serde(skip_serializing_if = "is_zero")]
    kept_blocks: u64,
}

/// The innermost frame comes first.
#[derive(Serialize)]
struct FrameObject<'a> {
    function: Option<Cow<'a, str>>,
    /// Only where it is another name.
    #[serde(skip_serializing_if = "Option::is_none")]
    linkage: Option<Cow<'a, str>>,
    module: Option<Cow<'a, str>>,
    build_id: Option<String>,
    offset: u64,
    file: Option<Cow<'a, str>>,
    line: Option<u32>,
    inlined: bool,
}

impl<'a> FrameObject<'a> {
    fn new(frame: &'a NamedFrame) -> Self {
        let text = |name: &'a String| escape::text(name.as_bytes());
        let path = |path: &'a Option<PathBuf>| {
            let path = path.as_ref()?;
            Some(escape::text(path.as_os_str().as_bytes()))
        };
        let function = frame.function.as_ref();
        let linkage = frame.linkage.as_ref();
        Self {
            function: function.map(text),
            linkage: linkage
                .filter(|linkage| function != Some(linkage))
                .map(text),
            module: path(&frame.module),
            build_id: frame.build_id.as_ref().map(|id| escape::hexadecimal(id)),
            offset: frame.offset,
            file: path(&frame.file),
            line: frame.line,
            inlined: frame.inlined,
        }
    }
}

impl<'a> StackLine<'a> {
    fn new(row: &StackRow<'a>) -> Self {
        let StackRow {
            pid,
            image,
            share,
            stack,
            ..
        } = *row;
        Self {
            schema: SCHEMA,
            r#type: "stack",
            pid,
            image,
            stack: format!("{:016x}", stack.identity),
            alloc_bytes: share.alloc_bytes,
            alloc_count: share.alloc_count,
            leaked_bytes: share.leaked_bytes,
            leaked_blocks: share.leaked_blocks,
            growth_bytes: None,
            older_seconds: None,
            reach: share.reached.map(|reached| reached.blocks.into()),
            owned_bytes: share.reached.map(|reached| reached.owned.bytes),
            owned_blocks: share.reached.map(|reached| reached.owned.blocks),
            walk: walk_name(stack.end),
            guessed: stack.guessed.into(),
            suppressed_by: row.suppressed_by,
            suppressed_bytes: row.suppressed.bytes,
            suppressed_blocks: row.suppressed.blocks,
            kept_bytes: row.kept.bytes,
            kept_blocks: row.kept.blocks,
        }
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
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    labels: BTreeMap<&'a str, Cow<'a, str>>,
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
    reach: Option<ReachObject>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reach_unknown: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    growth_bytes: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    growth_bytes_per_hour: Option<u64>,
    peak_live_bytes: Option<u64>,
    failed_allocs: u64,
    unknown_frees: u64,
    allocators: Vec<Cow<'a, str>>,
    counted_by: &'static [&'static str],
    complete: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    uncovered: Option<&'static str>,
    losses: LossesObject,
    #[serde(skip_serializing_if = "Option::is_none")]
    stack_unknown: Option<StackUnknownObject>,
    #[serde(flatten)]
    origin: Option<OriginFields<'a>>,
}

/// What is not known of call stacks. With `walks`, how many calls have a stack without its outermost frames, by the
/// reason.
#[derive(Serialize)]
struct StackUnknownObject {
    alloc_bytes: u64,
    alloc_count: u64,
    leaked_bytes: u64,
    leaked_blocks: u64,
    walks: BTreeMap<&'static str, u64>,
}

impl From<&StackCoverage> for StackUnknownObject {
    fn from(coverage: &StackCoverage) -> Self {
        let early = coverage.early.iter();
        Self {
            alloc_bytes: coverage.allocated.bytes,
            alloc_count: coverage.allocated.blocks,
            leaked_bytes: coverage.leaked.bytes,
            leaked_blocks: coverage.leaked.blocks,
            walks: early
                .map(|(end, calls)| (walk_name(*end), *calls))
                .collect(),
        }
    }
}

/// How much a suppression has matched.
#[derive(Serialize)]
struct SuppressionObject {
    name: String,
    file: String,
    line: usize,
    bytes: u64,
    blocks: u64,
    places: u64,
}

impl From<&SuppressionUse> for SuppressionObject {
    fn from(used: &SuppressionUse) -> Self {
        Self {
            name: used.name.clone(),
            file: used.file.clone(),
            line: used.line,
            bytes: used.amount.bytes,
            blocks: used.amount.blocks,
            places: used.places,
        }
    }
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
            labels: (image.labels.iter())
                .map(|(name, value)| (name.as_str(), escape::text(value)))
                .collect(),
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
            reach: reached(image).map(ReachObject::from),
            reach_unknown: reach_unknown(image),
            growth_bytes: None,
            growth_bytes_per_hour: None,
            peak_live_bytes: counters.peak_live_bytes,
            failed_allocs: counters.failed_allocs,
            unknown_frees: counters.unknown_frees,
            counted_by: counted_by_names(image.counted_by),
            allocators: image
                .allocators
                .iter()
                .map(|file| escape::text(file.as_os_str().as_bytes()))
                .collect(),
            complete: image.complete(),
            uncovered: image.uncovered.map(uncovered_name),
            losses: image.losses.into(),
            stack_unknown: StackCoverage::of(image).as_ref().map(Into::into),
            origin: image.origin.as_deref().map(OriginFields::from),
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
    lost_bytes: Option<u64>,
    lost_blocks: Option<u64>,
    reach: Option<ReachObject>,
    reach_unknown_processes: u64,
    gate: Option<GateObject>,
    #[serde(skip_serializing_if = "Option::is_none")]
    baseline: Option<BaselineObject>,
    complete: bool,
    losses: LossesObject,
    #[serde(skip_serializing_if = "Option::is_none")]
    stack_unknown: Option<StackUnknownObject>,
    /// The suppressions of the user.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    suppressions: Vec<SuppressionObject>,
}

impl SummaryLine {
    fn new(summary: &Summary) -> Self {
        let (signal, core) = summary.outcome.signal();
        let located = summary.located.as_ref();
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
            lost_bytes: lost(&summary.lost).map(|lost| lost.bytes),
            lost_blocks: lost(&summary.lost).map(|lost| lost.blocks),
            reach: lost(&summary.lost).map(|_| summary.lost.known.into()),
            reach_unknown_processes: summary.lost.unknown.values().sum(),
            gate: summary.gate.as_ref().map(GateObject::new),
            baseline: summary.baseline.as_ref().map(BaselineObject::from),
            complete: summary.complete,
            losses: summary.losses.into(),
            stack_unknown: located.map(|located| (&located.coverage).into()),
            suppressions: located.map_or_else(Vec::new, |located| {
                located.suppressions.iter().map(Into::into).collect()
            }),
        }
    }
}

/// `limit_bytes` is always present, and is null without such a limit. The other limits are only present if they were
/// given. The verdict is that of all limits together.
#[derive(Serialize)]
struct GateObject {
    limit_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    total_limit_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    lost_limit_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    total_lost_limit_bytes: Option<u64>,
    verdict: &'static str,
    /// Which of the limits failed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    failed: Vec<&'static str>,
    /// Which of the limits are unknown.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    unknown: Vec<&'static str>,
    judged: u64,
    /// What was suppressed, and does not count.
    #[serde(skip_serializing_if = "is_zero")]
    suppressed_leaked_bytes: u64,
    #[serde(skip_serializing_if = "is_zero")]
    suppressed_lost_bytes: u64,
    /// Patterns that should have chosen a process and have not.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    unmatched: Vec<String>,
}

impl GateObject {
    fn new(gate: &Judgement) -> Self {
        let Allowed { leak, lost } = gate.allowed();
        let suppressed = |judged: &Option<Judged>| judged.as_ref().map_or(0, |j| j.suppressed);
        Self {
            unmatched: gate.unjudged.unmatched.clone(),
            limit_bytes: leak.process,
            total_limit_bytes: leak.total,
            lost_limit_bytes: lost.process,
            total_lost_limit_bytes: lost.total,
            verdict: gate.verdict().as_str(),
            failed: limits_that_are(Verdict::Failed, gate),
            unknown: limits_that_are(Verdict::Unknown, gate),
            judged: gate.judged,
            suppressed_leaked_bytes: suppressed(&gate.leak),
            suppressed_lost_bytes: suppressed(&gate.lost),
        }
    }
}

fn line(value: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut line = object(value)?;
    line.push(b'\n');
    Ok(line)
}

fn object(value: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut text = Vec::with_capacity(512);
    value.serialize(&mut serde_json::Serializer::with_formatter(
        &mut text, Harmless,
    ))?;
    Ok(text)
}

/// Writes compact JSON whose strings contain no character on which a terminal would act. serde_json itself only escapes
/// characters below U+0020, but U+009B also begins an escape sequence.
struct Harmless;

impl Formatter for Harmless {
    fn write_string_fragment<W>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()>
    where
        W: ?Sized + Write,
    {
        // Almost all are, and that is told quickly.
        if fragment.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
            return writer.write_all(fragment.as_bytes());
        }
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
