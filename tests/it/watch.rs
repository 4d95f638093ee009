//! Tests `memleak -p`. memleak counts processes that already ran when it attached from that time on. It counts the
//! programs that they start from their beginning.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use crate::common;
use crate::common::expected::{End, counts, held_before_exec, midway, threads_midway};
use crate::common::machine;
use crate::common::newcomers::{Kind, Place, mapped, own};
use crate::common::pty;
use crate::common::switches::switch;
use crate::common::watch::{BOTH, LONG, Waiting, Watch, since_preload, under_counter};
use crate::common::{Counts, DEFAULT_SIGNALS, Losses, Row, compare, counter, fixture};
use memleak::os::release;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

/// Checks the row of a process that ran before memleak attached. No call since then was lost.
#[track_caller]
fn assert_since_attach(row: &Row, end: End, counts: Counts) {
    assert_eq!(
        (End::of(row), row.counts, &*row.from, row.losses),
        (end, counts, "attach", Losses::default()),
        "{row:#?}"
    );
    assert!(!row.complete && row.uncovered.is_none(), "{row:#?}");
}

/// Checks the row of a process that memleak followed from its beginning.
#[track_caller]
fn assert_from_start(row: &Row, end: End, counts: Counts) {
    assert_eq!(
        (End::of(row), row.counts, &*row.from),
        (end, counts, "start"),
        "{row:#?}"
    );
    assert!(row.complete, "{row:#?}");
}

// ---- processes that ran before ---------------------------------------------------------------------------

#[test]
fn a_running_process_is_counted_from_the_attach_on_and_its_sums_are_never_negative() {
    for programs in BOTH.iter() {
        let target = Waiting::fixture("joined_midway", &["500", "11"]);
        let pid = target.pid();
        let watch = Watch::pid(pid, programs);
        let (status, _) = target.finish();
        assert!(status.success());
        let report = watch.wait();
        let row = report.row_of(pid);
        assert_since_attach(row, End::Exit(0), midway(500, 11));
        assert_eq!(row.comm, "joined_midway");
        assert_eq!(row.exe, Some(fixture("joined_midway")));
        assert_eq!(row.image, 0);
        assert_eq!(row.peak_live_bytes, Some(300 + 60));
        assert_eq!(report.rows.len(), 1);
        assert_eq!(report.summary.processes, 1);
        assert!(!report.summary.complete);
    }
}

#[test]
fn each_running_thread_is_counted_from_its_next_call() {
    for programs in BOTH.iter() {
        for arguments in [&["5"][..], &["5", "leaderless"]] {
            let target = Waiting::fixture("threads_joined_midway", arguments);
            let pid = target.pid();
            let report = target.watched(programs);
            let row = report.row_of(pid);
            assert_since_attach(row, End::Exit(7), threads_midway(5));
            assert_eq!(
                row.comm, "threads_joined_",
                "the leader's name, though the leader has exited"
            );
        }
    }
}

#[test]
fn a_process_without_a_call_since_the_attach_still_has_a_row() {
    for programs in BOTH.iter() {
        let target = Waiting::fixture("joined_midway", &["1", "1"]);
        let pid = target.pid();
        let watch = Watch::pid(pid, programs);
        drop(target);
        let report = watch.wait();
        let row = report.row_of(pid);
        assert_since_attach(row, End::Signal(9), Counts::default());
    }
}

#[test]
fn an_executed_program_is_counted_from_its_beginning_whichever_thread_executes_it() {
    for programs in BOTH.iter() {
        let program = fixture("leaks_2mb");
        let program = program.to_str().expect("a plain path");
        let leak = counts(2_000_000, 1, 0, 2_000_000, 1);
        for how in ["leader", "thread", "busy"] {
            let target = Waiting::fixture("executes_after_reading", &[how, program]);
            let pid = target.pid();
            let report = target.watched(programs);
            let [before, after] = report.two_rows_of(pid);
            assert_since_attach(before, End::Exec, held_before_exec(how));
            assert_eq!(before.comm, "executes_after_", "{how}");
            assert_from_start(after, End::Exit(0), leak);
            assert_eq!((before.image, after.image), (0, 1), "{how}");
            assert_eq!(report.summary.processes, 1, "{how}");
            assert_eq!(report.summary.leaked_bytes, 2_000_000, "{how}");
        }
    }
}

#[test]
fn child_processes_are_followed_unless_no_children_is_given() {
    for programs in BOTH.iter() {
        let program = fixture("leaks_2mb");
        let program = program.to_str().expect("a plain path");
        for (options, children) in [(&[][..], 1), (&["--no-children"], 0)] {
            let target = Waiting::fixture("executes_after_reading", &["child", program]);
            let pid = target.pid();
            let report = target.watched(&[programs.as_slice(), options].concat());
            assert_since_attach(report.row_of(pid), End::Exit(0), Counts::default());
            let others: Vec<_> = report.rows.iter().filter(|row| row.pid != pid).collect();
            assert_eq!(others.len(), children * 2, "{others:#?}");
            if let [forked, executed] = others[..] {
                assert_from_start(forked, End::Exec, Counts::default());
                assert_from_start(
                    executed,
                    End::Exit(0),
                    counts(2_000_000, 1, 0, 2_000_000, 1),
                );
                assert_eq!(executed.ppid, pid);
            }
        }
    }
}

