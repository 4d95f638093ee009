//! The tools that are compared: whether each is installed, and how a command runs under it.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::floor;

/// Number of live blocks that the bpftrace script has room for. Its maps have a fixed size and are
/// allocated up front.
const BPFTRACE_MAP_KEYS: &str = "300000";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tool {
    /// The command without any tool.
    Bare,
    /// Empty BPF programs on memleak's own probes.
    Floor,
    Memleak,
    Valgrind,
    Heaptrack,
    Bpftrace,
}

impl Tool {
    pub const ALL: [Self; 6] = [
        Self::Bare,
        Self::Floor,
        Self::Memleak,
        Self::Valgrind,
        Self::Heaptrack,
        Self::Bpftrace,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Bare => "bare",
            Self::Floor => "floor",
            Self::Memleak => "memleak",
            Self::Valgrind => "valgrind",
            Self::Heaptrack => "heaptrack",
            Self::Bpftrace => "bpftrace",
        }
    }
}

/// The result of a run under a tool.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// Number of operations that the program reports: pairs, calls, blocks, processes.
    pub operations: u64,
    pub nanoseconds: u64,
}

impl Timing {
    pub fn each(self) -> f64 {
        self.nanoseconds as f64 / self.operations as f64
    }
}

/// memleak's options for probes on the system's files, and for those on private copies.
pub const SHARED: &str = "--probes=shared";
pub const PRIVATE: &str = "--probes=private";

/// Where each tool is, or why it is not measured.
pub struct Toolbox {
    pub memleak: PathBuf,
    pub directory: PathBuf,
    states: Vec<(Tool, State)>,
}

/// Whether a tool can be measured.
enum State {
    /// It can. The text is the version that the tool states.
    There(String),
    /// It cannot. The text is the reason.
    Missing(String),
}

impl Toolbox {
    pub fn find() -> Result<Self> {
        let memleak = std::env::var_os("MEMLEAK_BIN")
            .unwrap_or_else(|| env!("CARGO_BIN_EXE_memleak").into())
            .into();
        let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
        std::fs::create_dir_all(&directory)
            .with_context(|| format!("cannot make {}", directory.display()))?;
        let mut toolbox = Self {
            memleak,
            directory,
            states: Vec::new(),
        };
        toolbox.states = Tool::ALL
            .map(|tool| (tool, toolbox.look_for(tool)))
            .into_iter()
            .collect();
        if !toolbox.has(Tool::Memleak) {
            bail!("memleak is {}", toolbox.state(Tool::Memleak));
        }
        Ok(toolbox)
    }

    pub fn has(&self, tool: Tool) -> bool {
        matches!(self.lookup(tool), State::There(_))
    }

    /// The version of a tool, or why it is not measured, as text for the user.
    pub fn state(&self, tool: Tool) -> &str {
        match self.lookup(tool) {
            State::There(text) | State::Missing(text) => text,
        }
    }

    fn lookup(&self, tool: Tool) -> &State {
        self.states
            .iter()
            .find_map(|(found, state)| (*found == tool).then_some(state))
            .expect("every tool was looked for")
    }

    fn look_for(&self, tool: Tool) -> State {
        match tool {
            Tool::Bare => State::There("the command without any tool".to_owned()),
            Tool::Floor => self.try_on_true(tool, "empty programs at memleak's places"),
            Tool::Memleak => self.try_on_true(tool, "built from this tree"),
            Tool::Valgrind => version("valgrind"),
            Tool::Heaptrack => version("heaptrack"),
            Tool::Bpftrace => version("bpftrace"),
        }
    }

    /// Whether `true` runs under a tool.
    fn try_on_true(&self, tool: Tool, what: &str) -> State {
        let line = match self.wrap(tool, &["true".into()]) {
            Ok(line) => line,
            Err(error) => return State::Missing(format!("{error:#}")),
        };
        let output = Command::new(&line[0])
            .args(&line[1..])
            .stdin(Stdio::null())
            .output();
        match output {
            Ok(output) if output.status.success() => State::There(what.to_owned()),
            Ok(output) => State::Missing(format!(
                "not available: `{}` ended with {}: {}",
                line.join(OsStr::new(" ")).display(),
                output.status,
                first_line(&output.stderr),
            )),
            Err(error) => State::Missing(format!("{}: {error}", line[0].display())),
        }
    }

    /// The path of memleak's report when the benchmark runs a command under memleak.
    pub fn report(&self) -> PathBuf {
        self.directory.join("report.json")
    }

    /// The command line that runs `command` under `tool`.
    pub fn wrap(&self, tool: Tool, command: &[OsString]) -> Result<Vec<OsString>> {
        let mut line: Vec<OsString> = Vec::new();
        match tool {
            Tool::Bare => {}
            Tool::Floor => {
                let own = std::env::current_exe().context("this program has no path")?;
                line.extend([own.into(), floor::WORD.into()]);
            }
            Tool::Memleak => line = self.memleak_run(&[SHARED]),
            Tool::Valgrind => line.extend(
                [
                    "valgrind",
                    "--trace-children=yes",
                    "--leak-check=summary",
                    "--log-file=/dev/null",
                ]
                .map(OsString::from),
            ),
            Tool::Heaptrack => {
                line.extend(["heaptrack", "-o"].map(OsString::from));
                line.push(self.directory.join("heaptrack").into());
            }
            Tool::Bpftrace => {
                // Runs in a mount namespace of its own. The script's tracepoint needs tracefs, which
                // may not be mounted, and a benchmark must not mount it for good.
                line.extend(
                    [
                        "unshare",
                        "--mount",
                        "sh",
                        "-c",
                        "[ -e /sys/kernel/tracing/uprobe_events ] || \
                         mount -t tracefs tracefs /sys/kernel/tracing; exec bpftrace -c \"$0\" \"$1\"",
                    ]
                    .map(OsString::from),
                );
                line.push(command.join(OsStr::new(" ")));
                line.push(self.bpftrace_script()?.into());
                return Ok(line);
            }
        }
        line.extend_from_slice(command);
        Ok(line)
    }

