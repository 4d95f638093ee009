//! A process that brings a new allocator is held until memleak has examined it. The hold is invisible to the shell, to
//! the parent, to a debugger and to the process itself. No process stays held for a memleak that has ended.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};
use std::{fs, thread};

use crate::common;
use crate::common::Job;
use crate::common::machine;
use crate::common::newcomers::{Kind, Place, life};
use crate::common::proc;
use crate::common::proc::{Process, within};
use crate::common::pty::{PROMPT, Terminal};
use crate::common::root;
use crate::common::switches::switch;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

const MEMLEAK: &str = env!("CARGO_BIN_EXE_memleak");
/// A run that takes longer has hung.
const PATIENCE: Duration = Duration::from_secs(30);
/// An event that must not happen would happen within this time.
const A_WHILE: Duration = Duration::from_millis(300);
/// The limit for a held process to run on after memleak has ended, and for a killed process to end.
const AT_ONCE: Duration = Duration::from_secs(1);

// ---- runs ----------------------------------------------------------------------------------------------

/// A running tree under memleak, in its own process group. Drop ends all its processes.
struct Tree {
    memleak: Child,
    input: Option<ChildStdin>,
    lines: Receiver<String>,
    report: PathBuf,
}

impl Tree {
    /// Starts a shell script under memleak.
    fn start(place: &Place, options: &[&str], script: &str) -> Self {
        Self::start_command(place, options, &["sh", "-c", script])
    }

    fn start_command(place: &Place, options: &[&str], command: &[&str]) -> Self {
        root::require_root();
        let report = place.path("report.json");
        let mut memleak = Command::new(MEMLEAK)
            .args(["run", "--format", "json", "-o"])
            .arg(&report)
            .args(options)
            .arg("--")
            .args(command)
            .env_remove("LD_LIBRARY_PATH")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .process_group(0)
            .spawn()
            .expect("memleak can be started");
        let (sender, lines) = channel();
        let stdout = BufReader::new(memleak.stdout.take().expect("a pipe"));
        thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Self {
            input: memleak.stdin.take(),
            memleak,
            lines,
            report,
        }
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.memleak.id().cast_signed())
    }

    #[track_caller]
    fn line(&self) -> String {
        self.line_within(PATIENCE)
    }

    #[track_caller]
    fn line_within(&self, time: Duration) -> String {
        self.lines
            .recv_timeout(time)
            .unwrap_or_else(|_| panic!("the tree printed no line within {time:?}"))
    }

    #[track_caller]
    fn assert_silent(&self, time: Duration) {
        if let Ok(line) = self.lines.recv_timeout(time) {
            panic!("the process is not held: it printed {line:?}");
        }
    }

    #[track_caller]
    fn wait(&mut self) -> ExitStatus {
        drop(self.input.take());
        let mut status = None;
        let ended = eventually(|| {
            status = self.memleak.try_wait().expect("a child can be waited for");
            status.is_some()
        });
        assert!(ended, "memleak has not ended after {PATIENCE:?}");
        status.expect("memleak has ended")
    }

    /// Gives the script a line to read.
    fn say_line(&mut self) {
        let input = self.input.as_mut().expect("the input is open");
        input.write_all(b"go on\n").expect("the script reads");
    }

    /// The report, once memleak has ended.
    fn rows(&self) -> Vec<Value> {
        let text = fs::read_to_string(&self.report).expect("there is a report");
        text.lines()
            .map(|line| serde_json::from_str(line).expect("JSON"))
            .collect()
    }

    #[track_caller]
    fn row_of(&self, exe: &Path) -> Value {
        let exe = exe.to_str().expect("a name of ours");
        let rows = self.rows();
        let mut found = rows.iter().filter(|row| row["exe"] == exe);
        let row = found.next();
        assert!(
            found.next().is_none(),
            "more than one row of {exe}: {rows:#?}"
        );
        row.unwrap_or_else(|| panic!("no row of {exe}: {rows:#?}"))
            .clone()
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        let group = self.pid();
        // Continues the group first, because one of its processes may be stopped.
        let _ = kill(group, Signal::SIGCONT);
        proc::end_all(|process| process.group == group);
        let _ = self.memleak.wait();
    }
}

fn eventually(is_so: impl FnMut() -> bool) -> bool {
    within(PATIENCE, is_so)
}

