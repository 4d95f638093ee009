//! Tests what the launcher promises, with the real program, real signals, real terminals and namespaces. The numbers
//! in the names are those of the launcher's list of cases.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, pipe};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::common::DEFAULT_SIGNALS;
use crate::common::files::{self, write_script};
use crate::common::fixtures::fixture;
use crate::common::probes::{run_line, run_words};
use crate::common::proc;
use crate::common::proc::{Process, within};
use crate::common::pty::{PROMPT, Terminal};
use crate::common::root;

/// A run that takes longer than this hangs.
const PATIENCE: Duration = Duration::from_secs(30);
/// In this time a superfluous signal or a superfluous stop would have shown.
const A_WHILE: Duration = Duration::from_millis(300);

const MEMLEAK: &str = env!("CARGO_BIN_EXE_memleak");
const SIGTERM: i32 = libc::SIGTERM;
const SIGINT: i32 = libc::SIGINT;

// ---- runs --------------------------------------------------------------------------------------------

fn memleak<A: AsRef<OsStr>>(command: impl IntoIterator<Item = A>) -> Command {
    root::require_root();
    let mut memleak = Command::new(MEMLEAK);
    memleak.args(run_words()).arg("--").args(command);
    memleak
}

fn shell(script: &str) -> Command {
    memleak(["sh", "-c", script])
}

/// Runs `script`, in which `$ML` stands for `memleak run --`, in bash.
fn bash(script: &str) -> Command {
    root::require_root();
    let mut bash = Command::new("bash");
    bash.args([
        "-c",
        &script.replace("$ML", &format!("{MEMLEAK} {} --", run_line())),
    ]);
    bash
}

/// Runs `program` through `with_signals`, which changes signals as `changes` says.
fn with_signals<A: AsRef<OsStr>>(
    changes: &[&str],
    program: impl IntoIterator<Item = A>,
) -> Command {
    let mut command = Command::new(fixture("with_signals"));
    command.args(changes).arg("--").args(program);
    command
}

/// The command line that runs `words` under memleak.
fn under_memleak(words: &[&str]) -> Vec<OsString> {
    root::require_root();
    [&[MEMLEAK], run_words(), &["--"], words]
        .concat()
        .iter()
        .map(OsString::from)
        .collect()
}

/// A run in progress, in a process group of its own. Dropping this value ends the run.
struct Run {
    child: Child,
    lines: Receiver<String>,
}

impl Run {
    fn start(command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .expect("the program can be started");
        let (sender, lines) = channel();
        let stdout = BufReader::new(child.stdout.take().expect("a pipe"));
        thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Self { child, lines }
    }

    /// Starts `prints_signals` under memleak. Also returns the pid of `prints_signals`.
    fn of_prints_signals() -> (Self, Pid) {
        let program = fixture("prints_signals");
        let program = program.to_str().expect("a plain path");
        let [env, option] = DEFAULT_SIGNALS;
        let mut command = Command::new(env);
        let run = Self::start(command.arg(option).args(under_memleak(&[program])));
        let pid = run.ready();
        (run, pid)
    }

