//! `memleak doctor` on the real kernel: its output on a working machine, its output on each obstacle, and that it
//! leaves no probe behind.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::common::files;
use crate::common::fixtures::without_call;
use crate::common::machine;
use crate::common::root;
use crate::common::side_by_side::side_by_side;
use crate::common::switches::switch;
use serde_json::Value;
use tempfile::TempDir;

const MEMLEAK: &str = env!("CARGO_BIN_EXE_memleak");

/// Any test beside this one that watches every process ends within this time.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs a command in a mount namespace with securityfs, where lockdown can be read.
const WITH_SECURITYFS: [&str; 5] = [
    "unshare",
    "--mount",
    "sh",
    "-c",
    "mount -t securityfs none /sys/kernel/security; exec \"$0\" \"$@\"",
];

fn output<A: AsRef<OsStr>>(words: impl IntoIterator<Item = A>) -> Output {
    root::require_root();
    let words: Vec<OsString> = words.into_iter().map(|word| word.as_ref().into()).collect();
    let mut command = Command::new(&words[0]);
    // `sudo make test` sets these variables.
    for name in ["SUDO_UID", "SUDO_GID", "SUDO_USER"] {
        command.env_remove(name);
    }
    command.args(&words[1..]).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// The output of `memleak doctor --format json`.
#[derive(Debug)]
struct Diagnosis {
    code: i32,
    checks: Vec<Value>,
    /// The last line.
    doctor: Value,
}

impl Diagnosis {
    /// Runs `wrapper… memleak doctor --format json options…` and reads its output.
    #[track_caller]
    fn of<A: AsRef<OsStr>>(wrapper: &[A], memleak: &Path, options: &[&str]) -> Self {
        let wrapper = wrapper.iter().map(AsRef::as_ref);
        let memleak = [memleak.as_os_str()].into_iter();
        let options = ["doctor", "--format", "json"].iter().chain(options);
        let words = wrapper.chain(memleak).chain(options.map(OsStr::new));
        let output = output(words);
        let said = text(&output.stderr);
        assert!(said.is_empty(), "{said}");
        let lines: Vec<Value> = text(&output.stdout)
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert!(lines.iter().all(|line| line["schema"] == "memleak/1"));
        let (doctor, checks) = lines.split_last().unwrap();
        assert_eq!(doctor["type"], "doctor");
        assert!(checks.iter().all(|check| check["type"] == "check"));
        let code = output.status.code().unwrap();
        assert_eq!(doctor["ok"] == true, code == 0, "{doctor}");
        Diagnosis {
            code,
            checks: checks.to_vec(),
            doctor: doctor.clone(),
        }
    }

    #[track_caller]
    fn check(&self, name: &str) -> &Value {
        let found = self.checks.iter().find(|check| check["check"] == name);
        found.unwrap_or_else(|| panic!("no check {name}: {self:#?}"))
    }

    /// Fails unless the check has this status and its text contains all of these words.
    #[track_caller]
    fn assert_check(&self, name: &str, status: &str, words: &[&str]) {
        let check = self.check(name);
        assert_eq!(check["status"], status, "{check}");
        let text = format!("{} {}", check["found"], check["remedy"]);
        for word in words {
            assert!(text.contains(word), "{word:?} is missing in {text}");
        }
    }

    /// Fails unless doctor ended with 125, exactly these checks failed, and all later checks are unknown.
    #[track_caller]
    fn assert_failed(&self, names: &[&str]) {
        assert_eq!(self.code, 125);
        assert_eq!(self.doctor["failed"], serde_json::json!(names), "{self:#?}");
        assert_eq!(self.doctor["method"], Value::Null);
        for name in ["count", "method", "holds", "return_probes", "lost", "price"] {
            self.assert_check(name, "unknown", &["could not be loaded"]);
        }
        for check in self.checks.iter().filter(|check| check["status"] == "fail") {
            assert!(check["remedy"].is_string(), "{check}");
        }
    }
}

fn doctor(wrapper: &[&str], options: &[&str]) -> Diagnosis {
    Diagnosis::of(wrapper, Path::new(MEMLEAK), options)
}

#[test]
fn every_check_is_ok_on_a_machine_where_memleak_works() {
    let diagnosis = doctor(&WITH_SECURITYFS, &[]);
    assert_eq!(diagnosis.code, 0, "{diagnosis:#?}");
    for check in &diagnosis.checks {
        // The version of control groups depends on the host.
        let ok = check["status"] == "ok" || check["check"] == "cgroup";
        assert!(ok, "{check}");
        assert_eq!(
            check["status"] == "ok",
            check["remedy"].is_null(),
            "{check}"
        );
    }
    let release = nix::sys::utsname::uname().unwrap();
    let release = release.release().to_string_lossy().into_owned();
    diagnosis.assert_check("kernel", "ok", &[&release]);
    diagnosis.assert_check("btf", "ok", &["/sys/kernel/btf/vmlinux"]);
    diagnosis.assert_check("return_probes", "ok", &["survived"]);
    assert_eq!(diagnosis.doctor["failed"], serde_json::json!([]));
}

#[test]
fn doctor_counts_and_measures_its_figures() {
    let diagnosis = doctor(&[], &[]);
    let number = |check: &str, name: &str| {
        let value = &diagnosis.check(check)[name];
        value
            .as_u64()
            .unwrap_or_else(|| panic!("{check}: {name} is {value}"))
    };
    let emulated = number("price", "emulated_ns");
    let single_stepped = number("price", "single_stepped_ns");
    assert!(
        single_stepped > emulated && emulated > 0,
        "{single_stepped} {emulated}"
    );
    assert_eq!(number("count", "alloc_count"), 1000);
    assert_eq!(number("count", "total_allocs_bytes"), 64_000);
    assert_eq!(number("count", "free_count"), 900);
    assert_eq!(number("count", "leaked_bytes"), 6400);
    let places = number("places", "emulated") + number("places", "single_stepped");
    let details = diagnosis.check("places")["details"].as_array().unwrap();
    assert_eq!(details.len() as u64, places);
    for function in ["malloc: ", "free: ", "realloc: "] {
        let of_function = |detail: &&Value| detail.as_str().unwrap().starts_with(function);
        assert_eq!(details.iter().filter(of_function).count(), 1, "{function}");
    }
    // No map counts twice, though it may have several descriptors. `doctor` is not tested on older kernels.
    let kernel_bytes = number("memory", "kernel_bytes");
    assert!(
        (30 << 20..120 << 20).contains(&kernel_bytes),
        "{kernel_bytes}"
    );
    // Half of the descriptors that were `used` are too few. With some fewer, memleak may do without call stacks. With some
    // more, `used` stays the same, but for those that are open only while a process's memory is read.
    const FOR_A_MOMENT: u64 = 3;
    let used = number("descriptors", "used");
    let limited = |limit: u64| {
        let limit = format!("--nofile={limit}:{limit}");
        doctor(&["prlimit", &limit, "--"], &[])
    };
    limited(used / 2).assert_check("descriptors", "fail", &["too few"]);
    let enough = limited(used + 20);
    assert_eq!(enough.code, 0, "{enough:#?}");
    let again = enough.check("descriptors")["used"].as_u64();
    let again = again.expect("a number");
    assert!(
        again.abs_diff(used) <= FOR_A_MOMENT,
        "{again}, before {used}"
    );
}

#[test]
fn the_table_has_the_same_checks_and_statuses_as_the_json() {
    let every = doctor(&[], &[]);
    let table = output([MEMLEAK, "doctor"]);
    assert_eq!(table.status.code(), Some(0));
    let table = text(&table.stdout);
    let mut lines = table.lines();
    for check in &every.checks {
        let words: Vec<_> = lines.next().unwrap().split_whitespace().collect();
        assert_eq!(check["status"], words[0]);
        assert_eq!(check["check"], words[1]);
    }
    let last = lines.next().unwrap();
    assert!(last.starts_with("memleak run works here, by "), "{last}");
    assert_eq!(lines.next(), None);
    assert!(!table.contains('\x1b'));
}

#[test]
fn with_quiet_doctor_prints_only_checks_that_are_not_ok() {
    let words = WITH_SECURITYFS.iter().copied();
    let quiet = output(words.chain([MEMLEAK, "doctor", "-q"]));
    assert_eq!(quiet.status.code(), Some(0));
    let said = text(&quiet.stdout);
    assert!(
        said.lines().all(|line| line.starts_with("warn    cgroup ")),
        "{said}"
    );
}

#[test]
fn color_always_colours_the_status_words_and_the_last_line() {
    let every = doctor(&[], &[]);
    let painted = text(&output([MEMLEAK, "doctor", "--color", "always"]).stdout);
    let lines: Vec<_> = painted.lines().collect();
    let (last, lines) = lines.split_last().expect("a last line");
    assert_eq!(lines.len(), every.checks.len(), "{painted}");
    for (line, check) in lines.iter().zip(&every.checks) {
        let status = check["status"].as_str().expect("a word");
        let colour = match status {
            "ok" => 32,
            "warn" | "unknown" => 33,
            _ => 31,
        };
        let word = format!("\x1b[{colour}m{status:<7}\x1b[0m ");
        assert!(line.starts_with(&word), "{check}: {line:?}");
    }
    let whole =
        last.starts_with("\x1b[32mmemleak run works here, by ") && last.ends_with("\x1b[0m");
    assert!(whole, "{last:?}");
}

#[test]
fn doctor_reports_the_method_that_run_uses() {
    let forced = ["multi", "perf-event", "separate"].map(|method| vec![switch("method", method)]);
    let options = [vec![]].into_iter().chain(forced);
    side_by_side(options, |option| {
        let option: Vec<_> = option.iter().map(String::as_str).collect();
        let method = doctor(&[], &option).check("method")["found"].clone();
        let run = ["run", "-v"].iter().chain(&option).chain(&["--", "true"]);
        let run = output([MEMLEAK].iter().chain(run));
        let said = text(&run.stderr);
        let attached = said
            .lines()
            .find(|line| line.contains("attached by"))
            .unwrap();
        let attached = attached.strip_prefix("memleak: ").unwrap();
        let method = method.as_str().unwrap();
        assert_eq!(method.split(':').next(), Some(attached), "{option:?}");
    });
}

// ---- obstacles -----------------------------------------------------------------------------------------

/// A copy of memleak that other users may execute.
fn for_others() -> (TempDir, PathBuf) {
    let directory = TempDir::new().unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let copy = directory.path().join("memleak");
    files::copy(MEMLEAK, &copy);
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).unwrap();
    (directory, copy)
}

