//! A command that was released: its state, the changes of its state, and its end. Signals are left to `signals`.

use std::ffi::{OsString, c_int};
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::Pid;

use crate::launch::child::Failure;
use crate::launch::descriptors::replace;
use crate::model::exit::{self, Outcome};
use crate::os::identity::Step;

/// How long one step of a release waits for the exec. After each step, the release checks whether the command was
/// stopped. A stopped command must not keep memleak from stopping, too. An exec that hangs on a dead file server must
/// not keep memleak from passing on signals.
const EXEC_STEP_MS: u16 = 20;

const EXEC_STEPS: u32 = 50;

/// The command could not be executed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct ExecError {
    /// The command as the user wrote it.
    pub command: OsString,
    /// The failed step of becoming the command's user. `None`: execve itself failed.
    pub step: Option<Step>,
    /// The error of that step.
    pub errno: Errno,
}

impl ExecError {
    /// What this means for memleak's exit code. If execve was not even called, that is memleak's own failure.
    pub fn outcome(&self) -> Outcome {
        match self.step {
            Some(_) => Outcome::ToolError,
            None => Outcome::ExecError(exit::ExecErrorKind::from_errno(self.errno as i32)),
        }
    }
}

impl fmt::Display for ExecError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot run {:?}", self.command)?;
        if let Some(step) = self.step {
            let why = self.errno.desc();
            return write!(
                f,
                " as the user that --user names: {step}: {why}; this needs all of root's rights, and ids \
                 that exist in this user namespace"
            );
        }
        f.write_str(": ")?;
        let has_slash = self.command.as_bytes().contains(&b'/');
        match self.errno {
            Errno::ENOENT if !has_slash => f.write_str("no such command in PATH"),
            Errno::ENOENT => {
                f.write_str("the file, or the interpreter that it names, does not exist")
            }
            Errno::EACCES => {
                f.write_str("not an executable file, or in a directory that may not be entered")
            }
            errno => f.write_str(errno.desc()),
        }
    }
}

/// How the command ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    Exited(u8),
    Signaled {
        signal: u8,
        core: bool,
    },
    /// The exec failed, but only after `Suspended::release` had returned. The command was stopped in between, or its
    /// file server hung.
    NotExecuted(ExecError),
}

/// A change of the command's state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Stopped by this signal.
    Stopped(c_int),
    Continued,
    Ended(Ended),
}

/// A command that was released.
#[derive(Debug)]
pub struct Running {
    pid: Pid,
    pidfd: OwnedFd,
    exec: Option<PendingExec>,
    exec_error: Option<ExecError>,
    stopped: bool,
    ended: Option<Ended>,
}

/// An exec whose outcome is not known yet.
#[derive(Debug)]
pub(super) struct PendingExec {
    pub(super) outcome: File,
    pub(super) command: OsString,
    pub(super) stderr_replacement: Option<OwnedFd>,
}

impl Running {
    /// Waits until it is known whether the exec of a released command worked. Stops waiting after about a second, or
    /// when the command is stopped.
    ///
    /// # Errors
    /// The exec failed. The child is reaped.
    pub(super) fn await_exec(
        pid: Pid,
        pidfd: OwnedFd,
        exec: PendingExec,
    ) -> std::result::Result<Self, ExecError> {
        let mut running = Running {
            pid,
            pidfd,
            exec: Some(exec),
            exec_error: None,
            stopped: false,
            ended: None,
        };
        for _ in 0..EXEC_STEPS {
            if running.exec_is_decided() {
                break;
            }
            running.await_exec_step();
            if running.is_stopped_now() {
                break;
            }
        }
        match running.exec_error.clone() {
            Some(error) => {
                // The child exits directly after it has reported the error.
                let _ = running.wait();
                Err(error)
            }
            None => Ok(running),
        }
    }

    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Readable after the process has exited.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Whether the command was stopped when its state was last read.
    pub fn stopped(&self) -> bool {
        self.stopped
    }

    /// How the command ended, if that is known already.
    pub fn ended(&self) -> Option<&Ended> {
        self.ended.as_ref()
    }

    /// Waits for the command's end. Signals are not passed on meanwhile.
    pub fn wait(&mut self) -> Result<Ended> {
        loop {
            if let Some(ended) = &self.ended {
                return Ok(ended.clone());
            }
            self.change(0)?;
        }
    }

    /// How the command ended, if it has ended by now.
    pub fn try_wait(&mut self) -> Result<Option<Ended>> {
        while self.next_change()?.is_some() {}
        Ok(self.ended.clone())
    }

    /// The next change of the command's state that was not returned yet. Looks at no other child.
    pub fn next_change(&mut self) -> Result<Option<Change>> {
        if self.ended.is_some() {
            return Ok(None);
        }
        self.exec_is_decided();
        self.change(libc::WNOHANG)
    }

    /// Whether the command was continued, or ended, after its stop was returned. Consumes no change.
    pub(crate) fn has_continued_or_ended(&self) -> bool {
        self.has_news(libc::WCONTINUED | libc::WEXITED)
    }

