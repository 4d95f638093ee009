//! The records of JSON lines.
//!
//! Names come back as `report::json` has written them. Of one that is not UTF-8, that is the text with `\xNN`.

use std::ffi::OsString;
use std::fmt::Display;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;

use crate::model::exit::Outcome;
use crate::model::image::{CommandLine, Counters, End, From, Image, Losses};
use crate::model::origin::Origin;
use crate::model::reach::{Amount, Reach, Reached, StackReached};
use crate::model::stack::{CallStack, NamedFrame, NamedStack, StackShare, UnlistedStacks, WalkEnd};
use crate::report::SCHEMA;
use crate::saved::fields::{Header, ProcessFields, StackFields, StackUnknownFields, SummaryFields};
use crate::saved::names;
use crate::text::escape;

/// What a line says.
#[derive(Debug)]
pub enum Record {
    Process(Box<SavedImage>),
    Stack(Box<SavedStack>),
    Summary(SavedSummary),
    /// A kind of record that this version does not know.
    Other,
}

/// A row of a process.
#[derive(Debug)]
pub struct SavedImage {
    pub image: Image,
    /// The process was running when a watching memleak looked at it. Such rows come again and again.
    pub is_look: bool,
}

/// What an image allocated by a call stack.
#[derive(Debug)]
pub struct SavedStack {
    pub pid: u32,
    pub image: u32,
    pub share: StackShare,
    pub stack: NamedStack,
    /// It is of a process that was running when a watching memleak looked at it. Such rows come again and again.
    pub is_look: bool,
}

impl SavedStack {
    /// What leaked by the stack. Nothing, if the stack is not known.
    pub fn leaked(&self) -> Amount {
        match self.stack.frames.is_empty() {
            true => Amount::default(),
            false => Amount {
                bytes: self.share.leaked_bytes,
                blocks: self.share.leaked_blocks,
            },
        }
    }
}

/// The end of a session.
#[derive(Clone, Copy, Debug)]
pub struct SavedSummary {
    /// `None`: there was no command.
    pub outcome: Option<Outcome>,
    /// Those of the images and of the session.
    pub losses: Losses,
}

/// Why a line cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LineError {
    #[error("this is no JSON of memleak: give files that `-o json=FILE` has written ({0})")]
    NoRecord(String),
    #[error(
        "this has the schema {0}, and not {SCHEMA}: read it with the version of memleak that wrote it"
    )]
    OtherSchema(String),
}

/// The beginnings of the lines that memleak writes.
pub(super) const PROCESS: &[u8] = b"{\"schema\":\"memleak/1\",\"type\":\"process\",";
pub(super) const STACK: &[u8] = b"{\"schema\":\"memleak/1\",\"type\":\"stack\",";

/// Reads a line.
///
/// # Errors
/// It is none of memleak's, or of another version of the schema.
pub fn record(line: &[u8]) -> Result<Record, LineError> {
    // Most lines begin so. Then they need not be read twice.
    if line.starts_with(PROCESS) {
        return process(line);
    }
    if line.starts_with(STACK) {
        return stack(line);
    }
    let Header { schema, r#type } = read(line)?;
    if schema != SCHEMA {
        return Err(LineError::OtherSchema(escape::line(&schema)));
    }
    match &*r#type {
        "process" => process(line),
        "stack" => stack(line),
        "summary" => summary(line),
        _ => Ok(Record::Other),
    }
}

fn read<'a, T: Deserialize<'a>>(line: &'a [u8]) -> Result<T, LineError> {
    // At once, and not each text for itself.
    let text = str::from_utf8(line).map_err(no_record)?;
    serde_json::from_str(text).map_err(no_record)
}

fn no_record(error: impl Display) -> LineError {
    LineError::NoRecord(escape::line(&error.to_string()))
}

/// A word that memleak does not write.
fn odd(what: &str, word: &str) -> LineError {
    LineError::NoRecord(format!("{what} is '{}'", word.escape_debug()))
}

