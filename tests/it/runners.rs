//! Tests of examples/ci with the real test runners: a test that loses memory fails, the other one passes, and standard
//! output is what it is without memleak.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

use crate::common::root;

const MEMLEAK: &str = env!("CARGO_BIN_EXE_memleak");
const EXAMPLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/ci");

/// A copy of the examples, so that runners build in it.
pub struct Examples {
    directory: TempDir,
}

impl Examples {
    pub fn new() -> Self {
        root::require_root();
        let directory = TempDir::new().unwrap();
        let copied = Command::new("cp")
            .args(["-r", EXAMPLES])
            .arg(directory.path())
            .status();
        assert!(copied.unwrap().success());
        Self { directory }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join("ci").join(name)
    }

    fn wrapper(&self) -> String {
        self.path("memleak-test.sh").display().to_string()
    }

    /// Runs a script in one of the projects.
    pub fn run(&self, project: &str, script: &str, options: &str) -> Output {
        let mut shell = Command::new("bash");
        shell.args(["-euo", "pipefail", "-c", script]);
        shell.current_dir(self.path(project));
        shell.env("MEMLEAK", MEMLEAK).env("WRAPPER", self.wrapper());
        // Tests of this project may run under cargo, which has variables for its own programs.
        for (name, _) in std::env::vars_os() {
            let name = name.to_string_lossy();
            if name.starts_with("CARGO") || name.starts_with("NEXTEST") || name == "MAKEFLAGS" {
                shell.env_remove(&*name);
            }
        }
        if let Some(home) = std::env::var_os("CARGO_HOME") {
            shell.env("CARGO_HOME", home);
        }
        if !options.is_empty() {
            shell.env("MEMLEAK_OPTIONS", options);
        }
        shell.output().expect("bash is there")
    }

    /// Runs a script that must succeed, and returns its standard output.
    #[track_caller]
    pub fn passes(&self, project: &str, script: &str) -> String {
        let output = self.run(project, script, "");
        let (out, err) = texts(&output);
        assert!(output.status.success(), "{out}\n{err}");
        out
    }

    /// Runs a script that must fail. Returns its standard output and standard error.
    #[track_caller]
    pub fn fails(&self, project: &str, script: &str, options: &str) -> (String, String) {
        let output = self.run(project, script, options);
        let (out, err) = texts(&output);
        assert!(!output.status.success(), "{out}\n{err}");
        (out, err)
    }
}

fn texts(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr))
}

/// What memleak says of the test that loses 70 bytes.
pub const LOST: &str = "gate failed: 1 of 1 process lost more than 0 bytes (most: messy[";

#[test]
fn make_fails_only_for_the_test_that_loses_memory() {
    let examples = Examples::new();
    let plain = examples.passes("c", "make -sk check");
    let (out, err) = examples.fails("c", "make -sk check LOG_COMPILER=$WRAPPER", "");
    assert_eq!(out, plain);
    assert!(
        err.contains(LOST) && err.contains("check-messy] Error 23"),
        "{err}"
    );
    assert!(!err.contains("check-tidy]"), "{err}");
}

