//! What is left when memleak has ended: no process, nobody who waits, and soon no breakpoint, whatever has ended it.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::common::group::Group;
use crate::common::newcomers::mapped;

const MEMLEAK: &str = env!("CARGO_BIN_EXE_memleak");

/// By then every breakpoint is gone, on a machine that is busy with other tests. `make bench` measures how long it
/// takes.
const SOON: Duration = Duration::from_secs(30);

/// Processes that use a C library of their own, which no other test probes.
struct Bystanders {
    directory: TempDir,
    children: Vec<Child>,
    /// The code of the library, and where it is in the file.
    code: (u64, Vec<u8>),
}

impl Bystanders {
    fn new(count: usize) -> Self {
        let directory = TempDir::new().unwrap();
        let library = directory.path().join("libc.so.6");
        fs::copy(mapped("libc.so.6"), &library).unwrap();
        let mut children = Vec::new();
        for _ in 0..count {
            let sleeper = Command::new("sleep")
                .arg("1000")
                .env("LD_LIBRARY_PATH", directory.path())
                .spawn();
            children.push(sleeper.unwrap());
        }
        let mut all = Self {
            directory,
            children,
            code: (0, Vec::new()),
        };
        let deadline = Instant::now() + SOON;
        while all
            .children
            .iter()
            .any(|child| all.place_in(child).is_none())
        {
            assert!(Instant::now() < deadline, "the bystanders do not start");
            sleep(Duration::from_millis(5));
        }
        let (_, offset, length) = all.place_in(&all.children[0]).unwrap();
        let mut code = vec![0; length];
        let mut file = File::open(library).unwrap();
        file.seek(SeekFrom::Start(offset)).unwrap();
        file.read_exact(&mut code).unwrap();
        all.code = (offset, code);
        all
    }

    /// Where a process has mapped the library's code: address, offset in the file, length.
    fn place_in(&self, child: &Child) -> Option<(u64, u64, usize)> {
        let library = self.directory.path().join("libc.so.6");
        let maps = fs::read_to_string(format!("/proc/{}/maps", child.id())).ok()?;
        let line = maps
            .lines()
            .find(|line| line.contains(" r-xp ") && line.ends_with(library.to_str().unwrap()))?;
        let (start, rest) = line.split_once('-')?;
        let number = |text: &str| u64::from_str_radix(text, 16).ok();
        let (start, end) = (number(start)?, number(rest.split(' ').next()?)?);
        let offset = number(rest.split(' ').nth(2)?)?;
        Some((start, offset, (end - start) as usize))
    }

    /// How many of them have other code than the library.
    fn probed(&self) -> usize {
        let is_probed = |child: &&Child| {
            let (start, offset, _) = self.place_in(child).expect("it runs");
            assert_eq!(offset, self.code.0);
            let mut memory = File::open(format!("/proc/{}/mem", child.id())).unwrap();
            let mut code = vec![0; self.code.1.len()];
            memory.seek(SeekFrom::Start(start)).unwrap();
            memory.read_exact(&mut code).unwrap();
            code != self.code.1
        };
        self.children.iter().filter(is_probed).count()
    }

    fn memleak(&self, command: &[&str]) -> Command {
        let mut memleak = Command::new(MEMLEAK);
        memleak
            .args(["run", "-q", "--"])
            .args(command)
            .env("LD_LIBRARY_PATH", self.directory.path());
        memleak
    }

