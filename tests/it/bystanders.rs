//! Tests `memleak -p --no-children`, which puts probes into the named processes only. Other processes pay nothing, and
//! the named ones are counted as with probes in every process.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use memleak::os::release;

use crate::common::expected::{End, counts, held_before_exec, midway, threads_midway};
use crate::common::newcomers::{Kind, Place, mapped, own};
use crate::common::switches::switch;
use crate::common::watch::{Waiting, Watch};
use crate::common::{Counts, Losses, Report, Row, TIMEOUT, fixture, machine};

const ONLY: &str = "--no-children";

/// Whether this kernel puts uprobes into single processes (docs/kernels.md).
fn filters() -> bool {
    let version = release::version(&release::release());
    version.expect("a release begins with a version") >= (6, 12)
}

/// Programs with a C library and a dynamic loader of their own, which no other test probes.
struct Private {
    place: Place,
    loader: PathBuf,
    libc: PathBuf,
}

impl Private {
    fn new() -> Self {
        let place = Place::new();
        place.directory("lib");
        let libc = place.copy(&mapped("libc.so."), "lib/libc.so.6");
        let loader = place.copy(&mapped("ld-"), "loader");
        Self {
            place,
            loader,
            libc,
        }
    }

    /// Starts a fixture that prints "ready PID".
    fn start(&self, name: &str, arguments: &[&str]) -> Waiting {
        let mut command = Command::new(&self.loader);
        command
            .arg("--library-path")
            .arg(self.place.path("lib"))
            .arg(fixture(name));
        Waiting::start(command.args(arguments))
    }

    /// A process that allocates all the time.
    fn busy(&self) -> Waiting {
        self.start("works_until_told", &["1000000", "1"])
    }
}

/// How many bytes of the file's code are other ones in the process's memory.
#[track_caller]
fn changed_bytes(pid: u32, file: &Path) -> usize {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).expect("the process runs");
    let memory = File::open(format!("/proc/{pid}/mem")).expect("the process runs");
    let original = fs::read(file).expect("the test's own file");
    let name = file.to_str().expect("a plain path");
    let mut compared = 0;
    let mut changed = 0;
    for line in maps.lines().filter(|line| line.ends_with(name)) {
        let fields: Vec<_> = line.split_ascii_whitespace().collect();
        if !fields[1].contains('x') {
            continue;
        }
        let number = |text| u64::from_str_radix(text, 16).expect("a hexadecimal number");
        let (start, end) = fields[0].split_once('-').expect("two addresses");
        let from = usize::try_from(number(fields[2])).expect("an offset");
        let length = usize::try_from(number(end) - number(start)).expect("a length");
        let length = length.min(original.len() - from);
        let mut code = vec![0; length];
        memory
            .read_exact_at(&mut code, number(start))
            .expect("mapped memory can be read");
        let pairs = code.iter().zip(&original[from..]);
        changed += pairs.filter(|(now, before)| now != before).count();
        compared += length;
    }
    assert!(compared > 100_000, "{name} is not mapped: {maps}");
    changed
}

/// Whether the kernel has mapped its area for uprobes into the process, as it does at the first trap.
#[track_caller]
fn has_trapped(pid: u32) -> bool {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).expect("the process runs");
    maps.contains("[uprobes]")
}

/// Checks that nothing of a row was lost, and nothing left out.
#[track_caller]
fn assert_whole(row: &Row, end: End, counts: Counts) {
    assert_eq!(
        (End::of(row), row.counts, row.losses, &row.uncovered),
        (end, counts, Losses::default(), &None),
        "{row:#?}"
    );
}

#[track_caller]
fn assert_filtered(report: &Report, expected: bool) {
    let said = report.stderr.contains("in the named processes only");
    assert_eq!(said, expected && filters(), "{}", report.stderr);
}

