//! Allocators other than the C library's: preloaded, linked, bundled under other names, in static programs, and a
//! program's own. The counts of a fixture are known from its source. An allocator, a runtime or the fixture's language
//! also allocates at the start. A run of the same program that does nothing measures these counts.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};

use crate::common::expected::counts;
use crate::common::fixtures::compile_with;
use crate::common::fixtures::compiled_in;
use crate::common::probes::{self, run_words};
use crate::common::side_by_side::side_by_side;
use crate::common::switches::switch;
use crate::common::{Counts, Job, Report, code, compile, fixture};

/// The bytes that the C++ runtime allocates for a `bad_alloc`: its header, and a pointer to its table of functions.
const EXCEPTION: u64 = 128 + 8;

/// The ways to attach probes. The last one is for older kernels, whose programs read no counters.
fn methods() -> Vec<&'static str> {
    let all = ["session", "multi", "perf-event", "separate"];
    let is_old = |method: &&str| *method == "separate" && probes::are_inside();
    all.into_iter().filter(|method| !is_old(method)).collect()
}

const LIBRARIES: [&str; 4] = ["jemalloc", "tcmalloc_minimal", "tcmalloc", "mimalloc"];

/// The file that the linker uses for `-lNAME`.
fn library(name: &str) -> PathBuf {
    compiled_in(&format!("lib{name}.so"))
}

/// Runs a job that must be complete and exit with 0. Returns the counts of its only image, and the report.
#[track_caller]
fn complete(job: &Job) -> (Counts, Report) {
    let report = job.run();
    assert_eq!(code(report.status), 0, "{}", report.stderr);
    report.assert_complete();
    (report.only_row().counts, report)
}

/// The counts of an idle job. They are the same in every run, so only the first caller runs the job.
#[track_caller]
fn idle_counts(idle: &Job) -> Counts {
    static KNOWN: Mutex<BTreeMap<Job, Arc<OnceLock<Counts>>>> = Mutex::new(BTreeMap::new());
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    let counts = Arc::clone(known.entry(idle.clone()).or_default());
    // Only callers with the same job wait for its run.
    drop(known);
    *counts.get_or_init(|| complete(idle).0)
}

/// The counts of a job, less the counts of an idle job with the same start.
#[track_caller]
fn more_than(idle: &Job, job: &Job) -> Counts {
    let idle = idle_counts(idle);
    complete(job).0 - idle
}

fn failed(counts: Counts, failed_allocs: u64) -> Counts {
    Counts {
        failed_allocs,
        ..counts
    }
}

// ---- preloaded and linked ----------------------------------------------------------------------------

/// The counts of the fixture `whole_family`, from its source.
fn whole_family() -> Counts {
    failed(counts(31_111_151, 11, 2, 31_111_143, 9), 1)
}

#[test]
fn a_preloaded_allocator_is_counted_to_the_byte() {
    side_by_side(LIBRARIES, |name| {
        let with = |fixture| Job::fixture(fixture, &[]).env("LD_PRELOAD", library(name));
        let found = more_than(&with("allocates_nothing"), &with("whole_family"));
        assert_eq!(found, whole_family(), "{name}");
    });
}

#[test]
fn a_linked_allocator_is_counted_to_the_byte() {
    side_by_side(LIBRARIES, |name| {
        let linked = |fixture: &str| {
            let flags = ["-O1", "-Wl,--no-as-needed", &format!("-l{name}")];
            let program = compile(
                &format!("fixtures/{fixture}.c"),
                &format!("{fixture}.{name}"),
                &flags,
            );
            Job::new::<&str>(program, [])
        };
        let found = more_than(&linked("allocates_nothing"), &linked("whole_family"));
        assert_eq!(found, whole_family(), "{name}");
    });
}

#[test]
fn a_row_names_the_allocator_that_was_used() {
    side_by_side(LIBRARIES, |name| {
        let job = Job::fixture("leaks_2mb", &[]).env("LD_PRELOAD", library(name));
        let report = complete(&job).1;
        let allocators = &report.only_row().allocators;
        assert!(
            allocators.contains(&library(name)),
            "{name}: {allocators:?}"
        );
    });
}

// ---- C++ ---------------------------------------------------------------------------------------------

fn operators(flags: &[&str]) -> PathBuf {
    let name = format!("operators{}", flags.concat().replace(['/', ' '], "_"));
    let own = ["-O1", "-Wl,--no-as-needed"];
    compile_with(
        "c++",
        "fixtures/operators.cc",
        &name,
        &[&own, flags].concat(),
    )
}

