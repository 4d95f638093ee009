//! Memory for copies of other processes, kept from one process to the next.
//!
//! It does not come from memleak's allocator: a new page takes longer than what is copied to it, and a process is held
//! for that long. So pages are kept, and they are huge where the kernel has such.

use std::io;
use std::mem::MaybeUninit;
use std::ptr::{self, NonNull};

/// The most bytes that are kept without a process that needs them.
const KEPT: usize = 64 << 20;

/// A buffer's size is a multiple of this: a huge page.
const UNIT: usize = 2 << 20;

/// Some pages of memory. They hold what was last written to them.
#[derive(Debug)]
pub struct Buffer {
    start: NonNull<u64>,
    /// In bytes, a multiple of `UNIT`.
    size: usize,
}

// SAFETY: the pages belong to the buffer alone.
unsafe impl Send for Buffer {}
// SAFETY: through a shared reference the pages are only read.
unsafe impl Sync for Buffer {}

impl Buffer {
    /// Pages that are zero, at least `size` bytes.
    ///
    /// # Errors
    /// There is no memory.
    pub fn new(size: usize) -> io::Result<Self> {
        let size = size
            .max(1)
            .checked_next_multiple_of(UNIT)
            .ok_or(io::ErrorKind::OutOfMemory)?;
        // SAFETY: the kernel chooses an address where nothing is mapped.
        let start = unsafe {
            libc::mmap(
                ptr::null_mut(),
                size,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the range was mapped just now. The advice changes no content. Without huge pages it fails, and small
        // ones do.
        unsafe { libc::madvise(start, size, libc::MADV_HUGEPAGE) };
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { start, size })
    }

    /// Its size in bytes.
    pub fn bytes(&self) -> usize {
        self.size
    }

    /// All of the buffer, in words.
    pub fn words(&self) -> &[u64] {
        // SAFETY: the pages are mapped for as long as the buffer lives, and they begin at a page, so they are aligned.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.size / 8) }
    }

    /// Says that a word will be read soon. It may be outside of the buffer.
    #[inline(always)]
    pub fn fetch(&self, word: usize) {
        fetch(self.start.as_ptr().wrapping_add(word));
    }

    /// All of the buffer, to be written.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `words`, and nobody else has a reference.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr().cast(), self.size) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: the range was mapped in `new`, and no reference to it is left.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.size) };
    }
}

/// Lets the processor fetch what is at an address into its cache. It does nothing else, wherever that is.
#[inline(always)]
pub fn fetch<T>(at: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: this is a hint. It reads nothing, and the address need not be one.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(at.cast());
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: as above.
    unsafe {
        std::arch::asm!("prfm pldl1keep, [{}]", in(reg) at, options(nostack, readonly));
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let _ = at;
}

/// An empty vector with room for so many values, on huge pages if there are many. Then the kernel needs less time to
/// provide the memory, and looking at a value takes the processor one miss of its cache less.
pub fn large_vec<T>(capacity: usize) -> Vec<T> {
    let mut values = Vec::with_capacity(capacity);
    prefer_huge_pages(values.spare_capacity_mut());
    values
}

/// Asks for huge pages for memory that is not used yet.
fn prefer_huge_pages<T>(memory: &mut [MaybeUninit<T>]) {
    let range = memory.as_mut_ptr_range();
    let start = (range.start as usize).next_multiple_of(UNIT);
    let end = range.end as usize & !(UNIT - 1);
    if start < end {
        let first = range.start.cast::<libc::c_void>().with_addr(start);
        // SAFETY: the range is within `memory`, and the advice changes no content. Without huge pages it fails.
        unsafe { libc::madvise(first, end - start, libc::MADV_HUGEPAGE) };
    }
}

/// The buffers that are kept, `KEPT` bytes at most.
#[derive(Debug, Default)]
pub struct Buffers {
    kept: Vec<Buffer>,
}

impl Buffers {
    /// A buffer of at least `size` bytes. What is in it is left over from before.
    ///
    /// # Errors
    /// There is no memory.
    pub fn take(&mut self, size: usize) -> io::Result<Buffer> {
        let fitting = (0..self.kept.len())
            .filter(|&at| self.kept[at].size >= size)
            .min_by_key(|&at| self.kept[at].size);
        match fitting {
            Some(at) => Ok(self.kept.swap_remove(at)),
            None => Buffer::new(size),
        }
    }

    /// Keeps a buffer, or frees it if there are enough. The largest ones are kept.
    pub fn give_back(&mut self, buffer: Buffer) {
        if buffer.size > KEPT {
            return;
        }
        self.kept.push(buffer);
        self.kept
            .sort_by_key(|buffer| std::cmp::Reverse(buffer.size));
        let mut sum = 0;
        self.kept.retain(|buffer| {
            sum += buffer.size;
            sum <= KEPT
        });
    }

    /// The bytes that are kept.
    pub fn kept(&self) -> usize {
        self.kept.iter().map(|buffer| buffer.size).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_used_again() {
        let mut buffers = Buffers::default();
        let mut buffer = buffers.take(10).unwrap();
        assert_eq!(buffer.words().len() * 8, UNIT);
        buffer.bytes_mut()[..8].copy_from_slice(&7_u64.to_ne_bytes());
        buffers.give_back(buffer);
        assert_eq!(buffers.kept(), UNIT);
        assert_eq!(buffers.take(UNIT).unwrap().words()[0], 7);
        assert_eq!(buffers.kept(), 0);
    }

    #[test]
    fn not_more_is_kept_than_the_bound() {
        let mut buffers = Buffers::default();
        buffers.give_back(Buffer::new(KEPT + 1).unwrap());
        assert_eq!(buffers.kept(), 0);
        for _ in 0..3 {
            buffers.give_back(Buffer::new(KEPT / 2).unwrap());
        }
        assert_eq!(buffers.kept(), KEPT);
        assert!(Buffer::new(usize::MAX).is_err());
    }
}
