//! Opens the destination of the report: the file that `-o` names, standard output, or standard error. The report itself
//! is written by `Report`.
//!
//! The file is opened with the rights of the user who called memleak, or under sudo of the user who called sudo. The
//! reason: in a directory that other users can write to, such as /tmp, the name may be a link that another user has put
//! there. For the same reason, the value of an environment variable in the name must not lead to another directory.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, IsTerminal, Write};
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};

use crate::os::identity::Identity;
use crate::os::inherited::{self, Inherited};
use crate::report::renaming::Renaming;
use crate::report::render::OldContent;
use crate::report::replacing::Replacing;
use crate::report::rotating::Rotating;

/// An open destination.
pub struct Output {
    pub writer: Box<dyn Write + Send>,
    /// Whether the destination is a terminal, which can show colour.
    pub terminal: bool,
    /// The name of the destination in messages.
    pub name: String,
    /// Whether the destination is memleak's standard error.
    pub is_stderr: bool,
    /// Whether the user has named it.
    pub is_file: bool,
    /// The device and inode of a regular file that is written under its own name.
    pub identity: Option<(u64, u64)>,
    /// The name that a document gets when it is complete. `None`: what is written is there at once.
    pub renaming: Option<Renaming>,
}

impl Output {
    /// A destination that is no file.
    pub fn new(name: &str, writer: Box<dyn Write + Send>) -> Self {
        Self {
            writer,
            terminal: false,
            name: name.to_owned(),
            is_stderr: false,
            is_file: false,
            identity: None,
            renaming: None,
        }
    }

    /// Whether both name the same file.
    pub fn is_same(&self, other: &Self) -> bool {
        let now = |output: &Self| match &output.renaming {
            Some(renaming) => identity(&fs::metadata(renaming.path()).ok()?),
            None => output.identity,
        };
        let later = |output: &Self| output.renaming.as_ref().and_then(place);
        let same_now = now(self).is_some_and(|it| now(other) == Some(it));
        same_now || later(self).is_some_and(|it| later(other) == Some(it))
    }
}

/// Where a document will be: its directory's device and inode, and its name there.
fn place(renaming: &Renaming) -> Option<(u64, u64, OsString)> {
    let directory = fs::metadata(renaming.directory()).ok()?;
    let name = renaming.path().file_name()?;
    Some((directory.dev(), directory.ino(), name.to_owned()))
}

/// How a report comes into its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filling {
    /// Row by row. A reader sees each row at once.
    Rows(OldContent),
    /// As a document: the file appears under its name when the document is complete.
    Document,
}

/// The destination of what no file is named for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standard {
    Output,
    Error,
}

/// Whether `NO_COLOR` forbids colour (no-color.org), that is, whether it is set and not empty.
pub fn no_color() -> bool {
    std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
}

/// Opens the file that `-o` names, or the standard destination if it names none. Call it while memleak has one thread.
/// `rotate`: the size at which a regular file is put aside.
///
/// # Errors
/// The name has an invalid `%` part, or the user may not create or write the file.
pub fn open(
    file: Option<&Path>,
    standard: Standard,
    filling: Filling,
    rotate: Option<u64>,
) -> Result<Output> {
    let Some(pattern) = file else {
        return Ok(match standard {
            Standard::Output => Output {
                terminal: io::stdout().is_terminal(),
                ..Output::new("standard output", Box::new(io::stdout()))
            },
            Standard::Error => Output {
                terminal: io::stderr().is_terminal(),
                is_stderr: true,
                ..Output::new("standard error", Box::new(io::stderr()))
            },
        });
    };
    let path = expanded(pattern)?;
    let number = descriptor(&path);
    let replaced = filling == Filling::Rows(OldContent::Replaced);
    let is_regular = || fs::metadata(&path).map_or(true, |file| file.is_file());
    if (replaced || rotate.is_some()) && number.is_none() && is_regular() {
        return open_renamed(&path, rotate.filter(|_| !replaced));
    }
    let opened = match number {
        Some(fd) => {
            let duplicate = duplicate(fd);
            let file = duplicate
                .with_context(|| format!("cannot write the report to {} (-o)", path.display()))?;
            Opened::in_place(file)
        }
        None => create(&path, filling)?,
    };
    let Opened { file, renaming } = opened;
    let identity = match renaming {
        Some(_) => None,
        None => file.metadata().ok().as_ref().and_then(identity),
    };
    Ok(Output {
        terminal: file.is_terminal(),
        writer: Box::new(file),
        name: path.display().to_string(),
        is_stderr: number == Some(libc::STDERR_FILENO),
        is_file: true,
        identity,
        renaming,
    })
}

