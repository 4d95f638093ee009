//! Allocators that memleak does not know at its start, and that the processes of a tree bring one by one. Such an
//! allocator is in a static program, in another C library, or in a library opened at run time. Its file may be in
//! another root or mount, only in memory, or deleted. memleak counts each allocator from its first call, or the row
//! says why it does not.
//!
//! The programs are copies, so that each test runs files that memleak does not know. Their allocations are known from
//! their source and from gdb (`common/newcomers.rs`).

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::counter::Image;
use crate::common::expected::{End, counts};
use crate::common::newcomers::{Kind, Place, life, mapped, own, plus, run, same_file, start};
use crate::common::probes::{self, run_words};
use crate::common::switches::switch;
use crate::common::{Counted, Counts, Job, Losses, Report, Row, code, compile, fixture};

/// An image: its `exe`, its end and its counts.
type Life = (PathBuf, End, Counts);

/// An image that ends with exit code 0.
fn of(program: &Path, counts: Counts) -> Life {
    (program.to_owned(), End::Exit(0), counts)
}

/// Fails unless the command exited with 0, every process was covered and nothing was lost. The images of these files
/// must be exactly the expected ones, in any order.
#[track_caller]
fn assert_lives(report: &Report, expected: impl IntoIterator<Item = Life>) {
    assert_eq!(code(report.status), 0, "{}{}", report.stdout, report.stderr);
    let mut expected: Vec<_> = expected.into_iter().collect();
    let mut found: Vec<_> = report
        .rows
        .iter()
        .filter_map(|row| Some((row.exe.clone()?, End::of(row), row.counts)))
        .filter(|(exe, ..)| expected.iter().any(|(other, ..)| other == exe))
        .collect();
    // Keeps the images that are on one side only.
    expected.retain(|life| match found.iter().position(|other| other == life) {
        Some(place) => {
            found.remove(place);
            false
        }
        None => true,
    });
    assert!(
        found.is_empty() && expected.is_empty(),
        "found {found:#?}\ninstead of {expected:#?}\n{}",
        report.stderr
    );
    assert_covered(report);
}

#[track_caller]
fn assert_covered(report: &Report) {
    report.assert_complete();
    for row in &report.rows {
        assert_eq!(row.uncovered, None, "{row:#?}");
    }
    let summary = &report.summary;
    assert_eq!(summary.covered_processes, Some(summary.processes));
}

/// The only image with this `exe`.
#[track_caller]
fn row_of<'a>(report: &'a Report, exe: &Path) -> &'a Row {
    let is_it = |row: &&Row| row.exe.as_deref() == Some(exe);
    let found: Vec<_> = report.rows.iter().filter(is_it).collect();
    match found[..] {
        [row] => row,
        _ => panic!(
            "expected one image of {}: {:#?}\n{}",
            exe.display(),
            report.rows,
            report.stderr
        ),
    }
}

/// Fails unless exactly these files are the allocators of the image.
#[track_caller]
fn assert_allocators(row: &Row, files: &[&Path]) {
    assert_eq!(row.allocators.len(), files.len(), "{row:#?}");
    for file in files {
        assert!(
            row.allocators.iter().any(|other| same_file(other, file)),
            "the allocator {} is missing: {row:#?}",
            file.display()
        );
    }
}

/// A shell that runs a script. The final `exit` keeps the shell from replacing itself with the last program.
fn shell(script: &str) -> Job {
    Job::shell(&format!("set -e\n{script}\nexit 0"))
}

/// A shell in its own mount namespace.
fn shell_with_mounts(script: &str) -> Job {
    Job::new(
        "unshare",
        ["--mount", "sh", "-c", &format!("set -e\n{script}\nexit 0")],
    )
}

// ---- static programs -----------------------------------------------------------------------------------

#[test]
fn a_program_that_memleak_knows_from_the_start_is_exact() {
    let place = Place::new();
    for kind in [
        Kind::Dynamic,
        Kind::Static,
        Kind::StaticPie,
        Kind::Musl,
        Kind::MuslStatic,
    ] {
        let program = place.newcomer(kind, &format!("{kind:?}"));
        let report = Job::new(&program, ["1000"]).run();
        assert_eq!(code(report.status), 0, "{kind:?}: {}", report.stderr);
        report.assert_complete();
        assert_eq!(
            report.only_row().counts,
            life(kind, &program, 1000),
            "{kind:?}"
        );
    }
}

/// Runs a program of this kind twice in one tree. memleak knows the program at the second run.
#[track_caller]
fn assert_counted_from_its_first_call(kind: Kind) {
    let place = Place::new();
    let program = place.newcomer(kind, "newcomer");
    let report = shell(&format!("{0} 1000; {0} 70", program.display())).run();
    let lives = [1000, 70].map(|bytes| of(&program, life(kind, &program, bytes)));
    assert_lives(&report, lives);
    for row in report.rows.iter().filter(|row| row.comm == "newcomer") {
        assert_eq!(row.allocators, std::slice::from_ref(&program));
    }
}

#[test]
fn a_static_child_is_counted_from_its_first_call() {
    assert_counted_from_its_first_call(Kind::Static);
}

#[test]
fn a_static_pie_child_is_counted_from_its_first_call() {
    assert_counted_from_its_first_call(Kind::StaticPie);
}

#[test]
fn a_static_musl_child_is_counted_from_its_first_call() {
    assert_counted_from_its_first_call(Kind::MuslStatic);
}

