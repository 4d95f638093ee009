//! What a hold must not change. No timer and no limit of processor time ends a process because it was held, and other
//! programs can put probes in and take them out meanwhile. `holds` has the rest.
//!
//! `fixtures/is_held.c` arms a timer, is held in one of three ways, and says how long that took.

use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use memleak::kernel::empty::EmptyProbes;
use memleak::kernel::method::Method;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use object::{Object as _, ObjectSegment as _, ObjectSymbol as _};

use crate::common::newcomers::{Place, mapped};
use crate::common::proc;
use crate::common::proc::Process;
use crate::common::side_by_side::side_by_side;
use crate::common::switches::switch;
use crate::common::{Job, Report, Running, compile, fixture};
use crate::endings;

/// How long memleak holds a process here.
const HOLD: Duration = Duration::from_millis(1500);
/// How much of that may be processor time of the process. It is awake for the first milliseconds, and it is awake
/// for a moment between two sleeps.
const AWAKE: Duration = Duration::from_millis(250);
/// The limit for other programs' probes to go in, and to come out. It is some 50 ms where nobody is held.
const SOON: Duration = Duration::from_millis(200);
/// A process that is held for this long sleeps.
const A_WHILE: Duration = Duration::from_millis(200);
/// The limit for a held process to end or to run on, if that is to be at once.
const AT_ONCE: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(30);

/// The ways to be held: after an exec, and twice where the dynamic loader reports what it has mapped.
const WAYS: [&str; 3] = ["exec", "start", "open"];

/// A job that arms `timer` and is then held in this `way`.
fn is_held(place: &Place, timer: &str, way: &str) -> Job {
    let file = new_file(place, timer, way);
    let words = [timer.as_ref(), way.as_ref(), file.as_os_str()];
    Job::new(fixture("is_held"), words).options([delay()])
}

/// The option of memleak that makes holds longer.
fn delay() -> String {
    switch("hold-delay", &HOLD.as_millis().to_string())
}

/// The file that memleak does not know.
fn new_file(place: &Place, timer: &str, way: &str) -> PathBuf {
    let name = format!("{timer}.{way}");
    if way == "exec" {
        return place.copy(&fixture("is_held"), &name);
    }
    let library = "fixtures/library_that_allocates.c";
    place.copy(&compile(library, "liballocates_held.so", &["-O1"]), &name)
}

/// What the process says after the hold: how long it took, and its processor time.
#[derive(Debug)]
struct After {
    took: Duration,
    processor: Duration,
    has_alarm: bool,
}

#[track_caller]
fn after(report: &Report) -> After {
    let said = &report.stdout;
    assert!(
        said.contains("alive "),
        "the process did not survive: {said}{}",
        report.stderr
    );
    let mut words = said
        .lines()
        .find_map(|line| line.strip_prefix("alive "))
        .expect("the process says how long it took")
        .split(' ')
        .map(|word| Duration::from_millis(word.parse().expect("a number")));
    let (took, processor) = (words.next(), words.next());
    After {
        took: took.expect("two numbers"),
        processor: processor.expect("two numbers"),
        has_alarm: said.contains("alarm\n"),
    }
}

/// Runs a process that is held, and returns what it says. Fails unless it was held.
#[track_caller]
fn held(timer: &str, way: &str) -> After {
    let after = after(&is_held(&Place::new(), timer, way).run());
    assert!(after.took >= HOLD, "{timer} {way}: not held: {after:?}");
    after
}

// ---- the process ---------------------------------------------------------------------------------------

#[test]
fn a_held_process_uses_hardly_any_processor_time() {
    for way in WAYS {
        let after = held("none", way);
        assert!(after.processor < AWAKE, "{way}: {after:?}");
    }
}

#[test]
fn no_timer_of_processor_time_ends_a_held_process() {
    let timers = ["profile", "virtual"];
    let mut cases: Vec<_> = WAYS
        .iter()
        .flat_map(|way| timers.map(|timer| (timer, *way)))
        .collect();
    cases.push(("clock", "open"));
    side_by_side(cases, |(timer, way)| {
        held(timer, way);
    });
}

#[test]
fn no_limit_of_processor_time_ends_a_held_process() {
    let cases = WAYS
        .iter()
        .flat_map(|way| ["soft", "hard"].map(|limit| (limit, *way)));
    side_by_side(cases, |(limit, way)| {
        held(limit, way);
    });
}

#[test]
fn a_timer_that_is_due_during_a_hold_fires_after_it() {
    for way in WAYS {
        let after = held("real", way);
        assert!(after.has_alarm, "{way}: {after:?}");
    }
}

// ---- memleak and signals -------------------------------------------------------------------------------

#[test]
fn a_held_process_sleeps_though_memleak_is_stopped() {
    for way in WAYS {
        let place = Place::new();
        let (running, _) = start_held(&place, way);
        thread::sleep(A_WHILE);
        kill(running.pid(), Signal::SIGSTOP).expect("memleak runs");
        let memleak = running.pid();
        let goes_on = thread::spawn(move || {
            thread::sleep(Duration::from_secs(4));
            kill(memleak, Signal::SIGCONT).expect("memleak is stopped");
        });
        let after = after(&running.wait());
        goes_on.join().expect("memleak goes on");
        // memleak would answer after HOLD, and cannot. The bound is two seconds.
        assert!(after.took > HOLD, "{way}: {after:?}");
        assert!(after.took < Duration::from_secs(4), "{way}: {after:?}");
        assert!(after.processor < AWAKE, "{way}: {after:?}");
    }
}

