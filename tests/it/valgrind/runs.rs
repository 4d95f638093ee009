//! Runs a program under valgrind, and under memleak.

use std::collections::hash_map::DefaultHasher;
use std::ffi::OsStr;
use std::fs;
use std::hash::{Hash, Hasher};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use super::list::Program;
use super::scratch::Scratch;
use super::verdict::{End, Judged, Reached};
use crate::common::probes::run_words;
use crate::common::unprobed::Unprobed;
use crate::common::{DEFAULT_SIGNALS, TIMEOUT, newcomers};

/// What valgrind runs with. A block that valgrind's own list would excuse counts, too. valgrind must follow which words
/// are defined, because a word that is not is no pointer.
const OPTIONS: [&str; 9] = [
    "valgrind",
    "--leak-check=full",
    "--show-leak-kinds=definite,indirect",
    "--run-libc-freeres=no",
    "--run-cxx-freeres=no",
    "--default-suppressions=no",
    "--error-limit=no",
    "--num-callers=6",
    "--vgdb=no",
];

/// A program that takes longer hangs.
fn time_limit() -> Duration {
    *TIMEOUT * 3
}

/// Libraries in which memleak may have probes, beside the C library and its loader.
const PROBED: [&str; 9] = [
    "libstdc++.so.6",
    "libpthread.so.0",
    "libdl.so.2",
    "librt.so.1",
    "libm.so.6",
    "libgcc_s.so.1",
    "libjemalloc.so.2",
    "libtcmalloc.so.4",
    "libmimalloc.so.2",
];

/// valgrind, with files of its own in place of those that memleak may have probes in, and with a store for its verdicts.
pub struct Valgrind {
    unprobed: Unprobed,
    store: PathBuf,
    /// A hash of all files that every run depends on.
    common: u64,
    /// Whether stored verdicts are used.
    reuse: bool,
}

/// A stored verdict.
#[derive(Serialize, Deserialize)]
struct Stored {
    judged: Judged,
    seconds: f64,
}

impl Valgrind {
    /// With a store of this name.
    pub fn new(store: &str, reuse: bool) -> Self {
        let there = PROBED.iter().filter_map(|name| {
            let output = Command::new("cc")
                .arg(format!("-print-file-name={name}"))
                .output()
                .ok()?;
            fs::canonicalize(String::from_utf8_lossy(&output.stdout).trim()).ok()
        });
        let unprobed = Unprobed::with(there);
        let mut hash = DefaultHasher::new();
        OPTIONS.hash(&mut hash);
        newcomers::run(Command::new("valgrind").arg("--version")).hash(&mut hash);
        for (name, value) in Scratch::environment() {
            (name, value).hash(&mut hash);
        }
        let inputs = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/valgrind/inputs.sh");
        let files = unprobed.files().iter().map(String::as_str);
        for file in files.chain([inputs]) {
            fs::read(file).unwrap_or_default().hash(&mut hash);
        }
        let store = Path::new(env!("CARGO_TARGET_TMPDIR"))
            .join("valgrind")
            .join(store);
        fs::create_dir_all(&store).expect("target/tmp can be written");
        Self {
            unprobed,
            store,
            common: hash.finish(),
            reuse,
        }
    }

    /// What valgrind says about the program, and the seconds that it took. A verdict is stored in target/tmp/valgrind/*,
    /// with valgrind's words about each block beside it. It holds as long as the program's file, its command and the
    /// C library are the same.
    ///
    /// In a static program valgrind cannot replace malloc. It runs the dynamic program of the same source, which loses
    /// the same.
    pub fn judge(&self, scratch: &Scratch, program: &Program) -> (Judged, f64) {
        let program = &program.dynamic();
        let stored = self.store.join(format!(
            "{}-{:016x}.json",
            program.name,
            self.key(scratch, program)
        ));
        if self.reuse
            && let Ok(text) = fs::read(&stored)
            && let Ok(stored) = serde_json::from_slice::<Stored>(&text)
        {
            return (stored.judged, stored.seconds);
        }
        let began = Instant::now();
        let judged = self.run(scratch, program);
        let seconds = began.elapsed().as_secs_f64();
        let text = serde_json::to_string(&Stored {
            judged: judged.clone(),
            seconds,
        });
        fs::write(stored, text.expect("a verdict is JSON")).expect("target/tmp can be written");
        (judged, seconds)
    }

