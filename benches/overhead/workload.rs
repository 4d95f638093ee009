//! The programs that are measured, and their rounds.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::tool::{Tool, Toolbox, first_line, output_of};

const SOURCES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/bench");
const BUILT: &str = env!("CARGO_TARGET_TMPDIR");
const PROGRAMS: [&str; 4] = ["pairs", "grow", "hold", "spawn"];

/// A program to run under every tool.
pub struct Workload {
    /// What it does, as the table says it.
    pub title: &'static str,
    /// Its command line, `{}` standing for the number of operations.
    command: &'static [&'static str],
    /// Operations under each tool; `None`: the tool cannot do it. Costs differ by three orders of
    /// magnitude, so each gets as many as take it some tenths of a second.
    operations: fn(Tool) -> Option<u64>,
    /// Allocations that a report must show at least, per operation.
    allocations: u64,
}

pub fn all() -> Vec<Workload> {
    vec![
        Workload {
            title: "malloc+free, mixed sizes, one thread, a pair",
            command: &["pairs", "1", "{}"],
            operations: |tool| Some(by_cost(tool, 20_000_000, 200_000, 20_000)),
            allocations: 1,
        },
        Workload {
            title: "the same in two threads at once, a pair of each",
            command: &["pairs", "2", "{}"],
            operations: |tool| Some(by_cost(tool, 20_000_000, 200_000, 10_000)),
            allocations: 2,
        },
        Workload {
            title: "a block growing by realloc, a call",
            command: &["grow", "{}"],
            operations: |tool| match tool {
                // Copies the block in every call.
                Tool::Valgrind => Some(20_000),
                tool => Some(by_cost(tool, 5_000_000, 200_000, 20_000)),
            },
            allocations: 1,
        },
        Workload {
            title: "1,000,000 blocks held, freed in random order, a block",
            command: &["hold", "{}"],
            operations: |tool| Some(by_cost(tool, 1_000_000, 1_000_000, 30_000)),
            allocations: 1,
        },
        Workload {
            title: "300 short processes (`/bin/true`), a process",
            command: &["spawn", "{}"],
            operations: |tool| match tool {
                Tool::Bare | Tool::Floor | Tool::Memleak => Some(300),
                Tool::Valgrind => Some(3),
                // Neither follows a child that execs.
                Tool::Heaptrack | Tool::Bpftrace => None,
            },
            allocations: 0,
        },
        Workload {
            title: "2,000 forks that allocate twice and end, a process",
            command: &["spawn", "{}", "fork"],
            operations: |tool| match tool {
                Tool::Bare | Tool::Floor | Tool::Memleak => Some(2_000),
                Tool::Valgrind => Some(20),
                // Neither follows a child.
                Tool::Heaptrack | Tool::Bpftrace => None,
            },
            allocations: 2,
        },
        Workload {
            title: "python3, 2,000 records through JSON, a record",
            command: &["python3", "records.py", "{}"],
            operations: |tool| Some(by_cost(tool, 2_000, 2_000, 200)),
            allocations: 10,
        },
    ]
}

fn by_cost(tool: Tool, bare: u64, probed: u64, single_stepped: u64) -> u64 {
    match tool {
        Tool::Bare => bare,
        Tool::Floor | Tool::Memleak | Tool::Valgrind | Tool::Heaptrack => probed,
        Tool::Bpftrace => single_stepped,
    }
}

/// Compiles the C workloads.
pub fn compile() -> Result<()> {
    for name in PROGRAMS {
        let output = Command::new("cc")
            .args(["-O2", "-pthread", "-o"])
            .arg(built(name))
            .arg(format!("{SOURCES}/{name}.c"))
            .output()
            .context("cannot run cc")?;
        if !output.status.success() {
            bail!("cannot compile {name}.c: {}", first_line(&output.stderr));
        }
    }
    Ok(())
}

pub fn built(name: &str) -> PathBuf {
    PathBuf::from(BUILT).join(name)
}

/// The command line of `pairs`, which the other measurements use too.
pub fn pairs(number: u64) -> Vec<OsString> {
    vec![built("pairs").into(), "1".into(), number.to_string().into()]
}

impl Workload {
    fn line(&self, operations: u64) -> Result<Vec<OsString>> {
        self.command
            .iter()
            .map(|&word| match word {
                "{}" => Ok(operations.to_string().into()),
                "python3" => python(),
                "records.py" => Ok(format!("{SOURCES}/{word}").into()),
                word if PROGRAMS.contains(&word) => Ok(built(word).into()),
                word => Ok(word.into()),
            })
            .collect()
    }
}