fn process(line: &[u8]) -> Result<Record, LineError> {
    let fields: ProcessFields = read(line)?;
    let end = match &*fields.end {
        "exited" => End::Exited(fields.exit_code.unwrap_or_default()),
        "signaled" => End::Signaled {
            signal: fields.signal.unwrap_or_default(),
            core: false,
        },
        "exec" => End::Exec,
        "running" => End::Running,
        word => return Err(odd("end", word)),
    };
    let from = match &*fields.from {
        "start" => From::Start,
        "attach" => From::Attach,
        word => return Err(odd("from", word)),
    };
    let reach = match (fields.reach, &fields.reach_unknown) {
        (Some(reached), _) => Reach::Known(reached.into()),
        (None, Some(word)) => {
            let why = names::reach_unknown(word);
            Reach::Unknown(why.ok_or_else(|| odd("reach_unknown", word))?)
        }
        (None, None) => Reach::NotJudged,
    };
    let uncovered = match &fields.uncovered {
        Some(word) => Some(names::uncovered(word).ok_or_else(|| odd("uncovered", word))?),
        None => None,
    };
    let counted_by = names::counted_by(&fields.counted_by)
        .ok_or_else(|| odd("counted_by", &fields.counted_by.join(" ")))?;
    let counters = Counters {
        total_allocs_bytes: fields.total_allocs_bytes,
        alloc_count: fields.alloc_count,
        free_count: fields.free_count,
        leaked_bytes: fields.leaked_bytes,
        leaked_blocks: fields.leaked_blocks,
        peak_live_bytes: fields.peak_live_bytes,
        failed_allocs: fields.failed_allocs,
        unknown_frees: fields.unknown_frees,
    };
    let unlisted_stacks = match fields.stack_unknown {
        Some(unknown) => Some(known_stacks(&counters, unknown)?),
        None => None,
    };
    let origin = Origin {
        host: fields.host.map(Into::into),
        cgroup: None,
        job: fields.job.map(Into::into),
        step: fields.step.map(Into::into),
        rank: fields.rank,
        container: fields.container.map(Into::into),
        pod: fields.pod.map(Into::into),
    };
    let image = Image {
        pid: fields.pid,
        ppid: fields.ppid,
        uid: fields.uid,
        user: fields.user.map(std::borrow::Cow::into_owned),
        comm: fields.comm.into_owned().into_bytes(),
        exe: fields.exe.map(path),
        real_exe: None,
        args: fields.args.map(|words| CommandLine {
            words: words
                .into_iter()
                .map(|word| word.into_owned().into_bytes())
                .collect(),
            is_cut: fields.args_cut,
        }),
        labels: (fields.labels.into_iter())
            .map(|(name, value)| (name.into_owned(), value.into_owned().into_bytes()))
            .collect(),
        image: fields.image,
        end,
        from,
        start_time: time(fields.start_time),
        end_time: time(fields.end_time),
        counters,
        reach,
        stacks: unlisted_stacks.is_some().then(Vec::new),
        unlisted_stacks: unlisted_stacks.unwrap_or_default(),
        allocators: fields.allocators.into_iter().map(path).collect(),
        counted_by,
        uncovered,
        losses: fields.losses.into(),
        cgroup: 0,
        origin: (origin != Origin::default()).then(|| Arc::new(origin)),
    };
    Ok(Record::Process(Box::new(SavedImage {
        image,
        is_look: fields.growth_bytes.is_some(),
    })))
}

/// What is of known stacks: all that is not of unknown ones.
fn known_stacks(
    counters: &Counters,
    unknown: StackUnknownFields<'_>,
) -> Result<UnlistedStacks, LineError> {
    let rest = |bytes: u64, blocks: u64, unknown: Amount| Amount {
        bytes: bytes.saturating_sub(unknown.bytes),
        blocks: blocks.saturating_sub(unknown.blocks),
    };
    let leaked = Amount {
        bytes: unknown.leaked_bytes,
        blocks: unknown.leaked_blocks,
    };
    let allocated = Amount {
        bytes: unknown.alloc_bytes,
        blocks: unknown.alloc_count,
    };
    let early = unknown.walks.into_iter().map(|(word, calls)| {
        let end = names::walk_end(&word).ok_or_else(|| odd("stack_unknown", &word))?;
        Ok((end, calls))
    });
    Ok(UnlistedStacks {
        leaked: rest(counters.leaked_bytes, counters.leaked_blocks, leaked),
        allocated: rest(counters.total_allocs_bytes, counters.alloc_count, allocated),
        early: early.collect::<Result<_, _>>()?,
    })
}

