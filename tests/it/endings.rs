//! How processes are held at their ends, so that memleak can read their memory: which are, which are not and why, and
//! that a hold changes nothing. What the memory says is tested in `reach`.
//!
//! `fixtures/ends.c` loses a block of 1000 bytes and ends in the way that it is told.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, ExitStatus};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::common::group::Group;
use crate::common::newcomers::{Kind, Place};
use crate::common::proc::{self, Process};
use crate::common::side_by_side::side_by_side;
use crate::common::switches::switch;
use crate::common::watch::{Waiting, Watch};
use crate::common::{Job, Report, Row, Running, code, fixture};

/// How long memleak holds a process here, where that matters.
pub const HOLD: Duration = Duration::from_millis(1500);
/// The limit for something that is to happen at once.
pub const AT_ONCE: Duration = Duration::from_millis(700);
/// How much processor time a held process may use. It is awake for the first milliseconds.
const AWAKE: Duration = Duration::from_millis(250);
pub const PATIENCE: Duration = Duration::from_secs(30);

/// The fixture's lost block.
pub const LOST: (u64, u64) = (1000, 1);

pub fn ends(how: &str) -> Job {
    let words: Vec<&str> = how.split(' ').collect();
    Job::fixture("ends", &words).options(["--lost=always"])
}

/// The same, held for longer.
pub fn held(how: &str) -> Job {
    let delay = switch("read-delay", &HOLD.as_millis().to_string());
    ends(how).options([delay, "--lost-timeout=20".to_owned()])
}

/// What memleak says of the only process of a job.
pub fn said(how: &str) -> (Result<(u64, u64), String>, ExitStatus) {
    said_of(Kind::Dynamic, how)
}

/// The same of the fixture with another C library.
fn said_of(kind: Kind, how: &str) -> (Result<(u64, u64), String>, ExitStatus) {
    let job = Job::new(kind.build("ends"), how.split(' '));
    let report = job.options(["--lost=always"]).run();
    report.assert_complete();
    (lost(report.only_row()), report.status)
}

/// The bytes and blocks that a process lost, or why that is not known.
pub fn lost(row: &Row) -> Result<(u64, u64), String> {
    match (&row.reach, &row.reach_unknown) {
        (Some(reach), None) => Ok((
            reach.definite_bytes + reach.indirect_bytes,
            reach.definite_blocks + reach.indirect_blocks,
        )),
        (None, Some(why)) => Err(why.clone()),
        other => panic!("neither known nor unknown: {other:?}"),
    }
}

// ---- which processes are held ----------------------------------------------------------------------------

#[test]
fn every_end_by_the_c_library_is_held() {
    let ways = [
        "return 3",
        "quick 3",
        "_exit 3",
        "_Exit 3",
        "threads 3 return 3",
    ];
    let cases = [Kind::Dynamic, Kind::Static].map(|kind| ways.map(|how| (kind, how)));
    side_by_side(cases.into_iter().flatten(), |(kind, how)| {
        let (lost, status) = said_of(kind, how);
        assert_eq!(lost, Ok(LOST), "{kind:?} {how}");
        assert_eq!(status.code(), Some(3), "{kind:?} {how}");
    });
    let (lost, status) = said("last 0");
    assert_eq!((lost, status.code()), (Ok(LOST), Some(0)));
}

#[test]
#[cfg(target_arch = "x86_64")]
fn what_is_left_over_in_the_frames_of_exit_reaches_nothing() {
    let job = Job::fixture("frames_at_exit", &[]).options(["--lost=always"]);
    let report = job.run();
    report.assert_complete();
    assert_eq!(lost(report.only_row()), Ok(LOST));
}

