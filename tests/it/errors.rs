//! Errors before the command runs. memleak prints one line with the error and its remedy, ends with exit code 125, and
//! does not start the command.

use std::ffi::{OsStr, OsString};
use std::process::{Command, Output};

use crate::common::fixtures::without_call;
use crate::common::root;
use tempfile::TempDir;

const MEMLEAK: &str = env!("CARGO_BIN_EXE_memleak");

/// Runs `wrapper… memleak run OPTIONS… -- touch FILE`. Fails if the command created FILE. Returns the one line that
/// memleak printed.
#[track_caller]
fn refusal(wrapper: &[&OsStr], options: &[&str]) -> String {
    root::require_root();
    let directory = TempDir::new().unwrap();
    let touched = directory.path().join("touched");
    let mut words: Vec<&OsStr> = wrapper.to_vec();
    words.extend([OsStr::new(MEMLEAK), OsStr::new("run")]);
    words.extend(options.iter().map(OsStr::new));
    words.extend(["--", "touch"].map(OsStr::new));
    words.push(touched.as_os_str());
    let output = Command::new(words[0]).args(&words[1..]).output().unwrap();
    assert!(!touched.exists(), "the command ran");
    only_line(&output)
}

/// Returns the only line of a run. Fails unless the run ended with 125 and printed nothing else.
#[track_caller]
fn only_line(output: &Output) -> String {
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(125), "{said}");
    assert!(output.stdout.is_empty());
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(said.starts_with("memleak: "), "{said}");
    said
}

#[track_caller]
fn assert_says(line: &str, words: &[&str]) {
    for word in words {
        assert!(line.contains(word), "{word:?} is missing in {line:?}");
    }
}

fn without_bpf(errno: i32, options: &[&str]) -> String {
    let wrapper = without_call(libc::SYS_bpf, errno);
    refusal(&wrapper.each_ref().map(OsString::as_os_str), options)
}

#[test]
fn without_the_right_to_load_programs_the_error_names_the_capabilities() {
    let line = without_bpf(libc::EPERM, &[]);
    assert_says(
        &line,
        &[
            "no right to load BPF programs",
            "root",
            "CAP_BPF",
            "CAP_PERFMON",
        ],
    );
}

#[test]
fn without_bpf_the_error_names_the_kernel_and_the_missing_options() {
    let line = without_bpf(libc::ENOSYS, &[]);
    let release = nix::sys::utsname::uname().unwrap();
    let release = release.release().to_string_lossy().into_owned();
    assert_says(
        &line,
        &[&release, "CONFIG_BPF_SYSCALL", "CONFIG_UPROBES", "-v"],
    );
}

#[test]
fn without_memory_for_the_table_of_blocks_the_error_names_the_option() {
    assert_says(
        &without_bpf(libc::ENOMEM, &[]),
        &["no memory", "2097152", "--max-allocs"],
    );
    assert_says(
        &without_bpf(libc::ENOMEM, &["--max-allocs", "77"]),
        &["77", "--max-allocs"],
    );
}

#[test]
fn without_kernel_type_information_the_error_names_btf() {
    let script = "mount -t tmpfs none /sys/kernel/btf && exec \"$@\"";
    let hidden = ["unshare", "--mount", "sh", "-c", script, "sh"].map(OsStr::new);
    assert_says(
        &refusal(&hidden, &[]),
        &["/sys/kernel/btf/vmlinux", "CONFIG_DEBUG_INFO_BTF"],
    );
}

#[test]
fn libbpfs_messages_are_shown_only_with_v() {
    root::require_root();
    let run = |options: &[&str]| {
        let [filter, call, errno] = without_call(libc::SYS_bpf, libc::EINVAL);
        Command::new(filter)
            .args([call, errno])
            .args([MEMLEAK, "run"])
            .args(options)
            .args(["--", "true"])
            .output()
            .unwrap()
    };
    let quiet = only_line(&run(&[]));
    let verbose = run(&["-v"]);
    let verbose = String::from_utf8_lossy(&verbose.stderr).into_owned();
    assert!(
        verbose.lines().count() > 1 && verbose.contains("libbpf"),
        "{verbose}"
    );
    assert_eq!(verbose.lines().last(), Some(quiet.trim_end()), "{verbose}");
}

