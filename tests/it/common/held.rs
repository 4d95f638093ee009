//! Runs programs that stop before their last system call, and copies their memory there. Their live blocks come from a
//! recorder (`tests/holder/`), so no BPF is needed. Here processes are stopped by ptrace(2), which memleak never uses.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::ops::Range;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use memleak::lost::{Block, Budget, Buffers, Copied, Snapshot, Thread, Unread};
use nix::unistd::Pid;

/// A process that was stopped before its last system call.
#[derive(Debug)]
pub struct Held {
    /// The process has executed no program of its own.
    pub is_fork: bool,
    pub memory: Result<Snapshot, Unread>,
    /// Its live blocks, without those that it inherited.
    pub blocks: Vec<Block>,
}

/// Runs a command to the end, with all its processes. `holder` and `recorder` are built from `tests/holder/`. A static
/// program has a recorder of its own. The command's output is dropped.
pub fn run(
    command: &[impl AsRef<std::ffi::OsStr>],
    holder: &Path,
    recorder: Option<&Path>,
) -> Vec<Held> {
    let directory = tempfile::tempdir().expect("a directory for the recorder");
    let mut launched = Command::new(holder);
    launched
        .args(command)
        .env("RECORDER_DIR", directory.path())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    if let Some(recorder) = recorder {
        launched.env("LD_PRELOAD", recorder);
    }
    launched.process_group(0);
    #[expect(clippy::zombie_processes, reason = "the tracer waits for it")]
    let child = launched.spawn().expect("the holder starts");
    let mut tracer = Tracer {
        tasks: BTreeSet::new(),
        buffers: Buffers::default(),
        directory: directory.path(),
        held: Vec::new(),
    };
    tracer.trace(child.id().try_into().expect("a pid"));
    tracer.held
}

struct Tracer<'a> {
    /// The threads of all processes.
    tasks: BTreeSet<i32>,
    buffers: Buffers,
    directory: &'a Path,
    held: Vec<Held>,
}

/// What a task's status says.
enum Change {
    Ended,
    /// With the signal, and the event in the upper half.
    Stopped(i32),
}

fn ptrace(request: libc::c_uint, task: i32, data: usize) -> bool {
    // SAFETY: none of the requests that are used so writes to memory of this process.
    unsafe { libc::ptrace(request, task, 0_usize, data) == 0 }
}

/// Waits for a task, or for any task with -1. Only tasks that this thread traces are seen.
fn wait(task: i32) -> Option<(i32, Change)> {
    let mut status = 0;
    let flags = libc::__WALL | libc::__WNOTHREAD | libc::WUNTRACED;
    let found = loop {
        // SAFETY: the status is a variable of this function.
        let found = unsafe { libc::waitpid(task, &raw mut status, flags) };
        if found >= 0 || io::Error::last_os_error().raw_os_error() != Some(libc::EINTR) {
            break found;
        }
    };
    let change = match libc::WIFSTOPPED(status) {
        true => Change::Stopped(status >> 8),
        false => Change::Ended,
    };
    (found > 0).then_some((found, change))
}

const STOP: i32 = libc::PTRACE_EVENT_STOP;

