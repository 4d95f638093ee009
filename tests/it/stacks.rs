//! Tests that memleak attributes each allocation to its exact call stack: the one that libgcc's unwinder finds in the
//! same process at the same call. Where libgcc's rules end, the stacks of fixtures are known by hand.

use crate::common::stack_cases::{
    Libgcc, Site, StackCase, check_stack, stack_cases, static_chain, steps,
};
use crate::common::stack_programs::{Amount, stack_programs};
use crate::common::stacks::{Comparison, compare_stacks, ours};
use crate::common::switches::switch;
use crate::common::unwinder::{canonical, library};
use crate::common::{Job, Report, code};

const STACKS: &str = "--stacks=always";

/// Frames of a stack that are recorded.
const MOST_FRAMES: usize = 512;

fn is_too_deep(site: &Site) -> bool {
    site.stack.contains("^600 ")
}

/// How memleak's walk from this place ends.
fn end_of(case: &StackCase, site: &Site) -> &'static str {
    match case.name {
        _ if is_too_deep(site) => "too_deep",
        // glibc has no rule for the function that makecontext puts below a coroutine.
        "coroutines" if !site.stack.contains("main") => "no_rule",
        // Nobody has a rule for a copy of code in anonymous memory.
        "code_by_hand" if site.stack.contains('?') => "no_rule",
        // A frame by r10, and registers that the stack does not have. Compilers make no such code around a call.
        "assembly" if [1172, 1177, 1178].contains(&site.size) => "odd_rule",
        _ => "complete",
    }
}

/// Compares every stack of a job with libgcc's.
#[track_caller]
fn compared(job: &Job) -> (Report, Comparison) {
    let (report, truth) = job.run_unwound();
    let comparison = compare_stacks(&report.rows, &report.stacks, &truth, &library());
    (report, comparison)
}

/// Fails unless the stacks of each image add up to its counts.
#[track_caller]
fn assert_adds_up(report: &Report) {
    for row in &report.rows {
        let stacks = report.stacks.iter();
        let of_image = stacks.filter(|stack| (stack.pid, stack.image) == (row.pid, row.image));
        let mut found = [0; 4];
        for stack in of_image {
            found[0] += stack.alloc_bytes;
            found[1] += stack.alloc_count;
            found[2] += stack.leaked_bytes;
            found[3] += stack.leaked_blocks;
        }
        let counts = &row.counts;
        let expected = [
            counts.total_allocs_bytes,
            counts.alloc_count,
            counts.leaked_bytes,
            counts.leaked_blocks,
        ];
        assert_eq!(found, expected, "{row:#?}");
    }
}

/// Fails unless each site of the case has its stack, as often as it allocates.
#[track_caller]
fn assert_has_its_stacks(case: &StackCase, report: &Report) {
    let library = canonical(&library());
    for site in case.sites {
        let mut calls = 0;
        let stacks = report.stacks.iter();
        for stack in stacks.filter(|s| s.alloc_bytes == site.size * s.alloc_count) {
            let ours = ours(stack, &library);
            assert_eq!(stack.walk, end_of(case, site), "{}: {stack:?}", case.name);
            if is_too_deep(site) {
                assert_eq!(ours.frames.len(), MOST_FRAMES);
            } else {
                let is_odd = stack.walk == "odd_rule";
                let up_to = match site.libgcc {
                    _ if is_odd => Some(ours.frames.len()),
                    Libgcc::UpTo(words) if stack.walk == "no_rule" => Some(words),
                    _ => None,
                };
                assert!(
                    !is_odd || ours.frames.len() >= 2,
                    "{}: {stack:?}",
                    case.name
                );
                check_stack(site.stack, up_to, &ours.frames, None)
                    .unwrap_or_else(|error| panic!("{}, {} bytes: {error}", case.name, site.size));
            }
            calls += stack.alloc_count;
        }
        assert_eq!(calls, site.count, "{}, {} bytes", case.name, site.size);
    }
}

#[test]
fn the_stacks_of_programs_are_those_of_libgcc() {
    // The others run in `make test-long`. memleak without optimisation may take longer to read the compiler's rules than
    // a process waits for it on a busy machine.
    const SAMPLE: [&str; 4] = ["python3", "git", "C++", "Rust"];
    let programs = stack_programs(Amount::Little).into_iter();
    for program in programs.filter(|program| SAMPLE.contains(&program.name)) {
        let (_, comparison) = compared(&program.job.options([STACKS]));
        comparison.assert_equal(program.at_least);
    }
}

