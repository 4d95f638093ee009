//! What counting inside costs, against the bare command, probes on private copies, and other tools that see each
//! allocation.

use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use crate::tool::{
    PRIVATE, SHARED, Timing, Tool, Toolbox, first_line, output_of, own_libc, timing_of,
};
use crate::workload::{built, line, median, medians};

const INSIDE: &str = "--probes=inside";

/// How a program is run. Without stacks and lost blocks, because inside has none.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// With a C library of its own, which has no probes of other memleaks.
    Bare,
    Inside,
    Private,
    Heaptrack,
    /// Of each allocation, as of the two below. Usually jemalloc takes samples.
    JemallocProfiler,
    TcmallocProfiler,
    Memray,
    Valgrind,
}

pub const ALL: [How; 8] = [
    How::Bare,
    How::Inside,
    How::Private,
    How::Heaptrack,
    How::JemallocProfiler,
    How::TcmallocProfiler,
    How::Memray,
    How::Valgrind,
];

impl How {
    /// The head of its column.
    pub fn name(self) -> &'static str {
        match self {
            How::Bare => "bare",
            How::Inside => "`--probes=inside`",
            How::Private => "`--probes=private`",
            How::Heaptrack => "heaptrack",
            How::JemallocProfiler => "jemalloc's profiler",
            How::TcmallocProfiler => "tcmalloc's profiler",
            How::Memray => "memray, native",
            How::Valgrind => "valgrind",
        }
    }

    /// Whether a case can be run so.
    fn can_run(self, case: &Case, toolbox: &Toolbox) -> bool {
        match self {
            How::Bare | How::Inside | How::Private => true,
            How::Heaptrack => case.is_single && toolbox.has(Tool::Heaptrack),
            How::Valgrind => case.is_single && toolbox.has(Tool::Valgrind),
            How::JemallocProfiler | How::TcmallocProfiler => {
                case.is_single && is_there(&self.profiled(&[OsString::from("true")]))
            }
            How::Memray => case.command[0] == "python3" && is_there(&memray(&["--version"])),
        }
    }

    /// The command with a preloaded allocator that records each allocation.
    fn profiled(self, command: &[OsString]) -> Vec<OsString> {
        let profile = |name: &str| built(name).display().to_string();
        let words = match self {
            How::JemallocProfiler => [
                "LD_PRELOAD=libjemalloc.so.2".to_owned(),
                format!(
                    "MALLOC_CONF=prof:true,lg_prof_sample:0,prof_prefix:{}",
                    profile("jemalloc")
                ),
            ],
            _ => [
                "LD_PRELOAD=libtcmalloc.so.4".to_owned(),
                format!("HEAPPROFILE={}", profile("tcmalloc")),
            ],
        };
        let words = words.into_iter().map(OsString::from);
        let env = [OsString::from("env")].into_iter();
        env.chain(words).chain(command.iter().cloned()).collect()
    }
}

/// Whether this runs: a tool that is not in the toolbox may be missing.
fn is_there(command: &[OsString]) -> bool {
    // tcmalloc says on standard error that it has begun.
    let is_missing = |said: &[u8]| String::from_utf8_lossy(said).contains("cannot");
    output_of(command).is_ok_and(|output| output.status.success() && !is_missing(&output.stderr))
}

fn memray(words: &[&str]) -> Vec<OsString> {
    let line = ["python3", "-m", "memray"]
        .into_iter()
        .chain(words.iter().copied());
    line.map(OsString::from).collect()
}

struct Case {
    title: &'static str,
    command: &'static [&'static str],
    /// Operations without probes, and with a trap for each call.
    operations: [u64; 2],
    allocations: u64,
    /// Whether all the work is in one process. heaptrack follows no other.
    is_single: bool,
}

const REPLACE: &str = "100,000 live blocks of up to 1,000 bytes, one replaced at random";

const CASES: [Case; 6] = [
    Case {
        title: "malloc+free, mixed sizes, one thread, a pair",
        command: &["pairs", "1", "{}"],
        operations: [20_000_000, 200_000],
        allocations: 1,
        is_single: true,
    },
    Case {
        title: "the same in two threads at once, a pair of each",
        command: &["pairs", "2", "{}"],
        operations: [20_000_000, 200_000],
        allocations: 2,
        is_single: true,
    },
    Case {
        title: REPLACE,
        command: &["replace", "100000", "{}"],
        operations: [2_000_000, 200_000],
        allocations: 1,
        is_single: true,
    },
    Case {
        title: "python3, 10,000 records through JSON, a record",
        command: &["python3", "records.py", "{}"],
        operations: [10_000, 2_000],
        allocations: 10,
        is_single: true,
    },
    Case {
        title: "`make -j2` of thirty C files, a build",
        command: &["starts", "{}", "make", "-s", "-B", "-j2", "-C", "project"],
        operations: [1, 1],
        allocations: 1000,
        is_single: false,
    },
    Case {
        title: "300 times `echo`, a process",
        command: &["starts", "{}", "echo"],
        operations: [300, 300],
        allocations: 1,
        is_single: false,
    },
];

