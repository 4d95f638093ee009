//! `--probes=inside` with what looks into processes or confines them: debuggers, tracers, sanitizers, limits, sandboxes,
//! core dumps, frozen groups. The command behaves as without memleak, and is counted.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::common::expected::counts;
use crate::common::group::Group;
use crate::common::newcomers::{Place, run};
use crate::common::proc::within;
use crate::common::side_by_side::side_by_side;
use crate::common::{Counts, Job, Report, Row, TIMEOUT, code, compile, fixture};
use crate::inside::INSIDE;

/// The counts of `confines_itself`.
fn confined() -> Counts {
    counts(100_010, 1001, 1, 100_000, 1000)
}

#[track_caller]
fn row_of<'a>(report: &'a Report, comm: &str) -> &'a Row {
    let named = report
        .rows
        .iter()
        .find(|row| row.comm == comm && row.end != "exec");
    named.unwrap_or_else(|| panic!("no row of {comm}: {:?}", report.rows))
}

/// Runs a job, which must be complete and exit with `exit`.
#[track_caller]
fn complete(job: &Job, exit: i32) -> Report {
    let report = job.clone().options([INSIDE]).run();
    assert_eq!(code(report.status), exit, "{}", report.stderr);
    report.assert_complete();
    report
}

#[test]
fn a_process_may_be_confined() {
    side_by_side(["seccomp", "landlock", "mlockall"], |how| {
        let report = complete(&Job::fixture("confines_itself", &[how]), 0);
        assert_eq!(report.only_row().counts, confined(), "{how}");
        assert_eq!(report.only_row().counted_by, ["inside"], "{how}");
    });
    // Every user can reach it.
    let place = Place::new();
    let leaks = place.copy(&fixture("leaks_2mb"), "leaks_2mb");
    let leaks = leaks.display();
    let scripts = [
        format!("ulimit -v 20000; {leaks}"),
        format!("ulimit -f 0; {leaks}"),
        format!("su -s /bin/sh nobody -c {leaks}"),
    ];
    side_by_side(scripts, |script| {
        let report = complete(&Job::shell(&script), 0);
        let row = row_of(&report, "leaks_2mb");
        assert_eq!(
            row.counts,
            counts(2_000_000, 1, 0, 2_000_000, 1),
            "{script}"
        );
        assert_eq!(row.counted_by, ["inside"], "{script}");
    });
}

/// The loader and the C library take less from such a program's environment (AT_SECURE).
#[test]
fn a_set_user_id_program_is_counted() {
    let place = Place::new();
    let leaks = place.copy(&fixture("leaks_2mb"), "leaks_2mb");
    fs::set_permissions(&leaks, fs::Permissions::from_mode(0o4755)).unwrap();
    let user = ["--reuid=65534", "--regid=65534", "--clear-groups"];
    let job = Job::new("setpriv", user.map(Path::new).into_iter().chain([&*leaks]));
    let report = complete(&job, 0);
    let row = row_of(&report, "leaks_2mb");
    assert_eq!(row.uid, 65534);
    assert_eq!(row.counts, counts(2_000_000, 1, 0, 2_000_000, 1));
    assert_eq!(row.counted_by, ["inside"]);
}

#[test]
fn strace_sees_the_same_signals_and_exits() {
    let directory = tempfile::tempdir().unwrap();
    let trace = directory.path().join("trace");
    let script = format!(
        "strace -f -o {} {}",
        trace.display(),
        fixture("leaks_2mb").display()
    );
    let report = complete(&Job::shell(&script), 0);
    let row = row_of(&report, "leaks_2mb");
    assert_eq!(row.counts, counts(2_000_000, 1, 0, 2_000_000, 1));
    let trace = fs::read_to_string(trace).unwrap();
    assert!(trace.contains("+++ exited with 0 +++"), "{trace}");
    assert!(!trace.contains("--- SIG"), "{trace}");
}

#[test]
fn gdb_stops_in_the_code_and_walks_through_it() {
    let script = format!(
        "gdb -nx -q -batch -ex 'set startup-with-shell off' -ex 'break main' -ex run -ex 'break malloc' -ex continue -ex continue \
         -ex 'delete 2' -ex 'break mmap' \
         -ex continue -ex bt -ex delete -ex continue {}",
        fixture("leaks_2mb").display()
    );
    let report = Job::shell(&script).options([INSIDE]).run();
    let said = &report.stdout;
    assert_eq!(code(report.status), 0, "{said}{}", report.stderr);
    let walked = said.lines().filter(|line| line.starts_with('#'));
    let walked: Vec<_> = walked.collect();
    let has = |name: &str| walked.iter().any(|line| line.contains(name));
    assert!(has("mmap") && has("malloc") && has("main"), "{said}");
    // A breakpoint on malloc is on the added code and on the library's own.
    let stops = said
        .lines()
        .filter(|line| line.starts_with("Breakpoint 2.") && line.contains("malloc"));
    assert_eq!(stops.count(), 2, "{said}");
    assert!(said.contains("exited normally"), "{said}");
    let row = row_of(&report, "leaks_2mb");
    assert_eq!(row.counts, counts(2_000_000, 1, 0, 2_000_000, 1));
}

