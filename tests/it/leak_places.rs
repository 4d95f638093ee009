//! Tests of what a report says of the places where programs leak: what each stack's blocks are, and what people read.

use crate::common::{Job, Report};

/// What a program never freed of what this function allocated: definite, indirect, possible and reachable.
#[track_caller]
fn kinds(report: &Report, function: &str) -> [(u64, u64); 4] {
    let mut sums = [(0, 0); 4];
    let stacks = report.stacks.iter();
    for stack in stacks.filter(|stack| stack.passes(function)) {
        let kinds = ["definite", "indirect", "possible", "reachable"];
        for (sum, kind) in sums.iter_mut().zip(kinds) {
            let found = stack.kind(kind);
            let (bytes, blocks) = found.unwrap_or_else(|| panic!("no {kind}: {stack:?}"));
            *sum = (sum.0 + bytes, sum.1 + blocks);
        }
    }
    sums
}

#[test]
fn each_stack_says_what_its_blocks_are() {
    // With 4 slots in front of it, the hash table has most of the blocks.
    for table in ["2097152", "64"] {
        let options = ["--stacks", "--lost", "--max-allocs", table];
        let report = Job::fixture("loses_blocks", &[]).options(options).run();
        for (function, expected) in [
            ("list", [(32, 1), (9 * 32, 9), (0, 0), (0, 0)]),
            ("circle", [(40, 1), (80, 2), (0, 0), (0, 0)]),
            ("others", [(700, 2), (0, 0), (264, 2), (0, 0)]),
        ] {
            assert_eq!(kinds(&report, function), expected, "{function} {table}");
        }
        // The stacks add up to what is known of the process.
        let reach = report.only_row().reach.expect("the process was scanned");
        let sums = [
            (reach.definite_bytes, reach.definite_blocks),
            (reach.indirect_bytes, reach.indirect_blocks),
            (reach.possible_bytes, reach.possible_blocks),
            (reach.reachable_bytes, reach.reachable_blocks),
        ];
        assert_eq!(kinds(&report, "main"), sums, "{table}");
    }
}