/// Starts a shell that waits for the end of its standard input. Then it runs `script`, whose arguments are `words`.
fn shell_that_waits(script: &str, words: &[std::ffi::OsString]) -> Waiting {
    let script = format!("echo ready $$; read -r line; {script}");
    Waiting::start(Command::new("sh").args(["-c", &script, "sh"]).args(words))
}

#[test]
fn memleak_and_the_counter_agree_on_a_tree_that_starts_after_memleak() {
    let directory = TempDir::new().expect("a temporary directory");
    let tree = "ls -l / | sort | head -3 >/dev/null; python3 -c 'import subprocess; \
                subprocess.run([\"git\", \"--version\"])'; for i in 1 2 3; do date; done";
    let words = under_counter(directory.path(), ["sh", "-c", tree]);
    let target = shell_that_waits(r#""$@"; exit 5"#, &words);
    let pid = target.pid();
    let watch = Watch::pid(pid, &[]);
    let (status, _) = target.finish();
    assert_eq!(status.code(), Some(5));
    let report = watch.wait();
    assert_eq!(report.row_of(pid).exit_code, Some(5));
    let images = counter::read(directory.path());
    assert!(images.len() >= 9, "{images:#?}");
    if let Err(difference) = compare(&since_preload(&report, &images), &images) {
        panic!("memleak and the counter differ:\n{difference}");
    }
}

#[test]
fn several_processes_are_watched_until_the_last_one_exits() {
    for together in [true, false] {
        let [mut first, mut last] =
            [(); 2].map(|()| Waiting::fixture("joined_midway", &["3", "4"]));
        let (a, b) = (first.pid(), last.pid());
        let options = if together {
            vec!["-p".to_owned(), format!("{a},{b}"), "0.2".to_owned()]
        } else {
            ["-p", &a.to_string(), "-p", &b.to_string(), "0.2"]
                .map(str::to_owned)
                .to_vec()
        };
        let watch = Watch::start(options);
        first.go();
        watch.until(|rows| rows.iter().any(|row| row.pid == a));
        last.go();
        let report = watch.wait();
        for pid in [a, b] {
            assert_since_attach(report.row_of(pid), End::Exit(0), midway(3, 4));
        }
    }
}

// ---- children that already run ----------------------------------------------------------------------------------

/// Some bytes in one block, none of it freed.
fn leak(bytes: u64) -> Counts {
    counts(bytes, 1, 0, bytes, 1)
}

#[test]
fn children_that_already_run_are_watched_with_all_that_they_start() {
    // The methods that this kernel has, beside its best one. Before 6.6 the best one is among these.
    let version = release::version(&release::release()).expect("a release begins with a version");
    let others = ["multi", "perf-event"].map(|method| switch("method", method));
    let others = others.iter().filter(|_| version >= (6, 6));
    let others = others.map(|option| vec![option.as_str()]);
    for programs in BOTH.iter().cloned().chain(others) {
        let mut master = Waiting::fixture("preforks", &["3"]);
        let pid = master.pid();
        let workers = children(pid);
        let [first, second, last] = workers[..] else {
            panic!("{workers:?}")
        };
        let [helper] = children(first)[..] else {
            panic!("the first worker has no helper")
        };
        let watch = Watch::pid(pid, &programs);
        for _ in 0..3 {
            assert_eq!(master.ask(), "done\n");
        }
        let (status, _) = master.finish();
        assert!(status.success());
        let report = watch.wait();
        for (pid, end, counts) in [
            (pid, End::Exit(0), Counts::default()),
            (first, End::Exit(0), leak(1000)),
            (helper, End::Exit(0), leak(7)),
            (second, End::Exit(0), leak(1100)),
            (last, End::Exit(5), leak(1200)),
        ] {
            assert_since_attach(report.row_of(pid), end, counts);
        }
        let mut started: Vec<_> = report
            .rows
            .iter()
            .filter(|row| row.from == "start")
            .collect();
        started.sort_by_key(|row| row.counts.leaked_bytes);
        let [grandchild, replacement] = started[..] else {
            panic!("{started:#?}")
        };
        assert_from_start(grandchild, End::Exit(4), leak(30));
        assert_eq!(grandchild.ppid, first);
        // It has leaked 50 bytes more, as each worker does at its start.
        assert_from_start(replacement, End::Exit(0), counts(2050, 2, 0, 2050, 2));
        assert_eq!(replacement.ppid, pid);
        assert_eq!((report.rows.len(), report.summary.processes), (7, 7));
    }
}

#[test]
fn with_no_children_neither_running_nor_new_children_are_watched() {
    for programs in BOTH.iter() {
        let mut master = Waiting::fixture("preforks", &["2"]);
        let pid = master.pid();
        let watch = Watch::pid(pid, &[programs.as_slice(), &["--no-children"]].concat());
        for _ in 0..3 {
            assert_eq!(master.ask(), "done\n");
        }
        master.finish();
        let report = watch.wait();
        assert_since_attach(report.row_of(pid), End::Exit(0), Counts::default());
        assert_eq!(report.rows.len(), 1, "{:#?}", report.rows);
    }
}

#[test]
fn no_child_is_missed_that_starts_while_memleak_attaches() {
    for programs in BOTH.iter() {
        let mut master = Waiting::fixture("forks_until_told", &[]);
        let pid = master.pid();
        let watch = Watch::pid(pid, programs);
        sleep(Duration::from_millis(50));
        let count: usize = master.ask().trim().parse().expect("a number");
        master.finish();
        let report = watch.wait();
        let children: Vec<_> = report.rows.iter().filter(|row| row.ppid == pid).collect();
        let some = |from: &str| children.iter().filter(|row| row.from == from).count();
        assert!(
            some("attach") > 10 && some("start") > 2,
            "{}",
            children.len()
        );
        assert_eq!(children.len(), count, "{:#?}", report.summary);
        for row in children {
            assert_eq!(
                (End::of(row), row.counts),
                (End::Exit(0), leak(10)),
                "{row:#?}"
            );
            assert!(row.uncovered.is_none(), "{row:#?}");
        }
    }
}

#[test]
fn the_watch_lasts_until_the_running_children_have_ended_too() {
    for programs in BOTH.iter() {
        // The shell ends at once. Its child reads the test's lines.
        let mut child = Waiting::start(
            Command::new("sh")
                .args([
                    "-c",
                    r#"exec 3<&0; (read -r line; exec "$@") <&3 & echo ready $$; read -r line; exit 3"#,
                    "sh",
                ])
                .arg(fixture("leaks_2mb")),
        );
        let shell = child.pid();
        let [reader] = children(shell)[..] else {
            panic!("the shell has no child")
        };
        let watch = Watch::pid(shell, programs);
        child.tell();
        child.tell();
        let report = watch.wait();
        assert_eq!(report.row_of(shell).exit_code, Some(3));
        let [before, after] = report.two_rows_of(reader);
        assert_eq!((&*before.end, &*before.from), ("exec", "attach"));
        assert_from_start(after, End::Exit(0), leak(2_000_000));
    }
}

/// A shell whose child is `program`, a kind of `joined_midway` that frees 5 blocks and allocates 6. The child reads the
/// shell's standard input.
fn shell_with_child(program: &Path) -> Waiting {
    let script = r#"exec 3<&0; "$1" 5 6 <&3 & wait $!"#;
    Waiting::start(Command::new("sh").args(["-c", script, "sh"]).arg(program))
}

#[test]
fn a_file_that_only_a_child_has_mapped_is_probed() {
    let place = Place::new();
    let program = place.copy(&Kind::MuslStatic.build("joined_midway"), "program");
    for programs in BOTH.iter() {
        let shell = shell_with_child(&program);
        let (child, pid) = (shell.pid(), shell.started_pid());
        let watch = Watch::pid(pid, programs);
        shell.finish();
        let report = watch.wait();
        let row = report.row_of(child);
        assert_since_attach(row, End::Exit(0), midway(5, 6));
        assert_eq!(row.allocators, [program.as_path()]);
        assert_eq!((row.ppid, &*report.row_of(pid).from), (pid, "attach"));
    }
}

#[test]
fn a_child_without_an_allocator_is_reported_as_such_and_the_others_are_watched() {
    let place = Place::new();
    let stripped = place.copy(&Kind::Static.build("joined_midway"), "stripped");
    common::newcomers::run(Command::new("strip").arg(&stripped));
    for programs in BOTH.iter() {
        let shell = shell_with_child(&stripped);
        let (child, pid) = (shell.pid(), shell.started_pid());
        let watch = Watch::pid(pid, programs);
        shell.finish();
        let report = watch.wait();
        let row = report.row_of(child);
        assert_eq!(
            (End::of(row), row.counts),
            (End::Exit(0), Counts::default())
        );
        assert!(row.uncovered.is_some(), "{row:#?}");
        assert!(report.row_of(pid).uncovered.is_none());
    }
}

#[test]
fn a_child_in_namespaces_of_its_own_and_of_another_user_is_watched() {
    const ENTER: &str = r#"echo ready $$; read -r line; exec "$@""#;
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc"])
        .args(["setpriv", "--reuid=65534", "--clear-groups"])
        .args(["sh", "-c", ENTER, "sh"])
        .arg(fixture("leaks_2mb"));
    let target = Waiting::start(&mut command);
    assert_eq!(target.pid(), 1, "in its own pid namespace");
    let parent = target.started_pid();
    let children = children(parent);
    let [child] = children[..] else {
        panic!("{children:?}")
    };
    let watch = Watch::pid(parent, &[]);
    target.finish();
    let report = watch.wait();
    let rows = report.rows_of(child);
    let [before, after] = rows[..] else {
        panic!("{rows:#?}")
    };
    assert_eq!((&*before.end, &*before.from), ("exec", "attach"));
    assert_from_start(after, End::Exit(0), leak(2_000_000));
    assert_eq!((after.uid, after.ppid), (65534, parent));
}

// ---- the mapped files ----------------------------------------------------------------------------------------

#[test]
fn each_kind_of_program_is_probed_in_the_file_of_its_allocator() {
    let place = Place::new();
    for kind in [
        Kind::Dynamic,
        Kind::Static,
        Kind::StaticPie,
        Kind::Musl,
        Kind::MuslStatic,
    ] {
        let program = place.copy(&kind.build("joined_midway"), &format!("{kind:?}"));
        let target = Waiting::start(Command::new(&program).args(["9", "6"]));
        let pid = target.pid();
        let watch = Watch::pid(pid, &[]);
        target.finish();
        let report = watch.wait();
        let row = report.row_of(pid);
        assert_since_attach(row, End::Exit(0), midway(9, 6));
        let own_file = row.allocators == [program];
        assert_eq!(own_file, Kind::STATIC.contains(&kind), "{row:#?}");
    }
}

#[test]
fn a_deleted_or_replaced_library_or_program_is_probed_in_the_mapped_file() {
    for replaced in [false, true] {
        let place = Place::new();
        let libraries = place.directory("lib");
        let libc = place.copy(&mapped("libc.so."), "lib/libc.so.6");
        let program = place.copy(&fixture("joined_midway"), "program");
        let mut command = Command::new(mapped("ld-"));
        command.arg("--library-path").arg(&libraries).arg(&program);
        let target = Waiting::start(command.args(["2", "8"]));
        fs::remove_file(&libc).expect("the test's own file");
        fs::remove_file(&program).expect("the test's own file");
        if replaced {
            // This is another file with the same name.
            place.copy(Path::new("/bin/true"), "lib/libc.so.6");
        }
        let pid = target.pid();
        let watch = Watch::pid(pid, &[]);
        target.finish();
        let report = watch.wait();
        assert_since_attach(report.row_of(pid), End::Exit(0), midway(2, 8));
    }
}

#[test]
fn a_process_in_another_root_and_other_namespaces_is_probed_there() {
    // The process has its own libc at the path of the host's libc, on a file system that only the process can see.
    const ENTER: &str = r#"
        mount -t tmpfs none "$1" && cd "$1" && mkdir old proc || exit 99
        cp --parents $(ldd /bin/sh /bin/umount "$2" | grep -o '/[^ :]*' | sort -u) . || exit 99
        cp "$2" program && mount -t proc none proc && pivot_root . old || exit 99
        exec /bin/sh -c '/bin/umount -l /old && exec /program 4 5'"#;
    let place = Place::new();
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "--pid", "--fork", "--kill-child"])
        .args(["sh", "-c", ENTER, "sh"])
        .arg(place.path(""))
        .arg(fixture("joined_midway"));
    let target = Waiting::start(&mut command);
    assert_eq!(target.pid(), 1, "in its own pid namespace");
    let children = children(target.started_pid());
    let [pid] = children[..] else {
        panic!("{children:?}")
    };
    let watch = Watch::pid(pid, &[]);
    target.finish();
    let report = watch.wait();
    let row = report.row_of(pid);
    assert_since_attach(row, End::Exit(0), midway(4, 5));
    assert_eq!(
        row.exe,
        Some(PathBuf::from("/program")),
        "as the process sees it"
    );
}