    /// The beginning of a command line that runs a command under memleak, with options.
    pub fn memleak_run(&self, options: &[&str]) -> Vec<OsString> {
        let mut line: Vec<OsString> = vec![self.memleak.clone().into(), "run".into()];
        line.extend(options.iter().map(OsString::from));
        line.extend(["--format", "json", "-o"].map(OsString::from));
        line.push(self.report().into());
        line.push("--".into());
        line
    }

    /// The committed script, with the path of the libc that programs on this machine use.
    fn bpftrace_script(&self) -> Result<PathBuf> {
        const SCRIPT: &str = include_str!("../leak.bt");
        const NAMED: &str = "/lib/x86_64-linux-gnu/libc.so.6";
        let path = self.directory.join("leak.bt");
        std::fs::write(&path, SCRIPT.replace(NAMED, &own_libc()?))
            .with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }

    /// Runs a command that prints `bench: OPERATIONS NANOSECONDS` under a tool.
    pub fn run(&self, tool: Tool, command: &[OsString]) -> Result<Timing> {
        let output = output_of(&self.wrap(tool, command)?)?;
        let text = String::from_utf8_lossy(&output.stdout);
        if tool == Tool::Bpftrace && !text.lines().any(|line| line.starts_with("leak: ")) {
            bail!("bpftrace counted nothing: {}", first_line(&output.stderr));
        }
        timing_of(&output)
    }

    /// The same under memleak, with an option.
    pub fn run_under_memleak(&self, option: &str, command: &[OsString]) -> Result<Timing> {
        let mut line = self.memleak_run(&[option]);
        line.extend_from_slice(command);
        timing_of(&output_of(&line)?)
    }

    /// Number of allocations in memleak's last report, over all images. Fails if the report is not
    /// complete.
    pub fn reported_allocations(&self) -> Result<u64> {
        let path = self.report();
        let text = std::fs::read_to_string(&path)
            .with_context(|| format!("no report in {}", path.display()))?;
        let mut allocations = 0;
        let mut complete = None;
        for line in text.lines() {
            let record: Value = serde_json::from_str(line).context("a report line is not JSON")?;
            match record["type"].as_str() {
                Some("process") => allocations += record["alloc_count"].as_u64().unwrap_or(0),
                Some("summary") => complete = record["complete"].as_bool(),
                _ => {}
            }
        }
        match complete {
            Some(true) => Ok(allocations),
            Some(false) => bail!("the report is not complete"),
            None => bail!("the report has no summary"),
        }
    }
}

/// Runs a command line to its end, with nothing on its standard input.
pub fn output_of(line: &[OsString]) -> Result<Output> {
    let (program, arguments) = line.split_first().context("an empty command line")?;
    Command::new(program)
        .args(arguments)
        .env("PYTHONMALLOC", "malloc")
        // bpftrace 0.20 changed the name. Each version knows one of the two.
        .env("BPFTRACE_MAP_KEYS_MAX", BPFTRACE_MAP_KEYS)
        .env("BPFTRACE_MAX_MAP_KEYS", BPFTRACE_MAP_KEYS)
        // Under `make bench`, the make of a workload would otherwise share the jobs of the outer make.
        .env_remove("MAKEFLAGS")
        .env_remove("MAKELEVEL")
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {}", program.display()))
}

pub fn timing_of(output: &Output) -> Result<Timing> {
    let text = String::from_utf8_lossy(&output.stdout);
    match text.lines().find_map(parse) {
        Some(timing) if output.status.success() => Ok(timing),
        Some(_) => bail!("{}: {}", output.status, first_line(&output.stderr)),
        None => bail!(
            "{}, no `bench:` line: {}",
            output.status,
            first_line(&output.stderr)
        ),
    }
}

fn parse(line: &str) -> Option<Timing> {
    let mut words = line.strip_prefix("bench: ")?.split(' ');
    Some(Timing {
        operations: words.next()?.parse().ok().filter(|&number| number > 0)?,
        nanoseconds: words.next()?.parse().ok()?,
    })
}

pub fn first_line(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    text.lines().next().unwrap_or("no message").to_owned()
}

fn version(program: &str) -> State {
    match Command::new(program).arg("--version").output() {
        Ok(output) => State::There(first_line(&output.stdout)),
        Err(_) => State::Missing("not installed".to_owned()),
    }
}

/// The path of the libc that this process has mapped. The workloads load the same one.
pub fn own_libc() -> Result<String> {
    let maps = std::fs::read_to_string("/proc/self/maps").context("cannot read /proc/self/maps")?;
    maps.lines()
        .filter_map(|line| line.split_ascii_whitespace().nth(5))
        .find(|path| {
            Path::new(path)
                .file_name()
                .is_some_and(|name| name == "libc.so.6")
        })
        .map(str::to_owned)
        .context("this process has no libc.so.6 mapped")
}
