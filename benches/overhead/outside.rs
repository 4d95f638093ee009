//! What a process pays for a memleak that counts other processes. Its calls reach the probes too, and the BPF
//! programs decide there whether memleak counts the process. Only the probes of `-p --no-children` are not for it.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::tool::{Tool, Toolbox};
use crate::workload::{median, pairs};

const PAIRS: u64 = 200_000;

/// What the measured program is to memleak, and the words that memleak is started with.
const WATCHES: [(&str, &[&str]); 7] = [
    ("outside of `run`", &["run", "-v", "--", "sleep", "1000"]),
    ("not the process of `-p`", &["-p", PROCESS]),
    (
        "not the process of `-p --no-children`",
        &["-p", PROCESS, "--no-children"],
    ),
    ("watched by `-a`", &["-a"]),
    ("outside of `-a --uid`", &["-a", "--uid", "4000000000"]),
    ("outside of `-a --comm`", &["-a", "--comm", "nobody's"]),
    ("outside of `-a --cgroup`", &["-a", "--cgroup", GROUP]),
];

/// Placeholders for the pid of an idle process and for the path of an empty control group.
const PROCESS: &str = "{process}";
const GROUP: &str = "{group}";

/// Nanoseconds per malloc+free pair.
pub struct Outside {
    pub alone: f64,
    pub watched: Vec<(&'static str, f64)>,
}

/// A control group that is removed on drop.
struct Group(PathBuf);

impl Group {
    fn new() -> Result<Self> {
        let mounts = fs::read_to_string("/proc/self/mounts")?;
        let mount = mounts
            .lines()
            .find_map(|line| line.split_once(" cgroup2 ")?.0.split(' ').nth(1));
        let mount = mount.context("no control groups (version 2) are mounted")?;
        let path = PathBuf::from(mount).join(format!("memleak-bench-{}", std::process::id()));
        fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

/// A child that is killed on drop, in case a step fails.
struct Running(Child);

impl Running {
    fn start(command: &mut Command) -> Result<Self> {
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn();
        Ok(Self(
            child.with_context(|| format!("cannot run {command:?}"))?,
        ))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub fn measure(toolbox: &Toolbox, rounds: usize) -> Result<Outside> {
    println!("\nmalloc+free pairs beside a memleak");
    let group = Group::new()?;
    let process = Running::start(Command::new("sleep").arg("1000"))?;
    let mut alone = Vec::new();
    let mut watched = WATCHES.map(|_| Vec::new());
    for _ in 0..rounds {
        alone.push(toolbox.run(Tool::Bare, &pairs(5_000_000))?.each());
        for ((_, options), times) in WATCHES.iter().zip(&mut watched) {
            let mut command = Command::new(&toolbox.memleak);
            if options[0] != "run" {
                command.args(["-v", "600"]);
            }
            for option in *options {
                match *option {
                    PROCESS => command.arg(process.0.id().to_string()),
                    GROUP => command.arg(&group.0),
                    option => command.arg(option),
                };
            }
            let mut memleak = Running::start(command.stderr(Stdio::piped()))?;
            let stderr = memleak.0.stderr.take().context("memleak has no stderr")?;
            let mut stderr = BufReader::new(stderr);
            let mut said = String::new();
            while !said.contains("attached by") {
                let read = stderr.read_line(&mut said)?;
                ensure!(read > 0, "memleak did not start: {said}");
            }
            times.push(toolbox.run(Tool::Bare, &pairs(PAIRS))?.each());
            kill(Pid::from_raw(memleak.0.id().cast_signed()), Signal::SIGTERM)?;
            stderr.read_to_string(&mut said)?;
            let status = memleak.0.wait()?;
            // `run` ends as its command did.
            let as_told = options[0] == "run" && status.signal() == Some(Signal::SIGTERM as i32);
            ensure!(
                status.success() || as_told,
                "memleak ended with {status}: {said}"
            );
        }
    }
    let names = WATCHES.map(|(name, _)| name);
    let measured = Outside {
        alone: median(&mut alone),
        watched: names
            .into_iter()
            .zip(watched.iter_mut().map(|times| median(times)))
            .collect(),
    };
    println!("  no memleak: {:.1} ns", measured.alone);
    for (name, time) in &measured.watched {
        println!("  {name}: {time:.1} ns ({:.1} ×)", time / measured.alone);
    }
    Ok(measured)
}