fn children(parent: u32) -> Vec<u32> {
    let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children"));
    let children = children.expect("the process runs");
    children
        .split_whitespace()
        .map(|pid| pid.parse().expect("a pid"))
        .collect()
}

#[test]
fn an_allocator_that_is_mapped_later_is_probed_before_its_first_call() {
    let place = Place::new();
    let program = place.newcomer(Kind::MuslStatic, "later");
    let program = program.to_str().expect("a plain path");
    let target = Waiting::fixture("executes_after_reading", &["child", program, "50"]);
    let watch = Watch::pid(target.pid(), &[]);
    target.finish();
    let report = watch.wait();
    let found: Vec<_> = report
        .rows
        .iter()
        .filter(|row| row.comm == "later")
        .collect();
    let [row] = found[..] else {
        panic!("{:#?}", report.rows)
    };
    assert_from_start(row, End::Exit(0), own(50));
}

// ---- windows, running processes, signals -----------------------------------------------------------------------

#[test]
fn a_signal_ends_memleak_with_the_open_window_and_leaves_the_process_alone() {
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        const SCRIPT: &str =
            "echo ready $$; while read -r line; do \"$1\"; echo again; done; echo end";
        let mut shell = Waiting::start(
            Command::new("sh")
                .args(["-c", SCRIPT, "sh"])
                .arg(fixture("leaks_2mb")),
        );
        let watch = Watch::pid(shell.pid(), &[]);
        assert_eq!(shell.ask(), "again\n");
        let row = |row: &Row| row.comm == "leaks_2mb" && row.end == "exited";
        assert!(watch.rows().is_empty(), "the window is open");
        watch.signal(signal);
        let report = watch.wait();
        assert_eq!(report.rows.iter().filter(|found| row(found)).count(), 1);
        assert!(
            report.rows_of(shell.pid()).is_empty(),
            "the shell still runs"
        );
        assert_eq!(shell.ask(), "again\n");
        let (status, said) = shell.finish();
        assert!(status.success() && said.ends_with("end\n"), "{said}");
    }
}

