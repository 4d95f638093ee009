//! The examples for machines and clusters work as they are.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::process::Command;

use crate::common::fixture;
use crate::common::newcomers::Place;
use crate::common::root::require_root;
use crate::common::watch::{LONG, Watch};

const NOBODY: u32 = 65534;

fn example(path: &str) -> String {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    fs::read_to_string(examples.join(path)).unwrap()
}

/// The capabilities that the manifest adds, as setpriv names them.
fn capabilities() -> Vec<String> {
    let manifest = example("kubernetes/memleak.yaml");
    let list = manifest.split_once("add: [").unwrap().1;
    let list = list.split_once(']').unwrap().0;
    list.split(", ").map(str::to_lowercase).collect()
}

/// Words that run a command as root with no other capabilities than these.
fn bounded(capabilities: &[String]) -> Vec<String> {
    let added: String = capabilities
        .iter()
        .map(|name| format!(",+{name}"))
        .collect();
    vec!["setpriv".to_owned(), format!("--bounding-set=-all{added}")]
}

#[test]
fn the_alerts_fire_when_they_should() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/prometheus");
    let output = Command::new("promtool")
        .args(["test", "rules", "memleak-alerts-test.yml"])
        .current_dir(directory)
        .output()
        .expect("promtool can be run: make install-deps FOR=test");
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn the_unit_and_the_manifest_give_the_same_rights() {
    let unit = example("systemd/memleak.service");
    let set = unit
        .lines()
        .find_map(|line| line.strip_prefix("CapabilityBoundingSet="));
    let words = set
        .unwrap()
        .split(' ')
        .map(|word| word.strip_prefix("CAP_").unwrap());
    assert_eq!(
        words.map(str::to_lowercase).collect::<Vec<_>>(),
        capabilities()
    );
}

/// Runs a program that only its own user may read, beside a memleak with these capabilities. Returns why memleak has not
/// counted all of it.
#[track_caller]
fn uncovered(capabilities: &[String]) -> Option<String> {
    let place = Place::new();
    let program = place.copy(&fixture("holds_blocks"), "own_program");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o700)).unwrap();
    chown(&program, Some(NOBODY), Some(NOBODY)).unwrap();
    let wrapper = bounded(capabilities);
    let wrapper: Vec<_> = wrapper.iter().map(AsRef::as_ref).collect();
    let watch = Watch::start_under(&wrapper, ["-a", LONG]);
    let status = Command::new("setpriv")
        .args([&format!("--reuid={NOBODY}"), "--clear-groups"])
        .arg(&program)
        .args(["1", "77"])
        .status()
        .unwrap();
    assert!(status.success());
    let report = watch.stop();
    let row = report.rows.iter().find(|row| row.comm == "own_program");
    let row = row.expect("the program has a row");
    assert_eq!(row.complete, row.uncovered.is_none());
    if row.complete {
        assert_eq!(row.counts.leaked_bytes, 77);
    }
    row.uncovered.clone()
}

#[test]
fn the_capabilities_of_the_manifest_are_enough() {
    require_root();
    assert_eq!(uncovered(&capabilities()), None);
}

#[test]
fn without_one_of_the_capabilities_memleak_says_what_is_missing() {
    require_root();
    let all = capabilities();
    assert_eq!(all.len(), 4);
    for missing in &all {
        let others: Vec<String> = all
            .iter()
            .filter(|name| *name != missing)
            .cloned()
            .collect();
        match &**missing {
            "bpf" | "perfmon" => {
                let words = bounded(&others);
                let output = Command::new(&words[0])
                    .args(&words[1..])
                    .args([env!("CARGO_BIN_EXE_memleak"), "-p", "1"])
                    .output()
                    .unwrap();
                let said = String::from_utf8(output.stderr).unwrap();
                assert_eq!(output.status.code(), Some(125));
                assert!(
                    said.contains("CAP_BPF and CAP_PERFMON"),
                    "{missing}: {said}"
                );
            }
            _ => assert_eq!(
                uncovered(&others).as_deref(),
                Some("unexamined"),
                "{missing}"
            ),
        }
    }
}
