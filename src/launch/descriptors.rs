//! The caller's descriptors that memleak gives up, and the pipes to the command.

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};

use anyhow::{Context, Result};
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::unistd::pipe2;

/// The kernel's default for the highest possible `ulimit -n` (fs.nr_open).
const MOST_DESCRIPTORS: RawFd = 1 << 20;

/// What memleak does with its own standard error after the command has been executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stderr {
    /// Keeps it: the report goes there.
    Keep,
    /// Gives it up: the report goes elsewhere. A reader of the command's standard error must see end of file when
    /// the command exits, not when memleak does.
    GiveUp,
}

pub(super) fn close_on_exec_pipe() -> Result<(OwnedFd, OwnedFd)> {
    pipe2(OFlag::O_CLOEXEC).context("cannot open a pipe to the command (see `ulimit -n`)")
}

/// Replaces standard input and output with `null`. Closes every other descriptor of the caller's, except standard
/// error.
///
/// A descriptor without the close-on-exec flag is the caller's. It survived memleak's own exec, and all descriptors
/// that memleak opens have the flag.
pub(super) fn give_up_inherited(null: &OwnedFd) {
    replace(libc::STDIN_FILENO, null);
    replace(libc::STDOUT_FILENO, null);
    for fd in open_descriptors()
        .into_iter()
        .filter(|fd| *fd > libc::STDERR_FILENO)
    {
        // SAFETY: the descriptor is borrowed for the call only. The call reports whether it is open.
        let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
        if fcntl(borrowed, FcntlArg::F_GETFD)
            .is_ok_and(|flags| flags & FdFlag::FD_CLOEXEC.bits() == 0)
        {
            // SAFETY: the descriptor is the caller's, as said above, so nothing in this process owns it.
            unsafe { libc::close(fd) };
        }
    }
}

pub(super) fn replace(standard: RawFd, null: &OwnedFd) {
    // SAFETY: the standard descriptors have no owner. dup2 between two open descriptors can fail only if a file
    // system interrupts it, and then it changes nothing.
    unsafe { libc::dup2(null.as_raw_fd(), standard) };
}

/// Every number that may be an open descriptor.
fn open_descriptors() -> Vec<RawFd> {
    match std::fs::read_dir("/proc/self/fd") {
        Ok(entries) => entries
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .collect(),
        // There is no /proc, or a program with file capabilities may not read it: return every possible number.
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
