//! Turns the kernel's records into images. Pure: values in, values out. Nothing here touches libbpf.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::time::Duration;

use crate::kernel::settings::LabelName;
use crate::kernel::settings::Reading;
use crate::kernel::skeletons::types::{
    arrival, command_line, counters, ending, heap, heap_flags, labels, limits, live_cell,
    reach_state, thread_state, thread_sum,
};
use crate::model::image::{CommandLine, Counters, End, From, Image, Labels, Losses, Uncovered};
use crate::model::reach::{Amount, Reach, ReachUnknown, Reached};
use crate::model::stack::UnlistedStacks;
use crate::os::clock::Clock;

/// What a record does not contain, but is needed to read it.
pub struct Context {
    pub clock: Clock,
    /// The files with probes. A heap refers to its files by their indexes here.
    pub files: Vec<PathBuf>,
    /// Whether processes may be read at their ends.
    pub reading: Reading,
}

/// Reads a record off the ring. A record ends where its `exe` ends, and the rest of the value is zero.
///
/// Returns `None` if the bytes are too few or too many for a record.
pub fn heap_from_bytes(bytes: &[u8]) -> Option<heap> {
    if bytes.len() < std::mem::offset_of!(heap, exe) || bytes.len() > size_of::<heap>() {
        return None;
    }
    let mut record = std::mem::MaybeUninit::<heap>::zeroed();
    // SAFETY: the length was checked. `heap` is a C struct of integers. Every byte pattern is a valid value of it,
    // all zeroes included.
    unsafe {
        std::ptr::copy_nonoverlapping(bytes.as_ptr(), record.as_mut_ptr().cast(), bytes.len());
        Some(record.assume_init())
    }
}

