//! Tests of the comparison: it fails when it has to, and passes otherwise. In these tests memleak is a script that
//! repeats what valgrind said about the same program, or says something else by one block.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::json;
use tempfile::TempDir;

use super::list::{Known, Program, What, differences, parse_differences, parse_programs, programs};
use super::runs::{Valgrind, read_report, read_summary};
use super::scratch::Scratch;
use super::verdict::{Compared, End, Judged, Outcome, Reached, compare, failures, table};
use super::{compare_all, reuse};
use crate::common::files;
use crate::common::root::require_root;

fn reached(definite: (u64, u64), indirect: (u64, u64)) -> Reached {
    Reached {
        definite_bytes: definite.0,
        definite_blocks: definite.1,
        indirect_bytes: indirect.0,
        indirect_blocks: indirect.1,
        possible_bytes: 5,
        possible_blocks: 1,
        reachable_bytes: 700,
        reachable_blocks: 7,
    }
}

fn judged(processes: &[Result<Reached, String>]) -> Judged {
    Judged {
        end: End::Exit(0),
        processes: processes.to_vec(),
    }
}

fn one() -> Reached {
    reached((100, 2), (30, 3))
}

/// Fifty programs, of which the last is compared with `memleak`.
fn fifty(memleak: Judged) -> Vec<Compared> {
    let same = |number: usize| Compared {
        name: format!("program{number}"),
        valgrind: judged(&[Ok(one())]),
        memleak: judged(&[Ok(one())]),
    };
    let mut all: Vec<_> = (0..49).map(same).collect();
    all.push(Compared {
        memleak,
        name: "last".to_owned(),
        ..same(49)
    });
    all
}

fn lower(bytes: u64, blocks: u64) -> Known {
    Known {
        name: "last".to_owned(),
        what: What::Lower { bytes, blocks },
    }
}

fn less_by_a_block() -> Judged {
    judged(&[Ok(reached((90, 1), (30, 3)))])
}

#[test]
fn equal_sums_pass() {
    assert_eq!(failures(&fifty(judged(&[Ok(one())])), &[]), [""; 0]);
    // Another block of a ring is the definite one.
    let split = judged(&[Ok(reached((90, 1), (40, 4)))]);
    assert_eq!(failures(&fifty(split), &[]), [""; 0]);
}

#[test]
fn a_block_less_fails_unless_it_is_listed() {
    let compared = fifty(less_by_a_block());
    assert_eq!(failures(&compared, &[]).len(), 1);
    assert_eq!(failures(&compared, &[lower(10, 1)]), [""; 0]);
    assert_eq!(failures(&compared, &[lower(11, 1)]).len(), 2);
    assert_eq!(failures(&compared, &[lower(10, 2)]).len(), 2);
}

#[test]
fn a_difference_that_varies_has_bounds_and_may_vanish() {
    let varies = |bytes, blocks| Known {
        name: "last".to_owned(),
        what: What::Varies { bytes, blocks },
    };
    let compared = fifty(less_by_a_block());
    assert_eq!(failures(&compared, &[varies(10, 1)]), [""; 0]);
    assert_eq!(failures(&compared, &[varies(20, 2)]), [""; 0]);
    assert_eq!(failures(&compared, &[varies(9, 1)]).len(), 1);
    assert_eq!(failures(&compared, &[varies(10, 0)]).len(), 1);
    let compared = fifty(judged(&[Ok(one())]));
    assert_eq!(failures(&compared, &[varies(10, 1)]), [""; 0]);
}

#[test]
fn a_listed_difference_that_vanished_fails() {
    let compared = fifty(judged(&[Ok(one())]));
    assert_eq!(failures(&compared, &[lower(10, 1)]).len(), 1);
    // A sample does not have the programs of all listed differences.
    assert_eq!(failures(&compared[..49], &[lower(10, 1)]), [""; 0]);
}