#[test]
fn the_error_names_a_c_library_without_symbols() {
    root::require_root();
    let directory = TempDir::new().unwrap();
    let path = |name: &str| directory.path().join(name);
    let compile = |arguments: &[&OsStr], source: &str| {
        std::fs::write(path("source.c"), source).unwrap();
        let status = Command::new("cc")
            .args(arguments)
            .arg(path("source.c"))
            .status()
            .unwrap();
        assert!(status.success());
    };
    // The loader would use this library for the program. The library defines malloc and no other function.
    let (library, program) = (path("libc.so.6"), path("program"));
    let shared = ["-shared", "-nostdlib", "-fPIC", "-fno-builtin", "-o"].map(OsStr::new);
    compile(
        &[&shared[..], &[library.as_os_str()]].concat(),
        "void *malloc(unsigned long n) { return (void *)n; }",
    );
    let rpath = format!("-Wl,-rpath,{}", directory.path().display());
    let linked = [OsStr::new(&rpath), OsStr::new("-o"), program.as_os_str()];
    compile(&linked, "int main(void) { return 0; }");

    let output = Command::new(MEMLEAK)
        .args(["run", "--"])
        .arg(&program)
        .output()
        .unwrap();
    let line = only_line(&output);
    let library = library.display().to_string();
    assert_says(
        &line,
        &[&library, "no symbol for calloc, realloc, free", "reinstall"],
    );
}

#[test]
fn the_error_names_a_report_that_cannot_be_opened_and_its_option() {
    assert_says(
        &refusal(&[], &["-o", "/nonexistent/report"]),
        &["/nonexistent/report", "-o", "No such file"],
    );
    assert_says(
        &refusal(&[], &["-o", "%q{NONE_SUCH}"]),
        &["NONE_SUCH", "not set"],
    );
}

#[test]
fn a_fifo_without_a_reader_is_refused_as_report_without_waiting() {
    let directory = TempDir::new().unwrap();
    let fifo = directory.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let name = fifo.to_str().unwrap();
    assert_says(&refusal(&[], &["-o", name]), &[name, "No such device"]);

    // With a reader, memleak accepts the FIFO as a report and writes at the reader's pace.
    let mut reader = Command::new("sh")
        .args(["-c", "exec 3<\"$0\"; sleep 0.3; exec cat <&3", name])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let script = "for i in 1 2 3 4 5 6 7 8 9; do (exit 0); done";
    let run = || {
        Command::new(MEMLEAK)
            .args([
                "run", "--format", "json", "-o", name, "--", "sh", "-c", script,
            ])
            .output()
            .unwrap()
    };
    let mut output = run();
    while output.status.code() == Some(125) && reader.try_wait().unwrap().is_none() {
        output = run();
    }
    assert!(output.status.success(), "{output:?}");
    let read = reader.wait_with_output().unwrap();
    let read = String::from_utf8_lossy(&read.stdout);
    let lines = read
        .lines()
        .filter(|line| !line.contains(r#""type":"stack""#));
    assert_eq!(lines.count(), 11);
}

#[test]
fn a_variable_cannot_move_the_report_to_another_directory() {
    let directory = TempDir::new().unwrap();
    let pattern = format!("{}/%q{{JOB}}.json", directory.path().display());
    for job in ["../evil", "/etc/evil", "a/../../b"] {
        let variable = format!("JOB={job}");
        let env = [OsStr::new("env"), OsStr::new(&variable)];
        let line = refusal(&env, &["-o", &pattern]);
        assert_says(&line, &["-o", job, "leads to another directory"]);
    }
    let long = format!("JOB={}", "x".repeat(100_000));
    let env = [OsStr::new("env"), OsStr::new(&long)];
    assert_says(
        &refusal(&env, &["-o", &pattern]),
        &["-o", "File name too long"],
    );
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
}

#[test]
fn the_error_names_an_invalid_size_and_its_option() {
    assert_says(
        &refusal(&[], &["--fail-on-leak", "1 potato"]),
        &["--fail-on-leak", "1 potato", "1MiB"],
    );
    assert_says(
        &refusal(&[], &["--max-allocs", "0"]),
        &["--max-allocs", "0"],
    );
}