#[test]
fn a_musl_child_is_counted_from_its_first_call() {
    let place = Place::new();
    let systems = place.newcomer(Kind::Musl, "systems");
    // musl's loader is also its libc. Here it is a file in the program's directory.
    let loader = place.copy(Path::new("/lib/ld-musl-x86_64.so.1"), "loader");
    let own_loader = place.path("own");
    let source = "fixtures/allocates_from_start_to_end.c";
    run(Command::new("musl-gcc")
        .args(["-fno-builtin", "-o"])
        .arg(&own_loader)
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join(source))
        .arg(format!("-Wl,--dynamic-linker={}", loader.display())));
    let report = shell(&format!(
        "{} 1000; {} 70",
        systems.display(),
        own_loader.display()
    ))
    .run();
    assert_lives(&report, [of(&systems, own(1000)), of(&own_loader, own(70))]);
    assert_allocators(row_of(&report, &own_loader), &[&loader]);
    assert_allocators(
        row_of(&report, &systems),
        &[Path::new("/lib/ld-musl-x86_64.so.1")],
    );
}

#[test]
fn fifty_starts_of_a_static_program_in_a_row_are_all_exact() {
    for kind in Kind::STATIC {
        let place = Place::new();
        let program = place.newcomer(kind, "newcomer");
        let script = format!(
            "i=0; while [ $i -lt 50 ]; do i=$((i + 1)); {} $i; done",
            program.display()
        );
        let report = shell(&script).run();
        let lives = (1..=50).map(|bytes| of(&program, life(kind, &program, bytes)));
        assert_lives(&report, lives);
    }
}

#[test]
fn a_new_static_program_started_eight_times_at_once_is_exact() {
    let place = Place::new();
    let programs: Vec<_> = Kind::STATIC
        .into_iter()
        .map(|kind| (kind, place.newcomer(kind, &format!("{kind:?}"))))
        .collect();
    let mut script = String::new();
    for (_, program) in &programs {
        script += &format!(
            "for i in 1 2 3 4 5 6 7 8; do {} $i & done; wait\n",
            program.display()
        );
    }
    let report = shell(&script).run();
    let lives = programs
        .iter()
        .flat_map(|(kind, program)| (1..=8).map(|n| of(program, life(*kind, program, n))));
    assert_lives(&report, lives);
}

#[test]
fn eight_static_programs_that_start_at_once_are_all_exact() {
    let place = Place::new();
    let kinds = Kind::STATIC.into_iter().cycle().take(8);
    let programs: Vec<_> = (1..)
        .zip(kinds)
        .map(|(n, kind)| (n, kind, place.newcomer(kind, &format!("newcomer{n}"))))
        .collect();
    let mut script = String::new();
    for (n, _, program) in &programs {
        script += &format!("{} {n} & ", program.display());
    }
    let report = shell(&(script + "wait")).run();
    let lives = programs
        .iter()
        .map(|(n, kind, program)| of(program, life(*kind, program, *n)));
    assert_lives(&report, lives);
}

#[test]
fn a_hundred_static_programs_in_one_tree_are_all_exact() {
    let place = Place::new();
    let kinds = Kind::STATIC.into_iter().cycle().take(100);
    let programs: Vec<_> = (1..)
        .zip(kinds)
        .map(|(n, kind)| (n, kind, place.newcomer(kind, &format!("newcomer{n}"))))
        .collect();
    let mut script = String::new();
    // All programs run once, then all of them run again. The first probes must still be attached then.
    for round in [0, 1000] {
        for (n, _, program) in &programs {
            script += &format!("{} {}\n", program.display(), n + round);
        }
    }
    let report = shell(&script).run();
    let lives = programs.iter().flat_map(|(n, kind, program)| {
        [*n, *n + 1000].map(|bytes| of(program, life(*kind, program, bytes)))
    });
    assert_lives(&report, lives);
}

#[test]
fn a_static_program_that_forks_many_children_is_exact() {
    let place = Place::new();
    let script = |program: &Path| format!("{} 20", program.display());
    let program = place.copy(&Kind::MuslStatic.build("fork_storm"), "storm");
    let report = shell(&script(&program)).run();
    let of_child = |c: u64| of(&program, counts(1000 + c % 100, 2, 1, c % 100, 1));
    let parent = of(&program, counts(1, 1, 0, 1, 1));
    assert_lives(&report, (0..20).map(of_child).chain([parent]));
}

// ---- programs that execute others ----------------------------------------------------------------------

#[test]
fn a_chain_of_execs_is_exact_for_each_image() {
    let place = Place::new();
    let first = place.copy(&Kind::Static.build("leaks_and_executes"), "first");
    let second = place.copy(&Kind::MuslStatic.build("leaks_and_executes"), "second");
    let world = World::new(&place, "world");
    let third = world.program("third", "leaks_and_executes", &["-Wl,--enable-new-dtags"]);
    let last = place.newcomer(Kind::StaticPie, "last");
    let script = format!(
        "exec {} 10 {} 20 {} 30 {} 40",
        first.display(),
        second.display(),
        third.display(),
        last.display()
    );
    let report = Job::shell(&script).run();
    let leaks = |bytes| counts(bytes + 7, 2, 1, bytes, 1);
    let executes = |program: &PathBuf, counts| (program.clone(), End::Exec, counts);
    assert_lives(
        &report,
        [
            executes(&first, plus(leaks(10), start(Kind::Static, &first))),
            executes(&second, leaks(20)),
            executes(&third, leaks(30)),
            of(&last, life(Kind::StaticPie, &last, 40)),
        ],
    );
    assert_allocators(row_of(&report, &third), &[&world.libc]);
    let images: Vec<_> = report.rows.iter().map(|row| row.image).collect();
    assert_eq!(
        images,
        [0, 1, 2, 3, 4],
        "expected the images of one process: {:#?}",
        report.rows
    );
}

#[test]
fn new_programs_spawned_by_threads_are_exact() {
    let place = Place::new();
    let kinds = [Kind::Static, Kind::MuslStatic, Kind::Static, Kind::Musl];
    let programs: Vec<_> = (1..)
        .zip(kinds)
        .map(|(n, kind)| (n, kind, place.newcomer(kind, &format!("newcomer{n}"))))
        .collect();
    let script = "
import subprocess, sys, threading
def spawn(n, program):
    for bytes in n, n + 100:
        subprocess.run([program, str(bytes)], check=True)
threads = [threading.Thread(target=spawn, args=pair) for pair in enumerate(sys.argv[1:], 1)]
for thread in threads: thread.start()
for thread in threads: thread.join()
";
    let words = ["-c".as_ref(), script.as_ref()].into_iter();
    let words = words.chain(programs.iter().map(|(_, _, program)| program.as_os_str()));
    let report = Job::new("python3", words).run();
    let lives = programs.iter().flat_map(|(n, kind, program)| {
        [*n, n + 100].map(|bytes| of(program, life(*kind, program, bytes)))
    });
    assert_lives(&report, lives);
}