    fn key(&self, scratch: &Scratch, program: &Program) -> u64 {
        let mut hash = DefaultHasher::new();
        self.common.hash(&mut hash);
        (&program.line, program.tree).hash(&mut hash);
        let (_, line) = scratch.command(program);
        let word = line.split_whitespace().next().unwrap_or_default();
        let path = ["", "/usr/sbin/", "/usr/bin/"]
            .iter()
            .map(|directory| PathBuf::from(format!("{directory}{word}")))
            .find(|path| path.is_absolute() && path.exists());
        // Fixtures may come with a library.
        let library = line.split_whitespace().find(|word| word.ends_with(".so"));
        for file in path
            .iter()
            .map(PathBuf::as_path)
            .chain(library.map(Path::new))
        {
            fs::read(file).unwrap_or_default().hash(&mut hash);
        }
        hash.finish()
    }

    /// Runs the program under valgrind. valgrind translates the code that it finds. If a memleak that watches the whole
    /// machine has put breakpoints even into the copies, the program dies of SIGTRAP, and runs again.
    fn run(&self, scratch: &Scratch, program: &Program) -> Judged {
        let mut tries = 0;
        loop {
            tries += 1;
            let judged = self.run_once(scratch, program);
            if judged.end != End::Signal(Signal::SIGTRAP as i32) || tries == 5 {
                return judged;
            }
            thread::sleep(Duration::from_secs(2));
        }
    }

    fn run_once(&self, scratch: &Scratch, program: &Program) -> Judged {
        let logs = self.store.join(&program.name);
        let _ = fs::remove_dir_all(&logs);
        fs::create_dir_all(&logs).expect("target/tmp can be written");
        let log = format!("--log-file={}/%p", logs.display());
        let children = format!(
            "--trace-children={}",
            if program.tree { "yes" } else { "no" }
        );
        let mut words = OPTIONS.to_vec();
        words.extend([log.as_str(), &children]);
        let mut prefix = vec!["unshare"];
        prefix.extend(self.unprobed.words(&words));
        let (pid, status, stderr) = run(scratch, program, &prefix, &[]);
        let mut processes: Vec<(u32, PathBuf)> = fs::read_dir(&logs)
            .expect("the logs can be listed")
            .filter_map(|entry| {
                let path = entry.expect("the logs can be listed").path();
                let pid = path.file_name()?.to_str()?.parse().ok()?;
                Some((pid, path))
            })
            .collect();
        processes.sort();
        if !program.tree {
            processes.retain(|(process, _)| *process == pid);
        }
        assert!(
            processes.iter().any(|(process, _)| *process == pid),
            "{}: valgrind left no log: {stderr}",
            program.name
        );
        Judged {
            end: end(status),
            processes: processes.iter().map(|(_, log)| read_log(log)).collect(),
        }
    }
}

/// What the log of a process says.
fn read_log(log: &Path) -> Result<Reached, String> {
    let text = fs::read(log).expect("the log can be read");
    read_summary(&String::from_utf8_lossy(&text))
}

