//! What is said about the blocks that programs never freed, for each place that a pointer can be in. The programs are
//! held by ptrace and their blocks come from a recorder, so these tests need no BPF.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use memleak::find::findings::find_sites;
use memleak::find::functions::Table;
use memleak::lost::{Allocators, ExitFrame, State, judge};
use memleak::os::root::Root;

use crate::common::held::{self, Held};
use crate::common::{compile, fixture, fixtures};

/// A fixture, and what it does with its blocks. Each block is given by its size.
struct Case {
    name: &'static str,
    definite: &'static [u64],
    indirect: &'static [u64],
    possible: &'static [u64],
    /// Others may be reachable besides, such as those of libc.
    reachable: &'static [u64],
}

const NONE: &[u64] = &[];

const CASES: [Case; 4] = [
    Case {
        name: "loses_blocks",
        definite: &[0, 32, 40, 700],
        indirect: &[32, 32, 32, 32, 32, 32, 32, 32, 32, 40, 40],
        possible: &[64, 200],
        reachable: NONE,
    },
    Case {
        name: "keeps_blocks",
        definite: NONE,
        indirect: NONE,
        possible: NONE,
        reachable: &[100, 200, 300, 400, 500, 600, 700, 800, 900, 200_000],
    },
    Case {
        name: "frees_what_points",
        definite: &[32, 32, 1100, 1200, 1300, 1400, 1500],
        indirect: NONE,
        possible: NONE,
        reachable: NONE,
    },
    Case {
        name: "threads_lose_blocks",
        definite: &[1300, 1400, 1900, 2000],
        indirect: NONE,
        possible: NONE,
        reachable: &[1800],
    },
];

const OBJECTS: Case = Case {
    name: "points_into_objects",
    definite: NONE,
    indirect: NONE,
    possible: NONE,
    reachable: &[1000, 1208, 2408],
};

fn holder() -> PathBuf {
    compile("tests/holder/holder.c", "holder", &["-O1"])
}

fn recorder() -> PathBuf {
    let flags = ["-O2", "-fPIC", "-shared", "-Wl,-z,now"];
    compile("tests/holder/recorder.c", "recorder.so", &flags)
}

/// Runs a program of this machine's C library.
fn run(program: PathBuf) -> Vec<Held> {
    held::run(&[program], &holder(), Some(&recorder()))
}

/// Builds a fixture as a static program with a recorder of its own.
fn with_libc_inside(name: &str) -> PathBuf {
    let wraps = [
        "malloc",
        "calloc",
        "realloc",
        "reallocarray",
        "memalign",
        "aligned_alloc",
        "posix_memalign",
        "valloc",
        "pvalloc",
        "free",
    ];
    let wraps = wraps.map(|function| format!("-Wl,--wrap={function}"));
    let mut flags = vec!["-O1", "-static", "-DWRAPPED", "tests/holder/recorder.c"];
    flags.extend(wraps.iter().map(String::as_str));
    compile(
        &format!("fixtures/{name}.c"),
        &format!("{name}-static-recorded"),
        &flags,
    )
}

/// The frames of `exit` in a file.
fn exit_frames(path: &Path) -> Vec<ExitFrame> {
    let table = Table::new(Vec::new()).unwrap();
    let file = File::open(path).unwrap();
    let found = find_sites(&file, path, &Root::ours(), &table);
    found.unwrap().exit_functions.frames(&file)
}

/// This machine's C library, which the tests use, too.
fn libc_path() -> PathBuf {
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let mut paths = maps.lines().filter_map(|line| line.split(' ').next_back());
    // Before 2.34 it was named after its version.
    paths
        .find(|path| path.contains("/libc.so") || path.contains("/libc-2"))
        .expect("a C library")
        .into()
}

/// The sizes of a process's blocks, in order: definitely lost, indirectly lost, possibly lost, reachable.
fn sizes(held: Held) -> [Vec<u64>; 4] {
    sizes_by(held, &[])
}

fn sizes_by(held: Held, frames: &[ExitFrame]) -> [Vec<u64>; 4] {
    let memory = held.memory.expect("its memory was copied");
    let mut sizes: [Vec<u64>; 4] = Default::default();
    for (block, state) in judge(&memory, held.blocks, Allocators::Glibc, frames).states() {
        let kind = match state {
            State::Definite => 0,
            State::Indirect { .. } => 1,
            State::Possible => 2,
            State::Reachable => 3,
        };
        sizes[kind].push(block.size);
    }
    sizes.iter_mut().for_each(|sizes| sizes.sort_unstable());
    sizes
}