#[test]
fn an_interpreter_reached_through_two_scripts_is_exact() {
    for kind in [Kind::Static, Kind::Dynamic] {
        let place = Place::new();
        let world = World::new(&place, "world");
        let program = match kind {
            Kind::Static => place.newcomer(kind, "interpreter"),
            _ => world.program("interpreter", NEWCOMER, &[]),
        };
        let inner = place.script("inner", &format!("#!{} 40\n", program.display()));
        let outer = place.script("outer", &format!("#!{}\n", inner.display()));
        let report = shell(&outer.display().to_string()).run();
        assert_lives(&report, [of(&outer, life(kind, &program, 40))]);
    }
}

#[test]
fn an_interpreter_registered_with_binfmt_misc_is_exact() {
    let place = Place::new();
    let program = place.newcomer(Kind::Static, "interpreter");
    let data = place.script("data", "NEWCOMER\n");
    let mount = place.directory("binfmt");
    // The script runs in its own user namespace, so that the format is registered only there.
    let script = format!(
        "set -e; mount -t binfmt_misc none {mount}
         echo ':newcomer:M::NEWCOMER::{program}:' >{mount}/register
         {data}; exit 0",
        mount = mount.display(),
        program = program.display(),
        data = data.display()
    );
    let namespaces = ["--user", "--map-root-user", "--mount", "sh", "-c"];
    let report = Job::new("unshare", namespaces.into_iter().chain([&*script])).run();
    // The interpreter's first argument is the path of the file. It is not a number, so the program takes 0 bytes.
    assert_lives(&report, [of(&data, life(Kind::Static, &program, 0))]);
}

// ---- libraries opened at run time ----------------------------------------------------------------------

/// Runs a job under memleak and the counter. Where the C library counts by itself, the counter has a run of its own.
#[track_caller]
fn beside_the_counter(job: &Job) -> Counted {
    match probes::are_inside() {
        false => job.run_counted(),
        true => Counted {
            report: job.run(),
            images: job.count().0,
        },
    }
}

/// The part of memleak's counts of the image of `exe` that the interposing counter does not have. The counter was not
/// called for these allocations.
#[track_caller]
fn beyond_the_counter(counted: &Counted, exe: &Path) -> Counts {
    let Counted { report, images } = counted;
    assert_eq!(code(report.status), 0, "{}{}", report.stdout, report.stderr);
    assert_covered(report);
    let row = row_of(report, exe);
    let is_run = |image: &Image| image.pid == row.pid || probes::are_inside();
    let is_it = |image: &&Image| is_run(image) && image.exe == exe;
    let image = images
        .iter()
        .find(is_it)
        .expect("the counter has this image");
    let (all, seen) = (row.counts, image.counts);
    let less = |all: u64, seen: u64| {
        all.checked_sub(seen)
            .unwrap_or_else(|| panic!("the counter counted more than memleak: {seen:?}, {row:#?}"))
    };
    Counts {
        total_allocs_bytes: less(all.total_allocs_bytes, seen.total_allocs_bytes),
        alloc_count: less(all.alloc_count, seen.alloc_count),
        free_count: less(all.free_count, seen.free_count),
        leaked_bytes: less(all.leaked_bytes, seen.leaked_bytes),
        leaked_blocks: less(all.leaked_blocks, seen.leaked_blocks),
        failed_allocs: less(all.failed_allocs, seen.failed_allocs),
        unknown_frees: less(all.unknown_frees, seen.unknown_frees),
    }
}

/// A job that opens a library. `fixtures/opens_libraries.c` explains `how`.
fn opens(how: &str, library: &Path, bytes: u64) -> Job {
    let job = Job::new(
        fixture("opens_libraries"),
        [
            how.as_ref(),
            library.as_os_str(),
            bytes.to_string().as_ref(),
        ],
    );
    // jemalloc has static thread-local storage. glibc must reserve space for it before a library is opened.
    job.env("GLIBC_TUNABLES", "glibc.rtld.optional_static_tls=65536")
}

/// The counts of `library_that_allocates` for an argument of `bytes`.
fn by_library(bytes: u64) -> Counts {
    counts(1000 + 60 + bytes + 60, 4, 2, 1000 + bytes, 2)
}

/// A library with its own allocator.
fn bump() -> PathBuf {
    let source = "fixtures/bump_allocator.c";
    compile(source, "libbump_allocator.so", &["-O1"])
}

/// A library that allocates.
fn library(place: &Place, name: &str, flags: &[&str]) -> PathBuf {
    place.copy(
        &compile(
            "fixtures/library_that_allocates.c",
            &format!("lib{name}.so"),
            flags,
        ),
        &format!("lib{name}.so"),
    )
}

#[test]
fn an_allocator_opened_at_run_time_and_called_by_address_is_exact() {
    let place = Place::new();
    let jemalloc = run(Command::new("gcc").arg("-print-file-name=libjemalloc.so"));
    let jemalloc = place.copy(Path::new(jemalloc.trim_end()), "libjemalloc.so.2");
    let bump = place.copy(&bump(), "libbump.so");
    for allocator in [jemalloc, bump] {
        let counted = beside_the_counter(&opens("malloc", &allocator, 3000));
        let exe = fixture("opens_libraries");
        assert_eq!(
            beyond_the_counter(&counted, &exe),
            counts(3050, 2, 1, 3000, 1),
            "{}",
            allocator.display()
        );
        let row = row_of(&counted.report, &exe);
        assert!(
            row.allocators
                .iter()
                .any(|file| same_file(file, &allocator)),
            "{row:#?}"
        );
    }
}

