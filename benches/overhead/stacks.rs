//! What call stacks cost, against counting alone, the kernel's own walk by frame pointers, and heaptrack.

use std::ffi::OsString;
use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use crate::floor;
use crate::tool::{SHARED, Tool, Toolbox, first_line, output_of, timing_of};
use crate::workload::{SOURCES, built, line, medians, taken};

/// How a program is run. What was lost is looked for in none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    Bare,
    Counting,
    Stacks,
    /// Empty programs that ask the kernel for the stack of each allocation (`bpf_get_stackid`).
    StackId,
    /// It only records.
    Heaptrack,
    /// It also finds the functions and lines while the program runs, as it does if it is not told otherwise.
    HeaptrackWhole,
}

pub const ALL: [How; 6] = [
    How::Bare,
    How::Counting,
    How::Stacks,
    How::StackId,
    How::Heaptrack,
    How::HeaptrackWhole,
];

impl How {
    /// The head of its column.
    pub fn name(self) -> &'static str {
        match self {
            How::Bare => "bare",
            How::Counting => "counting",
            How::Stacks => "with call stacks",
            How::StackId => "`bpf_get_stackid`",
            How::Heaptrack => "heaptrack, recording",
            How::HeaptrackWhole => "heaptrack",
        }
    }

    /// Whether a case can be run so.
    fn can_run(self, case: &Case, toolbox: &Toolbox) -> bool {
        match self {
            How::Bare | How::Counting | How::Stacks => true,
            How::StackId => toolbox.has(Tool::Floor),
            // It follows no child.
            How::Heaptrack | How::HeaptrackWhole => case.is_single && toolbox.has(Tool::Heaptrack),
        }
    }

    fn wrap(self, toolbox: &Toolbox, command: &[OsString]) -> Result<Vec<OsString>> {
        let under_memleak = |stacks: &str| {
            let mut line = toolbox.memleak_run(&[SHARED, stacks, "--lost=never", "-q"]);
            line.extend_from_slice(command);
            line
        };
        Ok(match self {
            How::Bare => command.to_vec(),
            How::Counting => under_memleak("--stacks=never"),
            How::Stacks => under_memleak("--stacks=always"),
            How::StackId => {
                let own = std::env::current_exe().context("this program has no path")?;
                [&[own.into(), floor::WALKING.into()], command].concat()
            }
            How::Heaptrack | How::HeaptrackWhole => {
                let mut line = toolbox.wrap(Tool::Heaptrack, command)?;
                if self == How::Heaptrack {
                    line.insert(1, "--raw".into());
                }
                line
            }
        })
    }
}

struct Case {
    title: &'static str,
    /// `{}` stands for the number of operations.
    command: &'static [&'static str],
    operations: u64,
    allocations: u64,
    /// Whether all the work is in one process.
    is_single: bool,
    /// Whether the program says itself what it took. Of the others, the whole run is measured, less that of `true`.
    says: bool,
}

const CASES: [Case; 9] = [
    Case {
        title: "malloc+free 10 calls below main, a pair",
        command: &["deep", "10", "{}"],
        operations: 300_000,
        allocations: 300_000,
        is_single: true,
        says: true,
    },
    Case {
        title: DEEPEST,
        command: &["deep", "45", "{}"],
        operations: 300_000,
        allocations: 300_000,
        is_single: true,
        says: true,
    },
    Case {
        title: "100,000 live blocks of up to 1,000 bytes, one replaced at random",
        command: &["replace", "100000", "{}"],
        operations: 300_000,
        allocations: 300_000,
        is_single: true,
        says: true,
    },
    Case {
        title: "python3, 20,000 records through JSON, a record",
        command: &["python3", "records.py", "{}"],
        operations: 20_000,
        allocations: 200_000,
        is_single: true,
        says: true,
    },
    Case {
        title: "`git log --stat -p` of 10,000 commits, a commit",
        command: &["git", "-C", "commits", "--no-pager", "log", "--stat", "-p"],
        operations: COMMITS,
        allocations: 50_000,
        is_single: true,
        says: false,
    },
    Case {
        title: "a C++ program with containers, streams and exceptions",
        command: &["ordinary", "600"],
        operations: 1,
        allocations: 100_000,
        is_single: true,
        says: false,
    },
    Case {
        title: "cc1plus on one file",
        command: &["cc1plus", "-quiet", "-O1", "objects.ii", "-o", "/dev/null"],
        operations: 1,
        allocations: 100_000,
        is_single: true,
        says: false,
    },
    Case {
        title: "200 times `echo`, a process",
        command: &["starts", "{}", "echo"],
        operations: 200,
        allocations: 200,
        is_single: false,
        says: true,
    },
    Case {
        title: "`make -j2` of thirty C files, a build",
        command: &["starts", "{}", "make", "-s", "-B", "-j2", "-C", "project"],
        operations: 1,
        allocations: 1_000,
        is_single: false,
        says: true,
    },
];

const COMMITS: u64 = 10_000;

/// The case by which the cost of a frame is found, and how many frames it has more than the one before.
const DEEPEST: &str = "malloc+free 45 calls below main, a pair";
const MORE_FRAMES: f64 = 35.0;

