//! The launcher's cases that depend on counts: gates, and images counted from their first instruction. Their numbers
//! come from the launcher's list of cases.

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::common;
use crate::common::expected::case;
use crate::common::probes::run_words;
use crate::common::proc::{children, within};
use crate::common::{Counts, Job, TIMEOUT, compile, fixture};
use nix::unistd::Pid;
use tempfile::TempDir;

const MEMLEAK: &str = env!("CARGO_BIN_EXE_memleak");

fn verdict(report: &common::Report) -> &str {
    &report
        .summary
        .gate
        .as_ref()
        .expect("a gate was asked for")
        .verdict
}

#[test]
fn case_04_a_bad_option_keeps_the_command_from_starting() {
    let directory = TempDir::new().unwrap();
    let touched = directory.path().join("touched");
    let status = Command::new(MEMLEAK)
        .args(["run", "--fail-on-leek", "1MB", "--", "touch"])
        .arg(&touched)
        .stderr(Stdio::null())
        .status()
        .unwrap();
    assert_eq!(status.code(), Some(125));
    assert!(!touched.exists());
}

#[test]
fn case_12_a_leak_over_the_gate_ends_with_23() {
    let report = Job::fixture("leaks_2mb", &[])
        .options(["--fail-on-leak", "1MB"])
        .run();
    assert_eq!(report.status.code(), Some(23));
    assert_eq!(verdict(&report), "failed");
}

#[test]
fn case_13_a_leak_under_the_gate_passes() {
    // The gate fails only for more than the limit. A leak of exactly the limit passes.
    for limit in ["2MB", "3MB"] {
        let report = Job::fixture("leaks_2mb", &[])
            .options(["--fail-on-leak", limit])
            .run();
        assert_eq!(report.status.code(), Some(0), "{limit}");
        assert_eq!(verdict(&report), "passed", "{limit}");
    }
}

#[test]
fn what_was_never_freed_bounds_what_is_lost_without_a_scan() {
    for (option, limit, code, verdict_is) in [
        ("--fail-on-lost", "2MB", 0, "passed"),
        ("--fail-on-total-lost", "3MB", 0, "passed"),
        ("--fail-on-lost", "18446744073709551615", 0, "passed"),
    ] {
        let report = Job::fixture("leaks_2mb", &[])
            .options(["--lost=never", option, limit])
            .run();
        assert_eq!(report.status.code(), Some(code), "{option} {limit}");
        assert_eq!(verdict(&report), verdict_is, "{option} {limit}");
    }
}

#[test]
fn what_a_killed_process_lost_is_unknown_if_it_may_exceed_the_limit() {
    // A shell never frees what it holds. Only the one that is killed is judged.
    let job = Job::shell("bash -c 'kill -KILL $$'; true").options(["--gate-comm", "bash"]);
    for (limit, code, verdict_is) in [("0", 125, "unknown"), ("1GB", 0, "passed")] {
        for option in ["--fail-on-lost", "--fail-on-total-lost"] {
            let report = job.clone().options([option, limit]).run();
            assert_eq!(report.status.code(), Some(code), "{option} {limit}");
            assert_eq!(verdict(&report), verdict_is, "{option} {limit}");
        }
    }
}

#[test]
fn case_14_the_commands_exit_code_takes_precedence_over_the_gates() {
    let job = Job::shell(&format!("{}; exit 3", fixture("leaks_2mb").display()));
    let report = job.clone().options(["--fail-on-leak", "1MB"]).run();
    assert_eq!(report.status.code(), Some(3));
    assert_eq!(verdict(&report), "failed");
    let report = job
        .options(["--fail-on-leak", "1MB", "--leak-exitcode-wins"])
        .run();
    assert_eq!(report.status.code(), Some(23));
}

#[test]
fn case_15_a_signal_takes_precedence_over_the_gate() {
    let options = ["--fail-on-leak", "1kB", "--leak-exitcode-wins"];
    let report = Job::fixture("dies_of_signal", &["abort"])
        .options(options)
        .run();
    assert_eq!(report.status.signal(), Some(libc::SIGABRT));
    assert_eq!(verdict(&report), "failed");
}

#[test]
fn case_16_losses_make_a_gate_unknown_and_are_reported_without_a_gate() {
    let job = &case("jumps_out_of_calloc stack").job;
    let report = job.clone().options(["--fail-on-leak", "1GB"]).run();
    assert_eq!(report.status.code(), Some(125));
    assert_eq!(verdict(&report), "unknown");
    let output = Command::new(MEMLEAK)
        .args(run_words())
        .arg("--")
        .arg(fixture("jumps_out_of_calloc"))
        .arg("stack")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(said.contains("incomplete: 200 missed"), "{said}");
}