#[test]
fn a_constructor_of_an_opened_library_with_its_own_allocator_is_counted() {
    let place = Place::new();
    let bump = bump();
    let directory = bump.parent().expect("a directory").display().to_string();
    let bump = place.copy(&bump, "libbump_allocator.so");
    let links = [
        "-O1",
        "-L",
        &directory,
        "-Wl,--no-as-needed,-rpath,$ORIGIN",
        "-l:libbump_allocator.so",
    ];
    let library = library(&place, "brings_its_allocator", &links);
    let exe = fixture("opens_libraries");
    let counted = beside_the_counter(&opens("deepbind", &library, 3000));
    assert_eq!(beyond_the_counter(&counted, &exe), by_library(3000));
    let row = row_of(&counted.report, &exe);
    assert!(
        row.allocators.iter().any(|file| same_file(file, &bump)),
        "{row:#?}"
    );
    // Without RTLD_DEEPBIND the program's own allocator comes first.
    let counted = beside_the_counter(&opens("open", &library, 3000));
    assert_eq!(beyond_the_counter(&counted, &exe), Counts::default());
}

#[test]
fn a_library_in_its_own_linker_namespace_is_counted() {
    let place = Place::new();
    let library = library(&place, "allocates", &["-O1"]);
    let exe = fixture("opens_libraries");
    let counted = beside_the_counter(&opens("newlm", &library, 3000));
    assert_eq!(beyond_the_counter(&counted, &exe), by_library(3000));
}

#[test]
fn a_library_in_its_own_linker_namespace_may_bring_another_libc() {
    let place = Place::new();
    let libc = place.copy(&mapped("libc.so."), "libc.so.6");
    let links = ["-O1", "-Wl,-rpath,$ORIGIN"];
    let library = library(&place, "prefers_its_directory", &links);
    let exe = fixture("opens_libraries");
    let counted = beside_the_counter(&opens("newlm", &library, 3000));
    assert_eq!(beyond_the_counter(&counted, &exe), by_library(3000));
    let row = row_of(&counted.report, &exe);
    assert!(
        row.allocators.iter().any(|file| same_file(file, &libc)),
        "{row:#?}"
    );
}

#[test]
fn other_threads_keep_running_while_one_thread_opens_an_allocator() {
    let place = Place::new();
    let bump = place.copy(&bump(), "libbump.so");
    let exe = fixture("opens_beside_threads");
    let words = [bump.as_os_str(), "3000".as_ref()];
    let job = Job::new(&exe, words).options([switch("hold-delay", "300")]);
    let counted = beside_the_counter(&job);
    assert_eq!(
        beyond_the_counter(&counted, &exe),
        counts(3000, 1, 0, 3000, 1)
    );
    let meanwhile: u64 = counted.report.stdout.trim().parse().expect("a number");
    assert!(
        meanwhile > 1000,
        "the other threads made only {meanwhile} allocations in 300 ms"
    );
}

#[test]
fn an_allocator_opened_after_the_main_thread_has_ended_is_exact() {
    let place = Place::new();
    let bump = place.copy(&bump(), "libbump.so");
    let exe = fixture("opens_without_its_leader");
    let words = [bump.as_os_str(), "3000".as_ref()];
    let counted = beside_the_counter(&Job::new(&exe, words));
    assert_eq!(
        beyond_the_counter(&counted, &exe),
        counts(3000, 1, 0, 3000, 1)
    );
}

// ---- another libc --------------------------------------------------------------------------------------

const NEWCOMER: &str = "allocates_from_start_to_end";

/// A directory with programs in `bin`, and with its own C library and loader in `lib`.
struct World {
    root: PathBuf,
    libc: PathBuf,
    loader: PathBuf,
}

impl World {
    fn new(place: &Place, name: &str) -> Self {
        let root = place.directory(name);
        place.directory(&format!("{name}/bin"));
        place.directory(&format!("{name}/lib"));
        Self {
            libc: place.copy(&mapped("libc.so."), &format!("{name}/lib/libc.so.6")),
            loader: place.copy(&mapped("ld-"), &format!("{name}/lib/ld.so")),
            root,
        }
    }

    /// Builds `bin/NAME`, which looks for its libraries in `../lib`.
    fn program(&self, name: &str, source: &str, flags: &[&str]) -> PathBuf {
        self.linked(name, source, "$ORIGIN/../lib", flags)
    }

    fn linked(&self, name: &str, source: &str, libraries: &str, flags: &[&str]) -> PathBuf {
        let program = self.root.join("bin").join(name);
        let source = format!("{}/fixtures/{source}.c", env!("CARGO_MANIFEST_DIR"));
        run(Command::new("cc")
            .args(["-O1", "-fno-builtin", "-o"])
            .arg(&program)
            .arg(source)
            .arg(format!("-Wl,-rpath,{libraries}"))
            .args(flags));
        program
    }
}

#[test]
fn programs_with_their_own_libc_are_exact_for_each_search_path_and_loader() {
    let place = Place::new();
    let world = World::new(&place, "world");
    let own_loader = format!("-Wl,--dynamic-linker={}", world.loader.display());
    // DT_RUNPATH or DT_RPATH, each with the world's loader and with the system's.
    let programs = [
        world.program("a", NEWCOMER, &["-Wl,--enable-new-dtags"]),
        world.program("b", NEWCOMER, &["-Wl,--disable-new-dtags"]),
        world.program("c", NEWCOMER, &["-Wl,--enable-new-dtags", &own_loader]),
        world.program("d", NEWCOMER, &["-Wl,--disable-new-dtags", &own_loader]),
    ];
    // Each program runs in its own tree, where this libc is new. Then all of them run in one tree.
    for (n, program) in (1..).zip(&programs) {
        let report = shell(&format!("{} {n}", program.display())).run();
        assert_lives(&report, [of(program, own(n))]);
        assert_allocators(row_of(&report, program), &[&world.libc]);
    }
    let mut script = String::new();
    for (n, program) in (1..).zip(&programs) {
        script += &format!("{} {n}; ", program.display());
    }
    let report = shell(&script).run();
    assert_lives(
        &report,
        (1..).zip(&programs).map(|(n, program)| of(program, own(n))),
    );
}

