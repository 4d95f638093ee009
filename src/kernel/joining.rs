//! Tells the kernel side which processes to follow. How their threads join is in `bpf/join.bpf.h`.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use anyhow::{Context as _, Result, ensure};
use libbpf_rs::{MapCore, MapFlags, ProgramMut};
use nix::unistd::Pid;

use crate::kernel::collector::Collector;
use crate::kernel::object::Object;
use crate::kernel::rings::bytes_of;
use crate::kernel::skeletons::types::{self, found_files, thread};
use crate::os::processes::Process;

impl Collector {
    /// Follows a task from its next exec on, and all processes that it starts.
    ///
    /// # Errors
    /// The task is gone, or the kernel has no memory for it.
    pub fn follow(&mut self, pid: Pid, pidfd: BorrowedFd<'_>) -> Result<()> {
        let context = "cannot tell the kernel which process to follow";
        match &self.object {
            Object::Newer { skel, .. } => {
                self.globals.living_tasks.add(1);
                let pidfd = pidfd.as_raw_fd().to_ne_bytes();
                let nothing = thread::default();
                let threads = &skel.maps.threads;
                threads
                    .update(&pidfd, bytes_of(&nothing), MapFlags::ANY)
                    .context(context)
            }
            // The task is memleak's child, so no other process can have its pid.
            Object::Older(skel) => {
                let found = self.find(&skel.progs.follow, pid.as_raw().cast_unsigned())?;
                ensure!(found, context);
                Ok(())
            }
        }
    }

    /// Chooses a running process. It is followed from [`adopt`](Self::adopt) on.
    ///
    /// # Errors
    /// The process is gone, or the kernel has no memory for it.
    pub fn choose(&self, process: &Process) -> Result<()> {
        let context = || format!("cannot follow process {}: it may have ended", process.pid);
        match &self.object {
            Object::Newer { skel, .. } => {
                let chosen = types::process {
                    chosen: 1,
                    ..types::process::default()
                };
                let key = process.as_fd().as_raw_fd().to_ne_bytes();
                let processes = &skel.maps.processes;
                processes
                    .update(&key, bytes_of(&chosen), MapFlags::ANY)
                    .with_context(context)
            }
            Object::Older(skel) => {
                let found = self.find(&skel.progs.choose, process.pid)?;
                // If the process has not ended yet, no other process has had its pid.
                ensure!(found && !process.has_ended(), context());
                Ok(())
            }
        }
    }

    /// Chooses the running children of the chosen processes, and their children. Returns the pids of all that are
    /// chosen. What a chosen process starts meanwhile is chosen by the kernel side. To be called until it returns no
    /// new pid, because a process may have a lower pid than its parent.
    ///
    /// # Errors
    /// The kernel cannot list its tasks.
    pub fn chosen(&self) -> Result<Vec<u32>> {
        let bytes = self.iterate(self.object.list_chosen())?;
        let pids = bytes.chunks_exact(size_of::<u32>());
        let pids = pids.filter_map(|pid| Some(u32::from_ne_bytes(pid.try_into().ok()?)));
        // A pid of 0 is outside of memleak's pid namespace.
        Ok(pids.filter(|pid| *pid != 0).collect())
    }

    /// Tells the kernel which probed files a running process has mapped, by their indexes, for
    /// [`adopt`](Self::adopt). If the map has no room, the process's first call of an allocator tells.
    pub fn has_mapped(&mut self, pid: u32, numbers: &[u16]) {
        if numbers.is_empty() {
            return;
        }
        let mut files = found_files {
            count: numbers.len() as u32,
            ..found_files::default()
        };
        for (file, number) in files.files.iter_mut().zip(numbers) {
            *file = *number;
        }
        let found = self.object.found();
        let told = found.update(&pid.to_ne_bytes(), bytes_of(&files), MapFlags::ANY);
        self.found.extend(told.is_ok().then_some(pid));
    }

    /// Begins to count the running processes. All files that they have mapped must have their probes by now. If a
    /// process's allocations were seen earlier than its frees, it would seem to leak.
    ///
    /// # Errors
    /// The kernel cannot list its tasks.
    pub fn adopt(&mut self) -> Result<()> {
        self.args.read_running();
        self.globals.joining.set(1);
        self.iterate(self.object.adopt_all())?;
        // From now on another process may get the pid.
        for pid in self.found.drain(..) {
            // The entry exists.
            let _ = self.object.found().delete(&pid.to_ne_bytes());
        }
        Ok(())
    }

    /// Runs a program of the object for older kernels for the process with this pid. The kernel side identifies the
    /// process by an address that only a program can find. Returns whether the program found the process and did its
    /// work.
    fn find(&self, program: &ProgramMut<'_>, pid: u32) -> Result<bool> {
        let wanted = &self.globals.older()?.wanted_pid;
        wanted.set(pid);
        self.iterate(program)?;
        Ok(wanted.get() == 0)
    }
}
