//! What several memleaks at once cost a watched program and a bystander. A uprobe belongs to the file, so
//! every process that maps the file pays for the probes of all memleaks. With private probes, each memleak has
//! files of its own.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::tool::{PRIVATE, SHARED, Tool, Toolbox};
use crate::workload::{median, pairs};

/// Numbers of memleaks that run at once.
const CROWDS: [usize; 3] = [1, 8, 32];

/// Nanoseconds per malloc+free pair.
pub struct Neighbours {
    /// Without any memleak.
    pub alone: f64,
    pub crowds: Vec<Crowd>,
}

/// Those of both options for probes: shared, private.
const OPTIONS: [&str; 2] = [SHARED, PRIVATE];

pub struct Crowd {
    pub memleaks: usize,
    /// For shared and for private probes. For a program under one memleak, while each of the others watches an idle command.
    pub watched: [f64; 2],
    /// For a program under no memleak, while each of them watches an idle command.
    pub bystander: [f64; 2],
}

/// A memleak whose command is idle until the benchmark tells it to end.
struct Idle(Child);

impl Idle {
    /// Starts one, and returns when its command runs. Then the probes are attached.
    fn start(toolbox: &Toolbox, probes: &str) -> Result<Self> {
        // cat ends with its standard input, so no process needs to be killed.
        let mut child = Command::new(&toolbox.memleak)
            .args(["run", "-q", probes, "--"])
            .args(["sh", "-c", "echo ready; exec cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot start memleak")?;
        let stdout = child.stdout.take().context("memleak has no stdout")?;
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        ensure!(line == "ready\n", "an idle memleak did not start");
        Ok(Self(child))
    }
}

/// Ends all of them. It tells all of them before it waits for the first, because each takes a while to
/// close its probes.
fn end(mut idle: Vec<Idle>) -> Result<()> {
    for Idle(child) in &mut idle {
        drop(child.stdin.take());
    }
    for Idle(child) in &mut idle {
        let status = child.wait().context("cannot wait for memleak")?;
        ensure!(status.success(), "an idle memleak ended with {status}");
    }
    Ok(())
}

pub fn measure(toolbox: &Toolbox, rounds: usize) -> Result<Neighbours> {
    println!("\nmalloc+free pairs with several memleaks at once");
    let mut alone = Vec::new();
    let mut watched = [(); CROWDS.len()].map(|()| [Vec::new(), Vec::new()]);
    let mut bystander = watched.clone();
    for _ in 0..rounds {
        alone.push(toolbox.run(Tool::Bare, &pairs(5_000_000))?.each());
        for (option, probes) in OPTIONS.into_iter().enumerate() {
            let mut idle = Vec::new();
            for (index, memleaks) in CROWDS.into_iter().enumerate() {
                while idle.len() < memleaks - 1 {
                    idle.push(Idle::start(toolbox, probes)?);
                }
                let number = 100_000 / (memleaks as u64 / 8).max(1);
                let taken = toolbox.run_under_memleak(probes, &pairs(number))?;
                watched[index][option].push(taken.each());
                idle.push(Idle::start(toolbox, probes)?);
                // As many pairs as bare, where nobody has to pay.
                let number = if probes == PRIVATE { 5_000_000 } else { number };
                bystander[index][option].push(toolbox.run(Tool::Bare, &pairs(number))?.each());
            }
            end(idle)?;
        }
    }

    let measured = Neighbours {
        alone: median(&mut alone),
        crowds: CROWDS
            .into_iter()
            .zip(watched.iter_mut().zip(&mut bystander))
            .map(|(memleaks, (watched, bystander))| Crowd {
                memleaks,
                watched: watched.each_mut().map(|samples| median(samples)),
                bystander: bystander.each_mut().map(|samples| median(samples)),
            })
            .collect(),
    };
    println!("  no memleak: {:.1} ns", measured.alone);
    for crowd in &measured.crowds {
        for (option, probes) in OPTIONS.into_iter().enumerate() {
            let (watched, bystander) = (crowd.watched[option], crowd.bystander[option]);
            println!(
                "  {:>2} at once, {probes}: watched {watched:.1} ns, bystander {bystander:.1} ns ({:.1} × and {:.1} × \
                 no memleak)",
                crowd.memleaks,
                watched / measured.alone,
                bystander / measured.alone,
            );
        }
    }
    Ok(measured)
}