/// The command is held until all probes are attached. Another test covers the time after that.
#[test]
fn case_31_a_memleak_killed_at_any_moment_leaves_no_process_held() {
    const ROUNDS: u32 = 20;
    let directory = TempDir::new().unwrap();
    let done = |round: u32| directory.path().join(round.to_string());
    let start = |round| {
        Command::new(MEMLEAK)
            .args(run_words())
            .args(["-q", "--", "sh", "-c", "sleep 0.1; : >\"$0\""])
            .arg(done(round))
            .spawn()
            .unwrap()
    };
    // Measures an undisturbed run, because some kernels and some machines are slow.
    let began = Instant::now();
    assert!(start(ROUNDS).wait().unwrap().success());
    let whole = began.elapsed();
    let patience = whole.max(Duration::from_secs(1));
    for round in 0..ROUNDS {
        let mut memleak = start(round);
        let memleaks = Pid::from_raw(memleak.id().cast_signed());
        // A process that has ended has no command line.
        let is_held = |child: Pid| {
            std::fs::read(format!("/proc/{child}/cmdline"))
                .is_ok_and(|line| line.starts_with(MEMLEAK.as_bytes()))
        };
        // The delays grow up to twice the time of the undisturbed run. The last memleak has started its command.
        let part = f64::from(round) / f64::from(ROUNDS - 1);
        sleep(whole.mul_f64(2.0 * part * part));
        let is_last = round == ROUNDS - 1;
        let runs = || children(memleaks).into_iter().any(|child| !is_held(child));
        let starts = || done(round).exists() || runs();
        assert!(!is_last || within(*TIMEOUT, starts), "it never starts");
        let children = children(memleaks);
        memleak.kill().unwrap();
        memleak.wait().unwrap();
        // Soon the children must run on or be gone.
        let go = || !children.iter().any(|&child| is_held(child));
        assert!(
            within(patience, go),
            "a child is still held after round {round}"
        );
    }
    let runs_on = || done(ROUNDS - 1).exists();
    assert!(within(*TIMEOUT, runs_on), "the last command does not end");
}

/// Checks that the constructor's block is counted on top of the C library's own allocations at the start.
fn constructors_block(program: &Path) {
    let [less, more] = ["500", "700"].map(|bytes| {
        let report = Job::new(program, [bytes]).run();
        report.assert_complete();
        report.only_row().counts
    });
    let expected = Counts {
        total_allocs_bytes: less.total_allocs_bytes + 200,
        leaked_bytes: less.leaked_bytes + 200,
        ..less
    };
    assert_eq!(more, expected);
    assert!(less.alloc_count >= 1 && less.leaked_bytes >= 500);
}

#[test]
fn case_35_a_constructor_of_a_glibc_program_is_counted() {
    constructors_block(&fixture("constructor_mallocs"));
}

#[test]
fn case_35_a_constructor_of_a_static_program_is_counted() {
    let source = "fixtures/constructor_mallocs.c";
    constructors_block(&compile(source, "constructor_mallocs_static", &["-static"]));
    constructors_block(&compile(
        source,
        "constructor_mallocs_static_pie",
        &["-static-pie"],
    ));
}

#[test]
fn case_35_a_constructor_of_a_musl_program_is_counted() {
    let directory = TempDir::new().unwrap();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/constructor_mallocs.c");
    for flags in [&[][..], &["-static"]] {
        let program = directory.path().join("constructor_mallocs");
        let status = Command::new("musl-gcc")
            .args(["-fno-builtin", "-o"])
            .args([&program, &source])
            .args(flags)
            .status()
            .expect("this test needs musl-gcc: `make install-deps`");
        assert!(status.success());
        let report = Job::new(&program, [""; 0]).run();
        report.assert_complete();
        let counts = report.only_row().counts;
        assert_eq!(
            (counts.alloc_count, counts.leaked_bytes),
            (1, 123),
            "{flags:?}"
        );
    }
}

#[test]
fn case_36_a_forked_child_has_its_own_row_and_the_summary_adds_both() {
    let counted = Job::fixture("fork_1000_50", &[]).run_counted();
    counted.assert_equal_counts();
    let mut leaks: Vec<_> = counted
        .report
        .rows
        .iter()
        .map(|row| row.counts.leaked_bytes)
        .collect();
    leaks.sort();
    assert_eq!(leaks, [50, 1000]);
    assert_eq!(counted.report.summary.leaked_bytes, 1050);
}

#[test]
fn case_37_a_thousand_vforks_leave_one_exact_row_of_the_parent() {
    let report = Job::fixture("vforks_many", &["1000"]).run();
    report.assert_complete();
    let counts = report.only_row().counts;
    assert_eq!((counts.alloc_count, counts.leaked_bytes), (1, 1_000_000));
}

/// A run with a gate and -q. Returns its exit code and all that was said.
fn quiet_gate(options: &[&str], command: &[&str], directory: &Path) -> (Option<i32>, String) {
    let output = Command::new(MEMLEAK)
        .args(run_words())
        .args(["-q", "--fail-on-leak", "100"])
        .args(options)
        .arg("--")
        .args(command)
        .current_dir(directory)
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    (output.status.code(), said)
}

