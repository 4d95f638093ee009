//! Markdown, such as GitHub's `$GITHUB_STEP_SUMMARY` or a comment takes: the verdict, the largest leaks, the processes.
//!
//! Names stand as code, in which nothing has a meaning.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::os::unix::ffi::OsStrExt as _;

use crate::model::finished::Finished;
use crate::model::image::Image;
use crate::model::lost::reached;
use crate::model::reach::Amount;
use crate::report::cells::{name, uncovered};
use crate::report::closing::closing_line;
use crate::report::documents::findings::{Finding, findings, is_judged, shortened};
use crate::text::escape;
use crate::text::units::{counted, grouped, megabytes};

/// How many bytes the document may have. GitHub's limit is 1 MiB.
const MOST_BYTES: usize = 900_000;

/// How many leaks and how many executables are shown.
const MOST_LEAKS: usize = 50;
const MOST_EXECUTABLES: usize = 20;

/// The document.
pub fn markdown(finished: &Finished) -> Vec<u8> {
    let summary = &finished.summary;
    let mut text = match summary.verdict() {
        Some(verdict) => format!("### memleak: gate {}\n\n", verdict.as_str()),
        None => "### memleak\n\n".to_owned(),
    };
    let lost = summary.lost.is_known();
    text.push_str(&format!("{}\n", code(&closing_line(summary, lost))));
    let findings = findings(finished);
    if !findings.is_empty() {
        text.push_str(&leaks(&findings));
    }
    text.push_str(&executables(finished, lost));
    text.into_bytes()
}

fn leaks(findings: &[Finding]) -> String {
    let mut text = "\n#### Leaks\n".to_owned();
    let mut shown = 0;
    for finding in findings.iter().take(MOST_LEAKS) {
        let own = finding.own.as_ref().map(|own| {
            let file = escape::escaped(own.file.as_os_str().as_bytes());
            format!(" at {}", code(&format!("{file}:{}", own.line)))
        });
        let leak = format!(
            "\n{} in {}{}\n\n{}",
            finding.title(),
            code(&finding.processes()),
            own.unwrap_or_default(),
            block(&finding.calls())
        );
        if text.len() + leak.len() > MOST_BYTES {
            break;
        }
        text.push_str(&leak);
        shown += 1;
    }
    if findings.len() > shown {
        let more = (findings.len() - shown) as u64;
        text.push_str(&format!("\n{}\n", counted(more, "more leak", "more leaks")));
    }
    text
}

/// What the processes of an executable come to.
#[derive(Default)]
struct Totals {
    processes: u64,
    allocated: u64,
    leaked: Amount,
    /// `None`: not known of all.
    lost: Option<Amount>,
}

impl Totals {
    fn add(&mut self, image: &Image) {
        let counters = &image.counters;
        let lost = reached(image).map(|reached| reached.lost());
        self.lost = match self.processes {
            0 => lost,
            _ => self.lost.zip(lost).map(|(sum, lost)| sum + lost),
        };
        self.processes += 1;
        self.allocated = self.allocated.saturating_add(counters.total_allocs_bytes);
        self.leaked += Amount {
            bytes: counters.leaked_bytes,
            blocks: counters.leaked_blocks,
        };
    }
}

/// A table of the executables, those that leaked most first. `lost`: with what their processes lost.
fn executables(finished: &Finished, lost: bool) -> String {
    let mut totals: HashMap<String, Totals> = HashMap::new();
    let mut unseen = 0_u64;
    for image in &finished.images {
        if is_judged(finished, image) {
            totals.entry(executable(image)).or_default().add(image);
            unseen += u64::from(image.uncovered.is_some());
        }
    }
    let mut rows: Vec<_> = totals.into_iter().collect();
    rows.sort_by(|(name, one), (other_name, other)| {
        let key = |totals: &Totals| Reverse((totals.leaked.bytes, totals.allocated));
        key(one).cmp(&key(other)).then_with(|| name.cmp(other_name))
    });
    if rows.is_empty() {
        return String::new();
    }
    let (head, line) = match lost {
        true => (" lost, bytes |", "---:|"),
        false => ("", ""),
    };
    let mut text = format!(
        "\n#### Processes\n\n| executable | processes | allocated, MB | leaked, bytes |{head}\n\
         |---|---:|---:|---:|{line}\n"
    );
    for (executable, totals) in rows.iter().take(MOST_EXECUTABLES) {
        let cell = match totals.lost {
            _ if !lost => String::new(),
            Some(lost) => format!(" {} |", grouped(lost.bytes)),
            None => " ? |".to_owned(),
        };
        text.push_str(&format!(
            "| {} | {} | {} | {} |{cell}\n",
            code(executable).replace('|', r"\|"),
            totals.processes,
            megabytes(totals.allocated),
            grouped(totals.leaked.bytes),
        ));
    }
    let more = rows.len().saturating_sub(MOST_EXECUTABLES);
    if more > 0 {
        text.push_str(&format!("\n{more} more executables\n"));
    }
    if finished.more_images > 0 {
        let images = counted(finished.more_images, "process", "processes");
        text.push_str(&format!("\n{images} more are in no row\n"));
    }
    if unseen > 0 {
        let why = finished.images.iter().find_map(|image| image.uncovered);
        let images = counted(unseen, "process", "processes");
        let why = why.map_or("", uncovered);
        text.push_str(&format!(
            "\n{images} not fully counted, for example: {why}\n"
        ));
    }
    text
}

fn executable(image: &Image) -> String {
    match &image.exe {
        Some(exe) => shortened(&escape::escaped(exe.as_os_str().as_bytes())),
        None => format!("{} (path unknown)", name(&image.comm)),
    }
}

/// The most backticks that stand together in a text.
fn ticks(text: &str) -> usize {
    let runs = text.split(|c| c != '`').map(str::len);
    runs.max().unwrap_or(0)
}

/// A text in a line, as code. The text has no line break.
fn code(text: &str) -> String {
    let fence = "`".repeat(ticks(text) + 1);
    // Without the blanks, a backtick at an end would belong to the fence.
    match text.starts_with('`') || text.ends_with('`') {
        true => format!("{fence} {text} {fence}"),
        false => format!("{fence}{text}{fence}"),
    }
}

/// Lines, as a block of code.
fn block(lines: &[String]) -> String {
    let longest = lines.iter().map(|line| ticks(line)).max().unwrap_or(0);
    let fence = "`".repeat(longest.max(2) + 1);
    format!("{fence}text\n{}\n{fence}\n", lines.join("\n"))
}