#[test]
fn running_processes_are_shown_each_interval_and_on_sigusr1() {
    let target = Waiting::fixture("leaks_before_and_after_reading", &["700"]);
    let pid = target.pid();
    let watch = Watch::start(["-p", &pid.to_string(), "0.1", "--live"]);
    let rows = watch.until(|rows| rows.len() >= 2);
    assert!(
        rows.iter()
            .all(|row| (&*row.end, row.growth_bytes) == ("running", Some(0)))
    );
    target.finish();
    let report = watch.wait();
    let [.., last] = &report.rows[..] else {
        panic!("no rows")
    };
    assert_since_attach(last, End::Exit(0), counts(700, 1, 0, 700, 1));
    assert_eq!(
        report.summary.leaked_bytes, 700,
        "the blocks of a running process are no leak"
    );
    assert_eq!(report.summary.processes, 1);

    let target = Waiting::fixture("leaks_before_and_after_reading", &["700"]);
    let watch = Watch::pid(target.pid(), &[]);
    watch.signal(Signal::SIGUSR1);
    let rows = watch.until(|rows| !rows.is_empty());
    assert_eq!(rows.len(), 1, "{rows:#?}");
    assert_eq!((rows[0].pid, &*rows[0].end), (target.pid(), "running"));
    watch.stop();
}

