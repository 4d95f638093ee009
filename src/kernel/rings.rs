//! Ring buffers, and values as bytes for maps. `records` decodes what comes off a ring.

use std::cell::RefCell;
use std::rc::Rc;

use anyhow::Result;
use libbpf_rs::{MapCore, RingBuffer, RingBufferBuilder};

use crate::kernel::error::LoadError;

/// Records that were taken off a ring, and are not processed yet.
pub(super) type Taken<T> = Rc<RefCell<Vec<T>>>;

/// Opens a ring. Reading it puts its records into the returned list.
pub(super) fn ring<T: 'static>(
    map: &dyn MapCore,
    decode: fn(&[u8]) -> Option<T>,
) -> Result<(RingBuffer<'static>, Taken<T>), LoadError> {
    let taken = Taken::default();
    let sink = Rc::clone(&taken);
    let mut builder = RingBufferBuilder::new();
    builder
        .add(map, move |bytes| {
            sink.borrow_mut().extend(decode(bytes));
            0
        })
        .map_err(LoadError::ring)?;
    Ok((builder.build().map_err(LoadError::ring)?, taken))
}

/// The bytes of a C struct, for a map.
pub(super) fn bytes_of<T: Copy>(value: &T) -> &[u8] {
    // SAFETY: the types put into maps are C structs of integers without implicit padding.
    unsafe { std::slice::from_raw_parts(std::ptr::from_ref(value).cast(), size_of::<T>()) }
}
