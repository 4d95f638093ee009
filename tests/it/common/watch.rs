//! Runs of `memleak -p` and `-a`, and processes that already run when memleak starts.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::LazyLock;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use memleak::os::release;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use super::counter;
use super::machine::{self, Held};
use super::switches::switch;
use super::{Counts, DEFAULT_SIGNALS, Output, Report, Row, TIMEOUT, fixture, reader, wait_status};

// ---- processes that already run ----------------------------------------------------------------------

/// A process that has printed that it is ready, and waits for the end of its standard input. Dropping this kills it.
pub struct Waiting {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
    pid: u32,
}

impl Waiting {
    /// Starts a fixture that prints "ready PID".
    #[track_caller]
    pub fn fixture(name: &str, arguments: &[&str]) -> Self {
        Self::start(Command::new(fixture(name)).args(arguments))
    }

    /// Starts a command that prints "ready PID".
    #[track_caller]
    pub fn start(command: &mut Command) -> Self {
        command
            .env_remove("LD_LIBRARY_PATH")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut child = command
            .spawn()
            .unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"));
        let mut waiting = Waiting {
            stdin: child.stdin.take(),
            stdout: BufReader::new(child.stdout.take().expect("the stream is a pipe")),
            pid: 0,
            child,
        };
        let line = waiting.line();
        let pid = line.trim().strip_prefix("ready ");
        waiting.pid = pid
            .and_then(|pid| pid.parse().ok())
            .unwrap_or_else(|| panic!("{command:?} printed {line:?}"));
        waiting
    }

    /// The pid that the process printed, which is its pid in its own pid namespace.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// The pid of the process that was started. The process that printed "ready" may be another one.
    pub fn started_pid(&self) -> u32 {
        self.child.id()
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.stdout
            .read_line(&mut line)
            .expect("a pipe can be read");
        line
    }

    /// Sends the process an empty line. Waits for its answer, which is one line, and returns it.
    pub fn ask(&mut self) -> String {
        self.tell();
        self.line()
    }

    /// Sends the process an empty line, and does not wait for an answer.
    pub fn tell(&mut self) {
        let stdin = self
            .stdin
            .as_mut()
            .expect("the standard input is still open");
        stdin
            .write_all(b"\n")
            .expect("the process reads its standard input");
    }

    /// Lets the process continue, by closing its standard input.
    pub fn go(&mut self) {
        self.stdin = None;
    }

    /// Watches the process from here to its end.
    #[track_caller]
    pub fn watched(mut self, options: &[&str]) -> Report {
        let watch = Watch::pid(self.pid, options);
        self.go();
        watch.wait()
    }

