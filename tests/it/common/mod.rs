//! Helpers for all tests on the real kernel: fixtures, runs of memleak and their reports, runs under the interposing
//! counter, and the comparison of reports with the counter.

pub mod counter;
pub mod expected;
pub mod files;
pub mod fixtures;
pub mod group;
#[cfg(target_arch = "x86_64")]
pub mod held;
pub mod loss_records;
pub mod machine;
pub mod newcomers;
pub mod probes;
pub mod proc;
pub mod pty;
pub mod root;
pub mod scrape;
pub mod side_by_side;
pub mod slurm;
pub mod stack_cases;
pub mod stack_programs;
pub mod stacks;
pub mod switches;
pub mod symbols;
pub mod unprobed;
pub mod unwinder;
pub mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::fmt::{self, Write as _};
use std::io::Read;
use std::ops::Sub;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::LazyLock;
use std::time::{Duration, Instant};
use std::{fs, thread};

use counter::Kind;
use serde::{Deserialize, Serialize};
use stacks::StackRecord;
use tempfile::TempDir;

pub use fixtures::{compile, fixture};

/// A run that takes longer hangs. TEST_TIMEOUT sets another number of seconds, for emulated machines.
pub static TIMEOUT: LazyLock<Duration> = LazyLock::new(|| {
    let seconds = std::env::var("TEST_TIMEOUT")
        .map(|text| text.parse().expect("TEST_TIMEOUT is a number of seconds"));
    Duration::from_secs(seconds.unwrap_or(120))
});

/// Runs what follows with the dispositions that a shell's job has. The tests may run under nohup, from cron or in the
/// background, where some signals are ignored: memleak and its command would keep that so.
pub const DEFAULT_SIGNALS: [&str; 2] = ["env", "--default-signal"];

// ---- counts ------------------------------------------------------------------------------------------

/// The counts of one image that memleak and the counter both have. Sizes are in bytes.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub struct Counts {
    pub total_allocs_bytes: u64,
    pub alloc_count: u64,
    pub free_count: u64,
    pub leaked_bytes: u64,
    pub leaked_blocks: u64,
    pub failed_allocs: u64,
    pub unknown_frees: u64,
}

impl Counts {
    fn named(&self) -> [(&'static str, u64); 7] {
        [
            ("total_allocs_bytes", self.total_allocs_bytes),
            ("alloc_count", self.alloc_count),
            ("free_count", self.free_count),
            ("leaked_bytes", self.leaked_bytes),
            ("leaked_blocks", self.leaked_blocks),
            ("failed_allocs", self.failed_allocs),
            ("unknown_frees", self.unknown_frees),
        ]
    }
}

/// What a run counted more than an idle run of the same program.
impl Sub for Counts {
    type Output = Self;

    fn sub(self, idle: Self) -> Self {
        Counts {
            total_allocs_bytes: self.total_allocs_bytes - idle.total_allocs_bytes,
            alloc_count: self.alloc_count - idle.alloc_count,
            free_count: self.free_count - idle.free_count,
            leaked_bytes: self.leaked_bytes - idle.leaked_bytes,
            leaked_blocks: self.leaked_blocks - idle.leaked_blocks,
            failed_allocs: self.failed_allocs - idle.failed_allocs,
            unknown_frees: self.unknown_frees - idle.unknown_frees,
        }
    }
}

impl fmt::Debug for Counts {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let words: Vec<_> = self
            .named()
            .iter()
            .map(|(name, value)| format!("{name} {value}"))
            .collect();
        f.write_str(&words.join(", "))
    }
}

// ---- memleak's report ----------------------------------------------------------------------------------

