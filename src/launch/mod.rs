//! Launching a command as types: [`Suspended::fork`] → [`Suspended::release`] → [`Running`].
//!
//! The command is forked before memleak does anything else, waits on a pipe, and executes when one byte
//! comes. What it finds then is what it would have found without memleak: descriptors, dispositions,
//! mask, environment, limits, group and terminal. Releasing consumes the suspended command, so it cannot
//! be done twice, and a suspended command that is dropped has never run.
//!
//! Signals, stops and memleak's own end are `signals`.

pub mod signals;

use std::ffi::{CStr, CString, OsStr, OsString, c_char, c_int};
use std::fmt;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::ptr;

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::{ForkResult, Pid, fork, pipe2};

use crate::model::exit::{self, Outcome};
use crate::os::capabilities::Capabilities;
use crate::os::identity::{Identity, Step};
use crate::os::inherited::{Inherited, LAST_SIGNAL, environment, is_privileged_by_file};

/// What the child exits with if memleak is gone before the release: nobody is there to see it.
const ABANDONED: c_int = 125;

/// How long a release waits for the exec, in steps between which it looks whether the command was
/// stopped: a stopped one must not keep memleak from stopping too, nor an exec that hangs on a dead
/// file server keep it from passing signals on.
const EXEC_STEP_MS: u16 = 20;
const EXEC_STEPS: u32 = 50;

/// Where the C library searches where there is no PATH (`_CS_PATH`).
const DEFAULT_PATH: &[u8] = b"/bin:/usr/bin";
/// The kernel's default for the highest `ulimit -n` (fs.nr_open).
const MOST_DESCRIPTORS: RawFd = 1 << 20;
/// What runs a text file without `#!` (`_PATH_BSHELL`).
const SHELL: &CStr = c"/bin/sh";

/// The command could not be executed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct ExecError {
    /// The command as the user wrote it.
    pub command: OsString,
    /// The step on the way to its user that failed; `None`: execve itself.
    pub step: Option<Step>,
    /// What that step said.
    pub errno: Errno,
}

impl ExecError {
    /// What this means for memleak's end: a command that was not even tried is memleak's own failure.
    pub fn outcome(&self) -> Outcome {
        match self.step {
            Some(_) => Outcome::ToolError,
            None => Outcome::ExecError(exit::ExecError::from_errno(self.errno as i32)),
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
                " as the user that --user names: {step}: {why}; it takes all of root's rights, and ids that \
                 this user namespace has"
            );
        }
        f.write_str(": ")?;
        let has_slash = self.command.as_bytes().contains(&b'/');
        match self.errno {
            Errno::ENOENT if !has_slash => f.write_str("no such command in PATH"),
            Errno::ENOENT => f.write_str("it, or the interpreter that it names, does not exist"),
            Errno::EACCES => {
                f.write_str("not an executable file, or in a directory that may not be entered")
            }
            errno => f.write_str(errno.desc()),
        }
    }
}

/// What memleak does with its own standard error once the command has been executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stderr {
    /// The report goes there.
    Keep,
    /// The report goes elsewhere: whoever reads the command's standard error must see its end when the
    /// command ends, not when memleak does.
    GiveUp,
}

/// How the command ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    Exited(u8),
    Signaled {
        signal: u8,
        core: bool,
    },
    /// The exec failed, but so late that [`Suspended::release`] had returned: the command was stopped
    /// or its file server hung in between.
    NotExecuted(ExecError),
}

/// A change of the command's state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// By this signal.
    Stopped(c_int),
    Continued,
    Ended(Ended),
}

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
        let mut running = Running {
            pid: leash.pid,
            pidfd,
            exec: Some(PendingExec {
                outcome,
                command,
                stderr_replacement,
            }),
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
                // The child leaves right after it has told the error.
                let _ = running.wait();
                Err(error)
            }
            None => Ok(running),
        }
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
struct PendingExec {
    outcome: File,
    command: OsString,
    stderr_replacement: Option<OwnedFd>,
}

impl Running {
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Readable once the process has ended.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Whether the command was stopped when its state was last looked at.
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

