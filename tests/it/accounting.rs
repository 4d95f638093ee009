//! memleak is exact. For each fixture, its images and counts equal those of the source and of the interposing counter.

use std::collections::BTreeSet;

use crate::common;
use crate::common::expected::{Case, End, Expected, case, cases};
use crate::common::switches::switch;
use crate::common::{Counts, Job, Losses, Report, code, probes};

/// Runs a case twice: under memleak alone, and under memleak and the counter (inside: with probes beside the library).
/// Fails unless memleak reports exactly the expected images, and the same counts as the counter.
#[track_caller]
fn assert_exact(name: &str) {
    let case = case(name);

    let report = case.job.run();
    assert_eq!(code(report.status), case.code, "{}", report.stderr);
    assert_losses(&report, &case);
    let mut found: Vec<_> = report.rows.iter().map(Expected::of).collect();
    let mut expected = (case.images)(&report.stdout);
    assert_same(&mut found, &mut expected);

    if probes::are_inside() && case.losses != Losses::default() {
        // Probes would miss something else.
        return;
    }
    let counted = case.job.run_counted();
    assert_eq!(
        code(counted.report.status),
        case.code,
        "{}",
        counted.report.stderr
    );
    assert_losses(&counted.report, &case);
    // This ignores the numbers of the images, because `preload` is the root's image 0.
    let mut found: Vec<_> = counted
        .report
        .rows
        .iter()
        .map(|row| (End::of(row), row.counts))
        .collect();
    let mut expected: Vec<_> = (case.images)(&counted.report.stdout)
        .into_iter()
        .map(|expected| (expected.end, expected.counts))
        .collect();
    assert_same(&mut found, &mut expected);
    counted
        .compare()
        .unwrap_or_else(|difference| panic!("memleak and the counter differ:\n{difference}"));
}

/// Fails unless both have the same items, in any order. The message shows only the items that one side lacks.
#[track_caller]
fn assert_same<T: Ord + Clone + std::fmt::Debug>(found: &mut Vec<T>, expected: &mut Vec<T>) {
    found.sort();
    expected.sort();
    if found == expected {
        return;
    }
    let all = expected.clone();
    expected.retain(|item| match found.iter().position(|other| other == item) {
        Some(place) => {
            found.remove(place);
            false
        }
        None => true,
    });
    panic!(
        "found, not expected: {found:#?}\nexpected, not found: {expected:#?}\nof {} expected",
        all.len()
    );
}

#[track_caller]
fn assert_losses(report: &Report, case: &Case) {
    let complete = case.losses == Losses::default();
    if complete {
        report.assert_complete();
        return;
    }
    let row = report.rows.last().expect("a row");
    assert_eq!((row.complete, row.losses), (complete, case.losses));
    assert_eq!(
        (report.summary.complete, report.summary.losses),
        (complete, case.losses)
    );
}

/// Makes a test for each case, with a name that states the behaviour.
macro_rules! exact {
    ($($name:ident: $($case:literal),+;)+) => {
        $(
            #[test]
            fn $name() {
                $(assert_exact($case);)+
            }
        )+

        #[test]
        fn every_case_has_a_test() {
            let tested = BTreeSet::from([$($($case),+),+]);
            let known: BTreeSet<_> = cases().iter().map(|case| case.name).collect();
            assert_eq!(tested, known);
        }
    };
}

exact! {
    a_program_that_never_allocates_has_a_complete_row_of_zeros: "allocates_nothing";
    a_single_leak_is_counted_to_the_byte: "leaks_2mb";
    a_program_that_frees_all_blocks_leaks_nothing: "frees_all";
    blocks_of_zero_bytes_are_counted: "zero_sized";
    each_function_of_the_malloc_family_counts_once: "whole_family";
    a_refused_allocation_counts_only_as_failed: "whole_family_fails";
    each_form_of_realloc_counts_as_one_free_and_one_allocation: "realloc_forms";
    a_realloc_raced_by_other_threads_loses_no_block: "realloc_raced";
    a_calloc_that_overflows_counts_as_failed: "calloc_overflows";
    allocations_refused_under_a_memory_limit_count_as_failed: "malloc_fails_under_limit";
    the_block_that_glibc_allocates_for_a_thread_is_counted: "one_idle_thread";
    blocks_that_threads_free_for_each_other_are_counted: "threads_free_each_other";
    a_block_that_another_thread_frees_is_counted_as_freed: "thread_frees_for_main";
    frees_of_a_thread_cache_at_the_threads_end_are_not_counted: "thread_cache_at_its_end";
    blocks_held_by_threads_alive_at_exit_are_leaked: "exits_under_waiting_threads";
    case_38_a_worker_that_outlives_the_leader_is_counted_to_its_end:
        "leader_leaves_first", "leader_leaves_first _exit";
    allocations_before_and_after_main_are_counted: "before_and_after_main";
    leaks_at_underscore_exit_are_counted: "leaves_by__exit";
    case_38_an_exec_from_a_second_thread_begins_an_image: "exec_from_thread";
    each_exec_of_a_chain_begins_an_image: "exec_chain";
    a_failed_exec_begins_no_image: "exec_fails";
    case_36_frees_of_inherited_blocks_count_as_unknown_frees: "child_frees_inherited";
    the_first_image_of_a_vfork_child_begins_at_its_exec: "vfork_exec";
    a_vfork_child_without_an_exec_counts_for_its_parent: "vfork_exit";
    a_child_that_shares_the_heap_counts_for_its_parent: "clone_vm_child";
    case_37_a_thousand_spawned_children_are_counted: "spawns_many";
    a_process_killed_by_a_signal_is_counted_completely:
        "dies_of_signal segv", "dies_of_signal abort", "dies_of_signal kill", "dies_of_signal term";
    allocations_in_a_signal_handler_are_counted:
        "handler_mallocs timer stack", "handler_mallocs thread stack";
    allocations_in_a_signal_handler_on_its_own_stack_are_counted:
        "handler_mallocs timer altstack", "handler_mallocs thread altstack";
    calls_of_a_signal_handler_inside_calloc_are_counted:
        "handler_mallocs_inside_calloc stack", "handler_mallocs_inside_calloc altstack";
    calls_that_a_signal_handler_makes_by_the_c_library_inside_calloc_are_counted:
        "handler_enters_by_libc stack", "handler_enters_by_libc altstack";
    a_call_left_by_siglongjmp_is_a_loss_and_other_calls_are_counted:
        "jumps_out_of_calloc stack", "jumps_out_of_calloc altstack";
    forks_in_threads_are_counted: "forks_in_threads";
    every_process_of_a_fork_storm_is_counted: "fork_storm";
    blocks_at_the_same_address_in_two_processes_are_counted: "two_heaps_one_address";
    twelve_generations_of_processes_are_counted: "generations";
    a_forked_and_executed_command_is_counted: "runs leaks_2mb";
    leaks_of_children_are_counted_for_the_children: "leaks_over_many_lives";
    blocks_freed_out_of_order_are_counted: "holds_blocks";
    a_million_live_blocks_are_counted: "million_blocks";
}

