//! The examples for machines and clusters work as they are.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::process::Command;

use nix::sys::signal::{Signal, kill};
use tempfile::TempDir;

use crate::common::fixture;
use crate::common::group::Group;
use crate::common::machine;
use crate::common::newcomers::Place;
use crate::common::root::require_root;
use crate::common::scrape::{Server, free_address, sample, until};
use crate::common::watch::{LONG, Watch, rows};

const MEMLEAK: &str = env!("CARGO_BIN_EXE_memleak");
const NOBODY: u32 = 65534;

fn example(path: &str) -> String {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    fs::read_to_string(examples.join(path)).unwrap()
}

/// A list of the manifest, such as the capabilities that it adds.
pub fn manifest_list(name: &str) -> Vec<String> {
    let manifest = example("kubernetes/memleak.yaml");
    let list = manifest.split_once(&format!("{name}: [")).unwrap().1;
    let list = list.split_once(']').unwrap().0;
    let items = list.split(", ").map(|item| item.trim_matches('"'));
    items.map(str::to_owned).collect()
}

/// The capabilities that the manifest adds, as setpriv names them.
fn capabilities() -> Vec<String> {
    let names = manifest_list("add");
    names.iter().map(|name| name.to_lowercase()).collect()
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

/// What a watch says if it lacks a right.
const WITHOUT: &str = "memleak: without CAP_";

/// Runs a program that only its own user may read, beside a memleak with these capabilities. Returns why memleak has not
/// counted all of it, and which right it says is missing.
#[track_caller]
fn uncovered(capabilities: &[String]) -> (Option<String>, Option<String>) {
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
    let mut said = report.stderr.lines();
    let missing = said.find_map(|line| line.strip_prefix(WITHOUT));
    (row.uncovered.clone(), missing.map(str::to_owned))
}

#[test]
fn the_capabilities_of_the_manifest_are_enough() {
    require_root();
    assert_eq!(uncovered(&capabilities()), (None, None));
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
                    .args([MEMLEAK, "-p", "1"])
                    .output()
                    .unwrap();
                let said = String::from_utf8(output.stderr).unwrap();
                assert_eq!(output.status.code(), Some(125));
                assert!(
                    said.contains("CAP_BPF and CAP_PERFMON"),
                    "{missing}: {said}"
                );
            }
            _ => {
                let (why, said) = uncovered(&others);
                assert_eq!(why.as_deref(), Some("unexamined"), "{missing}");
                let said = said.expect("a line names what is missing");
                let begins = format!("{}, memleak cannot examine ", missing.to_uppercase());
                assert!(said.starts_with(&begins), "{said}");
            }
        }
    }
}

/// The command of the unit's ExecStart, as systemd reads it, and the unit with another program.
fn exec_start(program: &str) -> (Vec<String>, String) {
    let unit = example("systemd/memleak.service");
    let text = unit.replace("\\\n", " ");
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("ExecStart="));
    let words = line.expect("the unit starts something").split_whitespace();
    // `%%` is a `%`, and a single one would be systemd's own.
    let words: Vec<_> = words
        .map(|word| {
            let word = word.replace("%%", "\0");
            assert!(!word.contains(['%', '$', '"', '\'']), "{word}");
            word.replace('\0', "%")
        })
        .collect();
    assert_eq!(words[0], "/usr/bin/memleak");
    (words, unit.replacen("/usr/bin/memleak", program, 1))
}

#[test]
fn systemd_finds_nothing_wrong_in_the_unit() {
    let place = TempDir::new().unwrap();
    let file = place.path().join("memleak.service");
    let verify = |unit: &str| {
        fs::write(&file, unit).unwrap();
        let output = Command::new("systemd-analyze")
            .args(["verify", "--man=no", "--recursive-errors=no"])
            .arg(&file)
            .output()
            .expect("systemd-analyze can be run: make install-deps FOR=test");
        (
            output.status.success(),
            String::from_utf8(output.stderr).unwrap(),
        )
    };
    let (_, unit) = exec_start(MEMLEAK);
    assert_eq!(verify(&unit), (true, String::new()));
    let wrong = unit.replace("NoNewPrivileges=", "NoNewPrivilege=");
    assert!(verify(&wrong).1.contains("NoNewPrivilege"));
}

