//! Launching a command as types: [`Suspended::fork`] → [`Suspended::release`] → [`Running`].
//!
//! The command is forked before memleak does anything else, waits on a pipe, and executes when one byte
//! comes. What it finds then is what it would have found without memleak: descriptors, dispositions,
//! mask, environment, limits, group and terminal. Releasing consumes the suspended command, so it cannot
//! be done twice, and a suspended command that is dropped has never run.
//!
//! Signals, stops and memleak's own end are `signals`.

use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::{ForkResult, Pid, fork};

use crate::launch::child::{Child, ExecPlan, Privileges};
use crate::launch::descriptors::{Stderr, close_on_exec_pipe, give_up_inherited};
use crate::launch::running::{ExecError, PendingExec, Running, wait_child};
use crate::os::capabilities::Capabilities;
use crate::os::identity::Identity;
use crate::os::inherited::{Inherited, is_privileged_by_file};

mod child;
pub mod descriptors;
pub mod running;
pub mod signals;

/// A command that is forked and waits to be released. Dropped, it goes without having run, and is reaped.
#[derive(Debug)]
pub struct Suspended {
    leash: Leash,
    pidfd: OwnedFd,
    go: File,
    outcome: File,
    null: OwnedFd,
    command: OsString,
    candidates: Vec<CString>,
}

impl Suspended {
    /// Forks `command` (a name or path and its arguments), which then waits, as the user `identity` if there is
    /// one. To be called while the process has one thread, and before it changes anything that a child inherits. An ignored SIGCHLD is
    /// reset here (without it there is no exit code), and restored in the child.
    ///
    /// Takes no signal over: until [`crate::launch::signals::Signals::take_over`] a fatal one ends memleak, and
    /// the command with it.
    pub fn fork(command: &[OsString], identity: Option<&Identity>) -> Result<Self> {
        let inherited = Inherited::get()?;
        let mut plan = ExecPlan::new(command, identity)?;
        let privileges = match identity {
            Some(identity) => Privileges::Of(identity),
            None if is_privileged_by_file() => {
                let ours = Capabilities::get().context("cannot read our capabilities")?;
                Privileges::None(ours.unusable())
            }
            None => Privileges::Ours,
        };
        let null = File::options().read(true).write(true).open("/dev/null");
        let null = null
            .context("cannot open /dev/null to replace standard input and output by")?
            .into();
        let (go_read, go_write) = close_on_exec_pipe()?;
        let (outcome_read, outcome_write) = close_on_exec_pipe()?;
        fcntl(&outcome_read, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))
            .context("cannot make the launch pipe non-blocking")?;
        // SAFETY: sets a default disposition, no handler.
        unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) };
        // SAFETY: the child only makes async-signal-safe calls (see `ExecPlan::run`).
        let pid = match unsafe { fork() }.context("cannot fork the command (see `ulimit -u`)")? {
            ForkResult::Child => {
                let child = Child {
                    inherited,
                    privileges,
                    go: go_read.as_raw_fd(),
                    outcome: outcome_write.as_raw_fd(),
                    parents: [go_write.as_raw_fd(), outcome_read.as_raw_fd()],
                };
                plan.run(&child)
            }
            ForkResult::Parent { child } => child,
        };
        let leash = Leash { pid, holds: true };
        Ok(Self {
            pidfd: open_pidfd(pid)?,
            leash,
            go: go_write.into(),
            outcome: outcome_read.into(),
            null,
            command: plan.name,
            candidates: plan.candidates,
        })
    }

    pub fn pid(&self) -> Pid {
        self.leash.pid
    }

    /// Readable once the process has ended.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// The paths that will be tried, in order; the first that can be executed is. Relative ones are
    /// relative to the current directory.
    pub fn candidates(&self) -> impl Iterator<Item = &OsStr> {
        self.candidates
            .iter()
            .map(|path| OsStr::from_bytes(path.to_bytes()))
    }

    /// Lets the command run, and gives up memleak's copies of its standard input and output, of every
    /// other descriptor that the caller left, and of standard error if `stderr` says so. Files of
    /// memleak's own, which are close-on-exec, stay open; one that the user named as `/dev/stdout` or
    /// `/dev/fd/7` has to be opened before.
    ///
    /// Returns when it is known whether the exec worked. If the process is stopped meanwhile, or the exec
    /// takes more than a second, the command counts as running; an exec that fails after that is an
    /// [`Ended::NotExecuted`]. A process that was killed before its exec is a [`Running`] that has ended.
    pub fn release(self, stderr: Stderr) -> std::result::Result<Running, ExecError> {
        let Self {
            mut leash,
            pidfd,
            mut go,
            outcome,
            null,
            command,
            candidates: _,
        } = self;
        give_up_inherited(&null);
        leash.holds = false;
        // If the process is dead already there is no reader, and its end says the rest.
        let _ = go.write_all(&[1]);
        drop(go);
        let stderr_replacement = (stderr == Stderr::GiveUp).then_some(null);
        let exec = PendingExec {
            outcome,
            command,
            stderr_replacement,
        };
        Running::await_exec(leash.pid, pidfd, exec)
    }
}

/// Kills and reaps the child unless it was released. It has run nothing then, so nothing is cut short;
/// closing its pipe would do for a child that is awake, not for one that Ctrl-Z has stopped.
#[derive(Debug)]
struct Leash {
    pid: Pid,
    holds: bool,
}

impl Drop for Leash {
    fn drop(&mut self) {
        if self.holds {
            // SAFETY: a child of ours that is not reaped yet, so the number is still its own.
            unsafe { libc::kill(self.pid.as_raw(), libc::SIGKILL) };
            let _ = wait_child(self.pid, libc::WEXITED);
        }
    }
}

fn open_pidfd(pid: Pid) -> Result<OwnedFd> {
    // SAFETY: takes two numbers.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) };
    let fd = Errno::result(fd)
        .context("cannot open a pidfd of the command (Linux 5.3 or newer is needed)")?;
    // SAFETY: just opened, ours alone, and close-on-exec as every pidfd is.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}
