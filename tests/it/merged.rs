//! Tests of `memleak report --by job`, `rank` and `node`: the total of each, its worst rank and its worst node, and how
//! what leaked is spread over them. From saved records of several nodes, and from those of a real `memleak -a`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use tempfile::TempDir;
use unicode_width::UnicodeWidthStr as _;

use crate::common::fixture;
use crate::common::group::Group;
use crate::common::newcomers::{Place, run};
use crate::common::watch::Watch;

/// `memleak report OPTIONS…` on the files of a directory. Returns what it prints.
#[track_caller]
fn report(directory: &Path, options: &[&str], files: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_memleak"))
        .arg("report")
        .args(options)
        .args(files)
        .current_dir(directory)
        .output()
        .expect("memleak can be run");
    assert!(output.status.success(), "{output:?}");
    assert!(output.stderr.is_empty(), "{output:?}");
    String::from_utf8(output.stdout).expect("a report is UTF-8")
}

/// The groups and the total, without what is the same in all tests.
fn groups(directory: &Path, by: &str, files: &[&str]) -> Vec<Value> {
    let text = report(directory, &["--by", by, "--format", "json"], files);
    let lines = text.lines();
    let lines = lines.map(|line| serde_json::from_str(line).expect("a line of JSON"));
    lines
        .filter(|line: &Value| line["type"] != "summary")
        .collect()
}

/// A record of a process that has ended, as memleak writes it.
fn record(host: &str, job: Option<&str>, rank: Option<u32>, pid: u32, leaked: u64) -> String {
    let mut record = json!({
        "schema": "memleak/1", "type": "process", "pid": pid, "ppid": 1, "uid": 1000, "user": "alice",
        "comm": "app", "exe": "/opt/app", "image": 0, "end": "exited", "exit_code": 0, "signal": null,
        "from": "start", "start_time": 1761153780.0, "end_time": 1761153781.0,
        "total_allocs_bytes": 10_000_000, "alloc_count": 9, "free_count": 8, "leaked_bytes": leaked,
        "leaked_blocks": u64::from(leaked > 0), "reach": null, "reach_unknown": "off",
        "peak_live_bytes": 100, "failed_allocs": 0, "unknown_frees": 0, "allocators": ["/lib/libc.so.6"],
        "counted_by": ["uprobes"], "complete": true, "losses": {}, "host": host,
    });
    if let Some(job) = job {
        record["job"] = job.into();
        record["step"] = "0".into();
    }
    if let Some(rank) = rank {
        record["rank"] = rank.into();
    }
    record.to_string()
}

/// Two jobs on three nodes: job 7 with ranks 0 to 3 on n1 and n2, job 8 with ranks 0 and 1 on n2 and n3. Each file also has
/// a process of no job.
fn nodes() -> TempDir {
    let directory = TempDir::new().expect("a temporary directory");
    for (host, ranks) in [
        (
            "n1",
            &[("7", 0, 11, 1_000_000), ("7", 1, 12, 2_000_000)][..],
        ),
        (
            "n2",
            &[
                ("7", 2, 11, 40_000_000),
                ("7", 3, 12, 0),
                ("8", 0, 13, 500_000),
            ],
        ),
        ("n3", &[("8", 1, 11, 3_000_000), ("8", 1, 12, 4_000_000)]),
    ] {
        let mut lines: Vec<_> = (ranks.iter())
            .map(|(job, rank, pid, leaked)| record(host, Some(job), Some(*rank), *pid, *leaked))
            .collect();
        lines.push(record(host, None, None, 99, 100_000));
        let summary = json!({"schema": "memleak/1", "type": "summary", "losses": {}});
        lines.push(summary.to_string());
        let path = directory.path().join(format!("{host}.json"));
        fs::write(path, lines.join("\n") + "\n").expect("the test's own file");
    }
    directory
}

const FILES: [&str; 3] = ["n1.json", "n2.json", "n3.json"];

/// The spread of what leaked.
fn leaked(spread: &Value) -> (u64, [u64; 3], &str) {
    let bytes = |name: &str| spread["leaked"][name].as_u64().expect("a number");
    (
        spread["count"].as_u64().expect("a number"),
        ["min_bytes", "median_bytes", "max_bytes"].map(bytes),
        spread["leaked"]["worst"].as_str().expect("a name"),
    )
}

