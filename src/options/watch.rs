//! The options of `memleak -p` and `memleak -a`.

use std::net::{Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, ValueHint};

use crate::kernel::settings::{LabelName, Reads, Recorded, StackSettings};
use crate::model::limits::Limits;
use crate::model::scan::ScanWanted;
use crate::options::lost::LostArgs;
use crate::options::stacks::{StackArgs, StacksWhen};
use crate::options::{DEFAULT_PLACES, Probing, ReportArgs, ShownArgs};
use crate::report::Format;
use crate::text::globs::CommGlob;
use crate::text::units::{parse_seconds, parse_size};

/// How many running processes `--live` shows by default.
pub const DEFAULT_TOP: usize = 20;

/// The options of `memleak -p` and `memleak -a`.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct Watch {
    /// Watch this process and its children, those that run already and those to come, and all that they start; several:
    /// -p 1,2 or -p 1 -p 2
    #[arg(
        short,
        long,
        value_name = "PID",
        value_delimiter = ',',
        conflicts_with = "all"
    )]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=i64::from(i32::MAX)))]
    pub pid: Vec<u32>,

    /// Watch every process of the machine except memleak, including those that start later
    #[arg(short, long)]
    pub all: bool,

    /// Seconds from one report to the next [default: 5]
    #[arg(value_name = "INTERVAL", value_parser = parse_interval)]
    pub interval: Option<Interval>,

    /// Watch only the processes of -p, not those that they have started or will start
    #[arg(long, conflicts_with = "all")]
    pub no_children: bool,

    /// Each interval, also report the running processes: the memory that they hold, and its growth
    #[arg(long)]
    pub live: bool,

    /// Of the running processes, show where they hold blocks that are at least so old
    ///
    /// Implies --stacks. Memory that a process needs for one task only is soon freed. What it leaks grows old.
    #[arg(long, value_name = "SECONDS", requires = "live")]
    #[arg(value_parser = parse_age, hide_short_help = true)]
    pub older: Option<Duration>,

    /// How many running processes to report, those that grew most [default: 20], and with --stacks how many places of
    /// each interval, where most leaked [default: 10]
    #[arg(long, value_name = "N")]
    pub top: Option<usize>,

    #[command(flatten)]
    pub probing: Probing,

    #[command(flatten)]
    pub lost: LostArgs,

    #[command(flatten)]
    pub stacks: StackArgs,

    #[command(flatten)]
    pub filters: Filters,

    #[command(flatten)]
    pub shown: ShownArgs,

    /// Show command lines
    ///
    /// In a column, and in JSON and CSV. Command lines may hold secrets. Of a long one, the first 1,023 bytes are kept.
    #[arg(long)]
    pub args: bool,

    /// Record this variable of each process's environment
    ///
    /// As it was when the process executed its program, in JSON, CSV and the cases of junit: VAR may be the variable in which
    /// a test runner names the test. Of its value, the first 511 bytes are kept. May be given four times.
    #[arg(long, value_name = "VAR", hide_short_help = true)]
    pub label_env: Vec<LabelName>,

    #[command(flatten)]
    pub report: ReportArgs,

    /// Put a report file aside at SIZE
    ///
    /// FILE of -o becomes FILE.1 then, and FILE.1 becomes FILE.2, up to FILE.4. Only for json and influx.
    #[arg(long, value_name = "SIZE", value_parser = parse_size, help_heading = "Output")]
    pub rotate: Option<u64>,

    /// Serve metrics at this address
    ///
    /// Over HTTP, for Prometheus: /metrics, in the text format or OpenMetrics, and /healthz. Without ADDR only on this
    /// machine (127.0.0.1).
    #[arg(long, value_name = "[ADDR:]PORT", value_parser = parse_listen)]
    #[arg(help_heading = "Output")]
    pub listen: Option<SocketAddr>,
}

impl Watch {
    /// The time from one report to the next.
    pub fn every(&self) -> Duration {
        self.interval
            .map_or(DEFAULT_INTERVAL, |interval| interval.time)
    }

    /// Which processes are to be scanned at their ends: only if asked for, as they belong to others.
    pub fn scan_wanted(&self) -> ScanWanted {
        self.lost.wanted(false, Limits::default())
    }

    /// How many running processes are shown.
    pub fn top_processes(&self) -> usize {
        self.top.unwrap_or(DEFAULT_TOP)
    }

    /// How many places in programs are shown.
    pub fn top_places(&self) -> usize {
        self.top.unwrap_or(DEFAULT_PLACES)
    }

