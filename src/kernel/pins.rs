//! Keeps links in a file system that goes with memleak. When memleak ends, in whatever way, the kernel's own workers
//! close the links. So memleak's exit waits for none of them, and no signal can keep one from being closed.
//!
//! The file system is mounted nowhere: only memleak's descriptor leads to it. When that is closed, the kernel puts the
//! link of each inode, at once or after a grace period of RCU (kernel/bpf/inode.c). `bpf_link_put` leaves the rest to a
//! worker, from Linux 6.5 on (kernel/bpf/syscall.c). Before, memleak's exit may close the links itself, where no signal
//! reaches it any more.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};

use libbpf_rs::libbpf_sys::{BPF_F_PATH_FD, bpf_obj_pin, bpf_obj_pin_opts};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};
use rustix::mount::{fsconfig_create, fsmount, fsopen};

/// The file system, and how many links are in it.
pub(super) struct Pins {
    mount: OwnedFd,
    count: u32,
}

impl Pins {
    /// Makes the file system.
    ///
    /// # Errors
    /// CAP_SYS_ADMIN is missing, or Linux is older than 5.2.
    pub(super) fn new() -> io::Result<Self> {
        let context = fsopen("bpf", FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_create(&context)?;
        let attributes = MountAttrFlags::empty();
        let mount = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
        Ok(Self { mount, count: 0 })
    }

    /// Keeps a link until memleak has ended.
    ///
    /// # Errors
    /// The descriptor is not a link that can be kept (a perf event is none).
    pub(super) fn keep(&mut self, link: BorrowedFd<'_>) -> io::Result<()> {
        let (link, mount) = (link.as_raw_fd(), self.mount.as_raw_fd());
        let name = CString::new(self.count.to_string())?;
        let options = bpf_obj_pin_opts {
            sz: size_of::<bpf_obj_pin_opts>() as _,
            file_flags: BPF_F_PATH_FD,
            path_fd: mount,
        };
        // SAFETY: the name and the options outlive the call.
        let mut result = unsafe { bpf_obj_pin_opts(link, name.as_ptr(), &raw const options) };
        if result < 0 {
            // Before 6.5 a name below a directory must be a path.
            let path = CString::new(format!("/proc/self/fd/{mount}/{}", self.count))?;
            // SAFETY: the path outlives the call.
            result = unsafe { bpf_obj_pin(link, path.as_ptr()) };
        }
        if result < 0 {
            return Err(io::Error::from_raw_os_error(-result));
        }
        self.count += 1;
        Ok(())
    }
}
