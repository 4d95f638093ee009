//! `memleak -a --listen` over many short processes, while somebody reads its metrics: its memory stays what it is, and
//! no process is missed. `make test-long` does that for twenty minutes.

use std::collections::HashMap;
use std::fs;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::common::files;
use crate::common::fixture;
use crate::common::proc::resident_kb;
use crate::common::root::require_root;
use crate::common::scrape::{Server, free_address, get, sample, until};

/// How often metrics are read.
const SCRAPED_EACH: Duration = Duration::from_millis(500);
/// Where growth would show: from here on nothing is new to memleak.
const WARM_AFTER: f64 = 0.25;
/// What memleak may hold more at the end, for whatever reason.
const MOST_GROWTH_KB: u64 = 4096;

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

fn cpu_seconds(pid: Pid) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("memleak runs");
    let (_, rest) = stat.rsplit_once(") ").expect("a name in brackets");
    let ticks = rest.split(' ').skip(11).take(2);
    let ticks: u64 = ticks
        .map(|ticks| ticks.parse::<u64>().expect("ticks"))
        .sum();
    ticks as f64 / 100.0
}

/// Watches so many processes a second for so long. Prints what was seen of memleak at ten moments.
pub fn endures(seconds: u64, rate: u64) {
    require_root();
    // A name that no process of another test has.
    const ENDED: &str = "memleak_processes_ended_total{comm=\"endures\",user=\"root\"}";
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let program = directory.path().join("endures");
    files::copy(fixture("lives_at_a_rate"), &program);
    let address = free_address();
    let mut memleak = Server::start(
        Command::new(env!("CARGO_BIN_EXE_memleak"))
            .args(["-a", "1", "-q", "--comm", "endures", "--listen"])
            .arg(address.to_string()),
    );
    let pid = memleak.pid();
    until(address, "/healthz", |_| true);
    let lives = Command::new(program)
        .args([&seconds.to_string(), &rate.to_string()])
        .env_remove("LD_LIBRARY_PATH")
        .stdout(Stdio::null())
        .spawn();
    let mut lives = lives.expect("a fixture can be run");
    let began = Instant::now();
    let mut seen: Vec<Seen> = Vec::new();
    while lives.try_wait().expect("it can be waited for").is_none() {
        let answer = get(address, "/metrics", "");
        let page = answer.expect("memleak answers").1;
        seen.push(Seen {
            seconds: began.elapsed().as_secs_f64(),
            resident_kb: resident_kb(pid).expect("memleak runs"),
            kernel_kb: kernel_kb(pid),
            cpu_seconds: cpu_seconds(pid),
            ended: sample(&page, ENDED).unwrap_or(0.0),
        });
        sleep(SCRAPED_EACH);
    }
    // The one that starts the others, too.
    let all = (seconds * rate + 1) as f64;
    let page = until(address, "/metrics", |page| sample(page, ENDED) >= Some(all));
    assert_eq!(sample(&page, ENDED), Some(all));
    assert_eq!(sample(&page, "memleak_rows_lost_total"), Some(0.0));
    kill(pid, Signal::SIGINT).expect("memleak runs");
    assert!(memleak.wait().success());

    println!("   second  resident kB  kernel kB  processor  processes ended");
    for seen in seen.iter().step_by(seen.len().div_ceil(10).max(1)) {
        println!(
            "{:9.0} {:12} {:10} {:9.1}% {:16}",
            seen.seconds,
            seen.resident_kb,
            seen.kernel_kb,
            100.0 * seen.cpu_seconds / seen.seconds.max(1.0),
            seen.ended
        );
    }
    let warm = seen
        .iter()
        .find(|at| at.seconds >= seconds as f64 * WARM_AFTER);
    let warm = warm.expect("there were several moments");
    let grown = |of: fn(&Seen) -> u64| {
        let most = seen.iter().map(of).max().unwrap_or_default();
        most.saturating_sub(of(warm))
    };
    assert!(
        grown(|at| at.resident_kb) <= MOST_GROWTH_KB,
        "memleak grows"
    );
    assert!(grown(|at| at.kernel_kb) <= MOST_GROWTH_KB, "its maps grow");
}

#[test]
fn memleaks_memory_stays_what_it_is_over_many_short_processes() {
    endures(8, 50);
}