/// The last summary of a log.
pub fn read_summary(text: &str) -> Result<Reached, String> {
    let mut reached = None;
    let mut unfreed = None;
    for line in text.lines() {
        // ==1234==    definitely lost: 1,024 bytes in 2 blocks
        let line = line.splitn(3, "==").nth(2).unwrap_or_default().trim();
        if line == "LEAK SUMMARY:" || line.starts_with("All heap blocks were freed") {
            reached = Some(Reached::default());
        } else if let Some(rest) = line.strip_prefix("in use at exit: ") {
            unfreed = numbers(rest);
        } else if let Some((kind, rest)) = line.split_once(": ")
            && let Some(reached) = &mut reached
            && let Some((bytes, blocks)) = numbers(rest)
        {
            match kind {
                "definitely lost" => {
                    (reached.definite_bytes, reached.definite_blocks) = (bytes, blocks);
                }
                "indirectly lost" => {
                    (reached.indirect_bytes, reached.indirect_blocks) = (bytes, blocks);
                }
                "possibly lost" => {
                    (reached.possible_bytes, reached.possible_blocks) = (bytes, blocks);
                }
                "still reachable" => {
                    (reached.reachable_bytes, reached.reachable_blocks) = (bytes, blocks);
                }
                _ => {}
            }
        }
    }
    let reached = reached.ok_or("the log has no summary")?;
    let all = (
        reached.lost().bytes + reached.possible_bytes + reached.reachable_bytes,
        reached.lost().blocks + reached.possible_blocks + reached.reachable_blocks,
    );
    // The sums are lower if a program tells valgrind that parts of a block are blocks, as GObject does.
    if unfreed.is_none_or(|unfreed| all.0 > unfreed.0 || all.1 > unfreed.1) {
        return Err(format!("the sums are {all:?} of {unfreed:?}"));
    }
    Ok(reached)
}

/// The numbers of "1,024 bytes in 2 blocks".
fn numbers(text: &str) -> Option<(u64, u64)> {
    let (bytes, rest) = text.split_once(" bytes in ")?;
    let blocks = rest.split(' ').next()?;
    let number = |text: &str| text.replace(',', "").parse().ok();
    Some((number(bytes)?, number(blocks)?))
}

// ---- memleak -----------------------------------------------------------------------------------------

/// A line of type `process` of memleak's report.
#[derive(Debug, Deserialize)]
struct Process {
    pid: u32,
    ppid: u32,
    image: u32,
    exit_code: Option<i32>,
    signal: Option<i32>,
    leaked_blocks: u64,
    reach: Option<Reached>,
    reach_unknown: Option<String>,
}

/// What memleak says about the program. `memleak` is its path. An error says why there is no report.
pub fn judge(memleak: &Path, scratch: &Scratch, program: &Program) -> Result<Judged, String> {
    let directory = TempDir::new().expect("a temporary directory can be created");
    let report = directory.path().join("report.json");
    let mut prefix = vec![memleak.to_str().expect("the path is UTF-8")];
    prefix.extend(run_words());
    prefix.extend([
        "--lost=always",
        "--format",
        "json",
        "-o",
        report.to_str().expect("the path is UTF-8"),
        "--",
    ]);
    let (_, status, stderr) = run(scratch, program, &prefix, &valgrinds_variables());
    let text = fs::read_to_string(&report).unwrap_or_default();
    read_report(&text, program.tree)
        .map_err(|error| format!("{}: {error}; {status}: {stderr}", program.name))
}

/// The processes of a report.
pub fn read_report(text: &str, tree: bool) -> Result<Judged, String> {
    let mut processes = Vec::new();
    for line in text.lines() {
        let value: serde_json::Value =
            serde_json::from_str(line).map_err(|error| format!("{error} in {line}"))?;
        if value["type"] == "process" {
            let process: Process =
                serde_json::from_value(value).map_err(|error| format!("{error} in {line}"))?;
            processes.push(process);
        }
    }
    processes.sort_by_key(|process| (process.pid, process.image));
    // An exec begins a new image of a process. Only the last one is compared.
    let mut last: Vec<Process> = Vec::new();
    for process in processes {
        if last.last().is_some_and(|before| before.pid == process.pid) {
            last.pop();
        }
        last.push(process);
    }
    let is_root = |process: &Process| last.iter().all(|other| other.pid != process.ppid);
    let roots: Vec<_> = last.iter().filter(|process| is_root(process)).collect();
    let [root] = roots[..] else {
        return Err(format!("the report has {} first processes", roots.len()));
    };
    let end = match (root.exit_code, root.signal) {
        (Some(code), None) => End::Exit(code),
        (None, Some(signal)) => End::Signal(signal),
        both => return Err(format!("the report has the end {both:?}")),
    };
    let reached = |process: &Process| match (process.reach, &process.reach_unknown) {
        (Some(reached), None) => {
            let blocks = reached.lost().blocks + reached.possible_blocks + reached.reachable_blocks;
            if blocks == process.leaked_blocks {
                Ok(reached)
            } else {
                Err(format!("{blocks}_of_{}_blocks", process.leaked_blocks))
            }
        }
        (None, Some(word)) => Err(word.clone()),
        _ => Err("no_verdict".to_owned()),
    };
    Ok(Judged {
        end,
        processes: match tree {
            true => last.iter().map(reached).collect(),
            false => vec![reached(root)],
        },
    })
}

