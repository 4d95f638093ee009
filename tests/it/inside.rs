//! `--probes=inside`: a copy of the C library counts by itself, without traps. The counts are those of probes. What the
//! copy does not reach keeps probes. What cannot be counted so is refused.
//!
//! `MEMLEAK_TEST_PROBES=inside cargo test --test it launch::` runs the tests of another module so.

use std::path::Path;
use std::process::Command;

use crate::common::expected::{assert_counted, assert_peaks, cases, counts};
use crate::common::fixtures::compiled_in;
use crate::common::newcomers::{Kind, Place, mapped};
use crate::common::side_by_side::side_by_side;
use crate::common::switches::switch;
use crate::common::{Counts, Job, Losses, Report, Row, code, compare_inside, compile, fixture};

pub const INSIDE: &str = "--probes=inside";

fn inside() -> Vec<String> {
    vec![INSIDE.to_owned()]
}

/// Probes count the same calls, and a row is complete only if both have the same counts.
fn compared() -> Vec<String> {
    let mut options = inside();
    options.push(compare_inside());
    options
}

fn counted_by(row: &Row) -> Vec<&str> {
    row.counted_by.iter().map(String::as_str).collect()
}

// ---- the code ------------------------------------------------------------------------------------------

#[test]
fn the_code_passes_its_own_tests() {
    let directory = tempfile::tempdir().unwrap();
    let program = directory.path().join("test");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/inside/test.c");
    for compiler in ["clang", "cc"] {
        let status = Command::new(compiler)
            .args(["-O2", "-g", "-fno-builtin", "-Wall", "-Wextra", "-Werror"])
            .args(["-pthread", "-o"])
            .args([&program, &source])
            .status();
        assert!(status.unwrap().success());
        let output = Command::new(&program).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{compiler}: {said}");
    }
}

// ---- the counts ----------------------------------------------------------------------------------------

#[test]
fn the_counts_are_those_of_probes() {
    // A call that is jumped out of is another loss inside. `make test-long` has all cases.
    let cases = cases().into_iter();
    let without_losses = cases.filter(|case| case.losses == Losses::default());
    let names: Vec<_> = without_losses.map(|case| case.name).step_by(4).collect();
    assert!(names.len() > 8, "{names:?}");
    side_by_side(names, |name| assert_counted(name, &inside()));
}

#[track_caller]
pub fn assert_both_count_the_same(report: &Report) {
    assert_eq!(code(report.status), 0, "{}", report.stderr);
    report.assert_complete();
    let both = |row: &&Row| counted_by(row) == ["uprobes", "inside"];
    assert!(report.rows.iter().filter(both).count() > 0);
    let allocates = report.rows.iter().filter(|row| row.counts.alloc_count > 0);
    assert!(
        allocates.into_iter().all(|row| both(&row)),
        "{:?}",
        report.rows
    );
}

#[test]
fn in_one_run_probes_count_the_same_calls() {
    let scripts = [
        "ls -lR /etc | sort | cat > /dev/null; x=$(date)",
        "perl -e 'my %h; $h{$_} = [1 .. 5] for 1 .. 2000'",
        "echo 'int main(void) { return 0; }' | gcc -O2 -x c -c -o /dev/null -",
    ];
    side_by_side(scripts, |script| {
        assert_both_count_the_same(&Job::shell(script).options(compared()).run());
    });
    let names = [
        "whole_family",
        "realloc_forms",
        "threads_free_each_other",
        "child_frees_inherited",
        "fork_storm 50",
    ];
    side_by_side(names, |name| {
        let mut words = name.split(' ');
        let fixture = words.next().unwrap();
        let arguments: Vec<_> = words.collect();
        let job = Job::fixture(fixture, &arguments).options(compared());
        assert_both_count_the_same(&job.run());
    });
}