/// A line of type `process` of the schema `memleak/1`.
#[derive(Clone, Debug, Deserialize)]
pub struct Row {
    pub pid: u32,
    pub ppid: u32,
    pub uid: u32,
    pub user: Option<String>,
    pub comm: String,
    pub exe: Option<PathBuf>,
    /// Only with --args.
    pub args: Option<Vec<String>>,
    #[serde(default)]
    pub args_cut: bool,
    /// Only with --label-env.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    pub job: Option<String>,
    pub rank: Option<u32>,
    pub image: u32,
    pub end: String,
    pub exit_code: Option<i32>,
    pub signal: Option<i32>,
    pub from: String,
    pub start_time: f64,
    pub end_time: f64,
    #[serde(flatten)]
    pub counts: Counts,
    /// Only for a running process.
    pub growth_bytes: Option<i64>,
    pub peak_live_bytes: Option<u64>,
    /// How the blocks that it never freed could be reached, if that is known.
    pub reach: Option<Reached>,
    /// Why it is not known.
    pub reach_unknown: Option<String>,
    pub allocators: Vec<PathBuf>,
    #[serde(default)]
    pub counted_by: Vec<String>,
    pub complete: bool,
    /// The reason why not all allocations of the process were counted. `None` if all were counted.
    pub uncovered: Option<String>,
    pub losses: Losses,
}

/// How the blocks that a process never freed could be reached, in bytes and blocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reached {
    pub definite_bytes: u64,
    pub definite_blocks: u64,
    pub indirect_bytes: u64,
    pub indirect_blocks: u64,
    pub possible_bytes: u64,
    pub possible_blocks: u64,
    pub reachable_bytes: u64,
    pub reachable_blocks: u64,
}

/// A line of type `summary`.
#[derive(Clone, Debug, Deserialize)]
pub struct Summary {
    /// `None` if memleak launched no command.
    pub outcome: Option<String>,
    pub processes: u64,
    /// The number of `processes` whose allocations were all counted.
    pub covered_processes: Option<u64>,
    pub total_allocs_bytes: u64,
    pub leaked_bytes: u64,
    pub gate: Option<Gate>,
    pub complete: bool,
    pub losses: Losses,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Gate {
    pub verdict: String,
}

/// The report has only the fields that are not zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Losses {
    pub blocks_not_recorded: u64,
    pub bytes_not_recorded: u64,
    pub calls_without_return: u64,
    pub calls_in_flight: u64,
    pub rows_lost: u64,
}

/// A finished run of memleak.
#[derive(Debug)]
pub struct Report {
    /// The rows, in the order in which the images ended.
    pub rows: Vec<Row>,
    /// The stacks of the images, where they were asked for.
    pub stacks: Vec<StackRecord>,
    pub summary: Summary,
    pub status: ExitStatus,
    /// The command's standard output. memleak writes nothing there.
    pub stdout: String,
    /// The standard error of memleak and of the command.
    pub stderr: String,
}

impl Report {
    /// The report on a process tree that memleak counted from its beginning.
    fn new(json: &str, output: Output) -> Self {
        let report = Self::read(json, output);
        report.check_sums();
        report
    }

    fn read(json: &str, output: Output) -> Self {
        let (mut rows, mut stacks) = (Vec::new(), Vec::new());
        let mut summary = None;
        for line in json.lines() {
            let value: serde_json::Value =
                serde_json::from_str(line).unwrap_or_else(|error| panic!("{error} in {line:?}"));
            assert_eq!(value["schema"], "memleak/1", "in {line}");
            assert!(summary.is_none(), "a line after the summary: {line}");
            match value["type"].as_str() {
                Some("process") => rows.push(
                    serde_json::from_value(value)
                        .unwrap_or_else(|error| panic!("{error} in {line}")),
                ),
                Some("stack") => stacks.push(
                    serde_json::from_value(value)
                        .unwrap_or_else(|error| panic!("{error} in {line}")),
                ),
                Some("summary") => {
                    summary = Some(
                        serde_json::from_value(value)
                            .unwrap_or_else(|error| panic!("{error} in {line}")),
                    );
                }
                _ => panic!("a line of an unknown type: {line}"),
            }
        }
        let Some(summary) = summary else {
            panic!(
                "memleak reported no summary; {}: {}",
                output.status, output.stderr
            );
        };
        Report {
            rows,
            stacks,
            summary,
            status: output.status,
            stdout: output.stdout,
            stderr: output.stderr,
        }
    }

