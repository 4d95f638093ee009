//! Tests that memleak attributes each allocation to its exact call stack: the one that libgcc's unwinder finds in the
//! same process at the same call. Where libgcc's rules end, the stacks of fixtures are known by hand.

use crate::common::stack_cases::{
    Libgcc, Site, StackCase, all_the_time, check_stack, stack_cases, static_chain, steps,
};
use crate::common::stack_programs::{Amount, stack_programs};
use crate::common::stacks::{Comparison, Why, compare_stacks, ours};
use crate::common::switches::switch;
use crate::common::unwinder::{self, Sums, Unwound, canonical, library};
use crate::common::{Job, Report, StackUnknown, code};

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

/// Every walk is remembered, and compared with those that are. By default, the first walks of a thread are not.
fn remembered() -> String {
    switch("few-walks", "0")
}

/// Compares every stack of a job with libgcc's.
#[track_caller]
fn compared(job: &Job) -> Comparison {
    let (report, truth) = job.run_unwound();
    compared_with(&report, &truth)
}

#[track_caller]
fn compared_with(report: &Report, truth: &[Unwound]) -> Comparison {
    let comparison = compare_stacks(&report.rows, &report.stacks, truth, &library());
    if comparison.differences.is_empty() {
        let calls = report.rows.iter().map(|row| row.counts.alloc_count);
        assert_eq!(comparison.calls(), calls.sum::<u64>(), "{comparison}");
    }
    comparison
}

/// How many calls of a case are equal to the end, and how many may be equal in part.
fn expected(case: &StackCase) -> (u64, [(Why, u64); 3]) {
    let calls = |wanted: &dyn Fn(&Site) -> bool| -> u64 {
        let sites = case.sites.iter().filter(|site| wanted(site));
        sites.map(|site| site.count).sum()
    };
    let is_whole = |site: &Site| end_of(case, site) == "complete";
    let is_walked = |site: &Site| site.libgcc == Libgcc::ToTheEnd;
    let partly = [
        (Why::NoRules, calls(&|site| !is_walked(site))),
        (
            Why::CutShort,
            calls(&|site| is_walked(site) && !is_whole(site)),
        ),
        // libgcc's search for the first exception's tables.
        (Why::OfLibgcc, 0),
    ];
    (calls(&|site| is_walked(site) && is_whole(site)), partly)
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
    assert_eq!(has_its_stacks(case, report), Ok(()));
}

/// An error if a site of the case lacks its stack.
fn has_its_stacks(case: &StackCase, report: &Report) -> Result<(), String> {
    let library = canonical(&library());
    for site in case.sites {
        let mut calls = 0;
        let stacks = report.stacks.iter();
        for stack in stacks.filter(|s| s.alloc_bytes == site.size * s.alloc_count) {
            let ours = ours(stack, &library);
            let wrong = |what: &str| Err(format!("{}: {what}: {stack:?}", case.name));
            if stack.walk != end_of(case, site) {
                return wrong("another end");
            }
            if is_too_deep(site) {
                if ours.frames.len() != MOST_FRAMES {
                    return wrong("another depth");
                }
            } else {
                let is_odd = stack.walk == "odd_rule";
                let up_to = match site.libgcc {
                    _ if is_odd => Some(ours.frames.len()),
                    Libgcc::UpTo(words) if stack.walk == "no_rule" => Some(words),
                    _ => None,
                };
                if is_odd && ours.frames.len() < 2 {
                    return wrong("too few frames");
                }
                check_stack(site.stack, up_to, &ours.frames, None)
                    .map_err(|error| format!("{}, {} bytes: {error}", case.name, site.size))?;
            }
            calls += stack.alloc_count;
        }
        if calls != site.count {
            let found = format!("{calls} calls, not {}", site.count);
            return Err(format!("{}, {} bytes: {found}", case.name, site.size));
        }
    }
    Ok(())
}