#[test]
fn a_bystander_with_the_same_libc_has_no_probe_and_never_traps() {
    let _machine = machine::unwatched();
    // With children followed, the bystander's code has breakpoints. So the comparison sees them.
    for (options, spared) in [(&[][..], false), (&[ONLY], filters())] {
        // Probes of the round before leave its library some time after memleak has ended.
        let private = Private::new();
        let [bystander, target] = [(); 2].map(|()| private.busy());
        assert_eq!(changed_bytes(bystander.pid(), &private.libc), 0);
        let watch = Watch::pid(target.pid(), options);
        // Started while the probes are there.
        let late = private.busy();
        let began = Instant::now();
        while !has_trapped(target.pid()) {
            assert!(
                began.elapsed() < *TIMEOUT,
                "the watched process never traps"
            );
            sleep(Duration::from_millis(10));
        }
        sleep(Duration::from_millis(50));
        assert!(changed_bytes(target.pid(), &private.libc) >= 10);
        for process in [&bystander, &late] {
            let changed = changed_bytes(process.pid(), &private.libc);
            assert_eq!(changed == 0, spared, "{options:?}");
            assert!(!spared || !has_trapped(process.pid()), "{options:?}");
        }
        drop(late);
        drop(bystander);
        target.finish();
        assert_filtered(&watch.wait(), spared);
    }
}

#[test]
fn every_thread_of_a_process_is_counted_as_with_probes_everywhere() {
    for options in [&[][..], &[ONLY]] {
        let target = Waiting::fixture("threads_joined_midway", &["64"]);
        let pid = target.pid();
        let report = target.watched(options);
        assert_whole(report.row_of(pid), End::Exit(7), threads_midway(64));
        assert_filtered(&report, !options.is_empty());
    }
}

#[test]
fn several_processes_are_counted_and_the_process_beside_them_is_not_probed() {
    let _machine = machine::unwatched();
    let private = Private::new();
    let bystander = private.busy();
    let [mut first, mut last] = [(); 2].map(|()| private.start("joined_midway", &["3", "4"]));
    let pids = [first.pid(), last.pid()];
    let watch = Watch::start(["-p", &format!("{},{}", pids[0], pids[1]), "0.2", ONLY]);
    assert_eq!(
        changed_bytes(bystander.pid(), &private.libc) == 0,
        filters()
    );
    first.go();
    watch.until(|rows| rows.iter().any(|row| row.pid == pids[0]));
    last.go();
    let report = watch.wait();
    for pid in pids {
        assert_whole(report.row_of(pid), End::Exit(0), midway(3, 4));
    }
    assert_filtered(&report, true);
}

#[test]
fn an_allocator_that_a_process_opens_later_is_probed_in_that_process() {
    let place = Place::new();
    let mut counted = Vec::new();
    for options in [&[][..], &[ONLY]] {
        // Each memleak sees a file that it has not seen before.
        let library = place.copy(&fixture("bump_allocator"), "library");
        let words = ["leader", library.to_str().expect("a plain path"), "7000"];
        // The process that is named second has ended by then.
        let [target, other] = [
            Waiting::fixture("opens_after_reading", &words),
            Waiting::fixture("joined_midway", &["3", "4"]),
        ];
        let pids = [target.pid(), other.pid()];
        let both = format!("{},{}", pids[0], pids[1]);
        let watch = Watch::start([&["-p", &both, "0.2"], options].concat());
        other.finish();
        watch.until(|rows| rows.iter().any(|row| row.pid == pids[1]));
        target.finish();
        let report = watch.wait();
        let row = report.row_of(pids[0]);
        assert!(row.allocators.contains(&library), "{row:#?}");
        assert_whole(row, End::Exit(0), row.counts);
        counted.push(row.counts);
        fs::remove_file(&library).expect("the test's own file");
    }
    assert_eq!(counted[0], counted[1]);
    assert!(counted[1].leaked_bytes >= 7000);
}

#[test]
fn a_program_that_the_leader_executes_is_counted_from_its_beginning() {
    let place = Place::new();
    let leak = counts(2_000_000, 1, 0, 2_000_000, 1);
    let mut programs = vec![(fixture("leaks_2mb"), leak)];
    if holds_everywhere() {
        // It has its allocator in its own file, which memleak has not seen.
        let newcomer = place.newcomer(Kind::MuslStatic, "newcomer");
        programs.push((newcomer, own(50)));
    }
    for (program, counts) in programs {
        let path = program.to_str().expect("a plain path");
        let target = Waiting::fixture("executes_after_reading", &["leader", path, "50"]);
        let pid = target.pid();
        let report = target.watched(&[ONLY]);
        let [before, after] = report.two_rows_of(pid);
        assert_whole(before, End::Exec, Counts::default());
        assert_whole(after, End::Exit(0), counts);
        assert_eq!(after.from, "start");
    }
}

