//! A walk over a hash map, bucket by bucket. libbpf-rs has one, which takes a batch that is not full for the last
//! one; the kernel leaves a batch before its end where the next bucket does not fit.

use std::ffi::c_void;
use std::os::fd::{AsRawFd, BorrowedFd};

use libbpf_rs::MapCore;
use libbpf_rs::libbpf_sys::{bpf_map_batch_opts, bpf_map_lookup_batch};
use nix::errno::Errno;

/// A key and its value.
type Entry = (Vec<u8>, Vec<u8>);

/// The entries of a hash map, each once if nobody else changes the map; those that come and go meanwhile may be
/// among them or not.
pub struct Entries<'map> {
    map: BorrowedFd<'map>,
    key_size: usize,
    value_size: usize,
    keys: Vec<u8>,
    values: Vec<u8>,
    /// Entries that fit into a batch.
    size: u32,
    /// Where the kernel goes on: a bucket's number; nothing before the first batch.
    bucket: Option<u32>,
    is_last: bool,
    /// The next entry of the batch, and how many it has.
    next: usize,
    count: usize,
}

impl<'map> Entries<'map> {
    /// `size` entries are read at once.
    pub fn of(map: &'map impl MapCore, size: u32) -> Self {
        Entries {
            map: map.as_fd(),
            key_size: map.key_size() as usize,
            value_size: map.value_size() as usize,
            keys: Vec::new(),
            values: Vec::new(),
            size,
            bucket: None,
            is_last: false,
            next: 0,
            count: 0,
        }
    }

    fn read(&mut self) -> nix::Result<()> {
        loop {
            self.keys.resize(self.key_size * self.size as usize, 0);
            self.values.resize(self.value_size * self.size as usize, 0);
            let from = self.bucket;
            let from = from.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
            let (mut bucket, mut count) = (0_u32, self.size);
            let options = bpf_map_batch_opts {
                sz: size_of::<bpf_map_batch_opts>() as _,
                ..Default::default()
            };
            // SAFETY: the buffers have room for `count` entries of the map, the positions are those of a hash
            // map, a u32 each, and all outlive the call.
            let result = unsafe {
                bpf_map_lookup_batch(
                    self.map.as_raw_fd(),
                    from.cast_mut().cast::<c_void>(),
                    std::ptr::from_mut(&mut bucket).cast(),
                    self.keys.as_mut_ptr().cast(),
                    self.values.as_mut_ptr().cast(),
                    &mut count,
                    &options,
                )
            };
            match Errno::from_raw(-result.min(0)) {
                Errno::UnknownErrno => {}
                // No more buckets.
                Errno::ENOENT => self.is_last = true,
                Errno::EINTR => continue,
                // Not even one bucket fits.
                Errno::ENOSPC if self.size < 1 << 20 => {
                    self.size *= 2;
                    continue;
                }
                error => return Err(error),
            }
            self.bucket = Some(bucket);
            (self.next, self.count) = (0, count as usize);
            return Ok(());
        }
    }
}

impl Iterator for Entries<'_> {
    type Item = nix::Result<Entry>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.next == self.count {
            if self.is_last {
                return None;
            }
            if let Err(error) = self.read() {
                self.is_last = true;
                return Some(Err(error));
            }
        }
        let part = |bytes: &[u8], size: usize| bytes[self.next * size..][..size].to_vec();
        let entry = (
            part(&self.keys, self.key_size),
            part(&self.values, self.value_size),
        );
        self.next += 1;
        Some(Ok(entry))
    }
}
