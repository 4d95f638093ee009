//! Very many processes under one memleak: whether each process has its row, what a process costs, and how
//! much memory memleak takes.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::tool::Toolbox;
use crate::workload::built;

/// Number of processes. It is larger than the default number of pids.
pub const PROCESSES: u64 = 100_000;

/// Number of rows that are written when the memory is first measured.
pub const EARLY: u64 = 20_000;

pub struct Crowd {
    /// Microseconds per process, including memleak's start and end.
    pub each: f64,
    /// memleak's resident memory in kilobytes: after [`EARLY`] rows, and the most that it had later.
    pub early_kb: u64,
    pub most_kb: u64,
}

pub fn measure(toolbox: &Toolbox) -> Result<Crowd> {
    println!("\n{PROCESSES} processes through one memleak");
    let report = toolbox.report();
    let began = Instant::now();
    let mut memleak = Command::new(&toolbox.memleak)
        // Call stacks are kept until the end.
        .args(["run", "--stacks=never", "--format", "json", "-o"])
        .arg(&report)
        .arg("--")
        .arg(built("spawn"))
        .arg(PROCESSES.to_string())
        .arg("fork")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .context("cannot start memleak")?;
    // Pairs: bytes of the report, kilobytes of memory.
    let mut samples: Vec<(u64, u64)> = Vec::new();
    let status = loop {
        if let Some(status) = memleak.try_wait().context("cannot wait for memleak")? {
            break status;
        }
        if let Some(resident) = resident_kb(memleak.id()) {
            samples.push((report.metadata().map_or(0, |file| file.len()), resident));
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    let took = began.elapsed();
    ensure!(status.success(), "memleak ended with {status}");

    let text = std::fs::read_to_string(&report).context("no report")?;
    let rows = text.lines().filter(|line| line.contains(r#""process""#));
    let rows = rows.count() as u64;
    ensure!(
        rows == PROCESSES + 1,
        "{rows} rows for {PROCESSES} children and one parent"
    );
    let summary: Value = serde_json::from_str(text.lines().last().unwrap_or_default())
        .context("the report has no summary")?;
    ensure!(summary["complete"] == true, "the report is not complete");

    let all = text.len() as u64;
    let mut later = samples
        .iter()
        .skip_while(|(written, _)| written * PROCESSES < all * EARLY)
        .map(|(_, resident)| *resident);
    let early_kb = later
        .next()
        .context("the run ended before its memory was measured")?;
    let crowd = Crowd {
        each: took.as_secs_f64() * 1e6 / PROCESSES as f64,
        early_kb,
        most_kb: later.max().unwrap_or(early_kb),
    };
    ensure!(
        crowd.most_kb <= crowd.early_kb + 2048,
        "memleak grows: {} kB resident after {EARLY} rows, {} kB later",
        crowd.early_kb,
        crowd.most_kb
    );
    println!(
        "  {:.1} µs each; {rows} rows; resident {} kB after {EARLY}, at most {} kB later",
        crowd.each, crowd.early_kb, crowd.most_kb
    );
    Ok(crowd)
}

fn resident_kb(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
    line.split_ascii_whitespace().nth(1)?.parse().ok()
}