#[test]
fn eight_programs_with_a_libc_each_that_start_at_once_are_all_exact() {
    let place = Place::new();
    let programs: Vec<_> = (1..=8)
        .map(|n| World::new(&place, &format!("world{n}")).program("newcomer", NEWCOMER, &[]))
        .collect();
    let mut script = String::new();
    for (n, program) in (1..).zip(&programs) {
        script += &format!("{} {n} & ", program.display());
    }
    let report = shell(&(script + "wait")).run();
    assert_lives(
        &report,
        (1..).zip(&programs).map(|(n, program)| of(program, own(n))),
    );
}

#[test]
fn a_libc_found_through_ld_library_path_is_exact() {
    let place = Place::new();
    let world = World::new(&place, "world");
    let program = place.newcomer(Kind::Dynamic, "newcomer");
    let script = format!(
        "LD_LIBRARY_PATH={} {} 60",
        world.libc.parent().expect("a directory").display(),
        program.display()
    );
    let report = shell(&script).run();
    assert_lives(&report, [of(&program, own(60))]);
    assert_allocators(row_of(&report, &program), &[&world.libc]);
}

#[test]
fn a_program_passed_to_a_loader_as_an_argument_is_exact() {
    let place = Place::new();
    let world = World::new(&place, "world");
    let program = place.newcomer(Kind::Dynamic, "newcomer");
    let script = format!(
        "{} --library-path {} {} 60",
        world.loader.display(),
        world.libc.parent().expect("a directory").display(),
        program.display()
    );
    let report = shell(&script).run();
    assert_lives(&report, [of(&world.loader, own(60))]);
    assert_allocators(row_of(&report, &world.loader), &[&world.libc]);
}

#[test]
fn a_libc_replaced_on_disk_is_a_new_libc_for_later_programs() {
    let place = Place::new();
    let world = World::new(&place, "world");
    let waits = world.program("waits", "leaks_before_and_after_reading", &[]);
    let later = world.program("later", NEWCOMER, &[]);
    let new = place.copy(&world.libc, "new");
    run(Command::new("mkfifo").args([place.path("in"), place.path("out")]));
    let script = format!(
        "cd {top}
         {waits} 100 <in >out & exec 3>in 4<out
         read line <&4
         mv {new} {libc}
         {later} 200
         exec 3>&-
         wait $!
         {later} 300",
        top = place.path("").display(),
        waits = waits.display(),
        new = new.display(),
        libc = world.libc.display(),
        later = later.display(),
    );
    let report = shell(&script).run();
    assert_lives(
        &report,
        [
            of(&waits, counts(200, 2, 0, 200, 2)),
            of(&later, own(200)),
            of(&later, own(300)),
        ],
    );
}

/// As soon as the new content is mapped, the kernel puts breakpoints at the places where the old content had them. The
/// first process that maps the new content gets its own code back and is not followed. Later processes are followed.
#[test]
fn a_program_rewritten_in_place_runs_its_new_code_and_is_exact_from_the_second_run() {
    let place = Place::new();
    let kinds = [Kind::Static, Kind::MuslStatic, Kind::StaticPie];
    let contents = kinds.map(|kind| (kind, place.newcomer(kind, &format!("{kind:?}"))));
    let program = place.newcomer(Kind::Static, "program");
    let mut script = format!("{} 1\n", program.display());
    let mut lives = vec![of(&program, life(Kind::Static, &program, 1))];
    for (n, (kind, content)) in (2..).zip(contents.iter().cycle().skip(1).take(12)) {
        // The same file gets other code at the places of the probes.
        let (from, to) = (content.display(), program.display());
        script += &format!("cat {from} >{to}; {to} 0 || exit; sleep 0.3; {to} {n} || exit\n");
        lives.push(of(&program, life(*kind, &program, n)));
    }
    let mut report = shell(&script).run();
    assert_eq!(code(report.status), 0, "{}{}", report.stdout, report.stderr);
    let mut unfollowed = 0;
    report.rows.retain(|row| {
        let is_first = row.uncovered.as_deref() == Some("unexamined");
        assert!(!is_first || (!row.complete && row.counts == Counts::default()));
        unfollowed += usize::from(is_first);
        !is_first
    });
    assert_eq!(unfollowed, 12, "{}", report.stderr);
    let found = report.rows.iter();
    let found = found.filter(|row| row.exe.as_deref() == Some(&program));
    let found: Vec<_> = found.map(|row| row.counts).collect();
    let expected: Vec<_> = lives.iter().map(|(.., counts)| *counts).collect();
    assert_eq!(found, expected, "{}", report.stderr);
    assert!(report.rows.iter().all(|row| row.complete));
}

// ---- other roots and mounts ----------------------------------------------------------------------------

/// A root with a dynamic program, `/bin/dynamic`, and a static one, `/bin/static`.
fn root(place: &Place, name: &str) -> World {
    let world = World::new(place, name);
    let loader = "-Wl,--dynamic-linker=/lib/ld.so";
    world.linked("dynamic", NEWCOMER, "/lib", &[loader]);
    place.newcomer(Kind::MuslStatic, &format!("{name}/bin/static"));
    world
}

/// The images of `/bin/dynamic 10`, `/bin/static 20` and `/bin/dynamic 30`.
fn lives_in_root() -> [Life; 3] {
    let [dynamic, statically] = ["/bin/dynamic", "/bin/static"].map(Path::new);
    [
        of(dynamic, own(10)),
        of(statically, own(20)),
        of(dynamic, own(30)),
    ]
}

