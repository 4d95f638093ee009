//! A page to look at: the call stacks as an icicle, the largest leaks with their stacks, the processes, the command and
//! the verdict. It is one file that loads nothing. What it does is in `page/`.
//!
//! Names are hostile text. They are only in the data, in which no `<` is: an element of scripts would end at `</script>`.
//! The page writes them as text.

use std::collections::HashMap;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use serde::Serialize;

use crate::model::bounds::Verdict;
use crate::model::finished::{Finished, Site};
use crate::model::image::{End, Image};
use crate::model::lost::reached;
use crate::model::reach::Amount;
use crate::model::stack::NamedFrame;
use crate::report::cells::note;
use crate::report::closing::closing_line;
use crate::report::documents::rows::{
    NumberedTexts, ProfileRow, STACK_UNKNOWN, function, missing_callers, rows,
};
use crate::report::words::lost;
use crate::text::escape;
use crate::text::signal_name::signal_name;

const PAGE: &str = include_str!("page/page.html");
const STYLE: &str = include_str!("page/page.css");
const SCRIPT: &str = include_str!("page/page.js");

/// Makes the document.
pub(in crate::report) fn html(finished: &Finished) -> Vec<u8> {
    let data = data(finished);
    let mut page = Vec::with_capacity(PAGE.len() + STYLE.len() + SCRIPT.len() + data.len());
    let mut rest = PAGE;
    // Each place once, in this order. So nothing in the data is taken for a place.
    for (place, text) in [("{{css}}", STYLE), ("{{data}}", &data), ("{{js}}", SCRIPT)] {
        let (before, after) = rest.split_once(place).unwrap_or((rest, ""));
        page.extend(before.as_bytes());
        page.extend(text.as_bytes());
        rest = after;
    }
    page.extend(rest.as_bytes());
    page
}

/// All that the page shows, as JSON without a `<`.
fn data(finished: &Finished) -> String {
    let mut names = NumberedTexts::default();
    let mut frames = PageFrames::default();
    let has_stacks = !finished.sites.is_empty();
    let images = finished
        .sites
        .iter()
        .map(Some)
        .chain(std::iter::repeat(None));
    let rows = rows(finished);
    let rows: Vec<PageRow> = rows
        .iter()
        .zip(images)
        .map(|(row, site)| PageRow::new(row, site, has_stacks, &mut names, &mut frames))
        .collect();
    let mut images: Vec<&Image> = finished.images.iter().collect();
    images
        .sort_by_key(|image| std::cmp::Reverse((leaked(image), image.counters.total_allocs_bytes)));
    let processes = images
        .into_iter()
        .map(|image| process(image, &mut names))
        .collect();
    let summary = &finished.summary;
    let about = &finished.about;
    let command = about.command.iter().map(|word| escape::escaped(word));
    let hosts = about
        .hosts
        .iter()
        .map(|host| escape::escaped(host.as_bytes()));
    let page = Page {
        command: command.collect::<Vec<_>>().join(" "),
        said: closing_line(summary, summary.lost.is_known()),
        verdict: summary.verdict().map(Verdict::as_str),
        hosts: hosts.collect(),
        began: about.began.as_secs_f64(),
        ended: about.ended.as_secs_f64(),
        lost: lost(&summary.lost).map(|lost| lost.bytes),
        leaked: summary.leaked.lower,
        allocated: summary.total_allocs_bytes,
        count: summary.processes,
        more: finished.more_images,
        more_stacks: finished.has_more_sites,
        processes,
        rows,
        frames: frames.in_order,
        names: names.in_order,
    };
    // Texts and numbers can always be written.
    let json = serde_json::to_string(&page).unwrap_or_default();
    json.replace('<', "\\u003c")
}

/// Names are written once, and then known by their numbers.
#[derive(Serialize)]
struct Page {
    command: String,
    said: String,
    verdict: Option<&'static str>,
    hosts: Vec<String>,
    began: f64,
    ended: f64,
    lost: Option<u64>,
    leaked: u64,
    allocated: u64,
    count: u64,
    more: u64,
    #[serde(rename = "moreStacks")]
    more_stacks: bool,
    processes: Vec<ProcessCells>,
    rows: Vec<PageRow>,
    frames: Vec<FrameCells>,
    names: Vec<String>,
}

