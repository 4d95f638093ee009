//! Tests what memleak does with processes that continue after the command: it reports them as running, or waits for
//! them.

use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::common::expected::{End, counts};
use crate::common::proc::{self, within};
use crate::common::{Counts, DEFAULT_SIGNALS, Job, Report, code};
use nix::sys::signal::{Signal, kill, killpg};

/// How long the daemon holds its block. A start of memleak beside other tests may take as long.
const HELD: Duration = Duration::from_secs(5);

fn daemon(options: &[&str]) -> Job {
    let held = HELD.as_millis().to_string();
    Job::fixture("daemonises_twice", &[&held]).options(options)
}

/// Checks the daemon's row, which comes last, and those of the four other processes.
#[track_caller]
fn assert_daemon(report: &Report, end: &str, expected: Counts) {
    assert_eq!(code(report.status), 0, "{}", report.stderr);
    report.assert_complete();
    let (last, others) = report.rows.split_last().expect("rows");
    assert_eq!((&*last.end, last.counts), (end, expected));
    assert_eq!(others.len(), 4, "{:#?}", report.rows);
    for row in others {
        assert_eq!(
            (End::of(row), row.counts),
            (End::Exit(0), Counts::default())
        );
    }
    assert_eq!(report.summary.processes, 5);
}

/// The daemon's counts while it holds its block.
fn held() -> Counts {
    counts(1030, 2, 0, 1030, 2)
}

#[test]
fn case_39_without_the_option_memleak_exits_with_the_command_and_reports_running_processes() {
    // No other test's daemon has this argument.
    let held = (HELD + Duration::from_millis(1)).as_millis().to_string();
    let report = Job::fixture("daemonises_twice", &[&held]).run();
    // memleak has exited, and whoever waited for it has gone on, while the command's tree was still there. Which of its
    // processes that is depends on how far the tree was.
    let end_of_words = format!("daemonises_twice\0{held}\0");
    let is_there = || {
        proc::all().iter().any(|process| {
            let words = fs::read(format!("/proc/{}/cmdline", process.pid)).unwrap_or_default();
            words.ends_with(end_of_words.as_bytes())
        })
    };
    assert!(within(Duration::from_secs(1), is_there), "{report:#?}");
    let last = report.rows.last().expect("a row");
    // The daemon may not have allocated its first block yet, and not all of the other processes may have exited.
    assert!(
        last.end == "running" && last.counts.free_count == 0,
        "{last:#?}"
    );
    assert_eq!(code(report.status), 0);
}

#[test]
fn case_39_with_a_time_limit_memleak_exits_in_time() {
    let began = Instant::now();
    let report = daemon(&["--wait-all=2"]).run();
    let took = began.elapsed();
    assert!(
        (Duration::from_secs(2)..HELD).contains(&took),
        "took {took:?}"
    );
    assert_daemon(&report, "running", held());
}

#[test]
fn without_a_time_limit_memleak_exits_with_the_last_process() {
    // Case 39.
    let began = Instant::now();
    let report = daemon(&["--wait-all"]).run();
    assert!(began.elapsed() >= HELD);
    assert_daemon(&report, "exited", counts(1030, 2, 1, 30, 1));
    assert_eq!(report.rows.last().and_then(|row| row.exit_code), Some(5));
}

#[test]
fn memleak_as_pid_1_of_a_namespace_waits_for_the_orphans_that_it_inherits() {
    let report = daemon(&["--wait-all"])
        .under(&["unshare", "--pid", "--fork", "--mount-proc"])
        .run();
    assert_daemon(&report, "exited", counts(1030, 2, 1, 30, 1));
}

#[test]
fn memleak_does_not_wait_for_the_time_limit_after_the_last_exit() {
    let began = Instant::now();
    let report = Job::shell("sleep 0.3 & exit 3")
        .options(["--wait-all=60"])
        .run();
    assert!(began.elapsed() < Duration::from_secs(20));
    assert_eq!(code(report.status), 3);
    assert!(report.rows.iter().all(|row| row.end != "running"));
}

#[test]
fn rows_appear_while_memleak_waits() {
    let running = Job::shell("sleep 0.2 & sleep 4 & exit 0")
        .options(["--wait-all"])
        .start();
    let began = Instant::now();
    let rows = || {
        let text = std::fs::read_to_string(running.json()).unwrap_or_default();
        text.lines()
            .filter(|line| line.contains(r#""comm":"sleep""#) && line.contains(r#""exited""#))
            .count()
    };
    while rows() == 0 {
        assert!(began.elapsed() < Duration::from_secs(4), "no row");
        sleep(Duration::from_millis(20));
    }
    assert_eq!(rows(), 1);
    running.wait().assert_complete();
}

#[test]
fn a_signal_ends_the_wait_but_does_not_change_the_exit_code() {
    for signal in [
        Signal::SIGINT,
        Signal::SIGTERM,
        Signal::SIGHUP,
        Signal::SIGQUIT,
    ] {
        let running = Job::shell("sleep 60 & exit 3")
            .options(["--wait-all"])
            .under(&DEFAULT_SIGNALS)
            .start();
        let began = Instant::now();
        // The command's own row shows that the command has exited.
        while !std::fs::read_to_string(running.json())
            .unwrap_or_default()
            .contains(r#""exit_code":3"#)
        {
            assert!(began.elapsed() < Duration::from_secs(30));
            sleep(Duration::from_millis(10));
        }
        sleep(Duration::from_millis(100));
        kill(running.pid(), signal).expect("memleak waits");
        let group = running.pid();
        let report = running.wait_with(|| {
            // `sleep` keeps the pipes open that the test reads to the end of file.
            let _ = killpg(group, Signal::SIGKILL);
        });
        assert_eq!(code(report.status), 3, "{signal}");
        let last = report.rows.last().expect("a row");
        assert_eq!((&*last.comm, &*last.end), ("sleep", "running"));
    }
}

#[test]
fn no_process_that_exits_while_memleak_stops_is_missed_or_counted_twice() {
    const CHILDREN: u64 = 200;
    for _ in 0..5 {
        let running = Job::fixture("ends_among_others", &[&CHILDREN.to_string()]).start();
        let group = running.pid();
        let report = running.wait_with(|| {
            let _ = killpg(group, Signal::SIGKILL);
        });
        report.assert_complete();
        let mut found: Vec<_> = report.rows.iter().map(|row| row.counts).collect();
        let mut expected: Vec<_> = (0..CHILDREN)
            .map(|c| match c % 2 {
                0 => counts(c + 1, 1, 0, c + 1, 1),
                _ => counts(c + 1001, 2, 0, c + 1001, 2).threads(1, 0),
            })
            .chain([Counts::default()])
            .collect();
        found.sort();
        expected.sort();
        assert_eq!(found, expected);
        let running = report.rows.iter().filter(|row| row.end == "running");
        let running = running.count() as u64;
        assert!((CHILDREN / 2..CHILDREN).contains(&running), "{running}");
    }
}

#[test]
fn a_gate_judges_exited_processes_and_not_running_ones() {
    // The running daemon holds 1,030 bytes. When it exits, it has leaked 30.
    let judged = |options: &[&str]| {
        let report = daemon(options).options(["--fail-on-leak", "29"]).run();
        let gate = report.summary.gate.clone().expect("a gate");
        (code(report.status), gate.verdict)
    };
    assert_eq!(judged(&["--wait-all=1"]), (0, "passed".to_owned()));
    assert_eq!(judged(&["--wait-all"]), (23, "failed".to_owned()));
}