/// Whether this kernel holds a static program that is executed, so that it is probed in time (docs/kernels.md).
fn holds_everywhere() -> bool {
    let version = release::version(&release::release());
    version.expect("a release begins with a version") >= (6, 18)
}

#[test]
fn a_program_that_a_second_thread_executes_says_that_it_was_not_reached() {
    let program = fixture("leaks_2mb");
    let program = program.to_str().expect("a plain path");
    for how in ["thread", "busy"] {
        let target = Waiting::fixture("executes_after_reading", &[how, program]);
        let pid = target.pid();
        let report = target.watched(&[ONLY]);
        let [before, after] = report.two_rows_of(pid);
        assert_whole(before, End::Exec, held_before_exec(how));
        assert_eq!(after.image, 1, "{how}");
        if filters() {
            // Where another memleak has put a breakpoint, the kernel may call the programs nevertheless.
            assert_eq!(after.uncovered.as_deref(), Some("unreached"), "{how}");
        } else {
            assert_whole(after, End::Exit(0), counts(2_000_000, 1, 0, 2_000_000, 1));
        }
        assert!(!report.summary.complete, "{how}");
    }
}

#[test]
fn a_process_with_a_child_in_its_memory_says_that_the_child_was_not_reached() {
    for (how, shares) in [("child", false), ("spawn", true)] {
        let target = Waiting::fixture("executes_after_reading", &[how, "/bin/true"]);
        let pid = target.pid();
        let report = target.watched(&[ONLY]);
        assert_eq!(report.rows.len(), 1, "{:#?}", report.rows);
        let row = report.row_of(pid);
        assert_eq!(row.counts, Counts::default(), "{how}");
        let why = (shares && filters()).then_some("unreached");
        assert_eq!(row.uncovered.as_deref(), why, "{how}");
    }
}

#[test]
fn a_process_whose_leader_has_exited_is_watched_with_probes_everywhere() {
    let target = Waiting::fixture("threads_joined_midway", &["5", "leaderless"]);
    let pid = target.pid();
    let report = target.watched(&[ONLY]);
    assert_whole(report.row_of(pid), End::Exit(7), threads_midway(5));
    assert_filtered(&report, false);
}

#[test]
fn a_process_that_outlives_its_leader_says_that_its_threads_may_not_be_reached() {
    let place = Place::new();
    let library = place.copy(&fixture("bump_allocator"), "library");
    let words = ["thread", library.to_str().expect("a plain path"), "7000"];
    let target = Waiting::fixture("opens_after_reading", &words);
    let pid = target.pid();
    let watch = Watch::pid(pid, &[ONLY]);
    target.finish();
    let report = watch.wait();
    let row = report.row_of(pid);
    assert_eq!(End::of(row), End::Exit(0));
    let why = filters().then_some("unreached");
    assert_eq!(row.uncovered.as_deref(), why, "{row:#?}");
}

#[test]
fn many_processes_are_watched_with_probes_everywhere() {
    for (count, filtered) in [(8, true), (9, false)] {
        let targets: Vec<_> = (0..count)
            .map(|_| Waiting::fixture("joined_midway", &["3", "4"]))
            .collect();
        let pids: Vec<_> = targets.iter().map(Waiting::pid).collect();
        let words: Vec<_> = pids.iter().map(u32::to_string).collect();
        let watch = Watch::start(["-p", &words.join(","), "600", ONLY]);
        for target in targets {
            target.finish();
        }
        let report = watch.wait();
        for pid in pids {
            assert_whole(report.row_of(pid), End::Exit(0), midway(3, 4));
        }
        assert_filtered(&report, filtered);
    }
}

#[test]
fn methods_without_the_filter_count_the_same() {
    for method in ["perf-event", "separate"] {
        if method == "separate" && release::may_miss_events() {
            // Newer kernels miss exits, of which these programs are not told a second time.
            continue;
        }
        let method = switch("method", method);
        let target = Waiting::fixture("threads_joined_midway", &["5"]);
        let pid = target.pid();
        let report = target.watched(&[ONLY, &method]);
        assert_whole(report.row_of(pid), End::Exit(7), threads_midway(5));
        assert_filtered(&report, false);
    }
}