/// The interpreter itself: a version manager puts shell scripts in front of it, whose calls are not
/// what is measured.
fn python() -> Result<OsString> {
    let line = ["python3", "-c", "import sys; print(sys.executable)"].map(OsString::from);
    let output = output_of(&line)?;
    ensure!(output.status.success(), "python3 does not run");
    Ok(first_line(&output.stdout).into())
}

/// What the rounds of one workload gave.
pub struct Measured {
    pub title: &'static str,
    cells: Vec<(Tool, Cell)>,
}

pub enum Cell {
    /// Nanoseconds an operation: median, lowest and highest round.
    Took {
        median: f64,
        lowest: f64,
        highest: f64,
        /// Operations a round, where fewer than the title says.
        operations: u64,
    },
    /// The tool is not there (see the toolbox for why).
    Absent,
    /// The tool cannot do what the workload asks.
    Unable,
    /// It failed, and this is why.
    Failed(String),
}

impl Measured {
    pub fn cell(&self, tool: Tool) -> &Cell {
        self.cells
            .iter()
            .find_map(|(found, cell)| (*found == tool).then_some(cell))
            .expect("every tool has a cell")
    }

    pub fn median(&self, tool: Tool) -> Option<f64> {
        match self.cell(tool) {
            Cell::Took { median, .. } => Some(*median),
            _ => None,
        }
    }

    pub fn failure_of(&self, tool: Tool) -> Option<String> {
        match self.cell(tool) {
            Cell::Failed(reason) => Some(format!("{}: {reason}", self.title)),
            _ => None,
        }
    }
}

/// Runs a workload under all tools, interleaved.
pub fn measure(workload: &Workload, toolbox: &Toolbox, rounds: usize) -> Measured {
    println!("\n{}", workload.title);
    let mut samples: Vec<Vec<f64>> = vec![Vec::new(); Tool::ALL.len()];
    let mut failures: Vec<Option<String>> = vec![None; Tool::ALL.len()];
    for _ in 0..rounds {
        for (index, tool) in Tool::ALL.into_iter().enumerate() {
            let Some(operations) = (workload.operations)(tool) else {
                continue;
            };
            if !toolbox.has(tool) || failures[index].is_some() {
                continue;
            }
            match once(workload, toolbox, tool, operations) {
                Ok(each) => samples[index].push(each),
                Err(error) => failures[index] = Some(format!("{error:#}")),
            }
        }
    }

    let cells = Tool::ALL
        .into_iter()
        .zip(samples.iter_mut().zip(failures))
        .map(|(tool, (samples, failure))| {
            let cell = match ((workload.operations)(tool), failure) {
                _ if !toolbox.has(tool) => Cell::Absent,
                (None, _) => Cell::Unable,
                (_, Some(reason)) => Cell::Failed(reason),
                (Some(operations), None) => Cell::Took {
                    median: median(samples),
                    lowest: samples[0],
                    highest: samples[samples.len() - 1],
                    operations,
                },
            };
            (tool, cell)
        })
        .collect();
    let measured = Measured {
        title: workload.title,
        cells,
    };
    print(&measured);
    measured
}

/// One run: nanoseconds an operation.
fn once(workload: &Workload, toolbox: &Toolbox, tool: Tool, operations: u64) -> Result<f64> {
    let timing = toolbox.run(tool, &workload.line(operations)?)?;
    if tool == Tool::Memleak {
        let counted = toolbox.reported_allocations()?;
        let least = operations * workload.allocations;
        ensure!(
            counted >= least,
            "memleak counted {counted} allocations of at least {least}"
        );
    }
    Ok(timing.each())
}

fn print(measured: &Measured) {
    let bare = measured.median(Tool::Bare);
    let floor = measured.median(Tool::Floor);
    for tool in Tool::ALL {
        let text = match measured.cell(tool) {
            Cell::Took {
                median,
                lowest,
                highest,
                operations,
            } => {
                let mut text = format!("{median:>12.1} ns  ({lowest:.1}–{highest:.1})");
                for (name, reference) in [("bare", bare), ("floor", floor)] {
                    if let Some(reference) = reference {
                        text += &format!("  {:.2} × {name}", median / reference);
                    }
                }
                text + &format!("  [{operations} a round]")
            }
            Cell::Absent => "not measured: see above".to_owned(),
            Cell::Unable => "cannot follow this".to_owned(),
            Cell::Failed(reason) => format!("FAILED: {reason}"),
        };
        println!("  {:<10} {text}", tool.name());
    }
}

/// Sorts, and gives the middle; of an even number the mean of the middle two.
pub fn median(samples: &mut [f64]) -> f64 {
    samples.sort_by(f64::total_cmp);
    let middle = samples.len() / 2;
    if samples.len() % 2 == 1 {
        samples[middle]
    } else {
        (samples[middle - 1] + samples[middle]) / 2.0
    }
}