/// Waits for a process that has executed `program`.
#[track_caller]
fn process_of(program: &Path) -> Pid {
    let mut found = None;
    let is_it = |process: &Process| {
        fs::read_link(format!("/proc/{}/exe", process.pid)).is_ok_and(|exe| exe == program)
    };
    let there = eventually(|| {
        found = proc::all().into_iter().find(is_it);
        found.is_some()
    });
    assert!(there, "no process executes {}", program.display());
    found.expect("the process was found").pid
}

/// A new program that memleak does not know. It first prints "ready PID", then every signal that it gets.
fn prints_signals(place: &Place, kind: Kind) -> PathBuf {
    place.copy(&kind.build("prints_signals"), "newcomer")
}

// ---- memleak is killed or stopped ----------------------------------------------------------------------

/// A static program, and a program whose loader brings the new allocator.
const HELD: [Kind; 2] = [Kind::Static, Kind::Musl];

/// Starts a new program whose hold is longer than any bound, and returns once that program is held. `$P` in the
/// command is the new program. memleak must know all other programs before it starts, as it would hold them too.
#[track_caller]
fn held(place: &Place, kind: Kind, command: &[&str]) -> (Tree, PathBuf, Pid) {
    let program = prints_signals(place, kind);
    let name = program.display().to_string();
    let command: Vec<_> = command
        .iter()
        .map(|word| word.replace("$P", &name))
        .collect();
    let command: Vec<_> = command.iter().map(String::as_str).collect();
    let tree = Tree::start_command(place, &[&switch("hold-delay", "20000")], &command);
    let pid = process_of(&program);
    tree.assert_silent(A_WHILE);
    (tree, program, pid)
}

#[test]
fn case_31_a_held_process_runs_on_at_once_if_memleak_is_killed() {
    let _machine = machine::unwatched();
    for kind in HELD {
        let place = Place::new();
        let (mut tree, program, pid) = held(&place, kind, &["sh", "-c", "$P; exit 0"]);
        let began = Instant::now();
        tree.memleak.kill().expect("memleak runs");
        assert_eq!(tree.line_within(AT_ONCE), format!("ready {pid}"));
        assert!(began.elapsed() < AT_ONCE, "{:?}", began.elapsed());
        // The program is intact and got no signal.
        tree.assert_silent(A_WHILE);
        kill(pid, Signal::SIGUSR1).expect("the program runs");
        assert_eq!(tree.line(), "got 10");
        assert_eq!(tree.memleak.wait().expect("a child").signal(), Some(9));
        kill(pid, Signal::SIGKILL).expect("the program runs");
        assert!(eventually(|| !Process::is_alive(pid)));

        // Other tests share musl's libc and may have probes in it.
        if kind == Kind::Static {
            assert_no_probes_in(&program);
        }
    }
}

#[test]
fn eight_held_processes_run_on_at_once_if_memleak_is_killed() {
    let place = Place::new();
    let program = prints_signals(&place, Kind::Static);
    let script = "for i in 1 2 3 4 5 6 7 8; do $P & done; wait";
    let script = script.replace("$P", &program.display().to_string());
    let mut tree = Tree::start(&place, &[&switch("hold-delay", "20000")], &script);
    process_of(&program);
    tree.assert_silent(A_WHILE);
    tree.memleak.kill().expect("memleak runs");
    let deadline = Instant::now() + AT_ONCE;
    for _ in 0..8 {
        let line = tree.line_within(deadline.saturating_duration_since(Instant::now()));
        assert!(line.starts_with("ready "), "{line}");
    }
}

#[test]
fn a_stopped_memleak_holds_a_process_no_longer_than_the_bound() {
    for kind in HELD {
        let place = Place::new();
        let program = place.newcomer(kind, "newcomer");
        let script = "echo ready; read line; $P 500; echo done; read line; exit 4";
        let script = script.replace("$P", &program.display().to_string());
        let mut tree = Tree::start(&place, &["--fail-on-leak", "1GB"], &script);
        assert_eq!(tree.line(), "ready");
        kill(tree.pid(), Signal::SIGSTOP).expect("memleak runs");
        let is_stopped = || Process::of(tree.pid()).is_some_and(|process| process.state == 'T');
        assert!(eventually(is_stopped));
        let began = Instant::now();
        tree.say_line();
        assert_eq!(tree.line_within(Duration::from_secs(10)), "done");
        let took = began.elapsed();
        assert!(
            took > Duration::from_secs(1) && took < Duration::from_secs(4),
            "the process was held for {took:?}, not for two seconds"
        );
        kill(tree.pid(), Signal::SIGCONT).expect("memleak is stopped");
        tree.say_line();
        assert_eq!(tree.wait().code(), Some(4));
        let row = tree.row_of(&program);
        assert_eq!(row["uncovered"], "late", "{row:#}");
        assert_eq!(row["complete"], false);
        assert_eq!(row["exit_code"], 0);
        let summary = tree.rows().pop().expect("a summary");
        assert_eq!(summary["complete"], false);
        assert_eq!(summary["covered_processes"], 1);
        assert_eq!(summary["gate"]["verdict"], "unknown");
    }
}

