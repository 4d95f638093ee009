//! Processes that end, or still are, in their dynamic loader. They have allocated nothing, and a gate takes them as
//! such. A process that has left its loader is not taken so.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use memleak::find::functions::NAMES;
use tempfile::TempDir;

use crate::common::newcomers::mapped;
use crate::common::switches::switch;
use crate::common::{Job, Report, compile, fixture};

/// No leak comes near. Only an image that is not complete can spoil a gate of this size.
const GATE: [&str; 2] = ["--fail-on-leak", "1GB"];

#[track_caller]
fn assert_passed(report: &Report) {
    let incomplete: Vec<_> = report.rows.iter().filter(|row| !row.complete).collect();
    assert!(incomplete.is_empty(), "{incomplete:#?}");
    report.assert_complete();
    assert_eq!(report.status.code(), Some(0));
}

/// Starts a program many times, and kills it at moments from its exec to its first milliseconds.
fn killed(program: &Path) -> Job {
    let program = program.to_str().unwrap();
    Job::fixture("killed_while_starting", &["60", "25", program]).options(GATE)
}

#[test]
fn programs_that_are_killed_while_they_start_pass_a_gate() {
    let report = killed(Path::new("/bin/sleep")).run();
    assert_passed(&report);
    let sleeps = report.rows.iter().filter(|row| row.comm == "sleep");
    let (loading, started): (Vec<_>, Vec<_>) = sleeps.partition(|row| row.allocators.is_empty());
    // Both kinds must have been there, or the test shows nothing.
    assert!(!loading.is_empty(), "no process was killed in its loader");
    for row in loading {
        assert_eq!((row.counts.alloc_count, row.signal), (0, Some(9)));
    }
    assert!(
        !started.is_empty(),
        "every process was killed in its loader"
    );
}

#[test]
fn a_program_that_nobody_knows_passes_too_if_it_is_killed_while_it_is_held() {
    let directory = TempDir::new().unwrap();
    let program = directory.path().join("unknown");
    fs::copy("/bin/sleep", &program).unwrap();
    assert_passed(&killed(&program).run());
}

#[test]
fn where_only_loaders_hold_a_process_it_passes_too() {
    assert_passed(
        &killed(Path::new("/bin/sleep"))
            .options([switch("holds", "loader")])
            .run(),
    );
}

/// A program that needs a library which is not there.
fn lacks_a_library(directory: &Path) -> PathBuf {
    let script = r#"
        echo 'int here;' | cc -shared -x c - -o libgone.so
        echo 'int main(void) { return 0; }' | cc -x c - -o lacks -Wl,--no-as-needed -L. -lgone
        rm libgone.so"#;
    let made = Command::new("sh")
        .args(["-ec", script])
        .current_dir(directory)
        .status();
    assert!(made.unwrap().success());
    directory.join("lacks")
}

#[test]
fn a_program_that_lacks_a_library_has_allocated_nothing() {
    let directory = TempDir::new().unwrap();
    let program = lacks_a_library(directory.path());
    let script = format!("{}; true", program.display());
    let report = Job::shell(&script).options(GATE).run();
    assert_passed(&report);
    let row = report.rows.iter().find(|row| row.comm == "lacks").unwrap();
    assert_eq!((row.exit_code, row.counts.alloc_count), (Some(127), 0));
    assert!(report.stderr.contains("libgone.so"), "{}", report.stderr);
}

#[test]
fn a_program_that_lacks_a_library_has_allocated_nothing_by_multi_uprobes_either() {
    let directory = TempDir::new().unwrap();
    let program = lacks_a_library(directory.path());
    let script = format!("{}; true", program.display());
    let options = [switch("method", "multi")];
    assert_passed(&Job::shell(&script).options(GATE).options(options).run());
}

/// On kernels that do not hold a process, one probe in the loader is sufficient.
#[test]
fn a_program_that_lacks_a_library_has_allocated_nothing_on_kernels_without_holds_either() {
    let directory = TempDir::new().unwrap();
    let program = lacks_a_library(directory.path());
    let script = format!("{}; true", program.display());
    for method in ["multi", "perf-event"] {
        let options = [switch("method", method), switch("holds", "nowhere")];
        assert_passed(&Job::shell(&script).options(GATE).options(options).run());
    }
}

