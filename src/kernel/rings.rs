//! Ring buffers, values as bytes for maps, and programs that memleak calls itself. `records` decodes what comes off a
//! ring.

use std::cell::RefCell;
use std::os::fd::AsRawFd;
use std::rc::Rc;

use anyhow::Result;
use libbpf_rs::libbpf_sys::{bpf_prog_test_run_opts, bpf_test_run_opts};
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

/// Calls a program that takes a value and changes it. Returns the program's result. If it cannot be called, nothing
/// changes, and the result is 0. `T` is the C struct that the program takes. Allocates nothing, so it may be called after
/// a fork.
pub(super) fn call_with<T: Copy>(program: &impl AsRawFd, value: &mut T) -> u32 {
    let mut options = bpf_test_run_opts {
        sz: size_of::<bpf_test_run_opts>() as u64,
        ctx_in: std::ptr::from_mut(value).cast(),
        ctx_size_in: size_of::<T>() as u32,
        ..bpf_test_run_opts::default()
    };
    // SAFETY: the context has the size and type that the program takes. The kernel copies it in, and back. It outlives
    // the call.
    unsafe { bpf_prog_test_run_opts(program.as_raw_fd(), &raw mut options) };
    options.retval
}