/// In two runs, because the counter is an allocator of its own that calls the library's. A shell remembers its
/// environment, which has the counter in one of them, so it is left out.
#[test]
fn the_counts_are_those_of_the_interposing_counter() {
    let script =
        "ls -lR /etc > /dev/null; seq 3000 | sort -rn > /dev/null; sed -n '$=' /etc/services; true";
    let job = Job::shell(script);
    let counts_of = |named: Vec<(String, Counts)>| {
        let mut named: Vec<_> = named.into_iter().filter(|(comm, _)| comm != "sh").collect();
        named.sort();
        named
    };
    let (images, status, _) = job.count();
    assert!(status.success());
    let images = images.into_iter().map(|image| (image.comm, image.counts));
    let theirs = counts_of(images.collect());
    let report = job.options(inside()).run();
    report.assert_complete();
    let rows = report.rows.into_iter().map(|row| (row.comm, row.counts));
    assert_eq!(counts_of(rows.collect()), theirs);
    assert_eq!(theirs.len(), 4, "{theirs:?}");
}

#[test]
fn the_inner_names_of_the_allocator_are_counted() {
    side_by_side([vec![], inside()], |options| {
        let report = Job::fixture("calls_inner_names", &[])
            .options(options)
            .run();
        report.assert_complete();
        assert_eq!(report.only_row().counts, counts(680, 6, 5, 300, 1));
    });
}

#[test]
fn forks_beside_threads_that_allocate_are_exact() {
    let job = Job::fixture("forks_beside_busy_threads", &[]).options(inside());
    let report = job.run();
    assert_eq!(code(report.status), 0, "{}", report.stderr);
    report.assert_complete();
    let blocks: u64 = report.stdout.trim().parse().unwrap();
    let mut expected = vec![counts(24 * blocks, blocks, blocks, 0, 0).threads(4, 4)];
    expected.extend((0..50).map(|c| counts(150 + c, 2, 1, 100 + c, 1)));
    let mut found: Vec<_> = report.rows.iter().map(|row| row.counts).collect();
    expected.sort();
    found.sort();
    assert_eq!(found, expected);
}

/// A program with a C library of its own in another root, one with a preloaded allocator, and one that opens one.
#[test]
fn what_the_copy_does_not_reach_has_probes() {
    let place = Place::new();
    for (from, to) in [
        (mapped("libc.so."), "root/lib/x86_64-linux-gnu/libc.so.6"),
        (mapped("ld-"), "root/lib64/ld-linux-x86-64.so.2"),
        (
            Kind::Dynamic.build("allocates_from_start_to_end"),
            "root/program",
        ),
    ] {
        place.directory(Path::new(to).parent().unwrap().to_str().unwrap());
        place.copy(&from, to);
    }
    let root = place.path("root");
    let script = format!("chroot {} /program 1000; true", root.display());
    let in_root = Job::shell(&script);
    let preloads = Job::fixture("leaks_2mb", &[]).env("LD_PRELOAD", compiled_in("libjemalloc.so"));
    let bump = compile(
        "fixtures/bump_allocator.c",
        "libbump_allocator.so",
        &["-O1", "-shared", "-fPIC"],
    );
    let opens = ["malloc", bump.to_str().unwrap(), "3000"];
    let opens = Job::fixture("opens_libraries", &opens);
    let jobs = [
        (in_root, "program", &["uprobes"][..]),
        (preloads, "leaks_2mb", &["uprobes"]),
        (opens, "opens_libraries", &["uprobes", "inside"]),
    ];
    side_by_side(jobs, |(job, comm, by)| {
        let row = |option: &str| {
            let report = job.clone().options([option]).run();
            assert_eq!(code(report.status), 0, "{comm}: {}", report.stderr);
            report.assert_complete();
            let mut rows = report.rows.into_iter();
            let named = rows.find(|row| row.comm == comm && row.end == "exited");
            named.expect("a row of the program")
        };
        let inside = row(INSIDE);
        assert_eq!(counted_by(&inside), by, "{comm}");
        assert_eq!(inside.counts, row("--probes=private").counts, "{comm}");
    });
}

