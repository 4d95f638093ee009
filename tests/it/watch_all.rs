//! Tests `memleak -a`, which watches every process of the machine, of any user and in any namespace. Also tests the
//! filters that select processes.

use std::ffi::OsString;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::common::expected::{End, counts};
use crate::common::group::Group;
use crate::common::machine;
use crate::common::newcomers::{Kind, Place};
use crate::common::watch::{BOTH, Waiting, Watch, since_preload, under_counter};
use crate::common::{Counts, Report, Row, compare, counter, fixture};
use nix::sys::signal::Signal;
use tempfile::TempDir;

/// A user id without a user.
const USERLESS: u32 = 54377;

/// Runs a command to its end. Returns its pid, which is also the pid of its last image.
#[track_caller]
fn run_and_reap(command: &mut Command) -> u32 {
    let mut child = command
        .env_remove("LD_LIBRARY_PATH")
        .stdin(Stdio::null())
        .spawn()
        .unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"));
    let pid = child.id();
    let status = child.wait().expect("a child can be waited for");
    assert!(status.success(), "{command:?}: {status}");
    pid
}

/// A program of a given name that every user may execute. It leaks one block of a given size.
struct Leaker {
    place: Place,
    program: PathBuf,
}

impl Leaker {
    fn new(name: &str) -> Self {
        let place = Place::new();
        let program = place.copy(&fixture("holds_blocks"), name);
        Self { place, program }
    }

    fn leak(&self, bytes: u64) -> u32 {
        self.leak_by(&[], bytes)
    }

    /// The same, but the programs in `wrapper` execute each other, and the last one executes the leaker.
    fn leak_by(&self, wrapper: &[&str], bytes: u64) -> u32 {
        let bytes = bytes.to_string();
        let program = self.program.as_os_str().to_owned();
        let mut words: Vec<OsString> = wrapper.iter().map(OsString::from).collect();
        words.extend([program, "1".into(), bytes.into()]);
        run_and_reap(Command::new(&words[0]).args(&words[1..]))
    }
}

fn leaked(bytes: u64) -> Counts {
    counts(bytes, 1, 0, bytes, 1)
}

/// The last image of a process.
#[track_caller]
fn last(report: &Report, pid: u32) -> &Row {
    let rows = report.rows_of(pid);
    rows.last().unwrap_or_else(|| panic!("no row of {pid}"))
}

/// Fails unless each of these processes leaked one block of so many bytes, and was followed from its beginning.
#[track_caller]
fn assert_leaked(report: &Report, expected: &[(u32, u64)]) {
    for (pid, bytes) in expected {
        let row = last(report, *pid);
        assert_eq!(
            (End::of(row), row.counts, &*row.from, row.complete),
            (End::Exit(0), leaked(*bytes), "start", true),
            "{row:#?}"
        );
    }
}

#[test]
fn memleak_and_the_counter_agree_on_a_tree_that_starts_after_memleak() {
    for programs in BOTH.iter() {
        let directory = TempDir::new().expect("a temporary directory");
        let tree = "ls -l / | sort | wc -l >/dev/null; python3 -c 'import os; os.fork() and os.wait()'; \
                for i in 1 2 3; do date; done; git --version | cat";
        let watch = Watch::all(programs);
        let words = under_counter(directory.path(), ["sh", "-c", tree]);
        run_and_reap(
            Command::new(&words[0])
                .args(&words[1..])
                .stdout(Stdio::null()),
        );
        let report = watch.stop();
        let images = counter::read(directory.path());
        assert!(images.len() >= 11, "{images:#?}");
        let rows = since_preload(&report, &images);
        assert!(rows.iter().all(|row| row.complete), "{rows:#?}");
        if let Err(difference) = compare(&rows, &images) {
            panic!("memleak and the counter differ:\n{difference}");
        }
    }
}

#[test]
fn processes_of_all_users_have_rows_with_the_hosts_user() {
    let leaker = Leaker::new("leaker");
    let watch = Watch::all(&[]);
    let (number, nobody) = (USERLESS.to_string(), "65534");
    let as_user = |uid: &str| ["setpriv".to_owned(), format!("--reuid={uid}")];
    let strange = as_user(&number);
    let known = as_user(nobody);
    // Inside its own namespaces this process is root.
    let inner = [
        "unshare",
        "--user",
        "--map-root-user",
        "--mount",
        "--pid",
        "--fork",
    ];
    let words = |user: &[String; 2]| [user[0].clone(), user[1].clone()];
    let [strange, known] = [words(&strange), words(&known)];
    let strange: Vec<&str> = strange.iter().map(String::as_str).collect();
    let known: Vec<&str> = known.iter().map(String::as_str).collect();
    let plain = leaker.leak(11);
    let numbered = leaker.leak_by(&strange, 12);
    let named = leaker.leak_by(&known, 13);
    let unshare = leaker.leak_by(&[&known[..], &inner].concat(), 14);
    let report = watch.stop();
    assert_leaked(&report, &[(plain, 11), (numbered, 12), (named, 13)]);
    let user = |row: &Row| (row.uid, row.user.clone());
    assert_eq!(user(last(&report, plain)), (0, Some("root".into())));
    assert_eq!(user(last(&report, numbered)), (USERLESS, None));
    assert_eq!(user(last(&report, named)), (65534, Some("nobody".into())));
    let contained: Vec<_> = report
        .rows
        .iter()
        .filter(|row| row.ppid == unshare && row.end == "exited")
        .collect();
    let [row] = contained[..] else {
        panic!("{contained:#?}")
    };
    assert_eq!(row.counts, leaked(14));
    assert!(row.complete && row.pid != 1, "{row:#?}");
    assert_eq!(user(row), (65534, Some("nobody".into())));
}

