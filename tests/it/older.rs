//! The programs for kernels before 6.1 count as the others do. They work on newer ones, too, so they are tried on
//! whatever kernel is here.

use std::process::Command;

use crate::common::expected::{assert_counted, case};
use crate::common::side_by_side::side_by_side;
use crate::common::switches::switch;
use crate::common::{Job, code};
use memleak::os::release;

const MEMLEAK: &str = env!("CARGO_BIN_EXE_memleak");

fn separate() -> [String; 1] {
    [switch("method", "separate")]
}

/// Each for something that these programs do in another way.
#[test]
fn the_programs_for_older_kernels_count_the_same() {
    let names = [
        // Each function of the family has programs of its own; nothing of it is in another's.
        "whole_family",
        "realloc_forms",
        // Of tasks that leave a heap at one time, one ends it.
        "exits_under_waiting_threads",
        "threads_free_each_other",
        "clone_vm_child",
        "leader_leaves_first",
        "exec_from_thread",
        // Ids of heaps come from two CPUs.
        "fork_storm",
        "forks_in_threads",
        "two_heaps_one_address",
        "exec_chain",
        "jumps_out_of_calloc altstack",
    ];
    side_by_side(names, |name| assert_counted(name, &separate()));
}

#[test]
fn a_peak_that_threads_share_is_unknown_there_and_any_other_is_not() {
    let peaks = [
        ("frees_all", Some(1_000_000)),
        ("leaks_2mb", Some(2_000_000)),
        ("one_idle_thread", None),
        ("threads_free_each_other", None),
    ];
    side_by_side(peaks, |(name, peak)| {
        let report = case(name).job.options(separate()).run();
        report.assert_complete();
        assert_eq!(report.only_row().peak_live_bytes, peak, "{name}");
    });
}

/// Where the kernel counts programs and tables as locked memory: until 5.11.
fn counts_locked_memory() -> bool {
    let version = release::version(&release::release());
    version.expect("a release begins with a version") < (5, 11)
}

const LIMIT: [&str; 2] = ["prlimit", "--memlock=65536:65536"];

#[test]
fn a_limit_of_locked_memory_is_raised_for_memleak_and_kept_for_the_command() {
    let report = Job::shell("ulimit -Sl; ulimit -Hl")
        .options(separate())
        .under(&LIMIT)
        .run();
    assert_eq!(code(report.status), 0, "{}", report.stderr);
    report.assert_complete();
    assert_eq!(report.stdout, "64\n64\n");
}

#[test]
fn a_limit_of_locked_memory_that_cannot_be_raised_is_named_where_it_counts() {
    let cannot = ["setpriv", "--bounding-set=-sys_resource"];
    let wrapper = [&LIMIT[..], &cannot].concat();
    if !counts_locked_memory() {
        // The limit is there, memleak cannot raise it, and it counts for nothing.
        let report = Job::shell("ulimit -Sl; ulimit -Hl; exit 4")
            .options(separate())
            .under(&wrapper)
            .run();
        assert_eq!(code(report.status), 4, "{}", report.stderr);
        report.assert_complete();
        assert_eq!(report.stdout, "64\n64\n");
        return;
    }
    let mut memleak = Command::new(wrapper[0]);
    memleak
        .args(&wrapper[1..])
        .args([MEMLEAK, "run"])
        .args(separate())
        .args(["--", "true"]);
    let output = memleak.output().expect("prlimit can be started");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(125), "{said}");
    for word in ["64 kB", "ulimit -Hl"] {
        assert!(said.contains(word), "{said}");
    }
    assert_eq!(said.lines().count(), 1, "{said}");
}
