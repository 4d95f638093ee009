//! A mount of a single file.

use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::{io, thread};

use nix::errno::Errno;
use nix::sched::{CloneFlags, setns, unshare};

/// An open file as seen by a mount that nobody else sees, and that goes with the last who uses it: what uprobes
/// keep of a file includes the mount that it came by, which could not be unmounted while they are there. `pid`
/// is a process in whose mount namespace the file is, if that may be another one.
///
/// # Errors
/// CAP_SYS_ADMIN is missing, or Linux is older than 5.2.
pub fn in_own_mount(file: &File, pid: Option<u32>) -> io::Result<File> {
    match (own_mount_of(file), pid) {
        // Not a mount of ours.
        (Err(Errno::EINVAL), Some(pid)) => {
            let namespace = File::open(format!("/proc/{pid}/ns/mnt"))?;
            let made = thread::scope(|scope| {
                let in_there = scope.spawn(|| {
                    unshare(CloneFlags::CLONE_FS)?;
                    setns(&namespace, CloneFlags::CLONE_NEWNS)?;
                    own_mount_of(file)
                });
                in_there.join().unwrap_or(Err(Errno::EINVAL))
            });
            Ok(made?)
        }
        (made, _) => Ok(made?),
    }
}

fn own_mount_of(file: &File) -> nix::Result<File> {
    let flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC | libc::AT_EMPTY_PATH as u32;
    // SAFETY: the path is a C string; the call reads nothing else.
    let made = unsafe { libc::syscall(libc::SYS_open_tree, file.as_raw_fd(), c"".as_ptr(), flags) };
    let descriptor = Errno::result(made)? as RawFd;
    // SAFETY: a new descriptor, which nobody else has.
    Ok(unsafe { File::from_raw_fd(descriptor) })
}