const AS_NOBODY: [&str; 6] = [
    "setpriv",
    "--reuid=65534",
    "--regid=65534",
    "--clear-groups",
    "--inh-caps=-all",
    "--",
];

#[test]
fn a_user_without_rights_is_told_about_root_and_capabilities() {
    let (_directory, copy) = for_others();
    let diagnosis = Diagnosis::of(&AS_NOBODY, &copy, &[]);
    diagnosis.assert_failed(&["capabilities", "programs"]);
    let words = ["CAP_BPF", "CAP_PERFMON", "root", "setcap"];
    diagnosis.assert_check("capabilities", "fail", &words);
    diagnosis.assert_check("programs", "fail", &["no right to load BPF programs"]);
    // Checks that need no rights still have a result.
    for name in [
        "kernel",
        "btf",
        "libc",
        "places",
        "pid_namespace",
        "descriptors",
    ] {
        diagnosis.assert_check(name, "ok", &[]);
    }
    diagnosis.assert_check("perf_event_paranoid", "warn", &["CAP_PERFMON"]);
}

#[test]
fn root_without_capabilities_is_told_which_ones_are_missing() {
    let without = "--bounding-set=-bpf,-perfmon,-sys_admin";
    let diagnosis = doctor(&["setpriv", without, "--"], &[]);
    diagnosis.assert_failed(&["capabilities", "programs"]);
    diagnosis.assert_check("capabilities", "fail", &["neither CAP_BPF nor CAP_PERFMON"]);
    let without = "--bounding-set=-perfmon,-sys_admin";
    let diagnosis = doctor(&["setpriv", without, "--"], &[]);
    diagnosis.assert_check("capabilities", "fail", &["only CAP_BPF"]);
    // These two capabilities are enough.
    let without = "--bounding-set=-sys_admin";
    let diagnosis = doctor(&["setpriv", without, "--"], &[]);
    assert_eq!(diagnosis.code, 0, "{diagnosis:#?}");
    diagnosis.assert_check("capabilities", "ok", &["CAP_BPF, CAP_PERFMON"]);
}