#[test]
fn the_growth_counts_since_the_last_window_and_the_largest_comes_first() {
    let mut growing =
        [100, 300, 200].map(|bytes| Waiting::fixture("grows_by_line", &[&bytes.to_string()]));
    let pids: Vec<_> = growing
        .iter()
        .map(|grows| grows.pid().to_string())
        .collect();
    let watch = Watch::start(["-p", &pids.join(","), LONG, "--top", "2"]);
    let expected = |rows: &[Row], first: i64, second: i64| {
        let found: Vec<_> = rows.iter().map(|row| (row.pid, row.growth_bytes)).collect();
        let of = |which: usize| pids[which].parse().expect("a pid");
        assert_eq!(
            found,
            [(of(1), Some(first)), (of(2), Some(second))],
            "{rows:#?}"
        );
    };
    let more = |grows: &mut Waiting| assert_eq!(grows.ask(), "more\n");
    for _ in 0..2 {
        growing.iter_mut().for_each(more);
    }
    watch.signal(Signal::SIGUSR1);
    expected(&watch.until(|rows| rows.len() >= 2), 600, 400);
    growing.iter_mut().for_each(more);
    watch.signal(Signal::SIGUSR1);
    let rows = watch.until(|rows| rows.len() >= 4);
    expected(&rows[2..], 300, 200);
    assert_eq!(rows[2].counts.leaked_bytes, 900);
    watch.stop();
}

#[test]
fn a_terminal_redraws_one_table_of_running_processes_and_a_dumb_terminal_prints_each() {
    const AGAIN: &str = "\u{1b}[3F\u{1b}[J";
    let target = Waiting::fixture("joined_midway", &["1", "1"]);
    let pid = target.pid();
    let memleak = format!(
        "{} -p {pid} 0.2 --live --color never",
        env!("CARGO_BIN_EXE_memleak")
    );
    let mut terminal = pty::Terminal::open();
    terminal.line(&format!("TERM=xterm {memleak}"));
    for _ in 0..3 {
        terminal.expect("1 process  ");
        terminal.expect(&format!("{pid:<7}  joined_midway"));
        terminal.expect(AGAIN);
    }
    terminal.press("\u{3}");
    terminal.expect(pty::PROMPT);

    terminal.line(&memleak);
    for _ in 0..3 {
        let before = terminal.expect("Memory Of Running Processes");
        assert!(!before.contains('\u{1b}'), "{before:?}");
    }
    // The table of the window in which the process exits stays on the screen.
    target.finish();
    let shown = terminal.expect(pty::PROMPT);
    assert!(shown.contains("Finished In The Time Window"), "{shown:?}");
    assert!(!shown.contains('\u{1b}'), "{shown:?}");
    assert_eq!(terminal.output_of("echo $?"), "0\n");
}

