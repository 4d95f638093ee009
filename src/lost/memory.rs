//! Copies the memory of a held process. This is the only file of this room that reads anything.
//!
//! The process waits meanwhile, so nothing else is done here: its mappings are read, the kernel is asked which pages are
//! there, and these are copied with a few system calls. All is read by way of a thread that is held. After
//! `pthread_exit` in its first thread, a process shows no memory under its own number.

use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::thread;
use std::time::Instant;

use nix::errno::Errno;
use nix::unistd::Pid;

use super::area::Area;
use super::buffers::{Buffer, Buffers};
use super::copies::{Copied, Snapshot, Thread};
use super::plan::{self, Present};
use crate::model::reach::ReachUnknown;

const PAGE: u64 = 4096;

/// The most bytes that one call copies, so that the deadline is looked at every few milliseconds.
const STEP: usize = 32 << 20;

/// How many bytes are worth a second thread.
const WORTH_A_THREAD: u64 = 32 << 20;

/// The most ranges that one call copies (IOV_MAX).
const MOST_RANGES: usize = 1024;

/// The most mappings of a process. Linux allows 65,530 if it is not told otherwise (vm.max_map_count).
const MOST_AREAS: usize = 1 << 20;

/// The bytes of a process's mappings that are read at once, and the most that a line of them has: a path of 4,096 bytes,
/// each in four characters, and what stands before it.
const TEXT: usize = 32 << 10;

/// How much a copy may take.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    /// The most bytes that are copied.
    pub bytes: u64,
    /// When the process must go on.
    pub deadline: Instant,
}

impl Budget {
    fn check_time(&self) -> Result<(), Unread> {
        match Instant::now() < self.deadline {
            true => Ok(()),
            false => Err(Unread::TooLong),
        }
    }
}

/// Why a process's memory was not copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unread {
    /// The copy would be larger than allowed, or there is no memory for it.
    Memory,
    /// memleak may not read the process's memory.
    Rights,
    /// The deadline has passed.
    TooLong,
    /// The thread has ended, although it was held: a signal ended it.
    Gone,
}

impl From<Unread> for ReachUnknown {
    fn from(unread: Unread) -> Self {
        match unread {
            Unread::Memory => Self::Memory,
            Unread::Rights => Self::Rights,
            Unread::TooLong => Self::TooLong,
            Unread::Gone => Self::Signal,
        }
    }
}

impl From<io::Error> for Unread {
    fn from(error: io::Error) -> Self {
        match error.raw_os_error().map(Errno::from_raw) {
            // Descriptors are a limit of memleak's own, too.
            Some(Errno::ENOMEM | Errno::EMFILE | Errno::ENFILE) => Self::Memory,
            Some(Errno::ESRCH | Errno::ENOENT) => Self::Gone,
            _ => Self::Rights,
        }
    }
}

impl Snapshot {
    /// Copies what a held process can have pointers in. `proc_tid` is the number of the thread `tid` in the pid namespace
    /// that /proc shows. `threads` are all threads of the process.
    ///
    /// # Errors
    /// See [`Unread`]. No memory is taken from the process, and no page is touched that is not there.
    pub fn read(
        tid: Pid,
        proc_tid: u32,
        threads: &[Thread],
        budget: &Budget,
        buffers: &mut Buffers,
    ) -> Result<Self, Unread> {
        let areas = areas(proc_tid, budget)?;
        let present = present(proc_tid, &areas, budget)?;
        let copies = plan::copies(&areas, &present, threads);
        let bytes: u64 = copies.iter().map(Copied::bytes).sum();
        if bytes > budget.bytes {
            return Err(Unread::Memory);
        }
        let size = usize::try_from(bytes).map_err(|_| Unread::Memory)?;
        let mut buffer = buffers.take(size).map_err(|_| Unread::Memory)?;
        if let Err(error) = copy(tid, &copies, &mut buffer, budget) {
            buffers.give_back(buffer);
            return Err(error);
        }
        Ok(Self::new(areas, copies, threads.to_vec(), buffer))
    }
}