fn stack(line: &[u8]) -> Result<Record, LineError> {
    let fields: StackFields = read(line)?;
    let end = names::walk_end(&fields.walk).ok_or_else(|| odd("walk", &fields.walk))?;
    let identity = u64::from_str_radix(&fields.stack, 16);
    let frames = fields.frames.into_iter().map(|frame| {
        Arc::new(NamedFrame {
            // It is only written where it is another name.
            linkage: match (&frame.linkage, &frame.function) {
                (Some(linkage), _) => Some(linkage.clone().into_owned()),
                (None, function) => function.clone().map(std::borrow::Cow::into_owned),
            },
            function: frame.function.map(std::borrow::Cow::into_owned),
            module: frame.module.map(path),
            build_id: frame.build_id.as_deref().and_then(bytes),
            offset: frame.offset,
            file: frame.file.map(path),
            line: frame.line,
            inlined: frame.inlined,
        })
    });
    let amount = |bytes: Option<u64>, blocks: Option<u64>| {
        Some(Amount {
            bytes: bytes?,
            blocks: blocks?,
        })
    };
    let blocks = || {
        Some(Reached {
            definite: amount(fields.definite_bytes, fields.definite_blocks)?,
            indirect: amount(fields.indirect_bytes, fields.indirect_blocks)?,
            possible: amount(fields.possible_bytes, fields.possible_blocks)?,
            reachable: amount(fields.reachable_bytes, fields.reachable_blocks)?,
        })
    };
    let named = NamedStack {
        identity: identity.map_err(|_| odd("stack", &fields.stack))?,
        frames: frames.collect(),
        end,
        guessed: fields.guessed,
    };
    let share = StackShare {
        // Which places in memory they were is not saved.
        stack: Arc::new(CallStack {
            frames: Vec::new(),
            end: WalkEnd::Complete,
            guessed: 0,
        }),
        alloc_bytes: fields.alloc_bytes,
        alloc_count: fields.alloc_count,
        leaked_bytes: fields.leaked_bytes,
        leaked_blocks: fields.leaked_blocks,
        reached: blocks().map(|blocks| StackReached {
            blocks,
            // Where owners were not saved, each block stays with those of its own stack.
            owned: amount(fields.owned_bytes, fields.owned_blocks).unwrap_or(blocks.indirect),
        }),
    };
    Ok(Record::Stack(Box::new(SavedStack {
        pid: fields.pid,
        image: fields.image,
        share,
        stack: named,
        is_look: fields.growth_bytes.is_some(),
    })))
}

fn summary(line: &[u8]) -> Result<Record, LineError> {
    let fields: SummaryFields = read(line)?;
    let outcome = match fields.outcome.as_deref() {
        Some("exited") => fields.code.map(Outcome::Exited),
        Some("signaled") => fields.signal.map(|signal| Outcome::Signaled {
            signal,
            core: fields.core,
        }),
        // The command never ran, or there was none.
        Some(_) | None => None,
    };
    Ok(Record::Summary(SavedSummary {
        outcome,
        losses: fields.losses.into(),
    }))
}

fn path(text: std::borrow::Cow<'_, str>) -> PathBuf {
    OsString::from(text.into_owned()).into()
}

/// Seconds since the Unix epoch, to the microsecond.
fn time(seconds: f64) -> Duration {
    // Also of a number that is no time.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let micros = (seconds * 1e6).round() as u64;
    Duration::from_micros(micros)
}

/// Bytes that are written as hexadecimal digits.
fn bytes(digits: &str) -> Option<Vec<u8>> {
    let pairs = digits.as_bytes().chunks(2);
    let byte = |pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    pairs.map(byte).collect()
}
