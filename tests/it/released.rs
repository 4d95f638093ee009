//! What lets a process go that is held at its end, how long it waits for its turn, and that others see nothing of that.
//! `endings` has the rest.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::common::group::Group;
use crate::common::newcomers::Place;
use crate::common::proc::{self, Process, within};
use crate::common::switches::switch;
use crate::common::{Job, Running, fixture};
use crate::endings::{AT_ONCE, HOLD, LOST, PATIENCE, ended, held, lost, together, took};

fn signal() -> Result<(u64, u64), String> {
    Err("signal".to_owned())
}

/// The option of memleak that holds processes for longer.
fn delay() -> String {
    switch("read-delay", &HOLD.as_millis().to_string())
}

// ---- signals, stops, the freezer ----------------------------------------------------------------------------

#[test]
fn a_signal_from_elsewhere_lets_a_process_go_that_dies_of_its_own() {
    let own = format!("raise {}", libc::SIGTERM);
    let cases = [
        ("abort 0", Signal::SIGKILL, libc::SIGKILL),
        // The signal that came first is delivered first.
        ("abort 0", Signal::SIGTERM, libc::SIGABRT),
        ("fault 0", Signal::SIGKILL, libc::SIGKILL),
        ("threads 3 abort 0", Signal::SIGKILL, libc::SIGKILL),
        // The kernel has decided already what it dies of.
        (&own, Signal::SIGKILL, libc::SIGTERM),
        (&own, Signal::SIGHUP, libc::SIGTERM),
    ];
    for (how, sent, expected) in cases {
        let running = held(how).start();
        let process = when_dying(&running);
        let began = Instant::now();
        // It ends nobody.
        kill(process, Signal::SIGWINCH).expect("the process is there");
        thread::sleep(Duration::from_millis(100));
        assert!(Process::is_alive(process), "{how}");
        kill(process, sent).expect("the process is there");
        let report = running.wait();
        let took = began.elapsed();
        let row = report.only_row();
        assert_eq!(lost(row), signal(), "{how} {sent}");
        assert_eq!(report.status.signal(), Some(expected), "{how} {sent}");
        assert!(took < AT_ONCE, "{how} {sent}: {took:?}");
    }
}

/// Waits until the command of a run has got a signal that it has not taken: it is held before that. One that is killed
/// does not sleep.
#[track_caller]
fn when_dying(running: &Running) -> Pid {
    let mut found = None;
    let is_dying = || {
        found = proc::children(running.pid()).into_iter().find(|pid| {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let pending = status.lines().find(|line| line.starts_with("SigPnd:"));
            pending.is_some_and(|line| {
                line.trim_start_matches("SigPnd:\t")
                    .contains(|digit| digit != '0')
            })
        });
        found.is_some()
    };
    assert!(within(PATIENCE, is_dying), "the process is not held");
    found.expect("it was found")
}

/// Moves a held process into a control group that is frozen.
#[test]
fn the_freezer_freezes_a_held_process_at_once() {
    let group = Group::new();
    let write = |file: &str, text: &str| {
        fs::write(group.path.join(file), text).expect("the group is there");
    };
    let (report, _) = took(&held("return 4"), |process| {
        write("cgroup.procs", &process.to_string());
        write("cgroup.freeze", "1");
        let events = group.path.join("cgroup.events");
        let is_frozen = || {
            let events = fs::read_to_string(&events).expect("the group is there");
            events.contains("frozen 1")
        };
        let frozen = within(AT_ONCE, is_frozen);
        write("cgroup.freeze", "0");
        assert!(frozen, "not frozen");
    });
    assert_eq!(lost(report.only_row()), signal());
    assert_eq!(report.status.code(), Some(4));
}

// ---- turns --------------------------------------------------------------------------------------------------

#[test]
fn a_process_that_waits_for_its_turn_is_not_held_until_its_timer_expires() {
    let ends = fixture("ends");
    let ends = ends.display();
    // The second one's timer is beyond the bound when it ends, and within it when its turn comes.
    let script = format!("{ends} return 0 & {ends} rest 500 real 3300 return 0; echo $?; wait");
    let delay = switch("read-delay", "2500");
    let options = ["--lost=always", "--lost-timeout=3", &delay];
    let report = Job::shell(&script).options(options).run();
    assert_eq!(report.stdout, "0\n");
    let mut found: Vec<_> = ended(&report).into_iter().map(lost).collect();
    found.sort();
    assert_eq!(found, [Ok(LOST), Err("timer".to_owned())]);
}

#[test]
fn the_bound_does_not_count_while_others_are_read() {
    let delay = switch("read-delay", "300");
    let options = ["--lost=always", "--lost-timeout=0.8", &delay];
    let report = Job::shell(&together(5)).options(options).run();
    let found: Vec<_> = ended(&report).into_iter().map(lost).collect();
    assert_eq!(found, vec![Ok(LOST); 5]);
}