#[test]
fn the_command_of_the_unit_serves_metrics_and_writes_records_with_the_units_rights() {
    require_root();
    let place = Place::new();
    let program = place.copy(&fixture("holds_blocks"), "of_the_unit");
    let address = free_address();
    let (words, _) = exec_start(MEMLEAK);
    let words = words.iter().skip(1).map(|word| match &**word {
        // The first interval ends within the test.
        "60" => "0.5".to_owned(),
        "9464" => address.port().to_string(),
        word => word.replace(
            "/var/log/memleak/",
            &format!("{}/", place.path("log").display()),
        ),
    });
    place.directory("log");
    let _machine = machine::watched();
    let mut wrapper = bounded(&capabilities());
    wrapper.extend(["--no-new-privs", "--inh-caps=-all", "--", MEMLEAK].map(str::to_owned));
    let mut service = Server::start(
        Command::new(&wrapper[0])
            .args(&wrapper[1..])
            .args(words)
            .env_clear(),
    );
    until(address, "/healthz", |_| true);
    let status = Command::new(&program)
        .args(["2", "77"])
        .env("SLURM_JOB_ID", "1234")
        .env("SLURM_STEP_ID", "5")
        .env("SLURM_PROCID", "6")
        .status()
        .unwrap();
    assert!(status.success());
    let series = "memleak_leaked_bytes_total{comm=\"of_the_unit\",user=\"root\"}";
    until(address, "/metrics", |page| {
        sample(page, series) == Some(154.0)
    });
    kill(service.pid(), Signal::SIGTERM).unwrap();
    assert!(service.wait().success());
    let host = nix::unistd::gethostname().unwrap();
    let host = host.to_str().unwrap();
    let rows = rows(&place.path(&format!("log/{host}.json")));
    let of_program = rows
        .iter()
        .find(|row| row.comm == "of_the_unit")
        .expect("a record");
    assert_eq!(
        (of_program.counts.leaked_bytes, of_program.complete),
        (154, true)
    );
    let belongs = (
        of_program.job.as_deref(),
        of_program.step.as_deref(),
        of_program.rank,
        of_program.host.as_deref(),
    );
    assert_eq!(belongs, (Some("1234"), Some("5"), Some(6), Some(host)));
}

/// Makes what a container sees of a node: a root that cannot be written, a /sys without the file systems below it, and
/// the node's control groups. Then executes the command.
const ON_A_NODE: &str = r#"
    mount --rbind /sys/fs/cgroup "$0"
    mount --bind /sys /sys
    mount -o remount,bind,ro /sys
    mount --rbind "$0" /sys/fs/cgroup
    mount -o remount,bind,ro /sys/fs/cgroup
    mount -o remount,bind,ro /
    exec "$@""#;

#[test]
fn the_command_of_the_manifest_serves_metrics_from_a_container_of_its_kind() {
    require_root();
    let place = Place::new();
    let program = place.copy(&fixture("holds_blocks"), "on_the_node");
    let groups = place.directory("groups");
    let group = Group::new();
    let address = free_address();
    let words = manifest_list("args").into_iter().map(|word| match &*word {
        // The first interval ends within the test, and no other machine reaches it.
        "60" => "0.5".to_owned(),
        "0.0.0.0:9464" => address.to_string(),
        _ => word,
    });
    let rights = bounded(&capabilities());
    let _machine = machine::watched();
    let mut pod = Server::start(
        Command::new("unshare")
            .args([
                "--mount",
                "--propagation",
                "private",
                "sh",
                "-euc",
                ON_A_NODE,
            ])
            .arg(&groups)
            .args(rights)
            .args(["--no-new-privs", "--inh-caps=-all", "--", MEMLEAK])
            .args(words)
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"),
    );
    until(address, "/healthz", |_| true);
    let enter = Group::enter(&group.path);
    let status = Command::new(&enter[0])
        .args(&enter[1..])
        .arg(&program)
        .args(["2", "77"])
        .status()
        .unwrap();
    assert!(status.success());
    let name = group.path.file_name().unwrap().to_str().unwrap();
    let counted = |line: &str| {
        line.starts_with("memleak_leaked_bytes_total{comm=\"on_the_node\",cgroup=\"")
            && line.contains(name)
            && line.ends_with(" 154")
    };
    until(address, "/metrics", |page| page.lines().any(counted));
    kill(pod.pid(), Signal::SIGTERM).unwrap();
    assert!(pod.wait().success());
}