/// The counts of `operators use`, from its source.
fn used() -> Counts {
    counts(7_211_937, 1020, 1012, 7_111_511, 8)
}

/// The counts of `operators catch`: 20 failures and 20 exceptions.
fn caught() -> Counts {
    failed(counts(20 * EXCEPTION, 20, 20, 0, 0), 20)
}

#[test]
fn each_operator_of_cpp_counts_once() {
    side_by_side(LIBRARIES, |name| {
        let job = |what| Job::new(operators(&[]), [what]).env("LD_PRELOAD", library(name));
        assert_eq!(more_than(&job("idle"), &job("use")), used(), "{name}");
    });
    side_by_side(LIBRARIES, |name| {
        let program = operators(&[&format!("-l{name}")]);
        let job = |what| Job::new(&program, [what]);
        let found = more_than(&job("idle"), &job("use"));
        assert_eq!(found, used(), "{name}, linked");
    });
}

#[test]
fn the_runtimes_operators_count_as_their_calls_of_malloc() {
    let job = |what| Job::new(operators(&[]), [what]);
    assert_eq!(more_than(&job("idle"), &job("use")), used());
    assert_eq!(more_than(&job("idle"), &job("catch")), caught());
    // An operator that does not throw still throws and catches an exception inside.
    assert_eq!(more_than(&job("idle"), &job("nothrow")), caught());

    let job = |what| Job::new(operators(&["-static"]), [what]);
    assert_eq!(more_than(&job("idle"), &job("use")), used());
    // The unwinder inside the static program sorts its tables, in blocks that it allocates itself.
    let found = more_than(&job("idle"), &job("catch"));
    assert_eq!((found.failed_allocs, found.leaked_bytes), (20, 0));
    assert_eq!(found.alloc_count, found.free_count);
}

#[test]
fn a_program_that_catches_bad_alloc_continues() {
    side_by_side(LIBRARIES, |name| {
        let job = |what| Job::new(operators(&[]), [what]).env("LD_PRELOAD", library(name));
        // mimalloc is written in C and cannot throw. It ends the process itself.
        if name == "mimalloc" {
            let report = job("catch").run();
            assert_eq!(report.status.signal(), Some(libc::SIGABRT));
        } else {
            assert_eq!(more_than(&job("idle"), &job("catch")), caught(), "{name}");
        }
        let quiet = more_than(&job("idle"), &job("nothrow"));
        assert_eq!(quiet.failed_allocs, 20, "{name}");
        assert_eq!((quiet.leaked_bytes, quiet.unknown_frees), (0, 0), "{name}");
        assert_eq!(quiet.alloc_count, quiet.free_count, "{name}");
    });
}

#[test]
fn operators_are_counted_by_every_method() {
    // The kernel removes the probes of the older methods one by one. `make test-long` has both libraries there, and all
    // that the program does.
    let tries = methods().into_iter().flat_map(|method| match method {
        "session" | "multi" => vec![(method, "jemalloc"), (method, "tcmalloc_minimal")],
        _ => vec![(method, "jemalloc")],
    });
    side_by_side(tries, |(method, name)| {
        let is_slow = matches!(method, "perf-event" | "separate");
        assert_operators_are_counted(method, name, is_slow);
    });
}

/// `in_part`: without what throws.
#[track_caller]
fn assert_operators_are_counted(method: &str, name: &str, in_part: bool) {
    let job = |what| {
        let job = Job::new(operators(&[]), [what]).env("LD_PRELOAD", library(name));
        job.options([switch("method", method)])
    };
    let what = format!("{name} by {method}");
    assert_eq!(more_than(&job("idle"), &job("use")), used(), "{what}");
    if !in_part {
        assert_eq!(more_than(&job("idle"), &job("catch")), caught(), "{what}");
    }
}

/// By every method, with every library, all that the program does.
pub fn operators_are_counted() {
    let libraries = ["jemalloc", "tcmalloc_minimal"];
    let tries = methods()
        .into_iter()
        .flat_map(|method| libraries.map(|name| (method, name)));
    side_by_side(tries, |(method, name)| {
        assert_operators_are_counted(method, name, false)
    });
}

// ---- part of the program -----------------------------------------------------------------------------