#[test]
fn a_row_says_by_what_it_was_counted() {
    let by = |job: Job| {
        let report = job.options(inside()).run();
        report.assert_complete();
        report.only_row().counted_by.clone()
    };
    assert_eq!(by(Job::fixture("leaks_2mb", &[])), ["inside"]);
    assert_eq!(by(Job::fixture("static_leak", &["100"])), ["uprobes"]);
    let probed = Job::fixture("leaks_2mb", &[]).run();
    assert_eq!(probed.only_row().counted_by, ["uprobes"]);
}

#[track_caller]
fn assert_uncovered(job: Job, why: &str) {
    let report = job.options(inside()).run();
    let row = report.rows.last().expect("a row");
    assert_eq!(row.uncovered.as_deref(), Some(why), "{row:?}");
    assert!(!row.complete && !report.summary.complete);
}

#[test]
fn a_pool_on_top_of_malloc_is_said() {
    let pool = format!(
        "{}:alloc=pool_alloc(_, size),free=pool_free(_, block)",
        fixture("pool").display()
    );
    let job = Job::fixture("pool", &[]).options(["--allocator", &pool]);
    assert_uncovered(job, "twice");
}

#[test]
fn a_second_copy_of_the_library_is_said() {
    // dlmopen brings it.
    let directory = tempfile::tempdir().unwrap();
    let source = "fixtures/library_that_allocates.c";
    let built = compile(source, "liballocates.so", &["-O1"]);
    let library = directory.path().join("liballocates.so");
    std::fs::copy(built, &library).unwrap();
    let library = library.to_str().unwrap();
    let job = Job::fixture("opens_libraries", &["newlm", library, "3000"]);
    assert_uncovered(job, "unread");
    // It goes again, while threads have used it.
    assert_uncovered(Job::fixture("opens_namespaces", &["30"]), "unread");
}

/// What a process does to its own counters spoils its own row only.
#[test]
fn counters_that_cannot_be_read_or_make_no_sense_are_said() {
    let leaks = fixture("leaks_2mb");
    let leaks = leaks.display();
    side_by_side(["unmap", "drop", "overwrite"], |how| {
        let spoils = fixture("spoils_its_counters");
        let script = format!("{leaks} & {} {how} & wait; exec {leaks}", spoils.display());
        let report = Job::shell(&script).options(inside()).run();
        assert_eq!(code(report.status), 0, "{how}: {}", report.stderr);
        assert!(!report.summary.complete, "{how}");
        let (mut spoiled, mut exact) = (0, 0);
        for row in &report.rows {
            if row.comm == "spoils_its_coun" && row.end == "exited" {
                assert_eq!(row.uncovered.as_deref(), Some("unread"), "{how}: {row:?}");
                assert_eq!(row.counts.alloc_count, 0, "{how}: {row:?}");
                spoiled += 1;
            } else {
                assert!(row.complete && row.uncovered.is_none(), "{how}: {row:?}");
            }
            if row.comm == "leaks_2mb" {
                assert_eq!(row.counts, counts(2_000_000, 1, 0, 2_000_000, 1));
                exact += 1;
            }
        }
        assert_eq!((spoiled, exact), (1, 2), "{how}: {:?}", report.rows);
    });
}

/// A filter lets no mmap(2) through, so there is no memory for the sizes of blocks beyond the first 32 MB.
#[test]
fn blocks_whose_size_has_no_room_are_said_and_bound_the_leak() {
    let job = Job::fixture("filters_calls", &["mmap", "60000"]).options(inside());
    let report = job.run();
    assert_eq!(code(report.status), 0, "{}", report.stderr);
    let row = report.only_row();
    let (sums, losses) = (row.counts, row.losses);
    let exact = (sums.total_allocs_bytes, sums.alloc_count, sums.free_count);
    assert_eq!(exact, (60_000_000, 60_000, 30_000), "{row:?}");
    assert_eq!((sums.failed_allocs, sums.unknown_frees), (0, 0), "{row:?}");
    let (blocks, bytes) = (losses.blocks_not_recorded, losses.bytes_not_recorded);
    assert!((20_000..40_000).contains(&blocks), "{losses:?}");
    assert_eq!(bytes, blocks * 1000, "{losses:?}");
    let bounds = sums.leaked_bytes..=sums.leaked_bytes + bytes;
    assert!(bounds.contains(&30_000_000), "{row:?}");
    assert!(!row.complete && row.uncovered.is_none(), "{row:?}");
    // What a fork would not wipe is not believed.
    assert_uncovered(Job::fixture("filters_calls", &["madvise", "10"]), "unread");
}