/// All programs, with more work.
pub fn programs_at_work_have_the_stacks_of_libgcc() {
    for program in stack_programs(Amount::Much) {
        let (_, comparison) = compared(&program.job.options([STACKS]));
        print!("{}: {comparison}", program.name);
        comparison.assert_equal(program.at_least);
    }
}

#[test]
fn the_stacks_of_odd_frames_are_those_of_libgcc_and_those_known_by_hand() {
    for case in stack_cases() {
        let walked = case
            .sites
            .iter()
            .filter(|site| site.libgcc == Libgcc::ToTheEnd && end_of(&case, site) == "complete");
        let at_least = walked.map(|site| site.count).sum();
        let (_, comparison) = compared(&case.job.clone().options([STACKS]));
        comparison.assert_equal(at_least);
    }
}

#[test]
fn the_stacks_of_odd_frames_are_those_known_by_hand() {
    for case in stack_cases() {
        let report = case.job.clone().options([STACKS]).run();
        assert_eq!(code(report.status), case.code, "{}", case.name);
        assert_has_its_stacks(&case, &report);
        assert_adds_up(&report);
    }
}

#[test]
fn a_static_program_has_its_stacks() {
    let case = static_chain(false);
    let report = case.job.clone().options([STACKS]).run();
    assert_has_its_stacks(&case, &report);
    assert_adds_up(&report);
}

/// A handler walks at each instruction of prologues, linkage tables and the dynamic loader's resolver.
#[test]
fn the_stack_is_found_from_every_instruction() {
    let (_, comparison) = compared(&steps().options([STACKS]));
    comparison.assert_equal(1000);
}

#[test]
fn a_kind_of_rule_that_is_left_out_is_missed() {
    for case in stack_cases() {
        let kinds: &[&str] = match case.name {
            "chain" => &["stack-pointer"],
            "frames" => &["frame-pointer", "indirect", "at-frame"],
            "signals" => &["signal"],
            "lazy_binding" => &["third"],
            _ => continue,
        };
        for kind in kinds {
            let words = [STACKS.to_owned(), switch("without-rules", kind)];
            let (_, comparison) = compared(&case.job.clone().options(words));
            let differs = !comparison.partly.is_empty() || !comparison.differences.is_empty();
            assert!(differs, "{kind}: {comparison}");
        }
    }
}

#[test]
fn a_full_table_of_stacks_costs_attribution_and_no_sum() {
    let programs = stack_programs(Amount::Little);
    // It allocates the same in each run. python3 may not.
    let program = programs.iter().find(|program| program.name == "sqlite3");
    let job = &program.expect("there is such a program").job;
    let plain = job.clone().run();
    let words = [STACKS.to_owned(), switch("stack-table", "128")];
    let report = job.clone().options(words).run();
    let sums = |report: &Report| -> Vec<_> {
        let rows = report.rows.iter();
        rows.map(|row| (row.counts.alloc_count, row.counts.leaked_blocks))
            .collect()
    };
    assert_eq!(sums(&report), sums(&plain));
    assert!(report.rows.iter().all(|row| row.complete));
    let known = report
        .stacks
        .iter()
        .map(|stack| stack.alloc_count)
        .sum::<u64>();
    let all = report
        .rows
        .iter()
        .map(|row| row.counts.alloc_count)
        .sum::<u64>();
    assert!(report.stacks.len() < 128 && known > 0 && known < all);
}

/// Each process fills a third of the table. It has room for all, because a heap that has ended gives its entries back.
#[test]
fn entries_of_ended_processes_are_used_again() {
    // memleak has some time to take the entries back.
    let script =
        "for i in 1 2 3 4 5 6 7 8; do perl -e 'my %h; $h{$_} = [1..3] for 1..200'; sleep 0.3; done";
    let words = [STACKS.to_owned(), switch("stack-table", "1024")];
    let report = Job::new("sh", ["-c", script]).options(words).run();
    assert_adds_up(&report);
    assert!(report.stacks.len() > 2 * 1024, "{}", report.stacks.len());
}