#[test]
fn the_table_marks_a_row_whose_allocator_was_probed_late() {
    let place = Place::new();
    let program = place.newcomer(Kind::Static, "newcomer");
    let (status, table) = Job::shell(&format!("{} 500; exit 0", program.display()))
        .run_under(MEMLEAK, &["run", &switch("hold-delay", "3000"), "--"]);
    assert!(status.success(), "{table}");
    let line = table.lines().find(|line| line.contains("newcomer"));
    assert!(
        line.is_some_and(|line| line.ends_with("allocator probed late")),
        "{table}"
    );
    let last = table.lines().last().unwrap_or_default();
    assert!(last.contains("1 of 2 processes fully covered"), "{table}");
}

#[test]
fn a_killed_memleak_leaves_no_breakpoint_behind() {
    let _machine = machine::unwatched();
    for kind in [Kind::Static, Kind::MuslStatic] {
        let place = Place::new();
        let waits = place.copy(&kind.build("leaks_before_and_after_reading"), "waits");
        let mut tree = Tree::start(&place, &[], &format!("{} 100; echo $?", waits.display()));
        assert!(tree.line().starts_with("ready "));
        let pid = process_of(&waits);
        assert!(has_probes(pid), "the program has no probes");
        tree.memleak.kill().expect("memleak runs");
        tree.memleak.wait().expect("a child");
        assert_no_probes_in(&waits);
        // The program that ran under memleak runs on and ends as usual.
        drop(tree.input.take());
        assert_eq!((tree.line(), tree.line()), ("done".into(), "0".into()));

        let report = Job::shell(&format!("{} 100; exit 0", waits.display())).run();
        report.assert_complete();
        let row = report.rows.iter().find(|row| row.comm == "waits");
        let counts = row.expect("a row").counts;
        let start = common::newcomers::start(kind, &waits);
        let expected = common::expected::counts(200, 2, 0, 200, 2);
        assert_eq!(counts, common::newcomers::plus(expected, start), "{kind:?}");
    }
}

/// Whether the kernel has put breakpoints into the code of a process.
fn has_probes(pid: Pid) -> bool {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).expect("the process runs");
    maps.contains("[uprobes]")
}

/// Fails unless a process that executes this file outside of memleak soon has no breakpoint in its code.
#[track_caller]
fn assert_no_probes_in(program: &Path) {
    let unprobed = within(Duration::from_secs(5), || {
        let mut child = Command::new(program)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the program can be executed");
        let mut line = String::new();
        let stdout = child.stdout.take().expect("a pipe");
        BufReader::new(stdout).read_line(&mut line).expect("a line");
        assert!(line.starts_with("ready "), "{line}");
        let probed = has_probes(Pid::from_raw(child.id().cast_signed()));
        child.kill().expect("the child runs");
        child.wait().expect("a child");
        !probed
    });
    assert!(unprobed, "{} is still probed", program.display());
}

// ---- signals to held processes -------------------------------------------------------------------------

#[test]
fn a_deadly_signal_ends_a_held_process_at_once() {
    for kind in HELD {
        for signal in [Signal::SIGKILL, Signal::SIGTERM] {
            let place = Place::new();
            // The parent prints how the program ended. The program blocks no signals while it is held.
            let watch = common::fixture("watches_for_stops");
            let watch = watch.to_str().expect("a name of ours");
            let (tree, _, pid) = held(&place, kind, &[watch, "$P"]);
            let began = Instant::now();
            kill(pid, signal).expect("the program is held");
            let line = tree.line_within(AT_ONCE);
            assert_eq!(line, format!("killed {}", signal as i32), "{kind:?}");
            assert!(began.elapsed() < AT_ONCE);
            assert_eq!(tree.line(), "1 signals, 1 news");
        }
    }
}

