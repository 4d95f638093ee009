//! How long a user waits for memleak: for its start and end, and from a process's end to its row.

use std::ffi::OsString;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::tool::{Tool, Toolbox, output_of};
use crate::workload::{built, median};

/// Number of blocks that a process leaks before its row is timed.
const LEFT: u64 = 1_000_000;

/// All in milliseconds.
pub struct Latency {
    /// `true` without memleak, from spawn to reaping.
    pub bare: f64,
    /// What empty probes add to that time. `None` where the machine cannot run the floor.
    pub floor: Option<f64>,
    /// What memleak adds to that time, including detaching.
    pub memleak: f64,
    /// From the end of a process that leaks [`LEFT`] blocks until the reader of a pipe has its row.
    pub row: f64,
}

pub fn measure(toolbox: &Toolbox, rounds: usize) -> Result<Latency> {
    println!("\nstart and end");
    let command = [OsString::from("true")];
    // Both measurements are cheap and vary more than a loop does, so they get more rounds.
    let rounds = rounds * 2;
    let mut bare = Vec::new();
    let mut floor = Vec::new();
    let mut memleak = Vec::new();
    let mut row = Vec::new();
    for _ in 0..rounds {
        bare.push(wall(toolbox, Tool::Bare, &command)?);
        if toolbox.has(Tool::Floor) {
            floor.push(wall(toolbox, Tool::Floor, &command)?);
        }
        memleak.push(wall(toolbox, Tool::Memleak, &command)?);
    }
    for _ in 0..rounds / 2 {
        row.push(exit_to_row(toolbox)?);
    }

    let bare = median(&mut bare);
    let measured = Latency {
        bare,
        floor: (!floor.is_empty()).then(|| median(&mut floor) - bare),
        memleak: median(&mut memleak) - bare,
        row: median(&mut row),
    };
    println!("  `true`: {bare:.1} ms");
    match measured.floor {
        Some(floor) => println!("  under empty probes: {floor:.1} ms more"),
        None => println!("  under empty probes: not measured"),
    }
    println!("  under memleak: {:.1} ms more", measured.memleak);
    println!(
        "  from the end of a process that leaks {LEFT} blocks to its row: {:.1} ms (highest {:.1})",
        measured.row,
        row[row.len() - 1]
    );
    Ok(measured)
}

/// Milliseconds from spawn to reaping.
fn wall(toolbox: &Toolbox, tool: Tool, command: &[OsString]) -> Result<f64> {
    let line = toolbox.wrap(tool, command)?;
    let began = Instant::now();
    let output = output_of(&line)?;
    let took = began.elapsed();
    ensure!(
        output.status.success(),
        "`true` under {} ended with {}",
        tool.name(),
        output.status
    );
    Ok(took.as_secs_f64() * 1e3)
}

/// Milliseconds from the end that the row states to the row's arrival at the reader of a pipe.
fn exit_to_row(toolbox: &Toolbox) -> Result<f64> {
    let mut child = Command::new(&toolbox.memleak)
        .args(["run", "--format", "json", "--"])
        .arg(built("hold"))
        .arg(LEFT.to_string())
        .arg("leave")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot start memleak")?;
    let stderr = child.stderr.take().context("memleak has no stderr")?;
    let mut latency = None;
    for line in BufReader::new(stderr).lines() {
        let line = line.context("cannot read the report")?;
        let arrived = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .context("the clock is before 1970")?;
        let record: Value =
            serde_json::from_str(&line).with_context(|| format!("not JSON: {line}"))?;
        if record["type"] == "process" && record["leaked_blocks"].as_u64() >= Some(LEFT) {
            let ended = record["end_time"].as_f64().context("no end_time")?;
            latency = Some((arrived.as_secs_f64() - ended) * 1e3);
        }
    }
    let status = child.wait().context("cannot wait for memleak")?;
    match latency {
        Some(latency) if status.success() => Ok(latency),
        _ => bail!("no row shows the {LEFT} leaked blocks ({status})"),
    }
}