    /// Lets the process continue to its end. Returns its status and the rest of its output.
    #[track_caller]
    pub fn finish(mut self) -> (ExitStatus, String) {
        self.go();
        let mut said = String::new();
        self.stdout
            .read_to_string(&mut said)
            .expect("a pipe can be read");
        (self.child.wait().expect("a child can be waited for"), said)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

// ---- memleak that watches ----------------------------------------------------------------------------

/// Options that choose the BPF programs for newer kernels, and options that choose those for kernels before 6.1. On
/// kernels that may miss exits, this has only the first: the other programs get no second notice of an exit.
pub static BOTH: LazyLock<Vec<Vec<&str>>> = LazyLock::new(|| {
    static SEPARATE: LazyLock<String> = LazyLock::new(|| switch("method", "separate"));
    let options = [vec![], vec![SEPARATE.as_str()]];
    let count = if release::may_miss_events() { 1 } else { 2 };
    options[..count].to_vec()
});

/// An interval that is longer than a test. In this form it cannot be a second pid by mistake.
pub const LONG: &str = "600.0";

/// A memleak that watches processes and has attached.
pub struct Watch {
    child: Child,
    stdout: JoinHandle<String>,
    stderr: Receiver<String>,
    said: String,
    json: PathBuf,
    _scratch: TempDir,
    _machine: Option<Held>,
}

/// The words that memleak prints when it has attached.
const ATTACHED: &str = "attached by";

impl Watch {
    #[track_caller]
    pub fn start<A: AsRef<OsStr>>(options: impl IntoIterator<Item = A>) -> Self {
        Self::start_under(&[], options)
    }

    /// Watches a running process, with an interval that is longer than the test.
    #[track_caller]
    pub fn pid(pid: u32, options: &[&str]) -> Self {
        let pid = pid.to_string();
        Self::start([&["-p", &pid, LONG], options].concat())
    }

    /// Watches every process, with the same interval.
    #[track_caller]
    pub fn all(options: &[&str]) -> Self {
        Self::start([&["-a", LONG], options].concat())
    }

    /// Starts memleak by way of another command, `wrapper`.
    #[track_caller]
    pub fn start_under<A: AsRef<OsStr>>(
        wrapper: &[&OsStr],
        options: impl IntoIterator<Item = A>,
    ) -> Self {
        let options: Vec<A> = options.into_iter().collect();
        let all = options.iter().any(|option| option.as_ref() == "-a");
        let machine = all.then(machine::watched);
        let scratch = TempDir::new().expect("a temporary directory can be created");
        let json = scratch.path().join("report.json");
        let memleak = OsStr::new(env!("CARGO_BIN_EXE_memleak"));
        let defaults = DEFAULT_SIGNALS.map(OsStr::new);
        let wrapper = wrapper.iter().copied().chain(defaults);
        let words: Vec<&OsStr> = wrapper.chain([memleak]).collect();
        let mut command = Command::new(words[0]);
        command
            .args(&words[1..])
            .args(["-v", "--format", "json", "-o"])
            .arg(&json)
            .args(&options)
            .env_remove("LD_LIBRARY_PATH")
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0);
        assert!(
            nix::unistd::geteuid().is_root(),
            "this test loads BPF programs and needs root: run `make test`, which goes through sudo"
        );
        let mut child = command.spawn().expect("memleak can be run");
        let stdout = reader(child.stdout.take().expect("the stream is a pipe"));
        let stderr = lines(child.stderr.take().expect("the stream is a pipe"));
        let mut watch = Watch {
            child,
            stdout,
            stderr,
            said: String::new(),
            json,
            _scratch: scratch,
            _machine: machine,
        };
        watch.wait_for(ATTACHED);
        watch
    }

    /// Waits until memleak prints `what` on standard error.
    #[track_caller]
    pub fn wait_for(&mut self, what: &str) {
        loop {
            match self.stderr.recv_timeout(*TIMEOUT) {
                Ok(line) => {
                    self.said += &line;
                    if line.contains(what) {
                        return;
                    }
                }
                Err(RecvTimeoutError::Timeout) => panic!("memleak hangs: {}", self.said),
                Err(RecvTimeoutError::Disconnected) => {
                    panic!("memleak does not print {what:?}: {}", self.said)
                }
            }
        }
    }

    pub fn own_pid(&self) -> u32 {
        self.child.id()
    }

    /// The rows that memleak has reported so far.
    pub fn rows(&self) -> Vec<Row> {
        rows(&self.json)
    }

    /// Waits until `enough` is true for the reported rows. Returns the rows.
    #[track_caller]
    pub fn until(&self, enough: impl Fn(&[Row]) -> bool) -> Vec<Row> {
        let began = std::time::Instant::now();
        loop {
            let rows = self.rows();
            if enough(&rows) {
                return rows;
            }
            assert!(began.elapsed() < *TIMEOUT, "not reported: {rows:#?}");
            thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).expect("memleak runs");
    }

    /// Asks memleak to stop, and waits for its end.
    #[track_caller]
    pub fn stop(self) -> Report {
        self.signal(Signal::SIGINT);
        self.wait()
    }

    /// Kills memleak with SIGKILL, so that it cannot clean up.
    pub fn kill(self) {
        self.signal(Signal::SIGKILL);
        wait_status(self.child);
    }

    /// Waits until memleak ends.
    #[track_caller]
    pub fn wait(mut self) -> Report {
        let status = wait_status(self.child);
        self.said.extend(self.stderr);
        let output = Output {
            status,
            stdout: self.stdout.join().expect("a pipe can be read"),
            stderr: self.said,
        };
        let json = fs::read_to_string(&self.json).unwrap_or_default();
        let report = Report::read(&json, output);
        assert_eq!(report.status.code(), Some(0), "{}", report.stderr);
        assert_eq!(report.summary.outcome, None);
        report
    }
}

/// The process rows of a report that memleak is still writing. memleak writes each line with one write. This reads only
/// whole lines.
pub fn rows(json: &Path) -> Vec<Row> {
    let text = fs::read_to_string(json).expect("the report exists");
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    let values = whole
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).expect("a line of JSON"));
    values
        .filter(|value| value["type"] == "process")
        .map(|value| serde_json::from_value(value).expect("a line of the schema"))
        .collect()
}