/// A memleak that prints tables to pipes, and has attached.
struct Tables {
    memleak: Child,
    stderr: BufReader<ChildStderr>,
    /// The lines that it has printed on standard error before it had attached.
    said: String,
}

impl Tables {
    /// Starts memleak with `-v`, by way of the commands of `wrapper`. The last of them executes memleak.
    #[track_caller]
    fn start(wrapper: &[&str], options: &[&str]) -> Self {
        let memleak = env!("CARGO_BIN_EXE_memleak");
        let words = [&DEFAULT_SIGNALS, wrapper, &[memleak, "-v"], options].concat();
        let mut memleak = Command::new(words[0])
            .args(&words[1..])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("memleak can be run");
        let mut stderr = BufReader::new(memleak.stderr.take().expect("the stream is a pipe"));
        let mut said = String::new();
        while !said.contains("attached by") {
            let read = stderr.read_line(&mut said).expect("a pipe can be read");
            assert!(read > 0, "{said}");
        }
        Self {
            memleak,
            stderr,
            said,
        }
    }

    /// Sends a signal, and waits for the end. Returns the lines of standard output, and standard error.
    #[track_caller]
    fn end_by(mut self, signal: Signal) -> (Vec<String>, String) {
        // Before that, a signal that does not end memleak may get lost.
        sleep(Duration::from_millis(200));
        let pid = Pid::from_raw(self.memleak.id().cast_signed());
        kill(pid, signal).expect("memleak runs");
        self.stderr
            .read_to_string(&mut self.said)
            .expect("a pipe can be read");
        let output = self
            .memleak
            .wait_with_output()
            .expect("memleak can be waited for");
        assert_eq!(output.status.code(), Some(0), "{}", self.said);
        let text = String::from_utf8(output.stdout).expect("the output is text");
        (text.lines().map(str::to_owned).collect(), self.said)
    }
}

/// Checks that a table of running processes has one row: of this process, with what it holds.
#[track_caller]
fn assert_held(table: &[String], pid: &str, comm: &str, megabytes: &str) {
    let heading = table.iter().position(|line| line.contains("LIVE_MB"));
    let [row] = &table[heading.unwrap_or_else(|| panic!("{table:#?}")) + 1..] else {
        panic!("{table:#?}")
    };
    let words: Vec<_> = row.split_whitespace().collect();
    for word in [pid, comm, megabytes] {
        assert!(words.contains(&word), "{table:#?}");
    }
}

#[test]
fn a_signal_ends_memleak_with_what_is_held_if_nothing_else_was_printed() {
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        let mut grows = Waiting::fixture("grows_by_line", &["700000"]);
        let pid = grows.pid().to_string();
        let memleak = Tables::start(&[], &["-p", &pid, LONG]);
        assert_eq!(grows.ask(), "more\n");
        assert_eq!(grows.ask(), "more\n");
        let (table, said) = memleak.end_by(signal);
        assert_held(&table, &pid, "grows_by_line", "1.400");
        assert!(!said.contains("watching"), "{said}");

        let memleak = Tables::start(&[], &["-p", &pid, LONG, "--min-leak", "1kB"]);
        let (table, said) = memleak.end_by(signal);
        assert!(table.is_empty(), "{table:#?}");
        assert!(said.contains("memleak: nothing to report: "), "{said}");

        let (table, said) = Tables::start(&[], &["-p", &pid, "0.1", "--live"]).end_by(signal);
        let tables = table.iter().filter(|line| line.contains("LIVE_MB"));
        assert!(tables.count() >= 1, "{table:#?}");
        assert!(!said.contains("nothing to report"), "{said}");
    }
}

#[test]
fn a_window_with_a_row_and_quiet_need_no_table_of_what_is_held() {
    let mut shell = shell_that_waits(
        r#""$1"; echo ended; read -r line"#,
        &[fixture("leaks_2mb").into()],
    );
    let pid = shell.pid().to_string();
    let memleak = Tables::start(&[], &["-p", &pid, LONG]);
    assert_eq!(shell.ask(), "ended\n");
    let (table, _) = memleak.end_by(Signal::SIGINT);
    assert!(
        table[0].contains("Finished In The Time Window"),
        "{table:#?}"
    );
    assert!(!table.concat().contains("LIVE_MB"), "{table:#?}");

    let mut memleak = Command::new(DEFAULT_SIGNALS[0]);
    memleak
        .args(&DEFAULT_SIGNALS[1..])
        .args(["timeout", "-s", "INT", "3"]);
    memleak.args([env!("CARGO_BIN_EXE_memleak"), "-q", "-p", &pid, LONG]);
    let output = memleak.output().expect("memleak can be run");
    assert_eq!(
        output.status.code(),
        Some(124),
        "timeout has sent its signal"
    );
    assert_eq!((output.stdout, output.stderr), (vec![], vec![]));
}

