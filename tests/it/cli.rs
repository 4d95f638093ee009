//! The program as a user calls it: the contents of each output stream, and the exit code.

use std::fs;
use std::sync::Mutex;

use assert_cmd::Command;
use tempfile::TempDir;

use crate::common::root;
use crate::common::side_by_side::side_by_side;
use crate::common::switches::switch;

fn memleak(words: &[&str]) -> Command {
    let mut memleak = Command::new(env!("CARGO_BIN_EXE_memleak"));
    memleak.args(words);
    memleak
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn help_and_version_go_to_standard_output() {
    for words in [&["--help"][..], &["run", "--help"], &["--version"]] {
        let output = memleak(words).assert().success().get_output().clone();
        assert!(
            !output.stdout.is_empty() && output.stderr.is_empty(),
            "{words:?}"
        );
    }
}

#[test]
fn invalid_arguments_cause_one_line_and_exit_code_125() {
    for words in [
        &[][..],
        &["run"],
        &["run", "--"],
        &["run", "--nonsense", "--", "true"],
        &["run", "--format", "yaml", "--", "true"],
        &["run", "-q", "-v", "--", "true"],
        &["run", "--leak-exitcode", "0", "--", "true"],
        &["run", "--gate-comm", "x", "--", "true"],
        &["walk"],
    ] {
        let output = memleak(words).assert().code(125).get_output().clone();
        let said = text(&output.stderr);
        assert!(output.stdout.is_empty(), "{words:?}");
        assert!(
            said.starts_with("memleak: ") && said.lines().count() == 1,
            "{words:?}: {said}"
        );
    }
}

#[test]
fn standard_output_contains_only_the_commands_output() {
    root::require_root();
    let output = memleak(&["run", "--", "sh", "-c", "echo out; echo err >&2"])
        .assert()
        .success()
        .stdout("out\n")
        .get_output()
        .clone();
    let said = text(&output.stderr);
    let lines: Vec<_> = said.lines().collect();
    assert_eq!(lines[0], "err");
    assert_eq!(
        lines[1].split_whitespace().take(6).collect::<Vec<_>>(),
        [
            "UID",
            "USER",
            "PID",
            "COMM",
            "TOTAL_ALLOCS_MB",
            "MEM_LEAK_MB"
        ]
    );
    let last = lines.last().expect("there are lines");
    assert!(
        lines[2].contains(" sh ") && last.starts_with("memleak: 1 process,"),
        "{said}"
    );
}

#[test]
fn with_a_report_file_memleak_adds_nothing_to_standard_error() {
    root::require_root();
    let directory = TempDir::new().unwrap();
    for format in ["table", "json", "csv"] {
        let pattern = directory.path().join("%q{WHICH}.%%.%p");
        memleak(&["run", "--format", format, "-o"])
            .arg(&pattern)
            .args(["--", "sh", "-c", "echo err >&2"])
            .env("WHICH", format)
            .assert()
            .success()
            .stdout("")
            .stderr("err\n");
        let written = fs::read_dir(&directory)
            .unwrap()
            .map(|entry| entry.unwrap().path());
        let report = written
            .filter(|path| {
                path.file_name()
                    .unwrap()
                    .to_string_lossy()
                    .starts_with(&format!("{format}.%."))
            })
            .map(|path| fs::read_to_string(path).unwrap())
            .collect::<Vec<_>>();
        assert_eq!(report.len(), 1, "{format}");
        assert!(
            report[0].contains("sh") && report[0].ends_with('\n'),
            "{}",
            report[0]
        );
    }
}

#[test]
fn quiet_prints_only_a_gate_that_did_not_pass() {
    root::require_root();
    let run = |words: &[&str]| memleak(&[&["run", "-q"], words].concat()).assert();
    run(&["--", "true"]).success().stderr("");
    run(&["--fail-on-leak", "1GB", "--", "sh", "-c", ":"])
        .success()
        .stderr("");
    let output = run(&["--fail-on-leak", "0", "--", "sh", "-c", ":"])
        .code(23)
        .get_output()
        .clone();
    let said = text(&output.stderr);
    assert!(
        said.lines().count() == 1 && said.contains("gate failed"),
        "{said}"
    );
}

#[test]
fn rows_appear_when_their_processes_end() {
    root::require_root();
    let directory = TempDir::new().unwrap();
    let report = directory.path().join("report");
    // The shell waits until the child's row is in the file. If memleak wrote all rows at its end, the wait would time
    // out and the exit code would not be 7.
    let script = format!(
        "/bin/true & wait; for i in $(seq 100); do grep -q ' true ' {0} && exit 7; sleep 0.1; done",
        report.display()
    );
    memleak(&["run", "-o"])
        .arg(&report)
        .args(["--", "bash", "-c", &script])
        .assert()
        .code(7);
}

#[test]
fn verbose_prints_the_place_of_each_probe_and_the_reason() {
    root::require_root();
    let output = memleak(&["run", "-v", "--", "true"])
        .assert()
        .success()
        .get_output()
        .clone();
    let said = text(&output.stderr);
    for function in ["malloc", "calloc", "realloc", "free", "posix_memalign"] {
        let line = said
            .lines()
            .find(|line| line.starts_with(&format!("memleak: probe {function} in ")));
        let line = line.unwrap_or_else(|| panic!("no line for {function} in {said}"));
        assert!(
            line.contains("emulated)") || line.contains("single-stepped)"),
            "{line}"
        );
    }
    assert!(said.contains("attached by "), "{said}");
}

#[test]
fn every_attach_method_counts_the_same() {
    root::require_root();
    // Several methods run at the same time, because each run waits most of the time.
    let methods = ["session", "multi", "perf-event", "separate"];
    let totals = Mutex::new(Vec::new());
    side_by_side(methods, |method| {
        let output = memleak(&[
            "run",
            "--format",
            "json",
            &switch("method", method),
            "--",
            "ls",
            "/usr",
        ])
        .assert()
        .success()
        .get_output()
        .clone();
        let said = text(&output.stderr);
        let image: serde_json::Value = serde_json::from_str(said.lines().next().unwrap()).unwrap();
        assert_eq!(image["complete"], true, "{method}: {said}");
        let fields = [
            "total_allocs_bytes",
            "alloc_count",
            "free_count",
            "leaked_bytes",
            "unknown_frees",
        ];
        let found = fields.map(|field| image[field].as_u64().unwrap());
        totals.lock().unwrap().push(found);
    });
    let totals = totals.into_inner().unwrap();
    assert!(totals[0][1] > 10);
    assert_eq!(totals, [totals[0]; 4]);
}

#[test]
fn a_report_is_written_to_every_file_that_is_named_in_its_own_format() {
    let directory = TempDir::new().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let read = |name: &str| std::fs::read_to_string(directory.path().join(name)).unwrap();
    let run = |words: &[&str]| {
        let output = memleak(&[&["run"], words, &["--", "true"]].concat())
            .output()
            .unwrap();
        assert!(output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    let is_table = |text: &str| text.starts_with("UID ") && text.contains("\nmemleak: 1 process, ");
    let is_json = |text: &str| text.lines().count() == 2 && text.starts_with(r#"{"schema":"#);
    let is_csv = |text: &str| text.lines().count() == 3 && text.starts_with("schema,type,");

    let said = run(&["-o", &path("one.json")]);
    assert!(said.is_empty() && is_json(&read("one.json")), "{said}");
    let said = run(&[
        "-o",
        &path("a.csv"),
        "-o",
        &format!("json={}", path("b")),
        "-o",
        &path("c.txt"),
    ]);
    assert!(is_table(&said) && is_csv(&read("a.csv")), "{said}");
    assert!(is_json(&read("b")) && is_table(&read("c.txt")));
    // Files get all, even if the standard stream is quiet.
    let said = run(&["-q", "-o", &format!("table={}", path("d.json"))]);
    assert!(said.is_empty() && is_table(&read("d.json")), "{said}");
}

#[test]
fn a_file_that_cannot_be_opened_keeps_the_command_from_starting_even_as_the_second() {
    let directory = TempDir::new().unwrap();
    let first = directory.path().join("first.json");
    let second = directory.path().join("no/such/directory.csv");
    let touched = directory.path().join("touched");
    let words = [
        "run",
        "-o",
        first.to_str().unwrap(),
        "-o",
        second.to_str().unwrap(),
        "touch",
    ];
    let output = memleak(&words).arg(&touched).output().unwrap();
    assert_eq!(output.status.code(), Some(125));
    assert!(!touched.exists());
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(
        said.contains("no/such/directory.csv for the report (-o)"),
        "{said}"
    );
}

#[test]
fn one_file_takes_one_format() {
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("report");
    let [json, csv] = ["json", "csv"].map(|format| format!("{format}={}", file.display()));
    let output = memleak(&["run", "-o", &json, "-o", &csv, "true"])
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(125), "{said}");
    assert!(said.trim_end().ends_with(" are the same file"), "{said}");
}