    #[track_caller]
    fn assert_soon_without_probes(&self) {
        let deadline = Instant::now() + SOON;
        while self.probed() > 0 {
            assert!(Instant::now() < deadline, "{} are probed", self.probed());
            sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Bystanders {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

#[test]
fn a_hundred_processes_lose_their_breakpoints_when_memleak_ends() {
    let bystanders = Bystanders::new(100);
    let mut memleak = bystanders.memleak(&["sleep", "0.3"]).spawn().unwrap();
    // The probes are there, or the test shows nothing.
    let deadline = Instant::now() + SOON;
    while bystanders.probed() < 100 {
        assert!(Instant::now() < deadline, "nobody is probed");
    }
    assert!(memleak.wait().unwrap().success());
    bystanders.assert_soon_without_probes();
}

#[test]
fn a_memleak_that_is_killed_at_any_moment_of_its_end_leaves_no_breakpoint() {
    let bystanders = Bystanders::new(20);
    let began = Instant::now();
    assert!(bystanders.memleak(&["true"]).status().unwrap().success());
    let whole = began.elapsed();
    for round in 0..20_u32 {
        let mut memleak = bystanders.memleak(&["true"]).spawn().unwrap();
        // In the last third of its life, and some milliseconds later.
        sleep(whole.mul_f64(0.7 + f64::from(round) * 0.02));
        memleak.kill().unwrap();
        memleak.wait().unwrap();
        bystanders.assert_soon_without_probes();
    }
}

#[test]
fn what_a_memleak_that_is_killed_at_any_moment_leaves_goes_with_the_next_one() {
    assert_killed_at_any_moment(15);
}

/// Kills memleak at that many moments of its life. If probes were just being attached, breakpoints may stay. Then the
/// next memleak that ends takes them along.
#[track_caller]
pub fn assert_killed_at_any_moment(moments: u32) {
    let bystanders = Bystanders::new(3);
    let began = Instant::now();
    assert!(bystanders.memleak(&["true"]).status().unwrap().success());
    let whole = began.elapsed();
    for moment in 0..moments {
        let mut memleak = bystanders.memleak(&["true"]).spawn().unwrap();
        sleep(whole.mul_f64(f64::from(moment) / f64::from(moments)));
        memleak.kill().unwrap();
        memleak.wait().unwrap();
        assert!(bystanders.memleak(&["true"]).status().unwrap().success());
        bystanders.assert_soon_without_probes();
    }
}

#[test]
fn many_starts_in_a_row_leave_no_breakpoint() {
    assert_starts_leave_nothing(30);
}

#[track_caller]
pub fn assert_starts_leave_nothing(starts: u32) {
    let bystanders = Bystanders::new(3);
    for _ in 0..starts {
        assert!(bystanders.memleak(&["true"]).status().unwrap().success());
    }
    bystanders.assert_soon_without_probes();
}

fn processes_of(group: &Path) -> String {
    fs::read_to_string(group.join("cgroup.procs")).unwrap()
}

/// A control group is empty as soon as memleak has ended. So Slurm and systemd do not wait for it.
#[test]
fn a_control_group_is_empty_when_memleak_has_ended() {
    let group = Group::new();
    for _ in 0..5 {
        let words = Group::enter(&group.path);
        let status = Command::new(&words[0])
            .args(&words[1..])
            .args([MEMLEAK, "run", "-q", "--", "true"])
            .status();
        assert!(status.unwrap().success());
        assert_eq!(processes_of(&group.path), "");
    }
}

/// Process 1 of a container may never wait for a process that it has not started.
#[test]
fn nobody_inherits_a_process_from_memleak() {
    let script = format!(
        "{MEMLEAK} run -q -- true; sleep 0.5; for stat in /proc/[0-9]*/stat; do cat $stat; done 2>/dev/null"
    );
    // The shell is process 1. It has started memleak, and it adopts what memleak leaves.
    let output = Command::new("unshare")
        .args(["--pid", "--fork", "--mount-proc", "sh", "-c", &script])
        .output()
        .unwrap();
    let seen = String::from_utf8(output.stdout).unwrap();
    let others: Vec<&str> = seen
        .lines()
        .filter(|line| !line.contains("(sh)") && !line.contains("(cat)"))
        .collect();
    assert!(seen.contains("(sh)") && others.is_empty(), "{seen}");
}

#[test]
fn whoever_reads_memleaks_output_sees_its_end() {
    let script = format!("{MEMLEAK} run -q -- true 2>&1 | cat; echo over");
    for words in [&["sh", "-c"][..], &["timeout", "20", "sh", "-c"]] {
        let began = Instant::now();
        let output = Command::new(words[0])
            .args(&words[1..])
            .arg(&script)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), "over\n");
        assert!(began.elapsed() < SOON);
    }
}

/// timeout(1) waits for its child only. With `--foreground` the two share a process group with this test.
#[test]
fn under_timeout_memleak_ends_with_its_command() {
    let bystanders = Bystanders::new(3);
    for option in [&[][..], &["--foreground"]] {
        let began = Instant::now();
        let status = Command::new("timeout")
            .args(option)
            .args(["20", MEMLEAK, "run", "-q", "--", "sh", "-c", "exit 7"])
            .env("LD_LIBRARY_PATH", bystanders.directory.path())
            .stdin(Stdio::null())
            .status();
        assert_eq!(status.unwrap().code(), Some(7));
        assert!(began.elapsed() < Duration::from_secs(20));
        bystanders.assert_soon_without_probes();
    }
}

/// As process 1 of a pid namespace, memleak takes everybody with it when it ends.
#[test]
fn as_process_1_memleak_ends_and_leaves_no_breakpoint() {
    let bystanders = Bystanders::new(3);
    let library: PathBuf = bystanders.directory.path().into();
    for _ in 0..3 {
        let status = Command::new("unshare")
            .args([
                "--pid",
                "--fork",
                "--mount-proc",
                MEMLEAK,
                "run",
                "-q",
                "--",
                "true",
            ])
            .env("LD_LIBRARY_PATH", &library)
            .status();
        assert!(status.unwrap().success());
        bystanders.assert_soon_without_probes();
    }
}