#[test]
fn a_leader_that_ends_by_pthread_exit_and_loads_the_unwinder_is_counted() {
    let counted = Job::fixture("leader_leaves_first", &["pthread_exit"]).run_counted();
    counted.assert_equal_counts();
    assert!(counted.report.only_row().counts.leaked_bytes >= 3010);
    assert_eq!(code(counted.report.status), 0, "{}", counted.report.stderr);
}

#[test]
fn a_static_command_is_counted_by_its_own_symbols() {
    // Both runs contain the allocations of glibc's own start.
    let [less, more] = ["500", "700"].map(|bytes| {
        let report = Job::fixture("static_leak", &[bytes]).run();
        report.assert_complete();
        let row = report.only_row();
        assert_eq!(row.allocators, [common::fixture("static_leak")]);
        row.counts
    });
    let expected = Counts {
        total_allocs_bytes: less.total_allocs_bytes + 200,
        leaked_bytes: less.leaked_bytes + 200,
        ..less
    };
    assert_eq!(more, expected);
    assert!(less.leaked_bytes >= 500);
}

#[test]
fn the_peak_is_the_largest_number_of_bytes_live_at_the_same_time() {
    for (name, peak) in [
        ("frees_all", 1_000_000),
        ("leaks_2mb", 2_000_000),
        ("zero_sized", 0),
    ] {
        let report = case(name).job.run();
        let found = report.only_row().peak_live_bytes;
        assert_eq!(found, Some(peak), "{name}");
    }
}

#[test]
fn a_row_identifies_its_process() {
    let job = &case("vfork_exec").job;
    let report = job.run();
    let [child, parent] = &report.rows[..] else {
        panic!("{:#?}", report.rows)
    };
    assert_eq!(child.ppid, parent.pid);
    assert_eq!((&*child.comm, &*parent.comm), ("exe", "vfork_exec"));
    assert_eq!(parent.exe, Some(common::fixture("vfork_exec")));
    for row in [child, parent] {
        assert_eq!(row.uid, nix::unistd::getuid().as_raw());
        assert!(row.start_time <= row.end_time);
        assert!(
            row.allocators
                .iter()
                .any(|file| file.to_string_lossy().contains("libc"))
        );
    }
    assert!(parent.start_time <= child.start_time && child.end_time <= parent.end_time);
}

#[test]
fn the_comparison_fails_if_any_probe_is_missing() {
    const PROBES: [&str; 9] = [
        "malloc",
        "calloc",
        "realloc",
        "reallocarray",
        "posix_memalign",
        "memalign",
        "valloc",
        "pvalloc",
        "free",
    ];
    let job = &case("whole_family").job;
    job.run_counted().assert_equal_counts();
    for probe in PROBES {
        let counted = job
            .clone()
            .options([switch("without-probe", probe)])
            .run_counted();
        let difference = counted.compare();
        assert!(
            difference.is_err(),
            "the comparison does not notice that {probe} has no probe"
        );
        let counts = |rows: &[common::Row]| rows.iter().map(|row| row.counts).next();
        assert_ne!(
            counts(&counted.report.rows),
            Some(Counts::default()),
            "all counts are missing, not only those of {probe}"
        );
    }
    // The probe `start` counts nothing. Where memleak does not examine the mappings of an image, this probe shows that
    // memleak could have counted an image that never allocates.
    let nowhere = [switch("holds", "nowhere")];
    let job = case("allocates_nothing").job.options(nowhere);
    assert!(job.run().only_row().complete);
    let report = job.options([switch("without-probe", "start")]).run();
    assert!(!report.only_row().complete && report.only_row().allocators.is_empty());
}