/// Reads a record of a fixed length.
pub fn plain_from_bytes<T: Plain>(bytes: &[u8]) -> Option<T> {
    // SAFETY: the bytes are as long as the type, a C struct of integers. read_unaligned needs no alignment.
    (bytes.len() == size_of::<T>()).then(|| unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
}

/// A C struct of integers: every pattern of bytes is a valid value.
pub trait Plain: Copy {}

impl Plain for arrival {}
impl Plain for ending {}
impl Plain for live_cell {}
impl Plain for thread_state {}

/// Reads a command line. `None` if it is not known.
pub fn command_line_from_bytes(bytes: &[u8]) -> Option<CommandLine> {
    let words = bytes.get(std::mem::offset_of!(command_line, words)..)?;
    let length = u32::from_ne_bytes(*bytes.first_chunk()?);
    let most = words.len().min(limits::ARGS_LEN.0 as usize);
    let kept = most.min(length as usize);
    let is_cut = length as usize > kept;
    (kept > 0).then(|| CommandLine::of_bytes(&words[..kept], is_cut))
}

/// The variables of an image's environment that have these names.
pub fn labels_from_bytes(bytes: &[u8], names: &[LabelName]) -> Labels {
    let part = |at: usize, length: usize| bytes.get(at..)?.get(..length);
    let mut found = Labels::new();
    for (at, name) in names.iter().enumerate() {
        let place = std::mem::offset_of!(labels, lengths) + at * size_of::<u32>();
        let Some(&length) = part(place, size_of::<u32>()).and_then(<[u8]>::first_chunk) else {
            break;
        };
        // With its NUL.
        let length = u32::from_ne_bytes(length) as usize;
        let room = limits::LABEL_LEN.0 as usize + 1;
        let place = std::mem::offset_of!(labels, values) + at * room;
        let value = part(place, length.min(room).saturating_sub(1));
        if let Some(value) = value.filter(|_| length > 0) {
            let mut value = value.to_vec();
            if length == room {
                value.extend("\u{2026}".as_bytes());
            }
            found.insert(name.as_str().to_owned(), value);
        }
    }
    found
}

/// Splits the output of the iterator over living tasks.
pub fn thread_sums_from_bytes(bytes: &[u8]) -> Vec<thread_sum> {
    bytes
        .chunks_exact(size_of::<thread_sum>())
        // SAFETY: a chunk is as long as the type, a C struct of integers. read_unaligned needs no alignment.
        .map(|chunk| unsafe { chunk.as_ptr().cast::<thread_sum>().read_unaligned() })
        .collect()
}

/// The image of a heap that has ended.
pub fn ended_image(record: &heap, context: &Context) -> Image {
    let end = if record.flags & heap_flags::HEAP_EXEC.0 != 0 {
        End::Exec
    } else {
        end_of_status(record.status)
    };
    image(record, end, record.end_ns, context)
}

/// The image of a heap that is still in use: the counters of the heap plus those of its living threads.
/// `cell` is where several threads of the heap share its live bytes, if they do.
pub fn running_image(
    record: &heap,
    threads: &[thread_sum],
    cell: Option<&live_cell>,
    now_ns: u64,
    context: &Context,
) -> Image {
    let mut record = *record;
    if let Some(cell) = cell.filter(|cell| cell.heap == record.id) {
        record.live = cell.live;
    }
    for thread in threads {
        add(&mut record.sum, &thread.sum);
        if thread.sole != 0 {
            record.live = thread.live;
        }
        if thread.leader != 0 {
            record.uid = thread.uid;
            record.comm = thread.comm;
            record.cgroup = thread.cgroup;
        }
    }
    // The heap's process has ended already. A task that shares the heap (CLONE_VM) has no row of its own.
    if record.flags & heap_flags::HEAP_OWNER_GONE.0 != 0 {
        return ended_image(&record, context);
    }
    image(&record, End::Running, now_ns, context)
}

/// Whether the process of a heap is in none of the control groups that were named.
pub fn is_outside(record: &heap, threads: &[thread_sum]) -> bool {
    record.flags & heap_flags::HEAP_OUTSIDE.0 != 0
        || threads
            .iter()
            .any(|thread| thread.leader != 0 && thread.outside != 0)
}

/// How many threads use a heap. The process itself may count as one user, and is not a thread.
pub fn users(record: &heap) -> u32 {
    let process = record.flags & heap_flags::HEAP_PROCESS.0 != 0;
    record.users.saturating_sub(u32::from(process))
}

/// How many of these threads have joined their heap.
pub fn joined(threads: &[thread_sum]) -> u32 {
    let joined = threads.iter().map(|thread| thread.joined);
    joined.fold(0, u32::saturating_add)
}

fn image(record: &heap, end: End, end_ns: u64, context: &Context) -> Image {
    let sum = &record.sum;
    let recorded_frees = sum.free_count.saturating_sub(record.lost_freed);
    let peakless = record.flags & heap_flags::HEAP_PEAKLESS.0 != 0;
    let lossless = record.lost_blocks == 0 && sum.lost_calls == 0;
    Image {
        pid: record.pid,
        ppid: record.ppid,
        uid: record.uid,
        user: None,
        comm: c_bytes(&record.comm),
        exe: exe(record),
        real_exe: None,
        args: None,
        labels: Labels::new(),
        image: record.image,
        end,
        from: match record.flags & heap_flags::HEAP_ATTACHED.0 {
            0 => From::Start,
            _ => From::Attach,
        },
        start_time: context.clock.unix(Duration::from_nanos(record.start_ns)),
        end_time: context.clock.unix(Duration::from_nanos(end_ns)),
        counters: Counters {
            total_allocs_bytes: sum.alloc_bytes,
            alloc_count: sum.alloc_count,
            free_count: sum.free_count,
            leaked_bytes: sum
                .alloc_bytes
                .saturating_sub(record.lost_bytes)
                .saturating_sub(sum.free_bytes),
            leaked_blocks: sum
                .alloc_count
                .saturating_sub(record.lost_blocks)
                .saturating_sub(recorded_frees),
            // Blocks that are not in the table of live blocks are not in the live bytes either.
            peak_live_bytes: (lossless && !peakless).then_some(record.live.peak),
            failed_allocs: sum.failed_allocs,
            unknown_frees: sum.unknown_frees,
        },
        reach: reach(record, end, context),
        stacks: None,
        unlisted_stacks: UnlistedStacks::default(),
        allocators: allocators(record, context),
        uncovered: uncovered(record),
        losses: Losses {
            blocks_not_recorded: record.lost_blocks,
            bytes_not_recorded: record.lost_bytes,
            calls_without_return: sum.lost_calls,
            rows_lost: 0,
        },
        cgroup: record.cgroup,
        origin: None,
    }
}

/// Whether the process was held at its end, and its memory was read.
pub fn was_read(record: &heap) -> bool {
    record.reach == reach_state::REACH_READ.0
}

/// What is known of the blocks that the image never freed, without a look at its memory.
fn reach(record: &heap, end: End, context: &Context) -> Reach {
    if matches!(end, End::Exec | End::Running) {
        return Reach::NotJudged;
    }
    if context.reading == Reading::Off {
        return Reach::Unknown(ReachUnknown::Off);
    }
    let sum = &record.sum;
    let has_blocks = record.lost_blocks > 0 || sum.alloc_count != sum.free_count;
    if !has_blocks {
        // Nothing was seen of an image that was not followed, so nobody asks.
        return match uncovered(record) {
            None => Reach::Known(Reached::default()),
            Some(_) => Reach::Unknown(ReachUnknown::Off),
        };
    }
    if let Reading::Impossible(wanted) = context.reading {
        let unfreed = Amount {
            bytes: sum.alloc_bytes.saturating_sub(sum.free_bytes),
            blocks: 1,
        };
        // A limit of the sum may depend on any process.
        return Reach::Unknown(match wanted.wants(unfreed, u64::MAX) {
            true => ReachUnknown::Kernel,
            false => ReachUnknown::Off,
        });
    }
    Reach::Unknown(match reach_state(record.reach) {
        reach_state::REACH_UNASKED => match end {
            End::Signaled { .. } => ReachUnknown::Signal,
            _ => ReachUnknown::RawExit,
        },
        reach_state::REACH_SIGNAL => ReachUnknown::Signal,
        reach_state::REACH_TIMER => ReachUnknown::Timer,
        reach_state::REACH_SHARED => ReachUnknown::SharedHeap,
        reach_state::REACH_REALTIME => ReachUnknown::Realtime,
        reach_state::REACH_UNWANTED => ReachUnknown::Off,
        reach_state::REACH_FAILED => ReachUnknown::Kernel,
        _ => ReachUnknown::TooLong,
    })
}

fn allocators(record: &heap, context: &Context) -> Vec<PathBuf> {
    let count = record.files.len().min(record.file_count as usize);
    let mut numbers = record.files[..count].to_vec();
    numbers.sort_unstable();
    numbers.dedup();
    numbers
        .into_iter()
        .filter_map(|number| context.files.get(usize::from(number)).cloned())
        .collect()
}

/// Why calls of the image may not have been counted: the worst reason. An image that has run no code but its loader's
/// has made none.
fn uncovered(record: &heap) -> Option<Uncovered> {
    if record.flags & heap_flags::HEAP_LOADING.0 != 0 && record.sum.alloc_count == 0 {
        return None;
    }
    [
        (heap_flags::HEAP_LATE, Uncovered::Late),
        (heap_flags::HEAP_UNREACHED, Uncovered::Unreached),
        // What the probes do not reach is not held in its loader either.
        (heap_flags::HEAP_UNHELD, Uncovered::Late),
        (heap_flags::HEAP_UNEXAMINED, Uncovered::Unexamined),
        (heap_flags::HEAP_32BIT, Uncovered::ThirtyTwoBit),
        (heap_flags::HEAP_NO_SYMBOLS, Uncovered::NoSymbols),
    ]
    .into_iter()
    .find(|(flag, _)| record.flags & flag.0 != 0)
    .map(|(_, why)| why)
    .or_else(|| (record.file_count == 0).then_some(Uncovered::NoAllocator))
}

/// Adds with saturation, as all sums do: an overflow must not abort the report.
fn add(to: &mut counters, from: &counters) {
    let add = |sum: &mut u64, more: u64| *sum = sum.saturating_add(more);
    add(&mut to.alloc_bytes, from.alloc_bytes);
    add(&mut to.alloc_count, from.alloc_count);
    add(&mut to.free_bytes, from.free_bytes);
    add(&mut to.free_count, from.free_count);
    add(&mut to.failed_allocs, from.failed_allocs);
    add(&mut to.unknown_frees, from.unknown_frees);
    add(&mut to.lost_calls, from.lost_calls);
}

/// Decodes a status of wait(2). The low seven bits are the signal, and bit 7 means a core dump. Without a signal, the
/// next byte is the exit code.
fn end_of_status(status: u32) -> End {
    match (status & 0x7f) as u8 {
        0 => End::Exited((status >> 8) as u8),
        signal => End::Signaled {
            signal,
            core: status & 0x80 != 0,
        },
    }
}

/// The path that was executed, made absolute. In the record, the names of the directories that lead to a relative path
/// follow it, innermost first.
fn exe(record: &heap) -> Option<PathBuf> {
    let bytes = bytes_of(&record.exe);
    let bytes = bytes.get(..record.exe_len as usize)?;
    let mut names = bytes.strip_suffix(b"\0")?.split(|&byte| byte == 0);
    let given = names.next()?;
    if record.flags & heap_flags::HEAP_EXE_RELATIVE.0 == 0 {
        return Some(path(given));
    }
    let directories: Vec<_> = names.map(path).collect();
    let mut absolute = PathBuf::from("/");
    absolute.extend(directories.into_iter().rev());
    // Only `./` can be removed from the text safely. `..` may follow a symbolic link.
    let given = given.strip_prefix(b"./").unwrap_or(given);
    absolute.push(path(given));
    Some(absolute)
}

fn path(bytes: &[u8]) -> PathBuf {
    PathBuf::from(OsString::from_vec(bytes.to_vec()))
}

/// The bytes of a C string before its NUL.
fn c_bytes(string: &[i8]) -> Vec<u8> {
    let bytes = bytes_of(string);
    let length = bytes
        .iter()
        .position(|&byte| byte == 0)
        .unwrap_or(bytes.len());
    bytes[..length].to_vec()
}

fn bytes_of(chars: &[i8]) -> Vec<u8> {
    chars.iter().map(|&char| char.cast_unsigned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_known_of_an_images_blocks_has_a_reason() {
        use ReachUnknown::*;
        let exited = |reach: reach_state| {
            let record = heap {
                reach: reach.0,
                ..record()
            };
            ended_image(&record, &context()).reach
        };
        for (state, why) in [
            (reach_state::REACH_UNASKED, RawExit),
            (reach_state::REACH_WAITING, TooLong),
            (reach_state::REACH_READING, TooLong),
            (reach_state::REACH_UNWANTED, Off),
            (reach_state::REACH_SIGNAL, Signal),
            (reach_state::REACH_TIMER, Timer),
            (reach_state::REACH_TOO_LONG, TooLong),
            (reach_state::REACH_SHARED, SharedHeap),
            (reach_state::REACH_REALTIME, Realtime),
            (reach_state::REACH_FAILED, Kernel),
        ] {
            assert_eq!(exited(state), Reach::Unknown(why));
        }
        let killed = heap {
            status: 9,
            ..record()
        };
        let reach = |record: &heap, reading| {
            let context = Context {
                reading,
                ..context()
            };
            ended_image(record, &context).reach
        };
        let on = Reading::On;
        assert_eq!(reach(&killed, on), Reach::Unknown(Signal));
        assert_eq!(reach(&killed, Reading::Off), Reach::Unknown(Off));
        let mut frees_all = record();
        frees_all.sum.free_count = frees_all.sum.alloc_count;
        frees_all.sum.free_bytes = frees_all.sum.alloc_bytes;
        assert_eq!(reach(&frees_all, on), Reach::Known(Reached::default()));
        // Its allocator is not known, so it may have any number of blocks.
        frees_all.file_count = 0;
        assert_eq!(reach(&frees_all, on), Reach::Unknown(Off));
        let replaced = heap {
            flags: heap_flags::HEAP_EXEC.0,
            ..record()
        };
        assert_eq!(reach(&replaced, on), Reach::NotJudged);
    }

    #[test]
    fn a_kernel_that_cannot_hold_is_the_reason_only_where_a_scan_was_wanted() {
        use ScanWanted::{Always, Never};
        let reach = |wanted, record: &heap| {
            let reading = Reading::Impossible(wanted);
            let context = Context {
                reading,
                ..context()
            };
            ended_image(record, &context).reach
        };
        let gates = |process, total| ScanWanted::for_gates(Limits { process, total });
        // 700 bytes were never freed.
        for (wanted, why) in [
            (Always, ReachUnknown::Kernel),
            (Never, ReachUnknown::Off),
            (gates(Some(699), None), ReachUnknown::Kernel),
            (gates(Some(700), None), ReachUnknown::Off),
            (gates(None, Some(10_000)), ReachUnknown::Kernel),
        ] {
            assert_eq!(reach(wanted, &record()), Reach::Unknown(why), "{wanted:?}");
        }
        let killed = heap {
            status: 9,
            ..record()
        };
        let unknown = Reach::Unknown(ReachUnknown::Kernel);
        assert_eq!(reach(Always, &killed), unknown);
        let mut frees_all = record();
        frees_all.sum.free_count = frees_all.sum.alloc_count;
        frees_all.sum.free_bytes = frees_all.sum.alloc_bytes;
        assert_eq!(reach(Always, &frees_all), Reach::Known(Reached::default()));
    }

    fn files<const N: usize>(some: [u16; N]) -> [u16; 16] {
        let mut files = [0; 16];
        files[..N].copy_from_slice(&some);
        files
    }
    use crate::kernel::skeletons::types::live;
    use crate::model::limits::Limits;
    use crate::model::scan::ScanWanted;

    fn context() -> Context {
        Context {
            clock: Clock::beginning_at(Duration::from_secs(1000)),
            files: vec!["/a".into(), "/b".into()],
            reading: Reading::On,
        }
    }

    fn record() -> heap {
        heap {
            id: 1,
            start_ns: 1_000_000_000,
            end_ns: 2_000_000_000,
            pid: 12,
            file_count: 1,
            files: files([1]),
            sum: counters {
                alloc_bytes: 1000,
                alloc_count: 10,
                free_bytes: 300,
                free_count: 4,
                ..Default::default()
            },
            ..Default::default()
        }
    }

    fn named(exe: &[u8], flags: u32) -> Option<PathBuf> {
        let mut record = heap {
            flags,
            exe_len: exe.len() as u32,
            ..Default::default()
        };
        for (to, from) in record.exe.iter_mut().zip(exe) {
            *to = from.cast_signed();
        }
        ended_image(&record, &context()).exe
    }

    #[test]
    fn allocations_without_a_free_are_leaked() {
        let image = ended_image(&record(), &context());
        assert_eq!(
            (image.counters.leaked_bytes, image.counters.leaked_blocks),
            (700, 6)
        );
        assert_eq!(image.counters.total_allocs_bytes, 1000);
        assert_eq!(image.end, End::Exited(0));
        assert_eq!(image.allocators, [PathBuf::from("/b")]);
        assert_eq!(image.start_time, Duration::from_secs(1001));
        assert!(image.complete());
    }

    #[test]
    fn blocks_that_did_not_fit_count_as_lost_and_not_as_leaked() {
        let mut record = record();
        (record.lost_blocks, record.lost_bytes, record.lost_freed) = (3, 100, 1);
        let image = ended_image(&record, &context());
        // 10 − 3 recorded, 4 − 1 of them freed
        assert_eq!(
            (image.counters.leaked_bytes, image.counters.leaked_blocks),
            (600, 4)
        );
        assert_eq!(image.losses.blocks_not_recorded, 3);
        assert_eq!(image.losses.bytes_not_recorded, 100);
        assert_eq!(image.counters.peak_live_bytes, None);
        assert!(!image.complete());
    }

    #[test]
    fn an_image_that_used_no_probed_file_is_not_complete() {
        let image = ended_image(
            &heap {
                file_count: 0,
                ..record()
            },
            &context(),
        );
        assert!(!image.complete());
    }

    #[test]
    fn an_image_that_has_only_run_its_loader_is_complete_whatever_it_has_mapped() {
        for flags in [0, heap_flags::HEAP_LATE.0, heap_flags::HEAP_UNEXAMINED.0] {
            let record = heap {
                file_count: 0,
                flags: flags | heap_flags::HEAP_LOADING.0,
                ..heap::default()
            };
            assert!(ended_image(&record, &context()).complete());
        }
    }

    #[test]
    fn a_command_line_that_is_too_long_keeps_its_beginning() {
        let line = |length: u32, words: &[u8]| {
            let mut bytes = length.to_ne_bytes().to_vec();
            bytes.extend(words);
            command_line_from_bytes(&bytes)
        };
        let read = line(9, b"a\0b c\0\0\xff\0rest").unwrap();
        let words: [&[u8]; 4] = [b"a", b"b c", b"", b"\xff"];
        assert_eq!(
            (read.words, read.is_cut),
            (words.map(<[u8]>::to_vec).into(), false)
        );
        let cut = line(2_000, b"a\0bcd").unwrap();
        assert_eq!((cut.words.len(), cut.is_cut), (2, true));
        assert_eq!(line(0, b"a"), None);
        assert_eq!(command_line_from_bytes(b"abc"), None);
    }

    #[test]
    fn a_status_tells_exits_from_signals() {
        assert_eq!(end_of_status(0x0300), End::Exited(3));
        assert_eq!(
            end_of_status(9),
            End::Signaled {
                signal: 9,
                core: false
            }
        );
        assert_eq!(
            end_of_status(0x8b),
            End::Signaled {
                signal: 11,
                core: true
            }
        );
    }

    #[test]
    fn an_exec_ends_an_image_whatever_status_was_recorded() {
        let record = heap {
            flags: heap_flags::HEAP_EXEC.0,
            status: 9,
            ..record()
        };
        assert_eq!(ended_image(&record, &context()).end, End::Exec);
    }

    #[test]
    fn relative_paths_become_absolute() {
        let relative = heap_flags::HEAP_EXE_RELATIVE.0;
        assert_eq!(named(b"/bin/sh\0", 0), Some("/bin/sh".into()));
        assert_eq!(
            named(b"./app\0src\0home\0", relative),
            Some("/home/src/app".into())
        );
        assert_eq!(named(b"../x\0src\0", relative), Some("/src/../x".into()));
        assert_eq!(named(b"app\0", relative), Some("/app".into()));
        assert_eq!(named(b"", 0), None);
    }

    #[test]
    fn records_of_other_lengths_are_refused() {
        assert!(heap_from_bytes(&[0; 16]).is_none());
        assert!(heap_from_bytes(&vec![0; size_of::<heap>() + 1]).is_none());
        assert!(heap_from_bytes(&vec![0; std::mem::offset_of!(heap, exe)]).is_some());
    }

    #[test]
    fn the_counters_of_living_threads_are_added_to_a_running_image() {
        let thread = thread_sum {
            sum: counters {
                alloc_bytes: 50,
                alloc_count: 1,
                ..Default::default()
            },
            leader: 1,
            uid: 7,
            ..Default::default()
        };
        let cell = live_cell {
            heap: 1,
            live: live { bytes: 5, peak: 77 },
            ..Default::default()
        };
        let image = running_image(
            &record(),
            &[thread, thread],
            Some(&cell),
            5_000_000_000,
            &context(),
        );
        assert_eq!(image.counters.total_allocs_bytes, 1100);
        assert_eq!(image.counters.leaked_blocks, 8);
        assert_eq!((image.end, image.uid), (End::Running, 7));
        assert_eq!(image.end_time, Duration::from_secs(1005));
        assert_eq!(image.counters.peak_live_bytes, Some(77));
        let other = live_cell { heap: 9, ..cell };
        let image = running_image(&record(), &[], Some(&other), 0, &context());
        assert_eq!(image.counters.peak_live_bytes, Some(0));
    }

    #[test]
    fn a_process_has_ended_though_another_process_still_uses_its_heap() {
        let borrower = thread_sum {
            sum: counters {
                alloc_bytes: 50,
                alloc_count: 1,
                ..Default::default()
            },
            ..Default::default()
        };
        let record = heap {
            flags: heap_flags::HEAP_OWNER_GONE.0 | heap_flags::HEAP_LEADER_GONE.0,
            status: 0x0300,
            ..record()
        };
        let image = running_image(&record, &[borrower], None, 5_000_000_000, &context());
        assert_eq!(image.end, End::Exited(3));
        assert_eq!(image.counters.total_allocs_bytes, 1050);
        assert_eq!(image.end_time, Duration::from_secs(1002));
    }
}