#[test]
fn a_program_under_valgrind_dies_and_is_named() {
    let mut memleak = Command::new(env!("CARGO_BIN_EXE_memleak"));
    memleak.args(["run", INSIDE, "--", "valgrind", "-q"]);
    let output = memleak.arg(fixture("leaks_2mb")).output().unwrap();
    assert_eq!(code(output.status), 128 + libc::SIGTRAP);
    let stderr = String::from_utf8_lossy(&output.stderr);
    let said = "died of SIGTRAP under valgrind, which mistakes probes for the program's own";
    assert!(stderr.contains(said), "{stderr}");
}

#[test]
fn sanitizers_say_what_they_say_without() {
    side_by_side(["address", "leak"], |kind| {
        let flags = [&format!("-fsanitize={kind}"), "-g"];
        let program = compile("fixtures/leaks_2mb.c", &format!("leaks_2mb.{kind}"), &flags);
        let bare = Command::new(&program).output().unwrap();
        let said = String::from_utf8_lossy(&bare.stderr).into_owned();
        assert!(said.contains("2000000 byte(s) leaked"), "{said}");
        let job = Job::new::<&str>(&program, []);
        let report = complete(&job, code(bare.status));
        assert!(
            report.stderr.contains("2000000 byte(s) leaked"),
            "{}",
            report.stderr
        );
        // Its allocator has probes, as ever.
        let counts = report.only_row().counts;
        assert_eq!(
            counts,
            job.options(["--probes=private"]).run().only_row().counts
        );
    });
}

#[test]
fn a_core_dump_is_hardly_larger() {
    const ABORTS: &str = "import os; x = [bytes(50) for _ in range(200000)]; os.abort()";
    let size = |run: &mut Command| {
        let directory = tempfile::tempdir().unwrap();
        let status = run
            .args([
                "sh",
                "-c",
                "ulimit -c unlimited; exec python3 -c \"$0\"",
                ABORTS,
            ])
            .env("PYTHONMALLOC", "malloc")
            .current_dir(directory.path())
            .status()
            .unwrap();
        assert_eq!(code(status), 128 + libc::SIGABRT);
        let cores = fs::read_dir(directory.path()).unwrap();
        let cores = cores.map(|core| core.unwrap().metadata().unwrap().len());
        cores.max()
    };
    let pattern = fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap();
    let memleak = env!("CARGO_BIN_EXE_memleak");
    let bare = size(Command::new("env").args(["--"]));
    let inside = size(Command::new(memleak).args(["run", "-q", INSIDE, "--"]));
    if pattern.starts_with(['|', '/']) {
        println!("the dumps go elsewhere: {pattern}");
        assert_eq!((bare, inside), (None, None));
        return;
    }
    let (bare, inside) = (bare.unwrap(), inside.unwrap());
    println!("{bare} bytes, inside {inside}");
    let most = bare + (1 << 20);
    assert!(inside < most, "{bare} bytes, inside {inside}");
}

#[test]
fn a_process_may_be_frozen() {
    let group = Group::new();
    let directory = tempfile::tempdir().unwrap();
    let told = directory.path().join("told");
    run(Command::new("mkfifo").arg(&told));
    let enter = Group::enter(&group.path);
    let program = fixture("works_until_told");
    let script = format!("exec {} 100000000 10 < told > begun", program.display());
    let words: Vec<String> = enter[1..]
        .iter()
        .cloned()
        .chain(["sh".into(), "-c".into(), script])
        .collect();
    let job = Job::new(&enter[0], words).in_directory(directory.path());
    let running = job.options([INSIDE]).start();
    let pipe = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(&told)
        .unwrap();
    let begun = directory.path().join("begun");
    assert!(within(*TIMEOUT, || fs::metadata(&begun)
        .is_ok_and(|file| file.len() > 0)));
    let freeze = |how: &str| {
        fs::write(group.path.join("cgroup.freeze"), how).unwrap();
        let events = group.path.join("cgroup.events");
        let line = format!("frozen {how}");
        let is_so = || fs::read_to_string(&events).unwrap().contains(&line);
        assert!(within(*TIMEOUT, is_so), "not {line}");
    };
    for _ in 0..20 {
        freeze("1");
        std::thread::sleep(Duration::from_millis(10));
        freeze("0");
        std::thread::sleep(Duration::from_millis(10));
    }
    std::io::Write::write_all(&mut &pipe, b"xxxx").unwrap();
    let report = running.wait();
    assert_eq!(code(report.status), 0, "{}", report.stderr);
    report.assert_complete();
    let row = row_of(&report, "works_until_tol");
    assert_eq!(row.counted_by, ["inside"]);
    let said = fs::read_to_string(begun).unwrap();
    let last = said.lines().last().and_then(|line| line.split(' ').next());
    let blocks: u64 = last.and_then(|word| word.parse().ok()).unwrap();
    assert!(blocks > 1000, "{said}");
    let expected = counts(81 + 24 * blocks, 11 + blocks, blocks, 81, 11);
    assert_eq!(row.counts, expected);
}