    /// What the kernel side records.
    pub fn recorded(&self) -> Recorded {
        let switches = self.probing.test.switches();
        Recorded {
            args: self.args,
            labels: self.label_env.clone(),
            reads: Reads {
                unseen: self.scan_wanted(),
                elsewhere: self.scan_wanted(),
                timeout: self.lost.lost_timeout,
                delay: switches.read_delay,
            },
            stacks: match self.older {
                None => self.stacks.wanted(false, &switches),
                Some(_) => self
                    .stacks
                    .wanted(true, &switches)
                    .map(|stacks| StackSettings {
                        required: true,
                        older: self.older,
                        ..stacks
                    }),
            },
        }
    }

    /// An option that cannot have an effect, because no call stacks are to be recorded.
    pub fn without_stacks(&self) -> Option<&'static str> {
        let is_off = self.stacks.stacks == StacksWhen::Never;
        let older = (is_off && self.older.is_some()).then_some("--older");
        older.or_else(|| self.stacks.without_effect())
    }

    /// Whether `--rotate` has no file that it could put aside.
    pub fn rotates_nothing(&self) -> bool {
        let rotates = |(format, file): &(Format, Option<&Path>)| format.rotates() && file.is_some();
        self.rotate.is_some() && !self.report.outputs().iter().any(rotates)
    }

    /// The command line in short, as `memleak -p 1234 5`.
    pub fn in_short(&self) -> String {
        let watched = match &self.pid[..] {
            [] => "-a".to_owned(),
            [one] => format!("-p {one}"),
            [one, ..] => format!("-p {one},\u{2026}"),
        };
        format!("memleak {watched} {}", self.every().as_secs_f64())
    }
}

/// Which processes are watched.
#[derive(Clone, Debug, Default, PartialEq, Eq, Args)]
#[command(next_help_heading = "Filters")]
pub struct Filters {
    /// Only processes with this real user id; several: --uid 1,2 or --uid 1 --uid 2
    #[arg(long, value_name = "UID", value_delimiter = ',', value_parser = parse_uid)]
    pub uid: Vec<u32>,

    /// Only processes of this user; may be repeated
    #[arg(long, value_name = "NAME", value_delimiter = ',', value_hint = ValueHint::Username)]
    pub user_name: Vec<String>,

    /// Only processes whose command name matches (!GLOB: does not match); may be repeated
    #[arg(long, value_name = "GLOB")]
    pub comm: Vec<CommGlob>,

    /// Only processes in this control group (version 2) and those below it; may be repeated
    #[arg(long, value_name = "PATH", value_hint = ValueHint::DirPath)]
    pub cgroup: Vec<PathBuf>,

    /// Report only processes that hold or leak at least SIZE
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub min_leak: Option<u64>,
}

/// The time from one report to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interval {
    pub time: Duration,
    /// The word as a pid, if it could be one. `-p 1 2` may be meant as two processes.
    pub pid: Option<u32>,
}

/// The time from one report to the next, if none is given.
const DEFAULT_INTERVAL: Duration = Duration::from_secs(5);

/// The shortest and the longest time from one report to the next.
const INTERVALS: RangeInclusive<Duration> =
    Duration::from_millis(100)..=Duration::from_secs(86_400);

fn parse_uid(text: &str) -> Result<u32, String> {
    let why = |_| "it is a numeric user id (--user-name takes a name)".to_owned();
    text.parse().map_err(why)
}

/// An address and a port, or only a port, which is then for this machine alone.
fn parse_listen(text: &str) -> Result<SocketAddr, String> {
    let mut prefixes = ["localhost:", ":"].iter();
    let only_port = prefixes.find_map(|prefix| text.strip_prefix(prefix));
    if let Ok(port) = only_port.unwrap_or(text).parse() {
        return Ok((Ipv4Addr::LOCALHOST, port).into());
    }
    let why = "it is a port, or an address and a port (127.0.0.1:9464, 0.0.0.0:9464, [::]:9464)";
    text.parse().map_err(|_| why.to_owned())
}

fn parse_interval(text: &str) -> Result<Interval, String> {
    let time = parse_seconds(text)?;
    if INTERVALS.contains(&time) {
        let pid = text.parse().ok();
        Ok(Interval { time, pid })
    } else {
        Err("it is a number of seconds from 0.1 to 86400".to_owned())
    }
}

fn parse_age(text: &str) -> Result<Duration, String> {
    let age = parse_seconds(text)?;
    match age > Duration::ZERO && age <= *INTERVALS.end() {
        true => Ok(age),
        false => Err("it is a number of seconds, more than 0 and at most 86400".to_owned()),
    }
}
