//! The cost of memleak, compared with the bare command, empty probes, and other tools.
//!
//! Every round runs each tool once, one after the other (A B C A B C …), so that a machine that slows
//! down slows all of them. The result is the median of the rounds. Programs measure themselves with
//! the monotonic clock and print the time. So a tool's start does not count, except where the start is
//! measured. A run of memleak whose report does not show the calls made is not a result.
//!
//! `cargo bench --bench overhead` prints the result and writes `target/tmp/bench.md`. With `-- --write`
//! it also replaces the blocks between the markers of docs/benchmarks.md. With `-- lost` only the search for
//! lost blocks is measured, with `-- inside` only counting inside, and with `-- stacks` only call stacks.
//! `BENCH_ROUNDS` sets the number of rounds, `MEMLEAK_BIN` another binary to measure.

mod crowd;
mod floor;
mod inside;
mod latency;
mod lost;
mod machine;
mod neighbours;
mod outside;
mod stacks;
mod table;
mod tool;
mod workload;

use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use tool::{Tool, Toolbox};

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/benchmarks.md");
const OUTPUT: &str = concat!(env!("CARGO_TARGET_TMPDIR"), "/bench.md");

fn main() -> ExitCode {
    let mut words = std::env::args_os().skip(1);
    let first = words.next();
    for (word, walks) in [(floor::WORD, false), (floor::WALKING, true)] {
        if first.as_deref().is_some_and(|first| first == word) {
            return floor::main(&words.collect::<Vec<_>>(), walks);
        }
    }
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    // `cargo test --benches` also starts this program, without --bench. It has no tests.
    if !arguments.iter().any(|argument| argument == "--bench") {
        return ExitCode::SUCCESS;
    }
    let has = |word: &str| arguments.iter().any(|argument| argument == word);
    let only = ["lost", "inside", "stacks"]
        .into_iter()
        .find(|part| has(part));
    match run(has("--write"), only) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(write: bool, only: Option<&str>) -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("loading BPF programs needs root: run `make bench`, which uses sudo");
    }
    let rounds = rounds()?;
    let began = Instant::now();
    let toolbox = Toolbox::find()?;
    workload::compile()?;

    println!("{}", machine::caption(rounds));
    for tool in Tool::ALL {
        println!("  {:<10} {}", tool.name(), toolbox.state(tool));
    }

    match only {
        Some("lost") => return measure_lost(&toolbox, rounds, write),
        Some("inside") => return measure_inside(&toolbox, rounds, write),
        Some(_) => return measure_stacks(&toolbox, rounds, write),
        None => {}
    }
    let results: Vec<_> = workload::all()
        .iter()
        .map(|workload| workload::measure(workload, &toolbox, rounds))
        .collect();
    let neighbours = neighbours::measure(&toolbox, rounds)?;
    let outside = outside::measure(&toolbox, rounds)?;
    let latency = latency::measure(&toolbox, rounds)?;

    let crowd = crowd::measure(&toolbox)?;

    let text = table::markdown(
        &toolbox,
        rounds,
        &results,
        &neighbours,
        &outside,
        &latency,
        &crowd,
    );
    println!("\n{text}");
    println!("Measured in {} s.", began.elapsed().as_secs());
    std::fs::write(OUTPUT, &text).with_context(|| format!("cannot write {OUTPUT}"))?;
    println!("Written to {OUTPUT}");
    if write {
        write_page(&table::ALL, &text)?;
    }
    measure_stacks(&toolbox, rounds, write)?;
    measure_lost(&toolbox, rounds, write)?;
    measure_inside(&toolbox, rounds, write)?;

    let failures: Vec<_> = results
        .iter()
        .filter_map(|result| result.failure_of(Tool::Memleak))
        .collect();
    if !failures.is_empty() {
        bail!("memleak failed: {}", failures.join("; "));
    }
    Ok(())
}

/// Measures call stacks.
fn measure_stacks(toolbox: &Toolbox, rounds: usize, write: bool) -> Result<()> {
    let text = table::stacks(rounds, &stacks::measure(toolbox, rounds)?);
    show(&table::STACKS, &text, write)
}

/// Measures the search for lost blocks.
fn measure_lost(toolbox: &Toolbox, rounds: usize, write: bool) -> Result<()> {
    let text = table::lost(rounds, &lost::measure(toolbox, rounds)?);
    show(&table::LOST, &text, write)
}

/// Measures counting inside.
fn measure_inside(toolbox: &Toolbox, rounds: usize, write: bool) -> Result<()> {
    let text = table::inside(rounds, &inside::measure(toolbox, rounds)?);
    show(&table::INSIDE, &text, write)
}

/// Prints the text of a block, and writes it to the page if that is wanted.
fn show(block: &table::Block, text: &str, write: bool) -> Result<()> {
    println!("\n{text}");
    match write {
        true => write_page(block, text),
        false => Ok(()),
    }
}

/// Number of rounds: `BENCH_ROUNDS`, which must be at least 1, or 5 without it.
fn rounds() -> Result<usize> {
    let Ok(text) = std::env::var("BENCH_ROUNDS") else {
        return Ok(5);
    };
    match text.parse() {
        Ok(rounds) if rounds > 0 => Ok(rounds),
        _ => bail!("BENCH_ROUNDS={text} is not a number of rounds (1 or more)"),
    }
}

/// Replaces the text of a block of docs/benchmarks.md.
fn write_page(block: &table::Block, text: &str) -> Result<()> {
    let page = std::fs::read_to_string(PAGE).with_context(|| format!("cannot read {PAGE}"))?;
    let replaced = table::replace_block(&page, block, text)
        .with_context(|| format!("{PAGE} does not have both markers of a block"))?;
    std::fs::write(PAGE, replaced).with_context(|| format!("cannot write {PAGE}"))?;
    println!("Written to {PAGE}");
    Ok(())
}