#[test]
fn the_row_of_a_process_killed_while_held_shows_the_signal() {
    let place = Place::new();
    let program = prints_signals(&place, Kind::Static);
    let script = format!("{}; exit 6", program.display());
    let mut tree = Tree::start(&place, &[&switch("hold-delay", "1500")], &script);
    let pid = process_of(&program);
    tree.assert_silent(A_WHILE);
    kill(pid, Signal::SIGTERM).expect("the program is held");
    assert_eq!(tree.wait().code(), Some(6));
    let row = tree.row_of(&program);
    assert_eq!(
        (&row["end"], &row["signal"]),
        (&"signaled".into(), &15.into())
    );
    assert_eq!(row["alloc_count"], 0, "the program never ran: {row:#}");
}

#[test]
fn a_signal_to_a_held_process_arrives_once_after_the_hold() {
    let place = Place::new();
    let program = prints_signals(&place, Kind::Static);
    let ignoring = common::fixture("with_signals");
    // The signal is blocked before the exec, so that the program finds it pending.
    let script = format!("{} block 10 -- {}", ignoring.display(), program.display());
    let tree = Tree::start(&place, &[&switch("hold-delay", "1000")], &script);
    let pid = process_of(&program);
    kill(pid, Signal::SIGUSR1).expect("the program is held");
    tree.assert_silent(A_WHILE);
    assert_eq!(tree.line(), format!("ready {pid}"));
    assert_eq!(tree.line(), "got 10");
    tree.assert_silent(A_WHILE);
}

// ---- what other processes see --------------------------------------------------------------------------

#[test]
fn a_held_process_looks_neither_stopped_nor_traced() {
    for kind in HELD {
        let place = Place::new();
        let (tree, _, pid) = held(&place, kind, &["sh", "-c", "$P; exit 0"]);
        println!("{kind:?}");
        for _ in 0..20 {
            Process::assert_looks_untouched(pid);
            thread::sleep(Duration::from_millis(10));
        }
        drop(tree);
    }
}

#[test]
fn a_parent_that_waits_for_stops_sees_no_stop_of_a_held_child() {
    let watch = common::fixture("watches_for_stops");
    for kind in [Kind::Static, Kind::MuslStatic, Kind::Musl] {
        for options in [vec![], vec![switch("hold-delay", "300")]] {
            let place = Place::new();
            let program = place.newcomer(kind, "newcomer");
            let words = [watch.as_os_str(), program.as_os_str(), "70".as_ref()];
            let report = Job::new(words[0], &words[1..]).options(options).run();
            assert_eq!(report.stdout, "exited 0\n1 signals, 1 news\n", "{kind:?}");
            report.assert_complete();
            let row = report.rows.iter().find(|row| row.comm == "newcomer");
            assert_eq!(
                row.expect("a row").counts,
                life(kind, &program, 70),
                "{kind:?}"
            );
        }
    }
}

#[test]
fn a_process_finds_its_status_unchanged_after_a_hold() {
    let place = Place::new();
    for kind in [Kind::Static, Kind::Dynamic, Kind::Musl] {
        let program = place.copy(&kind.build("shows_its_status"), &format!("{kind:?}"));
        let script = format!("nice -n 3 {}; exit 0", program.display());
        let job = Job::shell(&script);
        let (status, bare) = run_bare(&script);
        assert!(
            status.success() && bare.contains("TracerPid:\t0\n"),
            "{bare}"
        );
        for options in [vec![], vec![switch("hold-delay", "200")]] {
            let report = job.clone().options(options).run();
            assert_eq!(report.stdout, bare, "{kind:?}");
        }
    }
}

fn run_bare(script: &str) -> (ExitStatus, String) {
    let output = Command::new("sh")
        .args(["-c", script])
        .stdin(Stdio::null())
        .output()
        .expect("a shell");
    (
        output.status,
        String::from_utf8_lossy(&output.stdout).into_owned(),
    )
}

// ---- debuggers in the tree -----------------------------------------------------------------------------

