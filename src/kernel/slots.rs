//! The slots that stand in front of the table of live blocks, mapped into memleak. Programs change them meanwhile.

use std::io;
use std::os::fd::AsRawFd as _;
use std::ptr::{self, NonNull};

use libbpf_rs::MapCore;

use crate::kernel::skeletons::types::{slot, slot_state};
use crate::lost::Block;

/// The mapped slots.
pub(super) struct Slots {
    first: NonNull<slot>,
    count: usize,
}

// SAFETY: the mapping belongs to this value, is only read, and is the same in every thread.
unsafe impl Send for Slots {}

impl Slots {
    /// Maps the slots.
    ///
    /// # Errors
    /// There is no address space left.
    pub(super) fn map(map: &impl MapCore) -> io::Result<Self> {
        let count = map.max_entries() as usize;
        // SAFETY: the kernel chooses the address of a new mapping.
        let address = unsafe {
            libc::mmap(
                ptr::null_mut(),
                count * size_of::<slot>(),
                libc::PROT_READ,
                libc::MAP_SHARED,
                map.as_fd().as_raw_fd(),
                0,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let first = NonNull::new(address.cast::<slot>()).ok_or(io::ErrorKind::Other)?;
        Ok(Self { first, count })
    }

    /// The blocks of a heap. If its process runs, its slots may change meanwhile.
    pub(super) fn blocks_of(&self, heap: u64) -> Vec<Block> {
        let mut blocks = Vec::new();
        for at in 0..self.count {
            // SAFETY: the mapping has `count` slots. A slot may change while it is read, and is then not this heap's.
            let slot = unsafe { self.first.add(at).read_volatile() };
            if slot.heap == heap && slot.state == u64::from(slot_state::SLOT_FULL.0) {
                let (address, size) = (slot.address, slot.size);
                blocks.push(Block { address, size });
            }
        }
        blocks
    }
}

impl Drop for Slots {
    fn drop(&mut self) {
        // SAFETY: made in `map`, and no reference into it exists.
        unsafe { libc::munmap(self.first.as_ptr().cast(), self.count * size_of::<slot>()) };
    }
}
