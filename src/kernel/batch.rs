//! Walks over a hash map, bucket by bucket.
//!
//! libbpf-rs 0.27 has such an iterator, `BatchedMapIter`. It takes the first batch that is not full for the last one,
//! and loses the rest: the kernel also ends a batch early if the next bucket does not fit. It ends at an error, too,
//! without telling.
//!
//! Nothing is allocated for a single entry, for two reasons. With `-a`, memleak's own calls of the allocator reach the
//! probes, too. And a walk may go over millions of entries.

use std::ffi::c_void;
use std::os::fd::AsRawFd;
use std::slice::ChunksExact;

use libbpf_rs::MapCore;
use libbpf_rs::libbpf_sys::{bpf_map_batch_opts, bpf_map_delete_batch, bpf_map_lookup_batch};
use nix::errno::Errno;

/// The position of a walk. The walk meets entries that exist all the time exactly once. It may or may not meet entries
/// that come or go meanwhile.
#[derive(Debug)]
pub struct BatchWalk {
    keys: Vec<u8>,
    values: Vec<u8>,
    /// How many entries fit into a batch.
    size: u32,
    /// The bucket where the kernel continues. `None` before the first batch.
    bucket: Option<u32>,
    is_over: bool,
}

/// Some entries of a map. Keys and values are in the same order.
pub struct Batch<'walk> {
    pub keys: ChunksExact<'walk, u8>,
    pub values: ChunksExact<'walk, u8>,
}

impl BatchWalk {
    /// A walk that reads `size` entries at once.
    pub fn new(size: u32) -> Self {
        BatchWalk {
            keys: Vec::new(),
            values: Vec::new(),
            size,
            bucket: None,
            is_over: false,
        }
    }

    /// The next entries of the hash map, which must be the same at each call. `None` after the last entry.
    ///
    /// # Errors
    /// The kernel cannot read the map.
    pub fn next(&mut self, map: &impl MapCore) -> nix::Result<Option<Batch<'_>>> {
        if self.is_over {
            return Ok(None);
        }
        let (key_size, value_size) = (map.key_size() as usize, map.value_size() as usize);
        let count = self.read(map.as_fd().as_raw_fd(), key_size, value_size)?;
        Ok(Some(Batch {
            keys: self.keys[..count * key_size].chunks_exact(key_size),
            values: self.values[..count * value_size].chunks_exact(value_size),
        }))
    }

    /// Fills the buffers. Returns the number of entries.
    fn read(&mut self, map: i32, key_size: usize, value_size: usize) -> nix::Result<usize> {
        loop {
            self.keys.resize(key_size * self.size as usize, 0);
            self.values.resize(value_size * self.size as usize, 0);
            let from = self.bucket;
            let from = from.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
            let (mut bucket, mut count) = (0_u32, self.size);
            // SAFETY: the buffers have room for `count` entries of the map. A position in a hash map is a u32. All of
            // them outlive the call.
            let result = unsafe {
                bpf_map_lookup_batch(
                    map,
                    from.cast_mut().cast::<c_void>(),
                    std::ptr::from_mut(&mut bucket).cast(),
                    self.keys.as_mut_ptr().cast(),
                    self.values.as_mut_ptr().cast(),
                    &mut count,
                    &options(),
                )
            };
            match Errno::from_raw(-result.min(0)) {
                Errno::UnknownErrno => {}
                // There are no more buckets.
                Errno::ENOENT => self.is_over = true,
                Errno::EINTR => continue,
                // Not even one bucket fits.
                Errno::ENOSPC if self.size < 1 << 20 => {
                    self.size *= 2;
                    continue;
                }
                error => return Err(error),
            }
            self.bucket = Some(bucket);
            return Ok(count as usize);
        }
    }
}

/// Deletes the entries with these keys, as far as they exist. The keys follow each other in `keys`. Returns how many
/// entries were deleted.
///
/// # Errors
/// The kernel cannot change the map.
pub fn delete_all(map: &impl MapCore, mut keys: &[u8]) -> nix::Result<u64> {
    let key_size = map.key_size() as usize;
    let mut deleted = 0;
    while !keys.is_empty() {
        let mut count = (keys.len() / key_size) as u32;
        // SAFETY: `keys` holds `count` keys of the map, and everything outlives the call.
        let result = unsafe {
            bpf_map_delete_batch(
                map.as_fd().as_raw_fd(),
                keys.as_ptr().cast(),
                &mut count,
                &options(),
            )
        };
        deleted += u64::from(count);
        keys = &keys[count as usize * key_size..];
        match Errno::from_raw(-result.min(0)) {
            Errno::UnknownErrno | Errno::EINTR => {}
            // The key after the deleted ones does not exist.
            Errno::ENOENT => keys = &keys[key_size.min(keys.len())..],
            error => return Err(error),
        }
    }
    Ok(deleted)
}

fn options() -> bpf_map_batch_opts {
    bpf_map_batch_opts {
        sz: size_of::<bpf_map_batch_opts>() as _,
        ..Default::default()
    }
}