fn run_in_root(root: &Path) -> String {
    let root = root.display();
    format!(
        "chroot {root} /bin/dynamic 10; chroot {root} /bin/static 20; chroot {root} /bin/dynamic 30\n"
    )
}

#[test]
fn programs_in_another_root_are_exact() {
    let place = Place::new();
    let world = root(&place, "root");
    let report = shell(&run_in_root(&world.root)).run();
    assert_lives(&report, lives_in_root());
}

#[test]
fn a_libc_mounted_over_the_system_libc_is_a_new_libc() {
    let place = Place::new();
    let libc = place.copy(&mapped("libc.so."), "libc");
    let program = place.newcomer(Kind::Dynamic, "newcomer");
    let script = format!(
        "{program} 10; mount --bind {} {}; {program} 20; {program} 30",
        libc.display(),
        mapped("libc.so.").display(),
        program = program.display()
    );
    let report = shell_with_mounts(&script).run();
    assert_lives(&report, [10, 20, 30].map(|bytes| of(&program, own(bytes))));
    for row in report.rows.iter().filter(|row| row.comm == "newcomer") {
        assert_eq!(row.allocators.len(), 1, "{row:#?}");
    }
}

/// Commands that mount an overlay at `name/merged` in `place`. Its lower layer is `root`, its upper layer is in memory.
fn overlay(place: &Place, root: &Path, name: &str) -> String {
    let top = place.directory(name);
    format!(
        "mount -t tmpfs none {top}; mkdir {top}/upper {top}/work {top}/merged
         mount -t overlay -o lowerdir={root},upperdir={top}/upper,workdir={top}/work none {top}/merged\n",
        top = top.display(),
        root = root.display()
    )
}

#[test]
fn programs_on_an_overlay_are_exact() {
    let place = Place::new();
    let world = root(&place, "root");
    let merged = place.path("overlay/merged");
    let script = overlay(&place, &world.root, "overlay") + &run_in_root(&merged);
    let report = shell_with_mounts(&script).run();
    assert_lives(&report, lives_in_root());
}

#[test]
fn programs_that_two_overlays_share_are_counted_once() {
    let place = Place::new();
    let world = root(&place, "root");
    let script = overlay(&place, &world.root, "one")
        + &overlay(&place, &world.root, "other")
        + &run_in_root(&place.path("one/merged"))
        + &run_in_root(&place.path("other/merged"))
        // Also the lower layer without an overlay.
        + &run_in_root(&world.root)
        + &run_in_root(&place.path("one/merged"));
    let report = shell_with_mounts(&script).run();
    assert_lives(&report, (0..4).flat_map(|_| lives_in_root()));
}

#[test]
fn a_file_that_an_overlay_copied_up_is_a_new_file() {
    let place = Place::new();
    let world = root(&place, "root");
    let merged = place.path("overlay/merged");
    let run = run_in_root(&merged);
    let copy_up = format!("touch {0}/lib/libc.so.6 {0}/bin/static\n", merged.display());
    let script = overlay(&place, &world.root, "overlay") + &run + &copy_up + &run;
    let report = shell_with_mounts(&script).run();
    assert_lives(&report, (0..2).flat_map(|_| lives_in_root()));
}

#[test]
fn programs_after_pivot_root_are_exact() {
    let place = Place::new();
    let world = root(&place, "root");
    place.directory("root/old");
    place.directory("root/proc");
    // The tools that the script needs in that root, with all libraries that they map.
    let copy = r#"cp --parents $(ldd /bin/sh /bin/umount | grep -o '/[^ :]*' | sort -u) "$1""#;
    run(Command::new("sh").args(["-c", copy, "sh"]).arg(&world.root));
    // The old root is detached, as containers do. No file of the old root can be reached afterwards.
    let within = "/bin/umount -l /old; bin/dynamic 10; bin/static 20; bin/dynamic 30; exit 0";
    let script = format!(
        "cd {root}; mount --bind . .; cd ..; cd {root}; mount -t proc none proc
         pivot_root . old; exec /bin/sh -ec '{within}'",
        root = world.root.display()
    );
    let report = shell_with_mounts(&script).run();
    assert_lives(&report, lives_in_root());
}

#[test]
fn programs_on_a_detached_file_system_are_exact() {
    let place = Place::new();
    let mount = place.directory("mount");
    let program = place.newcomer(Kind::MuslStatic, "newcomer");
    let script = format!(
        "mount -t tmpfs none {mount}; cp {program} {mount}; cd {mount}; umount -l {mount}
         ./newcomer 10; ./newcomer 20",
        mount = mount.display(),
        program = program.display()
    );
    let report = shell_with_mounts(&script).run();
    assert_eq!(code(report.status), 0, "{}", report.stderr);
    assert_covered(&report);
    let found = report.rows.iter().filter(|row| row.comm == "newcomer");
    let found: Vec<_> = found.map(|row| row.counts).collect();
    assert_eq!(found, [own(10), own(20)]);
}

#[test]
fn a_file_system_can_be_unmounted_after_its_programs_have_run() {
    let place = Place::new();
    let mount = place.directory("mount");
    let program = mount.join("newcomer");
    let mut script = String::new();
    let mut lives = Vec::new();
    for (bytes, kind) in (1..).zip([Kind::Static, Kind::MuslStatic, Kind::Static]) {
        let newcomer = place.newcomer(kind, &format!("{bytes}"));
        // The file of the next program has the same device and inode numbers.
        script += &format!(
            "mount -t tmpfs none {mount}; cp {newcomer} {program}; {program} {bytes}; umount {mount}\n",
            mount = mount.display(),
            newcomer = newcomer.display(),
            program = program.display()
        );
        lives.push(of(&program, life(kind, &program, bytes)));
    }
    assert_lives(&shell_with_mounts(&script).run(), lives);
}

