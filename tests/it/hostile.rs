//! Hostile or broken trees, and processes that begin or end in unusual ways. Nothing must hang, no row may be wrong or
//! missing, and memory must stay bounded.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use crate::common;
use crate::common::expected::{End, Expected, case, counts, ends, thread_bytes};
use crate::common::files;
use crate::common::proc::resident_kb;
use crate::common::switches::switch;
use crate::common::{Counts, DEFAULT_SIGNALS, Job, Losses, Report, Row, code, fixture};
use nix::sys::signal::{Signal, killpg};
use tempfile::TempDir;

/// Fails unless nothing was lost and the report has exactly these images, in any order.
#[track_caller]
fn assert_images(report: &Report, expected: impl IntoIterator<Item = Expected>) {
    report.assert_complete();
    let mut expected: Vec<_> = expected.into_iter().collect();
    let mut found: Vec<_> = report.rows.iter().map(image).collect();
    found.sort();
    expected.sort();
    assert_eq!(found, expected, "{}", report.stderr);
}

fn image(row: &Row) -> Expected {
    ends(row.image, End::of(row), row.counts)
}

/// The counts of one leaked block of this size.
fn leaks(bytes: u64) -> Counts {
    counts(bytes, 1, 0, bytes, 1)
}

#[track_caller]
fn row_of<'a>(report: &'a Report, comm: &str) -> &'a Row {
    let found: Vec<_> = report.rows.iter().filter(|row| row.comm == comm).collect();
    match found[..] {
        [row] => row,
        _ => panic!("expected one row of {comm}: {:#?}", report.rows),
    }
}

/// Copies a program to a place that any user and namespace can reach. Returns the guard that removes the directory, and
/// the program's path.
fn public_copy(name: &str) -> (TempDir, PathBuf) {
    let directory = TempDir::new().expect("a temporary directory");
    let everyone = fs::Permissions::from_mode(0o755);
    fs::set_permissions(directory.path(), everyone).expect("can be changed");
    let copy = directory.path().join(name);
    files::copy(fixture(name), &copy);
    (directory, copy)
}

/// Runs a job. Fails if memleak's memory grows by more than two megabytes after a quarter of the report is written.
/// Rows that pile up while memleak does not get to run take that much.
#[track_caller]
fn run_in_flat_memory(job: &Job) -> Report {
    let running = job.start();
    let (pid, json) = (running.pid(), running.json().to_path_buf());
    let sampler = thread::spawn(move || {
        let mut samples: Vec<(u64, u64)> = Vec::new();
        while let Some(resident) = resident_kb(pid) {
            let written = json.metadata().map_or(0, |metadata| metadata.len());
            samples.push((written, resident));
            sleep(Duration::from_millis(20));
        }
        samples
    });
    let report = running.wait();
    let samples = sampler.join().expect("samples");
    let all = samples.last().expect("a sample").0;
    let mut later = samples.iter().skip_while(|(written, _)| written * 4 < all);
    let (_, early) = later.next().expect("a quarter comes before the whole");
    let most = later.map(|(_, resident)| resident).max().unwrap_or(early);
    assert!(
        samples.len() > 10,
        "the run was too short for enough samples: {samples:?}"
    );
    assert!(
        most.saturating_sub(*early) <= 2048,
        "{early} kB at a quarter, {most} kB later"
    );
    report
}

// ---- many processes ------------------------------------------------------------------------------------

/// Runs this many processes, which a whole hundred divides.
pub fn short_processes_in_flat_memory(children: u64) {
    // Without optimisation, reading so many processes takes minutes.
    let job = Job::fixture("short_lives", &[&children.to_string()]).options(["--lost=never"]);
    let report = run_in_flat_memory(&job);
    report.assert_complete();
    assert_eq!(report.rows.len() as u64, children + 1);
    assert_eq!(report.summary.processes, children + 1);
    let mut rows: BTreeMap<Counts, u64> = BTreeMap::new();
    for row in &report.rows {
        assert_eq!((row.image, &*row.end), (0, "exited"), "{row:#?}");
        *rows.entry(row.counts).or_default() += 1;
    }
    let mut expected: BTreeMap<_, _> = (0..100)
        .map(|c| (counts(1000 + c, 2, 1, c, 1), children / 100))
        .collect();
    expected.insert(Counts::default(), 1);
    assert_eq!(rows, expected);
}