    /// Fails unless the summary is the sum of the rows and each process has all its images. The images of a process are
    /// numbered from 0 without a gap. An exec replaced each of them but the last.
    fn check_sums(&self) {
        let total: u64 = self
            .rows
            .iter()
            .map(|row| row.counts.total_allocs_bytes)
            .sum();
        let ended = self
            .rows
            .iter()
            .filter(|row| row.end == "exited" || row.end == "signaled");
        let leaked: u64 = ended.map(|row| row.counts.leaked_bytes).sum();
        assert_eq!(
            self.summary.total_allocs_bytes, total,
            "the summary's total is not the sum of the rows"
        );
        assert_eq!(
            self.summary.leaked_bytes, leaked,
            "the summary's leak is not the sum of the rows"
        );
        if self.summary.losses.rows_lost > 0 {
            return;
        }
        let mut processes = 0;
        for (pid, mut rows) in by_pid(&self.rows, |row| row.pid) {
            rows.sort_by(|a, b| {
                let started = a.start_time.total_cmp(&b.start_time);
                started.then(a.image.cmp(&b.image))
            });
            // The kernel may use a pid again. Image 0 begins a new process.
            for rows in rows.chunk_by(|_, next| next.image != 0) {
                processes += 1;
                for (row, image) in rows.iter().zip(0..) {
                    let last = image as usize + 1 == rows.len();
                    assert!(
                        row.image == image && (row.end != "exec") == last,
                        "pid {pid} lacks an image, or has one twice: {rows:#?}"
                    );
                }
            }
        }
        assert_eq!(
            self.summary.processes, processes,
            "the summary has the wrong number of processes"
        );
    }

    /// The only row of the report. Fails if there are several rows or none.
    #[track_caller]
    pub fn only_row(&self) -> &Row {
        match &self.rows[..] {
            [row] => row,
            rows => panic!("expected one row, found {rows:#?}"),
        }
    }

    /// Fails if memleak lost anything.
    #[track_caller]
    pub fn assert_complete(&self) {
        for row in &self.rows {
            assert!(
                row.complete && row.losses == Losses::default(),
                "incomplete: {row:#?}"
            );
        }
        let summary = &self.summary;
        assert!(
            summary.complete && summary.losses == Losses::default(),
            "incomplete: {summary:#?}"
        );
    }
}

fn by_pid<T>(items: &[T], pid: impl Fn(&T) -> u32) -> BTreeMap<u32, Vec<&T>> {
    let mut map: BTreeMap<u32, Vec<&T>> = BTreeMap::new();
    for item in items {
        map.entry(pid(item)).or_default().push(item);
    }
    map
}

// ---- runs --------------------------------------------------------------------------------------------

/// A command to run under memleak, under the counter, under both or under neither.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Job {
    command: Vec<OsString>,
    options: Vec<OsString>,
    wrapper: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
    directory: Option<PathBuf>,
}

/// The results of a run under memleak and the counter.
pub struct Counted {
    /// memleak's report, without the image that set up the counter.
    pub report: Report,
    /// The counter's images. There are none where the C library counts by itself: the counter is an allocator that
    /// calls the library's, so calls of both would be counted. There probes count beside the library instead, and a row
    /// is complete only if both have counted the same.
    pub images: Vec<counter::Image>,
}

struct Output {
    status: ExitStatus,
    stdout: String,
    stderr: String,
}

/// A run that has not ended.
pub struct Running {
    child: Child,
    readers: [thread::JoinHandle<String>; 2],
    json: PathBuf,
    counters: Option<PathBuf>,
    _scratch: TempDir,
}

impl Job {
    pub fn new<A: AsRef<OsStr>>(
        program: impl AsRef<OsStr>,
        arguments: impl IntoIterator<Item = A>,
    ) -> Self {
        let mut command = vec![program.as_ref().to_os_string()];
        command.extend(arguments.into_iter().map(|a| a.as_ref().to_os_string()));
        // Names and sort orders must not depend on the user that runs the tests.
        let environment = vec![("LC_ALL".into(), "C".into())];
        Job {
            command,
            options: Vec::new(),
            wrapper: Vec::new(),
            environment,
            directory: None,
        }
    }

