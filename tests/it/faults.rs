//! Faults of the machine and of other programs. memleak must not hang, its report must be true, and the command must
//! run on.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::common;
use crate::common::expected::{End, counts};
use crate::common::newcomers::Place;
use crate::common::watch::{Waiting, Watch};
use crate::common::{Job, Losses, Report, code, compile, fixture};

const MEMLEAK: &str = env!("CARGO_BIN_EXE_memleak");

#[track_caller]
fn output(command: &mut Command) -> Output {
    command
        .env_remove("LD_LIBRARY_PATH")
        .output()
        .unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The counts of `nests_in_calloc DEPTH`.
fn nested(depth: u64) -> common::Counts {
    counts(
        depth * 200_016,
        depth * 3,
        depth,
        depth * 100_016,
        depth * 2,
    )
}

#[test]
fn nested_calls_are_exact_to_depth_8_and_deeper_calls_are_counted_as_lost() {
    let run = |depth: u64| Job::fixture("nests_in_calloc", &[&depth.to_string()]).run();
    let report = run(8);
    report.assert_complete();
    assert_eq!(report.only_row().counts, nested(8));
    // The kernel keeps at most 64 pending returns for each thread.
    for depth in [9, 80] {
        let report = run(depth);
        assert_eq!(code(report.status), 0, "{}", report.stderr);
        let row = report.only_row();
        assert_eq!(row.counts.alloc_count, nested(8).alloc_count);
        assert_eq!(row.losses.calls_without_return, (depth - 8) * 3);
        assert!(!row.complete);
    }
}

// ---- files and memory ------------------------------------------------------------------------------------

#[test]
fn a_full_disk_loses_the_report_but_keeps_the_exit_code_and_the_verdict() {
    const SCRIPT: &str = r#"
        mount -t tmpfs -o size=16k none "$1" || exit 99
        report=$1/report; shift
        exec "$@" -o "$report" -- "$PROGRAM" 300"#;
    for (options, expected) in [
        (&[][..], 0),
        (&["-v"], 0),
        (&["--fail-on-leak", "90", "-v"], 23),
    ] {
        let place = Place::new();
        let output = output(
            Command::new("unshare")
                .args(["--mount", "sh", "-c", SCRIPT, "sh"])
                .arg(place.path(""))
                .args([MEMLEAK, "run", "--format", "json"])
                .args(options)
                .env("PROGRAM", fixture("short_lives")),
        );
        let said = text(&output.stderr);
        assert_eq!(code(output.status), expected, "{said}");
        let told = said.lines().filter(|line| {
            line.contains("cannot write the report to") && line.contains("No space left")
        });
        // With -o and without -v memleak has given up its standard error, which may be a pipe of another process.
        assert_eq!(told.count(), usize::from(options.contains(&"-v")), "{said}");
    }
}

#[test]
fn memleak_raises_its_own_descriptor_limit_and_the_command_keeps_its_limit() {
    let run = |limit: &str| {
        output(
            Command::new("prlimit")
                .arg(format!("--nofile={limit}"))
                .args([MEMLEAK, "run", "--", "sh", "-c", "ulimit -Sn; ulimit -Hn"]),
        )
    };
    let enough = run("32:4096");
    assert_eq!(code(enough.status), 0, "{}", text(&enough.stderr));
    assert_eq!(text(&enough.stdout), "32\n4096\n");
    // With one of these, only the trial of a feature has too few.
    for limit in 30..36 {
        let few = run(&format!("{limit}:{limit}"));
        let said = text(&few.stderr);
        assert_eq!((code(few.status), few.stdout.len()), (125, 0), "{said}");
        assert!(
            said.contains("descriptors") && said.lines().count() == 1,
            "{limit}: {said}"
        );
    }
}

/// A control group with limited memory, which includes the kernel's memory.
struct Limited {
    group: PathBuf,
    /// The file that holds the limit.
    limit: PathBuf,
}

impl Limited {
    fn new(name: &str, bytes: u64) -> Self {
        let mounts = fs::read_to_string("/proc/self/mounts").expect("/proc is mounted");
        let mut words = mounts
            .lines()
            .map(|line| line.split(' ').collect::<Vec<_>>());
        let (root, file) = words
            .find_map(|words| {
                let root = PathBuf::from(words[1]);
                let first =
                    words[2] == "cgroup" && words[3].split(',').any(|word| word == "memory");
                if first {
                    return Some((root, "memory.limit_in_bytes"));
                }
                let controllers = fs::read_to_string(root.join("cgroup.controllers"));
                let second = words[2] == "cgroup2"
                    && controllers
                        .is_ok_and(|all| all.split_whitespace().any(|one| one == "memory"));
                second.then(|| {
                    fs::write(root.join("cgroup.subtree_control"), "+memory")
                        .expect("memory can be limited");
                    (root, "memory.max")
                })
            })
            .expect("control groups that limit memory are mounted");
        let path = root.join(format!("memleak-{name}-{}", std::process::id()));
        fs::create_dir(&path).expect("control groups can be made");
        let limit = path.join(file);
        fs::write(&limit, bytes.to_string()).expect("memory can be limited");
        Self { group: path, limit }
    }

    /// Runs memleak in the group and its command outside of the group.
    fn run(&self, options: &[&str], command: &[&str]) -> Output {
        const ENTER: &str = r#"echo $$ >"$0/cgroup.procs" && exec "$@""#;
        output(
            Command::new("sh")
                .args(["-c", ENTER])
                .arg(&self.group)
                .args([MEMLEAK, "run", "--format", "json"])
                .args(options)
                .args(["--", "sh", "-c", ENTER])
                .arg(self.group.parent().expect("the group has a parent"))
                .args(command),
        )
    }
}

impl Drop for Limited {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.group);
    }
}