#[test]
fn five_thousand_short_processes_leave_a_row_each_in_flat_memory() {
    short_processes_in_flat_memory(5_000);
}

#[test]
fn a_thousand_execs_of_one_process_are_1001_images_in_flat_memory() {
    let report = run_in_flat_memory(&Job::fixture("execs_itself", &["1000"]));
    assert_eq!(code(report.status), 3);
    assert_eq!(report.summary.processes, 1);
    let last = ends(1000, End::Exit(3), Counts::default());
    let expected = (0..1000)
        .map(|n| ends(n, End::Exec, leaks(1000 - u64::from(n))))
        .chain([last]);
    assert_images(&report, expected);
}

#[test]
fn a_fork_bomb_within_its_limit_is_counted_to_its_last_process() {
    fork_bomb(&[]);
}

/// Runs a fork bomb. Fails unless all of its processes are counted exactly.
pub fn fork_bomb(options: &[&str]) {
    let job = Job::fixture("fork_bomb", &["64123", "24", "700"]).options(["--wait-all=20"]);
    let report = job.options(options).run();
    assert_eq!(code(report.status), 0, "{}", report.stderr);
    let children: usize = report
        .stdout
        .trim()
        .parse()
        .expect("the fork bomb prints its count");
    assert!(
        children >= 23,
        "the fork bomb made only {children} children"
    );
    let each = ends(0, End::Exit(0), leaks(100));
    assert_images(&report, vec![each; children + 1]);
    assert!(report.rows.iter().all(|row| row.uid == 64123));
}

// ---- broken surroundings -------------------------------------------------------------------------------

#[test]
fn a_command_that_closes_every_descriptor_is_exact() {
    let report = Job::fixture("closes_all", &[]).run();
    assert_eq!(code(report.status), 7);
    let parent = ends(0, End::Exit(7), leaks(10));
    assert_images(&report, [parent, ends(0, End::Exit(6), leaks(20))]);
}

#[test]
fn a_program_executed_from_a_removed_directory_has_no_path() {
    let (top, program) = public_copy("leaks_2mb");
    let script = format!(
        "mkdir {0}/gone && cd {0}/gone && rmdir {0}/gone && exec ../leaks_2mb",
        top.path().display()
    );
    let report = Job::shell(&script).run();
    assert_eq!(code(report.status), 0, "{}", report.stderr);
    let row = row_of(&report, "leaks_2mb");
    assert_eq!((row.exe.as_deref(), row.counts), (None, leaks(2_000_000)));

    // The same with a directory that still exists under a new name.
    let script = format!(
        "mkdir {0}/old && cd {0}/old && mv {0}/old {0}/new && exec ../leaks_2mb",
        top.path().display()
    );
    let report = Job::shell(&script).run();
    let row = row_of(&report, "leaks_2mb");
    let exe = row.exe.as_deref().expect("there is a path");
    assert_eq!(exe, top.path().join("new/../leaks_2mb"));
    assert_eq!(fs::canonicalize(exe).ok(), fs::canonicalize(program).ok());
}

#[test]
fn a_program_executed_from_a_detached_file_system_has_no_path() {
    let (top, program) = public_copy("leaks_2mb");
    let script = format!(
        "mkdir {0}/m && mount -t tmpfs none {0}/m && cp {1} {0}/m/ && cd {0}/m && umount -l {0}/m && \
         exec ./leaks_2mb",
        top.path().display(),
        program.display()
    );
    let report = Job::new("unshare", ["--mount", "sh", "-c", &script]).run();
    assert_eq!(code(report.status), 0, "{}", report.stderr);
    let row = row_of(&report, "leaks_2mb");
    assert_eq!((row.exe.as_deref(), row.counts), (None, leaks(2_000_000)));
}

