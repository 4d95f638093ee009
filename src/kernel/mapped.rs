//! Arrays of the kernel side that are mapped into memleak. Programs change them meanwhile.

use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd as _;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU64, Ordering};

use libbpf_rs::MapCore;

/// What memleak may do with a mapped array.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MapAccess {
    Read,
    Write,
}

impl MapAccess {
    fn protection(self) -> i32 {
        match self {
            MapAccess::Read => libc::PROT_READ,
            MapAccess::Write => libc::PROT_READ | libc::PROT_WRITE,
        }
    }
}

/// A C struct that begins with an integer of 8 bytes, by which programs tell whether it is in use.
pub(super) trait FirstWord: Copy {}

/// A mapped array of C structs of integers.
pub(super) struct MappedArray<T> {
    first: NonNull<T>,
    count: usize,
    is_writable: bool,
}

// SAFETY: the mapping belongs to this value, and is the same in every thread.
unsafe impl<T> Send for MappedArray<T> {}

impl<T: Copy> MappedArray<T> {
    /// Maps an array whose entries have a size that is a multiple of 8.
    ///
    /// # Errors
    /// There is no address space left.
    pub(super) fn map(map: &impl MapCore, access: MapAccess) -> io::Result<Self> {
        Self::map_part(map, access, 0..map.max_entries() as usize)
    }

    /// Maps a part of such an array, which begins at a page.
    ///
    /// # Errors
    /// There is no address space left.
    pub(super) fn map_part(
        map: &impl MapCore,
        access: MapAccess,
        part: Range<usize>,
    ) -> io::Result<Self> {
        let count = part.len();
        let offset = (part.start * size_of::<T>()) as libc::off_t;
        // SAFETY: the kernel chooses the address of a new mapping.
        let address = unsafe {
            libc::mmap(
                ptr::null_mut(),
                count * size_of::<T>(),
                access.protection(),
                libc::MAP_SHARED,
                map.as_fd().as_raw_fd(),
                offset,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let first = NonNull::new(address.cast::<T>()).ok_or(io::ErrorKind::Other)?;
        let is_writable = access == MapAccess::Write;
        Ok(Self {
            first,
            count,
            is_writable,
        })
    }

    /// How many entries it has.
    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// An entry, as it is now.
    pub(super) fn get(&self, at: usize) -> Option<T> {
        // SAFETY: the mapping has `count` entries, and every pattern of bytes is one.
        (at < self.count).then(|| unsafe { self.first.add(at).read_volatile() })
    }

    /// Sets an entry, if the array has so many and can be written to.
    pub(super) fn put(&self, at: usize, value: T) {
        if at < self.count && self.is_writable {
            // SAFETY: the mapping has `count` entries, and can be written to.
            unsafe { self.first.add(at).write_volatile(value) };
        }
    }
}

impl<T: FirstWord> MappedArray<T> {
    /// Sets the first word of an entry, after all that was written before.
    pub(super) fn set_first_word(&self, at: usize, value: u64) {
        if at < self.count && self.is_writable {
            // SAFETY: the mapping has `count` entries that begin with a word of 8 bytes, and can be written to.
            let word = unsafe { &*self.first.as_ptr().add(at).cast::<AtomicU64>() };
            word.store(value, Ordering::Release);
        }
    }
}

impl<T> Drop for MappedArray<T> {
    fn drop(&mut self) {
        // SAFETY: made in `map`, and no reference into it exists.
        unsafe { libc::munmap(self.first.as_ptr().cast(), self.count * size_of::<T>()) };
    }
}