#[test]
fn a_signal_that_a_process_raises_itself_is_held() {
    let term = libc::SIGTERM;
    let cases = [
        (format!("raise {term}"), term),
        (format!("kill {term}"), term),
        (
            format!("raise {}", libc::SIGRTMIN() + 3),
            libc::SIGRTMIN() + 3,
        ),
        (format!("raise {}", libc::SIGPIPE), libc::SIGPIPE),
        // The kernel's own.
        ("pipe 3".to_owned(), libc::SIGPIPE),
        ("abort 0".to_owned(), libc::SIGABRT),
        ("fault 0".to_owned(), libc::SIGSEGV),
        ("threads 3 abort 0".to_owned(), libc::SIGABRT),
    ];
    let with = |kind| cases.iter().map(move |(how, signal)| (kind, how, *signal));
    let in_static = |(_, how, _): &(Kind, &String, i32)| !how.starts_with("raise");
    let all = with(Kind::Dynamic).chain(with(Kind::Static).filter(in_static));
    side_by_side(all, |(kind, how, signal)| {
        let (lost, status) = said_of(kind, how);
        assert_eq!(lost, Ok(LOST), "{kind:?} {how}");
        assert_eq!(status.signal(), Some(signal), "{kind:?} {how}");
    });
}

/// Lets processes die in the same way, in runs of a hundred. Fails unless each time the same is said of them.
pub fn deaths(how: &str, runs: u32, expected: &Result<(u64, u64), String>) {
    let one = format!("{} {how}", fixture("ends").display());
    hundreds(how, &one, 100, runs, expected);
}

/// The same for processes that another one kills by SIGTERM.
pub fn deaths_by_others(deaths: usize, runs: u32) {
    let ends = fixture("ends");
    let one = format!(
        "exec 3< <(exec {} wait 0); read -r line <&3; kill -TERM $!; wait $!",
        ends.display()
    );
    hundreds("kill", &one, deaths, runs, &Err("signal".to_owned()));
}

/// Runs a line of a shell so often in each run. It starts one process of the fixture.
fn hundreds(
    how: &str,
    line: &str,
    deaths: usize,
    runs: u32,
    expected: &Result<(u64, u64), String>,
) {
    let script = format!("ulimit -c 0; for i in $(seq {deaths}); do {line}; done 2>/dev/null; :");
    for run in 0..runs {
        let job = Job::new("bash", ["-c", &script]);
        let report = job.options(["--lost=always"]).run();
        let rows = ended(&report);
        assert_eq!(rows.len(), deaths, "{how}");
        for (death, row) in rows.into_iter().enumerate() {
            assert_eq!(lost(row), *expected, "{how}, run {run}, death {death}");
        }
    }
}

#[test]
fn a_death_that_cannot_be_held_each_time_is_never_held() {
    let (term, kill) = (libc::SIGTERM, libc::SIGKILL);
    let cases = [
        // The kernel kills all threads at once.
        (format!("threads 3 raise {term}"), term),
        (format!("later {term}"), term),
        (format!("raise {kill}"), kill),
        ("real 50 wait 0".to_owned(), libc::SIGALRM),
        ("clock 50 wait 0".to_owned(), libc::SIGALRM),
    ];
    side_by_side(cases, |(how, signal)| {
        let (lost, status) = said(&how);
        assert_eq!(lost, Err("signal".to_owned()), "{how}");
        assert_eq!(status.signal(), Some(signal), "{how}");
    });
    deaths_by_others(5, 1);
    // musl raises a signal while it blocks all of them.
    for (how, signal) in [("abort 0", libc::SIGABRT), ("raise 15", term)] {
        let (lost, status) = said_of(Kind::MuslStatic, how);
        assert_eq!(lost, Err("signal".to_owned()), "musl {how}");
        assert_eq!(status.signal(), Some(signal), "musl {how}");
    }
}

#[test]
fn a_process_that_a_timer_could_end_is_not_held() {
    for timer in [
        "real 900",
        "profile 900",
        "virtual 900",
        "clock 900",
        "wall 900",
        "used 900",
        "own 900",
        "limit 1",
    ] {
        // If it was held, a handler would run.
        let handlers = "handler 14 handler 24 handler 26 handler 27";
        let report = held(&format!("{handlers} {timer} return 0"))
            .options(["--lost-timeout=2"])
            .run();
        assert_eq!(lost(report.only_row()), Err("timer".to_owned()), "{timer}");
        assert_eq!((code(report.status), &*report.stdout), (0, ""), "{timer}");
    }
    // These are due much later.
    for timer in [
        "real 90000",
        "profile 90000",
        "virtual 90000",
        "clock 90000",
        "wall 90000",
        "used 90000",
        "own 90000",
        "limit 90",
    ] {
        let (lost, _) = said(&format!("{timer} return 0"));
        assert_eq!(lost, Ok(LOST), "{timer}");
    }
}

