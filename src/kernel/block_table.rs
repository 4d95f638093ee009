//! Makes the table of live blocks before libbpf would. With its 2^21 buckets it takes longer than all other maps
//! together, and it needs nothing of the object. So a thread makes it, while the object and the kernel's types are
//! read.

use std::os::fd::{AsFd as _, BorrowedFd};

use libbpf_rs::libbpf_sys::{BPF_F_NO_PREALLOC, bpf_map_create_opts};
use libbpf_rs::{MapHandle, MapType};

use crate::kernel::ahead::Ahead;
use crate::kernel::skeletons::types::{block, block_key};

/// As for `blocks` in bpf/maps.bpf.h.
const TYPE: MapType = MapType::Hash;
const KEY: u32 = size_of::<block_key>() as u32;
const VALUE: u32 = size_of::<block>() as u32;
const FLAGS: u32 = BPF_F_NO_PREALLOC;

/// `None`: it could not be made.
type Made = Option<MapHandle>;

/// The table. It is made once, however often loading is tried.
pub(super) struct BlockTable(Ahead<Made>);

impl BlockTable {
    /// Begins in a thread of its own.
    pub(super) fn begin(max_blocks: u32) -> Self {
        Self(Ahead::begin(move || make(max_blocks)))
    }

    /// Waits for the table. If there is none, libbpf may try, and say why it cannot.
    pub(super) fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.0.get()?.as_ref().map(MapHandle::as_fd)
    }
}

fn make(max_blocks: u32) -> Made {
    let options = bpf_map_create_opts {
        sz: size_of::<bpf_map_create_opts>() as _,
        map_flags: FLAGS,
        ..bpf_map_create_opts::default()
    };
    MapHandle::create(TYPE, Some("blocks"), KEY, VALUE, max_blocks, &options).ok()
}

#[cfg(test)]
mod tests {
    use std::mem::MaybeUninit;

    use libbpf_rs::skel::SkelBuilder as _;

    use super::*;
    use crate::kernel::skeletons::MemleakSkelBuilder;

    #[test]
    fn the_table_is_the_one_that_the_object_describes() {
        let mut place = MaybeUninit::uninit();
        let open = MemleakSkelBuilder::default().open(&mut place).unwrap();
        let blocks = &open.maps.blocks;
        assert_eq!(blocks.map_type(), TYPE);
        assert_eq!(blocks.key_size(), KEY);
        assert_eq!(blocks.value_size(), VALUE);
        assert_eq!(blocks.map_flags(), FLAGS);
    }
}