    /// A job that runs a fixture with arguments.
    pub fn fixture(name: &str, arguments: &[&str]) -> Self {
        Job::new(fixture(name), arguments)
    }

    /// A job that runs a shell script.
    pub fn shell(script: &str) -> Self {
        Job::new("sh", ["-c", script])
    }

    /// Adds options of `memleak run`.
    #[must_use]
    pub fn options<A: AsRef<OsStr>>(mut self, options: impl IntoIterator<Item = A>) -> Self {
        self.options
            .extend(options.into_iter().map(|o| o.as_ref().to_os_string()));
        self
    }

    /// Runs memleak by way of another command, `wrapper`.
    #[must_use]
    pub fn under(mut self, wrapper: &[&str]) -> Self {
        self.wrapper = wrapper.iter().map(OsString::from).collect();
        self
    }

    #[must_use]
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.environment
            .push((name.into(), value.as_ref().to_os_string()));
        self
    }

    #[must_use]
    pub fn in_directory(mut self, directory: &Path) -> Self {
        self.directory = Some(directory.to_path_buf());
        self
    }

    /// Runs the command under memleak.
    #[track_caller]
    pub fn run(&self) -> Report {
        self.start_with(None).wait()
    }

    #[track_caller]
    pub fn start(&self) -> Running {
        self.start_with(None)
    }

    /// Runs the command under memleak and the counter at the same time. Only the command has the counter in its
    /// environment, because memleak's own allocations would spoil the counts. The program that sets up the counter is
    /// the root's image 0. It allocates nothing, and this function takes its row out of the report. The root's images
    /// are then numbered from 1.
    #[track_caller]
    pub fn run_counted(&self) -> Counted {
        self.start_counted().wait_counted()
    }

    #[track_caller]
    pub fn start_counted(&self) -> Running {
        if probes::are_inside() {
            return self.clone().options([compare_inside()]).start();
        }
        self.start_with(Some(&counter::library()))
    }

    /// Runs the command under memleak and the library that records the stacks of allocations, at the same time. As in
    /// `run_counted`, the report has no row for the program that sets up the library.
    #[track_caller]
    pub fn run_unwound(&self) -> (Report, Vec<unwinder::Unwound>) {
        let running = self.start_with(Some(&unwinder::library()));
        running.wait_with_library(unwinder::read)
    }

    /// Runs the command under the counter alone. This needs no rights.
    #[track_caller]
    pub fn count(&self) -> (Vec<counter::Image>, ExitStatus, String) {
        let counters = TempDir::new().expect("a temporary directory can be created");
        let command = under_library(&counter::library(), counters.path(), &self.command);
        let output = collect(&mut self.finish(command));
        (counter::read(counters.path()), output.status, output.stdout)
    }

    /// Runs the command under the library that records the stacks of allocations, alone. This needs no rights.
    #[track_caller]
    pub fn unwind(&self) -> (Vec<unwinder::Unwound>, ExitStatus, String) {
        let counters = TempDir::new().expect("a temporary directory can be created");
        let command = under_library(&unwinder::library(), counters.path(), &self.command);
        let output = collect(&mut self.finish(command));
        (
            unwinder::read(counters.path()),
            output.status,
            output.stdout,
        )
    }

    /// Runs the command under `program` alone, for instance valgrind.
    #[track_caller]
    pub fn run_under(&self, program: &str, options: &[&str]) -> (ExitStatus, String) {
        let mut command = Command::new(program);
        command.args(options).args(&self.command);
        let output = collect(&mut self.finish(command));
        (output.status, output.stderr)
    }

    /// Applies the settings that all kinds of runs share.
    fn finish(&self, mut command: Command) -> Command {
        // Cargo sets this variable for its own programs. Other programs would search those directories, too.
        command.env_remove("LD_LIBRARY_PATH");
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        if let Some(directory) = &self.directory {
            command.current_dir(directory);
        }
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        // A process group of its own, so that all processes of a run that hangs can be killed.
        command.process_group(0);
        command
    }

    #[track_caller]
    fn start_with(&self, library: Option<&Path>) -> Running {
        assert!(
            nix::unistd::geteuid().is_root(),
            "this test loads BPF programs and needs root: run `make test`, which goes through sudo"
        );
        let scratch = TempDir::new().expect("a temporary directory can be created");
        let json = scratch.path().join("report.json");
        let counters = library.map(|_| scratch.path().join("counters"));
        let memleak = OsString::from(env!("CARGO_BIN_EXE_memleak"));
        let mut words = self.wrapper.iter().chain([&memleak]);
        let mut command = Command::new(words.next().expect("at least memleak"));
        command
            .args(words)
            .args(probes::run_words())
            .args(["--format", "json", "-o"])
            .arg(&json);
        // memleak without optimisation takes 0.1 s to read unwind rules, in each of two thousand runs. Where counts are
        // compared with the truth, stacks are recorded, as a user has it.
        let chooses = |option: &OsString| {
            let option = option.as_bytes();
            let words: [&[u8]; 3] = [b"--stacks", b"--only-stack", b"--baseline"];
            let is_word = words.iter().any(|word| option.starts_with(word));
            is_word || option.ends_with(b"suppressions") || option.starts_with(b"--gen-")
        };
        if library.is_none() && !probes::with_stacks() && !self.options.iter().any(chooses) {
            command.arg("--stacks=never");
        }
        command.args(&self.options).arg("--");
        if let (Some(library), Some(directory)) = (library, &counters) {
            fs::create_dir(directory).expect("a directory for the library's files");
            let under = under_library(library, directory, &self.command);
            command.arg(under.get_program()).args(under.get_args());
        } else {
            command.args(&self.command);
        }
        let (child, readers) = spawn(&mut self.finish(command));
        Running {
            child,
            readers,
            json,
            counters,
            _scratch: scratch,
        }
    }
}

