//! Metrics of real processes, read by the programs that collect metrics.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::common::TIMEOUT;
use crate::common::files;
use crate::common::fixture;
use crate::common::proc::within;
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

/// A node_exporter that serves the metrics of a directory, and where.
fn node_exporter(directory: &Path) -> (Server, SocketAddr) {
    let address = free_address();
    let exporter = Server::start(Command::new("prometheus-node-exporter").args([
        "--collector.disable-defaults",
        "--collector.textfile",
        &format!("--collector.textfile.directory={}", directory.display()),
        &format!("--web.listen-address={address}"),
    ]));
    (exporter, address)
}

#[test]
fn node_exporter_serves_what_a_watch_rewrites() {
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("memleak.prom");
    let mut target = Waiting::fixture("grows_by_line", &["100"]);
    let (_exporter, address) = node_exporter(directory.path());
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
fn node_exporter_serves_the_oddest_name() {
    require_root();
    let directory = TempDir::new().unwrap();
    let place = TempDir::new().unwrap();
    let odd = place.path().join("a\"b\\\nc,{d}");
    files::copy(fixture("holds_blocks"), &odd);
    let output = Command::new(MEMLEAK)
        .args(["run", "-q", "-o"])
        .arg(directory.path().join("memleak.prom"))
        .arg(&odd)
        .args(["1", "7"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let (_exporter, address) = node_exporter(directory.path());
    // The newline is `\x0a`, the backslash `\\`, and for the exporter's reader each backslash is two.
    let series = r#"memleak_leaked_bytes_total{comm="a\"b\\\\\\x0ac,{d}",user="root"}"#;
    let page = until(address, "/metrics", |page| {
        sample(page, "node_textfile_scrape_error").is_some()
    });
    assert_eq!(sample(&page, series), Some(7.0), "{page}");
    assert_eq!(sample(&page, "node_textfile_scrape_error"), Some(0.0));
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
    watch_into(&file);
    let points = fs::read_to_string(&file).unwrap();

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
    let found = |fields: &str, name: &str, comm: &str| {
        let query = format!("SELECT {fields} FROM {name} GROUP BY comm").replace(' ', "%20");
        let (_, body) = get(address, &format!("/query?db=m&q={query}"), "").unwrap();
        let answer: serde_json::Value = serde_json::from_str(&body).unwrap();
        let series = answer["results"][0]["series"].as_array();
        let mut series = series.unwrap_or_else(|| panic!("{body}")).iter();
        let series = series.find(|series| series["tags"]["comm"] == comm);
        let values = &series.unwrap_or_else(|| panic!("{comm}: {body}"))["values"][0];
        (values[1].as_u64(), values[2].as_u64())
    };
    let ended = |comm| found("COUNT(pid),SUM(leaked_bytes)", "memleak_process", comm);
    assert_eq!(ended(r"a b,c=d\\."), (Some(6), Some(42)));
    assert_eq!(ended("holds_blocks"), (Some(2), Some(4000)));
    // What was watched: as it ended, and while it ran.
    assert_eq!(ended("grows_by_line"), (Some(1), Some(100)));
    let ran = found(
        "COUNT(live_bytes),MAX(live_bytes)",
        "memleak_live",
        "grows_by_line",
    );
    let lines = points
        .lines()
        .filter(|line| line.starts_with("memleak_live"));
    assert_eq!(ran, (Some(lines.count() as u64), Some(100)));
}

/// Appends the points of a process that is watched until it ends, and has grown by 100 bytes.
#[track_caller]
fn watch_into(file: &Path) {
    let mut target = Waiting::fixture("grows_by_line", &["100"]);
    let points = format!("influx={}", file.display());
    let watch = Watch::start([
        "-p",
        &target.pid().to_string(),
        "0.2",
        "--live",
        "-o",
        &points,
    ]);
    assert_eq!(target.ask(), "more\n");
    let held = |text: String| text.matches(",live_bytes=100i,").count() >= 2;
    assert!(within(*TIMEOUT, || held(fs::read_to_string(file).unwrap())));
    target.finish();
    watch.wait();
}

#[test]
fn a_report_that_is_put_aside_loses_no_line() {
    require_root();
    let target = Waiting::fixture("grows_by_line", &["100"]);
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("report.json");
    let mut memleak = Command::new(MEMLEAK)
        .args([
            "-p",
            &target.pid().to_string(),
            "0.1",
            "--live",
            "-q",
            "--rotate",
            "1500",
            "-o",
        ])
        .arg(&file)
        .spawn()
        .unwrap();
    let aside = |number: u32| directory.path().join(format!("report.json.{number}"));
    let began = Instant::now();
    while !aside(2).exists() {
        assert!(began.elapsed() < Duration::from_secs(60));
        thread::sleep(Duration::from_millis(20));
    }
    target.finish();
    assert!(memleak.wait().unwrap().success());
    let mut times = Vec::new();
    for path in [aside(2), aside(1), file] {
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.len() <= 1500, "{path:?}: {}", text.len());
        for line in text.lines() {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            times.extend(line["end_time"].as_f64());
        }
    }
    // There is one record for each interval, and no interval is missing between two files.
    assert!(times.is_sorted() && times.len() >= 3, "{times:?}");
    let longest = times
        .windows(2)
        .map(|pair| pair[1] - pair[0])
        .fold(0.0, f64::max);
    assert!(longest < 10.0, "{times:?}");
}

// ---- over HTTP ------------------------------------------------------------------------------------------

/// A memleak that watches a process and serves its metrics.
pub struct Serving {
    pub watch: Watch,
    pub target: Waiting,
    pub address: SocketAddr,
}

impl Serving {
    #[track_caller]
    fn start(options: &[&str]) -> Self {
        Self::of(Waiting::fixture("grows_by_line", &["100"]), options)
    }

    #[track_caller]
    pub fn of(target: Waiting, options: &[&str]) -> Self {
        let pid = target.pid().to_string();
        let address = free_address();
        let listen = address.to_string();
        let words = [&["-p", &pid, "0.2", "--listen", &listen], options].concat();
        let watch = Watch::start(words);
        Self {
            watch,
            target,
            address,
        }
    }

    #[track_caller]
    pub fn end(self) {
        self.target.finish();
        let report = self.watch.wait();
        let address = self.address;
        let said = format!("metrics are at http://{address}/metrics\n");
        assert!(report.stderr.contains(&said), "{}", report.stderr);
    }

    /// How many descriptors memleak has open, and how many threads and kilobytes it has.
    pub fn takes(&self) -> [u64; 3] {
        let pid = self.watch.own_pid();
        let open = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let number = line.unwrap().split_whitespace().next().unwrap();
            number.parse::<u64>().unwrap()
        };
        [open as u64, field("Threads:"), field("VmRSS:")]
    }
}

const LIVE: &str = r#"memleak_live_bytes{comm="grows_by_line",user="root"}"#;

#[test]
fn metrics_are_served_in_the_syntax_that_is_asked_for() {
    let mut serving = Serving::start(&[]);
    let address = serving.address;
    assert_eq!(serving.target.ask(), "more\n");
    let page = until(address, "/metrics", |page| {
        sample(page, LIVE) == Some(100.0)
    });
    assert_promtool_accepts(&page);
    let accept = "Accept: application/openmetrics-text;version=1.0.0,text/plain;q=0.5\r\n";
    let (head, page) = get(address, "/metrics", accept).unwrap();
    assert!(
        head.contains("content-type: application/openmetrics-text; version=1.0.0"),
        "{head}"
    );
    assert!(
        page.ends_with("\n# EOF\n") && sample(&page, LIVE) == Some(100.0),
        "{page}"
    );
    for (method, path, code) in [
        ("GET", "/healthz", " 200 "),
        ("GET", "/other", " 404 "),
        ("POST", "/metrics", " 405 "),
    ] {
        let (head, _) = send(address, method, path, "", "").unwrap();
        assert!(head.contains(code), "{method} {path}: {head}");
    }
    serving.end();
}

#[test]
fn slow_and_hostile_clients_keep_nobody_else_waiting_and_take_little() {
    let serving = Serving::start(&[]);
    let address = serving.address;
    until(address, "/metrics", |page| page.contains(LIVE));
    let before = serving.takes();
    let connect = || TcpStream::connect(address).unwrap();
    let asks = |what: &str| {
        let mut stream = connect();
        // The server may have had enough before all is sent.
        let _ = stream.write_all(what.as_bytes());
        stream
    };
    let idle: Vec<TcpStream> = (0..200).map(|_| connect()).collect();
    let slow: Vec<TcpStream> = (0..50)
        .map(|_| asks("GET /metrics HTTP/1.1\r\nX: "))
        .collect();
    // Those that ask and never read.
    let deaf: Vec<TcpStream> = (0..50)
        .map(|_| asks("GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n"))
        .collect();
    let huge = "a".repeat(4_000_000);
    let large = [
        asks(&format!("GET /{huge} HTTP/1.1\r\n\r\n")),
        asks(&format!("GET / HTTP/1.1\r\nX: {huge}\r\n\r\n")),
        asks(&format!(
            "POST /metrics HTTP/1.1\r\nContent-Length: 4000000\r\n\r\n{huge}"
        )),
        asks(&huge),
        asks(&"X: y\r\n".repeat(500_000)),
    ];
    let began = Instant::now();
    let (head, page) = get(address, "/metrics", "").unwrap();
    let took = began.elapsed();
    assert!(head.contains(" 200 ") && page.contains(LIVE), "{head}");
    assert!(took < Duration::from_secs(2), "{took:?}");
    let after = serving.takes();
    // 32 connections of at most 8 kilobytes each, and what the kernel's pages round up.
    let more: Vec<u64> = after
        .iter()
        .zip(before)
        .map(|(after, before)| after.saturating_sub(before))
        .collect();
    assert!(
        more[0] <= 33 && more[1] == 0 && more[2] < 4_000,
        "{before:?} {after:?}"
    );
    // The connections that it has given up are closed.
    let closed = idle.iter().filter(|stream| {
        stream
            .set_read_timeout(Some(Duration::from_secs(5)))
            .unwrap();
        (&mut &**stream).read(&mut [0]).is_ok_and(|read| read == 0)
    });
    assert_eq!(closed.count(), 200);
    drop((slow, deaf, large));
    serving.end();
}

#[test]
#[ignore = "takes ten seconds: make test-long"]
fn a_client_that_sends_a_byte_now_and_then_is_cut_off() {
    let serving = Serving::start(&[]);
    let mut slow = TcpStream::connect(serving.address).unwrap();
    let began = Instant::now();
    let words = b"GET /metrics HTTP/1.1\r\nX: "
        .iter()
        .chain(std::iter::repeat(&b'a'));
    for byte in words {
        if slow.write_all(&[*byte]).is_err() {
            break;
        }
        assert!(began.elapsed() < Duration::from_secs(30));
        thread::sleep(Duration::from_millis(100));
    }
    // Ten seconds, and what a busy machine adds.
    assert!(began.elapsed() > Duration::from_secs(9));
    serving.end();
}

#[test]
fn an_address_that_is_taken_is_an_error_at_once() {
    require_root();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let words = ["-p", "1", "--listen", &address];
    let output = Command::new(MEMLEAK).args(words).output().unwrap();
    assert_eq!(output.status.code(), Some(125));
    let said = String::from_utf8(output.stderr).unwrap();
    let expected = format!("memleak: cannot listen on {address} (--listen): ");
    assert!(
        said.starts_with(&expected) && said.lines().count() == 1,
        "{said}"
    );
}

#[test]
fn a_prometheus_scrapes_what_memleak_serves() {
    let child = fixture("holds_blocks").display().to_string();
    let script = r#"echo "ready $$"; while read -r; do "$0" 2 50; echo more; done"#;
    let target = Waiting::start(Command::new("bash").args(["-c", script, &child]));
    let mut serving = Serving::of(target, &[]);
    assert_eq!(serving.target.ask(), "more\n");
    let directory = TempDir::new().unwrap();
    let config = directory.path().join("prometheus.yml");
    let target = serving.address;
    let jobs = format!(
        "global: {{scrape_interval: 200ms, scrape_timeout: 200ms}}\nscrape_configs:\n- job_name: memleak\n  \
         static_configs: [{{targets: ['{target}']}}]\n"
    );
    fs::write(&config, jobs).unwrap();
    let address = free_address();
    let _prometheus = Server::start(Command::new("prometheus").args([
        format!("--config.file={}", config.display()),
        format!(
            "--storage.tsdb.path={}",
            directory.path().join("data").display()
        ),
        format!("--web.listen-address={address}"),
    ]));
    for (query, value) in [
        (
            "memleak_leaked_bytes_total{comm=%22holds_blocks%22}",
            r#","100"]"#,
        ),
        ("sum(memleak_leaked_blocks_total)", r#","2"]"#),
        ("memleak_live_bytes{comm=%22holds_blocks%22}", r#","0"]"#),
        (
            "memleak_process_leaked_bytes_bucket{comm=%22holds_blocks%22,le=%221000.0%22}",
            r#","1"]"#,
        ),
        ("memleak_build_info", r#","1"]"#),
    ] {
        let path = format!("/api/v1/query?query={query}");
        until(address, &path, |answer| answer.contains(value));
    }
    serving.end();
}