/// Builds an archive of jemalloc with renamed functions and without its operators.
fn renamed_jemalloc(prefix: &str) -> PathBuf {
    const NAMES: [&str; 13] = [
        "malloc",
        "calloc",
        "realloc",
        "free",
        "posix_memalign",
        "aligned_alloc",
        "memalign",
        "valloc",
        "mallocx",
        "rallocx",
        "xallocx",
        "dallocx",
        "sdallocx",
    ];
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let target = directory.join(format!("lib{prefix}jemalloc.a"));
    if target.exists() {
        return target;
    }
    let unfinished = tempfile::NamedTempFile::new_in(directory).unwrap();
    run(Command::new("objcopy")
        .args(NAMES.map(|name| format!("--redefine-sym={name}={prefix}{name}")))
        .arg(compiled_in("libjemalloc_pic.a"))
        .arg(unfinished.path()));
    run(Command::new("ar")
        .arg("d")
        .arg(unfinished.path())
        .arg("jemalloc_cpp.pic.o"));
    unfinished.persist(&target).unwrap();
    target
}

#[track_caller]
fn run(command: &mut Command) {
    let status = command
        .status()
        .unwrap_or_else(|error| panic!("{command:?}: {error}; see `make install-deps`"));
    assert!(status.success(), "{command:?}: {status}");
}

/// The compiler's argument that links all of an archive, at any position among the arguments.
fn whole(archive: &Path) -> String {
    format!(
        "-Wl,--whole-archive,{},--no-whole-archive",
        archive.display()
    )
}

#[test]
fn a_bundled_allocator_is_found_under_its_prefix() {
    for (prefix, flags) in [
        ("je_", &[][..]),
        ("je_", &["-static"]),
        ("_rjem_", &["-rdynamic"]),
    ] {
        let (define, archive) = (format!("-DPREFIX={prefix}"), renamed_jemalloc(prefix));
        let own = ["-O1", &define, &whole(&archive), "-lm"];
        let name = format!("bundled.{prefix}{}", flags.concat());
        let program = compile("fixtures/bundled.c", &name, &[&own, flags].concat());
        let name = format!("allocates_nothing{}", flags.concat());
        let idle = compile("fixtures/allocates_nothing.c", &name, flags);
        let found = more_than(&Job::new::<&str>(idle, []), &Job::new::<&str>(program, []));
        let expected = failed(counts(654_731, 13, 7, 654_321, 6), 1);
        assert_eq!(found, expected, "{prefix} {flags:?}");
    }
}

#[test]
fn the_global_allocator_of_a_rust_program_is_counted() {
    let archive = renamed_jemalloc("_rjem_");
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let program = directory.join("bundled_rust");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/bundled.rs");
    run(Command::new("rustc")
        .args(["--edition=2024", "-O", "-Clink-arg=-lm"])
        .arg(format!("-Clink-arg={}", archive.display()))
        .arg("-o")
        .arg(&program)
        .arg(source));
    let job = |count| Job::new(&program, [count]);
    // The arguments are allocated as strings, too, so both have the same length.
    let found = more_than(&job("0"), &job("9"));
    // The vector allocates 8, 16, 64 and 4096 bytes.
    assert_eq!(found, counts(9000 + 4184, 13, 4, 9000, 9));
}

#[test]
fn an_allocator_that_is_part_of_a_program_counts_its_operators_once() {
    let archive = compiled_in("libjemalloc_pic.a");
    let program = operators(&[&whole(&archive)]);
    let job = |what| Job::new(&program, [what]);
    assert_eq!(more_than(&job("idle"), &job("use")), used());
    assert_eq!(more_than(&job("idle"), &job("catch")), caught());
    let report = complete(&job("use")).1;
    assert!(report.only_row().allocators.contains(&program));
}