/// An open file.
struct Opened {
    file: File,
    renaming: Option<Renaming>,
}

impl Opened {
    /// A file that is written under its own name.
    fn in_place(file: File) -> Self {
        Self {
            file,
            renaming: None,
        }
    }
}

/// The device and inode of a regular file.
fn identity(facts: &fs::Metadata) -> Option<(u64, u64)> {
    facts.is_file().then(|| (facts.dev(), facts.ino()))
}

/// Opens a file that is renamed: at each flush, or if `rotate` is given when it has this size.
fn open_renamed(path: &Path, rotate: Option<u64>) -> Result<Output> {
    let user = Identity::behind_sudo()?;
    let said = cannot_open(path, user.as_ref());
    let (writer, identity): (Box<dyn Write + Send>, _) = match rotate {
        Some(limit) => {
            let file = Rotating::new(path, user, limit)?.context(said)?;
            let identity = file.identity();
            (Box::new(file), identity)
        }
        None => (Box::new(Replacing::new(path, user)?.context(said)?), None),
    };
    Ok(Output {
        terminal: false,
        writer,
        name: path.display().to_string(),
        is_stderr: false,
        is_file: true,
        identity,
        renaming: None,
    })
}

fn create(path: &Path, filling: Filling) -> Result<Opened> {
    let user = Identity::behind_sudo()?;
    let open = || match filling {
        Filling::Rows(old) => Ok(Opened::in_place(open_to_write(path, Some(old))?)),
        Filling::Document => create_beside(path, user.as_ref()),
    };
    let opened = Identity::with_file_rights(user.as_ref(), open)?;
    opened.with_context(|| cannot_open(path, user.as_ref()))
}

/// What is said if the file of a report cannot be opened with the rights of `user`, or with memleak's own.
fn cannot_open(path: &Path, user: Option<&Identity>) -> String {
    let name = path.display();
    match user {
        None => format!("cannot open {name} for the report (-o)"),
        Some(user) => format!(
            "cannot open {name} for the report (-o) as {user} (SUDO_UID), with whose rights it is opened: \
             name a file that this user may write, or open it as root by `sudo env -u SUDO_UID memleak …`"
        ),
    }
}

/// Opens a file that exists, as it is. With `old` it opens any file, and then what the file has stays or is removed.
fn open_to_write(path: &Path, old: Option<OldContent>) -> io::Result<File> {
    // O_NOCTTY: a terminal must not become memleak's controlling terminal. O_NONBLOCK: a FIFO without a reader
    // must not block memleak, because another user may have put it there.
    let mut options = File::options();
    let keep = old == Some(OldContent::Kept);
    options.create(old.is_some()).append(keep);
    options.write(!keep).truncate(old.is_some() && !keep);
    let file = options
        .custom_flags(libc::O_NOCTTY | libc::O_NONBLOCK)
        .open(path)?;
    // The open file is then written to without O_NONBLOCK.
    let flags = OFlag::from_bits_retain(fcntl(&file, FcntlArg::F_GETFL)?);
    fcntl(&file, FcntlArg::F_SETFL(flags - OFlag::O_NONBLOCK))?;
    Ok(file)
}