#[test]
fn strace_in_the_tree_sees_the_same_exits_and_no_extra_signal() {
    for kind in [Kind::Static, Kind::StaticPie, Kind::Musl] {
        let place = Place::new();
        let program = place.newcomer(kind, "newcomer");
        let trace = place.path("trace");
        let script = format!(
            "strace -f -o {} sh -c '{1} 50; {1} 60; exit 0'",
            trace.display(),
            program.display()
        );
        let report = Job::shell(&script).run();
        assert_eq!(common::code(report.status), 0, "{}", report.stderr);
        report.assert_complete();
        let mut counts: Vec<_> = report
            .rows
            .iter()
            .filter(|row| row.comm == "newcomer")
            .map(|row| row.counts)
            .collect();
        counts.sort();
        let expected = [50, 60].map(|bytes| life(kind, &program, bytes));
        assert_eq!(counts, expected, "{kind:?}");
        let trace = fs::read_to_string(trace).expect("strace has written");
        assert_eq!(trace.matches("+++ exited with 0 +++").count(), 3, "{trace}");
        let signals: Vec<_> = trace
            .lines()
            .filter(|line| line.contains("--- SIG") && !line.contains("SIGCHLD"))
            .collect();
        assert_eq!(signals, [""; 0]);
    }
}

#[test]
fn gdb_in_the_tree_works_as_usual() {
    for kind in [Kind::Static, Kind::StaticPie, Kind::Dynamic] {
        let place = Place::new();
        let program = place.newcomer(kind, "newcomer");
        let script = format!(
            "gdb -nx -q -batch -ex 'set startup-with-shell off' -ex 'break main' -ex run -ex next \
             -ex 'print argc' -ex 'break last' -ex continue -ex backtrace -ex delete -ex continue \
             --args {} 50; exit 0",
            program.display()
        );
        let report = Job::shell(&script).run();
        let said = &report.stdout;
        assert!(said.contains("exited normally"), "{kind:?}: {said}");
        assert!(said.contains("$1 = 2"), "{kind:?}: {said}");
        // The breakpoint is not in a probed function. A debugger that sets a breakpoint on top of a probe's breakpoint
        // takes the latter for the program's code.
        assert!(said.contains("Breakpoint 2, last ()"), "{kind:?}: {said}");
        report.assert_complete();
        let row = report.rows.iter().find(|row| row.comm == "newcomer");
        assert_eq!(
            row.expect("a row").counts,
            life(kind, &program, 50),
            "{kind:?}"
        );
    }
}

// ---- on a terminal -------------------------------------------------------------------------------------

/// Starts an interactive bash under memleak, in a terminal whose own shell is also an interactive bash.
fn bash_under_memleak(report: &Path) -> Terminal {
    root::require_root();
    let mut terminal = Terminal::open();
    terminal.output_of("unset LD_LIBRARY_PATH");
    terminal.output_of(&format!(
        "{MEMLEAK} run --format json -o {} -- bash --norc --noprofile --noediting -i",
        report.display()
    ));
    terminal
}

#[test]
fn an_interactive_shell_under_memleak_starts_new_programs_as_usual() {
    let place = Place::new();
    let report = place.path("report.json");
    let mut programs = Vec::new();
    let mut newcomer = |kind: Kind| {
        let program = place.newcomer(kind, &format!("newcomer{}", programs.len()));
        programs.push((kind, program.clone()));
        program.display().to_string()
    };
    let mut terminal = bash_under_memleak(&report);
    let mut shown = String::new();
    let mut does = |terminal: &mut Terminal, line: &str| {
        let output = terminal.output_of(line);
        shown += &output;
        output
    };

    // In the foreground.
    for kind in [Kind::Static, Kind::MuslStatic, Kind::Musl] {
        let line = format!("{} 0; echo code $?", newcomer(kind));
        assert_eq!(does(&mut terminal, &line), "code 0\n");
    }
    // In a pipeline.
    let line = format!(
        "{} 0 | {} 0 | {} 0; echo codes ${{PIPESTATUS[*]}}",
        newcomer(Kind::Static),
        newcomer(Kind::MuslStatic),
        newcomer(Kind::Static)
    );
    assert_eq!(does(&mut terminal, &line), "codes 0 0 0\n");
    // In the background.
    let line = format!("{} 0 &", newcomer(Kind::Static));
    let output = does(&mut terminal, &line);
    assert!(output.starts_with("[1] "), "{output}");
    let output = does(&mut terminal, "wait %1; echo code $?");
    assert!(output.contains("code 0\n"), "{output}");
    // In a subshell, a substitution, and with an exit code of its own.
    let line = format!("({} 0; exit 7); echo code $?", newcomer(Kind::Static));
    assert_eq!(does(&mut terminal, &line), "code 7\n");
    let line = format!("x=$({} 0); echo code $?", newcomer(Kind::MuslStatic));
    assert_eq!(does(&mut terminal, &line), "code 0\n");
    assert_eq!(does(&mut terminal, "jobs"), "");
    // The shell still has the terminal and is alive.
    assert_eq!(
        does(&mut terminal, "[ -t 0 ]; echo terminal $?"),
        "terminal 0\n"
    );
    terminal.line("exit 5");
    terminal.expect(PROMPT);
    assert_eq!(terminal.output_of("echo code $?"), "code 5\n");
    for word in ["Stopped", "Continued", "Killed", "Trace"] {
        assert!(!shown.contains(word), "{shown}");
    }

    let text = fs::read_to_string(&report).expect("a report");
    let rows: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    for (kind, program) in &programs {
        let exe = program.to_str().expect("a name of ours");
        let row = rows.iter().find(|row| row["exe"] == exe);
        let row = row.unwrap_or_else(|| panic!("no row of {exe}"));
        let expected = life(*kind, program, 0);
        assert_eq!(
            (
                &row["total_allocs_bytes"],
                &row["leaked_bytes"],
                &row["complete"]
            ),
            (
                &expected.total_allocs_bytes.into(),
                &expected.leaked_bytes.into(),
                &true.into()
            ),
            "{kind:?}: {row:#}"
        );
    }
    assert_eq!(rows.last().expect("a summary")["complete"], true);
}

