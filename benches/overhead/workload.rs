//! The programs that are measured, and their rounds.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::tool::{Tool, Toolbox, first_line, output_of};

pub const SOURCES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/bench");
const BUILT: &str = env!("CARGO_TARGET_TMPDIR");
const PROGRAMS: [&str; 8] = [
    "pairs", "grow", "hold", "list", "replace", "spawn", "starts", "deep",
];
/// Number of files in a small C project, which also has a Makefile.
const PROJECT_FILES: usize = 30;

/// A program to run under every tool.
pub struct Workload {
    /// What the program does, as the table says it.
    pub title: &'static str,
    /// Its command line, for [`line`].
    command: &'static [&'static str],
    /// Operations under each tool. Costs differ by three orders of magnitude, so each tool gets a number
    /// that takes it some tenths of a second.
    operations: fn(Tool) -> Asked,
    /// Least number of allocations that a report must show, per operation.
    allocations: u64,
}

/// What a tool is asked to do.
#[derive(Clone, Copy)]
enum Asked {
    Operations(u64),
    /// The tool follows no child, or no child that execs.
    CannotFollow,
    /// One operation under this tool would take longer than the rest of the benchmark.
    TooSlow,
}

use Asked::{CannotFollow, Operations, TooSlow};

pub fn all() -> Vec<Workload> {
    vec![
        Workload {
            title: "malloc+free, mixed sizes, one thread, a pair",
            command: &["pairs", "1", "{}"],
            operations: |tool| Operations(by_cost(tool, 20_000_000, 200_000, 20_000)),
            allocations: 1,
        },
        Workload {
            title: "the same in two threads at once, a pair of each",
            command: &["pairs", "2", "{}"],
            operations: |tool| Operations(by_cost(tool, 20_000_000, 200_000, 10_000)),
            allocations: 2,
        },
        Workload {
            title: "a block growing by realloc, a call",
            command: &["grow", "{}"],
            operations: |tool| match tool {
                // valgrind copies the block in every call.
                Tool::Valgrind => Operations(20_000),
                tool => Operations(by_cost(tool, 5_000_000, 200_000, 20_000)),
            },
            allocations: 1,
        },
        Workload {
            title: "1,000,000 blocks held, freed in random order, a block",
            command: &["hold", "{}"],
            operations: |tool| Operations(by_cost(tool, 1_000_000, 1_000_000, 30_000)),
            allocations: 1,
        },
        Workload {
            title: "300 short processes (`/bin/true`), a process",
            command: &["spawn", "{}"],
            operations: |tool| match tool {
                Tool::Bare | Tool::Floor | Tool::Memleak => Operations(300),
                Tool::Valgrind => Operations(3),
                // Neither follows a child that execs.
                Tool::Heaptrack | Tool::Bpftrace => CannotFollow,
            },
            allocations: 0,
        },
        Workload {
            title: "2,000 forks that allocate twice and end, a process",
            command: &["spawn", "{}", "fork"],
            operations: |tool| match tool {
                Tool::Bare | Tool::Floor | Tool::Memleak => Operations(2_000),
                Tool::Valgrind => Operations(20),
                // Neither follows a child.
                Tool::Heaptrack | Tool::Bpftrace => CannotFollow,
            },
            allocations: 2,
        },
        Workload {
            title: "python3, 2,000 records through JSON, a record",
            command: &["python3", "records.py", "{}"],
            operations: |tool| Operations(by_cost(tool, 2_000, 2_000, 200)),
            allocations: 10,
        },
        Workload {
            title: "python3 that imports all of its extension modules, its first start",
            command: &["starts", "{}", "python3", "-E", "imports.py"],
            operations: |tool| followed(tool, 1, 1),
            allocations: 1000,
        },
        Workload {
            title: "the same ten times, a start",
            command: &["starts", "{}", "python3", "-E", "imports.py"],
            operations: |tool| followed(tool, 10, 1),
            allocations: 1000,
        },
        Workload {
            title: "`make -j2` of thirty C files, a build",
            command: &["starts", "{}", "make", "-s", "-B", "-j2", "-C", "project"],
            operations: |tool| match followed(tool, 1, 1) {
                Operations(_) if tool == Tool::Valgrind => TooSlow,
                asked => asked,
            },
            allocations: 1000,
        },
        Workload {
            title: "100 programs never executed before, a start",
            command: &["starts", "{}", "fresh", "hello"],
            operations: |tool| followed(tool, 100, 3),
            allocations: 1,
        },
        Workload {
            title: "100 static programs never executed before, a start",
            command: &["starts", "{}", "fresh", "hello-static"],
            operations: |tool| followed(tool, 100, 3),
            allocations: 1,
        },
    ]
}

