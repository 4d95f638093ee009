//! A file for valgrind's `dh_view.html`, and for the Firefox Profiler
//! (<https://valgrind.org/docs/manual/dh-manual.html>, version 2 of the format).
//!
//! What leaked is what lives at the end. memleak knows neither how long a block lived, nor what lived at other times. So
//! lifetimes are 0, and the end stands for the time at which most was live.

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt as _;

use serde::Serialize;

use crate::model::finished::Finished;
use crate::model::reach::Amount;
use crate::model::stack::NamedFrame;
use crate::report::documents::rows::{
    NumberedTexts, ProfileRow, STACK_UNKNOWN, base, function, missing_callers, rows,
};
use crate::text::escape;

/// Names and order of the fields are those of the format.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Dhat {
    dhat_file_version: u32,
    mode: &'static str,
    verb: &'static str,
    /// Whether there are fields of lifetimes, among which is what lives at the end.
    bklt: bool,
    /// Whether there are fields of accesses.
    bkacc: bool,
    /// The unit of time, and a million of it.
    tu: &'static str,
    #[serde(rename = "Mtu")]
    mtu: &'static str,
    /// Which lifetime is short.
    tuth: u64,
    cmd: String,
    pid: u32,
    /// When most was live.
    tg: u64,
    te: u64,
    pps: Vec<Point>,
    ftbl: Vec<String>,
}

/// What was allocated by one call stack: bytes and blocks in total, at most, at the time `tg`, and at the end.
#[derive(Serialize)]
struct Point {
    tb: u64,
    tbk: u64,
    tl: u64,
    mb: u64,
    mbk: u64,
    gb: u64,
    gbk: u64,
    eb: u64,
    ebk: u64,
    fs: Vec<usize>,
}

/// Makes the document.
pub(in crate::report) fn dhat(finished: &Finished) -> Vec<u8> {
    let mut frames = NumberedTexts::default();
    frames.number("[root]".to_owned());
    // A call stack must be there once only.
    let mut sums: BTreeMap<Vec<usize>, (Amount, Amount)> = BTreeMap::new();
    let has_stacks = !finished.sites.is_empty();
    for row in rows(finished) {
        let names = names(&row, has_stacks);
        let numbers = names.into_iter().map(|name| frames.number(name)).collect();
        let (allocated, leaked) = sums.entry(numbers).or_default();
        *allocated += row.allocated;
        *leaked += row.leaked;
    }
    let points = sums.into_iter().map(|(fs, (allocated, leaked))| Point {
        tb: allocated.bytes,
        tbk: allocated.blocks,
        tl: 0,
        mb: leaked.bytes,
        mbk: leaked.blocks,
        gb: leaked.bytes,
        gbk: leaked.blocks,
        eb: leaked.bytes,
        ebk: leaked.blocks,
        fs,
    });
    let about = &finished.about;
    let lasted = about.ended.saturating_sub(about.began).as_micros();
    let lasted = u64::try_from(lasted).unwrap_or(u64::MAX);
    let command = about.command.iter().map(|word| escape::escaped(word));
    let dhat = Dhat {
        dhat_file_version: 2,
        mode: "heap",
        verb: "Allocated",
        bklt: true,
        bkacc: false,
        tu: "µs",
        mtu: "s",
        tuth: 0,
        cmd: command.collect::<Vec<_>>().join(" "),
        pid: 0,
        tg: lasted,
        te: lasted,
        pps: points.collect(),
        ftbl: frames.in_order,
    };
    // Texts and numbers can always be written.
    let mut document = serde_json::to_vec(&dhat).unwrap_or_default();
    document.push(b'\n');
    document
}

/// The frames of a row, the innermost first, and the process.
fn names(row: &ProfileRow, has_stacks: bool) -> Vec<String> {
    let mut names = Vec::new();
    if let Some(stack) = row.stack {
        names.extend(stack.frames().map(frame));
        names.extend(missing_callers(stack).map(no_code));
    } else if has_stacks {
        names.push(no_code(STACK_UNKNOWN));
    }
    let process = row.process();
    names.push(match row.exe {
        Some(exe) => {
            let exe = escape::escaped(exe.as_os_str().as_bytes());
            format!("0x0: {process} (in {exe})")
        }
        None => no_code(&process),
    });
    names
}

fn no_code(name: &str) -> String {
    format!("0x0: {name}")
}

/// As valgrind writes a frame: `0x1234: function (file.c:7)`, or with the file that has the code.
fn frame(frame: &NamedFrame) -> String {
    let name = function(frame);
    let place = match (&frame.file, frame.line, &frame.module) {
        (Some(file), Some(line), _) => format!(" ({}:{line})", base(file)),
        (_, _, Some(module)) => {
            let module = escape::escaped(module.as_os_str().as_bytes());
            format!(" (in {module})")
        }
        _ => String::new(),
    };
    format!("{:#x}: {name}{place}", frame.offset)
}
