//! The keeper: a child of memleak that lets held processes sleep. A process that waited awake would use up its own
//! processor time, and a timer or limit of that could end it.
//!
//! No program can sleep for a time. But a program that reads another process's memory sleeps while that process's
//! mappings are locked. The keeper locks its own mappings, again and again, for as long as somebody reads them. For this
//! it maps the buffer of a perf event whose last buffer has just been unmapped. The kernel then waits until it may reuse
//! the event (`ring_buffer_attach` in kernel/events/core.c), and has the mappings locked meanwhile. That is a grace
//! period of RCU, 8 to 28 ms.
//!
//! So the kernel ends each sleep, whatever becomes of the keeper or of memleak. While the keeper is stopped, the mappings
//! are not locked, and held processes wait awake. `bpf/holds.bpf.h` has the other side.

use std::ffi::CStr;
use std::os::fd::{AsFd as _, AsRawFd as _, RawFd};
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use libbpf_rs::MapCore as _;
use libbpf_rs::libbpf_sys::{
    BPF_RINGBUF_BUSY_BIT, BPF_RINGBUF_DISCARD_BIT, BPF_RINGBUF_HDR_SZ, PERF_COUNT_SW_DUMMY,
    PERF_TYPE_SOFTWARE, perf_event_attr,
};

use crate::kernel::object::Globals;
use crate::kernel::rings::call_with;
use crate::kernel::separate::PERF_FLAG_FD_CLOEXEC;
use crate::kernel::skeletons::MemleakSkel;
use crate::kernel::skeletons::types::sleeper;
use crate::os::clock::monotonic;
use crate::os::own_files::OwnFiles;
use crate::os::priority::hurry;

/// The name that other processes see.
const NAME: &CStr = c"memleak-keeper";

/// How long a process that sleeps may be late for its next sleep, as others use the processors.
const AGAIN_WITHIN: Duration = Duration::from_secs(5);

/// The mappings are not locked more often than once in this time. If the kernel was told to hurry (`rcu_expedited`),
/// it has them locked for a fraction of this, and held processes are mostly awake.
const SHORTEST: Duration = Duration::from_millis(1);

/// The keeper that runs. It ends with the thread that has started it, or when it is dropped.
pub(super) struct Keeper {
    pid: libc::pid_t,
}

impl Drop for Keeper {
    fn drop(&mut self) {
        // Whoever adopts memleak's children may not wait for them.
        // SAFETY: the child was not waited for, so the pid is its own. The calls take only numbers.
        unsafe {
            libc::kill(self.pid, libc::SIGKILL);
            libc::waitpid(self.pid, ptr::null_mut(), libc::__WALL);
        }
    }
}

/// What the child needs. It has the same values at the same addresses.
struct Duty<'a> {
    files: OwnFiles,
    parent: libc::pid_t,
    /// The ring `sleepers`, and its size.
    ring: RawFd,
    size: usize,
    /// The program `let_sleep`.
    let_sleep: RawFd,
    /// In memory that the child shares.
    globals: &'a Globals,
}

/// Starts the keeper. If it cannot be started, or cannot do its work, held processes wait awake.
pub(super) fn start(skel: &MemleakSkel<'static>, globals: &Globals) -> Option<Keeper> {
    let ring = &skel.maps.sleepers;
    let duty = Duty {
        files: OwnFiles::read().ok()?,
        // SAFETY: getpid cannot fail.
        parent: unsafe { libc::getpid() },
        ring: ring.as_fd().as_raw_fd(),
        size: ring.max_entries() as usize,
        let_sleep: skel.progs.let_sleep.as_fd().as_raw_fd(),
        globals,
    };
    // No signal tells of the child's end, and no wait for any child sees it: it is none of the command's.
    // SAFETY: without flags this is a fork. The child calls only functions that are async-signal-safe, and ends within
    // this block. It allocates nothing.
    let pid = unsafe {
        let pid = libc::syscall(libc::SYS_clone, 0, 0, 0, 0, 0) as libc::pid_t;
        if pid == 0 {
            // An error ends the keeper.
            let _ = duty.run();
            libc::_exit(0);
        }
        pid
    };
    (pid > 0).then_some(Keeper { pid })
}