#[test]
fn blocks_that_the_kernel_has_no_memory_to_record_are_counted_as_lost() {
    let place = Place::new();
    let report = place.path("report");
    let program = fixture("holds_blocks");
    // The script raises the limit after the program has ended. Otherwise the kernel kills memleak while it reports.
    let script = r#""$0" 1000000 8; ended=$?; echo 1000000000 >"$1"; echo "ended $ended""#;
    for attempt in 0..10 {
        let group = Limited::new(&format!("few-{attempt}"), 100_000_000);
        let command = ["sh", "-c", script].map(Path::new);
        let command = [&command[..], &[&program, &group.limit]].concat();
        let command: Vec<_> = command
            .iter()
            .map(|word| word.to_str().expect("a plain path"))
            .collect();
        // Reading a process takes memory of memleak's own, and there is none.
        let report = report.to_str().expect("a plain path");
        let output = group.run(&["--lost=never", "-o", report], &command);
        let said = text(&output.stderr);
        assert_eq!(text(&output.stdout), "ended 0\n", "{said}");
        // The kernel killed memleak because memleak itself needed a page. Only another run can show its report.
        if code(output.status) == 137 {
            continue;
        }
        assert_eq!(code(output.status), 0, "{said}");
        let rows = fs::read_to_string(report).expect("there is a report");
        let row = rows
            .lines()
            .map(|line| serde_json::from_str::<serde_json::Value>(line).expect("a line of JSON"))
            .find(|row| row["comm"] == "holds_blocks" && row["end"] == "exited")
            .expect("holds_blocks has a row");
        assert_eq!(row["total_allocs_bytes"], 8_000_000, "{row}");
        let lost = row["losses"]["blocks_not_recorded"].as_u64();
        let lost = lost.unwrap_or_default();
        assert!(lost > 0, "the memory limit had no effect: {row}");
        assert_eq!(
            row["leaked_blocks"].as_u64(),
            Some(1_000_000 - lost),
            "{row}"
        );
        assert_eq!(row["complete"], false);
        return;
    }
    panic!("the kernel killed memleak in each run");
}

#[test]
fn the_command_is_not_started_without_memory_for_the_tables() {
    let group = Limited::new("none", 20_000_000);
    for _ in 0..10 {
        let output = group.run(&[], &["sh", "-c", "echo started"]);
        let said = text(&output.stderr);
        assert_eq!(text(&output.stdout), "");
        // The kernel killed memleak because memleak itself needed a page. Only another run can show its message.
        if code(output.status) == 137 {
            continue;
        }
        assert_eq!(code(output.status), 125, "{said}");
        assert!(said.contains("--max-allocs"), "{said}");
        return;
    }
    panic!("the kernel killed memleak in each run");
}

// ---- the clock -----------------------------------------------------------------------------------------