#[test]
fn a_process_that_moves_to_other_namespaces_is_followed() {
    let (_top, program) = public_copy("leaks_2mb");
    let own = nix::unistd::getuid().as_raw();
    for namespaces in [
        &["--user"][..],
        &["--user", "--map-root-user", "--pid", "--fork"],
        &["--pid", "--fork", "--mount-proc"],
        &["--mount", "--uts", "--ipc", "--net", "--cgroup"],
    ] {
        let mut words: Vec<_> = namespaces.iter().map(OsStr::new).collect();
        words.push(program.as_os_str());
        let report = Job::new("unshare", &words).run();
        assert_eq!(code(report.status), 0, "{namespaces:?}: {}", report.stderr);
        report.assert_complete();
        let row = row_of(&report, "leaks_2mb");
        assert_eq!(row.counts, leaks(2_000_000), "{namespaces:?}");
        // Ids are those of memleak's namespaces, not those that the process sees.
        assert_eq!(row.uid, own, "{namespaces:?}");
        let root = report.rows.last().expect("a row");
        assert!(
            row.pid == root.pid || row.ppid == root.pid,
            "{namespaces:?}: {:#?}",
            report.rows
        );
    }
}

// ---- signals to memleak from its own tree ---------------------------------------------------------------

#[test]
fn signals_from_the_tree_to_memleak_change_neither_the_command_nor_its_exit_code() {
    for (script, expected) in [
        (
            "for s in TERM INT HUP QUIT USR1 ALRM TSTP TTIN TTOU PIPE CHLD; do kill -$s $PPID; done; exit 4",
            4,
        ),
        // `sleep` runs once before the stop. A program that memleak does not know yet would be held until memleak
        // continues.
        (
            "sleep 0; kill -STOP $PPID; sleep 0.1; kill -CONT $PPID; exit 5",
            5,
        ),
        (
            "trap '' TERM INT HUP USR1; for s in TERM INT HUP USR1; do kill -$s 0; done; exit 6",
            6,
        ),
        ("kill -TERM 0; sleep 20", 128 + 15),
        ("(kill -INT $PPID; kill -HUP 0); sleep 20", 128 + 2),
    ] {
        let began = Instant::now();
        let report = Job::shell(script).under(&DEFAULT_SIGNALS).run();
        let code = code(report.status);
        // The signals of the last script arrive in any order.
        assert!(
            code == expected || expected == 130 && code == 129,
            "{script}: {code} {}",
            report.stderr
        );
        assert!(began.elapsed() < Duration::from_secs(15), "{script}");
        report.assert_complete();
    }
}

#[test]
fn memleak_runs_on_after_the_tree_has_stopped_its_whole_group() {
    for signal in ["STOP", "TSTP"] {
        let running = Job::shell(&format!("kill -{signal} 0; exit 8")).start();
        let pid = running.pid();
        let began = Instant::now();
        let stopped = || {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            stat.rsplit_once(") ")
                .is_some_and(|(_, rest)| rest.starts_with('T'))
        };
        while !stopped() {
            assert!(
                began.elapsed() < Duration::from_secs(20),
                "memleak is not stopped by {signal}"
            );
            sleep(Duration::from_millis(10));
        }
        killpg(pid, Signal::SIGCONT).expect("memleak can be continued");
        let report = running.wait();
        assert_eq!(code(report.status), 8, "{}", report.stderr);
        report.assert_complete();
    }
}

// ---- names ---------------------------------------------------------------------------------------------

/// memleak's whole report in this format on a process that sets its own name to `name`.
fn report_of_name(name: &[u8], format: &str) -> Vec<u8> {
    let output = Command::new(env!("CARGO_BIN_EXE_memleak"))
        .args([
            "run",
            "--lost=never",
            "--stacks=never",
            "--format",
            format,
            "--",
        ])
        .arg(fixture("names_itself"))
        .arg(OsStr::from_bytes(name))
        .output()
        .expect("memleak runs");
    assert!(output.status.success(), "{output:?}");
    output.stderr
}

