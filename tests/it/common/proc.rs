//! Processes, as `/proc/PID/stat` describes them.

use std::collections::BTreeMap;
use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

#[derive(Clone, Copy, Debug)]
pub struct Process {
    pub pid: Pid,
    /// `R` running, `S` sleeping, `T` stopped, `Z` ended and not reaped, and others.
    pub state: char,
    pub parent: Pid,
    pub group: Pid,
    pub session: Pid,
}

impl Process {
    /// Reads the state of a process. `None` once the process is reaped.
    pub fn of(pid: Pid) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The process name comes first, in parentheses. It may contain any character.
        let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
        let state = fields.next()?.chars().next()?;
        let mut id = || fields.next()?.parse().ok().map(Pid::from_raw);
        Some(Self {
            pid,
            state,
            parent: id()?,
            group: id()?,
            session: id()?,
        })
    }

    /// Fails if the process, which memleak holds, looks stopped or traced to others, or has a signal that is not its own.
    #[track_caller]
    pub fn assert_looks_untouched(pid: Pid) {
        let process = Self::of(pid).expect("the process is held");
        // Awake, or asleep in the kernel.
        assert!("RD".contains(process.state), "{}", process.state);
        let status =
            fs::read_to_string(format!("/proc/{pid}/status")).expect("the process is held");
        let fields: BTreeMap<_, _> = status
            .lines()
            .filter_map(|line| line.split_once(":\t"))
            .collect();
        assert_eq!(fields["TracerPid"], "0");
        for pending in ["SigPnd", "ShdPnd", "SigBlk"] {
            assert_eq!(fields[pending], "0000000000000000", "{pending}");
        }
    }

    /// Whether the process has not ended. It may be running, sleeping or stopped.
    pub fn is_alive(pid: Pid) -> bool {
        Self::of(pid).is_some_and(|process| process.state != 'Z')
    }
}

pub fn all() -> Vec<Process> {
    let entries = fs::read_dir("/proc").expect("/proc can be read");
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.filter_map(|pid| Process::of(Pid::from_raw(pid)))
        .collect()
}

pub fn children(parent: Pid) -> Vec<Pid> {
    all()
        .into_iter()
        .filter(|process| process.parent == parent)
        .map(|process| process.pid)
        .collect()
}

/// Kills every process for which `which` is true, such as the processes of a test.
pub fn end_all(which: impl Fn(&Process) -> bool) {
    for process in all().into_iter().filter(|process| which(process)) {
        let _ = kill(process.pid, Signal::SIGKILL);
    }
}

/// Waits until something is so, for at most `time`. Returns whether it was so in time.
pub fn within(time: Duration, mut is_so: impl FnMut() -> bool) -> bool {
    let until = Instant::now() + time;
    loop {
        if is_so() {
            return true;
        }
        if Instant::now() > until {
            return false;
        }
        sleep(Duration::from_millis(5));
    }
}

/// VmRSS in kB. `None` once the process has ended.
pub fn resident_kb(pid: Pid) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

/// The time that a process has had of one processor, in seconds.
#[track_caller]
pub fn cpu_seconds(pid: Pid) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("the process runs");
    let (_, rest) = stat.rsplit_once(") ").expect("a name in brackets");
    let ticks = rest.split(' ').skip(11).take(2);
    let ticks: u64 = ticks
        .map(|ticks| ticks.parse::<u64>().expect("ticks"))
        .sum();
    ticks as f64 / 100.0
}