    #[track_caller]
    fn ready(&self) -> Pid {
        pid_after_ready(&self.line())
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    #[track_caller]
    fn line(&self) -> String {
        self.lines
            .recv_timeout(PATIENCE)
            .expect("the command prints another line")
    }

    fn lines_within(&self, time: Duration) -> Vec<String> {
        let deadline = Instant::now() + time;
        let mut lines = Vec::new();
        while let Ok(line) = self
            .lines
            .recv_timeout(deadline.saturating_duration_since(Instant::now()))
        {
            lines.push(line);
        }
        lines
    }

    #[track_caller]
    fn wait(&mut self) -> ExitStatus {
        wait_for(&mut self.child)
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        let pid = self.pid();
        proc::end_all(|process| process.group == pid || process.parent == pid);
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[track_caller]
fn wait_for(child: &mut Child) -> ExitStatus {
    let mut status = None;
    let ended = eventually(|| {
        status = child.try_wait().expect("a child can be waited for");
        status.is_some()
    });
    if !ended {
        let group = child.id().cast_signed();
        proc::end_all(|process| process.group == Pid::from_raw(group));
    }
    status.unwrap_or_else(|| panic!("hangs: not done after {PATIENCE:?}"))
}

/// Runs the command to its end.
#[track_caller]
fn output(command: &mut Command) -> Output {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .expect("the program can be started");
    let stdout = collect(child.stdout.take().expect("a pipe"));
    let stderr = collect(child.stderr.take().expect("a pipe"));
    let status = wait_for(&mut child);
    Output {
        status,
        stdout: stdout.join().expect("a pipe can be read"),
        stderr: stderr.join().expect("a pipe can be read"),
    }
}

fn collect(mut from: impl Read + Send + 'static) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        from.read_to_end(&mut bytes).expect("a pipe can be read");
        bytes
    })
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The standard output of a command that must exit with 0.
#[track_caller]
fn stdout_of(command: &mut Command) -> String {
    let output = output(command);
    assert!(
        output.status.success(),
        "{}: {}",
        output.status,
        text(&output.stderr)
    );
    text(&output.stdout)
}

#[track_caller]
fn assert_code(command: &mut Command, code: i32) {
    let output = output(command);
    assert_eq!(
        output.status.code(),
        Some(code),
        "{}: {}",
        output.status,
        text(&output.stderr)
    );
}

fn eventually(is_so: impl FnMut() -> bool) -> bool {
    within(PATIENCE, is_so)
}

fn pid_after_ready(line: &str) -> Pid {
    let pid = line
        .trim()
        .strip_prefix("ready ")
        .and_then(|pid| pid.parse().ok());
    Pid::from_raw(pid.unwrap_or_else(|| panic!("not \"ready PID\": {line:?}")))
}

#[track_caller]
fn send(pid: Pid, signal: i32) {
    // SAFETY: the arguments are numbers, and the pid is that of a process of the test that is not reaped yet.
    assert_eq!(
        unsafe { libc::kill(pid.as_raw(), signal) },
        0,
        "signal {signal} to {pid}"
    );
}

// ---- exit codes and execution ------------------------------------------------------------------------

/// Tests some exit codes. `tests/exit_codes.rs` tests the launcher's part for all codes. `long.rs` tests all codes from
/// end to end.
#[test]
fn case_01_every_exit_code_is_passed_on() {
    for code in [0, 1, 125, 127, 255] {
        assert_exit_code(code);
    }
}

#[track_caller]
pub fn assert_exit_code(code: u8) {
    assert_code(&mut shell(&format!("exit {code}")), code.into());
}

#[track_caller]
fn assert_one_line_and_code(command: &mut Command, name: &str, code: i32) {
    let output = output(command);
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    assert!(
        stderr.starts_with("memleak: ") && stderr.contains(name),
        "{stderr}"
    );
    assert_eq!(text(&output.stdout), "");
}

#[test]
fn case_02_a_missing_command_gives_127_and_one_line() {
    assert_one_line_and_code(&mut memleak(["no-such-command"]), "no-such-command", 127);
    assert_one_line_and_code(&mut memleak(["/no/such/command"]), "/no/such/command", 127);
    assert_one_line_and_code(&mut memleak([""]), "\"\"", 127);
}

#[test]
fn case_02_a_missing_interpreter_gives_127() {
    let directory = TempDir::new().unwrap();
    let script = directory.path().join("script");
    write_script(&script, "#!/no/such/interpreter\n", 0o755);
    assert_one_line_and_code(&mut memleak([&script]), "script", 127);
}

#[test]
fn case_03_a_file_that_cannot_be_executed_gives_126() {
    let directory = TempDir::new().unwrap();
    assert_one_line_and_code(&mut memleak([directory.path()]), "cannot run", 126);
    let file = directory.path().join("no-x-bit");
    write_script(&file, "#!/bin/sh\n", 0o644);
    assert_one_line_and_code(&mut memleak([&file]), "no-x-bit", 126);
    assert_one_line_and_code(
        memleak(["no-x-bit"]).env("PATH", directory.path()),
        "no-x-bit",
        126,
    );
}

#[test]
fn case_06_a_text_file_without_interpreter_line_is_run_by_sh() {
    let directory = TempDir::new().unwrap();
    let script = directory.path().join("plain-script");
    write_script(&script, "echo \"$0 $*\"; exit 5\n", 0o755);
    let by_path = output(&mut memleak([
        script.as_os_str(),
        OsStr::new("a"),
        OsStr::new("b c"),
    ]));
    assert_eq!(
        text(&by_path.stdout),
        format!("{} a b c\n", script.display())
    );
    assert_eq!(by_path.status.code(), Some(5));
    let path = format!(
        "/no/such/directory:{}:/usr/bin:/bin",
        directory.path().display()
    );
    let by_name = output(memleak(["plain-script", "a", "b c"]).env("PATH", path));
    assert_eq!(text(&by_name.stdout), text(&by_path.stdout));
    assert_eq!(by_name.status.code(), Some(5));
}

#[test]
fn case_07_arguments_arrive_byte_for_byte() {
    let arguments = [
        &b"-x"[..],
        b"",
        b"--",
        b"-q",
        b"\xff\xfe\x80",
        b"a b\n\t\"'$(x)",
        b"--help",
    ];
    let arguments = arguments.map(OsStr::from_bytes);
    let program = fixture("prints_arguments");
    let directly = stdout_of(Command::new(&program).args(arguments));
    assert!(directly.contains("fffe80"), "{directly}");
    assert_eq!(stdout_of(memleak([&program]).args(arguments)), directly);
}

// ---- death by a signal -------------------------------------------------------------------------------

#[test]
fn case_08_memleak_dies_of_the_commands_sigkill_after_the_report() {
    let output = output(&mut shell("kill -9 $$"));
    assert_eq!(
        output.status.signal(),
        Some(libc::SIGKILL),
        "{}",
        output.status
    );
    assert!(
        text(&output.stderr).contains("SIGKILL"),
        "{}",
        text(&output.stderr)
    );
}

#[test]
fn case_08_memleak_dies_of_the_real_time_signal_that_killed_the_command() {
    let output = output(&mut shell("kill -40 $$"));
    assert_eq!(output.status.signal(), Some(40), "{}", output.status);
}

#[test]
fn case_09_only_the_command_dumps_core() {
    let directory = TempDir::new().unwrap();
    let mut command = shell("kill -SEGV $$");
    command.current_dir(directory.path());
    let unlimited = libc::rlimit {
        rlim_cur: libc::RLIM_INFINITY,
        rlim_max: libc::RLIM_INFINITY,
    };
    // SAFETY: an async-signal-safe call.
    unsafe {
        command.pre_exec(move || {
            libc::setrlimit(libc::RLIMIT_CORE, &raw const unlimited);
            Ok(())
        })
    };
    let output = output(&mut command);
    assert_eq!(
        output.status.signal(),
        Some(libc::SIGSEGV),
        "{}",
        output.status
    );
    // wait(2) says whether memleak itself dumped core, wherever this machine puts core files.
    assert!(!output.status.core_dumped(), "memleak dumped core too");
    let pattern = fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap();
    if !pattern.starts_with(['|', '/', '@']) {
        let cores: Vec<_> = fs::read_dir(directory.path()).unwrap().collect();
        assert_eq!(cores.len(), 1, "{cores:?}");
    }
}

#[test]
fn case_10_memleak_dies_of_a_signal_that_its_caller_had_blocked() {
    let with_signals_path = fixture("with_signals");
    let unblocks = [with_signals_path.to_str().unwrap(), "unblock", "15", "--"];
    let words = [&unblocks[..], &["sh", "-c", "kill -TERM $$"]].concat();
    let output = output(&mut with_signals(&["block", "15"], under_memleak(&words)));
    assert_eq!(output.status.signal(), Some(SIGTERM), "{}", output.status);
}

#[test]
fn case_11_pid_1_of_a_namespace_exits_with_143() {
    let in_namespace = ["--pid", "--fork", "--mount-proc", "--kill-child", "--"];
    let mut command = Command::new("unshare");
    command
        .args(in_namespace)
        .args(under_memleak(&["sh", "-c", "kill -TERM $$"]));
    assert_code(&mut command, 143);
}

#[test]
fn case_11_pid_1_of_a_namespace_reaps_orphans_and_still_returns_the_commands_code() {
    // The inner shells exit at once, so their sleeps become orphans. The sleeps end while the command lives.
    let script = r#"
        for i in 1 2 3; do sh -c 'sleep 0.1 &'; done
        sleep 0.5
        grep -l '^State:.Z' /proc/[0-9]*/status
        echo "memleak is $PPID"
        exit 7"#;
    let mut command = Command::new("unshare");
    let in_namespace = ["--pid", "--fork", "--mount-proc", "--kill-child", "--"];
    command
        .args(in_namespace)
        .args(under_memleak(&["sh", "-c", script]));
    let output = output(&mut command);
    assert_eq!(
        text(&output.stdout),
        "memleak is 1\n",
        "{}",
        text(&output.stderr)
    );
    assert_eq!(output.status.code(), Some(7));
}

// ---- signals -----------------------------------------------------------------------------------------

/// Starts a command in a terminal. The command says "ready PID". Returns that pid.
#[track_caller]
fn start_in(terminal: &mut Terminal, line: &str) -> Pid {
    root::require_root();
    terminal.line(&line.replace("$ML", &format!("{MEMLEAK} {} -q --", run_line())));
    terminal.expect("ready ");
    pid_after_ready(&format!("ready {}", terminal.expect("\n")))
}

#[test]
fn case_17_ctrl_c_reaches_the_command_once() {
    let mut terminal = Terminal::open();
    let command = fixture("prints_signals");
    let pid = start_in(&mut terminal, &format!("$ML {}", command.display()));
    for _ in 0..3 {
        terminal.press("\x03");
        terminal.expect("got 2\r\n");
        assert_eq!(terminal.shown_within(A_WHILE), "");
    }
    kill(pid, Signal::SIGKILL).unwrap();
    terminal.expect("Killed");
    terminal.expect(PROMPT);
}

#[test]
fn case_18_an_interrupt_sent_to_memleak_alone_reaches_the_command_once() {
    let (run, _) = Run::of_prints_signals();
    send(run.pid(), SIGINT);
    assert_eq!(run.line(), "got 2");
    assert_eq!(run.lines_within(A_WHILE), [""; 0]);
}

/// Runs a script in a terminal and interrupts it with Ctrl-C. Returns what the terminal shows after that.
fn interrupted_script(command: &str) -> String {
    let directory = TempDir::new().unwrap();
    let script = directory.path().join("script");
    let text = format!(
        "{MEMLEAK} {} -q -- {command}\necho \"goes on after $?\"\n",
        run_line()
    );
    write_script(&script, &text, 0o644);
    let mut terminal = Terminal::open();
    start_in(&mut terminal, &format!("bash {}", script.display()));
    terminal.press("\x03");
    let mut shown = terminal.expect(PROMPT);
    shown += &terminal.output_of("echo \"script ended with $?\"");
    shown
}

#[test]
fn case_19_after_a_command_that_handles_the_interrupt_the_script_goes_on() {
    let handles = r#"sh -c 'trap "exit 0" INT; echo ready $$; while :; do sleep 0.05; done'"#;
    let shown = interrupted_script(handles);
    assert!(shown.contains("goes on after 0"), "{shown}");
    assert!(shown.contains("script ended with 0"), "{shown}");
}

#[test]
fn case_20_after_a_command_that_dies_of_the_interrupt_the_script_stops() {
    let shown = interrupted_script("sh -c 'echo ready $$; exec sleep 30'");
    assert!(!shown.contains("goes on"), "{shown}");
    assert!(shown.contains("script ended with 130"), "{shown}");
}

#[test]
fn case_21_every_signal_to_memleak_reaches_the_command_once() {
    let (run, _) = Run::of_prints_signals();
    let terminal_stop = libc::SIGTSTP;
    let signals = [
        libc::SIGHUP,
        SIGTERM,
        libc::SIGUSR1,
        libc::SIGUSR2,
        libc::SIGQUIT,
        libc::SIGALRM,
        libc::SIGWINCH,
        libc::SIGCONT,
        terminal_stop,
        libc::SIGRTMIN(),
        libc::SIGRTMAX(),
    ];
    for signal in signals {
        send(run.pid(), signal);
        assert_eq!(run.line(), format!("got {signal}"));
    }
    assert_eq!(run.lines_within(A_WHILE), [""; 0]);
}

#[test]
fn case_21_queued_signals_keep_their_number_and_values() {
    let (run, _) = Run::of_prints_signals();
    for value in 1..=3 {
        let value = libc::sigval {
            sival_ptr: std::ptr::without_provenance_mut(value),
        };
        // SAFETY: the arguments are numbers, and the child is not reaped yet.
        assert_eq!(
            unsafe { libc::sigqueue(run.pid().as_raw(), libc::SIGRTMIN(), value) },
            0
        );
    }
    let signal = libc::SIGRTMIN();
    for value in 1..=3 {
        assert_eq!(run.line(), format!("got {signal} value {value}"));
    }
    assert_eq!(run.lines_within(A_WHILE), [""; 0]);
}

#[test]
fn case_21_a_signal_to_the_group_reaches_the_command_once() {
    let (run, _) = Run::of_prints_signals();
    for _ in 0..3 {
        killpg(run.pid(), Signal::SIGTERM).unwrap();
        assert_eq!(run.line(), "got 15");
        assert_eq!(run.lines_within(A_WHILE), [""; 0]);
    }
}

#[test]
fn case_21_a_signal_from_the_command_to_its_parent_does_not_come_back() {
    // The second sender no longer exists when memleak reads the signal.
    let script = r#"
        trap 'echo came back' TERM USR1
        kill -TERM $PPID
        sh -c 'kill -USR1 "$1"' sh $PPID
        sleep 0.3"#;
    assert_eq!(stdout_of(&mut shell(script)), "");
}

#[test]
fn case_21_an_alarm_that_the_caller_set_reaches_the_command() {
    let program = fixture("prints_signals");
    let mut command = memleak([&program]);
    // SAFETY: an async-signal-safe call.
    unsafe {
        command.pre_exec(|| {
            libc::alarm(1);
            Ok(())
        })
    };
    let run = Run::start(&mut command);
    run.ready();
    assert_eq!(run.line(), format!("got {}", libc::SIGALRM));
}

#[test]
fn case_22_nohup_also_protects_the_command() {
    let ignored = ["grep", "SigIgn", "/proc/self/status"];
    let without = stdout_of(Command::new("nohup").args(ignored));
    let with = stdout_of(Command::new("nohup").args(under_memleak(&ignored)));
    assert_eq!(with, without);

    let script = "echo ready $$; sleep 0.5; echo lives; exit 6";
    let mut run = Run::start(Command::new("nohup").args(under_memleak(&["sh", "-c", script])));
    run.ready();
    send(run.pid(), libc::SIGHUP);
    killpg(run.pid(), Signal::SIGHUP).unwrap();
    assert_eq!(run.line(), "lives");
    assert_eq!(run.wait().code(), Some(6));
}

#[test]
fn case_23_the_command_has_the_dispositions_and_the_mask_of_the_caller() {
    let show = [
        "grep",
        "-E",
        "^(Sig|Shd)(Pnd|Blk|Ign|Cgt)",
        "/proc/self/status",
    ];
    let number = |signal: i32| signal.to_string();
    let [pipe, child, output_stop, stop, abort, last] = [
        libc::SIGPIPE,
        libc::SIGCHLD,
        libc::SIGTTOU,
        libc::SIGTSTP,
        libc::SIGABRT,
        libc::SIGRTMAX(),
    ]
    .map(number);
    let callers: [&[&str]; 8] = [
        &[],
        &["ignore", &pipe],
        &["ignore", &child],
        &["ignore", &output_stop, "ignore", &stop],
        &["block", &pipe, "block", &child],
        &["block", &output_stop, "block", &stop, "block", &last],
        &["ignore", &stop, "block", &stop, "ignore", &last],
        &[
            "ignore", &pipe, "block", &child, "ignore", &abort, "block", &abort,
        ],
    ];
    for caller in callers {
        let without = stdout_of(&mut with_signals(caller, show));
        let with = stdout_of(&mut with_signals(caller, under_memleak(&show)));
        assert_eq!(with, without, "{caller:?}");
    }
}

#[test]
fn case_24_an_ignored_sigchld_hides_no_exit_code() {
    assert_code(&mut bash("trap '' CHLD; exec $ML sh -c 'exit 3'"), 3);
}

// ---- pipes -------------------------------------------------------------------------------------------

#[test]
fn case_25_a_command_without_a_reader_dies_of_sigpipe() {
    let began = Instant::now();
    let script = "$ML yes 2>/dev/null | head -1; echo ${PIPESTATUS[0]}";
    assert_eq!(stdout_of(&mut bash(script)), "y\n141\n");
    assert!(
        began.elapsed() < Duration::from_secs(10),
        "{:?}",
        began.elapsed()
    );
}

#[test]
fn case_26_memleak_holds_no_copy_of_the_commands_input() {
    let (reader, writer) = pipe().unwrap();
    let mut yes = Command::new("yes").stdout(writer).spawn().unwrap();
    let mut child = shell("exec <&-; exec sleep 30")
        .stdin(reader)
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
        .unwrap();
    let began = Instant::now();
    let status = wait_for(&mut yes);
    send(Pid::from_raw(child.id().cast_signed()), SIGTERM);
    assert_eq!(wait_for(&mut child).signal(), Some(SIGTERM));
    assert_eq!(status.signal(), Some(libc::SIGPIPE), "{status}");
    assert!(
        began.elapsed() < Duration::from_secs(10),
        "{:?}",
        began.elapsed()
    );
}

/// Fails unless the reader of the command's output sees the end of file when the command closes the descriptor.
#[track_caller]
fn assert_reader_sees_the_end(descriptor: i32) {
    let directory = TempDir::new().unwrap();
    let report = directory.path().join("report");
    let (mut reader, writer) = pipe().unwrap();
    let to = Stdio::from(writer);
    let mut command = Command::new(MEMLEAK);
    command.args(run_words()).arg("-o").arg(&report).arg("--");
    // Descriptor 7 is a copy of the same pipe, so the command must close it too.
    let script = format!("echo hello >&{descriptor}; exec {descriptor}>&- 7>&-; exec sleep 30");
    command
        .args(["sh", "-c", &script])
        .stdin(Stdio::null())
        .process_group(0);
    match descriptor {
        1 => command.stdout(to).stderr(Stdio::null()),
        _ => command.stdout(Stdio::null()).stderr(to),
    };
    // SAFETY: an async-signal-safe call.
    unsafe {
        command.pre_exec(move || {
            libc::dup2(descriptor, 7);
            Ok(())
        })
    };
    let mut child = command.spawn().unwrap();
    // The `Command` holds the pipe's writing end, which only the child may have.
    drop(command);
    let reading = thread::spawn(move || {
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        text
    });
    let at_end = eventually(|| reading.is_finished());
    let still_runs = child.try_wait().unwrap().is_none();
    send(Pid::from_raw(child.id().cast_signed()), SIGTERM);
    assert_eq!(wait_for(&mut child).signal(), Some(SIGTERM));
    assert!(at_end && still_runs, "end of file only when memleak ended");
    assert_eq!(reading.join().unwrap(), "hello\n");
}

#[test]
fn case_26_memleak_holds_no_copy_of_the_commands_output() {
    assert_reader_sees_the_end(1);
}

#[test]
fn case_26_with_a_report_file_memleak_holds_no_copy_of_the_commands_standard_error() {
    assert_reader_sees_the_end(2);
}

#[test]
fn case_27_a_report_without_a_reader_does_not_change_the_exit_code() {
    let (reader, writer) = pipe().unwrap();
    drop(reader);
    let mut child = shell("exit 7")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(writer)
        .process_group(0)
        .spawn()
        .unwrap();
    assert_eq!(wait_for(&mut child).code(), Some(7));
}

// ---- stopping and going on ---------------------------------------------------------------------------

#[test]
fn case_28_ctrl_z_stops_the_job_and_fg_continues_it() {
    let mut terminal = Terminal::open();
    // Input typed after `fg` must reach the command: no input is lost, and the command owns the terminal.
    let script = r#"echo ready $$; read line; echo "read $line"; exit 4"#;
    let pid = start_in(&mut terminal, &format!("$ML sh -c '{script}'"));
    for _ in 0..2 {
        terminal.press("\x1a");
        terminal.expect("Stopped");
        terminal.expect(PROMPT);
        assert_eq!(Process::of(pid).unwrap().state, 'T');
        terminal.line("fg");
        terminal.expect(MEMLEAK);
        assert!(eventually(|| Process::of(pid).unwrap().state == 'S'));
    }
    terminal.line("this");
    terminal.expect("read this");
    terminal.expect(PROMPT);
    assert_eq!(terminal.output_of("echo code $?"), "code 4\n");
}

#[test]
fn case_28_ctrl_z_before_the_release_also_stops_the_job() {
    root::require_root();
    let mut terminal = Terminal::open();
    // The delays cover the time from memleak's start to a running command.
    for delay in [5, 50, 100, 150, 250] {
        terminal.line(&format!(
            "{MEMLEAK} {} -q -- bash -c 'sleep 1; echo done; exit 4'",
            run_line()
        ));
        assert!(eventually(|| terminal.has_in_foreground("memleak")));
        thread::sleep(Duration::from_millis(delay));
        terminal.press("\x1a");
        terminal.expect("Stopped");
        terminal.expect(PROMPT);
        terminal.line("fg");
        terminal.expect("done\r\n");
        terminal.expect(PROMPT);
        assert_eq!(terminal.output_of("echo code $?"), "code 4\n");
    }
}

#[test]
fn case_28_a_command_that_ignores_sigtstp_keeps_its_terminal() {
    let mut terminal = Terminal::open();
    let script = r#"trap "" TSTP; echo ready $$; read line; echo "read $line""#;
    let pid = start_in(&mut terminal, &format!("$ML sh -c '{script}'"));
    let memleak = Process::of(pid).unwrap().parent;
    terminal.press("\x1a");
    assert_eq!(terminal.shown_within(A_WHILE), "");
    assert_eq!(Process::of(memleak).unwrap().state, 'S');
    terminal.line("this");
    terminal.expect("read this");
    terminal.expect(PROMPT);
}

#[test]
fn case_28_stopping_and_continuing_the_command_alone_does_not_stop_memleak() {
    let (run, pid) = Run::of_prints_signals();
    kill(pid, Signal::SIGSTOP).unwrap();
    assert!(eventually(|| Process::of(pid).unwrap().state == 'T'));
    thread::sleep(A_WHILE);
    assert_eq!(Process::of(run.pid()).unwrap().state, 'S');
    kill(pid, Signal::SIGCONT).unwrap();
    assert_eq!(run.line(), "got 18");
    // memleak still passes signals on.
    send(run.pid(), libc::SIGUSR1);
    assert_eq!(run.line(), "got 10");
    assert_eq!(run.lines_within(A_WHILE), [""; 0]);
}

#[test]
fn case_28_sigcont_to_memleak_alone_continues_the_command() {
    let mut terminal = Terminal::open();
    // The script is a busy loop: Ctrl-Z would also stop a `sleep`, which this SIGCONT would not continue. The output
    // is computed, so that it differs from the command line that a shell shows.
    let script = r#"trap "echo back-$((1 + 1)); exit 4" CONT; echo ready $$; while :; do :; done"#;
    let pid = start_in(&mut terminal, &format!("$ML sh -c '{script}'"));
    let memleak = Process::of(pid).unwrap().parent;
    terminal.press("\x1a");
    terminal.expect("Stopped");
    terminal.expect(PROMPT);
    send(memleak, libc::SIGCONT);
    terminal.expect("back-2");
    assert!(eventually(|| !Process::is_alive(memleak)));
}

#[test]
fn case_28_a_command_that_handles_sigcont_gets_it_once_from_fg() {
    let mut terminal = Terminal::open();
    // The command is bash, because dash starts programs with vfork. A Ctrl-Z between that vfork and the child's exec
    // stops the child alone: dash waits for the exec and cannot be stopped. No shell shows that as Stopped.
    let script = r#"trap "echo back-$((1 + 1))" CONT; trap "exit 4" INT; echo ready $$; while :; do sleep 0.05; done"#;
    start_in(&mut terminal, &format!("$ML bash -c '{script}'"));
    terminal.press("\x1a");
    terminal.expect("Stopped");
    terminal.expect(PROMPT);
    terminal.line("fg");
    terminal.expect("back-2");
    let more = terminal.shown_within(A_WHILE);
    assert!(!more.contains("back-2"), "{more:?}");
    terminal.press("\x03");
    terminal.expect(PROMPT);
    assert_eq!(terminal.output_of("echo code $?"), "code 4\n");
}

#[test]
fn case_29_a_background_job_with_tostop_does_not_hang() {
    root::require_root();
    let mut terminal = Terminal::open();
    terminal.output_of("stty tostop");
    // memleak writes its report to this terminal, which must not stop memleak.
    terminal.output_of(&format!("{MEMLEAK} {} -- true &", run_line()));
    let shown = terminal.output_of("wait $!; echo code $?");
    assert!(shown.contains("code 0"), "{shown}");
}

#[test]
fn case_29_a_background_job_with_tostop_leaves_the_terminal_to_the_shell() {
    root::require_root();
    let mut terminal = Terminal::open();
    terminal.output_of("stty tostop");
    // The command's own output stops the command, as it would without memleak. The job stops with the command.
    terminal.output_of(&format!(
        "{MEMLEAK} {} -q -- sh -c 'echo written; exit 4' &",
        run_line()
    ));
    let stopped = eventually(|| terminal.output_of("jobs").contains("Stopped"));
    assert!(stopped, "the job does not stop");
    assert_eq!(
        terminal.output_of("echo the shell reads"),
        "the shell reads\n"
    );
    terminal.line("fg");
    terminal.expect("written");
    terminal.expect(PROMPT);
    assert_eq!(terminal.output_of("echo code $?"), "code 4\n");
}

// ---- being killed ------------------------------------------------------------------------------------

#[test]
fn case_30_a_memleak_killed_before_the_release_leaves_no_process_behind() {
    let directory = TempDir::new().unwrap();
    let marker = directory.path().join("the-command-ran");
    for _ in 0..20 {
        let mut run = Run::start(memleak(["touch"]).arg(&marker));
        let memleak = run.pid();
        let mut found = Vec::new();
        assert!(eventually(|| {
            found = proc::children(memleak);
            !found.is_empty() || !Process::is_alive(memleak)
        }));
        // A stopped memleak cannot release the command. After a while the command either waits or was released before.
        let _ = kill(memleak, Signal::SIGSTOP);
        thread::sleep(Duration::from_millis(100));
        let waits = found.first().is_some_and(|child| {
            fs::read_link(format!("/proc/{child}/exe")).is_ok_and(|exe| exe == Path::new(MEMLEAK))
        });
        let _ = kill(memleak, Signal::SIGKILL);
        assert_eq!(
            run.wait().signal().filter(|_| waits),
            waits.then_some(libc::SIGKILL)
        );
        if waits {
            assert!(
                eventually(|| !Process::is_alive(found[0])),
                "the command is left waiting"
            );
            assert!(!marker.exists(), "the command ran");
            return;
        }
        let _ = fs::remove_file(&marker);
    }
    panic!("memleak was never killed before the release");
}

#[test]
fn case_30_memleak_dies_of_the_signal_that_killed_the_command_before_the_release() {
    for _ in 0..20 {
        let mut run = Run::start(&mut shell("echo ran; exec sleep 30"));
        let memleak = run.pid();
        let mut found = Vec::new();
        assert!(eventually(|| {
            found = proc::children(memleak);
            !found.is_empty()
        }));
        kill(found[0], Signal::SIGTERM).unwrap();
        assert_eq!(run.wait().signal(), Some(SIGTERM));
        if run.lines_within(Duration::ZERO).is_empty() {
            return;
        }
    }
    panic!("the command was never killed before the release");
}

#[test]
fn case_32_a_memleak_killed_after_the_release_leaves_the_command_undisturbed() {
    let directory = TempDir::new().unwrap();
    let go_on = directory.path().join("go-on");
    let script = r#"
        echo ready $$
        while [ ! -e "$1" ]; do sleep 0.05; done
        echo lives"#;
    let mut run = Run::start(memleak(["sh", "-c", script, "sh"]).arg(&go_on));
    run.ready();
    run.child.kill().unwrap();
    assert_eq!(run.wait().signal(), Some(libc::SIGKILL));
    fs::write(&go_on, "").unwrap();
    assert_eq!(run.line(), "lives");
}

// ---- what the command inherits -----------------------------------------------------------------------

/// The words of a command that shows all that a process inherits, except signals.
const SHOW_INHERITED: [&str; 3] = [
    "sh",
    "-c",
    "ls -l /proc/self/fd | sed 's/.*[0-9] \\([0-9]* -> \\)/\\1/; s,/proc/[0-9]*/fd,/proc/self/fd,'
     ulimit -a; ulimit -Ha; umask; pwd; cat /proc/self/environ | tr '\\0' '\\n'
     cat /proc/self/oom_score_adj /proc/self/cgroup /proc/self/timerslack_ns
     grep -E '^(Uid|Gid|Groups|Cap|NoNewPrivs|Seccomp|Cpus_allowed)' /proc/self/status
     cut -d' ' -f 18-19 /proc/self/stat
     cat <&7",
];

fn change_what_is_inherited(command: &mut Command, directory: &Path) {
    // The copy must not be 7 itself: dup2(7, 7) would leave it close-on-exec.
    let seventh = File::open(directory.join("seventh")).unwrap();
    let seventh = fcntl(&seventh, FcntlArg::F_DUPFD_CLOEXEC(100)).unwrap();
    // SAFETY: the descriptor is new and has no other owner.
    let seventh = unsafe { OwnedFd::from_raw_fd(seventh) };
    let limit = libc::rlimit {
        rlim_cur: 777,
        rlim_max: 1777,
    };
    command
        .current_dir(directory)
        .env("A_VARIABLE", "a\nvalue")
        .env("EMPTY", "");
    // SAFETY: async-signal-safe calls.
    unsafe {
        command.pre_exec(move || {
            libc::dup2(seventh.as_raw_fd(), 7);
            libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit);
            libc::umask(0o027);
            libc::nice(3);
            Ok(())
        })
    };
}

#[test]
fn case_33_the_command_inherits_the_same_as_without_memleak() {
    let directory = TempDir::new().unwrap();
    fs::write(directory.path().join("seventh"), "the caller's seventh\n").unwrap();
    let mut without = Command::new("sh");
    without.args(&SHOW_INHERITED[1..]);
    let mut with = memleak(SHOW_INHERITED);
    let [without, with] = [&mut without, &mut with].map(|command| {
        change_what_is_inherited(command, directory.path());
        // The pipes' numbers differ. Nothing else may differ.
        let shown = stdout_of(command.env("LC_ALL", "C"));
        let is_pipe = |word: &str| word.starts_with("pipe:[");
        let words = shown
            .split(' ')
            .map(|word| if is_pipe(word) { "pipe\n" } else { word });
        words.collect::<Vec<_>>().join(" ")
    });
    assert!(
        without.contains("7 -> ") && without.contains("the caller's seventh"),
        "{without}"
    );
    assert!(
        without.contains("777") && without.contains("A_VARIABLE=a\nvalue"),
        "{without}"
    );
    assert_eq!(with, without);
}

/// The loader removes some of these variables from the environment of a program with file capabilities.
#[test]
fn case_33_with_file_capabilities_the_command_has_the_callers_environment() {
    root::require_root();
    let directory = TempDir::new().unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let copy = directory.path().join("memleak");
    files::copy(MEMLEAK, &copy);
    let capabilities = "cap_bpf,cap_perfmon,cap_sys_admin=ep";
    let status = Command::new("setcap").arg(capabilities).arg(&copy).status();
    assert!(status.expect("setcap is installed").success());
    let variables = [
        ("LD_LIBRARY_PATH", "/no/such/directory"),
        ("TMPDIR", "/tmp"),
        ("LD_PRELOAD", ""),
        ("PATH", "/usr/bin:/bin"),
    ];
    let show = [
        "sh",
        "-c",
        "cat /proc/self/environ; grep Cap /proc/self/status",
    ];
    let mut without = Command::new(show[0]);
    let mut with = Command::new(copy);
    let [without, with] = [
        without.args(&show[1..]),
        with.args(["run", "--"]).args(show),
    ]
    .map(|command| stdout_of(command.uid(65534).gid(65534).env_clear().envs(variables)));
    assert!(
        without.contains("LD_LIBRARY_PATH=/no/such/directory"),
        "{without}"
    );
    assert_eq!(with, without);
}

#[test]
fn case_33_a_closed_standard_descriptor_stays_closed() {
    for closed in ["<&-", ">&-", "<&- >&-"] {
        // Rust's runtime opens /dev/null for each closed standard descriptor.
        let script = |ml: &str| {
            format!("{ml} sh -c 'ls /proc/$$/fd >&2' {closed} 2>&1 1>/dev/null {closed}")
        };
        let shown = |ml| {
            let output = output(&mut bash(&script(ml)));
            let numbers = text(&output.stderr) + &text(&output.stdout);
            let is_number =
                |line: &&str| !line.is_empty() && line.bytes().all(|byte| byte.is_ascii_digit());
            numbers
                .lines()
                .filter(is_number)
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        assert_eq!(shown("$ML"), shown(""), "{closed}");
    }
}

#[test]
fn case_33_the_command_stays_in_the_callers_group_and_session() {
    let (run, pid) = Run::of_prints_signals();
    let [memleak, command] = [run.pid(), pid].map(|pid| Process::of(pid).unwrap());
    assert_eq!(
        (command.group, command.session),
        (memleak.group, memleak.session)
    );
    assert_eq!(command.parent, run.pid());
}

#[test]
fn case_34_children_from_before_memleak_are_not_taken_for_the_command() {
    let began = Instant::now();
    assert_code(
        &mut bash("exec $ML sh -c 'sleep 0.5; exit 7' < <(sleep 0.1)"),
        7,
    );
    assert_code(
        &mut bash("exec $ML sh -c 'exit 8' < <(exec sleep 20 2>/dev/null)"),
        8,
    );
    assert!(
        began.elapsed() < Duration::from_secs(15),
        "{:?}",
        began.elapsed()
    );
}
