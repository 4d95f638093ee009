//! Tables of the kernel side that are mapped into memleak: the slots that stand in front of the table of live blocks,
//! and the candidates that are looked up in it. Programs change them meanwhile.

use std::io;
use std::os::fd::AsRawFd as _;
use std::ptr::{self, NonNull};

use libbpf_rs::MapCore;

use crate::kernel::skeletons::types::{candidate, slot, slot_state};
use crate::lost::Block;

/// A mapped array of C structs of integers.
struct MappedArray<T> {
    first: NonNull<T>,
    count: usize,
}

// SAFETY: the mapping belongs to this value, and is the same in every thread.
unsafe impl<T> Send for MappedArray<T> {}

impl<T: Copy> MappedArray<T> {
    /// Maps an array whose entries have a size that is a multiple of 8.
    fn map(map: &impl MapCore, protection: i32) -> io::Result<Self> {
        let count = map.max_entries() as usize;
        // SAFETY: the kernel chooses the address of a new mapping.
        let address = unsafe {
            libc::mmap(
                ptr::null_mut(),
                count * size_of::<T>(),
                protection,
                libc::MAP_SHARED,
                map.as_fd().as_raw_fd(),
                0,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let first = NonNull::new(address.cast::<T>()).ok_or(io::ErrorKind::Other)?;
        Ok(Self { first, count })
    }

    /// An entry, as it is now.
    fn get(&self, at: usize) -> Option<T> {
        // SAFETY: the mapping has `count` entries, and every pattern of bytes is one.
        (at < self.count).then(|| unsafe { self.first.add(at).read_volatile() })
    }
}

impl<T> Drop for MappedArray<T> {
    fn drop(&mut self) {
        // SAFETY: made in `map`, and no reference into it exists.
        unsafe { libc::munmap(self.first.as_ptr().cast(), self.count * size_of::<T>()) };
    }
}

/// The mapped slots.
pub(super) struct Slots(MappedArray<slot>);

impl Slots {
    /// Maps the slots.
    ///
    /// # Errors
    /// There is no address space left.
    pub(super) fn map(map: &impl MapCore) -> io::Result<Self> {
        MappedArray::map(map, libc::PROT_READ).map(Self)
    }

    /// The blocks of a heap. If its process runs, its slots may change meanwhile.
    pub(super) fn blocks_of(&self, heap: u64) -> Vec<Block> {
        let mut blocks = Vec::new();
        for at in 0..self.0.count {
            // A slot that changes while it is read is not this heap's.
            if let Some(slot) = self.0.get(at)
                && slot.heap == heap
                && slot.state == u64::from(slot_state::SLOT_FULL.0)
            {
                let (address, size) = (slot.address, slot.size);
                blocks.push(Block { address, size });
            }
        }
        blocks
    }
}

/// The mapped candidates.
pub(super) struct CandidateTable(MappedArray<candidate>);

impl CandidateTable {
    /// Maps the candidates.
    ///
    /// # Errors
    /// There is no address space left.
    pub(super) fn map(map: &impl MapCore) -> io::Result<Self> {
        MappedArray::map(map, libc::PROT_READ | libc::PROT_WRITE).map(Self)
    }

    /// How many there may be at once.
    pub(super) fn size(&self) -> usize {
        self.0.count
    }

    /// Puts addresses in. There is room for `size` of them.
    pub(super) fn put(&self, addresses: &[u64]) {
        for (at, &address) in addresses.iter().take(self.0.count).enumerate() {
            // SAFETY: the mapping has `count` entries, and can be written to.
            unsafe {
                self.0
                    .first
                    .add(at)
                    .write_volatile(candidate { address, size: 0 })
            };
        }
    }

    /// Those of the first `count` candidates that were found to be blocks.
    pub(super) fn found(&self, count: usize) -> impl Iterator<Item = Block> {
        let answers = (0..count).filter_map(|at| self.0.get(at));
        answers.filter_map(|answer| {
            Some(Block {
                address: answer.address,
                size: answer.size.try_into().ok()?,
            })
        })
    }
}