#[test]
fn a_sleeping_process_runs_on_at_once_if_memleak_is_killed() {
    for way in WAYS {
        let place = Place::new();
        let said = place.path("said");
        let mut memleak = Command::new(env!("CARGO_BIN_EXE_memleak"))
            .args(["run", "-q", &delay(), "--"])
            .arg(fixture("is_held"))
            .args(["none", way])
            .arg(new_file(&place, "none", way))
            .stdout(File::create(&said).expect("the test owns the directory"))
            .spawn()
            .expect("memleak can be started");
        let pid = wait_for_hold(Pid::from_raw(memleak.id().cast_signed()), &place, way);
        thread::sleep(A_WHILE);
        assert!(Process::is_alive(pid), "{way}: the process is not held");
        memleak.kill().expect("memleak runs");
        memleak.wait().expect("a child");
        let began = Instant::now();
        while Process::is_alive(pid) {
            assert!(began.elapsed() < AT_ONCE, "{way}: the process is held");
            thread::sleep(Duration::from_millis(5));
        }
        let said = fs::read_to_string(said).expect("the process wrote");
        assert!(said.contains("alive "), "{way}: {said}");
    }
}

#[test]
fn a_sleeping_process_ends_at_once_if_it_is_killed() {
    for way in WAYS {
        let place = Place::new();
        let (running, pid) = start_held(&place, way);
        thread::sleep(A_WHILE);
        let began = Instant::now();
        kill(pid, Signal::SIGKILL).expect("the process is held");
        while Process::is_alive(pid) {
            assert!(began.elapsed() < AT_ONCE, "{way}: the process is held");
            thread::sleep(Duration::from_millis(5));
        }
        let report = running.wait();
        assert_eq!(report.status.signal(), Some(9), "{way}");
        assert!(!report.stdout.contains("alive"), "{way}: {}", report.stdout);
    }
}

// ---- other programs ------------------------------------------------------------------------------------

/// Starts functions of libc, which every process here has mapped.
fn functions_of_libc() -> (PathBuf, Vec<u64>) {
    let path = mapped("libc.so");
    let data = fs::read(&path).expect("libc can be read");
    let libc = object::File::parse(&*data).expect("libc is an ELF file");
    let names = ["getpid", "getppid", "getuid", "geteuid", "abs", "labs"];
    let offsets = libc
        .dynamic_symbols()
        .filter(|symbol| symbol.name().is_ok_and(|name| names.contains(&name)))
        .map(|symbol| {
            let segment = libc
                .segments()
                .find(|segment| {
                    (segment.address()..segment.address() + segment.size())
                        .contains(&symbol.address())
                })
                .expect("a function is in a segment");
            symbol.address() - segment.address() + segment.file_range().0
        })
        .collect::<Vec<_>>();
    assert_eq!(offsets.len(), names.len());
    (path, offsets)
}

/// A process that is held now.
fn start_held(place: &Place, way: &str) -> (Running, Pid) {
    let running = is_held(place, "none", way).start();
    let pid = wait_for_hold(running.pid(), place, way);
    (running, pid)
}

/// Waits until a child of memleak is held.
#[track_caller]
fn wait_for_hold(memleak: Pid, place: &Place, way: &str) -> Pid {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let children = proc::children(memleak);
        if let Some(pid) = children
            .into_iter()
            .find(|pid| is_held_now(*pid, place, way))
        {
            return pid;
        }
        assert!(Instant::now() < deadline, "{way}: the process is not held");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Whether the process has mapped the file that memleak does not know. Then it is held, or was.
fn is_held_now(pid: Pid, place: &Place, way: &str) -> bool {
    let file = place.path(&format!("none.{way}"));
    fs::read_to_string(format!("/proc/{pid}/maps"))
        .is_ok_and(|maps| maps.contains(file.to_str().expect("a name of ours")))
}

#[test]
fn other_programs_put_probes_in_and_take_them_out_during_a_hold() {
    let (path, offsets) = functions_of_libc();
    let libc = File::open(path).expect("libc can be read");
    for way in WAYS.into_iter().chain(["end"]) {
        let place = Place::new();
        let running = match way {
            "end" => {
                let running = endings::held("return 0").start();
                endings::when_held(&running);
                running
            }
            _ => start_held(&place, way).0,
        };
        let began = Instant::now();
        // On a busy machine one try may take longer. A hold that keeps probes out lets no try end before it does.
        let mut tries = Vec::new();
        while began.elapsed() < HOLD * 2 / 3 {
            let before = Instant::now();
            let probes = EmptyProbes::attach(Method::Multi, &libc, &offsets).expect("uprobes");
            let put_in = before.elapsed();
            drop(probes);
            tries.push((put_in, before.elapsed() - put_in, began.elapsed()));
        }
        let report = running.wait();
        match way {
            "end" => assert_eq!(endings::lost(report.only_row()), Ok(endings::LOST)),
            _ => drop(after(&report)),
        }
        let is_soon = |&(put_in, taken_out, ended): &(Duration, Duration, Duration)| {
            put_in < SOON && taken_out < SOON && ended < HOLD * 2 / 3
        };
        assert!(tries.iter().any(is_soon), "{way}: {tries:?}");
    }
}
