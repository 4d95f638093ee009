//! Holding a process at its end, to judge which of its blocks are lost, must change nothing: not how it ends, not what
//! others see of it. And the verdict must not depend on chance. (`valgrind` tests that verdicts are right.)

use std::fs;
use std::process::{Command, Stdio};

use tempfile::TempDir;

use crate::common::fixtures::compile;
use crate::common::root::require_root;
use crate::valgrind::runs::read_report;
use crate::valgrind::verdict::{End, Judged, Lost};

/// A run of memleak that judged all processes.
struct Run {
    judged: Judged,
    stdout: String,
    stderr: String,
}

/// Runs a command under `memleak run --lost=always`.
fn judge(command: &[&str]) -> Run {
    require_root();
    let directory = TempDir::new().expect("a temporary directory can be created");
    let report = directory.path().join("report.json");
    let output = Command::new(env!("CARGO_BIN_EXE_memleak"))
        .args(["run", "--lost=always", "--format", "json", "-o"])
        .arg(&report)
        .arg("--")
        .args(command)
        .stdin(Stdio::null())
        .output()
        .expect("memleak can be started");
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    let text = fs::read_to_string(report).unwrap_or_default();
    let judged = read_report(&text, true)
        .unwrap_or_else(|error| panic!("{command:?}: {error}; {}: {stderr}", output.status));
    Run {
        judged,
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr,
    }
}

fn lost(name: &str) -> String {
    let built = compile(
        &format!("fixtures/lost/{name}.c"),
        &format!("lost-{name}"),
        &["-O1"],
    );
    built.to_str().expect("the path is UTF-8").to_owned()
}

fn sum(bytes: u64, blocks: u64) -> Result<Lost, String> {
    Ok(Lost { bytes, blocks })
}

/// What each process lost.
fn sums(run: &Run) -> Vec<Result<Lost, String>> {
    let processes = run.judged.processes.iter().cloned();
    processes.map(|one| one.map(|one| one.lost())).collect()
}

#[track_caller]
fn assert_one_verdict(runs: u32) {
    let movers = lost("movers");
    for number in 0..runs {
        let run = judge(&[&movers]);
        assert_eq!(sums(&run), [sum(1000, 10)], "run {number}: {}", run.stderr);
    }
}

#[test]
#[ignore = "memleak has no --lost yet"]
fn threads_that_move_pointers_all_the_time_get_one_verdict() {
    assert_one_verdict(20);
}

#[test]
#[ignore = "takes minutes: make test-long"]
fn threads_that_move_pointers_all_the_time_get_one_verdict_in_200_runs() {
    assert_one_verdict(200);
}

#[test]
#[ignore = "memleak has no --lost yet"]
fn a_clock_that_is_armed_at_the_end_never_fires() {
    let alarms = lost("alarms");
    for case in [
        "real",
        "real_handled",
        "profiling",
        "profiling_handled",
        "posix_handled",
        "limit",
    ] {
        for _ in 0..5 {
            let run = judge(&[&alarms, case]);
            assert_eq!(run.judged.end, End::Exit(5), "{case}: {}", run.stderr);
            assert_eq!(run.stdout, "", "{case}");
            let verdict = &sums(&run)[0];
            let allowed = [sum(100, 1), Err("timer".into()), Err("signal".into())];
            assert!(allowed.contains(verdict), "{case}: {verdict:?}");
        }
    }
}

#[test]
#[ignore = "memleak has no --lost yet"]
fn a_reader_waits_for_a_writer_that_is_held() {
    let ends = lost("ends");
    let run = judge(&["sh", "-c", "(\"$0\" exits; echo $?) | cat; :", &ends]);
    assert_eq!((run.judged.end, run.stdout.trim()), (End::Exit(0), "3"));
    let sums = sums(&run);
    assert!(sums.contains(&sum(748, 3)), "{sums:?}");
    assert!(sums.iter().all(Result::is_ok), "{sums:?}");
}

#[test]
#[ignore = "memleak has no --lost yet"]
fn a_process_with_pid_1_in_a_namespace_is_judged() {
    let ends = lost("ends");
    let run = judge(&["unshare", "--pid", "--fork", "--mount-proc", &ends, "exits"]);
    assert_eq!(run.judged.end, End::Exit(3), "{}", run.stderr);
    assert!(sums(&run).contains(&sum(748, 3)), "{:?}", sums(&run));
}

#[test]
#[ignore = "memleak has no --lost yet"]
fn a_traced_process_is_judged_and_its_tracer_sees_the_same() {
    let ends = lost("ends");
    let run = judge(&["strace", "-f", "-o", "/dev/null", &ends, "exits"]);
    assert_eq!(run.judged.end, End::Exit(3), "{}", run.stderr);
    assert!(sums(&run).contains(&sum(748, 3)), "{:?}", sums(&run));
    let gdb = [
        "gdb", "-nx", "-q", "-batch", "-ex", "run", "--args", &ends, "exits",
    ];
    let run = judge(&gdb);
    assert!(run.stdout.contains("exited with code 03"), "{}", run.stdout);
    assert!(sums(&run).contains(&sum(748, 3)), "{:?}", sums(&run));
}

#[test]
#[ignore = "memleak has no --lost yet"]
fn children_of_servers_that_fork_lose_nothing_that_they_inherited() {
    let script = "import multiprocessing as m, os\n\
                  kept = [bytes(i) for i in range(1000)]\n\
                  with m.get_context('fork').Pool(4) as pool:\n\
                  \x20   assert sum(pool.map(len, kept)) == 499500\n";
    let run = judge(&[
        "/usr/bin/env",
        "PYTHONMALLOC=malloc",
        "/usr/bin/python3",
        "-c",
        script,
    ]);
    assert_eq!(run.judged.end, End::Exit(0), "{}", run.stderr);
    for lost in sums(&run).into_iter().flatten() {
        assert_eq!(Ok(lost), sum(0, 0));
    }
}

#[test]
#[ignore = "memleak has no --lost yet"]
fn sixty_four_processes_that_end_together_are_all_judged() {
    let ends = lost("ends");
    let script = "i=0; while [ $i -lt 64 ]; do i=$((i + 1)); \"$0\" exits & done; wait";
    let run = judge(&["sh", "-c", script, &ends]);
    let sums = sums(&run);
    let equal = sums.iter().filter(|one| **one == sum(748, 3)).count();
    assert_eq!(equal, 64, "{sums:?}");
}