impl Duty<'_> {
    /// Returns if something cannot be done.
    ///
    /// # Safety
    /// To be called in the child.
    unsafe fn run(&self) -> Option<()> {
        // SAFETY: these calls take only numbers, and pointers to values that outlive them.
        unsafe {
            // First, so that the last copy of a probe's descriptor is not closed by being killed.
            self.close_others()?;
            done(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL))?;
            if libc::getppid() != self.parent {
                return None;
            }
            // No signal from a terminal or to memleak's group is for the keeper.
            let mut all = std::mem::zeroed();
            libc::sigfillset(&raw mut all);
            libc::sigprocmask(libc::SIG_SETMASK, &raw const all, ptr::null_mut());
            libc::setsid();
            libc::prctl(libc::PR_SET_NAME, NAME.as_ptr());
            // Whatever ends the keeper, it leaves no core file.
            libc::prctl(libc::PR_SET_DUMPABLE, 0);
            self.files.leave().ok()?;
            // Until the keeper has locked its mappings again, held processes are awake, and the scheduler would let
            // them go on for some milliseconds.
            hurry();
            let event = open_event()?;
            let ring = Ring::map(self.ring, self.size)?;
            loop {
                let mut waiting = libc::pollfd {
                    fd: self.ring,
                    events: libc::POLLIN,
                    revents: 0,
                };
                libc::poll(&raw mut waiting, 1, -1);
                // The writer of a record may need this very processor to finish it.
                libc::usleep(SHORTEST.as_micros() as u32);
                let mut asked = 0;
                loop {
                    while let Some(sleeper) = ring.next() {
                        self.let_sleep(sleeper);
                        asked = now();
                    }
                    if !self.is_needed(asked) {
                        break;
                    }
                    let before = now();
                    lock_mappings(event)?;
                    if now() - before < nanoseconds(SHORTEST) {
                        libc::usleep(SHORTEST.as_micros() as u32);
                    }
                }
            }
        }
    }

    /// Whether somebody sleeps, or has asked for it at `asked`.
    fn is_needed(&self, asked: u64) -> bool {
        let last = self.globals.last_sleep_ns.get().max(asked);
        self.globals.sleeping.get() > 0 && now().saturating_sub(last) < nanoseconds(AGAIN_WITHIN)
    }

    /// Closes what the keeper does not need: what memleak has open must close when memleak closes it.
    ///
    /// # Safety
    /// To be called in the child.
    unsafe fn close_others(&self) -> Option<()> {
        let first = self.ring.min(self.let_sleep) as u32;
        let last = self.ring.max(self.let_sleep) as u32;
        for (from, to) in [
            (0, first.checked_sub(1)),
            (first + 1, last.checked_sub(1)),
            (last + 1, Some(u32::MAX)),
        ] {
            if let Some(to) = to.filter(|to| from <= *to) {
                // SAFETY: takes only numbers. The child uses none of these descriptors.
                done(unsafe { libc::syscall(libc::SYS_close_range, from, to, 0) } as i32)?;
            }
        }
        Some(())
    }

    fn let_sleep(&self, mut sleeper: sleeper) {
        // If this fails, the process waits awake.
        call_with(&self.let_sleep, &mut sleeper);
    }
}

/// `None` if a call failed.
fn done(result: i32) -> Option<()> {
    (result >= 0).then_some(())
}

fn page_size() -> usize {
    // SAFETY: reads a constant.
    unsafe { libc::sysconf(libc::_SC_PAGESIZE) as usize }
}

fn nanoseconds(time: Duration) -> u64 {
    time.as_nanos() as u64
}

/// The time in nanoseconds that BPF programs have. Allocates nothing.
fn now() -> u64 {
    nanoseconds(monotonic())
}

/// Opens a perf event that never occurs.
fn open_event() -> Option<RawFd> {
    let mut attributes = perf_event_attr {
        type_: PERF_TYPE_SOFTWARE,
        size: size_of::<perf_event_attr>() as u32,
        config: PERF_COUNT_SW_DUMMY.into(),
        ..perf_event_attr::default()
    };
    attributes.set_exclude_kernel(1);
    // SAFETY: the attributes are as long as they say, and outlive the call.
    let event = unsafe {
        libc::syscall(
            libc::SYS_perf_event_open,
            &raw const attributes,
            0,
            -1,
            -1,
            PERF_FLAG_FD_CLOEXEC,
        )
    } as i32;
    (event >= 0).then_some(event)
}

/// Locks this process's mappings until the kernel may reuse the event.
fn lock_mappings(event: RawFd) -> Option<()> {
    let size = 2 * page_size();
    // SAFETY: the kernel chooses the address. The mapping is used by nobody, and is unmapped at once.
    unsafe {
        let buffer = libc::mmap(
            ptr::null_mut(),
            size,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED,
            event,
            0,
        );
        if buffer == libc::MAP_FAILED {
            return None;
        }
        done(libc::munmap(buffer, size))
    }
}

/// The ring `sleepers`, read without allocating.
struct Ring {
    /// How far it was read.
    read: *mut u64,
    /// How far it was written. The records follow a page later, mapped twice in a row.
    written: *const u64,
    records: *const u8,
    size: u64,
}

impl Ring {
    fn map(ring: RawFd, size: usize) -> Option<Self> {
        let page = page_size();
        let map = |length, protection, offset| {
            // SAFETY: the kernel chooses the address. The mappings stay until the process ends.
            let address = unsafe {
                libc::mmap(
                    ptr::null_mut(),
                    length,
                    protection,
                    libc::MAP_SHARED,
                    ring,
                    offset,
                )
            };
            (address != libc::MAP_FAILED).then_some(address)
        };
        let read = map(page, libc::PROT_READ | libc::PROT_WRITE, 0)?;
        let written = map(page + 2 * size, libc::PROT_READ, page as libc::off_t)?;
        Some(Self {
            read: read.cast(),
            written: written.cast_const().cast(),
            records: written.cast_const().cast::<u8>().wrapping_add(page),
            size: size as u64,
        })
    }

    /// Takes the next record off.
    fn next(&self) -> Option<sleeper> {
        // SAFETY: the kernel keeps both positions at these addresses, and a whole record, with its length before it,
        // at every position between them. Records are aligned to 8 bytes.
        unsafe {
            let read = AtomicU64::from_ptr(self.read);
            let written = AtomicU64::from_ptr(self.written.cast_mut());
            let at = read.load(Ordering::Relaxed);
            if at >= written.load(Ordering::Acquire) {
                return None;
            }
            let record = self.records.add((at & (self.size - 1)) as usize);
            let length = ptr::read_volatile(record.cast::<u32>());
            if length & BPF_RINGBUF_BUSY_BIT != 0 {
                return None;
            }
            let taken =
                ptr::read_volatile(record.add(BPF_RINGBUF_HDR_SZ as usize).cast::<sleeper>());
            let bytes = length & !(BPF_RINGBUF_BUSY_BIT | BPF_RINGBUF_DISCARD_BIT);
            let whole = (bytes + BPF_RINGBUF_HDR_SZ).next_multiple_of(8);
            read.store(at + u64::from(whole), Ordering::Release);
            Some(taken)
        }
    }
}