#[test]
fn for_a_limit_of_the_sum_processes_are_read_as_soon_as_it_could_be_exceeded() {
    let ends = fixture("ends");
    let ends = ends.display();
    let script = format!("{ends} return 0; {ends} return 0; {ends} return 0");
    let options = ["--lost=never", "--fail-on-total-lost=2500"];
    let report = Job::shell(&script).options(options).run();
    let found: Vec<_> = ended(&report).into_iter().map(lost).collect();
    let off = || Err("off".to_owned());
    assert_eq!(found, [off(), off(), Ok(LOST)]);
}

// ---- what others see ------------------------------------------------------------------------------------------

/// A copy of `ends` that no other test has.
fn own_ends(place: &Place) -> PathBuf {
    place.copy(&fixture("ends"), "ends")
}

/// The way in which it has to end. By the handler one sees that it has run.
const RETURNS: [&str; 4] = ["handler", "10", "return", "5"];

/// Waits until so many processes of a program are held at their ends.
#[track_caller]
fn held_at_ends(program: &Path, count: usize) -> Vec<Pid> {
    let is_held = |process: &Process| {
        let of = format!("/proc/{}", process.pid);
        let is_it = fs::read_link(format!("{of}/exe")).is_ok_and(|exe| exe == program);
        let status = fs::read_to_string(format!("{of}/status")).unwrap_or_default();
        let handles = status.contains("SigCgt:\t0000000000000200");
        is_it && process.state == 'D' && handles
    };
    let mut held = Vec::new();
    let are_held = || {
        held = proc::all().into_iter().filter(is_held).collect();
        held.len() == count
    };
    assert!(within(PATIENCE, are_held), "not held: {held:?}");
    held.into_iter().map(|process| process.pid).collect()
}

#[test]
fn a_process_that_is_held_at_its_end_looks_neither_stopped_nor_traced() {
    let place = Place::new();
    let ends = own_ends(&place);
    let watch = fixture("watches_for_stops");
    let words = RETURNS.iter().map(OsStr::new);
    let running = Job::new(&watch, [ends.as_os_str()].into_iter().chain(words))
        .options(["--lost=always", &delay()])
        .start();
    let pid = held_at_ends(&ends, 1)[0];
    let until = Instant::now() + HOLD / 3;
    while Instant::now() < until {
        Process::assert_looks_untouched(pid);
        thread::sleep(Duration::from_millis(10));
    }
    let report = running.wait();
    assert_eq!(report.stdout, "exited 5\n1 signals, 1 news\n");
    assert_eq!(lost(ended(&report)[0]), Ok(LOST));
}

#[test]
fn a_reader_of_a_pipe_waits_for_the_held_writer_only() {
    let place = Place::new();
    let ends = own_ends(&place);
    let eof = place.path("eof");
    // The shell itself reads the pipe.
    let script = format!(
        "{} {} | {{ read -r line; : >{}; }}; echo done",
        ends.display(),
        RETURNS.join(" "),
        eof.display()
    );
    let running = Job::shell(&script)
        .options(["--lost=always", &delay()])
        .start();
    let writer = held_at_ends(&ends, 1)[0];
    assert!(!eof.exists(), "the writer has ended");
    assert!(within(PATIENCE, || !Process::is_alive(writer)));
    assert!(within(AT_ONCE, || eof.exists()), "the reader waits");
    let report = running.wait();
    assert_eq!(report.stdout, "done\n");
    assert_eq!(lost(ended(&report)[0]), Ok(LOST));
}

#[test]
fn nobody_waits_for_memleak_to_write() {
    // The reader of memleak's output takes nothing, and then ends: it is held at its own end meanwhile.
    let script = format!(
        "{} -a 1 -v --lost=always --format=json -o /dev/stdout | (sleep 2; {} return 0); echo ended",
        env!("CARGO_BIN_EXE_memleak"),
        fixture("ends").display()
    );
    let began = Instant::now();
    let output = Command::new("timeout")
        .args(["-s", "INT", "20", "sh", "-c", &script])
        .output()
        .expect("a shell can be started");
    assert!(began.elapsed() < PATIENCE / 2, "{output:?}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("ended"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("attached by"), "{said}");
}

/// Eight processes are held when memleak is killed. Returns how long it took until all of them were gone.
pub fn eight_go_with_memleak() -> Duration {
    let delay = switch("read-delay", "20000");
    let place = Place::new();
    let ends = own_ends(&place);
    let script = format!(
        "for i in 1 2 3 4 5 6 7 8; do {} {} & done; wait",
        ends.display(),
        RETURNS.join(" ")
    );
    let running = Job::shell(&script)
        .options(["--lost=always", "--lost-timeout=30", &delay])
        .start();
    let processes = held_at_ends(&ends, 8);
    let began = Instant::now();
    kill(running.pid(), Signal::SIGKILL).expect("memleak runs");
    while processes.iter().any(|pid| Process::is_alive(*pid)) {
        assert!(began.elapsed() < AT_ONCE, "still held");
        thread::sleep(Duration::from_micros(200));
    }
    began.elapsed()
}

#[test]
fn eight_processes_that_are_held_at_their_ends_end_at_once_if_memleak_is_killed() {
    eight_go_with_memleak();
}