#[test]
fn a_byte_or_a_block_more_fails_whatever_is_listed() {
    for more in [reached((101, 2), (30, 3)), reached((100, 3), (30, 3))] {
        let compared = fifty(judged(&[Ok(more)]));
        assert_eq!(compared[49].outcome(), Outcome::Higher);
        assert_eq!(failures(&compared, &[]).len(), 1);
        assert_eq!(failures(&compared, &[lower(0, 0)]).len(), 2);
    }
    // What one process has more, another must not make up for.
    let two = [Ok(one()), Ok(one())];
    let moved = [
        Ok(reached((101, 2), (30, 3))),
        Ok(reached((99, 2), (30, 3))),
    ];
    assert_eq!(compare(&judged(&two), &judged(&moved)), Outcome::Higher);
}

#[test]
fn an_unknown_verdict_fails_unless_its_reason_is_listed() {
    let compared = fifty(judged(&[Err("too_long".to_owned())]));
    let known = |word: &str| Known {
        name: "last".to_owned(),
        what: What::Unknown(word.to_owned()),
    };
    assert_eq!(failures(&compared, &[]).len(), 1);
    assert_eq!(failures(&compared, &[known("too_long")]), [""; 0]);
    assert_eq!(failures(&compared, &[known("signal")]).len(), 2);
}

#[test]
fn fewer_than_98_per_cent_fail_even_if_all_are_listed() {
    let mut compared = fifty(less_by_a_block());
    compared[0].memleak = less_by_a_block();
    let first = Known {
        name: "program0".to_owned(),
        ..lower(10, 1)
    };
    let failures = failures(&compared, &[lower(10, 1), first]);
    assert_eq!(failures.len(), 1);
    assert!(failures[0].contains("98 per cent"), "{failures:?}");
}

#[test]
fn another_end_or_another_number_of_processes_fails() {
    let mut other = judged(&[Ok(one())]);
    other.end = End::Signal(6);
    for other in [other, judged(&[Ok(one()), Ok(one())])] {
        let compared = fifty(other);
        assert!(matches!(compared[49].outcome(), Outcome::Unlike(_)));
        assert_eq!(failures(&compared, &[]).len(), 1);
    }
}

#[test]
fn the_table_has_each_difference_and_the_sums() {
    let mut compared = fifty(less_by_a_block());
    compared[1].memleak = judged(&[Err("timer".to_owned())]);
    let table = table(&compared);
    assert!(
        table.contains(
            "50 programs: 48 equal, 1 lower, 0 higher, 1 unknown (timer 1), 0 not comparable; 50 had lost blocks"
        ),
        "{table}"
    );
    assert_eq!(table.matches("last  ").count(), 2, "{table}");
    assert_eq!(table.matches("program0 ").count(), 0, "{table}");
}

#[test]
fn valgrinds_summary_is_read_and_its_sum_checked() {
    let text = "==7== HEAP SUMMARY:\n\
                ==7==     in use at exit: 1,848 bytes in 6 blocks\n\
                ==7== LEAK SUMMARY:\n\
                ==7==    definitely lost: 1,024 bytes in 2 blocks\n\
                ==7==    indirectly lost: 800 bytes in 1 blocks\n\
                ==7==      possibly lost: 16 bytes in 1 blocks\n\
                ==7==    still reachable: 8 bytes in 2 blocks\n\
                ==7==                       of which reachable via heuristic:\n\
                ==7==                         newarray           : 8 bytes in 1 blocks\n\
                ==7==         suppressed: 0 bytes in 0 blocks\n";
    let expected = Reached {
        definite_bytes: 1024,
        definite_blocks: 2,
        indirect_bytes: 800,
        indirect_blocks: 1,
        possible_bytes: 16,
        possible_blocks: 1,
        reachable_bytes: 8,
        reachable_blocks: 2,
    };
    assert_eq!(read_summary(text), Ok(expected));
    let wrong = text.replace("800", "825");
    assert!(read_summary(&wrong).is_err());
    let nothing = "==7==     in use at exit: 0 bytes in 0 blocks\n\
                   ==7== All heap blocks were freed -- no leaks are possible\n";
    assert_eq!(read_summary(nothing), Ok(Reached::default()));
    assert!(read_summary("==7== Process terminating").is_err());
}

