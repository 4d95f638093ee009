//! What memleak says about blocks that were never freed, with each C library: programs of a real run are held and judged.
//! Where an allocator's memory is not known well enough, less may be found, but never more.
//!
//! `tests/lost.txt` has the figures of the fixtures with many cases.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use crate::common::fixtures::compile_with;
use crate::common::{Job, Reached, Report, Row};

/// How a program is built.
#[derive(Clone, Copy)]
pub struct Build {
    name: &'static str,
    compiler: &'static str,
    flags: &'static [&'static str],
}

const fn build(
    name: &'static str,
    compiler: &'static str,
    flags: &'static [&'static str],
) -> Build {
    Build {
        name,
        compiler,
        flags,
    }
}

pub const DYNAMIC: Build = build("dynamic", "cc", &[]);
pub const GLIBC: [Build; 3] = [
    DYNAMIC,
    build("static", "cc", &["-static"]),
    build("static-pie", "cc", &["-static-pie", "-fPIE"]),
];
const MUSL: [Build; 3] = [
    build("musl", "musl-gcc", &[]),
    build("musl-static", "musl-gcc", &["-static"]),
    build("musl-static-pie", "musl-gcc", &["-static-pie", "-fPIE"]),
];

/// Compiles a source in fixtures/.
pub fn program(source: &str, build: Build) -> PathBuf {
    let name = Path::new(source).file_stem().expect("a file");
    let name = format!("{}-{}-reach", name.to_string_lossy(), build.name);
    let flags = [&["-O1"], build.flags].concat();
    let compiler = match source.ends_with(".cc") {
        true => "c++",
        false => build.compiler,
    };
    compile_with(compiler, &format!("fixtures/{source}"), &name, &flags)
}

pub fn judged(job: Job) -> Report {
    let report = job.options(["--lost=always", "--args"]).run();
    report.assert_complete();
    report
}

#[track_caller]
pub fn reached(row: &Row) -> Reached {
    row.reach
        .unwrap_or_else(|| panic!("{:?}: {:?}", row.args, row.reach_unknown))
}

pub fn lost(reached: Reached) -> u64 {
    reached.definite_bytes + reached.indirect_bytes
}

// ---- fixtures with one case ---------------------------------------------------------------------------

/// What a fixture does with its blocks. Sums in bytes.
pub struct Kind {
    pub name: &'static str,
    pub lost: u64,
    possible: u64,
    /// Others may be reachable besides, such as those of libc.
    reachable: u64,
}

pub const KINDS: [Kind; 5] = [
    Kind {
        name: "keeps_blocks",
        lost: 0,
        possible: 0,
        reachable: 204_500,
    },
    Kind {
        name: "pools_beside_blocks",
        lost: 10,
        possible: 0,
        reachable: 4693,
    },
    Kind {
        name: "loses_blocks",
        lost: 1140,
        possible: 264,
        reachable: 0,
    },
    Kind {
        name: "frees_what_points",
        lost: 6564,
        possible: 0,
        reachable: 0,
    },
    Kind {
        name: "threads_lose_blocks",
        lost: 6600,
        possible: 0,
        reachable: 1800,
    },
];

/// Checks a fixture's only process. `own`: what the allocator loses itself. `found`: the least bytes that are found of
/// those that are lost.
#[track_caller]
pub fn assert_kind(kind: &Kind, job: Job, own: u64, found: u64, what: &str) {
    let report = judged(job);
    let reached = reached(report.only_row());
    let what = format!("{} with {what}: {reached:?}", kind.name);
    let lost = lost(reached) - own;
    assert!((found..=kind.lost).contains(&lost), "{what}");
    if found == kind.lost {
        assert_eq!(reached.possible_bytes, kind.possible, "{what}");
    }
    assert!(reached.reachable_bytes >= kind.reachable, "{what}");
}

#[test]
fn each_kind_is_judged_with_glibc() {
    for build in GLIBC {
        for kind in &KINDS {
            let job = Job::new::<&str>(program(&format!("{}.c", kind.name), build), []);
            assert_kind(kind, job, 0, kind.lost, build.name);
        }
    }
}

/// musl keeps freed blocks where memleak does not know them.
#[test]
fn each_kind_is_judged_with_musl() {
    for build in MUSL {
        for kind in &KINDS {
            let found = match kind.name {
                "frees_what_points" => 32,
                _ => kind.lost,
            };
            let job = Job::new::<&str>(program(&format!("{}.c", kind.name), build), []);
            assert_kind(kind, job, 0, found, build.name);
        }
    }
}

// ---- forks -------------------------------------------------------------------------------------------------

/// The bytes that a child and its parent lost.
pub fn of_child(job: Job) -> [u64; 2] {
    let report = judged(job);
    let [child, parent] = &report.rows[..] else {
        panic!("two processes: {:?}", report.rows);
    };
    assert_eq!(child.ppid, parent.pid);
    [child, parent].map(|row| lost(reached(row)))
}

#[test]
fn a_child_is_judged_for_its_own_blocks() {
    for build in GLIBC.into_iter().chain(MUSL) {
        let job = Job::new::<&str>(program("child_adds_to_inherited.c", build), []);
        assert_eq!(of_child(job), [2500, 0], "{}", build.name);
    }
}

// ---- fixtures with many cases ------------------------------------------------------------------------------