/// The mappings of a process, in the order of their addresses.
fn areas(proc_tid: u32, budget: &Budget) -> Result<Vec<Area>, Unread> {
    let mut file = File::open(format!("/proc/{proc_tid}/maps"))?;
    let mut areas: Vec<Area> = Vec::new();
    let mut text = vec![0; TEXT];
    let mut filled = 0;
    loop {
        let read = file.read(&mut text[filled..])?;
        if read == 0 {
            return Ok(areas);
        }
        filled += read;
        let mut rest = &text[..filled];
        while let Some(end) = memchr::memchr(b'\n', rest) {
            // The kernel walks over the mappings from address to address, also if they change meanwhile.
            let last = areas.last().map_or(0, |area| area.end);
            areas.extend(Area::parse(&rest[..end]).filter(|area| area.start >= last));
            rest = &rest[end + 1..];
        }
        let kept = match rest.len() {
            // No line is as long as the buffer.
            TEXT => 0,
            kept => kept,
        };
        text.copy_within(filled - kept..filled, 0);
        filled = kept;
        if areas.len() > MOST_AREAS {
            return Err(Unread::Memory);
        }
        budget.check_time()?;
    }
}

/// A range of pages that the kernel returns (`struct page_region` in include/uapi/linux/fs.h).
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct PageRegion {
    start: u64,
    end: u64,
    categories: u64,
}

