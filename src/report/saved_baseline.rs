//! Reads a baseline: a report that memleak has saved as JSON. `json` has the form of its lines.

use std::collections::HashMap;
use std::io::BufRead;
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;

use crate::model::baseline::{Baseline, BaselineProcess, LeakSize, StackLeak};
use crate::report::render::SCHEMA;
use crate::text::escape;

/// The fields of all lines that a baseline needs.
#[derive(Deserialize)]
struct Line {
    schema: String,
    r#type: String,
    #[serde(default)]
    pid: u32,
    #[serde(default)]
    image: u32,
    #[serde(default)]
    comm: String,
    exe: Option<PathBuf>,
    #[serde(default)]
    end: String,
    #[serde(default)]
    leaked_bytes: u64,
    reach: Option<LostPart>,
    #[serde(default)]
    stack: String,
    #[serde(default)]
    frames: Vec<Innermost>,
}

#[derive(Deserialize)]
struct LostPart {
    definite_bytes: u64,
    indirect_bytes: u64,
}

#[derive(Deserialize)]
struct Innermost {
    function: Option<String>,
    module: Option<PathBuf>,
    file: Option<PathBuf>,
    line: Option<u32>,
}

impl Innermost {
    /// As printable text: `make_node list.c:31`, or what is known of that.
    fn text(&self) -> String {
        let base = |path: &PathBuf| {
            let name = path.file_name().unwrap_or(path.as_os_str());
            name.to_string_lossy().into_owned()
        };
        let place = match (&self.file, self.line, &self.module) {
            (Some(file), Some(line), _) => Some(format!("{}:{line}", base(file))),
            (_, _, Some(module)) => Some(base(module)),
            _ => None,
        };
        let words: Vec<_> = self.function.clone().into_iter().chain(place).collect();
        escape::line(&words.join(" "))
    }
}

/// Reads a report, of one run or of several. A line that was cut off at the end, as by a full disk, is an error.
///
/// # Errors
/// It cannot be read, or it is no report in JSON.
pub fn read_baseline(report: impl BufRead) -> Result<Baseline> {
    let mut processes: HashMap<(u32, u32), BaselineProcess> = HashMap::new();
    let mut baseline = Baseline::default();
    let mut is_report = false;
    for (at, line) in report.split(b'\n').enumerate() {
        let line = line?;
        if line.trim_ascii().is_empty() {
            continue;
        }
        let number = at + 1;
        let wrong = || {
            format!("line {number} is none of memleak's JSON (write a baseline by -o json=FILE)")
        };
        let line: Line = serde_json::from_slice(&line).with_context(wrong)?;
        ensure!(
            line.schema == SCHEMA,
            "line {number} has the schema '{}', not {SCHEMA}",
            escape::line(&line.schema)
        );
        is_report = true;
        let lost = line
            .reach
            .as_ref()
            .map(|reach| reach.definite_bytes.saturating_add(reach.indirect_bytes));
        let size = LeakSize {
            leaked: line.leaked_bytes,
            lost,
        };
        match &*line.r#type {
            "process" if line.end == "exited" || line.end == "signaled" => {
                let process = BaselineProcess {
                    exe: line.exe,
                    comm: line.comm.into_bytes(),
                    size,
                    stacks: Vec::new(),
                };
                // Another process had its pid.
                if let Some(other) = processes.insert((line.pid, line.image), process) {
                    baseline.add(other);
                }
            }
            "stack" => {
                let identity = u64::from_str_radix(&line.stack, 16).with_context(wrong)?;
                if let Some(process) = processes.get_mut(&(line.pid, line.image)) {
                    process.stacks.push(StackLeak {
                        identity,
                        size,
                        place: line.frames.first().map(Innermost::text).unwrap_or_default(),
                    });
                }
            }
            // The next run has its own pids.
            "summary" => processes
                .drain()
                .for_each(|(_, process)| baseline.add(process)),
            _ => {}
        }
    }
    ensure!(is_report, "it is empty (write a baseline by -o json=FILE)");
    processes
        .drain()
        .for_each(|(_, process)| baseline.add(process));
    Ok(baseline)
}