/// What valgrind and the script that Debian puts before it set for programs.
const VALGRINDS_VARIABLES: [&str; 4] = [
    "LD_PRELOAD",
    "LD_LIBRARY_PATH",
    "GLIBCPP_FORCE_NEW",
    "GLIBCXX_FORCE_NEW",
];

/// The variables that valgrind sets for programs, so that both runs have an environment of one size. The loader skips
/// the colons of LD_PRELOAD.
fn valgrinds_variables() -> Vec<(String, String)> {
    static VARIABLES: Mutex<Option<Vec<(String, String)>>> = Mutex::new(None);
    let mut variables = VARIABLES.lock().expect("no other test failed here");
    let found = variables.get_or_insert_with(|| {
        let unprobed = Unprobed::new();
        let output = Command::new("unshare")
            .args(unprobed.words(&["valgrind", "-q", "--leak-check=no", "env"]))
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .output()
            .expect("unshare is needed");
        let text = String::from_utf8_lossy(&output.stdout);
        text.lines()
            .filter_map(|line| line.split_once('='))
            .filter(|(name, _)| VALGRINDS_VARIABLES.contains(name))
            .map(|(name, value)| match name {
                "LD_PRELOAD" => (name.to_owned(), ":".repeat(value.len())),
                _ => (name.to_owned(), value.to_owned()),
            })
            .collect()
    });
    found.clone()
}

// ---- both --------------------------------------------------------------------------------------------

fn end(status: ExitStatus) -> End {
    match (status.code(), status.signal()) {
        (Some(code), _) => End::Exit(code),
        (None, signal) => End::Signal(signal.unwrap_or(0)),
    }
}

/// Runs the program behind the words of `prefix`. Its redirections also hold for these. Returns the pid of the first
/// word, its end, and the standard error.
fn run(
    scratch: &Scratch,
    program: &Program,
    prefix: &[&str],
    variables: &[(String, String)],
) -> (u32, ExitStatus, String) {
    let out = Scratch::emptied(program);
    let streams = TempDir::new().expect("a temporary directory can be created");
    let file =
        |name: &str| fs::File::create(streams.path().join(name)).expect("the directory is ours");
    let (own, line) = scratch.command(program);
    let mut child = Command::new("sh")
        .args([OsStr::new("-c"), OsStr::new(&format!("exec \"$@\" {line}"))])
        .arg("sh")
        .args(DEFAULT_SIGNALS)
        .args(prefix)
        .env_clear()
        .envs(Scratch::environment())
        .envs(
            variables
                .iter()
                .chain(&own)
                .map(|(name, value)| (name, value)),
        )
        .current_dir(Scratch::work())
        .stdin(Stdio::null())
        .stdout(file("out"))
        .stderr(file("err"))
        .process_group(0)
        .spawn()
        .expect("a shell can be started");
    let pid = child.id();
    let began = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().expect("the child is ours") {
            break status;
        }
        if began.elapsed() > time_limit() {
            let _ = killpg(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL);
            panic!("{} hangs: not done after {:?}", program.name, time_limit());
        }
        thread::sleep(Duration::from_millis(5));
    };
    let stderr = fs::read(streams.path().join("err")).unwrap_or_default();
    let _ = fs::remove_dir_all(out);
    (pid, status, String::from_utf8_lossy(&stderr).into_owned())
}