/// Each of the programs that is asked for, with remembered walks. Those that do much run without, too.
fn programs_have_the_stacks_of_libgcc(amount: Amount, names: Option<&[&str]>) {
    let is_wanted = |name| names.is_none_or(|names| names.contains(&name));
    let mut compared_programs = 0;
    for program in stack_programs(amount) {
        if !is_wanted(program.name) {
            continue;
        }
        // By default only some walks are remembered, as nearly all of a small program's are its first.
        let as_usual = (amount == Amount::Much).then(|| switch("few-walks", "256"));
        for walks in [remembered()].into_iter().chain(as_usual) {
            let job = program.job.clone().options([STACKS, &walks]);
            let comparison = compared(&job);
            print!("{} {walks}: {comparison}", program.name);
            comparison.assert_equal(program.at_least, program.partly);
        }
        compared_programs += 1;
    }
    assert!(compared_programs >= 4);
}

#[test]
fn the_stacks_of_programs_are_those_of_libgcc() {
    // The others run in `make test-long`. memleak without optimisation may take longer to read the compiler's rules than
    // a process waits for it on a busy machine.
    const SAMPLE: &[&str] = &["python3", "git", "C++", "Rust"];
    programs_have_the_stacks_of_libgcc(Amount::Little, Some(SAMPLE));
}

/// All programs, with more work.
pub fn programs_at_work_have_the_stacks_of_libgcc() {
    programs_have_the_stacks_of_libgcc(Amount::Much, None);
}

#[test]
fn the_stacks_of_odd_frames_are_those_of_libgcc_and_those_known_by_hand() {
    for case in stack_cases() {
        let (at_least, partly) = expected(&case);
        let comparison = compared(&case.job.clone().options([STACKS, &remembered()]));
        println!("{}: {comparison}", case.name);
        comparison.assert_equal(at_least, &partly);
    }
}

#[test]
fn the_stacks_of_odd_frames_are_those_known_by_hand() {
    // By default hardly any walk of these programs is remembered. The comparison with libgcc has all of them so.
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
    let report = case.job.clone().options([STACKS, &remembered()]).run();
    assert_has_its_stacks(&case, &report);
    assert_adds_up(&report);
    // With the library in it.
    let directory = tempfile::tempdir().expect("a temporary directory can be created");
    let job = static_chain(true).job.env("COUNTER_DIR", directory.path());
    let report = job.options([STACKS, &remembered()]).run();
    let truth = unwinder::read(directory.path());
    let comparison = compared_with(&report, &truth);
    println!("{comparison}");
    // What libc allocates before libgcc can walk, and libgcc to sort its tables.
    comparison.assert_equal(312, &[(Why::OfLibgcc, 10)]);
}

/// A handler walks at each instruction of prologues, linkage tables and the dynamic loader's resolver.
#[test]
fn the_stack_is_found_from_every_instruction() {
    let comparison = compared(&steps().options([STACKS, &remembered()]));
    comparison.assert_equal(1000, &[]);
}

/// calloc is under a return probe while a handler interrupts it. Its return address is the kernel's then.
#[test]
fn a_walk_passes_a_call_that_is_under_a_return_probe() {
    const HANDLER: &str = "handler * calloc_that_faults main * _start";
    let own = canonical(&library());
    for place in ["stack", "altstack"] {
        let job = Job::fixture("handler_mallocs_inside_calloc", &[place]);
        let job = job.options([STACKS, &remembered()]);
        let report = job.run();
        assert_adds_up(&report);
        let mut calls = 0;
        for stack in &report.stacks {
            if ![77, 33]
                .map(|size| size * stack.alloc_count)
                .contains(&stack.alloc_bytes)
            {
                continue;
            }
            assert_eq!(stack.walk, "complete", "{stack:?}");
            assert_eq!(
                check_stack(HANDLER, None, &ours(stack, &own).frames, None),
                Ok(())
            );
            calls += stack.alloc_count;
        }
        assert_eq!(calls, 40, "{place}");
        // libgcc ends at the trampoline. As far as it goes, both are equal.
        compared(&job).assert_equal(60, &[(Why::Probed, 40)]);
    }
}

/// Blocks that a child inherits, that `realloc` moves, and that other threads free.
#[test]
fn what_was_never_freed_is_that_of_its_stack() {
    for name in [
        "child_frees_inherited",
        "threads_free_each_other",
        "realloc_forms",
        "thread_frees_for_main",
    ] {
        let comparison = compared(&Job::fixture(name, &[]).options([STACKS, &remembered()]));
        println!("{name}: {comparison}");
        comparison.assert_equal(2, &[]);
    }
}