impl Running {
    /// The pid of memleak, or of its wrapper.
    pub fn pid(&self) -> nix::unistd::Pid {
        nix::unistd::Pid::from_raw(self.child.id().cast_signed())
    }

    /// The path of the report.
    pub fn json(&self) -> &Path {
        &self.json
    }

    #[track_caller]
    pub fn wait(self) -> Report {
        self.wait_with(|| ())
    }

    /// As `wait`. Calls `between` after memleak has ended, before its output has ended.
    #[track_caller]
    pub fn wait_with(self, between: impl FnOnce()) -> Report {
        let status = wait_status(self.child);
        between();
        let output = output(status, self.readers);
        let json = fs::read_to_string(&self.json).unwrap_or_default();
        Report::new(&json, output)
    }

    #[track_caller]
    pub fn wait_counted(self) -> Counted {
        if self.counters.is_none() {
            let (report, images) = (self.wait(), Vec::new());
            return Counted { report, images };
        }
        let (report, images) = self.wait_with_library(counter::read);
        Counted { report, images }
    }

    #[track_caller]
    fn wait_with_library<T>(self, read: impl FnOnce(&Path) -> T) -> (Report, T) {
        let output = wait(self.child, self.readers);
        let json = fs::read_to_string(&self.json).unwrap_or_default();
        let mut report = Report::new(&json, output);
        let images = read(self.counters.as_deref().expect("started under a library"));
        remove_preload(&mut report.rows);
        (report, images)
    }
}

/// Takes out the row of `preload`. Fails unless there is one such row, with no allocations.
#[track_caller]
fn remove_preload(rows: &mut Vec<Row>) {
    let preload = counter::preload();
    let is_preload = |row: &Row| row.exe.as_deref() == Some(&preload);
    let found: Vec<_> = rows.iter().filter(|row| is_preload(row)).collect();
    let [row] = found[..] else {
        panic!("expected one image of {}: {rows:#?}", preload.display())
    };
    assert_eq!((row.image, &*row.end), (0, "exec"), "{row:#?}");
    assert_eq!(
        row.counts,
        Counts::default(),
        "{} must allocate nothing",
        preload.display()
    );
    rows.retain(|row| !is_preload(row));
}

