//! Tests of --baseline: what is known may leak again, whatever moved, and what is new fails the gate by name.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::common::root;

const MEMLEAK: &str = env!("CARGO_BIN_EXE_memleak");
const SOURCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/ci/shelf.c");

/// Builds of one program, each called `shelf`.
struct Builds {
    directory: TempDir,
}

impl Builds {
    fn new() -> Self {
        root::require_root();
        Self {
            directory: TempDir::new().unwrap(),
        }
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Builds the program in a directory of its own.
    fn build(&self, name: &str, flags: &[&str]) -> PathBuf {
        let directory = self.path().join(name);
        fs::create_dir(&directory).unwrap();
        let program = directory.join("shelf");
        let gcc = Command::new("gcc")
            .args(["-O0", SOURCE, "-o"])
            .arg(&program)
            .args(flags)
            .status()
            .unwrap();
        assert!(gcc.success());
        program
    }

    fn run(&self, options: &[&str], program: &Path) -> Output {
        let mut memleak = Command::new(MEMLEAK);
        memleak.arg("run").args(options).arg("--").arg(program);
        memleak.current_dir(self.path()).output().unwrap()
    }

    /// Runs the program with a baseline and a limit of 0. Returns the exit code and what memleak said.
    fn compare(&self, limit: &str, options: &[&str], program: &Path) -> (i32, String) {
        let fixed = ["-q", "--baseline", "base.json", limit, "0"];
        let output = self.run(&[&fixed[..], options].concat(), program);
        let said = String::from_utf8(output.stderr).unwrap();
        (output.status.code().unwrap(), said)
    }

    /// `memleak report` of what a run has saved.
    fn report(&self, options: &[&str]) -> (i32, String, String) {
        let mut memleak = Command::new(MEMLEAK);
        let output = memleak.arg("report").args(options).current_dir(self.path());
        let output = output.output().unwrap();
        let [out, err] =
            [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
        (output.status.code().unwrap(), out, err)
    }

    fn read(&self, file: &str) -> String {
        fs::read_to_string(self.path().join(file)).unwrap()
    }

    fn summary(&self, file: &str) -> Value {
        let text = fs::read_to_string(self.path().join(file)).unwrap();
        serde_json::from_str(text.lines().last().unwrap()).unwrap()
    }
}

/// What is known is known again with moved lines, without debug information, and stripped of it.
#[test]
fn by_call_stacks_only_what_is_new_fails_whatever_moved() {
    let builds = Builds::new();
    let old = builds.build("old", &["-g"]);
    let output = builds.run(&["--stacks", "-q", "-o", "json=base.json"], &old);
    assert!(output.status.success());
    let moved = builds.build("moved", &["-g", "-DMOVED"]);
    let plain = builds.build("plain", &["-DMOVED"]);
    for program in [&old, &moved, &plain] {
        for limit in ["--fail-on-leak", "--fail-on-total-leak", "--fail-on-lost"] {
            let options = ["--stacks", "-o", "json=now.json"];
            let (code, said) = builds.compare(limit, &options, program);
            assert_eq!((code, &*said), (0, ""), "{program:?} {limit}");
            let expected =
                json!({"new": 0, "new_bytes": 0, "known": 1, "known_bytes": 700, "gone": 0});
            assert_eq!(builds.summary("now.json")["baseline"], expected);
        }
    }
    let more = builds.build("more", &["-g", "-DMOVED", "-DMORE"]);
    for limit in ["--fail-on-leak", "--fail-on-total-leak"] {
        let (code, said) = builds.compare(limit, &["--stacks"], &more);
        assert_eq!(code, 23, "{said}");
        let new = "baseline: 1 new leak (33 bytes), 1 known (700 bytes), 0 gone (most: 33 bytes, decorate shelf.c:";
        assert!(said.contains(new), "{said}");
    }
    // The other way round, a leak is gone.
    builds.run(&["--stacks", "-q", "-o", "json=base.json"], &more);
    let output = builds.run(&["--stacks", "--baseline", "base.json"], &old);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(
        said.contains("baseline: 0 new leaks (0 bytes), 1 known (700 bytes), 1 gone\n"),
        "{said}"
    );
    assert!(
        said.contains("    gone: 33 bytes, decorate shelf.c:"),
        "{said}"
    );
}

#[test]
fn without_call_stacks_leaks_are_compared_by_executable() {
    let builds = Builds::new();
    let old = builds.build("old", &[]);
    let more = builds.build("more", &["-DMORE"]);
    let without = "--stacks=never";
    builds.run(&[without, "-q", "-o", "json=base.json"], &old);
    for limit in ["--fail-on-leak", "--fail-on-lost", "--fail-on-total-lost"] {
        assert_eq!(
            builds.compare(limit, &[without], &old),
            (0, String::new()),
            "{limit}"
        );
        let (code, said) = builds.compare(limit, &[without], &more);
        assert_eq!(code, 23, "{said}");
        assert!(said.contains("(most: 33 bytes more, shelf)"), "{said}");
    }
    // A baseline with call stacks, and a run without.
    builds.run(&["--stacks", "-q", "-o", "json=base.json"], &old);
    let (code, said) = builds.compare("--fail-on-leak", &[without], &more);
    assert_eq!(code, 23, "{said}");
    assert!(said.contains("1 new leak (33 bytes)"), "{said}");
}

/// What is lost is compared by call stacks, too, and what is suppressed is no new leak.
#[test]
fn what_is_lost_by_a_new_stack_fails_unless_it_is_suppressed() {
    let builds = Builds::new();
    let old = builds.build("old", &["-g"]);
    let more = builds.build("more", &["-g", "-DMORE"]);
    builds.run(&["--stacks", "-q", "-o", "json=base.json"], &old);
    let (code, said) = builds.compare("--fail-on-lost", &["--stacks"], &more);
    assert_eq!(code, 23, "{said}");
    assert!(
        said.contains("1 new leak (33 bytes), 1 known (700 bytes), 0 gone"),
        "{said}"
    );
    fs::write(builds.path().join("known.supp"), "leak:decorate\n").unwrap();
    let options = ["--stacks", "--suppressions", "known.supp", "-o", "now.xml"];
    for limit in ["--fail-on-lost", "--fail-on-leak"] {
        let (code, said) = builds.compare(limit, &options, &more);
        assert_eq!((code, &*said), (0, ""), "{limit}");
        let cases = fs::read_to_string(builds.path().join("now.xml")).unwrap();
        assert!(cases.contains("failures=\"0\" errors=\"0\""), "{cases}");
    }
}

/// A known leak is a note, and a new one an error at its line.
#[test]
fn documents_tell_new_leaks_from_known_ones() {
    let builds = Builds::new();
    builds.build("old", &["-g"]);
    let source = builds.path().join("shelf.c");
    fs::copy(SOURCE, &source).unwrap();
    let gcc = Command::new("gcc")
        .args(["-g", "-O0", "-DMORE", "-o", "shelf"])
        .arg(&source)
        .current_dir(builds.path())
        .status()
        .unwrap();
    assert!(gcc.success());
    builds.run(
        &["--stacks", "-q", "-o", "json=base.json"],
        Path::new("old/shelf"),
    );
    let options = ["--stacks", "-o", "now.sarif", "-o", "now.xml"];
    let (code, _) = builds.compare("--fail-on-leak", &options, Path::new("./shelf"));
    assert_eq!(code, 23);
    let log = fs::read_to_string(builds.path().join("now.sarif")).unwrap();
    let log: Value = serde_json::from_str(&log).unwrap();
    let results = log["runs"][0]["results"].as_array().unwrap();
    let found = results.iter().map(|result| {
        let place = &result["locations"][0]["physicalLocation"];
        let texts = [&result["level"], &place["artifactLocation"]["uri"]];
        texts.map(|text| text.as_str().unwrap())
    });
    let found: Vec<_> = found.collect();
    assert_eq!(found, [["error", "shelf.c"], ["note", "shelf.c"]]);
    let cases = fs::read_to_string(builds.path().join("now.xml")).unwrap();
    assert!(
        cases.contains("1 of 1 process leaked more than 0 bytes beyond the baseline"),
        "{cases}"
    );
}

/// The baseline and the suppressions of a run, tried on what another run without them has saved.
#[test]
fn a_saved_report_is_compared_and_suppressed_as_its_run_is() {
    let builds = Builds::new();
    let old = builds.build("old", &["-g"]);
    let more = builds.build("more", &["-g", "-DMOVED", "-DMORE"]);
    builds.run(&["--stacks", "-q", "-o", "json=base.json"], &old);
    builds.run(&["--stacks", "-q", "-o", "json=plain.json"], &more);
    let file = |name: &str, text: &str| fs::write(builds.path().join(name), text).unwrap();
    file("new.supp", "leak:decorate\n");
    file(
        "all.supp",
        "{\nall\nMemcheck:Leak\nfun:*\n...\nfun:main\n}\nleak:stale\n",
    );
    let baseline = &["--baseline", "base.json"][..];
    let new = &["--suppressions", "new.supp"][..];
    let all = &["--suppressions", "all.supp"][..];
    for (options, code, said) in [
        (
            baseline.to_vec(),
            23,
            "baseline: 1 new leak (33 bytes), 1 known (700 bytes), 0 gone",
        ),
        (
            [baseline, new].concat(),
            0,
            "baseline: 0 new leaks (0 bytes), 1 known",
        ),
        (
            new.to_vec(),
            23,
            "suppressed: 33 bytes in 1 block at 1 place, by 1 of 1 suppression",
        ),
        (
            all.to_vec(),
            0,
            "1 suppression unused: leak:stale (all.supp:8)",
        ),
        (["--only-stack", "decorate"].to_vec(), 23, "LOST 33 bytes"),
        (["--top", "1"].to_vec(), 23, "1 more place: --top 2"),
        (["--no-default-suppressions"].to_vec(), 23, "gate failed"),
    ] {
        let gate = ["--fail-on-leak", "0", "--lost=always"];
        let outputs = [
            "-o",
            "json=now.json",
            "-o",
            "now.xml",
            "-o",
            "csv=now.csv",
            "--stacks",
        ];
        let run = builds.run(&[&gate[..], &outputs, &options].concat(), &more);
        assert_eq!(run.status.code(), Some(code), "{options:?} {run:?}");
        let table = String::from_utf8(run.stderr).unwrap();
        assert!(table.contains(said), "{options:?} {table}");
        let gate = &gate[..2];
        // Of a run without them, the verdict is the same.
        let (saved, out, _) = builds.report(&[gate, &options, &["plain.json"]].concat());
        assert_eq!(
            (saved, out.contains(said)),
            (code, true),
            "{options:?} {out}"
        );
        // However the report adds up.
        let by = ["--by", "function"];
        let (grouped, out, _) = builds.report(&[gate, &by, &options, &["plain.json"]].concat());
        assert_eq!(grouped, code, "{options:?} {out}");
        // What is not shown is not saved either.
        if options.contains(&"--only-stack") {
            continue;
        }
        // Of a run with the same options, all is the same again.
        let outputs = [
            "-o",
            "json=again.json",
            "-o",
            "again.xml",
            "-o",
            "csv=again.csv",
        ];
        let (again, out, err) = builds.report(&[gate, &outputs, &options, &["now.json"]].concat());
        assert_eq!(again, code, "{options:?} {out} {err}");
        for (now, again) in [("now.json", "again.json"), ("now.csv", "again.csv")] {
            assert_eq!(builds.read(again), builds.read(now), "{options:?}");
        }
        let cases = |file| {
            builds
                .read(file)
                .split_once("<failure")
                .map(|(_, rest)| rest.to_owned())
        };
        assert_eq!(cases("again.xml"), cases("now.xml"));
        // The places, sums and verdicts that follow the row of the process.
        let below = |table: &str| table.lines().skip(2).map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(below(&out), below(&table), "{options:?}");
    }
}

/// What a saved report without call stacks cannot tell is said.
#[test]
fn a_saved_report_without_call_stacks_is_compared_by_executable_and_says_so() {
    let builds = Builds::new();
    let old = builds.build("old", &[]);
    let more = builds.build("more", &["-DMORE"]);
    builds.run(&["--stacks", "-q", "-o", "json=base.json"], &old);
    builds.run(&["--stacks=never", "-q", "-o", "json=plain.json"], &more);
    fs::write(builds.path().join("new.supp"), "leak:decorate\n").unwrap();
    let gate = [
        "--fail-on-leak",
        "0",
        "--baseline",
        "base.json",
        "plain.json",
    ];
    let (code, out, err) = builds.report(&gate);
    assert_eq!(code, 23, "{out}");
    assert!(out.contains("    new: 33 bytes more, shelf\n"), "{out}");
    assert!(
        err.contains("plain.json: the leaks of 1 process have no call stacks: they are compared with the baseline by executable (record them by memleak run --stacks)\n"),
        "{err}"
    );
    // What may be suppressed is not known.
    let supp = ["--suppressions", "new.supp", "plain.json"];
    let (code, out, err) = builds.report(&[&["--fail-on-leak", "0"], &supp[..]].concat());
    assert_eq!(code, 125, "{out}");
    assert!(out.contains("stack unknown, maybe suppressed: 1"), "{out}");
    assert!(
        out.contains("suppressed: nothing, none of 1 suppression matched"),
        "{out}"
    );
    assert!(err.contains("no suppression can match them"), "{err}");
    let refused = builds.report(&[
        "-o",
        "json=base.json",
        "--baseline",
        "base.json",
        "plain.json",
    ]);
    assert!(
        refused.2.contains("base.json is to be read and, by -o"),
        "{refused:?}"
    );
}

/// Names as the linker has them are saved, too: suppressions in valgrind's syntax have these.
#[test]
fn a_suppression_with_a_mangled_name_matches_a_saved_stack() {
    let builds = Builds::new();
    let source = builds.path().join("shelf.cpp");
    let text = "__attribute__((noinline)) void fill(int n) { int *volatile p = new int(n); p = nullptr; }\n\
                int main(int n, char **) { fill(n); }\n";
    fs::write(&source, text).unwrap();
    let program = builds.path().join("shelf");
    let gcc = Command::new("g++")
        .arg("-O0")
        .arg(&source)
        .arg("-o")
        .arg(&program)
        .status();
    assert!(gcc.unwrap().success());
    builds.run(&["--stacks", "-q", "-o", "json=now.json"], &program);
    let supp = "{\nfill\nMemcheck:Leak\nfun:_Znwm\nfun:_Z4filli\nfun:main\n}\n";
    fs::write(builds.path().join("fill.supp"), supp).unwrap();
    let (code, out, err) = builds.report(&["--suppressions", "fill.supp", "now.json"]);
    assert_eq!((code, &*err), (0, ""), "{out}");
    assert!(
        out.contains("suppressed: 4 bytes in 1 block at 1 place"),
        "{out}"
    );
}

#[test]
fn a_baseline_that_is_none_stops_the_start() {
    let builds = Builds::new();
    for (text, why) in [
        ("", "it is empty (write a baseline by -o json=FILE)"),
        (
            "UID USER\n",
            "line 1: this is no JSON of memleak: give files that `-o json=FILE` has written",
        ),
        (
            "\n{\"schema\":\"other/1\",\"type\":\"process\"}\n",
            "line 2: this has the schema other/1, and not memleak/1",
        ),
        (
            "{\"schema\":\"memleak/1\",\"type\":\"stack\",\"stack\":\"x\"}\n",
            "line 1: this is no JSON",
        ),
    ] {
        fs::write(builds.path().join("base.json"), text).unwrap();
        let (code, said) = builds.compare("--fail-on-leak", &[], Path::new("/bin/true"));
        assert_eq!(code, 125, "{said}");
        assert!(
            said.contains("cannot read the baseline base.json: "),
            "{said}"
        );
        assert!(said.contains(why), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
    }
    let output = builds.run(&["--baseline", "missing.json"], Path::new("/bin/true"));
    assert_eq!(output.status.code(), Some(125));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(
        said.contains("cannot open the baseline missing.json"),
        "{said}"
    );
}
