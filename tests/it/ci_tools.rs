//! Tests of examples/ci with the runners that take long to build something, and of the documents for CI with the programs
//! that read them. Readers are fetched from their registries. `make test-long` runs these tests.

use std::fs;

use serde_json::{Value, json};

use crate::examples::manifest_list;
use crate::runners::{Examples, LOST, assert_cases};

#[test]
#[ignore = "needs CMake: make test-long"]
fn ctest_fails_only_for_the_test_that_loses_memory() {
    let examples = Examples::new();
    let build = "cmake -B build -DCMAKE_CROSSCOMPILING_EMULATOR=$WRAPPER -DCMAKE_TEST_LAUNCHER=$WRAPPER >build.log && \
                 cmake --build build >>build.log && ";
    let (out, _) = examples.fails("c", &format!("{build} ctest --test-dir build -V"), "");
    assert!(
        out.contains("50% tests passed, 1 tests failed out of 2"),
        "{out}"
    );
    assert!(
        out.contains("1/2 Test #1: tidy .............................   Passed"),
        "{out}"
    );
    assert!(out.contains(LOST), "{out}");
}

#[test]
#[ignore = "needs meson: make test-long"]
fn meson_fails_only_for_the_test_that_loses_memory() {
    let examples = Examples::new();
    let setup = "meson setup build -Dmemleak_test=$WRAPPER >build.log && ";
    let test = "meson test -C build --setup memleak --print-errorlogs";
    let (out, _) = examples.fails("c", &format!("{setup} {test}"), "");
    assert!(
        out.contains("Ok:                 1 ") && out.contains("Fail:               1 "),
        "{out}"
    );
    assert!(out.contains(LOST), "{out}");
    // Without the setup, both pass.
    examples.passes("c", "meson test -C build");
}

/// Wrapper scripts also run the test programs to list their tests.
#[test]
#[ignore = "needs cargo-nextest: make test-long"]
fn nextest_fails_only_for_the_test_that_loses_memory_and_lists_the_same_tests() {
    let examples = Examples::new();
    let there = examples.run("rust", "cargo nextest --version", "");
    assert!(
        there.status.success(),
        "cargo-nextest is missing: cargo install --locked cargo-nextest"
    );
    // One of the two ways is enough.
    fs::remove_dir_all(examples.path("rust/.cargo")).unwrap();
    let listed = examples.passes("rust", "cargo nextest list --offline 2>/dev/null");
    assert_eq!(listed, "shelf tests::messy\nshelf tests::tidy\n");
    let (_, err) = examples.fails("rust", "cargo nextest run --offline --no-fail-fast", "");
    assert!(err.contains("2 tests run: 1 passed, 1 failed"), "{err}");
    assert!(
        err.contains("tests::messy") && err.contains(", 70 bytes)"),
        "{err}"
    );
    // One memleak around the runner.
    fs::remove_dir_all(examples.path("rust/.config")).unwrap();
    let run = "$MEMLEAK run -q --label-env NEXTEST_TEST_NAME --fail-on-lost 0 --gate-exe './target/**' \
               -o junit=leaks.xml -- cargo nextest run --offline";
    examples.fails("rust", run, "");
    let cases = fs::read_to_string(examples.path("rust/leaks.xml")).unwrap();
    // The listing of the tests is a case of its own: it belongs to no test.
    let labelled = cases.replace("tests=\"3\"", "tests=\"2\"");
    assert_cases(
        &labelled,
        "NEXTEST_TEST_NAME",
        "tests::tidy",
        "tests::messy",
    );
}

#[test]
#[ignore = "compiles Go's runtime: make test-long"]
fn go_fails_for_the_test_whose_c_code_leaks() {
    let examples = Examples::new();
    let options = "--quiet --fail-on-leak 16kB";
    let test = |name: &str| format!("go test -vet=off -count=1 -run {name} -exec $WRAPPER ./...");
    let output = examples.run("go", &test("Tidy"), options);
    assert!(output.status.success(), "{output:?}");
    let (out, _) = examples.fails("go", &test("Messy"), options);
    assert!(
        out.contains("1 of 1 process leaked more than 16000 bytes"),
        "{out}"
    );
}

