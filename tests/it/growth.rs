//! Which of several processes memleak says to grow in the long run, in minutes of their real lives.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use tempfile::TempDir;

use crate::common::files;
use crate::common::fixture;
use crate::common::root::require_root;
use crate::common::scrape::{Server, free_address, get, sample, until};
use crate::common::watch::Waiting;

/// What each program does, as the fixture names it. A program has the name of what it does.
const PROGRAMS: [&str; 3] = ["leak", "cache", "sawtooth"];
const LEAKER: &str = "leak";

/// How long the processes are watched.
const WATCHED: Duration = Duration::from_secs(11 * 60);
/// When a leak must have been named at the latest.
const NAMED_WITHIN: f64 = 600.0;
/// What is said of a leak of 1 MB an hour.
const RATES: std::ops::RangeInclusive<f64> = 0.7e6..=1.3e6;

/// What was said of a process at a moment: the seconds since the beginning, what it held in megabytes, and by how many
/// bytes an hour it grows, if that is known.
#[derive(Clone, Copy, Debug)]
struct Told {
    seconds: f64,
    held: f64,
    rate: Option<f64>,
}

/// What was said of each program, in the order of time.
type Story = BTreeMap<String, Vec<Told>>;

/// What the records of the running processes say.
fn told_by_json(json: &str) -> Story {
    let mut story = Story::new();
    let mut began = None;
    for line in json.lines() {
        let row: serde_json::Value = serde_json::from_str(line).expect("a line of JSON");
        if row["end"] != "running" {
            continue;
        }
        let time = row["end_time"].as_f64().expect("a time");
        let told = Told {
            seconds: time - *began.get_or_insert(time),
            held: row["leaked_bytes"].as_f64().expect("a number") / 1e6,
            rate: row["growth_bytes_per_hour"].as_f64(),
        };
        let comm = row["comm"].as_str().expect("a name").to_owned();
        story.entry(comm).or_default().push(told);
    }
    story
}

/// What the points of InfluxDB say: `memleak_live,comm=leak,user=root pid=7i,live_bytes=…i,… TIME`.
fn told_by_points(text: &str) -> Story {
    let mut story = Story::new();
    let mut began = None;
    for line in text.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let [series, fields, time] = words[..] else {
            panic!("{line}")
        };
        let time = time.parse::<f64>().expect("a time") / 1e9;
        let find = |pairs: &str, key: &str| {
            let mut pairs = pairs.split(',').filter_map(|pair| pair.split_once('='));
            let value = pairs.find(|(name, _)| *name == key)?.1;
            Some(value.trim_end_matches('i').to_owned())
        };
        let number = |key| find(fields, key).and_then(|value| value.parse::<f64>().ok());
        if series.starts_with("memleak_live,") {
            let told = Told {
                seconds: time - *began.get_or_insert(time),
                held: number("live_bytes").expect("a number") / 1e6,
                rate: number("growth_bytes_per_hour"),
            };
            let comm = find(series, "comm").expect("a name");
            story.entry(comm).or_default().push(told);
        }
    }
    story
}

/// What the tables say. A row is UID, USER, PID, COMM, TOTAL_ALLOCS_MB, LIVE_MB, GROWTH_MB, MB/h, AGE and NOTE.
fn told_by_tables(text: &str) -> Story {
    let mut story = Story::new();
    let (mut began, mut seconds) = (None, 0.0);
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        if line.contains("Memory Of Running Processes") {
            let time: f64 = words[0].trim_matches(['[', ']']).parse().expect("a time");
            seconds = time - *began.get_or_insert(time);
        }
        // Processes that have ended have shorter rows.
        if words.len() > 8 && PROGRAMS.contains(&words[3]) {
            let told = Told {
                seconds,
                held: words[5].parse().expect("megabytes"),
                rate: words[7].parse().ok().map(|rate: f64| rate * 1e6),
            };
            story.entry(words[3].to_owned()).or_default().push(told);
        }
    }
    story
}