#[test]
fn cargo_test_fails_for_the_program_that_loses_memory() {
    let examples = Examples::new();
    let test = "cargo test -q --offline tests::";
    let plain = "CARGO_TARGET_DIR=plain cargo --config 'target.\"cfg(target_os = \\\"linux\\\")\".runner=\"env\"' \
                 test -q --offline tests::tidy";
    let plain = examples.passes("rust", plain);
    // Without the time that it took.
    let untimed = |text: &str| {
        let lines = text
            .lines()
            .map(|line| line.split("; finished in").next().unwrap());
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    let out = examples.passes("rust", &format!("{test}tidy"));
    assert_eq!(untimed(&out), untimed(&plain));
    let (_, err) = examples.fails("rust", &format!("{test}messy"), "");
    assert!(
        err.contains("1 of 1 process lost more than 0 bytes") && err.contains(", 70 bytes)"),
        "{err}"
    );
}

/// The whole runner under one memleak: the variable of the environment tells the tests.
#[test]
fn a_variable_of_the_environment_tells_to_which_test_a_leak_belongs() {
    let examples = Examples::new();
    let script = "make -s tidy messy; \
                  $MEMLEAK run -q --label-env TEST_NAME --fail-on-lost 0 --gate-exe './**' -o junit=leaks.xml -- \
                  sh -c 'for test in tidy messy; do TEST_NAME=shelf::$test ./$test; done'";
    let (out, err) = examples.fails("c", script, "");
    assert_eq!(out, "tidy passes\nmessy passes\n");
    assert!(
        err.contains("1 of 2 processes lost more than 0 bytes"),
        "{err}"
    );
    let cases = fs::read_to_string(examples.path("c/leaks.xml")).unwrap();
    assert_cases(&cases, "TEST_NAME", "shelf::tidy", "shelf::messy");
}

/// Asserts that JUnit's cases are these tests, and that only the second one failed.
#[track_caller]
pub fn assert_cases(cases: &str, variable: &str, passes: &str, fails: &str) {
    assert!(
        cases.contains("tests=\"2\" failures=\"1\" errors=\"0\""),
        "{cases}"
    );
    let class = format!("classname=\"memleak.{variable}\"");
    for (name, fails) in [(passes, false), (fails, true)] {
        let at = cases.find(&format!("{class} name=\"{name}")).expect(cases);
        let case = cases[at..].split("<testcase").next().unwrap();
        assert_eq!(case.contains("<failure"), fails, "{cases}");
    }
}

/// The step of the action, with nothing but what a runner gives it.
#[test]
fn the_step_of_the_github_action_annotates_sums_up_and_fails() {
    let examples = Examples::new();
    examples.passes("c", "make -s tidy messy");
    let directory = examples.path("c");
    let step = |run: &str| {
        let output = Command::new(examples.path("github/run.sh"))
            .env_clear()
            .env(
                "PATH",
                "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            )
            .env("MEMLEAK", MEMLEAK)
            .env("MEMLEAK_RUN", run)
            .env(
                "MEMLEAK_OPTIONS",
                "--quiet --stacks --fail-on-lost 0 --gate-exe './**'",
            )
            .env("RUNNER_TEMP", examples.path("github"))
            .env("GITHUB_OUTPUT", examples.path("output"))
            .env("GITHUB_STEP_SUMMARY", examples.path("summary"))
            .current_dir(&directory)
            .output()
            .unwrap();
        let (out, err) = texts(&output);
        (output.status.code().unwrap(), out, err)
    };
    fs::write(examples.path("summary"), "of the step before\n").unwrap();
    let (code, out, _) = step("./tidy");
    assert_eq!(code, 0, "{out}");
    assert!(
        out.starts_with("tidy passes\n") && !out.contains("::error"),
        "{out}"
    );
    let (code, out, err) = step("./messy | cat");
    assert_eq!(code, 23, "{err}");
    assert!(
        out.contains("\n::error title=memleak::gate failed: "),
        "{out}"
    );
    assert!(out.contains("file=messy.c,line="), "{out}");
    let summary = fs::read_to_string(examples.path("summary")).unwrap();
    assert!(
        summary.starts_with("of the step before\n### memleak: gate passed\n"),
        "{summary}"
    );
    assert!(
        summary.contains("\n### memleak: gate failed\n"),
        "{summary}"
    );
    let outputs = fs::read_to_string(examples.path("output")).unwrap();
    let files = outputs.lines().map(|line| line.split_once('=').unwrap().1);
    assert!(files.map(Path::new).all(Path::exists), "{outputs}");
    // A command that fails has its own code, and a gate that judged nobody is no success.
    let (code, _, _) = step("exit 7");
    assert_eq!(code, 7);
    let (code, _, err) = step("");
    assert_eq!(code, 125, "{err}");
}

/// memleak needs root. The test then runs as the user that called sudo.
#[test]
fn without_root_the_wrapper_and_the_step_call_sudo_and_pass_the_words_on() {
    let examples = Examples::new();
    let fake = "mkdir -m 755 fake; printf '#!/bin/sh\\nprintf \"<%%s>\" \"$@\"' >fake/sudo; chmod 755 fake/sudo; \
                chmod -R a+rwX ../..; ";
    let user = "setpriv --reuid=65534 --regid=65534 --clear-groups env PATH=$PWD/fake:$PATH MEMLEAK=memleak ";
    let words = examples.passes("c", &format!("{fake} {user} $WRAPPER ./tidy 'a b' ''"));
    assert_eq!(
        words,
        "<-n><--preserve-env><memleak><run><--user><sudo><--quiet><--fail-on-lost><0><--><./tidy><a b><>"
    );
    let step = "MEMLEAK_OPTIONS=\"--fail-on-lost 0 --gate-exe './**'\" MEMLEAK_RUN='make check' \
                GITHUB_OUTPUT=$PWD/out GITHUB_STEP_SUMMARY=$PWD/sum RUNNER_TEMP=$PWD ../github/run.sh";
    let words = examples.passes("c", &format!("{user} {step}"));
    let begin =
        "<-n><--preserve-env><memleak><run><--user><sudo><--fail-on-lost><0><--gate-exe><./**><-o>";
    assert!(words.starts_with(begin), "{words}");
    assert!(
        words.contains("<--><bash><-e><-o><pipefail><-c><make check>"),
        "{words}"
    );
}