/// Operations that children do. Some tools do not follow children.
fn followed(tool: Tool, most: u64, valgrind: u64) -> Asked {
    match tool {
        Tool::Bare | Tool::Floor | Tool::Memleak => Operations(most),
        Tool::Valgrind => Operations(valgrind),
        Tool::Heaptrack | Tool::Bpftrace => CannotFollow,
    }
}

fn by_cost(tool: Tool, bare: u64, probed: u64, single_stepped: u64) -> u64 {
    match tool {
        Tool::Bare => bare,
        Tool::Floor | Tool::Memleak | Tool::Valgrind | Tool::Heaptrack => probed,
        Tool::Bpftrace => single_stepped,
    }
}

/// Compiles the C workloads, and writes the project that one of them compiles.
pub fn compile() -> Result<()> {
    for name in PROGRAMS {
        compile_one(name, name, &[])?;
    }
    compile_one("hello", "hello", &[])?;
    compile_one("hello", "hello-static", &["-static"])?;
    write_project()
}

fn compile_one(source: &str, name: &str, flags: &[&str]) -> Result<()> {
    let output = Command::new("cc")
        .args(["-O2", "-pthread", "-o"])
        .arg(built(name))
        .arg(format!("{SOURCES}/{source}.c"))
        .args(flags)
        .output()
        .context("cannot run cc")?;
    if !output.status.success() {
        bail!("cannot compile {source}.c: {}", first_line(&output.stderr));
    }
    Ok(())
}

/// Writes the files of a typical small project: each has a few functions and includes common headers.
fn write_project() -> Result<()> {
    let directory = built("project");
    let write = |name: String, text: String| {
        let path = directory.join(name);
        std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    };
    std::fs::create_dir_all(&directory)
        .with_context(|| format!("cannot make {}", directory.display()))?;
    let mut main = String::new();
    let mut sum = String::new();
    for file in 0..PROJECT_FILES {
        let mut text =
            String::from("#include <stdio.h>\n#include <stdlib.h>\n#include <string.h>\n");
        for function in 0..10 {
            text += &format!(
                "int f{file}_{function}(const char *text)\n{{\n\tint sum = {function};\n\n\
                 \tfor (size_t i = 0; i < strlen(text); i++)\n\t\tsum = sum * 31 + text[i];\n\
                 \tif (sum == {file})\n\t\tprintf(\"%s\\n\", text);\n\treturn sum;\n}}\n"
            );
        }
        write(format!("f{file}.c"), text)?;
        main += &format!("int f{file}_0(const char *);\n");
        sum += &format!(" + f{file}_0(\"a\")");
    }
    main += &format!("int main(void)\n{{\n\treturn (0{sum}) == 0;\n}}\n");
    write("main.c".to_owned(), main)?;
    let makefile = "objects := $(patsubst %.c,%.o,$(wildcard *.c))\n\
                    program: $(objects)\n\tcc -o $@ $^\n%.o: %.c\n\tcc -O1 -c -o $@ $<\n";
    write("Makefile".to_owned(), makefile.to_owned())
}

pub fn built(name: &str) -> PathBuf {
    PathBuf::from(BUILT).join(name)
}

/// The command line of `pairs`, which the other measurements use too.
pub fn pairs(number: u64) -> Vec<OsString> {
    vec![built("pairs").into(), "1".into(), number.to_string().into()]
}