impl Tracer<'_> {
    fn trace(&mut self, first: i32) {
        // The holder stops itself.
        assert!(matches!(wait(first), Some((_, Change::Stopped(_)))));
        let options = libc::PTRACE_O_EXITKILL
            | libc::PTRACE_O_TRACESECCOMP
            | libc::PTRACE_O_TRACEFORK
            | libc::PTRACE_O_TRACEVFORK
            | libc::PTRACE_O_TRACECLONE
            | libc::PTRACE_O_TRACEEXEC;
        assert!(
            ptrace(libc::PTRACE_SEIZE, first, options as usize),
            "{}",
            io::Error::last_os_error()
        );
        self.tasks.insert(first);
        // SAFETY: the child was started here, and has not been waited for.
        unsafe { libc::kill(first, libc::SIGCONT) };
        while !self.tasks.is_empty() {
            let Some((task, change)) = wait(-1) else {
                break;
            };
            match change {
                Change::Ended => {
                    self.tasks.remove(&task);
                }
                Change::Stopped(status) => self.stopped(task, status),
            }
        }
    }

    fn stopped(&mut self, task: i32, status: i32) {
        self.tasks.insert(task);
        let (signal, event) = (status & 0xff, status >> 8);
        match event {
            0 => ptrace(libc::PTRACE_CONT, task, signal as usize),
            STOP if signal != libc::SIGTRAP => ptrace(libc::PTRACE_LISTEN, task, 0),
            libc::PTRACE_EVENT_SECCOMP => {
                self.hold(task);
                ptrace(libc::PTRACE_CONT, task, 0)
            }
            _ => ptrace(libc::PTRACE_CONT, task, 0),
        };
    }

    /// A process is about to end.
    fn hold(&mut self, task: i32) {
        let status = fs::read_to_string(format!("/proc/{task}/status")).unwrap_or_default();
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.unwrap_or_default().trim().to_owned()
        };
        let pid: i32 = field("Tgid:").parse().expect("a process of its own");
        let (others, waiting) = self.stop_others(pid, task);
        let mut threads: Vec<_> = [task]
            .iter()
            .chain(&others)
            .filter_map(|&task| thread(task))
            .collect();
        // The functions that end a process put nothing on the stack.
        if let Some(thread) = threads.first_mut() {
            thread.at_end = true;
        }
        let budget = Budget {
            bytes: 8 << 30,
            deadline: Instant::now() + Duration::from_secs(20),
        };
        let read = || {
            let proc_tid = task.unsigned_abs();
            Snapshot::read(
                Pid::from_raw(task),
                proc_tid,
                &threads,
                &budget,
                &mut self.buffers,
            )
        };
        let mut memory = { read }();
        let table = Table::mapped(task, self.directory);
        if let (Ok(memory), Some(table)) = (&mut memory, &table) {
            leave_out(memory, table.addresses.clone());
        }
        self.held.push(Held {
            is_fork: table.as_ref().is_some_and(Table::is_of_fork),
            memory,
            blocks: table.as_ref().map(Table::blocks).unwrap_or_default(),
        });
        for (other, status) in waiting {
            match status {
                Some(status) => self.stopped(other, status),
                None => {
                    self.tasks.remove(&other);
                }
            }
        }
    }

    /// Stops the other threads of a process. Returns them, and what is to be done with each afterwards.
    fn stop_others(&mut self, pid: i32, task: i32) -> (Vec<i32>, Vec<(i32, Option<i32>)>) {
        let mut others = Vec::new();
        let mut waiting = Vec::new();
        let listed = fs::read_dir(format!("/proc/{pid}/task"))
            .into_iter()
            .flatten();
        for entry in listed.flatten() {
            let Ok(other) = entry.file_name().to_string_lossy().parse::<i32>() else {
                continue;
            };
            if other == task || !ptrace(libc::PTRACE_INTERRUPT, other, 0) {
                continue;
            }
            match wait(other) {
                Some((_, Change::Stopped(status))) => {
                    others.push(other);
                    waiting.push((other, Some(status)));
                }
                _ => waiting.push((other, None)),
            }
        }
        (others, waiting)
    }
}

/// The registers of a stopped thread.
fn thread(task: i32) -> Option<Thread> {
    // SAFETY: the structure consists of numbers.
    let mut registers: libc::user_regs_struct = unsafe { std::mem::zeroed() };
    // SAFETY: the request writes to this structure.
    let read =
        unsafe { libc::ptrace(libc::PTRACE_GETREGS, task, 0_usize, &raw mut registers) == 0 };
    let r = registers;
    read.then(|| Thread {
        registers: vec![
            r.rax, r.rbx, r.rcx, r.rdx, r.rsi, r.rdi, r.rbp, r.r8, r.r9, r.r10, r.r11, r.r12,
            r.r13, r.r14, r.r15,
        ],
        sp: r.rsp,
        tls: r.fs_base,
        at_end: false,
    })
}

/// The table of a recorder in a process.
struct Table {
    addresses: Range<u64>,
    file: PathBuf,
}

impl Table {
    /// Finds the table that a process has mapped.
    fn mapped(task: i32, directory: &Path) -> Option<Self> {
        let maps = fs::read_to_string(format!("/proc/{task}/maps")).ok()?;
        let line = maps
            .lines()
            .find(|line| line.contains(directory.to_str().expect("text")))?;
        let (addresses, _) = line.split_once(' ')?;
        let (start, end) = addresses.split_once('-')?;
        let number = |text| u64::from_str_radix(text, 16).expect("an address");
        Some(Self {
            addresses: number(start)..number(end),
            file: line[line.find('/')?..].into(),
        })
    }

    fn is_of_fork(&self) -> bool {
        self.file.extension().is_some_and(|kind| kind == "fork")
    }

    fn blocks(&self) -> Vec<Block> {
        let bytes = fs::read(&self.file).expect("the recorder's table");
        let words = bytes.chunks_exact(8);
        let words: Vec<u64> = words
            .map(|word| u64::from_ne_bytes(word.try_into().expect("eight bytes")))
            .collect();
        let places = words.chunks_exact(2).filter(|place| place[0] > 1);
        places
            .map(|place| Block {
                address: !place[0],
                size: place[1],
                stack: 0,
            })
            .collect()
    }
}

/// Takes a range out of a copy: without the recorder, it would not be there.
fn leave_out(memory: &mut Snapshot, range: Range<u64>) {
    let mut copies = Vec::new();
    for copy in &memory.copies {
        let before = Copied {
            end: copy.end.min(range.start),
            ..*copy
        };
        let start = copy.start.max(range.end);
        let behind = Copied {
            start,
            at: copy.at + (start.saturating_sub(copy.start) / 8) as usize,
            ..*copy
        };
        copies.extend(
            [before, behind]
                .into_iter()
                .filter(|copy| copy.start < copy.end),
        );
    }
    memory.copies = copies;
}