#[test]
fn no_name_can_forge_a_row_or_control_the_terminal() {
    // A name, and its form in the table, in CSV and in JSON.
    let names: [(&[u8], &str, &str, &str); 8] = [
        (
            b"\x1b[2J\x1b[31mx",
            r"\x1b[2J\x1b[31mx",
            r"\x1b[2J\x1b[31mx",
            "\x1b[2J\x1b[31mx",
        ),
        (
            b"a\n0 b\r\t",
            r"a\x0a0 b\x0d\x09",
            r"a\x0a0 b\x0d\x09",
            "a\n0 b\r\t",
        ),
        (
            b"\xff\xfe\x80",
            r"\xff\xfe\x80",
            r"\xff\xfe\x80",
            r"\xff\xfe\x80",
        ),
        (b"a,\"b\"", "a,\"b\"", "\"a,\"\"b\"\"\"", "a,\"b\""),
        (
            "\u{202e}x".as_bytes(),
            r"\u{202e}x",
            r"\u{202e}x",
            "\u{202e}x",
        ),
        // A spreadsheet would run this name as a formula.
        (b"=1+\"1\"", "=1+\"1\"", "\"'=1+\"\"1\"\"\"", "=1+\"1\""),
        (b"", r"\0", "", ""),
        // The kernel keeps 15 bytes of a name.
        (
            b"0123456789abcdefgh",
            "0123456789abcde",
            "0123456789abcde",
            "0123456789abcde",
        ),
    ];
    for (name, table, csv, json) in names {
        let text = |format| {
            let bytes = report_of_name(name, format);
            String::from_utf8(bytes).unwrap_or_else(|error| panic!("{format}: {error}"))
        };
        let lines = |format| {
            let text = text(format);
            assert!(
                !text.contains(|c: char| c.is_control() && c != '\n'),
                "{format}: {text:?}"
            );
            text.lines().map(str::to_owned).collect::<Vec<_>>()
        };
        let found = lines("table");
        // The last line is a hint.
        assert_eq!(found.len(), 4, "{found:#?}");
        let row = found[1].split_whitespace().nth(3).unwrap_or_default();
        // Spaces within a name stay unchanged.
        assert!(
            found[1].contains(&format!(" {table} ")),
            "{row}: {found:#?}"
        );

        let found = lines("csv");
        assert_eq!(found.len(), 3, "{found:#?}");
        assert!(found[1].contains(&format!(",{csv},/")), "{found:#?}");

        let found = lines("json");
        assert_eq!(found.len(), 2, "{found:#?}");
        let row: serde_json::Value = serde_json::from_str(&found[0]).expect("JSON");
        assert_eq!(row["comm"], json);
        assert_eq!(row["leaked_bytes"], 10);
    }
}

/// A name that would clear the screen and forge a line.
const HOSTILE: &str = "\x1b[2J\nmemleak forged\u{9b}31m";
/// The escaped form of `HOSTILE` in the output.
const HARMLESS: &str = r"\x1b[2J\x0amemleak forged\u{9b}31m";

#[test]
fn no_path_can_forge_a_line_or_control_the_terminal() {
    let top = TempDir::new().expect("a temporary directory");
    let directory = top.path().join(HOSTILE);
    fs::create_dir(&directory).expect("a directory may have any name");
    let program = directory.join("leaks_2mb");
    files::copy(fixture("leaks_2mb"), &program);
    let maps = fs::read_to_string("/proc/self/maps").expect("/proc is mounted");
    let libc = maps.lines().find(|line| line.ends_with("/libc.so.6"));
    let libc = libc.and_then(|line| line.split_whitespace().nth(5));
    let libc = libc.expect("the tests run with glibc");
    files::copy(libc, directory.join("libc.so.6"));
    let said = |options: &[&str], program: &OsStr| {
        let output = Command::new(env!("CARGO_BIN_EXE_memleak"))
            .arg("run")
            .args(options)
            .arg("--")
            .arg(program)
            .env("LD_LIBRARY_PATH", &directory)
            .output()
            .expect("memleak runs");
        let said = String::from_utf8(output.stderr).expect("text");
        let acts = |c: char| c.is_control() && c != '\n';
        assert!(!said.contains(acts), "{said:?}");
        let forged = |line: &str| line.starts_with("memleak forged");
        assert!(!said.lines().any(forged), "{said}");
        said
    };
    // The lines of -v show the place of each probe.
    let verbose = said(&["-v"], program.as_os_str());
    let probes = verbose
        .lines()
        .filter(|line| line.contains("probe malloc in"));
    let probes: Vec<_> = probes.collect();
    assert!(
        probes.iter().any(|line| line.contains(HARMLESS)),
        "{verbose}"
    );
    let csv = said(&["--format", "csv"], program.as_os_str());
    assert!(csv.contains(&format!("{HARMLESS}/leaks_2mb,")), "{csv}");
    let json = said(&["--format", "json"], program.as_os_str());
    let row: serde_json::Value = json.lines().next().map_or_else(Default::default, |line| {
        serde_json::from_str(line).expect("JSON")
    });
    assert_eq!(row["exe"].as_str(), program.to_str());
    // Errors: a command that cannot be executed, a report that cannot be opened, an option that is not understood.
    let missing = directory.join("missing");
    assert!(said(&[], missing.as_os_str()).contains(r"[2J\nmemleak forged"));
    let report = missing.join("report");
    let report = report.to_str().expect("text");
    assert!(said(&["-o", report], OsStr::new("true")).contains(HARMLESS));
    let pattern = format!("--format={HOSTILE}");
    assert!(said(&[&pattern], OsStr::new("true")).contains(r"\x1b[2J"));
}