/// Creates a file beside the one that a document goes to. Where that cannot be, the document's own file is opened: a
/// device or a FIFO, or a file in a directory in which the user may create none.
fn create_beside(path: &Path, user: Option<&Identity>) -> io::Result<Opened> {
    let there = match open_to_write(path, None) {
        Ok(there) => Some((there.metadata()?, there)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    let mut target = path.to_owned();
    if let Some((facts, file)) = &there {
        if !facts.is_file() {
            return Ok(Opened::in_place(file.try_clone()?));
        }
        if fs::symlink_metadata(path)?.is_symlink() {
            // The kernel has let the user follow this link. To follow it again could lead to another file.
            target = fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
        }
    }
    match (Renaming::begin(target, user), there) {
        (Ok((file, renaming)), there) => {
            if let Some((facts, _)) = there {
                // The same users may read the new document. Not every file system has rights to set.
                let _ = file.set_permissions(facts.permissions());
            }
            let renaming = Some(renaming);
            Ok(Opened { file, renaming })
        }
        (Err(_), Some((_, file))) => {
            file.set_len(0)?;
            Ok(Opened::in_place(file))
        }
        (Err(error), None) => Err(error),
    }
}

/// The number of the descriptor that a path names, if it names one.
fn descriptor(path: &Path) -> Option<RawFd> {
    match path.as_os_str().as_bytes() {
        b"/dev/stdout" => Some(libc::STDOUT_FILENO),
        b"/dev/stderr" => Some(libc::STDERR_FILENO),
        path => {
            let number = path
                .strip_prefix(b"/dev/fd/")
                .or_else(|| path.strip_prefix(b"/proc/self/fd/"))?;
            std::str::from_utf8(number).ok()?.parse().ok()
        }
    }
}

/// Duplicates the caller's own descriptor, as shells and awk do. Opening its file again would truncate what the command
/// writes there. It would also fail for a socket, and for a terminal that sudo has made, since that belongs to root.
fn duplicate(fd: RawFd) -> Result<File> {
    let closed = || anyhow!("descriptor {fd} is not open for writing");
    if fd < 0 || Inherited::get()?.was_closed(fd) {
        return Err(closed());
    }
    // SAFETY: the descriptor is only borrowed for the calls below. The first call finds out whether it is open.
    let caller = unsafe { BorrowedFd::borrow_raw(fd) };
    let flag = |command| fcntl(caller, command).map_err(|_| closed());
    // A close-on-exec descriptor is memleak's own: it cannot have passed memleak's exec.
    let is_ours = flag(FcntlArg::F_GETFD)? & FdFlag::FD_CLOEXEC.bits() != 0;
    if is_ours || flag(FcntlArg::F_GETFL)? & libc::O_ACCMODE == libc::O_RDONLY {
        return Err(closed());
    }
    Ok(caller.try_clone_to_owned()?.into())
}

/// The name of a file that `-o` names, with its `%` parts replaced.
///
/// # Errors
/// The name has an invalid `%` part.
pub fn expanded(pattern: &Path) -> Result<PathBuf> {
    expand(pattern, inherited::variable)
}

/// Replaces the `%` parts of a file name: `%p` by memleak's pid, `%h` by the host's name, `%q{VAR}` by an environment
/// variable, `%%` by a percent sign. A variable may only be a path if the name begins with it (`%q{HOME}/…`). At other
/// places, the user who sets the variable would choose the directory. An example is the user whose job an
/// administrator's prolog reports on.
fn expand(pattern: &Path, variable: impl Fn(&OsStr) -> Option<OsString>) -> Result<PathBuf> {
    let mut out = Vec::new();
    let whole = pattern.as_os_str().as_bytes();
    let (mut climbs, mut leads_away) = (ups(whole), false);
    let mut rest = whole;
    while let Some(at) = rest.iter().position(|&byte| byte == b'%') {
        out.extend(&rest[..at]);
        rest = &rest[at + 1..];
        let used = match rest {
            [b'%', ..] => {
                out.push(b'%');
                1
            }
            [b'p', ..] => {
                out.extend(std::process::id().to_string().bytes());
                1
            }
            [b'h', ..] => {
                let host =
                    nix::unistd::gethostname().context("cannot get the host's name for %h")?;
                out.extend(host.as_bytes());
                1
            }
            [b'q', b'{', name @ ..] => {
                let Some(end) = name.iter().position(|&byte| byte == b'}') else {
                    bail!("-o {}: %q{{ has no closing brace", pattern.display());
                };
                let name = OsStr::from_bytes(&name[..end]);
                let Some(value) = variable(name) else {
                    bail!(
                        "-o {}: the environment variable {} is not set",
                        pattern.display(),
                        name.display()
                    );
                };
                let value = value.as_bytes();
                // Whether the name begins with this variable: only its percent sign has been read so far.
                let begins = rest.len() + 1 == whole.len();
                leads_away |= !begins && value.contains(&b'/');
                climbs += if begins { ups(value) } else { 0 };
                out.extend(value);
                end + 3
            }
            _ => bail!(
                "-o {}: after % comes p (pid), h (host), q{{VAR}} (an environment variable) or another %",
                pattern.display()
            ),
        };
        rest = &rest[used..];
    }
    out.extend(rest);
    let path = PathBuf::from(OsString::from_vec(out));
    ensure!(
        !leads_away && ups(path.as_os_str().as_bytes()) <= climbs,
        "-o {}: a variable in it leads to another directory, as the name becomes {}; a variable that is a path must \
         stand at the beginning",
        pattern.display(),
        path.display()
    );
    Ok(path)
}

/// How many `..` a path has.
fn ups(path: &[u8]) -> usize {
    let parts = path.split(|&byte| byte == b'/');
    parts.filter(|part| *part == b"..").count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expanded(pattern: &str) -> Result<String> {
        with("42", pattern)
    }

    fn with(job: &str, pattern: &str) -> Result<String> {
        let job = |name: &OsStr| (name == "JOB").then(|| OsString::from(job));
        Ok(expand(Path::new(pattern), job)?.display().to_string())
    }

    #[test]
    fn a_variable_leads_to_another_directory_only_from_the_beginning() {
        for (job, pattern) in [
            ("../../etc/cron.d/x", "/var/spool/%q{JOB}"),
            ("a/b", "%q{JOB}.%q{JOB}"),
            ("/", "/tmp%q{JOB}x"),
            ("..", "/var/%q{JOB}/report"),
            ("..", "/var/spool/../%q{JOB}/report"),
            (".", "/var/.%q{JOB}"),
        ] {
            let said = with(job, pattern).unwrap_err().to_string();
            assert!(
                said.contains("leads to another directory"),
                "{pattern}: {said}"
            );
        }
        for (job, pattern, path) in [
            ("/home/a/..", "%q{JOB}/report", "/home/a/../report"),
            ("..", "/var/x%q{JOB}/report", "/var/x../report"),
            ("a", "../%q{JOB}", "../a"),
            ("a..b", "../%q{JOB}", "../a..b"),
            ("", "/tmp/%q{JOB}x", "/tmp/x"),
        ] {
            assert_eq!(with(job, pattern).unwrap(), path);
        }
    }

    #[test]
    fn a_plain_name_stays_as_it_is() {
        assert_eq!(expanded("dir/report.json").unwrap(), "dir/report.json");
    }

    #[test]
    fn percent_parts_are_replaced_by_their_values() {
        let pid = std::process::id();
        assert_eq!(
            expanded("%q{JOB}.%p-100%%").unwrap(),
            format!("42.{pid}-100%")
        );
        assert!(!expanded("%h").unwrap().is_empty());
    }

    #[test]
    fn paths_of_descriptors_are_recognised() {
        for (path, fd) in [
            ("/dev/stdout", Some(1)),
            ("/dev/stderr", Some(2)),
            ("/dev/fd/7", Some(7)),
            ("/proc/self/fd/12", Some(12)),
            ("/dev/fd/", None),
            ("/dev/fd/x", None),
            ("dev/stdout", None),
            ("/dev/null", None),
        ] {
            assert_eq!(descriptor(Path::new(path)), fd, "{path}");
        }
    }

    #[test]
    fn the_error_names_the_invalid_percent_part() {
        for (pattern, word) in [
            ("%x", "after %"),
            ("a%", "after %"),
            ("%q{A", "brace"),
            ("%q{A}", "not set"),
        ] {
            let said = expanded(pattern).unwrap_err().to_string();
            assert!(said.contains(word), "{said}");
        }
    }
}