#[test]
fn jobs_on_several_nodes_have_their_worst_rank_and_node_and_the_spread_over_both() {
    let directory = nodes();
    let found = groups(directory.path(), "job", &FILES);
    let names: Vec<_> = found.iter().map(|group| &group["name"]).collect();
    assert_eq!(
        names,
        [&json!("7"), &json!("8"), &json!("(none)"), &json!(null)]
    );
    let [seven, eight, none, total] = &found[..] else {
        panic!("{found:#?}");
    };
    assert_eq!(
        (&seven["processes"], &seven["leaked_bytes"]),
        (&json!(4), &json!(43_000_000))
    );
    assert_eq!(
        leaked(&seven["ranks"]),
        (4, [0, 1_500_000, 40_000_000], "2")
    );
    assert_eq!(
        leaked(&seven["nodes"]),
        (2, [3_000_000, 21_500_000, 40_000_000], "n2")
    );
    // Both nodes have a process 11.
    assert_eq!(
        (
            &seven["worst_pid"],
            &seven["worst_host"],
            &seven["worst_bytes"]
        ),
        (&json!(11), &json!("n2"), &json!(40_000_000))
    );
    // The second rank has two processes.
    assert_eq!(
        leaked(&eight["ranks"]),
        (2, [500_000, 3_750_000, 7_000_000], "1")
    );
    assert_eq!(
        leaked(&eight["nodes"]),
        (2, [500_000, 3_750_000, 7_000_000], "n3")
    );
    assert!(none["ranks"].is_null());
    assert_eq!(leaked(&none["nodes"]), (3, [100_000; 3], "n1"));
    assert_eq!(
        (&total["type"], &total["by"], &total["leaked_bytes"]),
        (&json!("total"), &json!("all"), &json!(50_800_000))
    );
    assert_eq!(leaked(&total["ranks"]).0, 6);
    assert_eq!(total["ranks"]["leaked"]["job"], "7");
    // Nothing is known of what was lost.
    assert!(seven["ranks"]["lost"].is_null());
}

#[test]
fn ranks_and_nodes_are_added_up_over_jobs_and_files() {
    let directory = nodes();
    let ranks = groups(directory.path(), "rank", &FILES);
    let of: Vec<_> = (ranks.iter())
        .map(|group| (&group["job"], &group["name"], &group["leaked_bytes"]))
        .collect();
    let none = json!(null);
    assert_eq!(
        of[..4],
        [
            (&json!("7"), &json!("2"), &json!(40_000_000)),
            (&json!("8"), &json!("1"), &json!(7_000_000)),
            (&json!("7"), &json!("1"), &json!(2_000_000)),
            (&json!("7"), &json!("0"), &json!(1_000_000)),
        ]
    );
    assert!(of.contains(&(&none, &json!("(none)"), &json!(300_000))));
    let total = ranks.last().expect("a total");
    assert_eq!(
        leaked(&total["ranks"]),
        (6, [0, 1_500_000, 40_000_000], "2")
    );
    assert_eq!(leaked(&ranks[0]["nodes"]).2, "n2");

    let nodes = groups(directory.path(), "node", &FILES);
    let of: Vec<_> = (nodes.iter())
        .map(|group| (&group["name"], &group["leaked_bytes"]))
        .collect();
    assert_eq!(
        of[..3],
        [
            (&json!("n2"), &json!(40_600_000)),
            (&json!("n3"), &json!(7_100_000)),
            (&json!("n1"), &json!(3_100_000)),
        ]
    );
    assert_eq!(
        leaked(&nodes[0]["ranks"]),
        (3, [0, 500_000, 40_000_000], "2")
    );
    assert_eq!(
        leaked(&nodes[3]["nodes"]),
        (3, [3_100_000, 7_100_000, 40_600_000], "n2")
    );
}

