//! Tells the kernel which processes to follow.

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
    /// Follows a task from its next exec on, and all that it starts.
    ///
    /// # Errors
    /// The task is gone, or the kernel has no memory for it.
    pub fn follow(&mut self, pid: Pid, pidfd: BorrowedFd<'_>) -> Result<()> {
        let context = "cannot tell the kernel which process to follow";
        match &self.object {
            Object::Newer(skel) => {
                self.globals.living_tasks.add(1);
                let pidfd = pidfd.as_raw_fd().to_ne_bytes();
                let nothing = thread::default();
                let threads = &skel.maps.threads;
                threads
                    .update(&pidfd, bytes_of(&nothing), MapFlags::ANY)
                    .context(context)
            }
            // It is our child, so its pid is nobody else's.
            Object::Older(skel) => {
                let found = self.find(&skel.progs.follow, pid.as_raw().cast_unsigned())?;
                ensure!(found, context);
                Ok(())
            }
        }
    }

    /// Chooses a process that is there already, to be followed from [`adopt`](Self::adopt) on.
    ///
    /// # Errors
    /// The process is gone, or the kernel has no memory for it.
    pub fn choose(&self, process: &Process) -> Result<()> {
        let context = || format!("cannot follow process {}: it may have ended", process.pid);
        match &self.object {
            Object::Newer(skel) => {
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
                // As long as it has not ended, nobody else has had its pid.
                ensure!(found && !process.has_ended(), context());
                Ok(())
            }
        }
    }

    /// Tells the kernel which probed files a process that is there has mapped, by their numbers, for
    /// [`adopt`](Self::adopt). Where there is no room for it, the process's first call of an allocator tells.
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

    /// Begins to count the processes that are there. To be called when all that they have mapped is
    /// probed: where the allocations of one were seen before its frees were, it would seem to leak.
    ///
    /// # Errors
    /// The kernel does not list its tasks.
    pub fn adopt(&mut self) -> Result<()> {
        self.globals.joining.set(1);
        self.iterate(self.object.adopt_all())?;
        // From now on the number may come to be another process's.
        for pid in self.found.drain(..) {
            // It is there.
            let _ = self.object.found().delete(&pid.to_ne_bytes());
        }
        Ok(())
    }

    /// Runs a program of the object for older kernels for the process that has this pid: the kernel knows it by its
    /// address, which only a program can tell. Whether it was found, and the program could do what it is for.
    fn find(&self, program: &ProgramMut<'_>, pid: u32) -> Result<bool> {
        let wanted = self.globals.wanted_pid.as_ref();
        let wanted = wanted.context("this object finds no process")?;
        wanted.set(pid);
        self.iterate(program)?;
        Ok(wanted.get() == 0)
    }
}