    fn change(&mut self, how: c_int) -> Result<Option<Change>> {
        let events = libc::WEXITED | libc::WSTOPPED | libc::WCONTINUED;
        let info = wait_child(self.pid, events | how)
            .with_context(|| format!("cannot wait for the command (process {})", self.pid))?;
        let Some(ChildStatus { code, status }) = info else {
            return Ok(None);
        };
        let change = match code {
            libc::CLD_STOPPED => Change::Stopped(status),
            libc::CLD_CONTINUED => Change::Continued,
            libc::CLD_EXITED | libc::CLD_KILLED | libc::CLD_DUMPED => {
                Change::Ended(self.decode_end(code, status))
            }
            // CLD_TRAPPED cannot come: memleak traces no process.
            other => bail!(
                "unknown change {other} of the command (process {})",
                self.pid
            ),
        };
        self.stopped = matches!(change, Change::Stopped(_));
        if let Change::Ended(ended) = &change {
            self.ended = Some(ended.clone());
        }
        Ok(Some(change))
    }

    fn decode_end(&mut self, code: c_int, status: c_int) -> Ended {
        self.exec_is_decided();
        // The status of waitid is an exit code from 0 to 255, or a signal from 1 to 64.
        let number = status as u8;
        match (code, self.exec_error.clone()) {
            (libc::CLD_EXITED, Some(error)) => Ended::NotExecuted(error),
            (libc::CLD_EXITED, None) => Ended::Exited(number),
            _ => Ended::Signaled {
                signal: number,
                core: code == libc::CLD_DUMPED,
            },
        }
    }

    fn is_stopped_now(&self) -> bool {
        self.has_news(libc::WSTOPPED)
    }

    fn has_news(&self, events: c_int) -> bool {
        matches!(
            wait_child(self.pid, events | libc::WNOHANG | libc::WNOWAIT),
            Ok(Some(_))
        )
    }

    /// Reads the child's message about its exec, without waiting. Returns whether the outcome is decided.
    fn exec_is_decided(&mut self) -> bool {
        let Some(exec) = &mut self.exec else {
            return true;
        };
        let mut failure = [0; Failure::BYTES];
        match exec.outcome.read(&mut failure) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return false,
            // A write of a few bytes to a pipe is never split.
            Ok(Failure::BYTES) => {
                let Failure { step, errno } = Failure::from_bytes(failure);
                self.exec_error = Some(ExecError {
                    command: exec.command.clone(),
                    step,
                    errno,
                });
            }
            // End of file: the child has executed the command, or was killed before. The exit status tells which.
            _ => {
                if let Some(null) = &exec.stderr_replacement {
                    replace(libc::STDERR_FILENO, null);
                }
            }
        }
        self.exec = None;
        true
    }

    fn await_exec_step(&self) {
        if let Some(exec) = &self.exec {
            let mut wanted = [PollFd::new(exec.outcome.as_fd(), PollFlags::POLLIN)];
            let _ = poll(&mut wanted, PollTimeout::from(EXEC_STEP_MS));
        }
    }
}

/// What waitid reports of a child: `si_code` and `si_status`.
pub(super) struct ChildStatus {
    code: c_int,
    status: c_int,
}

/// Waits for `pid` alone. nix's waitid cannot be used: it cannot express a death by a real-time signal.
pub(super) fn wait_child(pid: Pid, flags: c_int) -> io::Result<Option<ChildStatus>> {
    loop {
        // SAFETY: all zeroes are a valid siginfo, which the call fills in.
        let (result, info) = unsafe {
            let mut info: libc::siginfo_t = std::mem::zeroed();
            let result = libc::waitid(
                libc::P_PID,
                pid.as_raw() as libc::id_t,
                &raw mut info,
                flags,
            );
            (result, info)
        };
        if result == 0 {
            // SAFETY: waitid filled in the fields of a SIGCHLD, or left all of them zero.
            let (child, status) = unsafe { (info.si_pid(), info.si_status()) };
            return Ok((child != 0).then_some(ChildStatus {
                code: info.si_code,
                status,
            }));
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// Reaps every ended child that is not `command`. For memleak as pid 1 of a namespace.
pub(crate) fn reap_orphans(command: Pid) {
    loop {
        let flags = libc::WEXITED | libc::WNOHANG;
        // The first call only looks, because the command itself must not be reaped here.
        // SAFETY: all zeroes are a valid siginfo, which the call fills in, as in `wait_child`.
        let child = unsafe {
            let mut info: libc::siginfo_t = std::mem::zeroed();
            if libc::waitid(libc::P_ALL, 0, &raw mut info, flags | libc::WNOWAIT) != 0 {
                return;
            }
            info.si_pid()
        };
        if child == 0 || child == command.as_raw() {
            return;
        }
        if wait_child(Pid::from_raw(child), flags).is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_missing_command_is_not_found() {
        let error = |errno| ExecError {
            command: OsString::from("x"),
            step: None,
            errno,
        };
        assert_eq!(error(Errno::ENOENT).outcome().code(), Some(127));
        for errno in [
            Errno::EACCES,
            Errno::ENOTDIR,
            Errno::ENOEXEC,
            Errno::ETXTBSY,
        ] {
            assert_eq!(error(errno).outcome().code(), Some(126));
        }
    }

    #[test]
    fn a_command_is_not_tried_if_its_user_cannot_be_set() {
        let error = ExecError {
            command: OsString::from("x"),
            step: Some(Step::Groups),
            errno: Errno::ENOENT,
        };
        assert_eq!(error.outcome().code(), Some(125));
        assert!(error.to_string().contains("--user"), "{error}");
    }

    #[test]
    fn an_exec_error_is_one_line_with_any_name() {
        let error = ExecError {
            command: OsString::from("a\nb\x1b[31m"),
            step: None,
            errno: Errno::ENOENT,
        };
        assert_eq!(
            error.to_string(),
            r#"cannot run "a\nb\u{1b}[31m": no such command in PATH"#
        );
    }
}