#[test]
fn what_must_not_be_held_is_not_held() {
    let unknown = |why: &str| Err(why.to_owned());
    assert_eq!(said("realtime 1 return 0").0, unknown("realtime"));
    assert_eq!(said("raw 5").0, unknown("raw_exit"));
    // The child ends in the memory of its parent, whose blocks are judged later.
    let (lost, _) = said("vfork 70 return 0");
    assert_eq!(lost, Ok((1070, 2)));
}

#[test]
fn whoever_leaves_its_memory_to_others_is_not_held() {
    let job = Job::fixture("outlived_by_its_borrower", &["exit", "300"]);
    let report = job.options(["--lost=always"]).run();
    report.assert_complete();
    let mut found: Vec<_> = report
        .rows
        .iter()
        .map(|row| (row.exit_code, lost(row)))
        .collect();
    found.sort();
    let shared = found
        .iter()
        .filter(|(_, lost)| *lost == Err("shared_heap".to_owned()));
    assert_eq!(shared.count(), 1, "{found:?}");
}

#[test]
fn a_process_that_has_freed_all_is_known_without_a_look() {
    let report = Job::fixture("frees_all", &[])
        .options(["--lost=always", &switch("read-delay", "60000")])
        .run();
    assert_eq!(lost(report.only_row()), Ok((0, 0)));
}

#[test]
fn no_process_is_held_that_cannot_exceed_the_limit() {
    let began = Instant::now();
    let delay = switch("read-delay", "60000");
    let job = |limit: &str| {
        let options = ["--lost=never", limit, "--lost-timeout=90", &delay];
        Job::fixture("ends", &["return", "0"])
            .options(options)
            .run()
    };
    for limit in ["--fail-on-lost=1000", "--fail-on-total-lost=1000"] {
        let report = job(limit);
        assert_eq!(code(report.status), 0, "{}", report.stderr);
        assert_eq!(lost(report.only_row()), Err("off".to_owned()));
    }
    assert!(began.elapsed() < PATIENCE);
    for limit in ["--fail-on-lost=999", "--fail-on-total-lost=999"] {
        let report = Job::fixture("ends", &["return", "0"])
            .options(["--lost=never", limit])
            .run();
        assert_eq!(code(report.status), 23, "{}", report.stderr);
        assert_eq!(lost(report.only_row()), Ok(LOST));
    }
}

#[test]
fn nobody_in_a_tree_is_held_where_nothing_exceeds_the_limit() {
    // If one was held, it would be read, and its end would come much later.
    let delay = switch("read-delay", "60000");
    let began = Instant::now();
    let tree = format!("{}; perl -e 1; git --version", together(8));
    for limit in ["--fail-on-lost=10MB", "--fail-on-total-lost=1GB"] {
        let options = ["--lost=never", limit, "--lost-timeout=90", "-v", &delay];
        let report = Job::shell(&tree).options(options).run();
        assert_eq!(code(report.status), 0, "{}", report.stderr);
        assert!(report.rows.len() > 10);
        for row in report.rows.iter().filter(|row| row.reach.is_none()) {
            assert!(
                matches!(row.reach_unknown.as_deref(), None | Some("off")),
                "{row:#?}"
            );
        }
        let read = "processes were read at their ends";
        assert!(!report.stderr.contains(read), "{}", report.stderr);
    }
    assert!(began.elapsed() < PATIENCE);
}

#[test]
fn watched_processes_are_read_if_asked_for() {
    let ends = fixture("ends");
    let script = format!(
        "echo ready $$; read -r line; exec {} return 0",
        ends.display()
    );
    let shell = || Waiting::start(Command::new("sh").args(["-c", &script]));
    // Other processes have this name, too.
    let said = |report: &Report, pid| -> Vec<_> {
        let rows = ended(report).into_iter().filter(|row| row.pid == pid);
        rows.map(lost).collect()
    };
    for (option, expected) in [
        ("--lost=always", Ok(LOST)),
        ("--lost=auto", Err("off".to_owned())),
    ] {
        let shell_of_p = shell();
        let pid = shell_of_p.pid();
        let report = shell_of_p.watched(&[option]);
        assert_eq!(
            said(&report, pid),
            std::slice::from_ref(&expected),
            "-p {option}"
        );
        let watch = Watch::all(&[option, "--comm", "ends"]);
        let shell = shell();
        let pid = shell.pid();
        shell.finish();
        assert_eq!(said(&watch.stop(), pid), [expected], "-a {option}");
    }
}