pub struct Inside {
    /// Nanoseconds for an operation, for each way to run it that there is.
    pub times: Vec<(&'static str, Vec<(How, f64)>)>,
    /// kB that the process with many live blocks has in memory, and of address space.
    pub memory: Vec<(How, [u64; 2])>,
    /// Milliseconds of `memleak run -- true` with shared probes, and inside.
    pub starts: [f64; 2],
}

pub fn measure(toolbox: &Toolbox, rounds: usize) -> Result<Inside> {
    println!("\ncounting inside");
    let clean = clean_library()?;
    let mut times = Vec::new();
    let mut memory = Vec::new();
    for case in CASES {
        let hows = ALL.into_iter().filter(|how| how.can_run(&case, toolbox));
        let medians = medians(hows, rounds, |how| {
            let (timing, kilobytes) = run(toolbox, &clean, how, &case)?;
            if let Some(kilobytes) = kilobytes {
                memory.retain(|(of, _)| *of != how);
                memory.push((how, kilobytes));
            }
            Ok(timing.each())
        })?;
        println!(
            "  {}: {:?}",
            case.title,
            medians.iter().map(|found| found.1).collect::<Vec<_>>()
        );
        times.push((case.title, medians));
    }
    let mut starts = [Vec::new(), Vec::new()];
    for _ in 0..rounds * 4 {
        for (option, samples) in [SHARED, INSIDE].into_iter().zip(&mut starts) {
            let began = Instant::now();
            let output = output_of(&under(toolbox, option, &["true".into()]))?;
            ensure!(output.status.success(), "{}", first_line(&output.stderr));
            samples.push(began.elapsed().as_secs_f64() * 1e3);
        }
    }
    let starts = starts.each_mut().map(|samples| median(samples));
    println!("  `memleak run -- true`: {starts:?} ms");
    Ok(Inside {
        times,
        memory,
        starts,
    })
}

/// Makes a directory with a copy of the C library.
fn clean_library() -> Result<PathBuf> {
    let directory = built("clean");
    let libc = own_libc()?;
    fs::create_dir_all(&directory)
        .and_then(|()| fs::copy(&libc, directory.join("libc.so.6")))
        .with_context(|| format!("cannot copy {libc}"))?;
    Ok(directory)
}

fn under(toolbox: &Toolbox, option: &str, command: &[OsString]) -> Vec<OsString> {
    let mut line = toolbox.memleak_run(&[option, "--stacks=never", "--lost=never"]);
    line.extend_from_slice(command);
    line
}

/// Runs a program once. Returns what it took, and its memory if it says so.
fn run(
    toolbox: &Toolbox,
    clean: &std::path::Path,
    how: How,
    case: &Case,
) -> Result<(Timing, Option<[u64; 2]>)> {
    let is_fast = matches!(how, How::Bare | How::Inside);
    let operations = case.operations[usize::from(!is_fast)];
    let command = line(case.command, operations)?;
    let words = match how {
        How::Bare => {
            let mut path = OsString::from("LD_LIBRARY_PATH=");
            path.push(clean);
            [&["env".into(), path], &command[..]].concat()
        }
        How::Inside => under(toolbox, INSIDE, &command),
        How::Private => under(toolbox, PRIVATE, &command),
        How::Heaptrack => toolbox.wrap(Tool::Heaptrack, &command)?,
        How::JemallocProfiler | How::TcmallocProfiler => how.profiled(&command),
        How::Memray => {
            let record = built("memray").display().to_string();
            let mut words = memray(&["run", "--native", "-q", "-f", "-o", &record]);
            words.extend_from_slice(&command[1..]);
            words
        }
        How::Valgrind => toolbox.wrap(Tool::Valgrind, &command)?,
    };
    let output = output_of(&words)?;
    let timing = timing_of(&output)?;
    if matches!(how, How::Inside | How::Private) {
        let counted = toolbox.reported_allocations()?;
        let least = operations * case.allocations;
        ensure!(
            counted >= least,
            "memleak counted {counted} allocations, and there were at least {least}"
        );
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let memory = text.lines().find_map(|line| {
        let mut words = line.strip_prefix("memory: ")?.split(' ');
        let mut word = || words.next()?.parse().ok();
        Some([word()?, word()?])
    });
    Ok((timing, memory))
}