/// A line of memleak's report.
fn line(pid: u32, ppid: u32, image: u32, end: End, reach: &Result<Reached, String>) -> String {
    let mut line = json!({
        "schema": "memleak/1", "type": "process", "pid": pid, "ppid": ppid, "image": image, "exit_code": null,
        "signal": null, "leaked_blocks": 0, "reach": null,
    });
    match end {
        End::Exit(code) => line["exit_code"] = code.into(),
        End::Signal(signal) => line["signal"] = signal.into(),
    }
    match reach {
        Ok(reach) => {
            let blocks = [
                reach.definite_blocks,
                reach.indirect_blocks,
                reach.possible_blocks,
                reach.reachable_blocks,
            ];
            line["leaked_blocks"] = blocks.iter().sum::<u64>().into();
            line["reach"] = serde_json::to_value(reach).expect("a verdict is JSON");
        }
        Err(word) => line["reach_unknown"] = word.as_str().into(),
    }
    line.to_string() + "\n"
}

#[test]
fn the_report_gives_the_last_image_of_the_first_process_or_all_processes() {
    let end = End::Exit(3);
    let exec = Err("off".to_owned());
    let text = [
        line(12, 11, 0, End::Exit(0), &Ok(one())),
        line(11, 5, 0, end, &exec),
        line(11, 5, 1, end, &Ok(Reached::default())),
        json!({"type": "summary"}).to_string(),
    ]
    .concat();
    let root = Judged {
        end,
        processes: vec![Ok(Reached::default())],
    };
    assert_eq!(read_report(&text, false), Ok(root));
    let both = Judged {
        end,
        processes: vec![Ok(Reached::default()), Ok(one())],
    };
    assert_eq!(read_report(&text, true), Ok(both));
    assert!(read_report("", false).is_err());
}

#[test]
fn a_verdict_that_leaves_out_a_block_is_unknown() {
    let text = line(11, 5, 0, End::Exit(0), &Ok(one())).replace(":700,", ":600,");
    let wrong = text.replace("\"reachable_blocks\":7", "\"reachable_blocks\":6");
    assert!(read_report(&text, false).is_ok_and(|judged| judged.processes[0].is_ok()));
    assert!(read_report(&wrong, false).is_ok_and(|judged| judged.processes[0].is_err()));
}

#[test]
fn the_lists_are_well_formed() {
    let programs = programs("programs.txt");
    assert!(programs.len() >= 200, "{} programs", programs.len());
    assert_eq!(programs.iter().filter(|program| program.sample).count(), 10);
    let fixtures = programs.iter().filter(|program| program.is_fixture());
    let fixtures = fixtures.count();
    assert!(
        fixtures * 2 <= programs.len(),
        "{fixtures} of {} programs are fixtures",
        programs.len()
    );
    let own = super::list::programs("own.txt");
    for known in differences() {
        let mut all = programs.iter().chain(&own);
        assert!(
            all.any(|program| program.name == known.name),
            "{known:?} is about no program"
        );
    }
}

#[test]
fn a_line_of_the_lists_continues_behind_a_backslash() {
    let expected = Program {
        name: "a".to_owned(),
        line: "b c".to_owned(),
        ..Program::default()
    };
    assert_eq!(
        parse_programs(
            "a list",
            "# comment\n\nrun a b \\\n  c\nout d some reason\n"
        ),
        [expected]
    );
    assert_eq!(
        parse_differences("lower last 10 1 a reason\n", false),
        [lower(10, 1)]
    );
}

#[test]
fn a_difference_of_counting_inside_counts_there_only() {
    let text = "lower last 10 1 a reason\ninside lower last 20 2 another reason\n";
    assert_eq!(parse_differences(text, false), [lower(10, 1)]);
    assert_eq!(parse_differences(text, true), [lower(20, 2)]);
    assert_eq!(
        parse_differences("lower last 10 1 a reason\n", true),
        [lower(10, 1)]
    );
}