#[test]
fn of_a_process_from_before_the_attach_only_later_blocks_are_judged() {
    let program = Waiting::fixture("joined_midway", &["5", "6"]);
    let pid = program.pid();
    let report = program.watched(&["--lost=always"]);
    let row = report.row_of(pid);
    let known = row.reach.as_ref().expect("it was read");
    let judged = known.definite_blocks
        + known.indirect_blocks
        + known.possible_blocks
        + known.reachable_blocks;
    assert_eq!(judged, row.counts.leaked_blocks);
}

// ---- what a hold does not change --------------------------------------------------------------------------

/// Waits until the command of a run is held and sleeps, which is so after some milliseconds.
#[track_caller]
pub fn when_held(running: &Running) -> Pid {
    let until = Instant::now() + PATIENCE;
    loop {
        let children = proc::children(running.pid()).into_iter();
        let mut named = children.filter(|pid| comm(*pid) == "ends" && state(*pid) == 'D');
        if let Some(pid) = named.next() {
            return pid;
        }
        assert!(Instant::now() < until, "the process is not held");
        thread::sleep(Duration::from_millis(2));
    }
}

pub fn comm(pid: Pid) -> String {
    let comm = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    comm.trim_end().to_owned()
}

/// `X` if there is no such process.
pub fn state(pid: Pid) -> char {
    Process::of(pid).map_or('X', |process| process.state)
}

/// In the kernel's ticks of 10 ms.
fn processor_time(pid: Pid) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("the process is there");
    let (_, fields) = stat.rsplit_once(") ").expect("a name in parentheses");
    let fields: Vec<&str> = fields.split(' ').collect();
    let ticks = |at: usize| fields[at].parse::<u64>().expect("a number");
    Duration::from_millis(10 * (ticks(11) + ticks(12)))
}

pub fn took(job: &Job, then: impl FnOnce(Pid)) -> (Report, Duration) {
    let running = job.start();
    let process = when_held(&running);
    let began = Instant::now();
    then(process);
    let report = running.wait();
    (report, began.elapsed())
}

#[test]
fn a_held_process_uses_hardly_any_processor_time() {
    let running = held("return 0").start();
    let process = when_held(&running);
    thread::sleep(HOLD / 2);
    let used = processor_time(process);
    let report = running.wait();
    assert!(used < AWAKE, "{used:?}");
    assert_eq!(lost(report.only_row()), Ok(LOST));
}

#[test]
fn a_signal_lets_a_held_process_go_at_once() {
    let (report, took) = took(&held("return 0"), |process| {
        kill(process, Signal::SIGTERM).expect("the process is there");
    });
    assert_eq!(lost(report.only_row()), Err("signal".to_owned()));
    assert_eq!(report.status.signal(), Some(libc::SIGTERM));
    assert!(took < AT_ONCE, "{took:?}");
}

#[test]
fn a_handler_runs_at_once_and_the_process_ends_as_it_would() {
    let how = format!("handler {} return 4", libc::SIGTERM);
    let (report, took) = took(&held(&how), |process| {
        kill(process, Signal::SIGTERM).expect("the process is there");
    });
    assert_eq!(report.stdout, "handled\n");
    assert_eq!(lost(report.only_row()), Err("signal".to_owned()));
    assert_eq!(report.status.code(), Some(4));
    assert!(took < AT_ONCE, "{took:?}");
}

#[test]
fn a_stop_stops_a_held_process_at_once() {
    let (report, _) = took(&held("return 0"), |process| {
        kill(process, Signal::SIGSTOP).expect("the process is there");
        let until = Instant::now() + AT_ONCE;
        while state(process) != 'T' {
            assert!(Instant::now() < until, "not stopped");
            thread::sleep(Duration::from_millis(5));
        }
        kill(process, Signal::SIGCONT).expect("the process is there");
    });
    assert_eq!(lost(report.only_row()), Err("signal".to_owned()));
    assert_eq!(report.status.code(), Some(0));
}

