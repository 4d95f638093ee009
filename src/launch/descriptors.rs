//! The caller's descriptors: which memleak gives up, and the pipes to the command.

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};

use anyhow::{Context, Result};
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::unistd::pipe2;

/// The kernel's default for the highest `ulimit -n` (fs.nr_open).
const MOST_DESCRIPTORS: RawFd = 1 << 20;

/// What memleak does with its own standard error once the command has been executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stderr {
    /// The report goes there.
    Keep,
    /// The report goes elsewhere: whoever reads the command's standard error must see its end when the
    /// command ends, not when memleak does.
    GiveUp,
}

pub(super) fn close_on_exec_pipe() -> Result<(OwnedFd, OwnedFd)> {
    pipe2(OFlag::O_CLOEXEC).context("cannot open a pipe to the command (see `ulimit -n`)")
}

/// Puts `null` in place of standard input and output and closes every other descriptor of the caller's but
/// standard error.
///
/// A descriptor of the caller's is one without the close-on-exec flag: it survived our own exec, and
/// all that we open has the flag.
pub(super) fn give_up_inherited(null: &OwnedFd) {
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

pub(super) fn replace(standard: RawFd, null: &OwnedFd) {
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