#[track_caller]
fn assert_case(case: &Case, held: Vec<Held>) {
    let Ok([held]) = <[Held; 1]>::try_from(held) else {
        panic!("{} is one process", case.name);
    };
    let [definite, indirect, possible, reachable] = sizes(held);
    assert_eq!(
        [&definite[..], &indirect[..], &possible[..]],
        [case.definite, case.indirect, case.possible],
        "{}, reachable {reachable:?}",
        case.name
    );
    for size in case.reachable {
        assert!(reachable.contains(size), "{}: {reachable:?}", case.name);
    }
}

#[test]
fn each_block_of_a_program_is_judged_by_the_pointers_to_it() {
    for case in &CASES {
        assert_case(case, run(fixture(case.name)));
    }
}

#[test]
fn a_static_program_is_judged_like_a_dynamic_one() {
    for case in &CASES {
        let held = held::run(&[with_libc_inside(case.name)], &holder(), None);
        assert_case(case, held);
    }
}

/// A callee of main may save a pointer of main's on the stack. It may also leave slots of its frame unwritten.
#[test]
#[cfg(target_arch = "x86_64")]
fn of_the_frames_of_exit_only_saved_registers_are_roots() {
    const NAME: &str = "frames_at_exit";
    let inside = with_libc_inside(NAME);
    for (program, file, recorder) in [
        (fixture(NAME), libc_path(), Some(recorder())),
        (inside.clone(), inside, None),
    ] {
        let frames = exit_frames(&file);
        assert!(frames.len() >= 2, "{frames:?}");
        // Which of the two blocks are lost, and which are reachable.
        let sizes = |frames: &[ExitFrame]| {
            let mut held = held::run(&[&program], &holder(), recorder.as_deref());
            let sizes = sizes_by(held.pop().expect("a process"), frames);
            [0, 3].map(|kind| {
                let ours = |size: &&u64| [800, 1000].contains(*size);
                sizes[kind].iter().filter(ours).copied().collect::<Vec<_>>()
            })
        };
        assert_eq!(sizes(&frames), [vec![1000], vec![800]]);
        assert_eq!(sizes(&[]), [vec![], vec![800, 1000]]);
        // The frames would hide the pointer of main's if they were left out whole.
        let whole = |frame: &ExitFrame| ExitFrame {
            left_out: std::iter::once(8..frame.size).collect(),
            ..frame.clone()
        };
        let whole: Vec<_> = frames.iter().map(whole).collect();
        assert_eq!(sizes(&whole), [vec![800, 1000], vec![]]);
    }
}

/// In a static program, main is in the file of the C library. It may call `_exit` itself.
#[test]
#[cfg(target_arch = "x86_64")]
fn a_programs_own_frames_are_roots() {
    let program = with_libc_inside("frames_at__exit");
    let frames = exit_frames(&program);
    let mut held = held::run(&[program], &holder(), None);
    let [.., reachable] = sizes_by(held.pop().expect("a process"), &frames);
    assert!(reachable.contains(&800), "{reachable:?}");
}

#[test]
fn pointers_into_objects_count() {
    let flags = ["-O1", "-no-pie"];
    for (name, flags) in [("objects", &flags[..1]), ("objects-fixed", &flags)] {
        let source = "fixtures/points_into_objects.cc";
        assert_case(
            &OBJECTS,
            run(fixtures::compile_with("c++", source, name, flags)),
        );
    }
}

#[test]
fn a_child_is_judged_for_its_own_blocks() {
    let held = run(fixture("child_adds_to_inherited"));
    let (forks, others): (Vec<_>, Vec<_>) = held.into_iter().partition(|held| held.is_fork);
    let [fork, other] = [forks, others].map(|mut held| {
        assert_eq!(held.len(), 1);
        sizes(held.remove(0))
    });
    assert_eq!(fork, [vec![2500], vec![], vec![], vec![2400]]);
    assert_eq!(other, [vec![], vec![], vec![], vec![48]]);
}