#[test]
fn the_table_and_csv_of_several_nodes_say_the_same() {
    let directory = nodes();
    let table = report(directory.path(), &["--by", "job"], &FILES);
    let rows = |table: &str| -> Vec<String> {
        let lines = table
            .lines()
            .take_while(|line| !line.starts_with("memleak:"));
        let words = lines.map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "));
        words.filter(|line| !line.is_empty()).collect()
    };
    assert_eq!(
        rows(&table),
        [
            "JOB PROCESSES ALLOCS_MB LEAK_MB LOST_MB WORST_PID",
            "7 4 40.000 43.000 ? 11@n2",
            "8 3 30.000 7.500 ? 12@n3",
            "(none) 3 30.000 0.300 ? 99@n1",
            "JOB OF COUNT MIN_LEAK_MB MEDIAN_MB MAX_MB WORST",
            "7 rank 4 0.000 1.500 40.000 2",
            "7 node 2 3.000 21.500 40.000 n2",
            "8 rank 2 0.500 3.750 7.000 1",
            "8 node 2 0.500 3.750 7.000 n3",
            "(none) node 3 0.100 0.100 0.100 n1",
            "(all) rank 6 0.000 1.500 40.000 7/2",
            "(all) node 3 3.100 7.100 40.600 n2",
        ]
    );
    // The ranks of several jobs are told apart.
    let ranks = rows(&report(directory.path(), &["--by", "rank"], &FILES));
    assert_eq!(ranks[1], "7/2 1 10.000 40.000 ? 11@n2");
    // A node's processes are its own, and nothing is spread over one node, or over no ranks.
    let one = rows(&report(directory.path(), &["--by", "job"], &["n3.json"]));
    assert_eq!(
        one[1..],
        ["8 2 20.000 7.000 ? 12", "(none) 1 10.000 0.100 ? 99"]
    );
    let csv = report(
        directory.path(),
        &["--by", "job", "--format", "csv"],
        &FILES,
    );
    let mut lines = csv.lines().map(|line| line.split(',').collect::<Vec<_>>());
    let names = lines.next().expect("a header");
    let column = |name: &str| {
        names
            .iter()
            .position(|other| *other == name)
            .expect("there")
    };
    let rows: Vec<_> = lines.collect();
    let cells = |row: usize, columns: &[&str]| -> Vec<&str> {
        columns.iter().map(|name| rows[row][column(name)]).collect()
    };
    let of_ranks = [
        "by",
        "name",
        "worst_host",
        "ranks_count",
        "ranks_leaked_median_bytes",
        "ranks_leaked_worst",
        "nodes_leaked_max_bytes",
        "nodes_leaked_worst",
    ];
    assert_eq!(
        cells(0, &of_ranks),
        ["job", "7", "n2", "4", "1500000", "2", "40000000", "n2"]
    );
    assert_eq!(
        cells(3, &of_ranks),
        ["all", "", "n2", "6", "1500000", "2", "40600000", "n2"]
    );
    assert_eq!(
        cells(3, &["ranks_leaked_job", "ranks_lost_worst"]),
        ["7", ""]
    );
}

#[test]
fn long_names_of_nodes_and_jobs_fit_on_eighty_columns() {
    let directory = TempDir::new().expect("a temporary directory");
    let host = |node: u32| format!("node{node:05}.racks.cluster.example.org");
    let job = "sEKNKTV3WPV500";
    let lines: Vec<_> = (0..2)
        .map(|rank| {
            record(
                &host(rank),
                Some(job),
                Some(rank),
                4_194_304,
                17_179_869_000,
            )
        })
        .chain([record(&host(0), Some("8"), Some(1_000_000), 1, 1)])
        .collect();
    fs::write(directory.path().join("a.json"), lines.join("\n") + "\n")
        .expect("the test's own file");
    for by in ["job", "rank", "node", "comm", "user"] {
        let output = Command::new(env!("CARGO_BIN_EXE_memleak"))
            .args(["report", "--by", by, "a.json"])
            .current_dir(directory.path())
            .output()
            .expect("memleak can be run");
        let table = String::from_utf8(output.stdout).expect("a table is UTF-8");
        let groups = table.split("memleak:").next().expect("a table");
        assert!(
            groups.contains("4194304@node") == (by != "node"),
            "{groups}"
        );
        assert!(
            groups.contains("(all)") != ["comm", "user"].contains(&by),
            "{groups}"
        );
        for line in groups.lines() {
            assert!(line.width() <= 80, "{by}: {line}");
        }
    }
    let whole = report_with_losses(directory.path(), &["-v", "--by", "rank", "a.json"]);
    assert!(whole.contains(&host(1)), "{whole}");
}

