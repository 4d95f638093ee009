//! What memleak says about blocks that were never freed, with allocators that take the C library's place. They are
//! preloaded, or linked. Less may be found than with glibc, but never more.

use std::path::PathBuf;

use crate::common::Job;
use crate::common::fixtures::{compile_with, compiled_in};
use crate::reach_programs::{DYNAMIC, GLIBC, KINDS, assert_kind, of_child, program, wrong_cases};

/// Each by the file that the linker uses for `-lNAME`.
const LIBRARIES: [&str; 4] = ["jemalloc", "tcmalloc_minimal", "tcmalloc", "mimalloc"];

fn library(name: &str) -> PathBuf {
    compiled_in(&format!("lib{name}.so"))
}

/// What an allocator loses itself: tcmalloc forgets an object of eight bytes at its start.
fn own(library: &str) -> u64 {
    match library.starts_with("tcmalloc") {
        true => 8,
        false => 0,
    }
}

#[test]
fn each_kind_is_judged_with_other_allocators() {
    for name in LIBRARIES {
        for kind in &KINDS {
            let found = match (name, kind.name) {
                // Freed memory in pages without blocks may be the program's.
                ("tcmalloc" | "tcmalloc_minimal", "frees_what_points") => 0,
                ("tcmalloc" | "tcmalloc_minimal", "threads_lose_blocks") => 4600,
                _ => kind.lost,
            };
            let source = format!("{}.c", kind.name);
            let preloaded = Job::new::<&str>(program(&source, DYNAMIC), []);
            let preloaded = preloaded.env("LD_PRELOAD", library(name));
            assert_kind(kind, preloaded, own(name), found, name);
            let flags = ["-O1", "-Wl,--no-as-needed", &format!("-l{name}")];
            let output = format!("{}-{name}-reach", kind.name);
            let linked = compile_with("cc", &format!("fixtures/{source}"), &output, &flags);
            let what = format!("{name}, linked");
            assert_kind(kind, Job::new::<&str>(linked, []), own(name), found, &what);
        }
    }
}

/// Of other allocators it is not known which blocks a child has inherited.
#[test]
fn what_hangs_on_inherited_blocks_is_never_lost() {
    for name in LIBRARIES {
        let job = Job::new::<&str>(program("child_adds_to_inherited.c", DYNAMIC), []);
        let [child, parent] = of_child(job.env("LD_PRELOAD", library(name)));
        assert!([0, 2500].contains(&child), "{name}: {child}");
        assert_eq!(parent, own(name), "{name}");
    }
}

/// What objects of C++ allocate depends on its library, so this is no test for other systems.
#[test]
fn objects_are_judged_with_the_c_library() {
    let mut wrong = Vec::new();
    for build in &GLIBC[..2] {
        wrong.extend(wrong_cases("objects", *build, None, true));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn no_case_is_called_lost_that_is_not_with_other_allocators() {
    let mut wrong = Vec::new();
    for name in ["jemalloc", "tcmalloc", "mimalloc"] {
        let library = library(name);
        let preloaded = Some((&*library, own(name)));
        for fixture in ["shapes", "roots", "threads", "forks", "objects"] {
            let of_library = wrong_cases(fixture, DYNAMIC, preloaded, false).into_iter();
            wrong.extend(of_library.map(|wrong| format!("{name}: {wrong}")));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