#[test]
fn a_held_process_ends_at_once_if_memleak_is_killed() {
    let running = held("return 0").start();
    let process = when_held(&running);
    let memleak = running.pid();
    let began = Instant::now();
    kill(memleak, Signal::SIGKILL).expect("memleak is there");
    while Process::is_alive(process) {
        assert!(began.elapsed() < AT_ONCE, "still held");
        thread::sleep(Duration::from_millis(1));
    }
}

/// Kills memleak while it holds a process, or shortly before or after, at moments that lie close together. Fails unless
/// the process goes on at once. Returns the longest time that one took for that.
pub fn killed_while_it_holds(moments: u32) -> Duration {
    const LIFE: Duration = Duration::from_millis(110);
    let delay = switch("read-delay", "100");
    let job = ends("threads 3 return 0").options([delay]);
    let mut longest = Duration::ZERO;
    for moment in 0..moments {
        let (running, process) = seen(&job);
        thread::sleep(LIFE * moment / moments);
        let began = Instant::now();
        kill(running.pid(), Signal::SIGKILL).expect("it was not reaped");
        while Process::is_alive(process) {
            assert!(began.elapsed() < AT_ONCE, "still held, moment {moment}");
            thread::sleep(Duration::from_micros(200));
        }
        longest = longest.max(began.elapsed());
    }
    longest
}

/// Starts a run of `fixtures/ends.c`, and finds its process.
fn seen(job: &Job) -> (Running, Pid) {
    let until = Instant::now() + PATIENCE;
    while Instant::now() < until {
        let running = job.start();
        let memleak = running.pid();
        while Process::is_alive(memleak) {
            // To look at all processes would take longer than this one lives.
            let children = format!("/proc/{memleak}/task/{memleak}/children");
            let children = fs::read_to_string(children).unwrap_or_default();
            let children = children.split_ascii_whitespace();
            let mut children = children.map(|pid| Pid::from_raw(pid.parse().expect("a number")));
            if let Some(process) = children.find(|pid| comm(*pid) == "ends") {
                return (running, process);
            }
            thread::sleep(Duration::from_micros(200));
        }
        // It was over between two looks.
        running.wait();
    }
    panic!("no process was seen");
}

#[test]
fn a_memleak_that_is_killed_at_any_of_ten_moments_of_a_hold_lets_the_process_go() {
    killed_while_it_holds(10);
}

#[test]
fn a_memleak_that_is_stopped_holds_one_process_only() {
    let ends = fixture("ends");
    let script = format!(
        "kill -STOP $PPID; for i in 1 2 3 4 5 6 7 8; do {} return 0; done; kill -CONT $PPID",
        ends.display()
    );
    let began = Instant::now();
    let options = ["--lost=always", "--lost-timeout=1.5"];
    let report = Job::shell(&script).options(options).run();
    assert!(
        began.elapsed() < Duration::from_secs(6),
        "{:?}",
        began.elapsed()
    );
    let rows = ended(&report);
    assert_eq!(rows.len(), 8);
    for row in rows {
        assert_eq!(lost(row), Err("too_long".to_owned()));
    }
}

#[test]
fn a_process_that_is_not_read_in_time_goes_on() {
    let delay = switch("read-delay", "60000");
    let began = Instant::now();
    let running = ends("return 6")
        .options([delay, "--lost-timeout=0.3".to_owned()])
        .start();
    let process = when_held(&running);
    while Process::is_alive(process) {
        assert!(began.elapsed() < PATIENCE, "still held");
        thread::sleep(Duration::from_millis(5));
    }
    let report = running.wait();
    assert_eq!(lost(report.only_row()), Err("too_long".to_owned()));
    assert_eq!(report.status.code(), Some(6));
}

// ---- threads ---------------------------------------------------------------------------------------------

/// Runs a program whose threads move pointers about until it ends. Fails unless each run has the same verdict.
pub fn moving_pointers(runs: u32) {
    for run in 0..runs {
        let report = Job::fixture("moves_pointers", &["16"])
            .options(["--lost=always"])
            .run();
        assert_eq!(lost(report.only_row()), Ok(LOST), "run {run}");
    }
}

#[test]
fn pointers_that_move_all_the_time_are_found() {
    moving_pointers(10);
}