/// What the kernel is asked (`struct pm_scan_arg` there).
#[repr(C)]
#[derive(Default)]
struct ScanArguments {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

/// Says which pages are there, and of which kind (Linux 6.7): `_IOWR('f', 16, struct pm_scan_arg)`.
const PAGEMAP_SCAN: libc::c_ulong = 3 << 30
    | (size_of::<ScanArguments>() as libc::c_ulong) << 16
    | (b'f' as libc::c_ulong) << 8
    | 16;

const PAGE_IS_FILE: u64 = 1 << 2;
const PAGE_IS_PRESENT: u64 = 1 << 3;
const PAGE_IS_SWAPPED: u64 = 1 << 4;
/// The page has no content yet, only zeros that all processes share.
const PAGE_IS_PFNZERO: u64 = 1 << 5;

/// The pages of the process that are present or swapped, in the order of their addresses.
fn present(proc_tid: u32, areas: &[Area], budget: &Budget) -> Result<Vec<Present>, Unread> {
    let file = File::open(format!("/proc/{proc_tid}/pagemap"))?;
    match scanned(&file, areas, budget) {
        Err(ScanError::Unsupported) => looked_up(&file, areas, budget),
        Err(ScanError::Unread(unread)) => Err(unread),
        Ok(present) => Ok(present),
    }
}

enum ScanError {
    /// The kernel does not know the call.
    Unsupported,
    Unread(Unread),
}

/// Asks for all pages at once.
fn scanned(file: &File, areas: &[Area], budget: &Budget) -> Result<Vec<Present>, ScanError> {
    const REGIONS: usize = 1024;
    let wanted = || areas.iter().filter(|area| plan::is_wanted(area));
    let mut present = Vec::new();
    let (Some(first), Some(last)) = (wanted().next(), wanted().next_back()) else {
        return Ok(present);
    };
    let mut regions = [PageRegion::default(); REGIONS];
    let mut arguments = ScanArguments {
        size: size_of::<ScanArguments>() as u64,
        start: first.start,
        end: last.end,
        vec: regions.as_mut_ptr() as u64,
        vec_len: REGIONS as u64,
        category_inverted: PAGE_IS_PFNZERO,
        category_mask: PAGE_IS_PFNZERO,
        category_anyof_mask: PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
        return_mask: PAGE_IS_FILE,
        ..ScanArguments::default()
    };
    while arguments.start < arguments.end {
        // SAFETY: the arguments have the kernel's layout. It writes up to `vec_len` regions to `vec`, which live longer.
        let filled = unsafe { libc::ioctl(file.as_raw_fd(), PAGEMAP_SCAN, &raw mut arguments) };
        let filled = match Errno::result(filled) {
            Ok(filled) => usize::try_from(filled).unwrap_or_default(),
            Err(Errno::ENOTTY | Errno::EINVAL) => return Err(ScanError::Unsupported),
            Err(error) => return Err(ScanError::Unread(io::Error::from(error).into())),
        };
        present.extend(regions[..filled.min(REGIONS)].iter().map(|region| Present {
            start: region.start,
            end: region.end,
            is_files: region.categories & PAGE_IS_FILE != 0,
        }));
        if arguments.walk_end <= arguments.start {
            break;
        }
        arguments.start = arguments.walk_end;
        check_size(&present, budget).map_err(ScanError::Unread)?;
        budget.check_time().map_err(ScanError::Unread)?;
    }
    Ok(present)
}

/// Refuses a process whose pages lie so scattered that their list alone is too large.
fn check_size(present: &[Present], budget: &Budget) -> Result<(), Unread> {
    match present.len() as u64 <= budget.bytes / PAGE + 1024 {
        true => Ok(()),
        false => Err(Unread::Memory),
    }
}

/// Looks up each page of the mappings in turn, for kernels before 6.7 (Documentation/admin-guide/mm/pagemap.rst).
fn looked_up(file: &File, areas: &[Area], budget: &Budget) -> Result<Vec<Present>, Unread> {
    const ENTRIES: usize = 64 << 10;
    const SWAPPED: u64 = 1 << 62;
    const PRESENT: u64 = 1 << 63;
    const FILES: u64 = 1 << 61;
    let mut present: Vec<Present> = Vec::new();
    let mut buffer = vec![0; ENTRIES * 8];
    for area in areas.iter().filter(|area| plan::is_wanted(area)) {
        // Mappings of devices' memory are not looked up by the call either. This has their pages as absent.
        let mut start = area.start;
        while start < area.end {
            let pages = ((area.end - start) / PAGE).min(ENTRIES as u64);
            let wanted = &mut buffer[..pages as usize * 8];
            let read = file.read_at(wanted, start / PAGE * 8)?;
            let entries = wanted[..read].chunks_exact(8);
            if entries.len() == 0 {
                break;
            }
            let addresses = (start..).step_by(PAGE as usize);
            start += entries.len() as u64 * PAGE;
            for (at, entry) in addresses.zip(entries) {
                let entry = u64::from_ne_bytes(entry.try_into().unwrap_or_default());
                if entry & (PRESENT | SWAPPED) == 0 {
                    continue;
                }
                let is_files = entry & FILES != 0;
                match present.last_mut() {
                    Some(last) if last.end == at && last.is_files == is_files => {
                        last.end = at + PAGE;
                    }
                    _ => present.push(Present {
                        start: at,
                        end: at + PAGE,
                        is_files,
                    }),
                }
            }
            check_size(&present, budget)?;
            budget.check_time()?;
        }
    }
    Ok(present)
}

/// Copies ranges to the beginning of a buffer, one behind the other. New pages for the copy take longer than what is
/// copied to them, so two threads share a large one.
fn copy(tid: Pid, copies: &[Copied], buffer: &mut Buffer, budget: &Budget) -> Result<(), Unread> {
    let mut ranges: Vec<Range<u64>> = copies.iter().map(|copy| copy.start..copy.end).collect();
    let bytes = bytes_of(&ranges);
    if bytes < WORTH_A_THREAD {
        return copy_ranges(tid, &ranges, buffer.bytes_mut(), budget);
    }
    let rest = split_off(&mut ranges, (bytes / 2).next_multiple_of(PAGE));
    let (to, rest_to) = buffer.bytes_mut().split_at_mut(bytes_of(&ranges) as usize);
    let helped = thread::scope(|scope| {
        let work = || copy_ranges(tid, &rest, rest_to, budget);
        let helper = thread::Builder::new().name("memleak-reader".to_owned());
        let helper = helper.spawn_scoped(scope, work);
        copy_ranges(tid, &ranges, to, budget)?;
        let helped = helper.map(|helper| helper.join().unwrap_or(Err(Unread::Memory)));
        helped.ok().transpose()
    })?;
    match helped {
        Some(()) => Ok(()),
        // There is no other thread to be had.
        None => {
            let to = &mut buffer.bytes_mut()[bytes_of(&ranges) as usize..];
            copy_ranges(tid, &rest, to, budget)
        }
    }
}

fn bytes_of(ranges: &[Range<u64>]) -> u64 {
    ranges.iter().map(|range| range.end - range.start).sum()
}

/// Divides ranges behind the first `bytes` bytes. Returns the second part.
fn split_off(ranges: &mut Vec<Range<u64>>, bytes: u64) -> Vec<Range<u64>> {
    let mut left = bytes;
    let length = |range: &Range<u64>| range.end - range.start;
    let at = ranges.iter().position(|range| {
        let is_divided = left < length(range);
        left -= if is_divided { 0 } else { length(range) };
        is_divided
    });
    let Some(at) = at else {
        return Vec::new();
    };
    let mut rest = ranges.split_off(at);
    if left > 0 {
        let middle = rest[0].start + left;
        ranges.push(rest[0].start..middle);
        rest[0].start = middle;
    }
    rest
}

/// Copies ranges to the beginning of `to`, one behind the other.
fn copy_ranges(
    tid: Pid,
    copies: &[Range<u64>],
    mut to: &mut [u8],
    budget: &Budget,
) -> Result<(), Unread> {
    let mut ranges = Vec::with_capacity(copies.len().min(MOST_RANGES));
    // The copy to go on with, and how much of it was copied.
    let (mut at, mut done) = (0, 0_u64);
    while at < copies.len() {
        budget.check_time()?;
        ranges.clear();
        let mut wanted = 0;
        let mut skipped = done;
        for copy in &copies[at..] {
            let base = copy.start + skipped;
            let length = ((copy.end - base) as usize).min(STEP - wanted);
            skipped = 0;
            ranges.push(libc::iovec {
                iov_base: std::ptr::without_provenance_mut(base as usize),
                iov_len: length,
            });
            wanted += length;
            if wanted == STEP || ranges.len() == MOST_RANGES {
                break;
            }
        }
        let mut copied = read(tid, &mut to[..wanted], &ranges)?;
        if copied < wanted {
            // A page went away, though the process is held: another process changes its memory, or its file was cut.
            let page = (wanted - copied).min(PAGE as usize);
            to[copied..copied + page].fill(0);
            copied += page;
        }
        to = &mut to[copied..];
        let mut left = copied as u64;
        while let Some(copy) = copies.get(at)
            && left > 0
        {
            let step = left.min(copy.end - copy.start - done);
            left -= step;
            done += step;
            if done == copy.end - copy.start {
                (at, done) = (at + 1, 0);
            }
        }
    }
    Ok(())
}

/// Reads ranges of another process, up to the first page that cannot be read. Returns the bytes.
fn read(tid: Pid, to: &mut [u8], ranges: &[libc::iovec]) -> Result<usize, Unread> {
    let local = libc::iovec {
        iov_base: to.as_mut_ptr().cast(),
        iov_len: to.len(),
    };
    // SAFETY: the kernel writes to `to`, not behind its end. Addresses of another process are only looked up there.
    let read = unsafe {
        libc::process_vm_readv(
            tid.as_raw(),
            &raw const local,
            1,
            ranges.as_ptr(),
            ranges.len() as libc::c_ulong,
            0,
        )
    };
    match Errno::result(read) {
        Ok(read) => Ok(read.unsigned_abs()),
        Err(Errno::EFAULT) => Ok(0),
        Err(error) => Err(io::Error::from(error).into()),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn budget(bytes: u64, time: Duration) -> Budget {
        Budget {
            bytes,
            deadline: Instant::now() + time,
        }
    }

    fn read_own(budget: &Budget) -> Result<Snapshot, Unread> {
        let pid = std::process::id();
        Snapshot::read(Pid::this(), pid, &[], budget, &mut Buffers::default())
    }

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn a_copy_has_what_the_process_has() {
        let word = Box::new(0x1234_5678_9abc_def0_u64);
        let snapshot = read_own(&budget(1 << 32, LONG)).unwrap();
        let at = std::ptr::from_ref(&*word) as u64;
        assert_eq!(snapshot.word(at), Some(*word));
        let code = a_copy_has_what_the_process_has as fn() as usize as u64;
        assert!(snapshot.area(code).unwrap().executable);
        assert_eq!(snapshot.word(code & !7), None, "the file's own page");
    }

    #[test]
    fn two_threads_copy_what_one_would() {
        // More than what is worth a second thread, and no number twice.
        let words: Vec<u64> = (0..WORTH_A_THREAD / 4).map(|word| word << 32).collect();
        let snapshot = read_own(&budget(1 << 32, LONG)).unwrap();
        assert!(snapshot.bytes() > 2 * WORTH_A_THREAD);
        let mut found = Vec::new();
        let range = words.as_ptr_range();
        let range = range.start as u64..range.end as u64;
        snapshot.scan(range, &mut 0, |_, some| found.extend_from_slice(some));
        assert!(found == words);
    }

    #[test]
    fn ranges_are_divided_by_their_bytes() {
        let pairs = |ranges: Vec<Range<u64>>| -> Vec<(u64, u64)> {
            ranges
                .iter()
                .map(|range| (range.start, range.end))
                .collect()
        };
        let all = [(2, 6), (8, 9), (10, 20)];
        for (bytes, first, second) in [
            (0, vec![], all.to_vec()),
            (3, vec![(2, 5)], vec![(5, 6), (8, 9), (10, 20)]),
            (4, vec![(2, 6)], vec![(8, 9), (10, 20)]),
            (14, vec![(2, 6), (8, 9), (10, 19)], vec![(19, 20)]),
            (15, all.to_vec(), vec![]),
        ] {
            let mut ranges: Vec<_> = all.iter().map(|(start, end)| *start..*end).collect();
            let rest = split_off(&mut ranges, bytes);
            assert_eq!((pairs(ranges), pairs(rest)), (first, second), "{bytes}");
        }
    }

    #[test]
    fn what_is_too_much_or_too_late_or_gone_is_not_read() {
        let failed = |budget: &Budget| read_own(budget).map(|_| ()).unwrap_err();
        assert_eq!(failed(&budget(4096, LONG)), Unread::Memory);
        assert_eq!(failed(&budget(1 << 32, Duration::ZERO)), Unread::TooLong);
        let gone = i32::MAX;
        let read = Snapshot::read(
            Pid::from_raw(gone),
            gone.unsigned_abs(),
            &[],
            &budget(1 << 32, LONG),
            &mut Buffers::default(),
        );
        assert_eq!(read.map(|_| ()).unwrap_err(), Unread::Gone);
    }

    /// Maps memory that is not touched. It stays mapped.
    fn untouched(size: usize, flags: libc::c_int) -> u64 {
        // SAFETY: the kernel chooses an address where nothing is mapped.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                size,
                libc::PROT_READ | libc::PROT_WRITE,
                flags | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        assert_ne!(start, libc::MAP_FAILED);
        start as u64
    }

    #[test]
    fn memory_that_was_never_touched_stays_untouched() {
        let private = untouched(1 << 40, libc::MAP_PRIVATE);
        let shared = untouched(1 << 30, libc::MAP_SHARED);
        let snapshot = read_own(&budget(1 << 30, LONG)).unwrap();
        let areas = snapshot.areas.clone();
        for start in [private, shared] {
            assert!(snapshot.area(start).is_some());
            let is_there = snapshot
                .copies
                .iter()
                .any(|copy| copy.start >= start && copy.start < start + (1 << 30));
            assert!(!is_there);
        }
        let file = File::open("/proc/self/pagemap").unwrap();
        let area = |start| areas.iter().find(|area| area.contains(start)).copied();
        let both = [area(shared).unwrap()];
        assert!(
            looked_up(&file, &both, &budget(1 << 30, LONG))
                .unwrap()
                .is_empty()
        );
    }

    #[test]
    fn older_kernels_tell_the_same_pages() {
        let pid = std::process::id();
        let budget = budget(1 << 30, LONG);
        let start = untouched(16 << 20, libc::MAP_PRIVATE);
        // SAFETY: the page was mapped just now.
        unsafe { (start as *mut u64).add(512 * 3).write(7) };
        let areas = areas(pid, &budget).unwrap();
        let at = areas.iter().position(|area| area.contains(start)).unwrap();
        let file = File::open("/proc/self/pagemap").unwrap();
        let areas = &areas[at..=at];
        let is_own = |pages: &Present| pages.start >= start && pages.end <= start + (1 << 20);
        let told = |present: Vec<Present>| present.into_iter().filter(is_own).collect::<Vec<_>>();
        let older = told(looked_up(&file, areas, &budget).unwrap());
        assert!(older.iter().any(|pages| pages.start <= start + 4096 * 3));
        if let Ok(newer) = scanned(&file, areas, &budget) {
            assert_eq!(told(newer), older);
        }
    }
}