#[test]
fn a_shell_full_of_programs_that_are_killed_at_once_passes_a_gate() {
    let script = "for i in 1 2 3 4 5 6 7 8 9 10; do timeout 0.001 sleep 1; done; true";
    for _ in 0..5 {
        assert_passed(&Job::shell(script).options(GATE).run());
    }
}

#[test]
fn a_process_that_still_loads_when_the_command_ends_is_complete() {
    let directory = TempDir::new().unwrap();
    let pipe = directory.path().join("pipe");
    let library = directory.path().join("libslow.so");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    std::os::unix::fs::symlink(&pipe, &library).unwrap();
    // The loader waits for somebody who writes into the pipe that it takes for a library.
    let script = format!(
        "LD_PRELOAD={} sleep 100 >/dev/null 2>&1 & until grep -q sleep /proc/$!/comm; do :; done; \
         sleep 0.2; echo $!",
        library.display()
    );
    let report = Job::shell(&script).options(GATE).run();
    let waiting: i32 = report.stdout.trim().parse().unwrap();
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(waiting),
        nix::sys::signal::SIGKILL,
    )
    .unwrap();
    report.assert_complete();
    let row = report.rows.iter().find(|row| row.end == "running").unwrap();
    assert_eq!((row.counts.alloc_count, &row.allocators[..]), (0, &[][..]));
    assert_eq!(report.status.code(), Some(0));
}

/// A program of whose allocator nothing is known runs its own code, so nobody knows what that does.
#[test]
fn a_program_without_a_known_allocator_does_not_pass_once_it_has_left_its_loader() {
    let unknown = NAMES.map(|name| switch("without-probe", name));
    for (name, code) in [("allocates_nothing", 0), ("copies_loaders_data", 7)] {
        let job = Job::fixture(name, &[]).options(GATE);
        job.run().assert_complete();
        for method in ["session", "multi"] {
            let options = [switch("method", method)];
            let report = job.clone().options(options).options(&unknown).run();
            let row = report.only_row();
            let found = (row.uncovered.as_deref(), row.exit_code);
            let expected = (Some("no_allocator"), Some(code));
            assert_eq!(found, expected, "{name} {method}");
        }
    }
}

/// Without holds, a C library in another place gets no probes.
#[test]
fn without_holds_a_program_with_another_c_library_does_not_pass_either() {
    let directory = TempDir::new().unwrap();
    fs::copy(mapped("libc.so.6"), directory.path().join("libc.so.6")).unwrap();
    for name in ["allocates_nothing", "copies_loaders_data"] {
        for method in ["multi", "perf-event"] {
            let script = format!(
                "LD_LIBRARY_PATH={} {}; true",
                directory.path().display(),
                fixture(name).display()
            );
            let options = [switch("method", method), switch("holds", "nowhere")];
            let report = Job::shell(&script).options(options).run();
            let row = report
                .rows
                .iter()
                .find(|row| name.starts_with(&row.comm))
                .unwrap();
            assert_eq!(
                row.uncovered.as_deref(),
                Some("no_allocator"),
                "{name} {method}"
            );
        }
    }
}

#[test]
fn a_program_that_ends_in_a_constructor_is_counted() {
    let report = Job::new(fixture("constructor_mallocs"), ["500"])
        .options(GATE)
        .run();
    report.assert_complete();
    assert!(report.only_row().counts.leaked_bytes >= 500);
}

/// A static program has much of a loader in itself.
#[test]
fn a_static_program_that_looks_like_a_loader_is_counted() {
    let flags = [
        "-static-pie",
        "-Wl,-u,_dl_debug_state,--export-dynamic-symbol=_dl_debug_state",
    ];
    let program = compile("fixtures/leaks_2mb.c", "looks_like_a_loader", &flags);
    let report = Job::new(program, [""; 0])
        .options(["--fail-on-leak", "1MB"])
        .run();
    report.assert_complete();
    assert!(report.only_row().counts.leaked_bytes >= 2_000_000);
    assert_eq!(report.status.code(), Some(23));
}