/// The command line of a program that is measured. `{}` stands for the number of operations.
pub fn line(command: &[&str], operations: u64) -> Result<Vec<OsString>> {
    let is_source = |word: &str| [".py", ".pl", ".cc"].iter().any(|end| word.ends_with(end));
    command
        .iter()
        .map(|&word| match word {
            "{}" => Ok(operations.to_string().into()),
            "python3" => python(),
            source if is_source(source) => Ok(format!("{SOURCES}/{source}").into()),
            "project" | "hello" | "hello-static" => Ok(built(word).into()),
            word if PROGRAMS.contains(&word) => Ok(built(word).into()),
            word => Ok(word.into()),
        })
        .collect()
}

/// The path of the interpreter itself. A version manager puts shell scripts in front of it, and their
/// calls must not be measured.
fn python() -> Result<OsString> {
    let line = ["python3", "-c", "import sys; print(sys.executable)"].map(OsString::from);
    let output = output_of(&line)?;
    ensure!(output.status.success(), "python3 does not run");
    Ok(first_line(&output.stdout).into())
}

/// What an operation takes for each way to run a program: the median of the rounds, in which the ways take turns.
pub fn medians<How: Copy>(
    hows: impl Iterator<Item = How>,
    rounds: usize,
    mut run: impl FnMut(How) -> Result<f64>,
) -> Result<Vec<(How, f64)>> {
    let mut samples: Vec<(How, Vec<f64>)> = hows.map(|how| (how, Vec::new())).collect();
    for _ in 0..rounds {
        for (how, samples) in &mut samples {
            samples.push(run(*how)?);
        }
    }
    let medians = samples.iter_mut();
    Ok(medians
        .map(|(how, samples)| (*how, median(samples)))
        .collect())
}

/// What it takes to run a program in one way, if that was measured.
pub fn taken<How: PartialEq>(times: &[(How, f64)], how: How) -> Option<f64> {
    let found = times.iter().find(|(of, _)| *of == how);
    found.map(|(_, taken)| *taken)
}

/// The results of one workload.
pub struct Measured {
    pub title: &'static str,
    cells: Vec<(Tool, Cell)>,
}

pub enum Cell {
    /// Nanoseconds per operation: median, lowest and highest round.
    Took {
        median: f64,
        lowest: f64,
        highest: f64,
        /// Operations per round, which may be fewer than the title says.
        operations: u64,
    },
    /// The tool is not available. The toolbox says why.
    Absent,
    /// The tool does not follow the workload's children.
    Unable,
    /// The tool would take too long.
    NotTried,
    /// The tool failed, with this reason.
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
            let Operations(operations) = (workload.operations)(tool) else {
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
                (CannotFollow, _) => Cell::Unable,
                (TooSlow, _) => Cell::NotTried,
                (_, Some(reason)) => Cell::Failed(reason),
                (Operations(operations), None) => Cell::Took {
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

/// Runs the workload once. Returns nanoseconds per operation.
fn once(workload: &Workload, toolbox: &Toolbox, tool: Tool, operations: u64) -> Result<f64> {
    let timing = toolbox.run(tool, &line(workload.command, operations)?)?;
    if tool == Tool::Memleak {
        let counted = toolbox.reported_allocations()?;
        let least = operations * workload.allocations;
        ensure!(
            counted >= least,
            "memleak counted {counted} allocations, and there were at least {least}"
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
            Cell::NotTried => "would take too long".to_owned(),
            Cell::Failed(reason) => format!("FAILED: {reason}"),
        };
        println!("  {:<10} {text}", tool.name());
    }
}

/// Sorts the samples and returns the median. For an even number, that is the mean of the middle two.
pub fn median(samples: &mut [f64]) -> f64 {
    samples.sort_by(f64::total_cmp);
    let middle = samples.len() / 2;
    if samples.len() % 2 == 1 {
        samples[middle]
    } else {
        (samples[middle - 1] + samples[middle]) / 2.0
    }
}