#[test]
fn a_program_with_a_too_long_path_is_counted_without_its_path() {
    let top = TempDir::new().expect("a temporary directory");
    let mut directory = top.path().to_path_buf();
    // PATH_MAX is 4096 bytes, which includes the NUL. The BPF programs keep 1024 bytes.
    while directory.as_os_str().len() < 3800 {
        directory.push("x".repeat(240));
    }
    fs::create_dir_all(&directory).expect("a deep directory");
    let program = directory.join("leaks_2mb");
    files::copy(fixture("leaks_2mb"), &program);
    let program = program.to_str().expect("text");
    let report = Job::new(program, [""; 0]).run();
    assert_eq!(code(report.status), 0, "{}", report.stderr);
    report.assert_complete();
    let row = row_of(&report, "leaks_2mb");
    assert_eq!((row.exe.as_deref(), row.counts), (None, leaks(2_000_000)));
}

#[test]
fn a_program_whose_loader_is_a_fifo_does_not_block_memleak() {
    let top = TempDir::new().expect("a temporary directory");
    let script = r#"
        cd "$0" && mkfifo loader
        echo 'int main(void) { return 0; }' | cc -x c -Wl,--dynamic-linker="$0/loader" -o program -"#;
    let made = Command::new("sh")
        .args(["-ec", script])
        .arg(top.path())
        .status();
    assert!(made.expect("sh runs").success());
    let report = Job::new(top.path().join("program"), [""; 0]).run();
    assert_eq!(code(report.status), 126, "{}", report.stderr);
    assert!(
        report.stderr.contains("not an executable file"),
        "{}",
        report.stderr
    );
}

#[test]
fn an_environment_and_arguments_as_large_as_the_kernel_allows_reach_the_command() {
    // A single string may have 128 KiB (MAX_ARG_STRLEN). All strings with their pointers may take a quarter of the
    // stack limit. The limit is 8 MiB by default, so they may take 2 MiB.
    let long = "x".repeat((128 << 10) - 100);
    let mut job = Job::shell("env | wc -c; echo $#; exit 9").env("LONG", &long);
    for n in 0..6 {
        job = job.env(&format!("LONG{n}"), &long);
    }
    for n in 0..20_000 {
        job = job.env(&format!("VARIABLE_{n}"), "a value");
    }
    let report = job.run();
    assert_eq!(code(report.status), 9, "{}", report.stderr);
    report.assert_complete();
    let bytes = report.stdout.lines().next().map(str::parse::<usize>);
    let bytes = bytes.expect("a line").expect("a number");
    assert!(bytes > 7 * long.len() + 20_000 * 20, "{bytes}");

    let arguments = vec![long.as_str(); 12];
    let report = Job::fixture("prints_arguments", &arguments).run();
    assert_eq!(code(report.status), 0, "{}", report.stderr);
    assert!(report.stdout.len() > 12 * long.len());
    report.assert_complete();
}

