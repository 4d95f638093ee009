//! Reads what a copy of the C library has counted in a process that still runs. At the end of an image, the kernel side
//! does the same (`bpf/inside.bpf.h`). How the counters lie in memory is declared in `inside/layout.h`.

use std::io::IoSliceMut;
use std::mem::{offset_of, size_of};

use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::unistd::Pid;

use crate::kernel::inside_sums::Inside;
use crate::kernel::records::{Plain, plain_from_bytes};
use crate::kernel::skeletons::types::{
    heap, inside_flags, inside_limits, inside_sums, line, memory, state, state_flags, wiped,
    wiped_head,
};

impl Plain for line {}
impl Plain for state {}
impl Plain for wiped_head {}

/// "memleak1"
pub(super) const MAGIC: u64 = u64::from_le_bytes(*b"memleak1");

/// Puts what a running process has counted so far into its record. If that cannot be read, the record says so.
pub(super) fn fill(record: &mut heap) {
    if !Inside::is_in(record) || record.inside_flags & inside_flags::INSIDE_TAKEN.0 != 0 {
        return;
    }
    record.inside_flags |= inside_flags::INSIDE_TAKEN.0;
    match read(record.pid, record.inside_at) {
        Some(sums) => record.inside = sums,
        None => record.inside_flags |= inside_flags::INSIDE_UNREAD.0,
    }
}

/// Reads the counters at an address in a process.
fn read(pid: u32, at: u64) -> Option<inside_sums> {
    let pid = Pid::from_raw(i32::try_from(pid).ok().filter(|&pid| pid > 0)?);
    let read = |at: u64, size: usize| -> Option<Vec<u8>> {
        let mut bytes = vec![0; size];
        let there = RemoteIoVec {
            base: usize::try_from(at).ok()?,
            len: size,
        };
        let length = process_vm_readv(pid, &mut [IoSliceMut::new(&mut bytes)], &[there]);
        (length == Ok(size)).then_some(bytes)
    };
    let state: state = plain_from_bytes(&read(at, size_of::<state>())?)?;
    if !is_whole(&state) {
        return None;
    }
    let at = at.wrapping_add(offset_of!(memory, wiped) as u64);
    let lines = offset_of!(wiped, lines);
    let bytes = read(
        at,
        lines + inside_limits::LINES.0 as usize * size_of::<line>(),
    )?;
    sums(&bytes[..lines], &bytes[lines..])
}

/// Whether what a process keeps can be what it has counted.
pub(super) fn is_whole(state: &state) -> bool {
    let unsure = state_flags::LINES_NOT_WIPED.0 | state_flags::CHUNKS_ODD.0;
    state.magic == MAGIC && state.flags & unsure == 0
}

/// The sums of all lines. Those that are not in use are zero.
fn sums(head: &[u8], lines: &[u8]) -> Option<inside_sums> {
    let head: wiped_head = plain_from_bytes(head)?;
    let mut sums = inside_sums {
        peak: head.peak,
        several: head.several,
        unrecorded: head.unrecorded,
        unrecorded_bytes: head.unrecorded_bytes,
        in_flight: head.crossed,
        ..inside_sums::default()
    };
    for line in lines.chunks_exact(size_of::<line>()) {
        let line: line = plain_from_bytes(line)?;
        let add = |sum: &mut u64, more: u64| *sum = sum.wrapping_add(more);
        add(&mut sums.alloc_bytes, line.alloc_bytes);
        add(&mut sums.alloc_count, line.allocs);
        add(&mut sums.free_count, line.frees);
        add(&mut sums.unknown_frees, line.unknown_frees);
        add(&mut sums.failed_allocs, line.failed);
        add(&mut sums.in_flight, line.open.cast_unsigned());
        sums.live = sums.live.wrapping_add(line.live);
    }
    Some(sums)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::rings::bytes_of;

    #[test]
    fn the_sums_are_those_of_all_lines() {
        let words = |words: &[u64]| -> Vec<u8> {
            words.iter().flat_map(|word| word.to_ne_bytes()).collect()
        };
        let head = words(&[7, 1, 2, 30, 1, 1, 0, 0]);
        let minus = |n: i64| n.cast_unsigned();
        let lines = words(
            &[
                [3, 300, 1, 0, 4, 200, 1, 1],
                [1, 50, 2, 5, 0, minus(-50), 0, 1],
            ]
            .concat(),
        );
        let expected = inside_sums {
            alloc_bytes: 350,
            alloc_count: 4,
            free_count: 3,
            unknown_frees: 5,
            failed_allocs: 4,
            live: 150,
            peak: 7,
            unrecorded: 2,
            unrecorded_bytes: 30,
            in_flight: 2,
            several: 1,
        };
        let found = sums(&head, &lines).unwrap();
        assert_eq!(bytes_of(&found), bytes_of(&expected));
        assert!(sums(&head[1..], &lines).is_none());
    }

    #[test]
    fn memory_without_counters_is_not_read() {
        let own = std::process::id();
        let zeros = vec![0_u8; 2 * size_of::<state>()];
        let at = zeros.as_ptr() as u64;
        assert!(read(own, at).is_none());
        assert!(read(own, 1).is_none());
        assert!(read(0, at).is_none());
    }
}
