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

#[test]
fn a_baseline_that_is_none_stops_the_start() {
    let builds = Builds::new();
    for (text, why) in [
        ("", "it is empty (write a baseline by -o json=FILE)"),
        (
            "UID USER\n",
            "line 1 is none of memleak's JSON (write a baseline by -o json=FILE)",
        ),
        (
            "{\"schema\":\"other/1\",\"type\":\"process\"}\n",
            "line 1 has the schema 'other/1', not memleak/1",
        ),
        (
            "{\"schema\":\"memleak/1\",\"type\":\"stack\",\"stack\":\"x\"}\n",
            "line 1 is none",
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