/// Fails unless the leak is named within ten minutes and from then on, and nothing else ever is.
#[track_caller]
fn assert_only_the_leak_is_named(by: &str, story: &Story) {
    assert_eq!(story.len(), PROGRAMS.len(), "{by}: {story:?}");
    for (program, told) in story {
        let last = told.last().expect("something was said");
        assert!(last.seconds > NAMED_WITHIN, "{by}, {program}: {last:?}");
        let named = told.iter().find(|told| told.rate > Some(0.0));
        let known = told.iter().find(|told| told.rate.is_some());
        let since = known.map(|told| told.seconds);
        println!(
            "{by}: {program} has a rate from {:.0} s on, and is named {}",
            since.expect("a rate"),
            named.map_or("never".to_owned(), |told| format!(
                "at {:.0} s",
                told.seconds
            ))
        );
        match program == LEAKER {
            false => assert!(named.is_none(), "{by}, {program}: {named:?}"),
            true => {
                let late = |told: &&Told| told.seconds >= NAMED_WITHIN;
                for told in told.iter().filter(late) {
                    let rate = told.rate.expect("a rate");
                    assert!(RATES.contains(&rate), "{by}: {told:?}");
                }
            }
        }
    }
}

#[test]
#[ignore = "takes eleven minutes: make test-long"]
fn of_a_leak_a_cache_and_a_sawtooth_only_the_leak_is_named_within_ten_minutes() {
    require_root();
    let directory = TempDir::new().unwrap();
    let processes = PROGRAMS.map(|name| {
        let program = directory.path().join(name);
        files::copy(fixture("grows_over_minutes"), &program);
        Waiting::start(Command::new(program).arg(name))
    });
    let pids = processes
        .each_ref()
        .map(|process| process.pid().to_string());
    let [json, table, points] =
        ["report.json", "table", "points"].map(|name| directory.path().join(name));
    let address = free_address();
    let mut memleak = Server::start(
        Command::new(env!("CARGO_BIN_EXE_memleak"))
            .args(["-p", &pids.join(","), "5", "--live", "-q", "--listen"])
            .arg(address.to_string())
            .arg("-o")
            .arg(&json)
            .arg("-o")
            .arg(format!("table={}", table.display()))
            .arg("-o")
            .arg(format!("influx={}", points.display())),
    );
    until(address, "/healthz", |_| true);
    let began = Instant::now();
    let mut gauge = Story::new();
    while began.elapsed() < WATCHED {
        let (_, page) = get(address, "/metrics", "").expect("memleak answers");
        for program in PROGRAMS {
            let of = |name| {
                sample(
                    &page,
                    &format!("{name}{{comm=\"{program}\",user=\"root\"}}"),
                )
            };
            let told = Told {
                seconds: began.elapsed().as_secs_f64(),
                held: of("memleak_live_bytes").unwrap_or(0.0) / 1e6,
                rate: of("memleak_growth_bytes_per_second").map(|rate| rate * 3600.0),
            };
            gauge.entry(program.to_owned()).or_default().push(told);
        }
        sleep(Duration::from_secs(5));
    }
    // SIGINT may be ignored here, as in what a script has put into the background.
    kill(memleak.pid(), Signal::SIGTERM).expect("memleak runs");
    assert!(memleak.wait().success());
    drop(processes);

    println!("   second   leak MB    MB/h  cache MB    MB/h  sawtooth MB    MB/h");
    let every = gauge[LEAKER].len().div_ceil(12);
    for at in (0..gauge[LEAKER].len()).step_by(every) {
        let rate = |told: Told| match told.rate {
            Some(rate) => format!("{:.2}", rate / 1e6),
            None => "\u{2013}".to_owned(),
        };
        let [leak, cache, saw] = PROGRAMS.map(|program| gauge[program][at]);
        println!(
            "{:9.0} {:9.3} {:>7} {:9.3} {:>7} {:12.3} {:>7}",
            leak.seconds,
            leak.held,
            rate(leak),
            cache.held,
            rate(cache),
            saw.held,
            rate(saw)
        );
    }
    let read = |path| fs::read_to_string(path).expect("a report");
    assert_only_the_leak_is_named("the gauge", &gauge);
    assert_only_the_leak_is_named("JSON", &told_by_json(&read(json)));
    assert_only_the_leak_is_named("InfluxDB", &told_by_points(&read(points)));
    assert_only_the_leak_is_named("the table", &told_by_tables(&read(table)));
}