#[test]
fn rows_of_earlier_processes_say_attach_and_memleak_has_no_row() {
    for programs in BOTH.iter() {
        let mut target = Waiting::fixture("joined_midway", &["7", "2"]);
        let pid = target.pid();
        let watch = Watch::all(&[programs.as_slice(), &["--top", "100000"]].concat());
        watch.signal(Signal::SIGUSR1);
        let own = watch.own_pid();
        let shown = watch.until(|rows| rows.iter().any(|row| row.pid == pid));
        assert!(shown.iter().all(|row| row.pid != own), "{shown:#?}");
        assert!(shown.iter().all(|row| row.end == "running"));
        target.go();
        target.finish();
        let report = watch.stop();
        let row = last(&report, pid);
        assert_eq!((row.from.as_str(), row.counts.unknown_frees), ("attach", 8));
        assert_eq!(row.counts.total_allocs_bytes, 2 * 10 + 300);
        assert!(report.rows_of(own).is_empty());
    }
}

#[test]
fn an_allocator_that_only_one_process_has_mapped_is_probed_too() {
    let place = Place::new();
    let program = place.copy(&Kind::MuslStatic.build("joined_midway"), "itself");
    let target = Waiting::start(Command::new(&program).args(["3", "4"]));
    let pid = target.pid();
    let watch = Watch::all(&["--comm", "itself"]);
    // memleak does not know this program yet.
    let newcomer = place.newcomer(Kind::MuslStatic, "itself-too");
    target.finish();
    let unwanted = run_and_reap(Command::new(newcomer).arg("5").stdout(Stdio::null()));
    let report = watch.stop();
    assert_eq!(last(&report, pid).counts.unknown_frees, 4);
    assert_eq!(last(&report, pid).allocators, [program]);
    assert!(report.rows_of(unwanted).is_empty());
}

// ---- filters -------------------------------------------------------------------------------------------

#[test]
fn processes_are_selected_by_user_id_and_by_user_name() {
    let leaker = Leaker::new("leaker");
    let number = USERLESS.to_string();
    let by_number = format!("--reuid={number}");
    let watches = [
        Watch::all(&["--uid", &number]),
        Watch::all(&["--user-name", "nobody"]),
        Watch::all(&["--uid", &number, "--user-name", "nobody"]),
    ];
    let plain = leaker.leak(21);
    let numbered = leaker.leak_by(&["setpriv", &by_number], 22);
    let named = leaker.leak_by(&["setpriv", "--reuid=65534"], 23);
    for (watch, expected) in watches.into_iter().zip([
        &[(numbered, 22)][..],
        &[(named, 23)],
        &[(numbered, 22), (named, 23)],
    ]) {
        let report = watch.stop();
        assert_leaked(&report, expected);
        // The other processes have no rows. setpriv has none either: it allocates nothing after it changes its user.
        for pid in [plain, numbered, named] {
            let rows = report.rows_of(pid);
            let wanted = expected.iter().any(|(wanted, _)| *wanted == pid);
            assert_eq!(rows.len(), usize::from(wanted), "{rows:#?}");
        }
    }
}

#[test]
fn the_tasks_of_a_job_have_their_ranks_if_these_are_recorded() {
    let leaker = Leaker::new("ranked");
    let names = ["PMI_RANK", "SLURM_PROCID"].map(|name| format!("--label-env={name}"));
    let watch = Watch::all(&[&names[0], &names[1], "--comm=ranked"]);
    let pids = [
        leaker.leak_by(&["env", "SLURM_PROCID=0"], 10),
        leaker.leak_by(&["env", "SLURM_PROCID=0", "PMI_RANK=5"], 11),
        leaker.leak_by(&["env", "-u", "SLURM_PROCID"], 12),
    ];
    let report = watch.stop();
    let ranks = pids.map(|pid| last(&report, pid).rank);
    assert_eq!(ranks, [Some(0), Some(5), None]);
}

