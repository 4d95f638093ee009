//! The files with probes, identified by the kernel's numbers of their devices and inodes.

use std::collections::HashMap;
use std::fs::{File, Metadata};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::ptr::NonNull;

use crate::find::hooks::Hook;
use crate::find::sites::ProbeSite;
use crate::kernel::attach::Attached;
use crate::kernel::skeletons::types::{file_flags, file_id, file_state, file_version, limits};
use crate::os::mapping::Mapping;

/// A file that a process waits for, to be examined.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    pub mapping: Mapping,
    pub(super) file: file_id,
    pub(super) version: file_version,
}

/// What is known of the files with probes.
#[derive(Default)]
pub(super) struct Known {
    pub(super) files: HashMap<Key, ProbedFile>,
    pub(super) sites: u32,
}

/// The kernel's numbers of a file's device and inode.
pub(super) type Key = (u64, u64);

/// A file with probes.
#[derive(Default)]
pub(super) struct ProbedFile {
    pub(super) index: Option<u16>,
    pub(super) sites: Vec<ProbeSite>,
    pub(super) hooks: Vec<Hook>,
    pub(super) exits: Vec<u64>,
    pub(super) links: Vec<Attached>,
}

impl Known {
    pub(super) fn take_links(&mut self) -> Vec<Attached> {
        self.files
            .values_mut()
            .flat_map(|entry| std::mem::take(&mut entry.links))
            .collect()
    }
}

/// A piece of a file, mapped into memleak.
pub(super) struct Mapped {
    pub(super) address: NonNull<libc::c_void>,
}

impl Mapped {
    /// The largest page size that exists.
    const LENGTH: u64 = 1 << 16;

    /// Maps the piece that contains this offset.
    pub(super) fn at(file: &File, offset: u64) -> io::Result<Self> {
        let start = offset / Self::LENGTH * Self::LENGTH;
        let start = start.try_into().map_err(io::Error::other)?;
        // SAFETY: a new mapping at an address that the kernel chooses touches no existing memory.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                Self::LENGTH as usize,
                libc::PROT_READ,
                libc::MAP_PRIVATE,
                file.as_raw_fd(),
                start,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        NonNull::new(address)
            .map(|address| Self { address })
            .ok_or_else(|| io::ErrorKind::Other.into())
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: memleak made the mapping, and no reference into it exists.
        unsafe { libc::munmap(self.address.as_ptr(), Self::LENGTH as usize) };
    }
}

/// Maps the sites that are to be probed. The kernel checks an instruction only in processes that have it mapped. If it
/// refuses the probe when a process maps the file later, it reports no error, and calls go uncounted.
pub(super) fn map_sites(file: &File, sites: &[ProbeSite]) -> io::Result<Vec<Mapped>> {
    let mut offsets: Vec<u64> = sites.iter().map(|site| site.file_offset).collect();
    offsets.sort_unstable();
    offsets.dedup_by_key(|offset| *offset / Mapped::LENGTH);
    let pieces = offsets.into_iter().map(|offset| Mapped::at(file, offset));
    pieces.collect()
}

/// The result of stat(2), in the kernel's form.
pub(super) fn by_stat(metadata: &Metadata) -> (file_id, file_version) {
    let device = metadata.dev();
    let file = file_id {
        inode: metadata.ino(),
        device: u64::from(libc::major(device)) << 20 | u64::from(libc::minor(device)),
    };
    let version = file_version {
        changed_sec: metadata.ctime(),
        changed_nsec: metadata.ctime_nsec() as u32,
        pad: 0,
    };
    (file, version)
}

pub(super) fn unexamined_for_now() -> file_state {
    let mut state = unexamined();
    state.flags |= file_flags::FILE_FORGET.0;
    state
}

pub(super) fn unexamined() -> file_state {
    file_state {
        index: limits::NO_INDEX.0,
        flags: file_flags::FILE_UNEXAMINED.0,
        ..file_state::default()
    }
}