#[test]
fn two_file_capabilities_are_enough_for_a_user_that_may_read_the_file() {
    // A new tmpfs is needed: /tmp may be mounted with `nosuid`, which ignores file capabilities.
    let script = "mount -t tmpfs -o mode=755 none \"$2\" && cp \"$1\" \"$2/memleak\" && \
                  setcap cap_bpf,cap_perfmon=ep \"$2/memleak\" && chmod \"$3\" \"$2/memleak\" && shift 3 && exec \"$@\"";
    let directory = TempDir::new().unwrap();
    let copy = directory.path().join("memleak");
    let under = |mode: &str| {
        let directory = directory.path().to_str().unwrap();
        let enter = ["unshare", "--mount", "sh", "-c", script, "sh"];
        let enter = enter.into_iter().chain([MEMLEAK, directory, mode]);
        enter
            .chain(AS_NOBODY)
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let diagnosis = Diagnosis::of(&under("755"), &copy, &[]);
    assert_eq!(diagnosis.code, 0, "{diagnosis:#?}");
    diagnosis.assert_check("capabilities", "ok", &["CAP_BPF, CAP_PERFMON; "]);

    let words = under("711").into_iter().map(OsString::from);
    let unread = output(words.chain([copy.into(), "doctor".into()]));
    assert_eq!(unread.status.code(), Some(125));
    let said = text(&unread.stdout);
    let count = said
        .lines()
        .find(|line| line.starts_with("fail    count "))
        .unwrap_or_else(|| panic!("{said}{}", text(&unread.stderr)));
    assert!(count.contains("chmod a+r"), "{count}");
}

#[test]
fn root_of_a_user_namespace_is_told_that_it_lacks_the_rights_of_root() {
    let (_directory, copy) = for_others();
    let nested: Vec<_> = AS_NOBODY.into_iter().chain(["unshare", "-Ur"]).collect();
    let diagnosis = Diagnosis::of(&nested, &copy, &[]);
    diagnosis.assert_failed(&["capabilities", "programs"]);
    diagnosis.assert_check("capabilities", "fail", &["user namespace", "outside of it"]);
}

#[test]
fn missing_btf_of_the_kernel_is_reported() {
    let script = "mount -t tmpfs none /sys/kernel/btf && exec \"$@\"";
    let diagnosis = doctor(&["unshare", "--mount", "sh", "-c", script, "sh"], &[]);
    diagnosis.assert_failed(&["btf", "programs"]);
    let words = ["/sys/kernel/btf/vmlinux", "CONFIG_DEBUG_INFO_BTF"];
    diagnosis.assert_check("btf", "fail", &words);
    diagnosis.assert_check("capabilities", "ok", &[]);
    diagnosis.assert_check("kernel", "ok", &[]);
}

#[test]
fn too_few_descriptors_are_reported_with_their_limit() {
    let diagnosis = doctor(&["prlimit", "--nofile=20:20", "--"], &[]);
    diagnosis.assert_failed(&["descriptors", "programs"]);
    diagnosis.assert_check("descriptors", "fail", &["at most 20", "ulimit -Hn"]);
    // `memleak run` reports the same.
    let run = output(["prlimit", "--nofile=20:20", "--", MEMLEAK, "run", "true"]);
    let said = text(&run.stderr);
    assert_eq!(run.status.code(), Some(125), "{said}");
    assert!(
        said.contains("too few descriptors") && said.lines().count() == 1,
        "{said}"
    );
    // A soft limit that memleak can raise does no harm.
    let raised = doctor(&["prlimit", "--nofile=20:4096", "--"], &[]);
    raised.assert_check("descriptors", "ok", &["at most 4096"]);
    assert_eq!(raised.code, 0);
}

#[test]
fn doctor_distinguishes_failed_probes_from_failed_programs() {
    let without = ["setpriv", "--bounding-set=-sys_admin", "--"];
    let diagnosis = doctor(&without, &[&switch("method", "perf-event")]);
    assert_eq!(diagnosis.doctor["failed"], serde_json::json!(["probes"]));
    diagnosis.assert_check("programs", "ok", &[]);
    let words = ["cannot attach to ", "malloc", "CAP_SYS_ADMIN"];
    diagnosis.assert_check("probes", "fail", &words);
    diagnosis.assert_check("count", "unknown", &["could not be attached"]);
}

#[test]
fn doctor_distinguishes_a_seccomp_filter_from_missing_rights() {
    let under = |errno: i32| {
        let wrapper = without_call(libc::SYS_bpf, errno);
        Diagnosis::of(&wrapper, Path::new(MEMLEAK), &[])
    };
    let refused = under(libc::EPERM);
    refused.assert_failed(&["seccomp", "programs"]);
    refused.assert_check("seccomp", "fail", &["bpf(2)", "outside of the container"]);
    refused.assert_check("capabilities", "ok", &[]);
    let short = under(libc::ENOMEM);
    assert_eq!(short.code, 125);
    short.assert_check("memory", "fail", &["--max-allocs"]);
    let absent = under(libc::ENOSYS);
    absent.assert_failed(&["programs"]);
    absent.assert_check("programs", "fail", &["CONFIG_BPF_SYSCALL", "5.8"]);
}

#[test]
fn a_proc_of_another_pid_namespace_is_a_warning() {
    let above = doctor(&["unshare", "--pid", "--fork"], &[]);
    assert_eq!(above.code, 0, "{above:#?}");
    above.assert_check("pid_namespace", "warn", &["1 above", "mount -t proc"]);
    let own = doctor(&["unshare", "--pid", "--fork", "--mount-proc"], &[]);
    assert_eq!(own.code, 0, "{own:#?}");
    own.assert_check("pid_namespace", "ok", &[]);
}

#[test]
fn fewer_holds_are_a_warning_that_names_the_kernel_version_needed() {
    for (holds, version) in [("loader", "6.18"), ("nowhere", "6.7")] {
        let diagnosis = doctor(&[], &[&switch("holds", holds)]);
        assert_eq!(diagnosis.code, 0);
        assert_eq!(diagnosis.doctor["holds"], holds);
        diagnosis.assert_check("holds", "warn", &[version]);
        diagnosis.assert_check("lost", "warn", &[version]);
    }
}

#[test]
fn what_keeps_memleak_from_reading_a_process_is_named() {
    let without = ["setpriv", "--bounding-set=-sys_ptrace", "--"];
    let own_user = doctor(&without, &[]);
    assert_eq!(own_user.code, 0, "{own_user:#?}");
    own_user.assert_check("lost", "ok", &["own user only", "CAP_SYS_PTRACE"]);
    let wrapper = without_call(libc::SYS_process_vm_readv, libc::EPERM);
    let filtered = Diagnosis::of(&wrapper, Path::new(MEMLEAK), &[]);
    assert_eq!(filtered.code, 0, "{filtered:#?}");
    filtered.assert_check("lost", "warn", &["seccomp filter", "process_vm_readv"]);
}

// ---- where the report goes -----------------------------------------------------------------------------

#[test]
fn a_report_is_written_to_its_file_and_a_failed_write_is_an_error() {
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("report");
    let written = output([
        OsStr::new(MEMLEAK),
        "doctor".as_ref(),
        "-o".as_ref(),
        file.as_ref(),
    ]);
    assert_eq!(written.status.code(), Some(0));
    assert!(written.stdout.is_empty() && written.stderr.is_empty());
    let report = fs::read_to_string(&file).unwrap();
    assert!(report.contains("\nmemleak run works here"), "{report}");

    for words in [
        &["-o", "/nonexistent/report"][..],
        &["-o", "/dev/full"],
        &["--format", "csv"],
        &["now"],
    ] {
        let wrong = output([MEMLEAK, "doctor"].iter().chain(words));
        let said = text(&wrong.stderr);
        assert_eq!(wrong.status.code(), Some(125), "{words:?}: {said}");
        assert!(
            wrong.stdout.is_empty() && said.starts_with("memleak: "),
            "{said}"
        );
        assert_eq!(said.lines().count(), 1, "{said}");
    }
}

// ---- no probe is left behind ---------------------------------------------------------------------------

/// A waiting process with its own C library, which no other memleak on this machine probes.
struct Bystander {
    process: Child,
    /// The mapping of its C library's code.
    code: Mapped,
    /// The same code in the file. The file never contains the breakpoint of a probe.
    unprobed: Vec<u8>,
    _directory: TempDir,
}

impl Bystander {
    fn start() -> Self {
        root::require_root();
        let libc = mapped_libc("self").path;
        let directory = TempDir::new().unwrap();
        let copy = directory.path().join("libc.so.6");
        files::copy(&libc, &copy);
        let script = "mount --bind \"$1\" \"$2\" && exec cat";
        let mut process = Command::new("unshare")
            .args(["--mount", "sh", "-c", script, "sh"])
            .args([&copy, &libc])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        echo(&mut process);
        let code = mapped_libc(&process.id().to_string());
        let mut unprobed = vec![0; code.length];
        let file = File::open(&copy).unwrap();
        file.read_exact_at(&mut unprobed, code.offset).unwrap();
        Bystander {
            process,
            code,
            unprobed,
            _directory: directory,
        }
    }

    /// Whether the code in memory becomes equal to the code in the file within `PATIENCE`. A `memleak -a` in another
    /// test watches every process of this machine. It has probes here too until it ends.
    fn is_unprobed(&self) -> bool {
        let began = Instant::now();
        while began.elapsed() < PATIENCE {
            if self.code() == self.unprobed {
                return true;
            }
            sleep(Duration::from_millis(50));
        }
        false
    }

    fn code(&self) -> Vec<u8> {
        let memory = File::open(format!("/proc/{}/mem", self.process.id())).unwrap();
        let mut code = vec![0; self.code.length];
        memory.read_exact_at(&mut code, self.code.start).unwrap();
        code
    }

    /// `memleak WORDS…` in the bystander's mount namespace, so with the same C library.
    fn memleak(&self, words: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        let namespace = format!("--mount=/proc/{}/ns/mnt", self.process.id());
        command.arg(namespace).arg(MEMLEAK).args(words);
        command
    }
}

impl Drop for Bystander {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Waits until `cat` returns a byte that it was sent.
fn echo(cat: &mut Child) {
    cat.stdin.as_mut().unwrap().write_all(b"x").unwrap();
    let mut byte = [0];
    cat.stdout.as_mut().unwrap().read_exact(&mut byte).unwrap();
    assert_eq!(&byte, b"x");
}

/// A file's code as a process maps it.
struct Mapped {
    start: u64,
    length: usize,
    /// The offset of the code in the file.
    offset: u64,
    path: PathBuf,
}

/// The C library's code in a process.
fn mapped_libc(pid: &str) -> Mapped {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let is_code = |line: &&str| line.contains(" r-xp ") && line.ends_with("libc.so.6");
    let line = maps.lines().find(is_code).unwrap();
    let words: Vec<_> = line.split_whitespace().collect();
    let (start, end) = words[0].split_once('-').unwrap();
    let number = |hex| u64::from_str_radix(hex, 16).unwrap();
    Mapped {
        start: number(start),
        length: (number(end) - number(start)) as usize,
        offset: number(words[2]),
        path: PathBuf::from(words[5]),
    }
}

#[test]
fn run_and_doctor_leave_no_probe_in_another_process() {
    let _machine = machine::unwatched();
    let bystander = Bystander::start();
    assert!(
        bystander.is_unprobed(),
        "a memleak -a watches every process of this machine: end it, then run this test again"
    );

    // First shows that this test can see a probe.
    let mut run = bystander
        .memleak(&["run", "-q", "--", "cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    echo(&mut run);
    assert!(
        bystander.code() != bystander.unprobed,
        "the test sees no probe of memleak run in the bystander"
    );
    drop(run.stdin.take());
    assert!(run.wait().unwrap().success());
    assert!(bystander.is_unprobed(), "run left a probe behind");

    let doctor = bystander.memleak(&["doctor"]).output().unwrap();
    assert_eq!(doctor.status.code(), Some(0), "{}", text(&doctor.stdout));
    assert!(bystander.is_unprobed(), "doctor left a probe behind");
}
