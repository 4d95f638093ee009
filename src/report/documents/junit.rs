//! The form in which test runners report results, which every CI shows: `JUnit`'s XML.
//!
//! A case is a label if processes have one, else an executable, with all its processes together. It has no pid in its name, because readers know a case by
//! its names from run to run. What is to be read is in the body of `failure` and not in its `message`, which GitLab does
//! not show. Only a gate makes a case fail.
//! (<https://docs.gitlab.com/ci/testing/unit_test_reports/>, <https://github.com/testmoapp/junitxml>)

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::time::Duration;

use crate::model::bounds::Verdict;
use crate::model::finished::{Finished, Site};
use crate::model::image::{Counters, Image};
use crate::model::judgement::Judgement;
use crate::model::ledger::Summary;
use crate::model::lost::reached;
use crate::model::reach::Amount;
use crate::report::cells::{in_blocks, name, note};
use crate::report::closing::verdict_line;
use crate::report::documents::findings::{Finding, findings_of, is_judged, shortened, verdicts};
use crate::text::escape;
use crate::text::units::{counted, grouped};

/// How many leaks of a case are shown.
const MOST_LEAKS: usize = 20;

/// How many cases there may be, so that the file stays below 30 MB, GitLab's limit.
const MOST_CASES: usize = 2_000;

/// The file.
pub fn junit(finished: &Finished) -> Vec<u8> {
    let mut cases: BTreeMap<CaseNames, TestCase> = BTreeMap::new();
    for image in &finished.images {
        if is_judged(finished, image) {
            let key = CaseNames::of(finished, image);
            cases.entry(key).or_default().images.push(image);
        }
    }
    let mut written: Vec<_> = cases
        .iter()
        .map(|(key, case)| case.write(finished, key))
        .collect();
    // Those that failed stay, if there are too many.
    written.sort_by_key(|case| Reverse(case.verdict));
    written.truncate(MOST_CASES);
    written.extend(together(finished, &written));
    let count = |wanted| {
        let verdicts = written.iter().filter(|case| case.verdict == Some(wanted));
        verdicts.count()
    };
    let (failures, errors) = (count(Verdict::Failed), count(Verdict::Unknown));
    let about = &finished.about;
    let time = seconds(about.ended.saturating_sub(about.began));
    let counts = format!(
        "tests=\"{}\" failures=\"{failures}\" errors=\"{errors}\" time=\"{time}\"",
        written.len()
    );
    let cases: String = written.into_iter().map(|case| case.xml).collect();
    format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites name=\"memleak\" {counts}>\n  \
         <testsuite name=\"memleak\" skipped=\"0\" {counts}>\n{cases}  </testsuite>\n</testsuites>\n"
    )
    .into_bytes()
}

/// What readers know a case by.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct CaseNames {
    class: String,
    name: String,
}

impl CaseNames {
    fn of(finished: &Finished, image: &Image) -> Self {
        if !image.labels.is_empty() {
            let names: Vec<_> = image.labels.keys().map(String::as_str).collect();
            let values = image.labels.values();
            let values: Vec<_> = values.map(|value| escape::escaped(value)).collect();
            return Self {
                class: format!("memleak.{}", names.join("+")),
                name: values.join(" "),
            };
        }
        let directory = finished.about.directory.as_deref();
        let own = |exe: &Path| {
            let below = exe.strip_prefix(directory?).ok()?;
            Some(below.to_owned())
        };
        let name = match &image.exe {
            Some(exe) => {
                let exe = own(exe).unwrap_or_else(|| exe.clone());
                escape::escaped(exe.as_os_str().as_bytes())
            }
            None => format!("{} (path unknown)", name(&image.comm)),
        };
        let class = "memleak".to_owned();
        Self { class, name }
    }
}

/// A case that is written. The lightest verdict comes last.
struct Written {
    verdict: Option<Verdict>,
    xml: String,
}

/// The processes of a case.
#[derive(Default)]
struct TestCase<'a> {
    images: Vec<&'a Image>,
}

