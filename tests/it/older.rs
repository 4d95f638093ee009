//! The BPF programs for kernels before 6.1 count the same as the others. They also work on newer kernels, so these
//! tests run them on any kernel.

use std::process::Command;

use crate::common::expected::{assert_counted, assert_peaks};
use crate::common::side_by_side::side_by_side;
use crate::common::switches::switch;
use crate::common::{Job, code};
use memleak::os::release;

const MEMLEAK: &str = env!("CARGO_BIN_EXE_memleak");

fn separate() -> [String; 1] {
    [switch("method", "separate")]
}

/// Each fixture tests something that these programs do in another way.
const COUNTED: [&str; 6] = [
    // Each allocator function has its own BPF programs, which share nothing with those of another function.
    "whole_family",
    // If several tasks leave a heap at the same time, exactly one of them ends the heap.
    "exits_under_waiting_threads",
    "exec_from_thread",
    // Heap ids come from two CPUs, because each CPU assigns its own ids.
    "fork_storm",
    "two_heaps_one_address",
    "jumps_out_of_calloc altstack",
];

/// The rest, for `make test-long`.
const ALSO_COUNTED: [&str; 6] = [
    "realloc_forms",
    "threads_free_each_other",
    "clone_vm_child",
    "leader_leaves_first",
    "forks_in_threads",
    "exec_chain",
];

#[test]
fn the_bpf_programs_for_older_kernels_count_the_same() {
    side_by_side(COUNTED, |name| assert_counted(name, &separate()));
}

pub fn others_are_counted_by_older_programs() {
    side_by_side(ALSO_COUNTED, |name| assert_counted(name, &separate()));
}

#[test]
fn with_the_older_programs_only_a_peak_shared_by_threads_is_unknown() {
    assert_peaks(&separate());
}

/// Whether the kernel counts BPF programs and maps as locked memory. Kernels before 5.11 do.
fn counts_locked_memory() -> bool {
    let version = release::version(&release::release());
    version.expect("a release begins with a version") < (5, 11)
}

#[test]
fn counting_inside_needs_a_kernel_that_tells_before_memory_goes() {
    let version = release::version(&release::release());
    let tells = version.expect("a release begins with a version") >= (6, 16);
    let mut memleak = Command::new(MEMLEAK);
    memleak.args(["run", "--probes=inside", "--", "echo", "started"]);
    let output = memleak.output().expect("memleak can be started");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let refused = said.starts_with("memleak: --probes=inside needs Linux 6.16: ");
    assert_eq!(refused, !tells, "{said}");
    let (code, started) = if tells { (0, "started\n") } else { (125, "") };
    assert_eq!(output.status.code(), Some(code), "{said}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), started);
}

const LIMIT: [&str; 2] = ["prlimit", "--memlock=65536:65536"];

#[test]
fn the_locked_memory_limit_is_raised_for_memleak_and_kept_for_the_command() {
    let report = Job::shell("ulimit -Sl; ulimit -Hl")
        .options(separate())
        .under(&LIMIT)
        .run();
    assert_eq!(code(report.status), 0, "{}", report.stderr);
    report.assert_complete();
    assert_eq!(report.stdout, "64\n64\n");
}

#[test]
fn a_locked_memory_limit_that_applies_and_cannot_be_raised_is_reported() {
    let cannot = ["setpriv", "--bounding-set=-sys_resource"];
    let wrapper = [&LIMIT[..], &cannot].concat();
    if !counts_locked_memory() {
        // The limit is set and memleak cannot raise it, but the kernel does not apply it.
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
