//! The command lines of images and variables of their environments, if they were asked for. `bpf/args.bpf.h` and
//! `bpf/labels.bpf.h` record them.

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use libbpf_rs::{MapCore, MapFlags, MapMut};

use crate::kernel::object::Object;
use crate::kernel::records::{command_line_from_bytes, labels_from_bytes};
use crate::kernel::settings::LabelName;
use crate::model::image::{CommandLine, From, Image, Labels};
use crate::os::clock::{Clock, monotonic};
use crate::os::processes;

/// How many images with a command line or labels can run at one time. Each takes a kilobyte for its command line and two
/// for its labels while it runs.
pub(super) const MOST: u32 = 65_536;

/// Gives images their command lines and labels.
pub(super) struct Args {
    /// Whether command lines are wanted.
    wanted: bool,
    /// The labels that are wanted.
    labels: Vec<LabelName>,
    /// The processes that ran before memleak, by pid.
    running: HashMap<u32, Before>,
    /// When these were read, by CLOCK_MONOTONIC. A later process may have the pid of an ended one.
    read: Duration,
}

/// What a process was executed with that ran before memleak.
struct Before {
    program: PathBuf,
    line: CommandLine,
    labels: Labels,
}

impl Args {
    fn is_anything_wanted(&self) -> bool {
        self.wanted || !self.labels.is_empty()
    }

    /// `wanted`: command lines were asked for.
    pub(super) fn new(wanted: bool, labels: Vec<LabelName>) -> Self {
        Self {
            wanted,
            labels,
            running: HashMap::new(),
            read: Duration::ZERO,
        }
    }

    /// Reads the command lines of the processes that run already. The kernel side does not see these.
    pub(super) fn read_running(&mut self) {
        // /proc must show the pids that rows have.
        if !self.is_anything_wanted() || processes::levels_of_proc_above() > 0 {
            return;
        }
        self.read = monotonic();
        for pid in processes::all().unwrap_or_default() {
            // A process that has ended meanwhile has none.
            let program = fs::read_link(format!("/proc/{pid}/exe"));
            if let (Ok(program), Ok(words)) = (program, fs::read(format!("/proc/{pid}/cmdline"))) {
                // memleak may not be allowed to read it.
                let environment = match self.labels.is_empty() {
                    true => Vec::new(),
                    false => fs::read(format!("/proc/{pid}/environ")).unwrap_or_default(),
                };
                let before = Before {
                    program,
                    line: CommandLine::of_bytes(&words, false),
                    labels: labels_of(&environment, &self.labels),
                };
                self.running.insert(pid, before);
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
        if !self.is_anything_wanted() {
            return;
        }
        if self.wanted {
            let bytes = taken(object.command_lines(), heap, is_over);
            image.args = bytes.as_deref().and_then(command_line_from_bytes);
        }
        let bytes = match self.labels.is_empty() {
            true => None,
            false => taken(object.labels(), heap, is_over),
        };
        if let Some(bytes) = &bytes {
            image.labels = labels_from_bytes(bytes, &self.labels);
        }
        if image.from != From::Attach {
            return;
        }
        let before = self.running.get(&image.pid).filter(|before| {
            image.exe.as_ref() == Some(&before.program) && image.start_time <= clock.unix(self.read)
        });
        if image.args.is_none() && self.wanted {
            image.args = before.map(|before| before.line.clone());
        }
        if let Some(before) = before.filter(|_| bytes.is_none()) {
            image.labels = before.labels.clone();
        }
    }
}

/// What a map has of a heap. `is_over`: nobody will ask again.
fn taken(map: &MapMut<'static>, heap: u64, is_over: bool) -> Option<Vec<u8>> {
    let key = heap.to_ne_bytes();
    let bytes = map.lookup(&key, MapFlags::ANY).ok().flatten();
    if is_over && bytes.is_some() {
        // It exists.
        let _ = map.delete(&key);
    }
    bytes
}

/// The variables of an environment that have these names. Of two with one name, the first counts, as for getenv(3).
fn labels_of(environment: &[u8], names: &[LabelName]) -> Labels {
    let value = |name: &LabelName| {
        let mut variables = environment.split(|&byte| byte == 0);
        variables.find_map(|variable| {
            let value = variable.strip_prefix(name.as_str().as_bytes())?;
            value.strip_prefix(b"=").map(<[u8]>::to_vec)
        })
    };
    let found = names.iter();
    let found = found.filter_map(|name| Some((name.as_str().to_owned(), value(name)?)));
    found.collect()
}
