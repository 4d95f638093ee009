//! Tests `memleak -a` under load: with many processes, with many blocks, and with many starts and stops.
//! MEMLEAK_SCALE_SECONDS sets how long a test runs, and MEMLEAK_SCALE_STARTS how many starts it makes.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::common::expected::{End, counts};
use crate::common::machine;
use crate::common::newcomers::{Place, mapped, run};
use crate::common::proc::within;
use crate::common::watch::{Waiting, Watch};
use crate::common::{Job, Losses, fixture};
use nix::sys::signal::Signal;

/// Lets one test run at a time: each needs the whole machine, and probes all of its processes.
fn one() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn setting(name: &str, usual: u64) -> u64 {
    std::env::var(name).map_or(usual, |value| value.parse().expect("a number"))
}

/// The number of blocks that a run of `works_until_told` allocated, in all and a second.
fn rate(said: &str) -> (u64, u64) {
    let numbers: Vec<u64> = said
        .split_whitespace()
        .map(|number| number.parse().expect("a number"))
        .collect();
    (numbers[0], numbers[0] * 1000 / numbers[1].max(1))
}

#[test]
fn every_exit_is_reported_once_and_exactly_under_full_load() {
    let _one = one();
    let seconds = setting("MEMLEAK_SCALE_SECONDS", 3);
    // Leaves room for the blocks of the machine's other processes.
    let watch = Watch::start(["-a", "1", "--max-allocs", "6000000"]);
    let mut holder = Waiting::fixture("works_until_told", &["0", "2000000", "7"]);
    let mut churner = Waiting::fixture("works_until_told", &["1000000", "0", "9"]);
    let lives = Command::new(fixture("lives_at_a_rate"))
        .args([&seconds.to_string(), "200"])
        .env_remove("LD_LIBRARY_PATH")
        .output()
        .expect("a fixture can be run");
    let lives = String::from_utf8(lives.stdout).expect("the output is text");
    let (holder_pid, churner_pid) = (holder.pid(), churner.pid());
    holder.go();
    churner.go();
    holder.finish();
    let (_, said) = churner.finish();
    let report = watch.stop();

    let mut lines: Vec<&str> = lives.lines().collect();
    let closing = lines
        .pop()
        .expect("a last line with the number of processes");
    assert_eq!(lines.len() as u64, seconds * 200, "{closing}");
    // The kernel may reuse a pid, so each pid has a list.
    let mut expected: BTreeMap<u32, Vec<u64>> = BTreeMap::new();
    for line in lines {
        let (pid, bytes) = line.split_once(' ').expect("PID BYTES");
        let pid = pid.parse().expect("a pid");
        let bytes = bytes.parse().expect("bytes");
        expected.entry(pid).or_default().push(bytes);
    }
    let program = fixture("lives_at_a_rate");
    let mut found: BTreeMap<u32, Vec<u64>> = BTreeMap::new();
    for row in &report.rows {
        let child = expected.contains_key(&row.pid) && row.exe.as_deref() == Some(&*program);
        if child {
            let bytes = row.counts.leaked_bytes;
            assert_eq!(row.counts, counts(bytes, 1, 0, bytes, 1), "{row:#?}");
            assert!(row.complete && row.end == "exited", "{row:#?}");
            found.entry(row.pid).or_default().push(bytes);
        }
    }
    assert_eq!(found, expected, "{}", program.display());
    let (blocks, a_second) = rate(&said);
    let churner = report.row_of(churner_pid);
    assert_eq!(
        (End::of(churner), churner.counts),
        (
            End::Exit(0),
            counts(blocks * 24 + 9, blocks + 1, blocks, 9, 1)
        )
    );
    let holder = report.row_of(holder_pid);
    assert_eq!(holder.counts.total_allocs_bytes, 16_000_007);
    // The table has room for more than these blocks, but other processes also hold blocks.
    let lost = holder.losses;
    assert_eq!(
        holder.counts.leaked_bytes + lost.bytes_not_recorded,
        16_000_007
    );
    assert_eq!(report.summary.losses.rows_lost, 0);
    assert_eq!(churner.losses, Losses::default());
    println!(
        "{a_second} blocks a second by one process; {closing}; {}",
        report.stderr
    );
    assert!(report.stderr.contains("of CPU in"), "{}", report.stderr);
}

/// A libc that no process outside the test has mapped.
struct Libc(PathBuf);

impl Libc {
    fn new(place: &Place) -> Self {
        place.directory("lib");
        Libc(place.copy(&mapped("libc.so."), "lib/libc.so.6"))
    }

    /// Starts one of the fixtures with this libc.
    #[track_caller]
    fn start(&self, name: &str, arguments: &[&str]) -> Waiting {
        let mut command = Command::new(mapped("ld-"));
        let libraries = self.0.parent().expect("the libc is in a directory");
        command.arg("--library-path").arg(libraries);
        Waiting::start(command.arg(fixture(name)).args(arguments))
    }

