//! Walks over a hash map, bucket by bucket. libbpf-rs has one, which takes a batch that is not full for the last
//! one; the kernel leaves a batch before its end where the next bucket does not fit.
//!
//! Nothing is allocated for an entry: where every process of the machine is watched, memleak's own calls of the
//! allocator meet the probes, too, and a walk may be over millions of entries.

use std::ffi::c_void;
use std::os::fd::AsRawFd;
use std::slice::ChunksExact;

use libbpf_rs::MapCore;
use libbpf_rs::libbpf_sys::{bpf_map_batch_opts, bpf_map_delete_batch, bpf_map_lookup_batch};
use nix::errno::Errno;

/// How far a walk has come. Entries that are there all the time are met once; those that come and go meanwhile may
/// be met or not.
#[derive(Debug)]
pub struct Walk {
    keys: Vec<u8>,
    values: Vec<u8>,
    /// Entries that fit into a batch.
    size: u32,
    /// Where the kernel goes on: a bucket's number; nothing before the first batch.
    bucket: Option<u32>,
    is_over: bool,
}

/// Some entries of a map: keys and values in the same order.
pub struct Batch<'walk> {
    pub keys: ChunksExact<'walk, u8>,
    pub values: ChunksExact<'walk, u8>,
}

impl Walk {
    /// `size` entries are read at once.
    pub fn new(size: u32) -> Self {
        Walk {
            keys: Vec::new(),
            values: Vec::new(),
            size,
            bucket: None,
            is_over: false,
        }
    }

    /// The next entries of a hash map, the same one each time; `None` after the last.
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

    /// Fills the buffers with how many entries it returns.
    fn read(&mut self, map: i32, key_size: usize, value_size: usize) -> nix::Result<usize> {
        loop {
            self.keys.resize(key_size * self.size as usize, 0);
            self.values.resize(value_size * self.size as usize, 0);
            let from = self.bucket;
            let from = from.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
            let (mut bucket, mut count) = (0_u32, self.size);
            // SAFETY: the buffers have room for `count` entries of the map, the positions are those of a hash
            // map, a u32 each, and all outlive the call.
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
                // No more buckets.
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

/// Deletes the entries with these keys, one behind the other, as far as they are there. Returns how many were.
///
/// # Errors
/// The kernel cannot change the map.
pub fn delete_all(map: &impl MapCore, mut keys: &[u8]) -> nix::Result<u64> {
    let key_size = map.key_size() as usize;
    let mut deleted = 0;
    while !keys.is_empty() {
        let mut count = (keys.len() / key_size) as u32;
        // SAFETY: there are `count` keys of the map, and all outlives the call.
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
            // Of the next one.
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
