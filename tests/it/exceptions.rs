//! Functions that an exception may leave, and functions that none leaves. Whatever memleak decides, the program lives on
//! as it would without memleak. A call that cannot be counted is a loss.

use std::path::PathBuf;

use crate::common::expected::counts;
use crate::common::fixtures::compile_with;
use crate::common::side_by_side::side_by_side;
use crate::common::switches::switch;
use crate::common::{Counts, Job, Report, code};

/// The bytes that the C++ runtime allocates for a `bad_alloc`: its header, and a pointer to its table of functions.
const EXCEPTION: u64 = 128 + 8;

const METHODS: [&str; 4] = ["session", "multi", "perf-event", "separate"];

/// The failures and the allocations of `throwing_pools`, from its source.
const FAILURES: u64 = 4;
const CALLS: u64 = 20 + FAILURES;

/// Which exceptions of a function's calls are counted as blocks.
enum Exceptions {
    /// The calls do not fail.
    None,
    /// The caller catches them.
    Caught,
    /// The function itself catches them. The runtime's code that frees an exception jumps from function to function, so
    /// that the free returns to the function, and counts as a part of its work.
    CaughtWithin,
}

/// The functions of `throwing_pools` whose calls are all counted.
const COUNTED: [(&str, Exceptions); 6] = [
    ("throws", Exceptions::Caught),
    ("jumps_to_known", Exceptions::Caught),
    ("calls_any", Exceptions::None),
    ("catches_all", Exceptions::CaughtWithin),
    ("catches_some", Exceptions::Caught),
    ("rethrows", Exceptions::Caught),
];

impl Exceptions {
    /// The counts of `throwing_pools`, from its source.
    fn expected(&self) -> Counts {
        let (failed_allocs, freed) = match self {
            Exceptions::None => (0, 0),
            Exceptions::Caught => (FAILURES, FAILURES),
            Exceptions::CaughtWithin => (FAILURES, 0),
        };
        let left = failed_allocs - freed;
        Counts {
            failed_allocs,
            ..counts(
                10_000 + failed_allocs * EXCEPTION,
                20 + failed_allocs,
                15 + freed,
                2500 + left * EXCEPTION,
                5 + left,
            )
        }
    }
}

fn throwing_pools(flags: &[&str]) -> PathBuf {
    let part = compile_with(
        "c++",
        "fixtures/throwing_pools_without_tables.cc",
        "throwing_pools_without_tables.o",
        &["-O2"],
    );
    let part = part.to_string_lossy();
    let name = format!("throwing_pools{}", flags.concat());
    let all = [&["-O2", &part], flags].concat();
    compile_with("c++", "fixtures/throwing_pools.cc", &name, &all)
}

/// Allocates by one of the functions, which memleak is told about.
fn allocates_by(program: &PathBuf, function: &str, argument: &str, method: &str) -> Report {
    let spec = format!(
        "{}:new={function}(size),free=gives_back(block)",
        program.display()
    );
    let report = Job::new(program, [argument])
        .options(["--allocator", &spec, &switch("method", method)])
        .run();
    assert_eq!(code(report.status), 0, "{function}: {}", report.stderr);
    report
}

#[test]
fn exceptions_meet_the_same_handlers_as_without_memleak() {
    let program = throwing_pools(&[]);
    side_by_side(METHODS, |method| {
        let idle = allocates_by(&program, "throws", "idle", method);
        for (function, exceptions) in COUNTED {
            // Only the way of probing the return depends on the method.
            let is_by_all = matches!(function, "calls_any" | "catches_all" | "jumps_to_known");
            if method != METHODS[0] && !is_by_all {
                continue;
            }
            let report = allocates_by(&program, function, function, method);
            report.assert_complete();
            let found = report.only_row().counts - idle.only_row().counts;
            assert_eq!(found, exceptions.expected(), "{function} by {method}");
        }
    });
}

#[test]
fn exceptions_in_a_static_program_meet_the_same_handlers_as_without_memleak() {
    let program = throwing_pools(&["-static"]);
    let idle = allocates_by(&program, "throws", "idle", "session");
    side_by_side(COUNTED, |(function, exceptions)| {
        let report = allocates_by(&program, function, function, "session");
        report.assert_complete();
        let found = report.only_row().counts - idle.only_row().counts;
        // The runtime's blocks come from the same file, so those that a function needs are a part of its call.
        let failed = found.failed_allocs == exceptions.expected().failed_allocs;
        let leaked = found.leaked_bytes == 2500 && found.leaked_blocks == 5;
        assert!(failed && leaked, "{function}: {found:?}");
    });
}

#[test]
fn an_exception_from_code_that_is_not_followed_is_caught_and_its_calls_are_lost() {
    let program = throwing_pools(&[]);
    side_by_side(METHODS, |method| {
        for function in ["jumps_to_any", "switches_and_catches_all"] {
            let report = allocates_by(&program, function, function, method);
            let row = report.only_row();
            assert_eq!(row.losses.calls_without_return, CALLS, "{method}");
            assert!(!row.complete, "{function} by {method}");
        }
    });
}

#[test]
fn a_nothrow_operator_that_ends_in_a_jump_to_any_code_is_counted() {
    let source = "fixtures/nothrow_tail_call.cc";
    let flags = ["-O2", "-fno-exceptions", "-rdynamic"];
    let program = compile_with("c++", source, "nothrow_tail_call", &flags);
    side_by_side(METHODS, |method| {
        let run = |arguments: &[&str]| {
            let report = Job::new(&program, arguments)
                .options(["--fail-on-leak", "1MB", &switch("method", method)])
                .run();
            assert_eq!(code(report.status), 0, "{method}: {}", report.stderr);
            report.assert_complete();
            let gate = report.summary.gate.as_ref().expect("there is a gate");
            assert_eq!(gate.verdict, "passed", "{method}");
            report.only_row().counts
        };
        let found = run(&[]) - run(&["idle"]);
        assert_eq!(found, counts(100_000, 1000, 900, 10_000, 100), "{method}");
    });
}
