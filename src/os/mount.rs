//! A private mount of a single file, for probes.

use std::fs::File;
use std::{io, thread};

use nix::errno::Errno;
use nix::sched::{CloneFlags, setns, unshare};
use rustix::mount::{OpenTreeFlags, open_tree};

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
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    let made = open_tree(file, "", flags);
    Ok(made
        .map_err(|error| Errno::from_raw(error.raw_os_error()))?
        .into())
}