#[test]
fn processes_are_selected_by_command_name() {
    let [one, two, other] = ["one-leaker", "two-leaker", "another"].map(Leaker::new);
    let watches = [
        Watch::all(&["--comm", "*-leaker"]),
        Watch::all(&["--comm", "*-leaker", "--comm", "!two*"]),
        Watch::all(&["--comm", "[ao]n*"]),
    ];
    let pids = [one.leak(31), two.leak(32), other.leak(33)];
    for (watch, wanted) in watches.into_iter().zip([
        [true, true, false],
        [true, false, false],
        [true, false, true],
    ]) {
        let report = watch.stop();
        for ((pid, bytes), wanted) in pids.iter().zip([31, 32, 33]).zip(wanted) {
            if wanted {
                assert_leaked(&report, &[(*pid, bytes)]);
            } else {
                assert!(report.rows_of(*pid).is_empty(), "{:#?}", report.rows);
            }
        }
    }
}

#[test]
fn a_process_that_leaks_less_than_the_minimum_is_not_reported() {
    let leaker = Leaker::new("min-leaker");
    let watch = Watch::all(&["--comm", "min-leaker", "--min-leak", "1kB"]);
    let pids = [leaker.leak(999), leaker.leak(1000)];
    let report = watch.stop();
    assert!(report.rows_of(pids[0]).is_empty());
    assert_leaked(&report, &[(pids[1], 1000)]);
}

#[test]
fn a_control_group_is_watched_with_all_groups_below_it() {
    let leaker = Leaker::new("leaker");
    let group = Group::new();
    let below = group.path.join("below");
    fs::create_dir(&below).expect("control groups can be made");
    let path = group.path.to_str().expect("a plain path");
    let watches = [
        Watch::all(&["--cgroup", path]),
        Watch::all(&["--cgroup", below.to_str().expect("a plain path")]),
    ];
    let leak_in = |path: &Path, bytes| {
        let enter = Group::enter(path);
        leaker.leak_by(&enter.each_ref().map(String::as_str), bytes)
    };
    // The shell's own image is in the group for a part of its life.
    let outside = leaker.leak(41);
    let inside = leak_in(&group.path, 42);
    let deeper = leak_in(&below, 43);
    let [both, one] = watches.map(Watch::stop);
    assert_leaked(&both, &[(inside, 42), (deeper, 43)]);
    assert_leaked(&one, &[(deeper, 43)]);
    assert!(both.rows_of(outside).is_empty());
    assert!(one.rows_of(outside).is_empty() && one.rows_of(inside).is_empty());
}

#[test]
fn a_process_that_enters_the_control_group_is_counted_from_its_next_call() {
    for programs in BOTH.iter() {
        let group = Group::new();
        let mut target = Waiting::fixture("joined_midway", &["5", "6"]);
        let pid = target.pid();
        let watch = Watch::all(
            &[
                programs.as_slice(),
                &["--cgroup", group.path.to_str().expect("a plain path")],
            ]
            .concat(),
        );
        fs::write(group.path.join("cgroup.procs"), pid.to_string())
            .expect("the process can be moved");
        target.go();
        target.finish();
        let report = watch.stop();
        let row = last(&report, pid);
        assert_eq!((&*row.from, row.counts.unknown_frees), ("attach", 6));
        assert_eq!(row.counts.total_allocs_bytes, 6 * 10 + 300);
    }
}

#[test]
fn a_process_given_by_pid_is_reported_only_inside_the_control_group() {
    let group = Group::new();
    let path = group.path.to_str().expect("a plain path");
    let leaker = Leaker::new("leaker");
    let script = r#"echo ready $$; read -r line; "$1" 1 51; (echo $(exec sh -c 'echo $PPID') >"$2/cgroup.procs"; "$1" 1 52); exit 0"#;
    let target = Waiting::start(
        Command::new("sh")
            .args(["-c", script, "sh"])
            .arg(&leaker.program)
            .arg(path),
    );
    let pid = target.pid();
    let watch = Watch::pid(pid, &["--cgroup", path]);
    target.finish();
    let report = watch.wait();
    assert!(report.rows_of(pid).is_empty(), "{:#?}", report.rows);
    let leaks: Vec<_> = report
        .rows
        .iter()
        .filter(|row| row.exe.as_ref() == Some(&leaker.program))
        .map(|row| row.counts)
        .collect();
    assert_eq!(leaks, [leaked(52)]);
    assert!(leaker.place.path("").exists());
}

/// A container's first script may start its program and then become memleak.
#[test]
fn a_child_that_was_there_before_memleak_is_watched() {
    let _machine = machine::watched();
    let script = format!(
        "(sleep 1; exec {} 1 1 </dev/null >/dev/null) & exec {} -a 0.3 --comm joined_midway",
        fixture("joined_midway").display(),
        env!("CARGO_BIN_EXE_memleak")
    );
    let mut shell = Command::new("bash");
    shell.args(["-c", &script]).stdout(Stdio::piped());
    let mut shell = shell.spawn().unwrap();
    let mut lines = BufReader::new(shell.stdout.take().unwrap()).lines();
    let found = lines.any(|line| line.unwrap().contains("joined_midway"));
    shell.kill().unwrap();
    shell.wait().unwrap();
    assert!(found);
}