#[test]
#[ignore = "needs pytest: make test-long"]
fn pytest_names_the_test_whose_program_loses_memory() {
    let examples = Examples::new();
    examples.passes("c", "make -s tidy messy && cp tidy messy ../pytest");
    let run = "$MEMLEAK run -q --label-env PYTEST_CURRENT_TEST --fail-on-lost 0 --gate-exe './**' -o junit=leaks.xml -- \
               pytest -q";
    let (out, _) = examples.fails("pytest", run, "");
    assert!(out.contains("2 passed"), "{out}");
    let cases = fs::read_to_string(examples.path("pytest/leaks.xml")).unwrap();
    let [tidy, messy] = ["tidy", "messy"].map(|test| format!("test_shelf.py::test_{test} (call)"));
    assert_cases(&cases, "PYTEST_CURRENT_TEST", &tidy, &messy);
}

/// The documents of a run that failed, in a directory of the examples.
const DOCUMENTS: &str = "make -s tidy messy && ! $MEMLEAK run -q --stacks --fail-on-lost 0 --gate-exe './**' \
                         -o leaks.xml -o leaks.sarif -o gitlab=quality.json -- make -s check";

#[test]
#[ignore = "fetches a reader from PyPI: make test-long"]
fn junitparser_reads_the_cases() {
    let examples = Examples::new();
    examples.passes("c", "pip3 install -q --target readers junitparser");
    examples.passes("c", DOCUMENTS);
    let script = r#"
import junitparser
suites = junitparser.JUnitXml.fromfile("leaks.xml")
print(suites.tests, suites.failures, suites.errors)
for case in [case for suite in suites for case in suite]:
    print(case.classname, case.name, case.time > 0, [type(result).__name__ for result in case.result])
    for result in case.result:
        print(result.text)
"#;
    fs::write(examples.path("c/read.py"), script).unwrap();
    let read = examples.passes("c", "PYTHONPATH=readers python3 read.py");
    assert!(
        read.starts_with(
            "2 1 0\nmemleak messy True ['Failure']\n1 of 1 process lost more than 0 bytes\n"
        ),
        "{read}"
    );
    assert!(read.contains("\nmemleak tidy True ["), "{read}");
    assert!(read.contains("messy.c:"), "{read}");
}

#[test]
#[ignore = "fetches a reader from npm: make test-long"]
fn microsofts_validator_finds_nothing_wrong_in_sarif() {
    let examples = Examples::new();
    let fetch = "npm install --silent --no-audit --no-fund --prefix readers @microsoft/sarif-multitool-linux@5";
    examples.passes("c", fetch);
    examples.passes("c", DOCUMENTS);
    let tool = "DOTNET_SYSTEM_GLOBALIZATION_INVARIANT=1 \
                readers/node_modules/@microsoft/sarif-multitool-linux/Sarif.Multitool";
    let said = examples.passes("c", &format!("{tool} validate leaks.sarif"));
    assert!(
        said.contains("1 files scanned") || said.contains("Analysis completed successfully"),
        "{said}"
    );
    // memleak has no page of its own to name.
    let findings = said
        .lines()
        .filter(|line| line.contains(" SARIF") && !line.contains("SARIF2005"));
    assert_eq!(findings.collect::<Vec<_>>(), Vec::<&str>::new(), "{said}");
    // It would notice.
    examples.passes(
        "c",
        "sed -i 's/\"2.1.0\"/\"1.9\"/; s/\"startLine\": /\"startLine\": -/' leaks.sarif",
    );
    let output = examples.run("c", &format!("{tool} validate leaks.sarif"), "");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        said.contains("error JSON") || said.contains("error SARIF"),
        "{said}"
    );
}

#[test]
#[ignore = "fetches a reader from PyPI: make test-long"]
fn sarif_tools_find_each_leak_at_its_line() {
    let examples = Examples::new();
    examples.passes("c", "pip3 install -q --target readers sarif-tools");
    examples.passes("c", DOCUMENTS);
    let read = examples.passes(
        "c",
        "PYTHONPATH=readers python3 -m sarif csv leaks.sarif >&2 && cat leaks.csv",
    );
    let leak = read
        .lines()
        .find(|line| line.contains("70 bytes in 1 block"));
    let leak = leak.unwrap_or_else(|| panic!("{read}"));
    assert!(leak.contains("messy.c"), "{leak}");
}

