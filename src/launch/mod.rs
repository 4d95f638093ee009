//! Launches a command, with a type for each state: [`Suspended::fork`] → [`Suspended::release`] → [`Running`].
//!
//! memleak forks the command before it does anything else. The child waits on a pipe, and executes the command when one
//! byte comes. The command then finds everything as it would without memleak: descriptors, dispositions, mask,
//! environment, limits, group and terminal. Releasing consumes the suspended command, so it cannot happen twice. A
//! suspended command that is dropped has never run.
//!
//! Signals, stops and memleak's own exit are in `signals`. Counting is left to `kernel`.

use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use anyhow::{Context, Result};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::{ForkResult, Pid, fork};

use crate::launch::child::{Child, ExecPlan, Privileges};
use crate::launch::descriptors::{Stderr, close_on_exec_pipe, give_up_inherited};
use crate::launch::running::{ExecError, PendingExec, Running, wait_child};
use crate::os::capabilities::Capabilities;
use crate::os::identity::Identity;
use crate::os::inherited::{Inherited, is_privileged_by_file};
use crate::os::namespace::{self, MountNamespace};
use crate::os::processes::open_pidfd;

mod child;
pub mod descriptors;
pub mod running;
pub mod signals;

/// A command that is forked and waits to be released. If this is dropped, the child is killed and reaped without
/// having run the command.
#[derive(Debug)]
pub struct Suspended {
    leash: Leash,
    pidfd: OwnedFd,
    go: File,
    outcome: File,
    null: OwnedFd,
    command: OsString,
    candidates: Vec<CString>,
    namespace: Option<MountNamespace>,
}

/// The mount namespace in which the command runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mounts {
    /// The caller's.
    Callers,
    /// One of its own, which begins as a copy of the caller's.
    Own,
}

impl Suspended {
    /// Forks `command` (a name or path, and its arguments). The child waits, as the user `identity` if there is one. It
    /// waits in the mount namespace that `mounts` says.
    ///
    /// To be called while the process has one thread, and before it changes anything that a child inherits. An ignored
    /// SIGCHLD is reset here, because without it there is no exit code. The child restores it.
    ///
    /// Takes over no signal. Until [`crate::launch::signals::Signals::take_over`] is called, a fatal signal kills
    /// memleak, and then the child does not run the command.
    pub fn fork(command: &[OsString], identity: Option<&Identity>, mounts: Mounts) -> Result<Self> {
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
            .context("cannot open /dev/null, which replaces standard input and output")?
            .into();
        let (go_read, go_write) = close_on_exec_pipe()?;
        let (outcome_read, outcome_write) = close_on_exec_pipe()?;
        let (namespace_read, namespace_write) = match mounts {
            Mounts::Callers => (None, None),
            Mounts::Own => {
                let (ours, childs) = namespace::socket()
                    .context("cannot open a socket to the command (see `ulimit -n`)")?;
                (Some(ours), Some(childs))
            }
        };
        fcntl(&outcome_read, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))
            .context("cannot make the launch pipe non-blocking")?;
        // SAFETY: sets a default disposition, no handler.
        unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) };
        // SAFETY: the child makes only async-signal-safe calls (see `ExecPlan::run`).
        let pid = match unsafe { fork() }.context("cannot fork the command (see `ulimit -u`)")? {
            ForkResult::Child => {
                let namespace_read = namespace_read.as_ref().map(|fd| fd.as_raw_fd());
                let child = Child {
                    inherited,
                    privileges,
                    go: go_read.as_raw_fd(),
                    outcome: outcome_write.as_raw_fd(),
                    parents: [
                        Some(go_write.as_raw_fd()),
                        Some(outcome_read.as_raw_fd()),
                        namespace_read,
                    ],
                    namespace: namespace_write.as_ref().map(|fd| fd.as_fd()),
                };
                plan.run(&child)
            }
            ForkResult::Parent { child } => child,
        };
        let leash = Leash { pid, holds: true };
        // The child's end must be closed here, or the end of the child would not be noticed.
        drop(namespace_write);
        let namespace = match namespace_read {
            // None if the child was killed meanwhile. `release` tells how.
            Some(socket) => MountNamespace::receive(socket.as_fd())?,
            None => None,
        };
        Ok(Self {
            pidfd: open_pidfd(pid.as_raw().cast_unsigned())
                .context("cannot open a pidfd of the command (Linux 5.3 or newer is needed)")?,
            leash,
            go: go_write.into(),
            outcome: outcome_read.into(),
            null,
            command: plan.name,
            candidates: plan.candidates,
            namespace,
        })
    }

    pub fn pid(&self) -> Pid {
        self.leash.pid
    }

    /// Readable after the process has exited.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// The mount namespace of the command, if it has one of its own and was not killed before it had that.
    pub fn namespace(&self) -> Option<&MountNamespace> {
        self.namespace.as_ref()
    }

    /// The paths that will be tried, in order. The first one that can be executed is executed. Relative paths are
    /// relative to the current directory.
    pub fn candidates(&self) -> impl Iterator<Item = &OsStr> {
        self.candidates
            .iter()
            .map(|path| OsStr::from_bytes(path.to_bytes()))
    }

    /// Lets the command run. Gives up memleak's copies of the command's standard input and output, and of every other
    /// descriptor that the caller left. Gives up standard error if `stderr` says so. Files that memleak opened for
    /// itself stay open, as they are close-on-exec. A file that the user named as `/dev/stdout` or `/dev/fd/7` must be
    /// opened before this call.
    ///
    /// Returns when it is known whether the exec worked. If the process is stopped meanwhile, or the exec takes more
    /// than a second, the command counts as running. An exec that fails after that is a
    /// [`NotExecuted`](running::Ended::NotExecuted). A process that was killed before its exec is a [`Running`] that
    /// has ended.
    pub fn release(self, stderr: Stderr) -> std::result::Result<Running, ExecError> {
        let Self {
            mut leash,
            pidfd,
            mut go,
            outcome,
            null,
            command,
            candidates: _,
            namespace: _,
        } = self;
        give_up_inherited(&null);
        leash.holds = false;
        // If the process is dead already, the pipe has no reader, and the process's status tells the rest.
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

/// Kills and reaps the child unless it was released. The child has not run the command then, so nothing is cut short.
/// Closing its pipe would end a child that runs, but not one that Ctrl-Z has stopped.
#[derive(Debug)]
struct Leash {
    pid: Pid,
    holds: bool,
}

impl Drop for Leash {
    fn drop(&mut self) {
        if self.holds {
            // SAFETY: the child is ours and not reaped yet, so no other process has its pid.
            unsafe { libc::kill(self.pid.as_raw(), libc::SIGKILL) };
            let _ = wait_child(self.pid, libc::WEXITED);
        }
    }
}