#[test]
fn walks_through_a_file_whose_rules_are_being_read_say_so() {
    let place = tempfile::tempdir().expect("a temporary directory can be created");
    let program = place.path().join("large");
    std::fs::copy(all_the_time(), &program).expect("it can be copied");
    let file = std::fs::File::options().write(true).open(&program);
    // memleak reads the rules of such a file in a thread.
    let is_large = file.and_then(|file| file.set_len(9 << 20));
    is_large.expect("it can be written");
    let options = [STACKS, &remembered(), &switch("rules-delay", "3000")].map(str::to_owned);
    let report = Job::new(program, ["100"]).options(options).run();
    let calls = |walk: &str| -> u64 {
        let stacks = report.stacks.iter();
        let of_size = stacks.filter(|s| s.alloc_bytes == 1191 * s.alloc_count && s.walk == walk);
        of_size.map(|stack| stack.alloc_count).sum()
    };
    let (pending, complete) = (calls("pending"), calls("complete"));
    assert!(pending > 0 && complete > 0, "{:#?}", report.stacks);
    assert_eq!(pending + complete, 100);
    let unknown = report.only_row().stack_unknown.as_ref();
    let unknown = unknown.expect("stacks are recorded");
    assert_eq!(unknown.walks["pending"], pending);
    assert_eq!(unknown.sums, Sums::default());
}

#[test]
fn a_kind_of_rule_that_is_left_out_is_missed() {
    let fails = |job: &Job, case: Option<&StackCase>, words: &[String]| {
        let job = job.clone().options([STACKS, &remembered()]).options(words);
        let (report, truth) = job.run_unwound();
        let by_hand = case.map_or(Ok(()), |case| has_its_stacks(case, &report));
        let (at_least, partly) = case.map_or((1000, [(Why::OfLibgcc, 0); 3]), expected);
        let by_libgcc = compared_with(&report, &truth).check(at_least, &partly);
        by_hand.is_err() || by_libgcc.is_err()
    };
    let assert_misses = |job: &Job, case: Option<&StackCase>, kinds: &[&str]| {
        assert!(!fails(job, case, &[]), "{kinds:?}");
        for kind in kinds {
            assert!(fails(job, case, &[switch("without-rules", kind)]), "{kind}");
        }
    };
    for case in stack_cases() {
        let kinds: &[&str] = match case.name {
            "chain" => &["stack-pointer", "outermost"],
            "frames" => &["frame-pointer", "indirect", "at-frame"],
            "signals" => &["signal"],
            "lazy_binding" => &["third"],
            // libgcc does not read that section.
            "debug_tables" => &["debug-frame"],
            _ => continue,
        };
        assert_misses(&case.job, Some(&case), kinds);
    }
    assert_misses(&steps(), None, &["linkage"]);
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
    for row in &report.rows {
        let (mut known, counts) = (Sums::default(), &row.counts);
        let stacks = report.stacks.iter();
        for stack in stacks.filter(|stack| (stack.pid, stack.image) == (row.pid, row.image)) {
            known += stack.sums();
        }
        let unknown = row.stack_unknown.as_ref();
        let mut sums = unknown.expect("stacks are recorded").sums;
        assert!(known.alloc_count > 0 && sums.alloc_count > 0, "{row:?}");
        sums += known;
        let all = Sums {
            alloc_count: counts.alloc_count,
            alloc_bytes: counts.total_allocs_bytes,
            leaked_blocks: counts.leaked_blocks,
            leaked_bytes: counts.leaked_bytes,
        };
        assert_eq!(sums, all);
    }
    assert!(report.stacks.len() < 128);
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

/// Compilers, one after the other: in the table as users have it, no stack is unknown.
pub fn compilers_have_all_their_stacks(count: usize) {
    let place = tempfile::tempdir().expect("a temporary directory can be created");
    let source = place.path().join("input.cc");
    std::fs::write(&source, "int main() { return 0; }\n").expect("it can be written");
    let script = format!(
        "for i in $(seq {count}); do g++ -S -o /dev/null {}; done",
        source.display()
    );
    let report = Job::shell(&script).options([STACKS]).run();
    let compilers = report
        .rows
        .iter()
        .filter(|row| row.comm == "cc1plus" && row.end == "exited");
    assert_eq!(compilers.count(), count);
    for row in &report.rows {
        assert_eq!(row.stack_unknown, Some(StackUnknown::default()), "{row:#?}");
    }
}
