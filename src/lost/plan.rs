//! Decides what is copied of a process's memory. Pure.
//!
//! Only pages that are there are read. To read an absent page would take memory from the process, and might wait: for a
//! server, or for the process itself (userfaultfd(2)). A page that is still its file's own has no pointer to a block.

use super::area::{Area, Backing};
use super::copies::{Copied, Thread};

const PAGE: u64 = 4096;

/// Below this address are only programs that have fixed addresses. Nothing in their files has to be adapted when they
/// are loaded. So their tables of virtual functions may be in pages that are still the file's own.
const FIXED_ADDRESSES: u64 = 1 << 32;

/// Pages that are present or swapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Present {
    pub start: u64,
    pub end: u64,
    /// They are a file's own, or shared memory. In a private mapping, the process has not changed them.
    pub is_files: bool,
}

/// Whether anything in an area may be copied.
pub fn is_wanted(area: &Area) -> bool {
    area.readable && area.backing != Backing::Foreign
}

/// The ranges to copy, one behind the other in the buffer. Both inputs are in the order of addresses.
pub fn copies(areas: &[Area], present: &[Present], threads: &[Thread]) -> Vec<Copied> {
    let mut copies: Vec<Copied> = Vec::new();
    let mut at = 0;
    let mut present = present.iter().copied().peekable();
    for area in areas.iter().filter(|area| is_wanted(area)) {
        let from = area.start.max(unused_up_to(area, threads));
        while let Some(pages) = present.peek() {
            if pages.start >= area.end {
                break;
            }
            let pages = *pages;
            let (start, end) = (pages.start.max(from), pages.end.min(area.end));
            let is_files = pages.is_files && !area.shared;
            let is_searched = start < end && (!is_files || may_have_tables(area));
            if is_searched {
                let copy = Copied {
                    start,
                    end,
                    at,
                    is_files,
                };
                at += (copy.bytes() / 8) as usize;
                match copies.last_mut() {
                    Some(last) if last.end == start && last.is_files == is_files => last.end = end,
                    _ => copies.push(copy),
                }
            }
            if pages.end > area.end {
                // The rest is in the areas behind.
                break;
            }
            present.next();
        }
    }
    copies
}

fn may_have_tables(area: &Area) -> bool {
    !area.writable && !area.executable && area.end <= FIXED_ADDRESSES
}

/// Where the pages of a stack begin that are in use. 0 if the area is no stack.
fn unused_up_to(area: &Area, threads: &[Thread]) -> u64 {
    if area.backing != Backing::Stack {
        return 0;
    }
    let on_it = threads.iter().filter(|thread| area.contains(thread.sp));
    let lowest = on_it.map(Thread::used_from).min();
    lowest.map_or(0, |lowest| lowest & !(PAGE - 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn area(start: u64, end: u64, access: &str, backing: Backing) -> Area {
        Area {
            start,
            end,
            offset: 0,
            readable: access.contains('r'),
            writable: access.contains('w'),
            executable: access.contains('x'),
            shared: access.contains('s'),
            backing,
        }
    }

    fn present(start: u64, end: u64) -> Present {
        Present {
            start,
            end,
            is_files: false,
        }
    }

    fn files(start: u64, end: u64) -> Present {
        Present {
            is_files: true,
            ..present(start, end)
        }
    }

    fn ranges(areas: &[Area], pages: &[Present], threads: &[Thread]) -> Vec<(u64, u64)> {
        let copies = copies(areas, pages, threads);
        let mut at = 0;
        for copy in &copies {
            assert_eq!(copy.at, at);
            at += (copy.bytes() / 8) as usize;
        }
        copies.iter().map(|copy| (copy.start, copy.end)).collect()
    }

    #[test]
    fn what_is_not_there_or_not_readable_is_not_copied() {
        let areas = [
            area(0x1000, 0x5000, "rw", Backing::Anonymous),
            area(0x5000, 0x6000, "", Backing::Anonymous),
            area(0x6000, 0x9000, "rw", Backing::Heap),
            area(0x9000, 0xa000, "rw", Backing::Foreign),
        ];
        let pages = [present(0x2000, 0x3000), present(0x4000, 0xa000)];
        let expected = [(0x2000, 0x3000), (0x4000, 0x5000), (0x6000, 0x9000)];
        assert_eq!(ranges(&areas, &pages, &[]), expected);
        assert!(ranges(&areas, &[], &[]).is_empty());
        assert!(ranges(&[], &pages, &[]).is_empty());
        // Areas that touch are copied in one piece.
        let areas = [
            area(0x1000, 0x2000, "r", Backing::File),
            area(0x2000, 0x4000, "rw", Backing::Anonymous),
        ];
        let pages = [present(0x1000, 0x4000)];
        assert_eq!(ranges(&areas, &pages, &[]), [(0x1000, 0x4000)]);
    }

    #[test]
    fn pages_of_a_file_are_copied_only_if_others_may_write_to_them() {
        let pages = [files(0x7f00_0000_0000, 0x7f00_0000_2000)];
        let file = |access| {
            [area(
                0x7f00_0000_0000,
                0x7f00_0000_2000,
                access,
                Backing::File,
            )]
        };
        assert!(ranges(&file("r"), &pages, &[]).is_empty());
        assert!(ranges(&file("rw"), &pages, &[]).is_empty());
        assert_eq!(ranges(&file("rws"), &pages, &[]).len(), 1);
    }

    #[test]
    fn the_constants_of_a_program_with_fixed_addresses_are_copied() {
        let constants = area(0x40_0000, 0x40_1000, "r", Backing::File);
        let code = area(0x40_1000, 0x40_2000, "rx", Backing::File);
        let copies = copies(&[constants, code], &[files(0x40_0000, 0x40_2000)], &[]);
        let [copy] = copies[..] else {
            panic!("{copies:?}");
        };
        assert!(copy.is_files && copy.end == 0x40_1000);
    }

    #[test]
    fn a_stack_is_copied_from_its_pointer_on() {
        let stack = [area(0x10_0000, 0x20_0000, "rw", Backing::Stack)];
        let pages = [present(0x10_0000, 0x20_0000)];
        let thread = |sp| Thread {
            sp,
            ..Thread::default()
        };
        let from = |threads: &[Thread]| ranges(&stack, &pages, threads)[0].0;
        assert_eq!(from(&[thread(0x18_0100)]), 0x18_0000);
        assert_eq!(from(&[thread(0x18_0010)]), 0x17_f000);
        assert_eq!(from(&[thread(0x18_0100), thread(0x15_0100)]), 0x15_0000);
        assert_eq!(from(&[thread(0x30_0000)]), 0x10_0000);
    }
}
