//! `memleak -a --listen` over many short processes, while somebody reads its metrics: its memory stays what it is, and
//! no process is missed. `make test-long` does that for twenty minutes, with a release build.

use std::collections::HashMap;
use std::fmt::Display;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::common::files;
use crate::common::fixture;
use crate::common::machine;
use crate::common::proc::{cpu_seconds, resident_kb};
use crate::common::root::require_root;
use crate::common::scrape::{Server, free_address, get, sample, until};

/// How many commands there are.
const COMMANDS: u64 = 10;
/// How often metrics are read.
const SCRAPED_EACH: Duration = Duration::from_millis(500);
/// Where growth would show: from here on nothing is new to memleak.
const WARM_AFTER: f64 = 0.25;
/// How many moments are printed.
const MOMENTS: usize = 20;

/// What was seen of memleak at a moment.
#[derive(Clone, Copy)]
struct Seen {
    seconds: f64,
    resident_kb: u64,
    /// Of its BPF maps and programs.
    kernel_kb: u64,
    /// Of one processor, since its start.
    cpu_seconds: f64,
    ended: f64,
    series: usize,
}

/// How memleak is run, and what it may need.
pub struct Endurance<'a> {
    pub memleak: &'a Path,
    pub options: &'a [&'a str],
    pub seconds: u64,
    /// How many processes start in a second.
    pub rate: u64,
    /// What memleak may hold more at the end, and its maps as well.
    pub most_growth_kb: u64,
}

/// The kernel's memory for the BPF maps and programs that a process has open.
fn kernel_kb(pid: Pid) -> u64 {
    let infos = fs::read_dir(format!("/proc/{pid}/fdinfo")).expect("memleak runs");
    // Descriptors may be closed meanwhile.
    let infos = infos
        .flatten()
        .filter_map(|entry| fs::read_to_string(entry.path()).ok());
    // A map may have several descriptors.
    let bytes: HashMap<String, u64> = infos
        .filter_map(|info| {
            let value = |name| info.lines().find_map(|line| line.strip_prefix(name));
            let id = value("map_id:").or(value("prog_id:"))?;
            Some((id.to_owned(), value("memlock:")?.trim().parse().ok()?))
        })
        .collect();
    bytes.values().sum::<u64>() / 1024
}

/// The name of a command, which no process of another test has. `?` stands for each of them.
fn name(command: impl Display) -> String {
    format!("ends{command}.{}", std::process::id())
}

/// Starts each command. It starts its part of the processes.
fn start_lives(directory: &TempDir, seconds: u64, rate: u64) -> Vec<Child> {
    let start = |command| {
        let program = directory.path().join(name(command));
        files::copy(fixture("lives_at_a_rate"), &program);
        let lives = Command::new(program)
            .args([&seconds.to_string(), &(rate / COMMANDS).to_string()])
            .env_remove("LD_LIBRARY_PATH")
            .stdout(Stdio::null())
            .spawn();
        lives.expect("a fixture can be run")
    };
    (0..COMMANDS).map(start).collect()
}

/// How many processes of the commands have ended, by the metrics.
fn ended(page: &str) -> f64 {
    let of = |command| {
        let labels = format!("comm=\"{}\",user=\"root\"", name(command));
        sample(page, &format!("memleak_processes_ended_total{{{labels}}}"))
    };
    (0..COMMANDS).filter_map(of).sum()
}

impl Endurance<'_> {
    /// Prints what was seen of memleak at some moments.
    #[track_caller]
    pub fn assert_flat(&self) {
        require_root();
        let _machine = machine::watched();
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        let address = free_address();
        let mut memleak = Server::start(
            Command::new(self.memleak)
                .args(["-a", "1", "-q", "--listen", &address.to_string()])
                .args(self.options),
        );
        let pid = memleak.pid();
        until(address, "/healthz", |_| true);
        let mut lives = start_lives(&directory, self.seconds, self.rate);
        let began = Instant::now();
        let mut seen: Vec<Seen> = Vec::new();
        let mut run = |lives: &mut Child| lives.try_wait().expect("a child").is_none();
        while lives.iter_mut().any(&mut run) {
            let answer = get(address, "/metrics", "");
            let page = answer.expect("memleak answers").1;
            seen.push(Seen {
                seconds: began.elapsed().as_secs_f64(),
                resident_kb: resident_kb(pid).expect("memleak runs"),
                kernel_kb: kernel_kb(pid),
                cpu_seconds: cpu_seconds(pid),
                ended: ended(&page),
                series: page.matches("\nmemleak_live_bytes{").count(),
            });
            sleep(SCRAPED_EACH);
        }
        // Those that start the others, too.
        let all = (self.seconds * self.rate + COMMANDS) as f64;
        let page = until(address, "/metrics", |page| ended(page) >= all);
        assert_eq!(ended(&page), all);
        assert_eq!(sample(&page, "memleak_rows_lost_total"), Some(0.0));
        // SIGINT may be ignored here, as in what a script has put into the background.
        kill(pid, Signal::SIGTERM).expect("memleak runs");
        assert!(memleak.wait().success());
        print(&seen);
        self.assert_no_growth(&seen);
    }

    #[track_caller]
    fn assert_no_growth(&self, seen: &[Seen]) {
        let is_warm = |at: &&Seen| at.seconds >= self.seconds as f64 * WARM_AFTER;
        let warm = seen.iter().find(is_warm).expect("several moments");
        for (what, of) in [
            ("memleak", (|at| at.resident_kb) as fn(&Seen) -> u64),
            ("its maps", |at| at.kernel_kb),
        ] {
            let most = seen.iter().map(of).max().unwrap_or_default();
            let grown = most.saturating_sub(of(warm));
            assert!(grown <= self.most_growth_kb, "{what}: {grown} kB more");
        }
    }
}

fn print(seen: &[Seen]) {
    println!("   second  resident kB  kernel kB  processor  processes ended  series");
    for seen in seen.iter().step_by(seen.len().div_ceil(MOMENTS).max(1)) {
        println!(
            "{:9.0} {:12} {:10} {:9.1}% {:16} {:7}",
            seen.seconds,
            seen.resident_kb,
            seen.kernel_kb,
            100.0 * seen.cpu_seconds / seen.seconds.max(1.0),
            seen.ended,
            seen.series
        );
    }
}

#[test]
fn memleaks_memory_stays_what_it_is_over_many_short_processes() {
    Endurance {
        memleak: Path::new(env!("CARGO_BIN_EXE_memleak")),
        // What other tests do is no matter of this one.
        options: &["--comm", &name('?')],
        seconds: 8,
        rate: 100,
        most_growth_kb: 256,
    }
    .assert_flat();
}