#[test]
fn a_malicious_file_causes_only_a_warning() {
    let top = TempDir::new().expect("a temporary directory");
    // Two files that look like allocators. The code of one lies at the end of the address space. The other is terabytes
    // long, and so are its tables. The script maps both as executable. Then it opens a library, so memleak examines
    // both.
    let script = r#"
        cd "$0"
        echo 'void *malloc(unsigned long n) { return 0; } void free(void *p) {}' > bad.c
        cc -shared -fPIC -fno-builtin -nostdlib -o wraps.so bad.c && cp wraps.so huge.so
        exec python3 -c '
import mmap, os, struct
def patch(path, change):
    with open(path, "r+b") as file:
        data = bytearray(file.read())
        change(data)
        file.seek(0)
        file.write(data)
def wraps(data):
    for n in range(data[56]):
        at = 64 + 56 * n
        if data[at] == 1:
            struct.pack_into("<QQQQ", data, at + 16, 2**64 - 0x800, 0, 2**63, 2**63)
def huge(data):
    start, = struct.unpack_from("<Q", data, 40)
    for n in range(data[60]):
        struct.pack_into("<Q", data, start + 64 * n + 32, 2**41)
patch("wraps.so", wraps)
patch("huge.so", huge)
os.truncate("huge.so", 2**42)
kept = []
for path in "wraps.so", "huge.so":
    file = os.open(path, os.O_RDONLY)
    kept.append(mmap.mmap(file, 4096, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_EXEC))
import ctypes
ctypes.CDLL("libm.so.6")
'"#;
    let top = top.path().to_str().expect("a plain path");
    // Without -v memleak gives up its standard error, because the report goes to a file.
    let job = Job::new("sh", ["-c", script, top]).options(["-v"]);
    let began = Instant::now();
    let running = job.start();
    let memleak = running.pid();
    let sampler = thread::spawn(move || {
        let mut most = 0;
        while let Some(resident) = resident_kb(memleak) {
            most = most.max(resident);
            sleep(Duration::from_millis(5));
        }
        most
    });
    let report = running.wait();
    let most = sampler.join().expect("samples");
    assert_eq!(code(report.status), 0, "{}", report.stderr);
    assert!(report.stderr.contains("wraps.so"), "{}", report.stderr);
    assert!(report.stderr.contains("it is damaged"), "{}", report.stderr);
    let rows = report.rows.iter().filter(|row| row.uncovered.is_some());
    let rows: Vec<_> = rows.collect();
    let [row] = rows[..] else {
        panic!("expected one uncovered row: {rows:#?}")
    };
    assert_eq!(row.comm, "python3");
    assert_eq!(row.uncovered.as_deref(), Some("unexamined"), "{row:#?}");
    assert_ne!(row.counts, Counts::default());
    // The unwind rules of the compiler that the script runs take some 30 MB, and twice that while they are read.
    assert!(most < 200 << 10, "memleak took {most} kB");
    assert!(began.elapsed() < Duration::from_secs(20));
}

// ---- ends and beginnings -------------------------------------------------------------------------------

#[test]
fn a_process_killed_while_it_allocates_has_a_correct_row() {
    const ROUNDS: usize = 50;
    let report = Job::fixture("killed_under_load", &[&ROUNDS.to_string()]).run();
    assert_eq!(code(report.status), 0, "{}", report.stderr);
    report.assert_complete();
    assert_eq!(report.rows.len(), ROUNDS + 1);
    let rounds: Vec<Vec<u64>> = report
        .stdout
        .lines()
        .map(|line| {
            let numbers = line.split_whitespace();
            numbers.map(|n| n.parse().expect("a number")).collect()
        })
        .collect();
    assert_eq!(rounds.len(), ROUNDS);
    for (round, said) in rounds.iter().enumerate() {
        let &[pid, returned, begun, freed, frees_begun] = &said[..] else {
            panic!("the fixture printed {said:?}")
        };
        let mut rows = report.rows.iter().filter(|row| u64::from(row.pid) == pid);
        let row = rows.next().expect("each child has a row");
        assert!(rows.next().is_none());
        assert_eq!(End::of(row), End::Signal(libc::SIGKILL));
        let found = row.counts;
        if round % 2 == 1 {
            // The child's threads had stopped. Each thread's counts include glibc's own allocations for it.
            assert_eq!((returned, freed), (begun, frees_begun));
            let own = counts(
                64 * returned,
                returned,
                freed,
                64 * (returned - freed),
                returned - freed,
            );
            assert_eq!(found, own.threads(3, 0));
            continue;
        }
        assert!(
            (returned..=begun + 3).contains(&found.alloc_count)
                && (freed..=frees_begun).contains(&found.free_count),
            "found {found:?}, but the fixture printed {said:?}"
        );
        let live = found.alloc_count - found.free_count;
        // Each thread has at most three blocks: one that it holds, one in work and one of glibc.
        assert!(found.leaked_blocks == live && live <= 9, "{found:?}");
        let threads_bytes = found.total_allocs_bytes % 64;
        assert!(
            (0..=3).any(|n| threads_bytes == n * thread_bytes() % 64),
            "{found:?}"
        );
        assert_eq!((found.failed_allocs, found.unknown_frees), (0, 0));
    }
}

