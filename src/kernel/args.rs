//! The command lines of images, if they were asked for. `bpf/args.bpf.h` records them.

use std::collections::HashMap;
use std::fs;

use libbpf_rs::{MapCore, MapFlags};

use crate::kernel::object::Object;
use crate::kernel::records::command_line_from_bytes;
use crate::model::image::{CommandLine, From, Image};
use crate::os::processes;

/// How many images with a command line can run at one time. Each takes a kilobyte while it runs.
pub(super) const MOST: u32 = 65_536;

/// Gives images their command lines.
#[derive(Default)]
pub(super) struct Args {
    pub(super) wanted: bool,
    /// Those of processes that ran before memleak, by pid.
    pub(super) running: HashMap<u32, CommandLine>,
}

impl Args {
    /// Reads the command lines of the processes that run already. The kernel side does not see these.
    pub(super) fn read_running(&mut self) {
        if !self.wanted {
            return;
        }
        for pid in processes::all().unwrap_or_default() {
            // A process that has ended meanwhile has none.
            if let Ok(words) = fs::read(format!("/proc/{pid}/cmdline")) {
                self.running
                    .insert(pid, CommandLine::of_bytes(&words, false));
            }
        }
    }

    /// Adds an image's command line to it. `is_over`: nobody will ask again.
    pub(super) fn add(&self, object: &Object, heap: u64, image: &mut Image, is_over: bool) {
        if !self.wanted {
            return;
        }
        let map = object.command_lines();
        let key = heap.to_ne_bytes();
        let bytes = map.lookup(&key, MapFlags::ANY).ok().flatten();
        image.args = bytes.as_deref().and_then(command_line_from_bytes);
        if image.args.is_none() && image.from == From::Attach {
            image.args = self.running.get(&image.pid).cloned();
        }
        if is_over && bytes.is_some() {
            // It exists.
            let _ = map.delete(&key);
        }
    }
}