/// Pid, command, user, allocated, leaked, lost, end, note. Amounts are in bytes.
type ProcessCells = (
    u32,
    usize,
    usize,
    u64,
    Option<u64>,
    Option<u64>,
    usize,
    usize,
);

/// Function, module, file, line, and whether it is inlined.
type FrameCells = (usize, usize, usize, Option<u32>, bool);

/// What was allocated by a call stack.
#[derive(Serialize)]
struct PageRow {
    process: usize,
    exe: Option<usize>,
    /// How many processes. 0: it is not known.
    images: u64,
    /// The innermost comes first. `None`: the stack is not known.
    frames: Option<Vec<usize>>,
    /// What stands for callers or a stack that are not known.
    missing: Option<usize>,
    /// Bytes and blocks: lost, leaked, allocated. `None`: it is not known what is lost.
    values: [Option<u64>; 6],
}

impl PageRow {
    fn new(
        row: &ProfileRow,
        site: Option<&Site>,
        has_stacks: bool,
        names: &mut NumberedTexts,
        frames: &mut PageFrames,
    ) -> Self {
        let lost = row.reached.map(|reached| reached.lost());
        let missing = match row.stack {
            Some(stack) => missing_callers(stack),
            None => has_stacks.then_some(STACK_UNKNOWN),
        };
        let numbers = row.stack.map(|stack| {
            let frames = stack.frames.iter().map(|frame| frames.number(frame, names));
            frames.collect()
        });
        let both = |Amount { bytes, blocks }| [Some(bytes), Some(blocks)];
        let [lost, leaked, allocated] = [
            lost.map_or([None; 2], both),
            both(row.leaked),
            both(row.allocated),
        ];
        Self {
            process: names.number(row.process()),
            exe: row.exe.map(|exe| names.number(shown(exe))),
            images: site.map_or(0, |site| site.images),
            frames: numbers,
            missing: missing.map(|text| names.number(text.to_owned())),
            values: [
                lost[0],
                lost[1],
                leaked[0],
                leaked[1],
                allocated[0],
                allocated[1],
            ],
        }
    }
}

#[derive(Default)]
struct PageFrames {
    numbers: HashMap<FrameCells, usize>,
    in_order: Vec<FrameCells>,
}

impl PageFrames {
    fn number(&mut self, frame: &NamedFrame, names: &mut NumberedTexts) -> usize {
        let path = |path: Option<&Path>| path.map(shown).unwrap_or_default();
        let cells = (
            names.number(function(frame)),
            names.number(path(frame.module.as_deref())),
            names.number(path(frame.file.as_deref())),
            frame.line,
            frame.inlined,
        );
        *self.numbers.entry(cells).or_insert_with(|| {
            self.in_order.push(cells);
            self.in_order.len() - 1
        })
    }
}

fn shown(path: &Path) -> String {
    escape::escaped(path.as_os_str().as_bytes())
}

/// What an image leaked, if it has ended.
fn leaked(image: &Image) -> Option<u64> {
    match image.end {
        End::Exited(_) | End::Signaled { .. } => Some(image.counters.leaked_bytes),
        End::Exec | End::Running => None,
    }
}

fn process(image: &Image, names: &mut NumberedTexts) -> ProcessCells {
    let user = image
        .user
        .as_ref()
        .map(|user| escape::escaped(user.as_bytes()));
    let end = match image.end {
        End::Exited(code) => format!("exit {code}"),
        End::Signaled { signal, .. } => signal_name(signal).into_owned(),
        End::Exec => "exec".to_owned(),
        End::Running => "running".to_owned(),
    };
    (
        image.pid,
        names.number(escape::escaped(&image.comm)),
        names.number(user.unwrap_or_else(|| image.uid.to_string())),
        image.counters.total_allocs_bytes,
        leaked(image),
        reached(image).map(|reached| reached.lost().bytes),
        names.number(end),
        names.number(note(image, true)),
    )
}
