//! The command lines of images, if they were asked for. `bpf/args.bpf.h` records them.

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use libbpf_rs::{MapCore, MapFlags};

use crate::kernel::object::Object;
use crate::kernel::records::command_line_from_bytes;
use crate::model::image::{CommandLine, From, Image};
use crate::os::clock::{Clock, monotonic};
use crate::os::processes;

/// How many images with a command line can run at one time. Each takes a kilobyte while it runs.
pub(super) const MOST: u32 = 65_536;

/// Gives images their command lines.
pub(super) struct Args {
    wanted: bool,
    /// Those of processes that ran before memleak, by pid, with the programs that the processes ran.
    running: HashMap<u32, (PathBuf, CommandLine)>,
    /// When these were read, by CLOCK_MONOTONIC. A later process may have the pid of an ended one.
    read: Duration,
}

impl Args {
    /// `wanted`: command lines were asked for.
    pub(super) fn new(wanted: bool) -> Self {
        Self {
            wanted,
            running: HashMap::new(),
            read: Duration::ZERO,
        }
    }

    /// Reads the command lines of the processes that run already. The kernel side does not see these.
    pub(super) fn read_running(&mut self) {
        // /proc must show the pids that rows have.
        if !self.wanted || processes::levels_of_proc_above() > 0 {
            return;
        }
        self.read = monotonic();
        for pid in processes::all().unwrap_or_default() {
            // A process that has ended meanwhile has none.
            let program = fs::read_link(format!("/proc/{pid}/exe"));
            if let (Ok(program), Ok(words)) = (program, fs::read(format!("/proc/{pid}/cmdline"))) {
                let line = CommandLine::of_bytes(&words, false);
                self.running.insert(pid, (program, line));
            }
        }
    }

    /// Adds an image's command line to it. `is_over`: nobody will ask again.
    pub(super) fn add(
        &self,
        object: &Object,
        clock: Clock,
        heap: u64,
        image: &mut Image,
        is_over: bool,
    ) {
        if !self.wanted {
            return;
        }
        let map = object.command_lines();
        let key = heap.to_ne_bytes();
        let bytes = map.lookup(&key, MapFlags::ANY).ok().flatten();
        image.args = bytes.as_deref().and_then(command_line_from_bytes);
        if image.args.is_none() && image.from == From::Attach {
            let line = self.running.get(&image.pid).filter(|(program, _)| {
                image.exe.as_ref() == Some(program) && image.start_time <= clock.unix(self.read)
            });
            image.args = line.map(|(_, line)| line.clone());
        }
        if is_over && bytes.is_some() {
            // It exists.
            let _ = map.delete(&key);
        }
    }
}
