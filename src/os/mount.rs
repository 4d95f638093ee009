//! A private mount of a single file, for probes.

use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::{io, thread};

use nix::errno::Errno;
use nix::sched::{CloneFlags, setns, unshare};

/// Returns the same file, seen through a private mount, which goes when nothing uses it any more. The reference that a
/// uprobe keeps to its file includes the file's mount. While the probe exists, that mount could not be unmounted. `pid`
/// is a process whose mount namespace contains the file, if that may be another namespace.
///
/// # Errors
/// CAP_SYS_ADMIN is missing, or Linux is older than 5.2.
pub fn in_own_mount(file: &File, pid: Option<u32>) -> io::Result<File> {
    match (own_mount_of(file), pid) {
        // The mount is not in memleak's mount namespace.
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
    // SAFETY: the path is a C string, and the call reads nothing else.
    let made = unsafe { libc::syscall(libc::SYS_open_tree, file.as_raw_fd(), c"".as_ptr(), flags) };
    let descriptor = Errno::result(made)? as RawFd;
    // SAFETY: the descriptor is new and has no other owner.
    Ok(unsafe { File::from_raw_fd(descriptor) })
}
