//! Tests that memleak attributes each allocation to its exact call stack: the one that libgcc's unwinder finds in the
//! same process at the same call.

use crate::common::stack_cases::stack_cases;
use crate::common::stack_programs::{Amount, stack_programs};
use crate::common::stacks::compare_stacks;
use crate::common::{Job, unwinder};

/// Compares every stack of a job with libgcc's. At least so many calls must be equal.
#[track_caller]
fn assert_as_libgcc(name: &str, job: &Job, at_least: u64) {
    let (report, truth) = job.clone().options(["--stacks=always"]).run_unwound();
    let comparison = compare_stacks(&report.rows, &report.stacks, &truth, &unwinder::library());
    println!("{name}: {comparison}");
    comparison.assert_equal(at_least);
}

#[test]
fn the_stacks_of_programs_are_those_of_libgcc() {
    for program in stack_programs(Amount::Little) {
        assert_as_libgcc(program.name, &program.job, program.at_least);
    }
}

#[test]
fn the_stacks_of_odd_frames_are_those_of_libgcc() {
    for case in stack_cases() {
        assert_as_libgcc(case.name, &case.job, 1);
    }
}