pub struct Stacks {
    /// Nanoseconds for an operation, for each way to run it that there is.
    pub times: Vec<(&'static str, Vec<(How, f64)>)>,
    /// Nanoseconds for a frame.
    pub frame: f64,
    /// Milliseconds of `memleak run -- true` counting alone, and with call stacks.
    pub starts: [f64; 2],
    /// How many milliseconds longer a Python that does nothing takes with call stacks. Its files have to be read.
    pub python: f64,
}

pub fn measure(toolbox: &Toolbox, rounds: usize) -> Result<Stacks> {
    println!("\ncall stacks");
    prepare()?;
    let of_true = starts(toolbox, rounds, &["/bin/true"])?;
    let of_python = starts(toolbox, rounds, &["python3", "-c", "pass"])?;
    let mut times = Vec::new();
    for case in &CASES {
        let hows = ALL.into_iter().filter(|how| how.can_run(case, toolbox));
        let medians = medians(hows, rounds, |how| {
            let start = taken(&of_true, how).unwrap_or_default();
            run(toolbox, how, case, start)
        })?;
        println!("  {}: {medians:?}", case.title);
        times.push((case.title, medians));
    }
    let stacks_of = |at: usize| taken(&times[at].1, How::Stacks).unwrap_or(f64::NAN);
    let frame = (stacks_of(1) - stacks_of(0)) / MORE_FRAMES;
    let start_of = |of: &[(How, f64)], how| taken(of, how).map_or(f64::NAN, |start| start / 1e6);
    let more = start_of(&of_python, How::Stacks) - start_of(&of_python, How::Counting);
    Ok(Stacks {
        frame,
        starts: [How::Counting, How::Stacks].map(|how| start_of(&of_true, how)),
        python: more,
        times,
    })
}

/// Makes what the cases need.
fn prepare() -> Result<()> {
    let succeeds = |command: &mut Command, what: &str| {
        let output = command
            .output()
            .with_context(|| format!("cannot run {what}"))?;
        ensure!(
            output.status.success(),
            "{what}: {}",
            first_line(&output.stderr)
        );
        Ok(())
    };
    let mut compiler = Command::new("c++");
    compiler
        .args(["-O2", "-pthread", "-o"])
        .arg(built("ordinary"));
    compiler.arg(format!("{SOURCES}/../stacks/program.cc"));
    succeeds(&mut compiler, "c++")?;
    let mut preprocessor = Command::new("c++");
    preprocessor.args(["-E", "-o"]).arg(built("objects.ii"));
    preprocessor.arg(format!("{SOURCES}/objects.cc"));
    succeeds(&mut preprocessor, "c++")?;

    let repository = built("commits");
    // It is made anew, as an older one may have other commits.
    let _ = fs::remove_dir_all(&repository);
    let mut stream = String::new();
    for number in 0..COMMITS {
        let text = format!("line {number}\n").repeat((number % 50 + 1) as usize);
        stream += &format!(
            "commit refs/heads/main\ncommitter A <a@example.org> {} +0000\ndata 4\nnews\n\
             M 644 inline file{}\ndata {}\n{text}\n",
            1_700_000_000 + number,
            number % 7,
            text.len()
        );
    }
    let input = built("commits.stream");
    fs::write(&input, stream).with_context(|| format!("cannot write {}", input.display()))?;
    let mut git = Command::new("git");
    git.args(["init", "-q", "-b", "main"]).arg(&repository);
    succeeds(&mut git, "git init")?;
    let mut git = Command::new("git");
    git.arg("-C")
        .arg(&repository)
        .args(["fast-import", "--quiet"]);
    let input = File::open(&input).with_context(|| format!("cannot open {}", input.display()))?;
    succeeds(git.stdin(input).stdout(Stdio::null()), "git fast-import")
}

/// Nanoseconds that a short command takes, for each way to run it that there is.
fn starts(toolbox: &Toolbox, rounds: usize, command: &[&str]) -> Result<Vec<(How, f64)>> {
    let command: Vec<OsString> = command.iter().map(OsString::from).collect();
    let hows = ALL.into_iter().filter(|how| match how {
        How::Bare | How::Counting | How::Stacks => true,
        How::StackId => toolbox.has(Tool::Floor),
        How::Heaptrack | How::HeaptrackWhole => toolbox.has(Tool::Heaptrack),
    });
    medians(hows, rounds * 3, |how| {
        whole_run(&how.wrap(toolbox, &command)?)
    })
}

/// Nanoseconds of a whole run.
fn whole_run(words: &[OsString]) -> Result<f64> {
    let began = Instant::now();
    let output = output_of(words)?;
    let taken = began.elapsed().as_nanos() as f64;
    ensure!(output.status.success(), "{}", first_line(&output.stderr));
    Ok(taken)
}

/// Runs a case once. `start`: what `true` takes so. Returns nanoseconds for an operation.
fn run(toolbox: &Toolbox, how: How, case: &Case, start: f64) -> Result<f64> {
    let words = how.wrap(toolbox, &words(case)?)?;
    let each = match case.says {
        true => timing_of(&output_of(&words)?)?.each(),
        false => (whole_run(&words)? - start) / case.operations as f64,
    };
    if matches!(how, How::Counting | How::Stacks) {
        let counted = toolbox.reported_allocations()?;
        ensure!(
            counted >= case.allocations,
            "memleak counted {counted} allocations, and there were at least {}",
            case.allocations
        );
    }
    Ok(each)
}

fn words(case: &Case) -> Result<Vec<OsString>> {
    let mut words = line(case.command, case.operations)?;
    for word in &mut words {
        match word.to_str() {
            Some("cc1plus") => *word = compiler_proper()?,
            Some(name @ ("commits" | "ordinary" | "objects.ii")) => *word = built(name).into(),
            _ => {}
        }
    }
    Ok(words)
}

/// The path of the C++ compiler itself, which the driver starts.
fn compiler_proper() -> Result<OsString> {
    let output = output_of(&["c++", "-print-prog-name=cc1plus"].map(OsString::from))?;
    let path = PathBuf::from(first_line(&output.stdout));
    ensure!(path.is_absolute(), "the C++ compiler is not gcc's");
    Ok(path.into())
}