#[test]
fn processes_killed_before_they_ran_have_rows() {
    const CHILDREN: usize = 200;
    let report = Job::fixture("killed_right_after_fork", &[&CHILDREN.to_string()]).run();
    assert_eq!(code(report.status), 0, "{}", report.stderr);
    report.assert_complete();
    assert_eq!(report.rows.len(), CHILDREN + 1);
    let mut idle = 0;
    for row in &report.rows[..CHILDREN] {
        assert_eq!(End::of(row), End::Signal(libc::SIGKILL));
        assert_eq!(row.comm, report.rows[CHILDREN].comm);
        idle += usize::from(row.counts == Counts::default());
        assert!(
            row.counts == Counts::default() || row.counts == leaks(10),
            "{row:#?}"
        );
    }
    assert!(idle > 0, "every child ran before it was killed");
}

#[test]
fn a_reused_pid_is_a_new_process() {
    let report = Job::fixture("reuses_a_pid", &["5"])
        .under(&["unshare", "--pid", "--fork", "--mount-proc"])
        .run();
    assert_eq!(code(report.status), 0, "{}", report.stderr);
    let parent = ends(0, End::Exit(0), Counts::default());
    let child = |n| ends(0, End::Exit(n), leaks(u64::from(n.unsigned_abs())));
    assert_images(&report, (1..=5).map(child).chain([parent]));
    let pid: u32 = report.stdout.trim().parse().expect("a pid");
    let reused = report.rows.iter().filter(|row| row.pid == pid);
    assert_eq!(reused.count(), 5, "{:#?}", report.rows);
}

#[test]
fn blocks_of_a_killed_vfork_child_belong_to_its_parent() {
    let report = Job::fixture("vfork_child_killed", &[]).run();
    let parent = ends(0, End::Exit(0), counts(1110, 3, 0, 1110, 3));
    assert_images(&report, [parent]);
}

/// The process that starts the others. It allocates nothing and waits.
const STARTER: fn() -> Expected = || ends(0, End::Exit(0), Counts::default());

#[test]
fn a_process_killed_during_vfork_has_one_row_and_so_has_its_child() {
    let report = Job::fixture("vfork_parent_killed", &[]).run();
    let parent = ends(0, End::Signal(libc::SIGKILL), counts(110, 2, 0, 110, 2));
    let child = ends(0, End::Exit(8), leaks(77));
    assert_images(&report, [STARTER(), parent, child]);
}

#[test]
fn a_heap_that_outlives_its_process_has_one_row_with_the_end_of_the_process() {
    let heap = counts(74, 2, 1, 64, 1);
    let report = Job::fixture("outlived_by_its_borrower", &["exit", "300"]).run();
    assert_images(&report, [STARTER(), ends(0, End::Exit(4), heap)]);
    let [row, starter] = &report.rows[..] else {
        panic!("{:#?}", report.rows)
    };
    // The end time is also that of the process, not that of its heap.
    assert!(row.end_time + 0.25 < starter.end_time, "{row:#?}");

    let report = Job::fixture("outlived_by_its_borrower", &["exec", "300"]).run();
    let images = [
        STARTER(),
        ends(0, End::Exec, heap),
        ends(1, End::Exit(9), leaks(77)),
    ];
    assert_images(&report, images);
}

#[test]
fn a_heap_still_borrowed_when_memleak_ends_has_the_end_of_its_process() {
    let job = Job::fixture("outlived_by_its_borrower", &["exit", "-1500"]);
    let began = Instant::now();
    let report = job.run();
    assert!(began.elapsed() < Duration::from_millis(1400));
    let ends: Vec<_> = report.rows.iter().map(End::of).collect();
    assert_eq!(ends, [End::Exit(0), End::Exit(4)], "{:#?}", report.rows);

    // The borrower is also a process, so `--wait-all` waits for it.
    let began = Instant::now();
    let report = job.options(["--wait-all"]).run();
    assert!(began.elapsed() >= Duration::from_millis(1500));
    let heap = counts(74, 2, 1, 64, 1);
    assert_images(
        &report,
        [STARTER(), common::expected::ends(0, End::Exit(4), heap)],
    );
}