fn lines(from: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = channel();
    thread::spawn(move || {
        let mut from = BufReader::new(from);
        let mut line = Vec::new();
        while from.read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
            let text = String::from_utf8_lossy(&line).into_owned();
            if sender.send(text).is_err() {
                return;
            }
            line.clear();
        }
    });
    receiver
}

impl Report {
    /// The rows of one process, in the order of its images.
    pub fn rows_of(&self, pid: u32) -> Vec<&Row> {
        let mut rows: Vec<_> = self.rows.iter().filter(|row| row.pid == pid).collect();
        rows.sort_by_key(|row| row.image);
        rows
    }

    /// The rows of a process that has executed one other program.
    #[track_caller]
    pub fn two_rows_of(&self, pid: u32) -> [&Row; 2] {
        let rows = self.rows_of(pid);
        rows[..]
            .try_into()
            .unwrap_or_else(|_| panic!("not two images: {rows:#?}"))
    }

    /// The only row of a process.
    #[track_caller]
    pub fn row_of(&self, pid: u32) -> &Row {
        match self.rows_of(pid)[..] {
            [row] => row,
            ref rows => panic!(
                "expected one row of {pid}, found {rows:#?} among {:#?}",
                self.rows
            ),
        }
    }
}

// ---- the counter beside a memleak that watches -----------------------------------------------------------

/// The words that run a command under the counter, which writes to a directory.
pub fn under_counter<A: AsRef<OsStr>>(
    directory: &Path,
    command: impl IntoIterator<Item = A>,
) -> Vec<OsString> {
    let mut words = vec![
        counter::preload().into_os_string(),
        counter::library().into_os_string(),
        directory.as_os_str().to_owned(),
    ];
    words.extend(command.into_iter().map(|word| word.as_ref().to_owned()));
    words
}

/// The rows of the processes that the counter knows, from the time at which the counter was loaded. Without the images
/// before `preload`, which sets up the counter, and without `preload` itself, which allocates nothing.
#[track_caller]
pub fn since_preload(report: &Report, images: &[counter::Image]) -> Vec<Row> {
    let preload = counter::preload();
    let mut kept = Vec::new();
    for pid in images
        .iter()
        .map(|image| image.pid)
        .collect::<std::collections::BTreeSet<_>>()
    {
        let rows = report.rows_of(pid);
        let setup = rows
            .iter()
            .position(|row| row.exe.as_deref() == Some(&preload));
        if let Some(place) = setup {
            assert_eq!(rows[place].counts, Counts::default(), "{:#?}", rows[place]);
        }
        let first = setup.map_or(0, |place| place + 1);
        kept.extend(rows[first..].iter().map(|row| (*row).clone()));
    }
    kept
}
