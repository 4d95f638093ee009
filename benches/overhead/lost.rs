//! What the search for lost blocks costs: how long a process is held at its end, how long its verdict takes, and how much
//! longer commands take.

use std::ffi::OsString;
use std::fs;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::tool::{Toolbox, output_of};
use crate::workload::{built, line, median};

/// A process that is read when it ends.
struct Case {
    title: &'static str,
    blocks: u64,
    megabytes: u64,
    /// memleak's table of live blocks.
    most_blocks: &'static str,
    /// It is measured only in every so many rounds.
    every: usize,
}

const CASES: [Case; 4] = [
    Case {
        title: "10,000 live blocks",
        blocks: 10_000,
        megabytes: 0,
        most_blocks: "2097152",
        every: 1,
    },
    Case {
        title: "1,000,000 live blocks",
        blocks: 1_000_000,
        megabytes: 0,
        most_blocks: "2097152",
        every: 1,
    },
    Case {
        title: "10,000,000 live blocks (`--max-allocs 12000000`)",
        blocks: 10_000_000,
        megabytes: 0,
        most_blocks: "12000000",
        every: 3,
    },
    Case {
        title: "10 live blocks and 1 GB of numbers",
        blocks: 10,
        megabytes: 1024,
        most_blocks: "2097152",
        every: 1,
    },
];

/// A command, run under memleak with `--lost=never` and with another option.
struct Pair {
    title: &'static str,
    option: &'static str,
    command: &'static [&'static str],
    operations: u64,
}

const PAIRS: [Pair; 4] = [
    Pair {
        title: "a g++ build of one file",
        option: "--lost=always",
        command: &["starts", "{}", "g++", "-o", "/dev/null", "objects.cc"],
        operations: 1,
    },
    Pair {
        title: "a perl script",
        option: "--lost=always",
        command: &["starts", "{}", "perl", "words.pl", "20000"],
        operations: 3,
    },
    Pair {
        title: "300 short processes (`/bin/true`)",
        option: "--lost=auto",
        command: &["spawn", "{}"],
        operations: 300,
    },
    Pair {
        title: "`make -j2` of thirty C files",
        option: "--lost=auto",
        command: &["starts", "{}", "make", "-s", "-B", "-j2", "-C", "project"],
        operations: 1,
    },
];

const NEVER: &str = "--lost=never";

/// The median of some rounds, with the lowest and the highest.
pub struct Spread {
    pub median: f64,
    pub lowest: f64,
    pub highest: f64,
}

impl Spread {
    fn of(mut samples: Vec<f64>) -> Self {
        Self {
            median: median(&mut samples),
            lowest: samples[0],
            highest: samples[samples.len() - 1],
        }
    }
}

/// All times in milliseconds.
pub struct Lost {
    /// For each case: how long the process was held, and from then how long the verdict took.
    pub held: Vec<(&'static str, [Spread; 2])>,
    /// For each pair: its other option, the time with `--lost=never`, the time with that option, and their ratio.
    pub commands: Vec<(&'static str, &'static str, [Spread; 3])>,
}

pub fn measure(toolbox: &Toolbox, rounds: usize) -> Result<Lost> {
    println!("\nlost or reachable");
    let mut held = Vec::new();
    for case in CASES {
        let mut samples = [Vec::new(), Vec::new()];
        // A virtual machine may get memory from its host only when it first uses it, and that takes longer than all else.
        once(toolbox, &case).with_context(|| case.title)?;
        for _ in (0..rounds).step_by(case.every) {
            let times = once(toolbox, &case).with_context(|| case.title)?;
            for (samples, time) in samples.iter_mut().zip(times) {
                samples.push(time);
            }
        }
        let spreads = samples.map(Spread::of);
        for (what, spread) in ["held", "verdict"].iter().zip(&spreads) {
            print(case.title, what, spread);
        }
        held.push((case.title, spreads));
    }
    let mut commands = Vec::new();
    for pair in PAIRS {
        let mut samples = [Vec::new(), Vec::new(), Vec::new()];
        let line = line(pair.command, pair.operations)?;
        for _ in 0..2 * rounds + 1 {
            let [never, other] = [NEVER, pair.option].map(|option| {
                let timing = toolbox.run_under_memleak(option, &line);
                timing.map(|timing| timing.nanoseconds as f64 / 1e6)
            });
            let (never, other) = (never?, other?);
            samples[0].push(never);
            samples[1].push(other);
            samples[2].push(other / never);
        }
        let spreads = samples.map(Spread::of);
        for (what, spread) in [NEVER, pair.option, "ratio"].iter().zip(&spreads) {
            print(pair.title, what, spread);
        }
        commands.push((pair.title, pair.option, spreads));
    }
    Ok(Lost { held, commands })
}

fn print(title: &str, what: &str, spread: &Spread) {
    let Spread {
        median,
        lowest,
        highest,
    } = spread;
    println!("  {title}, {what}: {median:.2} ({lowest:.2}–{highest:.2})");
}

/// Lets memleak read a process, and judge it. Returns what memleak says of both times, in milliseconds.
fn once(toolbox: &Toolbox, case: &Case) -> Result<[f64; 2]> {
    let report = toolbox.report();
    let mut line: Vec<OsString> = vec![toolbox.memleak.clone().into()];
    line.extend(
        [
            "run",
            "-v",
            "--lost=always",
            "--lost-timeout=60",
            "--max-allocs",
        ]
        .map(OsString::from),
    );
    line.push(case.most_blocks.into());
    line.extend(["--format", "json", "-o"].map(OsString::from));
    line.push(report.clone().into());
    line.extend(["--".into(), built("list").into()]);
    line.extend([case.blocks, case.megabytes].map(|number| number.to_string().into()));
    let output = output_of(&line)?;
    ensure!(
        output.status.success(),
        "memleak ended with {}",
        output.status
    );
    let text = fs::read_to_string(&report).context("no report")?;
    let row: Value = serde_json::from_str(text.lines().next().unwrap_or_default())
        .context("the report has no row")?;
    ensure!(
        row["reach"]["reachable_blocks"].as_u64() >= Some(case.blocks),
        "not all blocks are reachable: {row}"
    );
    let said = String::from_utf8_lossy(&output.stderr);
    let time = |what: &str| -> Result<f64> {
        let mut lines = said.lines();
        let microseconds = lines
            .find_map(|line| line.strip_prefix("memleak: ")?.strip_suffix(what))
            .with_context(|| format!("memleak does not say `{what}`"))?;
        Ok(microseconds.parse::<f64>()? / 1e3)
    };
    Ok([
        time(" microseconds was the longest that one was held for it")?,
        time(" microseconds was the longest until one was judged")?,
    ])
}