#[test]
fn in_the_background_of_a_script_an_ignored_sigint_stays_ignored_and_sigterm_ends_memleak() {
    // A shell without job control starts memleak so.
    let ignores = ["sh", "-c", r#"trap "" INT QUIT; exec "$@""#, "sh"];
    for signal in [Signal::SIGTERM, Signal::SIGHUP] {
        let mut grows = Waiting::fixture("grows_by_line", &["3000000"]);
        let pid = grows.pid().to_string();
        let memleak = Tables::start(&ignores, &["-p", &pid, LONG]);
        kill(
            Pid::from_raw(memleak.memleak.id().cast_signed()),
            Signal::SIGINT,
        )
        .expect("memleak runs");
        sleep(Duration::from_millis(500));
        assert_eq!(grows.ask(), "more\n");
        let (table, _) = memleak.end_by(signal);
        assert_held(&table, &pid, "grows_by_line", "3.000");
    }
}

#[test]
fn on_a_terminal_memleak_says_what_it_watches_and_how_to_stop() {
    let _machine = machine::watched();
    let mut master = Waiting::fixture("preforks", &["2"]);
    let pid = master.pid();
    let workers = children(pid);
    let memleak = env!("CARGO_BIN_EXE_memleak");
    let mut terminal = pty::Terminal::open();
    terminal.line(&format!("{memleak} -p {pid} {LONG}"));
    terminal.expect(&format!(
        "memleak: watching preforks[{pid}] and 3 children; every 600 s, what has ended; Ctrl-C ends"
    ));
    assert_eq!(master.ask(), "done\n");
    terminal.press("\u{3}");
    terminal.expect("LIVE_MB");
    // The one that holds most comes first.
    for worker in workers.iter().rev() {
        terminal.expect(&format!("{worker:<6} preforks"));
    }
    terminal.expect(pty::PROMPT);
    assert_eq!(terminal.output_of("echo $?"), "0\n");

    for (options, says) in [
        (
            format!("-p {pid} 0.5 --no-children --live"),
            format!(
                "watching preforks[{pid}] without its 3 children; every 0.5 s, what has ended and \
                 what runs; Ctrl-C ends"
            ),
        ),
        (
            "-a --user-name root --comm no-such".to_owned(),
            "watching every process (of user root, named no-such); every 5 s".to_owned(),
        ),
    ] {
        terminal.line(&format!("{memleak} {options}"));
        terminal.expect(&format!("memleak: {says}"));
        terminal.press("\u{3}");
        terminal.expect(pty::PROMPT);
    }
    let said = terminal.output_of(&format!("timeout -s INT 3 {memleak} -q -p {pid}; echo end"));
    assert_eq!(said, "end\n");
}

#[test]
fn the_table_has_a_block_for_each_window_in_which_a_process_exited() {
    let target = Waiting::fixture("joined_midway", &["3", "1000"]);
    let pid = target.pid();
    let mut memleak = Command::new(env!("CARGO_BIN_EXE_memleak"));
    memleak.args(["-p", &pid.to_string(), "0.3"]);
    let memleak = memleak
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("memleak can be run");
    // In some windows no process exits.
    sleep(Duration::from_secs(2));
    target.finish();
    let output = memleak
        .wait_with_output()
        .expect("memleak can be waited for");
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).expect("the output is text");
    let lines: Vec<_> = text.lines().collect();
    let [title, heading, row] = lines[..] else {
        panic!("{text}")
    };
    let (start, rest) = title
        .strip_prefix('[')
        .and_then(|title| title.split_once(" - "))
        .expect("a window");
    let (end, rest) = rest.split_once("] ").expect("a window");
    let [start, end]: [u64; 2] = [start, end].map(|time| time.parse().expect("seconds"));
    assert!(start <= end && end <= start + 1, "{title}");
    assert_eq!(
        rest,
        "Report Of Memory Allocation Of Process Finished In The Time Window"
    );
    assert_eq!(
        heading,
        "UID      USER         PID    COMM             TOTAL_ALLOCS_MB MEM_LEAK_MB NOTE"
    );
    let expected = format!(
        "0        root         {pid:<6} joined_midway    0.010           0.005       since attach"
    );
    assert_eq!(row, expected);
    assert_eq!(output.stderr, b"", "nothing was lost");
}

// ---- processes that cannot be watched ----------------------------------------------------------------------------