    /// The command's end, if it has come.
    pub fn try_wait(&mut self) -> Result<Option<Ended>> {
        while self.next_change()?.is_some() {}
        Ok(self.ended.clone())
    }

    /// The next change of the command's state that has not been told yet. Looks at no other child.
    pub fn next_change(&mut self) -> Result<Option<Change>> {
        if self.ended.is_some() {
            return Ok(None);
        }
        self.exec_is_decided();
        self.change(libc::WNOHANG)
    }

    /// Whether the command was continued or ended since its stop was told. Tells no change.
    pub(crate) fn goes_on(&self) -> bool {
        self.has_news(libc::WCONTINUED | libc::WEXITED)
    }

    fn change(&mut self, how: c_int) -> Result<Option<Change>> {
        let events = libc::WEXITED | libc::WSTOPPED | libc::WCONTINUED;
        let info = wait_child(self.pid, events | how)
            .with_context(|| format!("cannot wait for the command (process {})", self.pid))?;
        let Some(Status { code, status }) = info else {
            return Ok(None);
        };
        let change = match code {
            libc::CLD_STOPPED => Change::Stopped(status),
            libc::CLD_CONTINUED => Change::Continued,
            libc::CLD_EXITED | libc::CLD_KILLED | libc::CLD_DUMPED => {
                Change::Ended(self.decode_end(code, status))
            }
            // CLD_TRAPPED: we trace nobody.
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
        // waitid's status is an exit code from 0 to 255 or a signal from 1 to 64.
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

    /// Reads what the child told of its exec, without waiting; whether there is nothing more to come.
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
            // End of file: executed, or killed before; the process's end tells the two apart.
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

/// What waitid says of a child: `si_code` and `si_status`.
struct Status {
    code: c_int,
    status: c_int,
}

/// Waits for `pid` alone. nix's waitid does not do: it cannot express a death by a real-time signal.
fn wait_child(pid: Pid, flags: c_int) -> io::Result<Option<Status>> {
    loop {
        // SAFETY: all zero is a valid siginfo, which the call fills in.
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
            return Ok((child != 0).then_some(Status {
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

/// As pid 1 of a namespace: reaps every ended child that is not `command`.
pub(crate) fn reap_orphans(command: Pid) {
    loop {
        let flags = libc::WEXITED | libc::WNOHANG;
        // Looks first: the command's own end is not to be taken here.
        // SAFETY: all zero is a valid siginfo, which the call fills in, as in `wait_child`.
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

/// All that the child needs, made before the fork.
struct ExecPlan {
    name: OsString,
    candidates: Vec<CString>,
    /// What `argv` and `script_argv` point to.
    _arguments: Vec<CString>,
    /// What `envp` points to beside the caller's.
    _variables: Vec<CString>,
    argv: Vec<*const c_char>,
    /// `/bin/sh`, the candidate (put in when its turn comes), the arguments.
    script_argv: Vec<*const c_char>,
    envp: Vec<*const c_char>,
}

/// As whom the child runs the command.
enum Privileges<'a> {
    /// As whoever runs memleak.
    Ours,
    /// Without the capabilities that memleak's file gave it. The exec would take them anyway, but they
    /// would decide on whether the file may be executed.
    None(Capabilities),
    Of(&'a Identity),
}

/// What the child tells its parent if there will be no command.
struct Failure {
    step: Option<Step>,
    errno: Errno,
}

impl Failure {
    const BYTES: usize = 2 * size_of::<c_int>();

    fn to_bytes(&self) -> [u8; Self::BYTES] {
        let step = self.step.map_or(0, |step| step as i64);
        (step << 32 | i64::from(self.errno as u32)).to_ne_bytes()
    }

    fn from_bytes(bytes: [u8; Self::BYTES]) -> Self {
        let both = i64::from_ne_bytes(bytes);
        Self {
            step: Step::from_number((both >> 32) as i32),
            errno: Errno::from_raw(both as i32),
        }
    }
}

/// What the child finds: numbers, since it must not drop (close) what its parent owns.
struct Child<'a> {
    inherited: Inherited,
    privileges: Privileges<'a>,
    go: RawFd,
    outcome: RawFd,
    parents: [RawFd; 2],
}

impl ExecPlan {
    fn new(command: &[OsString], identity: Option<&Identity>) -> Result<Self> {
        let Some(name) = command.first() else {
            bail!("no command given: memleak run -- COMMAND")
        };
        let arguments = command
            .iter()
            .map(|argument| CString::new(argument.as_bytes()))
            .collect::<std::result::Result<Vec<_>, _>>()
            .context("an argument of the command has a zero byte in it")?;
        let environment = environment();
        let path = environment
            .iter()
            .find_map(|entry| entry.to_bytes().strip_prefix(b"PATH="));
        let candidates = candidates(name, path.unwrap_or(DEFAULT_PATH));
        let argv = pointers(arguments.iter().map(CString::as_c_str));
        let mut script_argv = vec![SHELL.as_ptr(), ptr::null()];
        script_argv.extend(argv.iter().skip(1));
        let variables = identity.map_or_else(Vec::new, variables);
        let envp = replaced(&environment, &variables);
        let envp = pointers(envp.into_iter());
        Ok(Self {
            name: name.clone(),
            candidates,
            _arguments: arguments,
            _variables: variables,
            argv,
            script_argv,
            envp,
        })
    }

    /// The child's way from the fork to the exec. Only async-signal-safe calls: no allocation, no lock,
    /// no panic.
    fn run(&mut self, child: &Child) -> ! {
        for fd in child.parents {
            // SAFETY: this process's copies; nothing here drops their owners, as it never returns. With
            // the writing end open it would never see that memleak is gone.
            unsafe { libc::close(fd) };
        }
        child.restore_what_was_inherited();
        // At once: what waits here has no more rights than the command will have.
        let failure = match child.take_privileges() {
            Err((step, errno)) => Failure {
                step: Some(step),
                errno,
            },
            Ok(()) => {
                if !child.is_released() {
                    // SAFETY: always safe.
                    unsafe { libc::_exit(ABANDONED) };
                }
                Failure {
                    step: None,
                    errno: self.execute(),
                }
            }
        };
        let bytes = failure.to_bytes();
        // SAFETY: writes a buffer of ours; if memleak is gone there is nobody to tell.
        unsafe {
            libc::signal(libc::SIGPIPE, libc::SIG_IGN);
            libc::write(child.outcome, bytes.as_ptr().cast(), bytes.len());
            libc::_exit(c_int::from(exit::NOT_EXECUTABLE))
        }
    }

    /// What execvp does (glibc posix/execvpe.c), which timeout and env call, without its search at this
    /// late hour. Returns only if nothing could be executed.
    fn execute(&mut self) -> Errno {
        let mut last = Errno::ENOENT;
        let mut refused = false;
        for candidate in &self.candidates {
            let mut errno = execve(candidate.as_ptr(), &self.argv, &self.envp);
            if errno == Errno::ENOEXEC {
                if let Some(script) = self.script_argv.get_mut(1) {
                    *script = candidate.as_ptr();
                }
                errno = execve(SHELL.as_ptr(), &self.script_argv, &self.envp);
            }
            match errno {
                Errno::EACCES => refused = true,
                Errno::ENOENT
                | Errno::ESTALE
                | Errno::ENOTDIR
                | Errno::ENODEV
                | Errno::ETIMEDOUT => {}
                errno => return errno,
            }
            last = errno;
        }
        if refused { Errno::EACCES } else { last }
    }
}

impl Child<'_> {
    fn take_privileges(&self) -> std::result::Result<(), (Step, Errno)> {
        match &self.privileges {
            Privileges::Ours => Ok(()),
            Privileges::Of(identity) => identity.assume(),
            Privileges::None(none) => none.set().map_err(|_| (Step::Capabilities, Errno::last())),
        }
    }

    fn restore_what_was_inherited(&self) {
        for fd in 0..3 {
            if self.inherited.was_closed(fd) {
                // SAFETY: what Rust's runtime opened there, in this process only.
                unsafe { libc::close(fd) };
            }
        }
        for signal in 1..=LAST_SIGNAL {
            let ignored = self.inherited.ignored.contains(signal);
            // SAFETY: sets no handler. It fails for those that cannot be set, which need no restoring.
            unsafe {
                libc::signal(
                    signal,
                    if ignored {
                        libc::SIG_IGN
                    } else {
                        libc::SIG_DFL
                    },
                )
            };
        }
        self.inherited.blocked.block_only();
    }

    /// Waits for the byte; false at end of file, when memleak is gone.
    fn is_released(&self) -> bool {
        let mut byte = 0u8;
        loop {
            // SAFETY: reads one byte to where one fits.
            let length = unsafe { libc::read(self.go, (&raw mut byte).cast(), 1) };
            if length >= 0 || Errno::last() != Errno::EINTR {
                return length == 1;
            }
        }
    }
}

fn execve(path: *const c_char, argv: &[*const c_char], envp: &[*const c_char]) -> Errno {
    // SAFETY: `path` and the entries of the null-terminated arrays are C strings that `ExecPlan` owns.
    unsafe { libc::execve(path, argv.as_ptr(), envp.as_ptr()) };
    Errno::last()
}

fn pointers<'a>(strings: impl Iterator<Item = &'a CStr>) -> Vec<*const c_char> {
    strings.map(CStr::as_ptr).chain([ptr::null()]).collect()
}

/// The variables of an identity as an environment has them.
fn variables(identity: &Identity) -> Vec<CString> {
    let variables = identity.variables().into_iter();
    // No entry of the user database has a zero byte in it.
    variables
        .filter_map(|(name, value)| {
            CString::new([name.as_bytes(), b"=", value.as_bytes()].concat()).ok()
        })
        .collect()
}

/// `environment` with `variables` in the places of those of the same name, or at its end.
fn replaced<'a>(environment: &[&'a CStr], variables: &'a [CString]) -> Vec<&'a CStr> {
    let name = |entry: &CStr| {
        let bytes = entry.to_bytes();
        let end = bytes.iter().position(|byte| *byte == b'=');
        bytes[..end.unwrap_or(bytes.len())].to_vec()
    };
    let mut new: Vec<&CStr> = environment.to_vec();
    for variable in variables {
        let same = new.iter_mut().find(|entry| name(entry) == name(variable));
        match same {
            Some(entry) => *entry = variable,
            None => new.push(variable),
        }
    }
    new
}

/// The paths that execvp would try for `name`: itself if it has a slash, otherwise it in each directory
/// of `path`, where an empty one is the current directory. An empty name is in none of them.
fn candidates(name: &OsStr, path: &[u8]) -> Vec<CString> {
    let name = name.as_bytes();
    if name.is_empty() {
        return Vec::new();
    }
    let tried = if name.contains(&b'/') {
        vec![name.to_vec()]
    } else {
        let in_directory = |directory: &[u8]| {
            let separator: &[u8] = if directory.is_empty() { b"" } else { b"/" };
            [directory, separator, name].concat()
        };
        path.split(|byte| *byte == b':').map(in_directory).collect()
    };
    // Neither an argument nor an environment string can hold a zero byte.
    tried
        .into_iter()
        .filter_map(|path| CString::new(path).ok())
        .collect()
}

fn close_on_exec_pipe() -> Result<(OwnedFd, OwnedFd)> {
    pipe2(OFlag::O_CLOEXEC).context("cannot open a pipe to the command (see `ulimit -n`)")
}

fn open_pidfd(pid: Pid) -> Result<OwnedFd> {
    // SAFETY: takes two numbers.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) };
    let fd = Errno::result(fd)
        .context("cannot open a pidfd of the command (Linux 5.3 or newer is needed)")?;
    // SAFETY: just opened, ours alone, and close-on-exec as every pidfd is.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Puts `null` in place of standard input and output and closes every other descriptor of the caller's but
/// standard error.
///
/// A descriptor of the caller's is one without the close-on-exec flag: it survived our own exec, and
/// all that we open has the flag.
fn give_up_inherited(null: &OwnedFd) {
    replace(libc::STDIN_FILENO, null);
    replace(libc::STDOUT_FILENO, null);
    for fd in open_descriptors()
        .into_iter()
        .filter(|fd| *fd > libc::STDERR_FILENO)
    {
        // SAFETY: only borrowed for the call, which tells whether it is open at all.
        let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
        if fcntl(borrowed, FcntlArg::F_GETFD)
            .is_ok_and(|flags| flags & FdFlag::FD_CLOEXEC.bits() == 0)
        {
            // SAFETY: the caller's, as said above, so nothing in this process owns it.
            unsafe { libc::close(fd) };
        }
    }
}

fn replace(standard: RawFd, null: &OwnedFd) {
    // SAFETY: the standard descriptors have no owner. dup2 between two open ones cannot fail but by
    // interruption of a file system's own making, and leaves what was there.
    unsafe { libc::dup2(null.as_raw_fd(), standard) };
}

/// Every number that may be an open descriptor.
fn open_descriptors() -> Vec<RawFd> {
    match std::fs::read_dir("/proc/self/fd") {
        Ok(entries) => entries
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .collect(),
        // No /proc, or closed to a binary that has file capabilities: every number that there can be.
        Err(_) => {
            let limit = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE);
            let soft = limit.map_or(1024, |(soft, _)| soft);
            (0..RawFd::try_from(soft)
                .unwrap_or(MOST_DESCRIPTORS)
                .min(MOST_DESCRIPTORS))
                .collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tried(name: &str, path: &str) -> Vec<String> {
        let found = candidates(OsStr::new(name), path.as_bytes());
        found
            .into_iter()
            .map(|path| path.into_string().unwrap())
            .collect()
    }

    #[test]
    fn a_bare_name_is_looked_for_in_every_directory_of_path() {
        assert_eq!(tried("ls", "/usr/bin:/bin"), ["/usr/bin/ls", "/bin/ls"]);
    }

    #[test]
    fn an_empty_directory_in_path_is_the_current_one() {
        assert_eq!(tried("ls", ":/bin:"), ["ls", "/bin/ls", "ls"]);
        assert_eq!(tried("ls", ""), ["ls"]);
    }

    #[test]
    fn a_name_with_a_slash_is_not_searched() {
        assert_eq!(tried("./ls", "/bin"), ["./ls"]);
    }

    #[test]
    fn an_empty_name_is_nowhere() {
        assert!(tried("", "/bin").is_empty());
    }

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
    fn without_its_user_a_command_is_not_tried() {
        let error = ExecError {
            command: OsString::from("x"),
            step: Some(Step::Groups),
            errno: Errno::ENOENT,
        };
        assert_eq!(error.outcome().code(), Some(125));
        assert!(error.to_string().contains("--user"), "{error}");
    }

    #[test]
    fn a_failure_arrives_as_it_was_sent() {
        for step in [
            None,
            Some(Step::Groups),
            Some(Step::Group),
            Some(Step::User),
            Some(Step::Capabilities),
        ] {
            for errno in [Errno::ENOENT, Errno::EPERM, Errno::ENOEXEC] {
                let sent = Failure { step, errno };
                let came = Failure::from_bytes(sent.to_bytes());
                assert_eq!((came.step, came.errno), (step, errno));
            }
        }
    }

    #[test]
    fn a_variable_is_replaced_in_its_place_or_put_at_the_end() {
        let environment = [c"HOMES=a", c"HOME=/root", c"odd", c"A=HOME=b"];
        let variables = [c"HOME=/home/alice", c"USER=alice"].map(CStr::to_owned);
        assert_eq!(
            replaced(&environment, &variables),
            [
                c"HOMES=a",
                c"HOME=/home/alice",
                c"odd",
                c"A=HOME=b",
                c"USER=alice"
            ]
        );
        assert_eq!(replaced(&environment, &[]), environment);
    }

    #[test]
    fn an_exec_error_is_one_line_whatever_the_name() {
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