#[test]
fn programs_in_another_pid_namespace_are_exact() {
    for kind in [Kind::Static, Kind::Musl] {
        let place = Place::new();
        let program = place.newcomer(kind, "newcomer");
        let lives = [10, 20].map(|bytes| of(&program, life(kind, &program, bytes)));
        let script = format!("{0} 10; {0} 20; exit 0", program.display());
        let namespaces = ["--pid", "--fork", "--mount-proc"];
        // First memleak itself runs in the namespace, then only its tree.
        let words = ["unshare"].into_iter().chain(namespaces);
        let within = Job::shell(&script).under(&words.collect::<Vec<_>>());
        assert_lives(&within.run(), lives.clone());
        let words = namespaces.into_iter().chain(["sh", "-c", &script]);
        assert_lives(&Job::new("unshare", words).run(), lives);
    }
}

#[test]
fn programs_in_another_pid_namespace_are_exact_under_the_hosts_proc() {
    let place = Place::new();
    let program = place.newcomer(Kind::Static, "newcomer");
    let lives = [10, 20].map(|bytes| of(&program, life(Kind::Static, &program, bytes)));
    let job = shell(&format!("{0} 10; {0} 20", program.display()));
    assert_lives(&job.under(&["unshare", "--pid", "--fork"]).run(), lives);
}

#[test]
fn programs_in_another_user_namespace_are_exact() {
    let place = Place::new();
    let program = place.newcomer(Kind::Static, "newcomer");
    let script = format!("{0} 10; {0} 20; exit 0", program.display());
    let lives = [10, 20].map(|bytes| of(&program, life(Kind::Static, &program, bytes)));
    for namespaces in [
        &["--user"][..],
        &["--user", "--map-root-user", "--net", "--ipc"],
    ] {
        let words = namespaces.iter().chain(&["sh", "-c"]).copied();
        let report = Job::new("unshare", words.chain([&*script])).run();
        assert_lives(&report, lives.clone());
    }
}

// ---- files that are hard to open -----------------------------------------------------------------------

#[test]
fn programs_executed_from_a_file_in_memory_are_exact() {
    let place = Place::new();
    for kind in [Kind::MuslStatic, Kind::Dynamic, Kind::Musl] {
        let program = place.newcomer(kind, &format!("{kind:?}"));
        let words = [program.as_os_str(), "100".as_ref()];
        let report = Job::new(fixture("executes_from_memory"), words).run();
        assert_eq!(code(report.status), 0, "{kind:?}: {}", report.stderr);
        assert_covered(&report);
        let [first, second] = &report.rows[..] else {
            panic!("{kind:?}: {:#?}", report.rows)
        };
        assert_eq!((first.counts, second.counts), (Counts::default(), own(100)));
    }
}

#[test]
fn a_static_glibc_program_executed_from_a_file_in_memory_is_exact() {
    let place = Place::new();
    let program = place.newcomer(Kind::Static, "newcomer");
    let [less, more] = [100, 300].map(|bytes: u64| {
        let words = [program.as_os_str(), bytes.to_string().as_ref()].map(ToOwned::to_owned);
        let report = Job::new(fixture("executes_from_memory"), words).run();
        assert_covered(&report);
        report.rows.last().expect("a row").counts
    });
    let difference = counts(200, 0, 0, 200, 0);
    assert_eq!(more, plus(less, difference));
    // The number of calls is that of the same program on a disk. The bytes differ: one call allocates for the name of
    // the directory, which is another one here.
    let life = life(Kind::Static, &program, 100);
    assert_eq!(
        (less.alloc_count, less.free_count, less.leaked_blocks),
        (life.alloc_count, life.free_count, life.leaked_blocks)
    );
}

#[test]
fn programs_unlinked_as_they_start_are_exact() {
    let place = Place::new();
    for kind in [Kind::Static, Kind::MuslStatic, Kind::Dynamic] {
        for round in 0..5 {
            let program = place.newcomer(kind, &format!("{kind:?}{round}"));
            let expected = life(kind, &program, 100);
            let words = [program.as_os_str(), "100".as_ref()];
            let report = Job::new(fixture("unlinks_at_exec"), words).run();
            assert_lives(&report, [of(&program, expected)]);
            assert!(!program.exists());
        }
    }
}

#[test]
fn programs_executed_after_they_were_unlinked_are_exact() {
    let place = Place::new();
    for kind in [Kind::Static, Kind::MuslStatic, Kind::Dynamic] {
        let program = place.newcomer(kind, &format!("{kind:?}"));
        let expected = life(kind, &program, 100);
        let words = [program.as_os_str(), "100".as_ref()];
        let report = Job::new(fixture("executes_what_is_unlinked"), words).run();
        assert_eq!(code(report.status), 0, "{kind:?}: {}", report.stderr);
        assert_covered(&report);
        let counts: Vec<_> = report.rows.iter().map(|row| row.counts).collect();
        assert_eq!(counts, [Counts::default(), expected], "{kind:?}");
    }
}

#[test]
fn set_user_id_and_unreadable_programs_run_by_another_user_are_exact() {
    const OWNER: u32 = 54321;
    const OTHER: u32 = 54322;
    let place = Place::new();
    let program = place.newcomer(Kind::Static, "newcomer");
    let mount = place.directory("mount");
    // A file system that honours set-user-ID: /tmp may be mounted with `nosuid`.
    let script = format!(
        "mount -t tmpfs -o mode=755 none {mount}
         cp {program} {mount}/set-user-id; cp {program} {mount}/unreadable; cp {program} {mount}/plain
         chown {OWNER} {mount}/set-user-id {mount}/unreadable
         chmod 4755 {mount}/set-user-id; chmod 0711 {mount}/unreadable
         as='setpriv --reuid {OTHER} --regid {OTHER} --clear-groups'
         $as {mount}/set-user-id 10; $as {mount}/unreadable 20; $as {mount}/plain 30",
        mount = mount.display(),
        program = program.display(),
    );
    let report = shell_with_mounts(&script).run();
    let names = ["set-user-id", "unreadable", "plain"].map(|name| mount.join(name));
    let lives = [10, 20, 30].map(|bytes| {
        // The allocations at the start depend on the name of the directory.
        let beside = place.directory("mount").join("beside");
        life(Kind::Static, &beside, bytes)
    });
    assert_lives(
        &report,
        names
            .iter()
            .zip(lives)
            .map(|(program, counts)| of(program, counts)),
    );
    for name in &names {
        assert_eq!(row_of(&report, name).uid, OTHER);
    }
}