/// Reads a file as YAML. Its path is that from the directory of an example, or absolute.
fn yaml(examples: &Examples, file: &str) -> Value {
    examples.passes("c", "pip3 install -q --upgrade --target readers pyyaml");
    let script =
        "import json, sys, yaml; print(json.dumps(yaml.load(open(sys.argv[1]), yaml.BaseLoader)))";
    let read = format!("PYTHONPATH=readers python3 -c '{script}' {file}");
    serde_json::from_str(&examples.passes("c", &read)).unwrap()
}

/// The other tests find the manifest's lists in its text.
#[test]
#[ignore = "fetches a reader from PyPI: make test-long"]
fn the_manifest_is_yaml_and_has_what_the_tests_run() {
    let file = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/examples/kubernetes/memleak.yaml"
    );
    let pod = &yaml(&Examples::new(), file)["spec"]["template"]["spec"];
    assert_eq!(pod["hostPID"], "true");
    let containers = pod["containers"].as_array().unwrap();
    assert_eq!(containers.len(), 1);
    let container = &containers[0];
    assert_eq!(container["command"], json!(["memleak"]));
    assert_eq!(container["args"], json!(manifest_list("args")));
    let rights = &container["securityContext"];
    assert_eq!(rights["capabilities"]["drop"], json!(["ALL"]));
    assert_eq!(rights["capabilities"]["add"], json!(manifest_list("add")));
    let bits = [
        "privileged",
        "allowPrivilegeEscalation",
        "readOnlyRootFilesystem",
    ];
    assert_eq!(bits.map(|bit| &rights[bit]), ["false", "false", "true"]);
    // No file of the node but its control groups, which cannot be written.
    let mount = json!([{"name": "cgroup", "mountPath": "/sys/fs/cgroup", "readOnly": "true"}]);
    assert_eq!(container["volumeMounts"], mount);
    let volume =
        json!([{"name": "cgroup", "hostPath": {"path": "/sys/fs/cgroup", "type": "Directory"}}]);
    assert_eq!(pod["volumes"], volume);
}

/// The files that only a service could run are read as YAML, and the job's own script is run.
#[test]
#[ignore = "fetches a reader from PyPI: make test-long"]
fn the_action_and_the_job_are_yaml_and_the_script_of_the_job_runs() {
    let examples = Examples::new();
    let read = |file: &str| yaml(&examples, &format!("../{file}"));
    let action = read("github/action.yml");
    assert_eq!(action["runs"]["using"], "composite");
    let steps = action["runs"]["steps"].as_array().unwrap();
    let run = steps[0]["run"].as_str().unwrap();
    let step = run
        .trim_matches('"')
        .strip_prefix("$GITHUB_ACTION_PATH/")
        .unwrap();
    assert!(examples.path("github").join(step).exists(), "{run}");
    for step in steps {
        // A step of a composite action has a shell if it runs something.
        assert_eq!(step["run"].is_string(), step["shell"].is_string(), "{step}");
        assert!(
            step["run"].is_string() != step["uses"].is_string(),
            "{step}"
        );
    }
    let workflow = read("github/workflow.yml");
    let used = workflow["jobs"]["leaks"]["steps"][3]["with"]
        .as_object()
        .unwrap();
    let inputs = action["inputs"].as_object().unwrap();
    assert!(
        used.keys().all(|input| inputs.contains_key(input)),
        "{used:?}"
    );

    let job = &read("gitlab/gitlab-ci.yml")["leaks"];
    let lines = job["script"].as_array().unwrap().iter();
    let script: Vec<_> = lines.map(|line| line.as_str().unwrap()).collect();
    let script = format!(
        "mkdir bin; ln -s $MEMLEAK bin/memleak; export PATH=$PWD/bin:$PATH\n{}",
        script.join("\n")
    );
    let (_, err) = examples.fails("c", &script, "");
    assert!(
        err.contains("gate failed: 1 of 2 processes lost more than 0 bytes"),
        "{err}"
    );
    let reports = job["artifacts"]["reports"].as_object().unwrap();
    assert_eq!(reports.len(), 2);
    for file in reports.values() {
        assert!(
            examples.path("c").join(file.as_str().unwrap()).exists(),
            "{file}"
        );
    }
    let quality = fs::read_to_string(examples.path("c/memleak-quality.json")).unwrap();
    let quality: Value = serde_json::from_str(&quality).unwrap();
    let paths: Vec<_> = quality
        .as_array()
        .unwrap()
        .iter()
        .map(|issue| &issue["location"]["path"])
        .collect();
    assert!(paths.iter().any(|path| *path == "messy.c"), "{quality:#}");
}