#[test]
fn a_sibling_that_the_command_starts_is_followed_but_is_not_the_command() {
    let running = Job::fixture("clones_a_sibling", &[]).start();
    let memleak = running.pid().as_raw().unsigned_abs();
    let report = running.wait();
    assert_eq!(code(report.status), 0, "{}", report.stderr);
    let command = ends(0, End::Exit(0), leaks(100));
    assert_images(&report, [command, ends(0, End::Exit(5), leaks(50))]);
    assert!(report.rows.iter().all(|row| row.ppid == memleak));
}

#[test]
fn an_exec_that_fails_too_late_ends_the_image_that_called_it() {
    let parent = ends(0, End::Exit(0), leaks(100));
    let child = |counts| ends(0, End::Signal(libc::SIGSEGV), counts);
    let report = Job::fixture("exec_fails_late", &[]).run();
    assert_images(&report, [parent, child(leaks(50))]);

    // The thread has taken the leader's id by then. The test runs with each of the two tables that keep threads.
    for options in [vec![], vec![switch("late-threads", "yes")]] {
        let job = Job::fixture("exec_fails_late", &["in a thread"]).options(options);
        let report = job.run();
        assert_images(&report, [parent, child(leaks(50).threads(1, 0))]);
    }
}

#[test]
fn an_io_uring_worker_ends_with_its_process() {
    let report = Job::fixture("io_uring_worker", &[]).run();
    // A kernel may have no io_uring. Then this test prints the reason and only checks the one row.
    if report.stdout != "worker\n" {
        eprintln!("{}", report.stdout);
    }
    assert_images(&report, [ends(0, End::Exit(0), leaks(100))]);
}

#[test]
fn a_core_dump_of_many_threads_loses_nothing() {
    let directory = TempDir::new().expect("a temporary directory");
    let report = Job::fixture("aborts_in_threads", &[])
        .in_directory(directory.path())
        .run();
    assert_eq!(code(report.status), 128 + libc::SIGABRT);
    let counts = counts(3000, 3, 0, 3000, 3).threads(3, 0);
    assert_images(&report, [ends(0, End::Signal(libc::SIGABRT), counts)]);
}

// ---- the slower table ------------------------------------------------------------------------------------

#[test]
fn a_test_switch_keeps_threads_in_the_slower_table() {
    let (status, stderr) = Job::fixture("threads_free_each_other", &[]).run_under(
        env!("CARGO_BIN_EXE_memleak"),
        &["run", &switch("late-threads", "yes"), "-v"],
    );
    assert!(status.success());
    assert!(
        stderr.contains("8 threads were kept in the slower table"),
        "{stderr}"
    );
}

#[test]
fn threads_in_the_slower_table_are_exact() {
    for name in [
        "one_idle_thread",
        "threads_free_each_other",
        "thread_frees_for_main",
        "realloc_raced",
        "leader_leaves_first",
        "exits_under_waiting_threads",
        "exec_from_thread",
        "child_frees_inherited",
        "vfork_exec",
        "vfork_exit",
        "clone_vm_child",
        "forks_in_threads",
        "fork_storm",
        "generations",
        "runs leaks_2mb",
        "handler_mallocs thread altstack",
    ] {
        let case = case(name);
        let report = case.job.options([switch("late-threads", "yes")]).run();
        assert_eq!(code(report.status), case.code, "{name}: {}", report.stderr);
        assert_eq!(report.summary.losses, Losses::default(), "{name}");
        assert_images(&report, (case.images)(&report.stdout));
    }
}

#[test]
fn the_slower_table_forgets_threads_that_have_ended() {
    // The slower table has room for 4,096 threads.
    // Without optimisation, reading so many processes takes a minute.
    let options = ["--lost=never".to_owned(), switch("late-threads", "yes")];
    let job = Job::fixture("short_lives", &["4500"]).options(options);
    let report = job.run();
    report.assert_complete();
    assert_eq!(report.rows.len(), 4501);
}