/// The cases of a fixture, and the bytes that each loses.
fn cases(fixture: &str) -> Vec<(&'static str, RangeInclusive<u64>)> {
    let number = |word: &str| word.parse().expect("a number of bytes");
    let lines = include_str!("../lost.txt").lines();
    let cases = lines.filter(|line| !line.starts_with('#')).map(|line| {
        let [fixture, case, bytes] = line.split(' ').collect::<Vec<_>>()[..] else {
            panic!("not a case: {line}");
        };
        let (least, most) = bytes.split_once("..").unwrap_or((bytes, bytes));
        (fixture, case, number(least)..=number(most))
    });
    let cases = cases.filter(|(of, ..)| *of == fixture);
    cases.map(|(_, case, bytes)| (case, bytes)).collect()
}

/// Runs all cases of a fixture, one after the other. Returns what is wrong. If not `all` of what is lost must be found,
/// only what is called lost and is not is wrong.
/// `preloaded` is the path of an allocator, and what it loses itself.
pub fn wrong_cases(
    fixture: &str,
    build: Build,
    preloaded: Option<(&Path, u64)>,
    all: bool,
) -> Vec<String> {
    let source = ["c", "cc"].map(|ending| format!("lost/{fixture}.{ending}"));
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures");
    let is_there = |source: &&String| fixtures.join(source).exists();
    let source = source.iter().find(is_there).expect("a fixture");
    let program = program(source, build);
    let cases = cases(fixture);
    assert!(cases.len() > 5, "{fixture}");
    let preload = preloaded.map_or(String::new(), |(library, _)| {
        format!("LD_PRELOAD={} ", library.display())
    });
    let runs = cases.iter().map(|(case, _)| {
        let program = program.display();
        // Some cases end by a signal, and a shell would say so.
        format!("{preload}{program} {case} >/dev/null 2>&1;")
    });
    let script: String = runs.collect();
    let report = judged(Job::shell(&script));
    let mut sums: BTreeMap<&str, Result<u64, String>> = BTreeMap::new();
    for row in &report.rows {
        let Some([_, case]) = row.args.as_deref() else {
            continue;
        };
        let sum = sums.entry(case).or_insert(Ok(0));
        match (&row.reach, &row.reach_unknown) {
            (Some(reached), _) => {
                let own = preloaded.map_or(0, |(_, own)| own);
                let lost = lost(*reached).saturating_sub(own);
                *sum = sum.clone().map(|sum| sum + lost);
            }
            (None, why) => *sum = Err(format!("{why:?}")),
        }
    }
    let wrong = cases.into_iter().filter_map(|(case, mut expected)| {
        if !all {
            expected = 0..=*expected.end();
        }
        match sums.get(case) {
            Some(Ok(sum)) if expected.contains(sum) => None,
            other => Some(format!("{fixture} {case}: {other:?}, not {expected:?}")),
        }
    });
    wrong.collect()
}

#[test]
fn each_case_is_judged_with_glibc() {
    let mut wrong = Vec::new();
    for fixture in ["shapes", "roots", "threads", "forks"] {
        for build in &GLIBC[..2] {
            wrong.extend(wrong_cases(fixture, *build, None, true));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Cases, and what their processes have together, in bytes: definitely, indirectly and possibly lost, reachable.
const SUMS: [(&str, &str, [u64; 4]); 13] = [
    ("shapes", "one", [100, 0, 0, 0]),
    ("shapes", "list", [32, 288, 0, 0]),
    ("shapes", "list_kept", [0, 0, 0, 320]),
    ("shapes", "interior", [0, 0, 200, 0]),
    ("shapes", "aligned_kept", [0, 0, 3000, 1000]),
    ("shapes", "self_aligned_kept", [0, 0, 4160, 0]),
    ("shapes", "table_emptied", [80_000, 0, 0, 8000]),
    ("roots", "pool", [0, 0, 0, 5000]),
    ("forks", "hangs_on_inherited", [2500, 0, 0, 2448]),
    ("objects", "single", [272, 0, 0, 0]),
    ("objects", "second_base_kept", [0, 0, 0, 272]),
    ("objects", "array_kept", [0, 0, 0, 1208]),
    ("objects", "vector_of_vectors", [24, 640, 0, 0]),
];

#[test]
fn each_of_the_four_sums_is_right() {
    let line = |(fixture, case, _): &(&str, &str, _)| {
        let ending = if *fixture == "objects" { "cc" } else { "c" };
        let program = program(&format!("lost/{fixture}.{ending}"), DYNAMIC);
        format!("{} {case} >/dev/null;", program.display())
    };
    let script: String = SUMS.iter().map(line).collect();
    let report = judged(Job::shell(&script));
    let sums = |case: &str| {
        let rows = report.rows.iter();
        let rows = rows.filter(|row| row.args.as_ref().is_some_and(|args| args[1..] == [case]));
        let each = rows.map(reached).map(|each| {
            [
                each.definite_bytes,
                each.indirect_bytes,
                each.possible_bytes,
                each.reachable_bytes,
            ]
        });
        each.fold([0; 4], |sum, each| {
            [0, 1, 2, 3].map(|at| sum[at] + each[at])
        })
    };
    // The C++ library keeps memory for exceptions.
    let [.., library] = sums("single");
    for (fixture, case, expected) in SUMS {
        let mut found = sums(case);
        if fixture == "objects" {
            found[3] -= library;
        }
        assert_eq!(found, expected, "{fixture} {case}");
    }
}

#[test]
fn no_case_is_called_lost_that_is_not_with_musl() {
    let mut wrong = Vec::new();
    for fixture in ["shapes", "roots", "threads", "forks"] {
        for build in &MUSL[..2] {
            wrong.extend(wrong_cases(fixture, *build, None, false));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