    /// Whether the code of this libc in a process's memory equals the code in the file.
    fn is_unprobed_in(&self, pid: u32) -> bool {
        let (own, file) = code_of(pid, &self.0);
        own == file
    }
}

/// The code of a file that a process has mapped: first from the process's memory, then from the file.
fn code_of(pid: u32, file: &Path) -> (Vec<u8>, Vec<u8>) {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).expect("the process runs");
    let name = file.to_str().expect("a plain path");
    let line = maps
        .lines()
        .find(|line| line.ends_with(name) && line.contains("r-xp"))
        .expect("the process has mapped the file");
    let words: Vec<&str> = line.split_whitespace().collect();
    let hex = |text| u64::from_str_radix(text, 16).expect("a number");
    let (start, end) = words[0].split_once('-').expect("a range");
    let (start, end, offset) = (hex(start), hex(end), hex(words[2]));
    let read = |path: PathBuf, at| {
        let mut bytes = vec![0; usize::try_from(end - start).expect("the length fits")];
        let file = File::open(path).expect("the file exists");
        // The last page can reach beyond the file's end.
        let length = file.read_at(&mut bytes, at).expect("the file can be read");
        bytes.truncate(length);
        bytes
    };
    let own = read(format!("/proc/{pid}/mem").into(), start);
    let file = read(file.to_owned(), offset);
    let length = own.len().min(file.len());
    (own[..length].to_vec(), file[..length].to_vec())
}

#[test]
fn repeated_starts_and_stops_leave_the_workload_unharmed_and_no_probe_behind() {
    let _one = one();
    let starts = setting("MEMLEAK_SCALE_STARTS", 8);
    let place = Place::new();
    let libc = Libc::new(&place);
    let start = |rate: &str| libc.start("works_until_told", &[rate, "10"]);
    let workloads = [start("1000000"), start("1000")];
    let pids = workloads.each_ref().map(Waiting::pid);
    let unprobed = || pids.iter().all(|&pid| libc.is_unprobed_in(pid));
    // Another memleak that watches the machine also has probes there, for a time. Probes left behind would stay.
    let soon_unprobed = || {
        let began = Instant::now();
        while !unprobed() && began.elapsed() < Duration::from_secs(60) {
            sleep(Duration::from_millis(100));
        }
        unprobed()
    };
    assert!(soon_unprobed());
    for round in 0..starts {
        let watch = Watch::all(&[]);
        assert!(!unprobed(), "no probe in round {round}");
        // Every other round stops memleak at once, before it has seen any call.
        if round % 2 == 0 {
            run(Command::new(fixture("frees_all")).stdout(Stdio::null()));
        }
        watch.stop();
        assert!(soon_unprobed(), "probes are left in round {round}");
    }
    for workload in workloads {
        let (status, said) = workload.finish();
        assert!(status.success(), "{status}");
        assert!(rate(&said).0 > 0, "{said}");
    }
}

#[test]
fn a_memleak_killed_while_it_stops_leaves_no_probe_behind() {
    let _one = one();
    let _machine = machine::unwatched();
    let place = Place::new();
    let libc = Libc::new(&place);
    // With this many processes, the removal of all probes takes some milliseconds.
    let processes: Vec<_> = (0..32)
        .map(|_| libc.start("grows_by_line", &["100"]))
        .collect();
    let unprobed = || processes.iter().all(|one| libc.is_unprobed_in(one.pid()));
    for round in 0..12 {
        let mut watch = Watch::pid(processes[0].pid(), &[]);
        assert!(!unprobed(), "no probe in round {round}");
        watch.signal(Signal::SIGINT);
        // memleak prints this last.
        watch.wait_for("of CPU in");
        let delay = Duration::from_micros(250 * round);
        sleep(delay);
        watch.kill();
        // The kernel removes the last one some milliseconds after memleak's end.
        let soon = within(Duration::from_secs(1), unprobed);
        assert!(soon, "killed {delay:?} after the report");
    }
    for process in processes {
        let (status, _) = process.finish();
        assert!(status.success(), "{status}");
    }
}

/// More processes end than can be judged meanwhile. Copies of their memory must not pile up.
#[test]
fn memleak_stays_small_while_many_processes_lose_blocks() {
    const MOST_KB: u64 = 400 << 10;
    let _one = one();
    let storm = fixture("fork_storm");
    let script = format!("{} 1000; grep VmHWM /proc/$PPID/status", storm.display());
    let job = Job::shell(&script).options(["--lost=always", "--stacks=never"]);
    let report = job.run();
    report.assert_complete();
    assert!(report.rows.len() > 1000, "{} rows", report.rows.len());
    let most = report.stdout.split_whitespace().nth(1);
    let most: u64 = most.expect("a figure").parse().expect("a number");
    assert!(most < MOST_KB, "memleak took {most} kB");
}