#[test]
fn a_static_program_is_counted_with_each_c_library() {
    for (compiler, flags) in [
        ("cc", &["-static"][..]),
        ("cc", &["-static-pie"]),
        ("musl-gcc", &["-static"]),
        ("musl-gcc", &["-static-pie"]),
        ("musl-gcc", &[]),
    ] {
        let job = |fixture: &str| {
            let name = format!("{fixture}.{compiler}{}", flags.concat());
            let source = format!("fixtures/{fixture}.c");
            let flags = [&["-O1"], flags].concat();
            Job::new::<&str>(compile_with(compiler, &source, &name, &flags), [])
        };
        // musl allocates nothing by itself. So a static program with musl that allocates nothing has no allocator.
        let idle = (compiler == "cc").then(|| job("allocates_nothing"));
        let what = format!("{compiler} {flags:?}");
        for (fixture, expected) in [
            ("leaks_2mb", counts(2_000_000, 1, 0, 2_000_000, 1)),
            ("frees_all", counts(10_500_500, 1010, 1010, 0, 0)),
            ("calloc_overflows", failed(counts(64, 1, 0, 64, 1), 2)),
        ] {
            let found = match &idle {
                Some(idle) => more_than(idle, &job(fixture)),
                None => complete(&job(fixture)).0,
            };
            assert_eq!(found, expected, "{fixture} by {what}");
        }
    }
}

#[test]
fn the_distributions_redis_server_is_counted_in_jemalloc() {
    let directory = tempfile::tempdir().unwrap();
    let job = Job::new(
        "redis-server",
        ["--port", "0", "--save", "", "--unixsocket", "socket"],
    );
    let running = job.in_directory(directory.path()).start();
    let socket = directory.path().join("socket");
    let until = Instant::now() + Duration::from_secs(30);
    while !socket.exists() && Instant::now() < until {
        thread::sleep(Duration::from_millis(20));
    }
    // memleak passes the signal on to the server.
    kill(running.pid(), Signal::SIGTERM).unwrap();
    let report = running.wait();
    let row = report
        .rows
        .iter()
        .find(|row| row.comm.starts_with("redis-server"))
        .expect("a row of redis-server");
    assert!(row.complete, "{row:#?}");
    assert!(row.counts.total_allocs_bytes > 100_000, "{row:#?}");
    let by_jemalloc = row
        .allocators
        .iter()
        .any(|file| file.to_string_lossy().contains("libjemalloc"));
    assert!(by_jemalloc, "{row:#?}");
}

// ---- a program's own ---------------------------------------------------------------------------------

/// The description of the pool's functions in `fixtures/pool.c`.
const POOL: &str = "alloc=pool_alloc(_, size),alloc=pool_array(size, _, count, out),\
    realloc=pool_realloc(_, block, size),free=pool_free(_, block)";

fn pool() -> Counts {
    failed(counts(100_337, 104, 51, 50_327, 53), 1)
}

#[test]
fn a_programs_own_allocator_is_counted_instead_of_its_calls_of_malloc() {
    let program = fixture("pool");
    for file in [&*program.to_string_lossy(), "pool", "poo?"] {
        let job = Job::fixture("pool", &[]).options(["--allocator", &format!("{file}:{POOL}")]);
        assert_eq!(complete(&job).0, pool(), "{file}");
    }
    // This description is for another file. So malloc's calls are counted: the chunks, and 51 blocks of 16 bytes that
    // the pool uses to free.
    let other =
        complete(&Job::fixture("pool", &[]).options(["--allocator", &format!("another:{POOL}")]));
    assert_eq!(
        other.0,
        counts(65_536 * 2 + 51 * 16 + 7, 54, 51, 131_079, 3)
    );
}

#[test]
fn a_toml_file_describes_an_allocator() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("pools.toml");
    let text = format!(
        r#"
        [[allocator]]
        file = "{}"
        alloc = ["pool_alloc(_, size)", "pool_array(size, _, count, out)"]
        realloc = ["pool_realloc(_, block, size)"]
        free = ["pool_free(_, block)"]

        [[allocator]]
        file = "another"
        alloc = ["f"]
        "#,
        fixture("pool").display()
    );
    fs::write(&file, text).unwrap();
    let job = Job::fixture("pool", &[]).options([Path::new("--allocator"), &file]);
    assert_eq!(complete(&job).0, pool());
}

#[test]
fn an_allocator_that_throws_is_counted_and_the_program_continues() {
    let program = compile_with("c++", "fixtures/pool_throws.cc", "pool_throws", &["-O1"]);
    let spec = format!(
        "{}:alloc=_ZN4Pool5allocEm(_, size),free=_ZN4Pool4freeEPv(_, block)",
        program.display()
    );
    side_by_side(methods(), |method| {
        let job = |arguments: &[&str]| {
            Job::new(&program, arguments).options(["--allocator", &spec, &switch("method", method)])
        };
        let found = more_than(&job(&["idle"]), &job(&[]));
        let expected = counts(10_000 + 4 * EXCEPTION, 20 + 4, 15 + 4, 2500, 5);
        assert_eq!(found, failed(expected, 4), "{method}");
    });
}