/// A command under a library that writes files to `directory`.
fn under_library(library: &Path, directory: &Path, command: &[OsString]) -> Command {
    let mut under = Command::new(counter::preload());
    under.arg(library).arg(directory).args(command);
    under
}

fn spawn(command: &mut Command) -> (Child, [thread::JoinHandle<String>; 2]) {
    let mut child = command
        .spawn()
        .unwrap_or_else(|error| panic!("cannot run {}: {error}", command.get_program().display()));
    let stdout = reader(child.stdout.take().expect("the stream is a pipe"));
    let stderr = reader(child.stderr.take().expect("the stream is a pipe"));
    (child, [stdout, stderr])
}

fn reader(mut from: impl Read + Send + 'static) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        from.read_to_end(&mut bytes).expect("a pipe can be read");
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

#[track_caller]
fn collect(command: &mut Command) -> Output {
    let (child, readers) = spawn(command);
    wait(child, readers)
}

#[track_caller]
fn wait(child: Child, readers: [thread::JoinHandle<String>; 2]) -> Output {
    output(wait_status(child), readers)
}

#[track_caller]
fn wait_status(mut child: Child) -> ExitStatus {
    let started = Instant::now();
    loop {
        if let Some(status) = child.try_wait().expect("a child can be waited for") {
            return status;
        }
        if started.elapsed() > *TIMEOUT {
            let group = nix::unistd::Pid::from_raw(child.id().cast_signed());
            nix::sys::signal::killpg(group, nix::sys::signal::Signal::SIGKILL).ok();
            panic!("the run hangs: not done after {:?}", *TIMEOUT);
        }
        thread::sleep(Duration::from_millis(5));
    }
}

fn output(status: ExitStatus, readers: [thread::JoinHandle<String>; 2]) -> Output {
    let [stdout, stderr] = readers.map(|reader| reader.join().expect("a pipe can be read"));
    Output {
        status,
        stdout,
        stderr,
    }
}

/// The exit code of a run of memleak. As in a shell, it is 128 + n if signal n ended the run.
pub fn code(status: ExitStatus) -> i32 {
    status
        .code()
        .unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

/// The number of allocations that valgrind counts in a single program, and their bytes.
pub fn valgrind_totals(job: &Job) -> (u64, u64) {
    // valgrind translates the code that it finds. While another test runs a memleak on this machine, valgrind would
    // find breakpoints in the loader and in libc.
    let unprobed = unprobed::Unprobed::new();
    let words = unprobed.words(&["valgrind", "--leak-check=no"]);
    let (status, stderr) = job.run_under("unshare", &words);
    assert!(
        status.success(),
        "valgrind is needed (`make install-deps`), and must not fail: {stderr}"
    );
    // ==1== total heap usage: 318 allocs, 317 frees, 108,298 bytes allocated
    let line = stderr
        .lines()
        .find_map(|line| line.split_once("total heap usage: "))
        .unwrap_or_else(|| panic!("valgrind prints no total: {stderr}"))
        .1;
    let number = |text: &str| text.replace(',', "").parse().expect("the word is a number");
    let words: Vec<_> = line.split_whitespace().collect();
    (number(words[0]), number(words[4]))
}

// ---- the comparison ----------------------------------------------------------------------------------

impl Counted {
    /// Fails unless memleak lost nothing, and memleak and the counter have the same images with the same counts.
    #[track_caller]
    pub fn assert_equal_counts(&self) {
        self.report.assert_complete();
        let running: Vec<_> = self
            .report
            .rows
            .iter()
            .filter(|row| row.end == "running")
            .collect();
        assert!(
            running.is_empty(),
            "not comparable, because these processes run longer than the command: {running:#?}"
        );
        if let Err(difference) = self.compare() {
            panic!("memleak and the counter differ:\n{difference}");
        }
    }

    /// Compares memleak's rows with the other counts. The error lists every difference.
    pub fn compare(&self) -> Result<(), String> {
        if !probes::are_inside() {
            assert!(!self.images.is_empty(), "the counter has no image");
            return compare(&self.report.rows, &self.images);
        }
        let is_one_sided = |row: &&Row| {
            let allocates = row.counts != Counts::default();
            !row.complete || (allocates && row.counted_by != ["uprobes", "inside"])
        };
        let one_sided: Vec<_> = self.report.rows.iter().filter(is_one_sided).collect();
        match one_sided.is_empty() {
            true => Ok(()),
            false => Err(format!("not counted the same by probes: {one_sided:#?}")),
        }
    }

    /// The paths of the programs that were counted.
    pub fn programs(&self) -> BTreeSet<PathBuf> {
        let counted = self.images.iter().map(|image| image.exe.clone());
        let rows = self.report.rows.iter();
        let rows = rows.filter(|_| probes::are_inside());
        counted
            .chain(rows.filter_map(|row| row.exe.clone()))
            .collect()
    }
}

/// The option with which probes count beside a C library that counts by itself.
pub fn compare_inside() -> String {
    switches::switch("compare", "yes")
}

/// Compares memleak's rows (without the image of `preload`) with the counter's images, image by image, in both
/// directions. The error lists every difference.
///
/// The counter has a file for every image that an exec began and into which its library was loaded. It also has a file
/// for every fork that called the allocator. So both sides have the same list of images for a process, with one
/// exception: image 0 of a fork that never called the allocator. Only memleak knows that image, and its counts must all
/// be zero.
pub fn compare(rows: &[Row], images: &[counter::Image]) -> Result<(), String> {
    let rows = by_pid(rows, |row| row.pid);
    let images = by_pid(images, |image| image.pid);
    let pids: BTreeSet<_> = rows.keys().chain(images.keys()).collect();
    let mut difference = String::new();
    for pid in pids {
        let mut rows = rows.get(pid).cloned().unwrap_or_default();
        let images = images.get(pid).map_or(&[][..], Vec::as_slice);
        rows.sort_by_key(|row| row.image);
        compare_process(*pid, &rows, images, &mut difference);
    }
    if difference.is_empty() {
        Ok(())
    } else {
        Err(difference)
    }
}

fn compare_process(
    pid: u32,
    mut rows: &[&Row],
    images: &[&counter::Image],
    difference: &mut String,
) {
    let mut differ = |line: fmt::Arguments| {
        writeln!(difference, "pid {pid} {line}").expect("a string can be written to")
    };
    if rows.len() == images.len() + 1
        && rows[0].image == 0
        && images.first().is_none_or(|image| image.kind == Kind::Exec)
    {
        if rows[0].counts != Counts::default() {
            differ(format_args!(
                "image 0 ({}): the counter does not have {:?}",
                rows[0].comm, rows[0].counts
            ));
        }
        rows = &rows[1..];
    }
    if rows.len() != images.len() {
        differ(format_args!(
            "has {} images, the counter has {}:",
            rows.len(),
            images.len()
        ));
        for row in rows {
            differ(format_args!(
                "  memleak image {} ({}, {}): {:?}",
                row.image, row.comm, row.end, row.counts
            ));
        }
        for image in images {
            differ(format_args!(
                "  counter {:?} ({}, {}): {:?}",
                image.kind,
                image.comm,
                image.exe.display(),
                image.counts
            ));
        }
        return;
    }
    for (row, image) in rows.iter().zip(images) {
        let name = format!("image {} ({})", row.image, row.comm);
        if row.image > 0 && image.kind == Kind::Fork {
            differ(format_args!(
                "{name}: in the counter, a fork began this image"
            ));
        }
        for ((what, ours), (_, theirs)) in row.counts.named().iter().zip(image.counts.named()) {
            if *ours != theirs {
                let more = i128::from(*ours) - i128::from(theirs);
                differ(format_args!(
                    "{name}: {what} is {ours}, the counter has {theirs} ({more:+})"
                ));
            }
        }
    }
}