// ---- with valgrind -----------------------------------------------------------------------------------

/// A script that takes memleak's command line, runs the command, and reports what stands in a file.
struct Fake {
    directory: TempDir,
}

impl Fake {
    fn new(scratch: &Scratch, answers: &BTreeMap<&Program, Judged>) -> Self {
        let directory = TempDir::new().expect("a temporary directory can be created");
        for (program, judged) in answers {
            let report: String = (100..)
                .zip(&judged.processes)
                .map(|(pid, reach)| line(pid, 99.max(pid - 1), 0, judged.end, reach))
                .collect();
            let (_, command) = scratch.command(program);
            let name = command.replace(['/', ' '], "_");
            fs::write(directory.path().join(name), report).expect("the directory is ours");
        }
        let script = "#!/bin/sh\n\
            [ \"$1 $2 $3 $4\" = 'run --lost=always --format json' ] || exit 98\n\
            while [ \"$1\" != -- ]; do [ \"$1\" = -o ] && report=$2; shift; done\n\
            shift\n\
            \"$@\"; status=$?\n\
            cp \"${0%/*}/$(echo \"$*\" | tr '/ ' __)\" \"$report\" || exit 97\n\
            exit $status\n";
        files::write_script(&directory.path().join("memleak"), script, 0o755);
        Self { directory }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("memleak")
    }
}

fn program(name: &str, line: &str, tree: bool) -> Program {
    Program {
        name: name.to_owned(),
        line: line.to_owned(),
        tree,
        sample: false,
    }
}

#[test]
fn a_memleak_that_differs_by_one_block_is_found() {
    require_root();
    let programs = [
        program("list", "$built/shapes list", false),
        program("killed", "$built/ends aborts", false),
        program("children", "$built/forks four", true),
    ];
    let scratch = Scratch::new(&programs);
    let valgrind = Valgrind::new("first", reuse());
    let mut answers: BTreeMap<&Program, Judged> = BTreeMap::new();
    for program in &programs {
        answers.insert(program, valgrind.judge(&scratch, program).0);
    }
    let [list, killed, children] = [0, 1, 2].map(|number| answers[&programs[number]].clone());
    let lost = |judged: &Judged| -> Vec<_> {
        let lost = |one: &Result<Reached, String>| {
            let lost = one.as_ref().expect("valgrind knows").lost();
            (lost.bytes, lost.blocks)
        };
        judged.processes.iter().map(lost).collect()
    };
    assert_eq!(lost(&list), [(320, 10)]);
    assert_eq!(
        (killed.end, lost(&killed)),
        (End::Signal(6), vec![(748, 3)])
    );
    assert_eq!(
        lost(&children),
        [(0, 0), (100, 1), (200, 1), (300, 1), (400, 1)]
    );

    let judge = |answers: &BTreeMap<&Program, Judged>| {
        let fake = Fake::new(&scratch, answers);
        let compared = compare_all(&valgrind, &scratch, &programs, Path::new(&fake.path()));
        failures(&compared, &[])
    };
    assert_eq!(judge(&answers), [""; 0]);
    let mut wrong = answers.clone();
    let last = wrong.get_mut(&programs[2]).expect("the program is there");
    let last = last.processes[4].as_mut().expect("valgrind knows");
    last.definite_bytes -= 400;
    last.definite_blocks -= 1;
    last.reachable_bytes += 400;
    last.reachable_blocks += 1;
    let found = judge(&wrong);
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(
        found[0].contains("children") && found[0].contains("400 bytes and 1 blocks"),
        "{found:?}"
    );
    let first = wrong.get_mut(&programs[0]).expect("the program is there");
    first.processes[0]
        .as_mut()
        .expect("valgrind knows")
        .indirect_bytes += 1;
    let found = judge(&wrong);
    assert!(
        found[0].contains("list: memleak calls more lost"),
        "{found:?}"
    );
}
