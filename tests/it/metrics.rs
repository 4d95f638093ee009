//! Metrics of real processes, read by the programs that collect metrics.

use std::fs;
use std::process::Command;

use tempfile::TempDir;

use crate::common::fixture;
use crate::common::root::require_root;
use crate::common::scrape::{
    Server, assert_promtool_accepts, free_address, get, sample, send, until,
};
use crate::common::watch::{Waiting, Watch};

const MEMLEAK: &str = env!("CARGO_BIN_EXE_memleak");

#[test]
fn run_writes_metrics_that_promtool_accepts_and_that_are_exact() {
    require_root();
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("memleak.prom");
    let leaker = fixture("holds_blocks").display().to_string();
    // A name that would end the label.
    let script = format!(r#"{leaker} 3 1000; {leaker} 0 1; exec -a x {leaker} 1 500000; "#);
    let odd = directory.path().join("a\"b\\");
    fs::copy(fixture("holds_blocks"), &odd).unwrap();
    let output = Command::new(MEMLEAK)
        .args(["run", "-q", "-o"])
        .arg(&file)
        .args(["bash", "-c", &format!("\"$0\" 1 7; {script}")])
        .arg(&odd)
        .output()
        .unwrap();
    assert!(
        output.status.success() && output.stderr.is_empty(),
        "{output:?}"
    );
    let metrics = fs::read_to_string(&file).unwrap();
    assert_promtool_accepts(&metrics);
    let of = |name: &str, comm: &str| {
        let labels = format!("comm=\"{comm}\",user=\"root\"");
        sample(&metrics, &format!("{name}{{{labels}}}"))
    };
    for (name, value) in [
        ("memleak_processes_ended_total", 3.0),
        ("memleak_leaked_bytes_total", 503_000.0),
        ("memleak_leaked_blocks_total", 4.0),
        ("memleak_incomplete_processes_total", 0.0),
        ("memleak_process_leaked_bytes_count", 3.0),
        ("memleak_live_bytes", 0.0),
    ] {
        assert_eq!(of(name, "holds_blocks"), Some(value), "{name}: {metrics}");
    }
    assert_eq!(of("memleak_leaked_bytes_total", r#"a\"b\\\\"#), Some(7.0));
    // The shell's own image before the last exec has allocated, and has not ended.
    assert_eq!(of("memleak_processes_ended_total", "bash"), Some(0.0));
    assert!(of("memleak_allocated_bytes_total", "bash") > Some(0.0));
}

#[test]
fn node_exporter_serves_what_a_watch_rewrites() {
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("memleak.prom");
    let mut target = Waiting::fixture("grows_by_line", &["100"]);
    let address = free_address();
    let _exporter = Server::start(Command::new("prometheus-node-exporter").args([
        "--collector.disable-defaults",
        "--collector.textfile",
        &format!(
            "--collector.textfile.directory={}",
            directory.path().display()
        ),
        &format!("--web.listen-address={address}"),
    ]));
    let pid = target.pid().to_string();
    let watch = Watch::start(["-p", &pid, "0.2", "-o", file.to_str().unwrap()]);
    let series = |name: &str| format!("{name}{{comm=\"grows_by_line\",user=\"root\"}}");
    let live = series("memleak_live_bytes");
    until(address, "/metrics", |page| sample(page, &live) == Some(0.0));
    assert_eq!(target.ask(), "more\n");
    let page = until(address, "/metrics", |page| {
        sample(page, &live) == Some(100.0)
    });
    assert_eq!(sample(&page, "node_textfile_scrape_error"), Some(0.0));
    target.finish();
    let report = watch.wait();
    let metrics = fs::read_to_string(&file).unwrap();
    assert_promtool_accepts(&metrics);
    let leaked = report.row_of(pid.parse().unwrap()).counts.leaked_bytes as f64;
    assert_eq!(
        sample(&metrics, &series("memleak_leaked_bytes_total")),
        Some(leaked)
    );
    assert_eq!(sample(&metrics, &live), Some(0.0));
    // A process that was there before memleak is never complete.
    let incomplete = series("memleak_incomplete_processes_total");
    assert_eq!(sample(&metrics, &incomplete), Some(1.0));
    let names = fs::read_dir(directory.path()).unwrap();
    assert_eq!(names.count(), 1, "nothing else stays beside the file");
}

#[test]
fn metrics_that_cannot_be_written_are_said_once_and_do_not_end_the_watch() {
    let directory = TempDir::new().unwrap();
    let place = directory.path().join("textfile");
    fs::create_dir(&place).unwrap();
    let target = Waiting::fixture("joined_midway", &["1", "1"]);
    let pid = target.pid().to_string();
    let file = place.join("memleak.prom");
    let mut watch = Watch::start(["-p", &pid, "0.1", "-o", file.to_str().unwrap()]);
    fs::remove_dir_all(&place).unwrap();
    watch.wait_for("cannot write the report to");
    target.finish();
    let report = watch.wait();
    let said = report.stderr.matches("cannot write the report").count();
    assert_eq!(said, 1, "{}", report.stderr);
}

#[test]
fn influxdb_takes_every_point() {
    require_root();
    let directory = TempDir::new().unwrap();
    let [file, data] = ["points", "data"].map(|name| directory.path().join(name));
    let script = r#"for i in 1 2 3; do "$0" 1 7; done; "$1" 2 1000; (kill -9 $BASHPID)"#;
    let odd = directory.path().join(r"a b,c=d\");
    fs::copy(fixture("holds_blocks"), &odd).unwrap();
    // A second run appends.
    for _ in 0..2 {
        Command::new(MEMLEAK)
            .args(["run", "-q", "-o"])
            .arg(format!("influx={}", file.display()))
            .args(["bash", "-c", script])
            .args([&odd, &fixture("holds_blocks")])
            .output()
            .unwrap();
    }
    let points = fs::read_to_string(&file).unwrap();
    assert_eq!(points.lines().count(), 12, "{points}");

    let [address, rpc] = [free_address(), free_address()];
    let influxd =
        |name: &str, value: &dyn std::fmt::Display| (format!("INFLUXDB_{name}"), value.to_string());
    let _server = Server::start(
        Command::new("influxd")
            .args(["run", "-config", "/dev/null"])
            .envs([
                influxd("BIND_ADDRESS", &rpc),
                influxd("HTTP_BIND_ADDRESS", &address),
                influxd("META_DIR", &data.join("meta").display()),
                influxd("DATA_DIR", &data.join("data").display()),
                influxd("DATA_WAL_DIR", &data.join("wal").display()),
                influxd("REPORTING_DISABLED", &true),
                influxd("MONITOR_STORE_ENABLED", &false),
            ]),
    );
    until(address, "/query?q=SHOW%20DATABASES", |body| {
        body.contains("results")
    });
    let (head, _) = send(address, "POST", "/query?q=CREATE%20DATABASE%20m", "", "").unwrap();
    assert!(head.contains(" 200 "), "{head}");
    let (head, body) = send(address, "POST", "/write?db=m", "", &points).unwrap();
    assert!(head.contains(" 204 "), "{head}{body}");
    let query = "/query?db=m&q=SELECT%20COUNT(pid),SUM(leaked_bytes)%20FROM%20memleak_process%20GROUP%20BY%20comm";
    let (_, body) = get(address, query, "").unwrap();
    let answer: serde_json::Value = serde_json::from_str(&body).unwrap();
    let series = answer["results"][0]["series"].as_array().unwrap();
    let found = |comm: &str| {
        let series = series.iter().find(|series| series["tags"]["comm"] == comm);
        let values = &series.unwrap_or_else(|| panic!("{comm}: {body}"))["values"][0];
        (values[1].as_u64(), values[2].as_u64())
    };
    assert_eq!(found(r"a b,c=d\\."), (Some(6), Some(42)));
    assert_eq!(found("holds_blocks"), (Some(2), Some(4000)));
}
