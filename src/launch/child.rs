//! The child's steps from the fork to the exec. They make only async-signal-safe calls, and everything is allocated
//! before the fork. What the parent does is in `launch` and `running`.

use std::ffi::{CStr, CString, OsStr, OsString, c_char, c_int};
use std::os::fd::{BorrowedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::ptr;

use anyhow::{Context, Result, bail};
use nix::errno::Errno;

use crate::model::exit;
use crate::os::capabilities::Capabilities;
use crate::os::identity::{Identity, Step};
use crate::os::inherited::{Inherited, environment};
use crate::os::namespace;
use crate::os::signal_set::LAST_SIGNAL;

/// The child's exit code if memleak is gone before the release. No process reads it then.
const ABANDONED: c_int = 125;

/// The directories that the C library searches if there is no PATH (`_CS_PATH`).
const DEFAULT_PATH: &[u8] = b"/bin:/usr/bin";

/// The interpreter of a text file without `#!` (`_PATH_BSHELL`).
const SHELL: &CStr = c"/bin/sh";

/// Everything that the child needs, made before the fork.
pub(super) struct ExecPlan {
    pub(super) name: OsString,
    pub(super) candidates: Vec<CString>,
    /// Owns the strings that `argv` and `script_argv` point to.
    _arguments: Vec<CString>,
    /// Owns the strings that `envp` points to, besides those of the caller's environment.
    _variables: Vec<CString>,
    argv: Vec<*const c_char>,
    /// `/bin/sh`, the candidate (set when that candidate is tried), and the arguments.
    script_argv: Vec<*const c_char>,
    envp: Vec<*const c_char>,
}

/// The rights with which the child runs the command.
pub(super) enum Privileges<'a> {
    /// Those of the user that runs memleak.
    Ours,
    /// Without the capabilities that memleak's file has. The exec would remove them in any case, but until then they
    /// would decide whether the file may be executed.
    None(Capabilities),
    Of(&'a Identity),
}

/// The child's message to its parent if it cannot execute the command.
pub(super) struct Failure {
    pub(super) step: Option<Step>,
    pub(super) errno: Errno,
}

impl Failure {
    pub(super) const BYTES: usize = 2 * size_of::<c_int>();

    fn to_bytes(&self) -> [u8; Self::BYTES] {
        let step = self.step.map_or(0, |step| step as i64);
        (step << 32 | i64::from(self.errno as u32)).to_ne_bytes()
    }

    pub(super) fn from_bytes(bytes: [u8; Self::BYTES]) -> Self {
        let both = i64::from_ne_bytes(bytes);
        Self {
            step: Step::from_number((both >> 32) as i32),
            errno: Errno::from_raw(both as i32),
        }
    }
}

/// What the child has at its start. Descriptors are plain numbers, since the child must not drop (close) its parent's
/// owned ones.
pub(super) struct Child<'a> {
    pub(super) inherited: Inherited,
    pub(super) privileges: Privileges<'a>,
    pub(super) go: RawFd,
    pub(super) outcome: RawFd,
    /// The parent's ends of pipes and sockets.
    pub(super) parents: [Option<RawFd>; 3],
    /// The socket by which the parent gets hold of the child's mount namespace, if the child makes one.
    pub(super) namespace: Option<BorrowedFd<'a>>,
}

impl ExecPlan {
    pub(super) fn new(command: &[OsString], identity: Option<&Identity>) -> Result<Self> {
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

    /// Runs the child from the fork to the exec. Makes only async-signal-safe calls: no allocation, no lock, no
    /// panic.
    pub(super) fn run(&mut self, child: &Child) -> ! {
        for fd in child.parents.into_iter().flatten() {
            // SAFETY: these are this process's copies. Nothing here drops their owners, as this function never
            // returns. With the writing end open, the child would never see that memleak is gone.
            unsafe { libc::close(fd) };
        }
        child.restore_inherited_state();
        // The parent reports the failure.
        if child
            .namespace
            .is_some_and(|socket| !namespace::move_to_own(socket))
        {
            // SAFETY: always safe.
            unsafe { libc::_exit(ABANDONED) };
        }
        // This comes before the wait, so that a waiting child has no more rights than the command will have.
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
        // SAFETY: writes a buffer of this function. If memleak is gone, no process reads it.
        unsafe {
            libc::signal(libc::SIGPIPE, libc::SIG_IGN);
            libc::write(child.outcome, bytes.as_ptr().cast(), bytes.len());
            libc::_exit(c_int::from(exit::NOT_EXECUTABLE))
        }
    }

    /// Does what execvp does (glibc posix/execvpe.c), which timeout and env call. The search for candidates was done
    /// before the fork. Returns only if nothing could be executed.
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

    fn restore_inherited_state(&self) {
        for fd in 0..3 {
            if self.inherited.was_closed(fd) {
                // SAFETY: Rust's runtime opened this descriptor. It is closed in this process only.
                unsafe { libc::close(fd) };
            }
        }
        for signal in 1..=LAST_SIGNAL {
            let ignored = self.inherited.ignored.contains(signal);
            // SAFETY: sets no handler. It fails for signals that cannot be set, and these need no restoring.
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

    /// Waits for the byte. Returns false at end of file, when memleak is gone.
    fn is_released(&self) -> bool {
        let mut byte = 0u8;
        loop {
            // SAFETY: reads one byte into a variable of one byte.
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

/// The variables of an identity, in the form of environment entries.
fn variables(identity: &Identity) -> Vec<CString> {
    let variables = identity.variables().into_iter();
    // No entry of the user database contains a zero byte.
    variables
        .filter_map(|(name, value)| {
            CString::new([name.as_bytes(), b"=", value.as_bytes()].concat()).ok()
        })
        .collect()
}

/// `environment` with `variables`. A variable replaces the entry of the same name, or comes at the end.
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

/// The paths that execvp would try for `name`. A name with a slash is tried as it is. Any other name is tried in each
/// directory of `path`, where an empty entry means the current directory. An empty name gives no paths.
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
    // Neither an argument nor an environment string can contain a zero byte.
    tried
        .into_iter()
        .filter_map(|path| CString::new(path).ok())
        .collect()
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
    fn a_name_with_a_slash_is_not_searched_in_path() {
        assert_eq!(tried("./ls", "/bin"), ["./ls"]);
    }

    #[test]
    fn an_empty_name_has_no_candidates() {
        assert!(tried("", "/bin").is_empty());
    }

    #[test]
    fn a_failure_is_decoded_as_it_was_sent() {
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
}