impl TestCase<'_> {
    fn write(&self, finished: &Finished, key: &CaseNames) -> Written {
        let gate = finished.summary.gate.as_ref();
        let verdict = gate.map(|_| self.verdict(&finished.summary));
        let mut lines = Vec::new();
        if let Some(gate) = gate {
            lines.extend(self.reasons(gate, &finished.summary));
        }
        lines.extend(self.leaks(finished));
        Written {
            verdict,
            xml: element(key, self.time(), verdict, &lines),
        }
    }

    /// The verdict of the limits for one process over all of them.
    fn verdict(&self, summary: &Summary) -> Verdict {
        let verdicts = self
            .images
            .iter()
            .flat_map(|image| verdicts(summary, image));
        verdicts.flatten().max().unwrap_or(Verdict::Passed)
    }

    /// What the limits for one process say that do not pass.
    fn reasons(&self, gate: &Judgement, summary: &Summary) -> Vec<String> {
        let of = counted(self.images.len() as u64, "process", "processes");
        let kinds = [("leaked", &gate.leak), ("lost", &gate.lost)];
        let mut reasons = Vec::new();
        for (at, (did, judged)) in kinds.into_iter().enumerate() {
            let Some(limit) = judged.as_ref().and_then(|judged| judged.limits.process) else {
                continue;
            };
            let count = |wanted| {
                let verdicts = self.images.iter().map(|image| verdicts(summary, image)[at]);
                verdicts.filter(|verdict| *verdict == Some(wanted)).count()
            };
            let beyond = summary.baseline.as_ref().map(|_| " beyond the baseline");
            let beyond = beyond.unwrap_or_default();
            let more = format!("{of} {did} more than {} bytes{beyond}", grouped(limit));
            match (count(Verdict::Failed), count(Verdict::Unknown)) {
                (0, 0) => {}
                (0, unknown) => {
                    reasons.push(format!("whether {unknown} of {more} cannot be told"));
                    reasons.extend(self.notes());
                }
                (failed, _) => reasons.push(format!("{failed} of {more}")),
            }
        }
        reasons
    }

    /// Why something is not known, each reason once.
    fn notes(&self) -> Vec<String> {
        let notes = self.images.iter().map(|image| note(image, true));
        let notes: BTreeSet<_> = notes.filter(|note| !note.is_empty()).collect();
        notes.into_iter().collect()
    }

    /// The leaks, or without call stacks what the processes come to.
    fn leaks(&self, finished: &Finished) -> Vec<String> {
        let is_own = |site: &Site| {
            let mut images = self.images.iter();
            images.any(|image| image.exe == site.exe && image.labels == site.labels)
        };
        let findings = findings_of(finished, is_own);
        let mut lines: Vec<_> = findings
            .iter()
            .take(MOST_LEAKS)
            .map(Finding::text)
            .collect();
        if findings.len() > MOST_LEAKS {
            lines.push(format!("{} more leaks", findings.len() - MOST_LEAKS));
        }
        if lines.is_empty() && finished.sites.is_empty() {
            let leaking = self.images.iter();
            let mut leaking: Vec<_> = leaking
                .filter(|image| image.counters.leaked_blocks > 0)
                .collect();
            leaking.sort_by_key(|image| Reverse(image.counters.leaked_bytes));
            lines.extend(leaking.iter().take(MOST_LEAKS).map(|image| {
                let Counters {
                    leaked_bytes: bytes,
                    leaked_blocks: blocks,
                    ..
                } = image.counters;
                let leaked = in_blocks(Amount { bytes, blocks });
                let lost = match reached(image) {
                    Some(reached) => format!(", lost {}", in_blocks(reached.lost())),
                    None => String::new(),
                };
                format!("{}: leaked {leaked}{lost}", name(&image.comm))
            }));
            if leaking.len() > MOST_LEAKS {
                lines.push(format!("{} more processes", leaking.len() - MOST_LEAKS));
            }
        }
        lines
    }

    /// For how long at least one of the processes ran.
    fn time(&self) -> Duration {
        let mut spans: Vec<_> = self
            .images
            .iter()
            .map(|image| (image.start_time, image.end_time))
            .collect();
        spans.sort();
        let mut time = Duration::ZERO;
        let mut until = Duration::ZERO;
        for (start, end) in spans {
            time += end.saturating_sub(start.max(until));
            until = until.max(end);
        }
        time
    }
}

/// A case for what the gates say of all processes together, or of none in particular.
fn together(finished: &Finished, written: &[Written]) -> Option<Written> {
    let gate = finished.summary.gate.as_ref()?;
    let totals = [&gate.leak, &gate.lost].into_iter().flatten();
    let total = totals.filter_map(|judged| judged.total).max();
    let said = written.iter().filter_map(|case| case.verdict).max();
    let verdict = match gate.verdict() {
        // The cases do not say it: it is about rows that are missing, or about processes that are not kept.
        verdict if said.is_none_or(|said| said < verdict) => verdict,
        _ => total?,
    };
    let key = CaseNames {
        class: "memleak.gate".to_owned(),
        name: "all processes together".to_owned(),
    };
    let line = verdict_line(&finished.summary).unwrap_or_else(|| gate.to_string());
    let about = &finished.about;
    let time = about.ended.saturating_sub(about.began);
    Some(Written {
        verdict: Some(verdict),
        xml: element(&key, time, Some(verdict), &[line]),
    })
}

/// A case. What it has to say is its failure, or its output where nothing failed.
fn element(key: &CaseNames, time: Duration, verdict: Option<Verdict>, lines: &[String]) -> String {
    let (class, name) = (xml(&key.class), xml(&shortened(&key.name)));
    let head = format!(
        "    <testcase classname=\"{class}\" name=\"{name}\" time=\"{}\"",
        seconds(time)
    );
    let (tag, kind) = match verdict {
        Some(Verdict::Failed) => ("failure", " type=\"leak\""),
        Some(Verdict::Unknown) => ("error", " type=\"unknown\""),
        Some(Verdict::Passed) | None if lines.is_empty() => return format!("{head}/>\n"),
        Some(Verdict::Passed) | None => ("system-out", ""),
    };
    let message = match (tag, lines.first()) {
        ("system-out", _) | (_, None) => String::new(),
        (_, Some(line)) => format!(
            " message=\"{}\"",
            xml(line.lines().next().unwrap_or_default())
        ),
    };
    let body = xml(&lines.join("\n"));
    format!("{head}>\n      <{tag}{kind}{message}>{body}</{tag}>\n    </testcase>\n")
}

/// A text as the content of an element, or as a value in double quotes. It has only printable characters and line
/// breaks.
fn xml(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

fn seconds(time: Duration) -> String {
    format!("{}.{:06}", time.as_secs(), time.subsec_micros())
}