/// The table of a file that ends without a summary.
fn report_with_losses(directory: &Path, options: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_memleak"))
        .arg("report")
        .args(options)
        .current_dir(directory)
        .output()
        .expect("memleak can be run");
    String::from_utf8(output.stdout).expect("a table is UTF-8")
}

/// Control groups as Slurm makes them for its jobs. Dropping this removes them.
struct Jobs {
    group: Group,
    made: Vec<PathBuf>,
}

impl Jobs {
    fn new(jobs: &[&str]) -> Self {
        let group = Group::new();
        let scope = group.path.join("slurmstepd.scope");
        let mut made = vec![scope.clone()];
        for job in jobs {
            let job = scope.join(format!("job_{job}"));
            made.extend([job.clone(), job.join("step_0")]);
        }
        for path in &made {
            fs::create_dir(path).expect("control groups can be made");
        }
        Self { group, made }
    }
}

impl Drop for Jobs {
    fn drop(&mut self) {
        for path in self.made.iter().rev() {
            let _ = fs::remove_dir(path);
        }
    }
}

#[test]
fn what_memleak_records_of_a_node_is_added_up_by_its_jobs_and_ranks() {
    let jobs = Jobs::new(&["41", "42"]);
    let place = Place::new();
    let program = place.copy(&fixture("holds_blocks"), "ranked-leaker");
    let saved = place.path("node.json");
    let output = format!("json={}", saved.display());
    let scope = jobs.group.path.to_str().expect("a plain path");
    let watch = Watch::all(&[
        "--cgroup",
        scope,
        "--comm",
        "ranked-leaker",
        "--label-env",
        "SLURM_PROCID",
        "-o",
        &output,
    ]);
    for (job, rank, blocks) in [
        ("41", "0", "1"),
        ("41", "1", "5"),
        ("41", "2", "3"),
        ("42", "0", "2"),
        ("42", "1", "7"),
        ("42", "1", "2"),
    ] {
        let step = scope_of(&jobs, job);
        run(Command::new("sh")
            .args(&Group::enter(&step)[1..])
            .arg(&program)
            .args([blocks, "100"])
            .env("SLURM_PROCID", rank)
            .env_remove("LD_LIBRARY_PATH"));
    }
    watch.stop();
    let file = [saved.to_str().expect("a plain path")];
    let found = groups(place.path("").as_path(), "job", &file);
    let [second, first, total] = &found[..] else {
        panic!("{found:#?}");
    };
    assert_eq!(
        (&second["name"], &second["leaked_bytes"]),
        (&json!("42"), &json!(1_100))
    );
    assert_eq!(leaked(&second["ranks"]), (2, [200, 550, 900], "1"));
    assert_eq!(
        (&first["name"], &first["processes"]),
        (&json!("41"), &json!(3))
    );
    assert_eq!(leaked(&first["ranks"]), (3, [100, 300, 500], "1"));
    let host = nix::unistd::gethostname().expect("the machine has a name");
    let host = host.to_str().expect("a plain name");
    assert_eq!(leaked(&total["nodes"]), (1, [2_000; 3], host));

    let found = groups(place.path("").as_path(), "rank", &file);
    let ranks: Vec<_> = (found.iter())
        .map(|group| (&group["job"], &group["name"], &group["leaked_bytes"]))
        .collect();
    let [j41, j42, none] = [json!("41"), json!("42"), json!(null)];
    assert_eq!(
        ranks,
        [
            (&j42, &json!("1"), &json!(900)),
            (&j41, &json!("1"), &json!(500)),
            (&j41, &json!("2"), &json!(300)),
            (&j42, &json!("0"), &json!(200)),
            (&j41, &json!("0"), &json!(100)),
            (&none, &none, &json!(2_000)),
        ]
    );
}

fn scope_of(jobs: &Jobs, job: &str) -> PathBuf {
    let scope = jobs.group.path.join("slurmstepd.scope");
    scope.join(format!("job_{job}/step_0"))
}