#[test]
fn only_the_peak_of_several_threads_is_unknown() {
    assert_peaks(&inside());
}

#[test]
fn a_kernel_that_tells_too_late_is_said() {
    let output = Command::new(env!("CARGO_BIN_EXE_memleak"))
        .args(["run", INSIDE, &switch("method", "separate"), "--", "true"])
        .output()
        .unwrap();
    assert_eq!(code(output.status), 125);
    let said = String::from_utf8_lossy(&output.stderr);
    let expected = "memleak: --probes=inside needs Linux 6.16: older kernels tell of the end of a process when its \
                    memory, and with it what was counted there, has gone. Use --probes=private\n";
    assert_eq!(said, expected);
}

#[test]
fn a_jump_out_of_a_call_is_said() {
    let report = Job::fixture("jumps_out_of_calloc", &["stack"])
        .options(inside())
        .run();
    let row = report.only_row();
    assert!(!row.complete && row.losses.calls_in_flight > 0, "{row:?}");
}

#[test]
fn killed_processes_lose_at_most_the_call_in_flight() {
    assert_killed(60);
}

/// Kills so many processes while they allocate. Fails if one of them lost more than a call. Returns how many were in the
/// middle of a call.
pub fn assert_killed(kills: usize) -> usize {
    const SCRIPT: &str = r#"
        mkfifo told && exec 3<> told
        for i in $(seq "$1"); do
            rm -f begun
            "$0" 100000000 10 <&3 > begun & pid=$!
            until [ -s begun ]; do sleep 0.001; done
            sleep 0.00$((i % 7))1
            kill -9 $pid
            wait $pid 2> /dev/null
        done
        exit 0"#;
    let directory = tempfile::tempdir().unwrap();
    let program = fixture("works_until_told");
    let words = [program.to_str().unwrap(), &kills.to_string()];
    let job = Job::new("sh", [&["-c", SCRIPT][..], &words].concat());
    let job = job.in_directory(directory.path());
    let report = job.options(inside()).run();
    let killed = report
        .rows
        .iter()
        .filter(|row| row.signal == Some(libc::SIGKILL));
    let (mut counted, mut in_flight) = (0, 0);
    for row in killed {
        assert_eq!(row.uncovered, None, "{row:?}");
        assert!(row.losses.calls_in_flight <= 1, "{row:?}");
        let Row { counts, .. } = row;
        let frees = counts.alloc_count - counts.leaked_blocks;
        assert_eq!(frees, counts.free_count, "{row:?}");
        counted += usize::from(counts.alloc_count > 0);
        in_flight += usize::from(row.losses.calls_in_flight > 0);
    }
    assert_eq!(counted, kills);
    in_flight
}

#[test]
fn a_process_that_still_runs_is_read() {
    const SCRIPT: &str = r#"
        mkfifo told && exec 3<> told
        "$0" 1000 <&3 > said 2> /dev/null &
        printf x >&3
        until grep -q more said; do sleep 0.01; done"#;
    let directory = tempfile::tempdir().unwrap();
    let program = fixture("grows_by_line");
    let job = Job::new("sh", ["-c", SCRIPT, program.to_str().unwrap()]);
    let report = job.in_directory(directory.path()).options(inside()).run();
    let running: Vec<_> = report
        .rows
        .iter()
        .filter(|row| row.end == "running")
        .collect();
    let [row] = running[..] else {
        panic!("{:?}", report.rows);
    };
    let pid = nix::unistd::Pid::from_raw(row.pid.cast_signed());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    assert_eq!(row.counts, counts(1000, 1, 0, 1000, 1));
    assert!(row.complete && counted_by(row) == ["inside"], "{row:?}");
}