#[test]
fn thousands_of_blocked_threads_are_no_obstacle() {
    let (lost, status) = said("threads 4000 return 0");
    assert_eq!((lost, status.code()), (Ok(LOST), Some(0)));
}

// ---- many at once, and others ------------------------------------------------------------------------------

/// A shell script that lets `processes` end at the same time.
pub fn together(processes: u32) -> String {
    let ends = fixture("ends");
    let ends = ends.display();
    format!("for i in $(seq {processes}); do {ends} return 0 & done; wait")
}

/// The processes of `fixtures/ends.c` in a report.
pub fn ended(report: &Report) -> Vec<&Row> {
    let rows = report.rows.iter();
    rows.filter(|row| row.comm == "ends").collect()
}

#[test]
fn processes_that_end_together_are_all_read() {
    // One processor for all of them, memleak included.
    let group = Group::limited(
        "cpu",
        ("cpu.cfs_quota_us", "100000"),
        ("cpu.max", "100000 100000"),
    );
    let enter = Group::enter(&group.path);
    let enter: Vec<&str> = enter.iter().map(String::as_str).collect();
    let job = Job::shell(&together(64)).options(["--lost=always"]);
    let report = job.under(&enter).run();
    let rows = ended(&report);
    assert_eq!(rows.len(), 64);
    for row in rows {
        assert_eq!(lost(row), Ok(LOST));
    }
}