/// A memleak for which the clock is set back by an hour as soon as the file `place/back` exists.
fn with_a_clock_to_set(place: &Place, options: &[&str]) -> Command {
    let library = compile("fixtures/clock_set_back.c", "clock_set_back.so", &["-O1"]);
    let mut command = Command::new(MEMLEAK);
    command
        .args(options)
        .env_remove("LD_LIBRARY_PATH")
        .env("LD_PRELOAD", library)
        .env("CLOCK_SET_BACK", place.path("back"));
    command
}

#[test]
fn no_window_ends_before_its_beginning_if_the_clock_is_set_back() {
    let place = Place::new();
    let mut targets = [(); 2].map(|()| Waiting::fixture("grows_by_line", &["100"]));
    let pids = targets.each_ref().map(|target| target.pid().to_string());
    let mut memleak = with_a_clock_to_set(&place, &["-p", &pids.join(","), "2", "-v"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("memleak can be run");
    let mut lines = BufReader::new(memleak.stdout.take().expect("a pipe")).lines();
    let mut next_window = || -> (u64, u64) {
        let mut line = || {
            let line = lines.next().expect("there are more lines");
            line.expect("a pipe can be read")
        };
        let heading = line();
        assert!(line().starts_with("UID"));
        assert!(line().contains("grows_by_line"));
        let times = heading.split_once('[').and_then(|(_, rest)| {
            let (from, to) = rest.split_once(']')?.0.split_once(" - ")?;
            Some((from.parse().ok()?, to.parse().ok()?))
        });
        times.unwrap_or_else(|| panic!("the heading has no times: {heading}"))
    };
    let mut said = BufReader::new(memleak.stderr.take().expect("a pipe")).lines();
    let mut attached = said.by_ref().map_while(Result::ok);
    assert!(attached.any(|line| line.contains("attached by")));
    for target in &mut targets {
        target.ask();
    }
    let [first, second] = targets;
    // The first target ends in a window in which the clock is set back.
    first.finish();
    fs::write(place.path("back"), "").expect("a file can be written");
    let (from, to) = next_window();
    assert!(from <= to && to <= from + 60, "[{from} - {to}]");
    second.finish();
    let (later, end) = next_window();
    assert!(later <= end && end <= later + 60, "[{later} - {end}]");
    // A window uses the clock of its beginning.
    assert!(later < from, "[{from} - {to}], then [{later} - {end}]");
    assert!(memleak.wait().expect("memleak can be waited for").success());
}

#[test]
fn a_command_ends_after_its_start_if_the_clock_is_set_back() {
    let place = Place::new();
    let report = place.path("report");
    let script = r#"sleep 0.2; : >"$CLOCK_SET_BACK"; sleep 0.2"#;
    let mut command = with_a_clock_to_set(&place, &["run", "--format", "json", "-o"]);
    let output = output(command.arg(&report).args(["--", "sh", "-c", script]));
    assert_eq!(code(output.status), 0, "{}", text(&output.stderr));
    let report = fs::read_to_string(&report).expect("there is a report");
    let rows: Vec<serde_json::Value> = report
        .lines()
        .map(|line| serde_json::from_str(line).expect("a line of JSON"))
        .filter(|line: &serde_json::Value| line["type"] == "process")
        .collect();
    assert_eq!(rows.len(), 3, "{report}");
    for row in rows {
        let [start, end] = ["start_time", "end_time"].map(|time| row[time].as_f64());
        let took = end.zip(start).map(|(end, start)| end - start);
        assert!(
            took.is_some_and(|took| (0.2..60.0).contains(&took)),
            "{row}"
        );
    }
}

// ---- memleak is killed ---------------------------------------------------------------------------------

#[test]
fn the_command_ends_while_memleak_waits_for_a_reader_and_can_be_killed() {
    let place = Place::new();
    let done = place.path("done");
    let (reader, mut writer) = std::io::pipe().expect("a pipe");
    // The capacity of a pipe that is filled in pieces of a page.
    let capacity = 64 << 10;
    writer
        .write_all(&vec![0; capacity])
        .expect("the pipe has room");
    let mut memleak = Command::new(MEMLEAK)
        .args(["run", "--", "sh", "-c", ": >\"$0\""])
        .arg(&done)
        .stderr(writer)
        .spawn()
        .expect("memleak can be run");
    let deadline = Instant::now() + Duration::from_secs(60);
    while !done.exists() {
        assert!(
            Instant::now() < deadline,
            "the command is blocked together with memleak"
        );
        sleep(Duration::from_millis(10));
    }
    // memleak waits to write the command's row. Otherwise it would have ended by now.
    sleep(Duration::from_millis(300));
    assert_eq!(memleak.try_wait().expect("memleak is a child"), None);
    memleak.kill().expect("memleak runs");
    let status = memleak.wait().expect("memleak is a child");
    assert_eq!(status.signal(), Some(9));
    drop(reader);
}

// ---- several memleaks, and other tools that look into processes -----------------------------------------------

#[test]
fn memleak_under_memleak_is_exact_and_so_is_the_outer_one() {
    let place = Place::new();
    let inner = place.path("inner");
    let program = fixture("fork_1000_50");
    let words = [
        "run".as_ref(),
        "--format".as_ref(),
        "json".as_ref(),
        "-o".as_ref(),
        inner.as_os_str(),
        "--".as_ref(),
        program.as_os_str(),
    ];
    let outer = Job::new(MEMLEAK, words).run();
    assert_eq!(code(outer.status), 0, "{}", outer.stderr);
    let inner = fs::read_to_string(&inner).expect("there is a report");
    let inner: Vec<serde_json::Value> = inner
        .lines()
        .map(|line| serde_json::from_str(line).expect("a line of JSON"))
        .collect();
    assert_eq!(
        inner.last().expect("a summary")["complete"],
        true,
        "{inner:#?}"
    );
    for bytes in [1000, 50] {
        let ours = outer
            .rows
            .iter()
            .filter(|row| row.exe.as_ref() == Some(&program) && row.end == "exited")
            .filter(|row| row.counts.leaked_bytes == bytes)
            .count();
        let theirs = inner
            .iter()
            .filter(|row| row["type"] == "process" && row["leaked_bytes"] == bytes)
            .count();
        assert_eq!(
            (ours, theirs),
            (1, 1),
            "{bytes}: {:#?} {inner:#?}",
            outer.rows
        );
    }
}

#[test]
fn a_memleak_stays_exact_if_another_one_that_watches_the_same_process_is_killed() {
    let mut target = Waiting::fixture("grows_by_line", &["100"]);
    let pid = target.pid();
    let [first, last] = [(); 2].map(|()| Watch::pid(pid, &[]));
    target.ask();
    first.kill();
    target.ask();
    let (status, _) = target.finish();
    assert!(status.success(), "{status}");
    let report = last.wait();
    let row = report.row_of(pid);
    assert_eq!(
        (End::of(row), row.losses),
        (End::Exit(0), Losses::default())
    );
    assert_eq!(row.counts, counts(200, 2, 0, 200, 2));
}

/// valgrind translates the breakpoints too. memleak cannot prevent that, but it can report it.
#[test]
fn a_program_under_valgrind_dies_and_the_report_names_valgrind() {
    let run = |tool: &str| {
        let mut command = Command::new(MEMLEAK);
        command.args(["run", "--", "valgrind", "-q", tool]);
        output(command.arg(fixture("leak_known")))
    };
    for tool in ["--tool=memcheck", "--tool=none"] {
        let run = run(tool);
        let said = text(&run.stderr);
        assert_eq!(run.status.signal(), Some(5), "{said}");
        let told = |line: &&str| line.starts_with("memleak: process ") && line.contains("valgrind");
        assert_eq!(said.lines().filter(told).count(), 1, "{said}");
        let row = said.lines().find(|line| line.contains("SIGTRAP   "));
        assert!(
            row.is_some_and(|row| row.contains("no allocator symbols")),
            "{said}"
        );
    }
}

#[test]
fn a_leak_sanitizer_finds_the_same_leaks_under_memleak() {
    let program = compile(
        "fixtures/leak_known.c",
        "leak_known.lsan",
        &["-O1", "-fsanitize=leak"],
    );
    let bare = output(&mut Command::new(&program));
    assert!(
        text(&bare.stderr).contains("LeakSanitizer"),
        "{}",
        text(&bare.stderr)
    );
    let watched = Job::new(&program, [""; 0]).run();
    assert_eq!(
        code(watched.status),
        code(bare.status),
        "{}",
        watched.stderr
    );
    let found = |said: &str| {
        let lines = said.lines().filter(|line| line.contains("SUMMARY"));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(found(&watched.stderr), found(&text(&bare.stderr)));
    let leaked = |report: &Report, bytes| {
        let row = report
            .rows
            .iter()
            .find(|row| row.counts.leaked_bytes >= bytes);
        row.is_some()
    };
    assert!(leaked(&watched, 1_000_000), "{:#?}", watched.rows);
}