/// Runs memleak, which must refuse with exit code 125, one line on standard error and no other output.
#[track_caller]
fn refused(words: &[&str]) -> String {
    let output = Command::new(words[0])
        .args(&words[1..])
        .output()
        .expect("memleak can be run");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(125), "{said}");
    assert_eq!(
        (output.stdout.len(), said.lines().count()),
        (0, 1),
        "{said}"
    );
    assert!(said.starts_with("memleak: "), "{said}");
    said
}

#[test]
fn a_process_that_cannot_be_watched_is_named_with_the_reason() {
    let memleak = env!("CARGO_BIN_EXE_memleak");
    let says = |pid: &str, reason: &str| {
        let said = refused(&[memleak, "-p", pid]);
        assert!(said.contains(pid) && said.contains(reason), "{said}");
    };
    says("2147483647", "does not exist");
    says("2", "thread of the kernel");

    let threads = Waiting::fixture("threads_joined_midway", &["1"]);
    let tasks = fs::read_dir(format!("/proc/{}/task", threads.pid())).expect("the process runs");
    let tasks: Vec<u32> = tasks
        .map(|task| {
            task.expect("the process runs")
                .file_name()
                .to_string_lossy()
                .parse()
                .expect("a number")
        })
        .collect();
    let thread = tasks
        .iter()
        .find(|task| **task != threads.pid())
        .expect("the process has threads");
    says(&thread.to_string(), &format!("-p {}", threads.pid()));

    let place = Place::new();
    let stripped = place.copy(&Kind::Static.build("joined_midway"), "stripped");
    common::newcomers::run(Command::new("strip").arg(&stripped));
    let target = Waiting::start(Command::new(&stripped).args(["1", "1"]));
    says(&target.pid().to_string(), "no symbols");
    drop(target);

    // From a pid namespace memleak cannot watch a process of a namespace above.
    let target = Waiting::fixture("joined_midway", &["1", "1"]);
    let pid = target.pid().to_string();
    let said = refused(&["unshare", "--pid", "--fork", memleak, "-p", &pid]);
    assert!(said.contains("another pid namespace"), "{said}");

    for (words, reason) in [
        (
            &["-p", &pid, "-p", "2147483647"][..],
            "2147483647 does not exist",
        ),
        (&["-p", &pid, "-o", "/no/such/report"], "/no/such/report"),
        (&["-p", &pid, "2", "5"], "-p 1,2 or -p 1 -p 2"),
        (&["-p", &pid, "0"], "0.1 to 86400"),
        (&["-a", "-p", &pid], "cannot be used with"),
        (&["-p", "x"], "cannot be 'x'"),
    ] {
        let said = refused(&[&[memleak], words].concat());
        assert!(said.contains(reason), "{said}");
    }
    // memleak did not disturb the process.
    let (status, _) = target.finish();
    assert!(status.success());
}

#[test]
fn a_second_pid_in_place_of_the_interval_is_refused_and_another_interval_is_not() {
    let memleak = env!("CARGO_BIN_EXE_memleak");
    let [first, second] = [(); 2].map(|()| Waiting::fixture("joined_midway", &["1", "1"]));
    let (pid, twin) = (first.pid().to_string(), second.pid().to_string());
    let said = refused(&[memleak, "-p", &pid, &twin]);
    // A pid may be too large for an interval. Then it is refused as such.
    let small = first.pid().max(second.pid()) <= 86_400;
    let says = match small {
        true => vec![
            format!("-p {pid},{twin} to watch both"),
            "second word is the INTERVAL".to_owned(),
            format!("{twin}.0"),
        ],
        false => vec!["[INTERVAL]".to_owned(), "-p 1,2".to_owned()],
    };
    for says in says {
        assert!(said.contains(&says), "{said}");
    }
    let said = refused(&[memleak, "-p", &pid, &twin, &twin]);
    assert!(said.contains("-p 1,2"), "{said}");

    // A process of another name, the named process itself, and an interval that cannot be a pid.
    let other = Waiting::fixture("grows_by_line", &["1"]);
    let intervals = match small {
        true => [other.pid().to_string(), pid.clone(), format!("{twin}.0")],
        false => ["1", "5", "9.0"].map(str::to_owned),
    };
    for interval in intervals {
        Watch::start(["-p", &pid, &interval]).stop();
    }
}

#[test]
fn a_process_without_a_known_allocator_is_refused_unless_its_allocator_is_named() {
    let target = Waiting::fixture("pool_that_waits", &[]);
    let pid = target.pid().to_string();
    let spec = format!(
        "{}:alloc=pool_alloc,free=pool_free",
        fixture("pool_that_waits").display()
    );
    let said = refused(&[env!("CARGO_BIN_EXE_memleak"), "-p", &pid]);
    assert!(
        said.contains("no allocator") && said.contains("--allocator"),
        "{said}"
    );
    let watch = Watch::pid(target.pid(), &["--allocator", &spec]);
    target.finish();
    let report = watch.wait();
    let row = &report.rows[0];
    assert_since_attach(row, End::Exit(0), counts(48, 2, 1, 32, 1));
}