#[test]
fn two_memleaks_judge_one_process() {
    let memleak = env!("CARGO_BIN_EXE_memleak");
    let ends = fixture("ends");
    let ends = ends.to_str().expect("a path of ours");
    let inner = "run -q --lost=always --format=json -o /dev/stdout --";
    let words = inner.split(' ').chain([ends, "return", "0"]);
    let words: Vec<&str> = words.collect();
    let report = Job::new(memleak, &words).options(["--lost=always"]).run();
    let rows = ended(&report);
    assert_eq!(rows.len(), 1);
    assert_eq!(lost(rows[0]), Ok(LOST));
    assert!(
        report
            .stdout
            .contains(r#""definite_bytes":1000,"definite_blocks":1"#),
        "{}",
        report.stdout
    );
}

#[test]
fn a_process_in_other_namespaces_is_read() {
    let ends = fixture("ends");
    let inside = format!("unshare -pf --mount-proc {} return 3", ends.display());
    let report = Job::shell(&inside).options(["--lost=always"]).run();
    assert_eq!(report.status.code(), Some(3), "{}", report.stderr);
    assert_eq!(lost(ended(&report)[0]), Ok(LOST));
}

#[test]
fn a_set_user_id_program_is_read_by_root() {
    let place = Place::new();
    let ends = place.copy(&fixture("ends"), "ends");
    fs::set_permissions(&ends, fs::Permissions::from_mode(0o4755)).expect("it is the test's");
    let ends = ends.to_str().expect("a path of ours");
    let nobody = ["--reuid=65534", "--regid=65534", "--clear-groups"];
    let report = Job::new("setpriv", nobody.into_iter().chain([ends, "return", "3"]))
        .options(["--lost=always"])
        .run();
    assert_eq!(report.status.code(), Some(3), "{}", report.stderr);
    assert_eq!(lost(ended(&report)[0]), Ok(LOST));
}

#[test]
fn a_traced_process_is_read_unless_a_signal_ends_it() {
    for (how, expected) in [
        ("return 3", Ok(LOST)),
        ("raise 15", Err("signal".to_owned())),
    ] {
        let script = format!("strace -f -o /dev/null {} {how}", fixture("ends").display());
        let report = Job::shell(&script).options(["--lost=always"]).run();
        assert_eq!(lost(ended(&report)[0]), expected, "{how}");
    }
}

#[test]
fn a_debugger_sees_the_end_as_ever() {
    let ends = fixture("ends");
    let script = format!(
        "gdb -nx -q -batch -ex run --args {} return 3",
        ends.display()
    );
    let report = Job::shell(&script).options(["--lost=always"]).run();
    assert!(
        report.stdout.contains("exited with code 03"),
        "{}",
        report.stdout
    );
    assert_eq!(lost(ended(&report)[0]), Ok(LOST));
}

// ---- kernels that cannot hold everywhere ----------------------------------------------------------------

#[test]
fn where_only_the_loader_is_held_exits_are_read_if_asked_for_and_signals_are_not() {
    let loader = switch("holds", "loader");
    let said = |how: &str, option: &str| {
        let words: Vec<&str> = how.split(' ').collect();
        let report = Job::fixture("ends", &words)
            .options([option, &loader])
            .run();
        report.assert_complete();
        lost(report.only_row())
    };
    for how in ["return 3", "_exit 3", "threads 3 return 3"] {
        assert_eq!(said(how, "--lost=always"), Ok(LOST), "{how}");
        assert_eq!(said(how, "--fail-on-lost=999"), Ok(LOST), "{how}");
        assert_eq!(said(how, "--lost=auto"), Err("off".to_owned()), "{how}");
    }
    let unknown = |why: &str| Err(why.to_owned());
    assert_eq!(said("raise 15", "--lost=always"), unknown("signal"));
    assert_eq!(said("abort 0", "--lost=always"), unknown("signal"));
    assert_eq!(said("raw 3", "--lost=always"), unknown("raw_exit"));
}

#[test]
fn every_method_of_attaching_holds_processes_at_their_ends() {
    side_by_side(["session", "multi", "perf-event"], |method| {
        let method = switch("method", method);
        for how in [&["return", "3"][..], &["abort", "0"]] {
            let report = Job::fixture("ends", how).options([&method]).run();
            assert_eq!(lost(report.only_row()), Ok(LOST), "{method} {how:?}");
        }
    });
}

#[test]
fn a_kernel_that_holds_nowhere_is_the_reason_where_a_scan_is_wanted() {
    let kernels = [switch("holds", "nowhere"), switch("method", "separate")];
    side_by_side(kernels, |kernel| {
        let run = |fixture: &str, words: &[&str], options: &[&str]| {
            let options = options.iter().copied().chain([kernel.as_str()]);
            let report = Job::fixture(fixture, words).options(options).run();
            (code(report.status), lost(report.only_row()), report.stderr)
        };
        let unknown = |why: &str| Err(why.to_owned());
        for how in [&["return", "3"][..], &["raw", "3"]] {
            let (code, lost, _) = run("ends", how, &["--lost=always"]);
            assert_eq!((code, lost), (3, unknown("kernel")), "{kernel}");
        }
        // A gate that needs a scan cannot be judged. One that does not need it passes.
        let ends = ["return", "0"];
        for gate in ["--fail-on-lost=999", "--fail-on-total-lost=999"] {
            let (code, lost, stderr) = run("ends", &ends, &[gate]);
            assert_eq!((code, lost), (125, unknown("kernel")), "{kernel} {gate}");
            let why = "cannot be told (this kernel cannot hold it: 1)";
            assert!(stderr.contains(why), "{stderr}");
        }
        let (code, lost, _) = run("ends", &ends, &["--fail-on-lost=1000"]);
        assert_eq!((code, lost), (0, unknown("off")), "{kernel}");
        let (code, lost, _) = run("frees_all", &[], &["--fail-on-lost=0"]);
        assert_eq!((code, lost), (0, Ok((0, 0))), "{kernel}");
        // Nobody has asked.
        for option in ["--lost=auto", "--lost=never"] {
            let (code, lost, _) = run("ends", &ends, &[option]);
            assert_eq!((code, lost), (0, unknown("off")), "{kernel} {option}");
        }
    });
}

// ---- forks -----------------------------------------------------------------------------------------------

#[test]
fn children_of_servers_that_fork_lose_nothing_that_they_inherited() {
    let script = "import multiprocessing as m, os\n\
                  kept = [bytes(i) for i in range(1000)]\n\
                  pool = m.get_context('fork').Pool(4)\n\
                  assert sum(pool.map(len, kept)) == 499500\n\
                  pool.close()\n\
                  pool.join()\n";
    let report = Job::new("/usr/bin/python3", ["-c", script])
        .env("PYTHONMALLOC", "malloc")
        .options(["--lost=always"])
        .run();
    assert_eq!(code(report.status), 0, "{}", report.stderr);
    // The workers end by themselves.
    let children = report.rows.iter().filter(|row| row.comm == "python3");
    let found: Vec<_> = children.map(lost).collect();
    assert_eq!(found, vec![Ok((0, 0)); 5]);
}