#[test]
fn keys_reach_a_new_program_on_a_terminal_once() {
    let place = Place::new();
    let mut terminal = bash_under_memleak(&place.path("report.json"));
    // Each new program is a file that no process has executed.
    let newcomer = |n: u32| {
        let program = Kind::Static.build("prints_signals");
        place
            .copy(&program, &format!("newcomer{n}"))
            .display()
            .to_string()
    };
    terminal.line(&newcomer(1));
    terminal.expect("ready ");
    terminal.press("\x03");
    terminal.expect("got 2\r\n");
    assert_eq!(terminal.shown_within(A_WHILE), "");
    // The program blocks all signals that can be blocked.
    terminal.press("\x1c");
    terminal.expect("got 3\r\n");
    let pid = process_of(&place.path("newcomer1"));
    kill(pid, Signal::SIGKILL).expect("the program runs");
    terminal.expect("Killed");
    terminal.expect(PROMPT);

    // Ctrl-C ends a program that does not block it, and the shell runs on.
    let waits = place.copy(
        &Kind::MuslStatic.build("leaks_before_and_after_reading"),
        "waits",
    );
    terminal.line(&format!("{} 5", waits.display()));
    terminal.expect("ready ");
    terminal.press("\x03");
    terminal.expect(PROMPT);
    assert_eq!(terminal.output_of("echo code $?"), "code 130\n");

    // Ctrl-Z stops a program, and `fg` continues it. Later input then reaches the program.
    let waits = place.copy(
        &Kind::Static.build("leaks_before_and_after_reading"),
        "again",
    );
    terminal.line(&format!("{} 5", waits.display()));
    terminal.expect("ready ");
    terminal.press("\x1a");
    terminal.expect("Stopped");
    terminal.expect(PROMPT);
    terminal.line("fg");
    terminal.expect("again");
    let pid = process_of(&waits);
    assert!(eventually(
        || Process::of(pid).is_some_and(|process| process.state == 'S')
    ));
    terminal.press("\x04");
    terminal.expect("done");
    terminal.expect(PROMPT);
    assert_eq!(terminal.output_of("echo code $?"), "code 0\n");
    terminal.line("exit 0");
    terminal.expect(PROMPT);
}

#[test]
fn ctrl_c_ends_a_held_program() {
    let place = Place::new();
    root::require_root();
    let mut terminal = Terminal::open();
    let program = prints_signals(&place, Kind::Static);
    terminal.output_of(&format!(
        "{MEMLEAK} run -q {} -- bash --norc --noprofile --noediting -i",
        switch("hold-delay", "1500")
    ));
    terminal.line(&program.display().to_string());
    let pid = process_of(&program);
    terminal.press("\x03");
    assert!(
        within(AT_ONCE, || !Process::is_alive(pid)),
        "the program is still held"
    );
    terminal.expect(PROMPT);
    assert_eq!(terminal.output_of("echo code $?"), "code 130\n");
    terminal.line("exit 0");
    terminal.expect(PROMPT);
}