// ---- what was lost -------------------------------------------------------------------------------------

/// The verdicts on all processes of a command that ended, with their counts.
#[track_caller]
fn verdicts(command: &str, options: &[String]) -> Vec<String> {
    let job = Job::shell(command).options(["--lost=always"]);
    let report = job.options(options).run();
    report.assert_complete();
    let ended = report.rows.iter().filter(|row| row.end == "exited");
    let mut verdicts: Vec<_> = ended
        .map(|row| {
            assert!(row.reach.is_some(), "{command}: {row:?}");
            format!("{} {:?} {:?}", row.comm, row.counts, row.reach)
        })
        .collect();
    verdicts.sort();
    verdicts
}

/// The blocks that processes remember are those that probes have recorded, or there is no verdict.
#[test]
fn what_was_lost_is_told_by_the_same_blocks() {
    let scripts = [
        "ls -lR /etc | sort > /dev/null",
        "echo 'int main(void) { return 0; }' | gcc -O2 -x c -c -o /dev/null -",
        "python3 -c 'import json, decimal, email.message'",
    ];
    side_by_side(scripts, |script| {
        assert!(!verdicts(script, &compared()).is_empty());
    });
}

#[test]
fn the_verdicts_are_those_of_probes() {
    let fixtures = ["loses_blocks", "keeps_blocks", "frees_what_points"];
    let fixtures = fixtures.map(|name| format!("{}; true", fixture(name).display()));
    let perl = "PERL_HASH_SEED=0 perl -e 'my %h; $h{$_} = [1 .. 5] for 1 .. 2000'";
    let commands = fixtures.iter().map(String::as_str).chain([perl]);
    side_by_side(commands, |command| {
        assert_eq!(verdicts(command, &inside()), verdicts(command, &[]));
    });
}

#[test]
fn a_gate_on_what_is_lost_judges_what_is_counted_inside() {
    for (limit, status) in [("99KB", 23), ("2MB", 0)] {
        let gate = format!("--fail-on-lost={limit}");
        let job = Job::fixture("leaks_2mb", &[]).options([INSIDE, &gate]);
        assert_eq!(code(job.run().status), status, "{limit}");
    }
}

/// A process that ended unread may have lost all that it had. So others are read where the rest decides.
#[test]
fn what_a_process_had_that_ended_unread_counts_for_later_ones() {
    let keeps = Job::fixture("keeps_blocks", &[]).run();
    let kept = keeps.only_row().counts.leaked_bytes;
    let script = format!(
        "{} raw 0; {}; true",
        fixture("ends").display(),
        fixture("keeps_blocks").display()
    );
    // The first has 1,000 bytes. All that the second has is reachable.
    let gate = format!("--fail-on-total-lost={}", kept + 500);
    let job = Job::shell(&script).options(["--lost=never", &gate]);
    side_by_side([vec![], inside()], |options| {
        let report = job.clone().options(&options).run();
        assert_eq!(code(report.status), 0, "{options:?} {}", report.stderr);
    });
}

// ---- what is refused -----------------------------------------------------------------------------------

#[test]
fn what_counting_inside_cannot_do_is_refused_before_the_command_starts() {
    for option in [
        "--stacks",
        "--suppressions=/dev/null",
        "--gen-suppressions",
        "--only-stack=main",
    ] {
        let memleak = env!("CARGO_BIN_EXE_memleak");
        let output = Command::new(memleak)
            .args(["run", INSIDE, option, "--", "echo", "started"])
            .output()
            .unwrap();
        assert_eq!(code(output.status), 125);
        assert_eq!(String::from_utf8_lossy(&output.stdout), "");
        let name = option.split('=').next().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        let expected = format!("memleak: --probes=inside cannot do {name}");
        assert!(said.starts_with(&expected), "{said}");
    }
}
