//! Where processes belong: their container and their job, from real control groups and real environments.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;

use crate::common::fixture;
use crate::common::group::Group;
use crate::common::root::require_root;

const ID: &str = "3f2a9c0d1e4b5a69788796a5b4c3d2e1f00f1e2d3c4b5a69788796a5b4c3d2e1";

/// A control group below another one, which is removed before that.
struct Inner(PathBuf);

impl Drop for Inner {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

/// Runs a script under memleak, in this environment. Returns the records of its processes named `holds_blocks`.
#[track_caller]
fn leakers(script: &str, words: &[&str], environment: &[(&str, &str)]) -> Vec<Value> {
    leakers_with(&[], script, words, environment)
}

#[track_caller]
fn leakers_with(
    options: &[&str],
    script: &str,
    words: &[&str],
    environment: &[(&str, &str)],
) -> Vec<Value> {
    require_root();
    let directory = TempDir::new().unwrap();
    let json = directory.path().join("report.json");
    let output = Command::new(env!("CARGO_BIN_EXE_memleak"))
        .args(["run", "-q", "-o"])
        .arg(&json)
        .args(options)
        .args(["sh", "-c", script])
        .arg(fixture("holds_blocks"))
        .args(words)
        .envs(environment.iter().copied())
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let text = fs::read_to_string(&json).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str(line).unwrap());
    lines
        .filter(|line: &Value| line["comm"] == "holds_blocks")
        .collect()
}

#[test]
fn a_process_that_lives_a_moment_in_a_container_has_its_id() {
    let group = Group::new();
    let container = Inner(group.path.join(format!("docker-{ID}.scope")));
    fs::create_dir(&container.0).unwrap();
    // One outside, one that enters the container and ends at once, and one outside again.
    let script = r#""$0" 1 10; (echo 0 >"$1/cgroup.procs" && exec "$0" 1 20); "$0" 1 30"#;
    let found = leakers(script, &[container.0.to_str().unwrap()], &[]);
    let container_of = |leaked: u64| {
        let row = found.iter().find(|row| row["leaked_bytes"] == leaked);
        row.unwrap_or_else(|| panic!("{found:#?}"))["container"].clone()
    };
    assert_eq!(container_of(20), ID);
    assert_ne!(container_of(10), ID);
    assert_ne!(container_of(30), ID);
    let host = nix::unistd::gethostname().unwrap();
    assert!(
        found
            .iter()
            .all(|row| row["host"] == host.to_str().unwrap())
    );
}

#[test]
fn a_rank_of_an_mpi_program_has_its_job_step_and_rank() {
    let environment = [
        ("SLURM_JOB_ID", "1234"),
        ("SLURM_STEP_ID", "0"),
        ("SLURM_PROCID", "0"),
        ("PMI_RANK", "7"),
    ];
    let found = leakers(r#""$0" 1 10"#, &[], &environment);
    let [row] = &found[..] else {
        panic!("{found:#?}");
    };
    assert_eq!(row["job"], "1234");
    assert_eq!(row["step"], "0");
    assert_eq!(row["rank"], 7);
    let found = leakers(r#""$0" 1 10"#, &[], &[]);
    assert!(found[0]["rank"].is_null());
}

#[test]
fn each_process_has_the_rank_of_its_own_environment_if_that_is_recorded() {
    let script = r#"for rank in 0 1 2; do PMI_RANK=$rank "$0" 1 1$rank; done; "$0" 1 20"#;
    let slurm = [("SLURM_JOB_ID", "1234"), ("SLURM_PROCID", "9")];
    let options = ["--label-env=PMI_RANK", "--label-env=SLURM_JOB_ID"];
    let ranks = |options: &[&str]| -> Vec<Value> {
        let found = leakers_with(options, script, &[], &slurm);
        assert!(found.iter().all(|row| row["job"] == "1234"), "{found:#?}");
        found.iter().map(|row| row["rank"].clone()).collect()
    };
    assert_eq!(ranks(&options), [0, 1, 2, 9]);
    assert_eq!(ranks(&[]), [9, 9, 9, 9]);
}
