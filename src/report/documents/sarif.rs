//! SARIF 2.1.0, the format of results of static analysis. GitHub and many editors show it beside the sources.
//!
//! GitHub takes only results with a line. It tells a result of one run from those of another by `primaryLocationLineHash`,
//! which is the identity of the call stack: a leak stays the same leak when lines move.
//! (<https://docs.oasis-open.org/sarif/sarif/v2.1.0/sarif-v2.1.0.html>,
//! <https://docs.github.com/code-security/code-scanning/integrating-with-code-scanning/sarif-support-for-code-scanning>)

use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use serde_json::{Value, json};

use crate::model::finished::Finished;
use crate::model::reach::Amount;
use crate::model::stack::NamedFrame;
use crate::report::cells::in_blocks;
use crate::report::documents::findings::{Fate, Finding, OwnLine, Weight, findings, shortened};
use crate::text::escape;
use crate::text::units::counted;

/// How many results GitHub shows.
const MOST: usize = 5_000;

/// How many frames of a stack are in a result, so that the file stays far below 10 MB (compressed), GitHub's limit.
const MOST_FRAMES: usize = 24;

/// The file.
pub fn sarif(finished: &Finished) -> Vec<u8> {
    let findings = findings(finished);
    let (placed, others): (Vec<_>, Vec<_>) =
        findings.iter().partition(|finding| finding.own.is_some());
    let mut notifications = Vec::new();
    if !others.is_empty() {
        let mut sum = Amount::default();
        others.iter().for_each(|other| sum += other.amount);
        notifications.push(notification(&format!(
            "in no source file below the directory in which memleak was started: {} of {}",
            counted(others.len() as u64, "leak", "leaks"),
            in_blocks(sum)
        )));
    }
    if placed.len() > MOST {
        notifications.push(notification(&format!(
            "{} smaller leaks are left out",
            placed.len() - MOST
        )));
    }
    let placed = placed.into_iter().take(MOST);
    let results: Vec<_> = placed.filter_map(result).collect();
    let log = json!({
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [{
            "tool": { "driver": driver() },
            "automationDetails": { "id": "memleak/" },
            "columnKind": "utf16CodeUnits",
            "invocations": [{
                "executionSuccessful": finished.summary.outcome.ran(),
                "toolExecutionNotifications": notifications,
            }],
            "results": results,
        }],
    });
    format!("{log:#}\n").into_bytes()
}

fn notification(text: &str) -> Value {
    json!({ "level": "note", "message": { "text": text } })
}

fn driver() -> Value {
    let rule = |fate: Fate, short: &str, full: &str, help: &str| {
        json!({
            "id": rule_id(fate),
            "name": match fate { Fate::Lost => "MemoryLost", Fate::Leaked => "MemoryLeaked" },
            "shortDescription": { "text": short },
            "fullDescription": { "text": full },
            "help": { "text": help },
            "defaultConfiguration": { "level": "warning" },
            "properties": { "tags": ["memory", "leak"] },
        })
    };
    json!({
        "name": "memleak",
        "version": env!("CARGO_PKG_VERSION"),
        "rules": [
            rule(
                Fate::Lost,
                "Memory is lost.",
                "The process ended with memory that it had allocated here, never freed, and had no pointer to any more.",
                "Free the memory before the last pointer to it goes out of scope or is overwritten.",
            ),
            rule(
                Fate::Leaked,
                "Memory is never freed.",
                "The process ended with memory that it had allocated here and never freed.",
                "Free the memory when it is no longer needed. Memory that the program keeps until its end may be allowed by \
                 a limit, a baseline or a suppression.",
            ),
        ],
    })
}

fn rule_id(fate: Fate) -> String {
    format!("memleak/{}", fate.word())
}

fn result(finding: &Finding) -> Option<Value> {
    let own = finding.own.as_ref()?;
    let level = match finding.weight {
        Weight::Error => "error",
        Weight::Warning => "warning",
        Weight::Note => "note",
    };
    let frames = finding.stack.frames().take(MOST_FRAMES);
    let frames: Vec<_> = frames.map(frame).collect();
    Some(json!({
        "ruleId": rule_id(finding.fate),
        "ruleIndex": finding.fate as usize,
        "level": level,
        "message": { "text": finding.sentence() },
        "locations": [{ "physicalLocation": physical(own) }],
        "partialFingerprints": {
            "primaryLocationLineHash": format!("{:016x}", finding.stack.identity),
        },
        "stacks": [{ "message": { "text": finding.title() }, "frames": frames }],
    }))
}

/// GitHub demands all four fields of a region. Only the line is known: the region is its first character.
fn physical(own: &OwnLine) -> Value {
    json!({
        "artifactLocation": { "uri": relative_uri(&own.file) },
        "region": {
            "startLine": own.line,
            "startColumn": 1,
            "endLine": own.line,
            "endColumn": 2,
        },
    })
}

fn frame(frame: &NamedFrame) -> Value {
    let base = |path: &Path| {
        let name = path.file_name().unwrap_or(path.as_os_str());
        escape::escaped(name.as_bytes())
    };
    let function = frame.function.as_ref();
    let function = function.map(|name| shortened(&escape::escaped(name.as_bytes())));
    let function = function.unwrap_or_else(|| format!("{:#x}", frame.offset));
    let mut shown = json!({
        "location": { "logicalLocations": [{ "fullyQualifiedName": function }] },
    });
    if let Some(module) = &frame.module {
        shown["module"] = base(module).into();
    }
    if let (Some(file), Some(line)) = (&frame.file, frame.line.filter(|line| *line > 0)) {
        let line = format!("{}:{line}", base(file));
        shown["location"]["message"] = json!({ "text": line });
    }
    shown
}

/// A relative path as a reference of a URI (RFC 3986). Bytes that have a meaning there are escaped.
fn relative_uri(path: &Path) -> String {
    let mut uri = String::new();
    for &byte in path.as_os_str().as_bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'.' | b'-' | b'_' | b'~' | b'+' => {
                uri.push(char::from(byte));
            }
            _ => uri.push_str(&format!("%{byte:02X}")),
        }
    }
    uri
}