// ---- programs that cannot be counted -------------------------------------------------------------------

/// Fails unless the row of `program` says that the program is not covered, and why. `exit` is the program's exit code.
/// The report must be incomplete, so that it proves nothing, and a gate must be undecided.
#[track_caller]
fn assert_uncovered(program: &Path, exit: i32, reason: &str, note: &str) {
    let job = Job::shell(&format!("{} || exit $?; exit 0", program.display()));
    let report = job.run();
    assert_eq!(code(report.status), exit, "{}", report.stderr);
    let row = row_of(&report, program);
    assert_eq!(row.uncovered.as_deref(), Some(reason), "{row:#?}");
    assert_eq!(End::of(row), End::Exit(exit));
    assert!(!row.complete && row.allocators.is_empty(), "{row:#?}");
    assert_eq!((row.counts, row.losses), Default::default());
    let summary = &report.summary;
    assert!(!summary.complete);
    assert_eq!(summary.losses, Losses::default());
    assert_eq!((summary.processes, summary.covered_processes), (2, Some(1)));
    // The shell's row is complete as always.
    let others = report.rows.iter().filter(|other| other.pid != row.pid);
    assert!(others.clone().count() == 1 && others.clone().all(|row| row.complete));

    let gated = job.clone().options(["--fail-on-leak", "1GB"]).run();
    let unknown = if exit == 0 { 125 } else { exit };
    assert_eq!(code(gated.status), unknown, "{}", gated.stderr);
    let verdict = gated.summary.gate.map(|gate| gate.verdict);
    assert_eq!(verdict.as_deref(), Some("unknown"));

    let (_, table) = job.run_under(
        env!("CARGO_BIN_EXE_memleak"),
        &[run_words(), &["--"]].concat(),
    );
    let name = program.file_name().expect("a name").to_string_lossy();
    let line = table.lines().find(|line| line.contains(&*name));
    assert!(line.is_some_and(|line| line.ends_with(note)), "{table}");
    let last = table.lines().last().unwrap_or_default();
    assert!(last.contains("1 of 2 processes fully covered"), "{table}");
}

#[test]
fn the_row_of_a_program_without_symbols_says_so() {
    for kind in Kind::STATIC {
        let place = Place::new();
        let program = place.newcomer(kind, "stripped");
        run(Command::new("strip").arg("--strip-all").arg(&program));
        assert_uncovered(&program, 0, "no_symbols", "no allocator symbols");
    }
}

#[test]
fn the_row_of_a_program_without_an_allocator_says_so() {
    let place = Place::new();
    let program = compile("fixtures/without_libc.c", "without_libc", &["-O1"]);
    let program = place.copy(&program, "bare");
    assert_uncovered(&program, 7, "no_allocator", "no probed allocator");
}

#[test]
fn the_row_of_a_32_bit_program_says_so() {
    let place = Place::new();
    let program = compile(
        "fixtures/without_libc.c",
        "without_libc_32",
        &["-O1", "-m32"],
    );
    let program = place.copy(&program, "short");
    assert_uncovered(&program, 7, "32_bit", "32-bit program");
}

#[test]
fn the_last_line_omits_coverage_if_every_process_is_covered() {
    let place = Place::new();
    let program = place.newcomer(Kind::Static, "newcomer");
    let (status, table) = shell(&program.display().to_string()).run_under(
        env!("CARGO_BIN_EXE_memleak"),
        &[run_words(), &["--"]].concat(),
    );
    assert!(status.success(), "{table}");
    let row = table.lines().find(|line| line.contains("newcomer"));
    assert!(
        row.is_some_and(|row| row.trim_end().ends_with(" 0")),
        "{table}"
    );
    assert!(!table.contains("covered"), "{table}");
}

#[test]
fn uncovered_programs_do_not_change_the_counts_of_covered_ones() {
    let place = Place::new();
    let stripped = place.newcomer(Kind::Static, "stripped");
    run(Command::new("strip").arg("--strip-all").arg(&stripped));
    let program = place.newcomer(Kind::Static, "newcomer");
    let script = format!(
        "{stripped} 10; {program} 20; {stripped} 30; {program} 40",
        stripped = stripped.display(),
        program = program.display()
    );
    let report = shell(&script).run();
    let summary = &report.summary;
    assert_eq!((summary.processes, summary.covered_processes), (5, Some(3)));
    let counts: Vec<_> = report
        .rows
        .iter()
        .filter(|row| row.exe.as_ref() == Some(&program))
        .map(|row| (row.complete, row.counts))
        .collect();
    let expected = [20, 40].map(|bytes| (true, life(Kind::Static, &program, bytes)));
    assert_eq!(counts, expected);
}

#[test]
fn text_files_and_truncated_elf_files_do_no_harm() {
    let place = Place::new();
    let text = place.script("text", "exit 5\n");
    let program = place.newcomer(Kind::Static, "newcomer");
    let cut = place.script("cut", "");
    run(Command::new("sh")
        .args(["-c", r#"head -c 4096 "$0" >"$1""#])
        .args([&program, &cut]));
    let script = format!(
        "{text} || [ $? = 5 ]; {cut} || echo refused; {program} 20",
        text = text.display(),
        cut = cut.display(),
        program = program.display()
    );
    let report = shell(&script).run();
    assert_eq!(code(report.status), 0, "{}", report.stderr);
    let row = row_of(&report, &program);
    assert_eq!(row.counts, life(Kind::Static, &program, 20));
    assert!(row.complete, "{row:#?}");
}