#[test]
fn a_gate_that_judged_nobody_ends_with_125_and_names_whom_there_was() {
    let directory = TempDir::new().unwrap();
    let script = directory.path().join("my_script.py");
    common::files::write_script(&script, "#!/bin/sh\nexit 0\n", 0o755);
    let leaks = fixture("leaks_2mb");
    let leaks = leaks.to_str().unwrap();
    for (options, command, says) in [
        // A typing error.
        (
            &["--gate-comm", "leeks"][..],
            &[leaks][..],
            "--gate-comm 'leeks': there were leaks_2mb",
        ),
        // A script that is given to its interpreter.
        (
            &["--gate-comm", "my_script*"],
            &["sh", "./my_script.py"],
            "there were sh",
        ),
        (
            &["--gate-exe", "**/leeks"],
            &[leaks],
            &format!("there were {leaks}"),
        ),
        (
            &["--gate-comm", "!leaks*"],
            &[leaks],
            "all that ended are excluded: there were leaks_2mb",
        ),
    ] {
        let (code, said) = quiet_gate(options, command, directory.path());
        assert_eq!(code, Some(125), "{options:?}: {said}");
        assert!(
            said.starts_with("memleak: gate unknown: no process was judged"),
            "{said}"
        );
        assert!(said.trim_end().ends_with(says), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
    }
}

#[test]
fn paths_choose_who_is_judged_whatever_the_processes_are_called() {
    let directory = TempDir::new().unwrap();
    common::files::copy(fixture("leaks_2mb"), directory.path().join("app"));
    for (globs, code) in [
        (&["./**"][..], 23),
        (&["**/app"], 23),
        (&["./a*", "!**/b*"], 23),
        // The shell leaks more than 100 bytes, and is not below this directory.
        (&["./**", "!./app"], 125),
    ] {
        let options: Vec<&str> = globs.iter().flat_map(|glob| ["--gate-exe", glob]).collect();
        let (found, said) = quiet_gate(&options, &["sh", "-c", "./app; true"], directory.path());
        assert_eq!(found, Some(code), "{globs:?}: {said}");
    }
}

#[test]
fn a_failed_or_unknown_gate_says_so_on_standard_error_wherever_the_report_goes() {
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("report");
    let file = file.to_str().unwrap();
    let leaks = fixture("leaks_2mb");
    let leaks = leaks.to_str().unwrap();
    let json = format!("json={file}");
    let run = |options: &[&str], limit: &str| {
        let output = Command::new(MEMLEAK)
            .args(run_words())
            .args(["--fail-on-leak", limit])
            .args(options)
            .args(["--", leaks])
            .output()
            .unwrap();
        String::from_utf8(output.stderr).unwrap()
    };
    for options in [
        &["-o", file][..],
        &["-o", file, "-q"],
        &["-o", file, "--format", "json"],
        &["-o", &json],
        &["-o", &json, "-o", "/dev/null"],
        &["--format", "json"],
        &["--format", "csv", "-q"],
        &[],
        &["-q"],
    ] {
        let failed = run(options, "1MB");
        assert_eq!(
            failed.matches("gate failed: 1 of 1 process").count(),
            1,
            "{options:?}: {failed}"
        );
        let unknown = run(&[options, &["--gate-comm", "x"]].concat(), "1MB");
        assert_eq!(
            unknown.matches("gate unknown: no process").count(),
            1,
            "{options:?}: {unknown}"
        );
    }
    assert_eq!(run(&["-o", file], "1GB"), "");
    assert_eq!(run(&["-q", "-o", &json], "1GB"), "");
}

#[test]
fn a_symbolic_link_does_not_hide_a_program_from_a_gate() {
    let directory = TempDir::new().unwrap();
    let real = directory.path().join("real");
    std::fs::create_dir(&real).unwrap();
    common::files::copy(fixture("leaks_2mb"), real.join("app"));
    std::os::unix::fs::symlink(&real, directory.path().join("link")).unwrap();
    let app = directory.path().join("link/app");
    let glob = format!("{}/**", real.canonicalize().unwrap().display());
    let (code, said) = quiet_gate(&["--gate-exe", &glob], &[app.to_str().unwrap()], &real);
    assert_eq!(code, Some(23), "{said}");
}

#[test]
fn a_misspelt_pattern_beside_another_is_named_even_if_the_gate_passes() {
    let options = ["--gate-comm", "true", "--gate-comm", "typo"];
    let (code, said) = quiet_gate(&options, &["true"], Path::new("/"));
    let expected = "; no process matched --gate-comm 'typo'\n";
    assert!(code == Some(0) && said.ends_with(expected), "{said}");
}