/// The description of `pool_unprobed` with `free` as the function that frees its blocks.
fn unprobed(free: &str) -> String {
    let program = fixture("pool_unprobed");
    format!(
        "{}:alloc=pool_alloc(size),free={free}(block)",
        program.display()
    )
}

#[test]
fn a_function_whose_first_instruction_takes_no_probe_is_probed_further_on() {
    side_by_side(methods(), |method| {
        let options = [
            "--allocator",
            &unprobed("free_further"),
            &switch("method", method),
        ];
        let job = Job::fixture("pool_unprobed", &[]).options(options);
        assert_eq!(complete(&job).0, counts(2000, 11, 4, 1600, 7), "{method}");
    });
}

/// The kernel refuses a probe on an instruction only once a process has mapped that instruction.
#[test]
fn a_function_that_takes_no_probe_is_never_mistaken_for_an_uncalled_one() {
    let (program, spec) = (fixture("pool_unprobed"), unprobed("free_nowhere"));
    side_by_side(methods(), |method| {
        let output = Command::new(env!("CARGO_BIN_EXE_memleak"))
            .args(run_words())
            .args([&switch("method", method), "--allocator", &spec, "--"])
            .arg(&program)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(125), "{method}: {said}");
        assert!(said.contains("cannot attach to free_nowhere"), "{said}");
        assert_eq!(said.lines().count(), 1, "{method}: {said}");
    });
    // If such a program starts later, the command already runs.
    let job = Job::shell(&format!("{}; exit 3", program.display()));
    let report = job.options(["--allocator", &spec, "-v"]).run();
    assert_eq!(code(report.status), 3, "{}", report.stderr);
    assert!(
        report.stderr.contains("cannot attach to free_nowhere"),
        "{}",
        report.stderr
    );
    let row = report
        .rows
        .iter()
        .find(|row| row.comm == "pool_unprobed")
        .unwrap();
    assert!(!row.complete, "{row:?}");
}

#[test]
fn an_error_in_a_description_is_reported_before_the_command_starts() {
    let directory = tempfile::tempdir().unwrap();
    let toml = directory.path().join("wrong.toml");
    fs::write(
        &toml,
        "[[allocator]]\nfile = \"pool\"\nalloc = [\"f(x)\"]\n",
    )
    .unwrap();
    let (program, toml) = (fixture("pool"), toml.to_string_lossy().into_owned());
    for (spec, says) in [
        (
            format!("{}:alloc=frob", program.display()),
            "has no function 'frob'",
        ),
        (
            "pool:alloc=pool_alloc(_, length)".to_owned(),
            "'length' in 'pool_alloc(_, length)'",
        ),
        (toml.clone(), "'x' in 'f(x)'"),
        ("/nowhere/pools.toml".to_owned(), "No such file"),
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_memleak"))
            .args(run_words())
            .args(["--allocator", &spec, "--"])
            .arg(&program)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(125), "{spec}: {said}");
        assert!(said.contains(says), "{spec}: {said}");
        assert_eq!(said.lines().count(), 1, "{spec}: {said}");
    }
}

/// The counter's realloc calls libc's realloc, which jumps to malloc. These inner calls have
/// return probes of their own. Only with sessions does a call within another call have no return probe.
#[test]
fn a_tail_call_within_a_wrapped_allocator_counts_once_by_every_method() {
    side_by_side(methods(), |method| {
        let job = Job::new("ls", ["-l", "/usr"]).options([switch("method", method)]);
        job.run_counted().assert_equal_counts();
    });
}

/// The kernel attaches perf-event uprobes one by one. While others attach theirs, that takes seconds.
#[test]
fn a_process_waits_as_long_as_probes_are_attached() {
    let (library, program) = (library("jemalloc"), fixture("leak_known"));
    let preload = format!("LD_PRELOAD={}", library.display());
    let script = format!("{preload} {}; exit 3", program.display());
    let options = [switch("attach-delay", "2500")];
    let report = Job::shell(&script).options(options).run();
    assert_eq!(code(report.status), 3, "{}", report.stderr);
    report.assert_complete();
    let lives = report.rows.iter().map(|row| row.end_time - row.start_time);
    let longest = lives.fold(0.0, f64::max);
    assert!(longest > 2.2, "the longest wait took {longest} s only");
}
