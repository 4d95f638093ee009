//! What memleak's caller left it: signal dispositions and mask, standard descriptors, environment.
//!
//! Rust's runtime changes some of it before `main` (it ignores SIGPIPE, and opens `/dev/null` where a
//! standard descriptor is closed), and memleak changes more. A launched command must find all of it as
//! the caller left it, so it is read before the runtime starts, by a function in `.init_array`.

use std::ffi::{CStr, OsStr, OsString, c_char, c_int};
use std::os::fd::RawFd;
use std::os::unix::ffi::OsStrExt;
use std::ptr;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU8, AtomicU64, AtomicUsize};

use anyhow::{Result, ensure};

/// Bytes of the kernel's signal set on every 64-bit Linux.
const KERNEL_SET_BYTES: usize = size_of::<u64>();

/// The highest signal number.
pub const LAST_SIGNAL: c_int = 64;

/// A set of signals, as the kernel has it: bit n-1 is signal n.
///
/// nix's and libc's sets do not do: the first has no real-time signals, and libc silently leaves out the
/// two that it keeps for its threads (32 and 33), which a caller may well have blocked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SignalSet(u64);

impl SignalSet {
    /// Every signal that can be blocked without harm: not KILL and STOP, which cannot, nor 32 and 33,
    /// which the C library needs to change the ids of all threads and to cancel them.
    pub const BLOCKABLE: Self = Self::of(&[libc::SIGKILL, libc::SIGSTOP, 32, 33]).complement();

    /// The set of `signals`, numbers from 1 to 64.
    pub const fn of(signals: &[c_int]) -> Self {
        let mut bits = 0;
        let mut i = 0;
        while i < signals.len() {
            bits |= Self::bit(signals[i]);
            i += 1;
        }
        Self(bits)
    }

    const fn bit(signal: c_int) -> u64 {
        if signal < 1 || signal > LAST_SIGNAL {
            0
        } else {
            1 << (signal - 1)
        }
    }

    const fn complement(self) -> Self {
        Self(!self.0)
    }

    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    pub const fn contains(self, signal: c_int) -> bool {
        self.0 & Self::bit(signal) != 0
    }

    /// Makes this set the calling thread's mask. Async-signal-safe.
    pub fn block_only(self) {
        self.change_mask(libc::SIG_SETMASK);
    }

    /// Adds this set to the calling thread's mask. Async-signal-safe.
    pub fn block(self) {
        self.change_mask(libc::SIG_BLOCK);
    }

    /// Takes this set out of the calling thread's mask. Async-signal-safe.
    pub fn unblock(self) {
        self.change_mask(libc::SIG_UNBLOCK);
    }

    fn change_mask(self, how: c_int) {
        // SAFETY: the kernel reads 8 bytes from a set that lives through the call. It cannot fail: `how`
        // is one of the three and the size is right. Not libc's function, which drops 32 and 33.
        unsafe {
            libc::syscall(
                libc::SYS_rt_sigprocmask,
                how,
                &raw const self.0,
                ptr::null_mut::<u64>(),
                KERNEL_SET_BYTES,
            )
        };
    }

    /// Takes one pending signal of this set away, undelivered, if there is one.
    pub fn discard_pending(self) {
        let now = libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        // SAFETY: set and timeout live through the call; a null siginfo is allowed.
        unsafe {
            libc::syscall(
                libc::SYS_rt_sigtimedwait,
                &raw const self.0,
                ptr::null_mut::<libc::siginfo_t>(),
                &raw const now,
                KERNEL_SET_BYTES,
            )
        };
    }

    /// A close-on-exec, non-blocking signalfd for this set, or -1 and errno.
    pub(crate) fn signalfd(self) -> RawFd {
        // SAFETY: the kernel reads 8 bytes from a set that lives through the call.
        let fd = unsafe {
            libc::syscall(
                libc::SYS_signalfd4,
                -1,
                &raw const self.0,
                KERNEL_SET_BYTES,
                libc::SFD_CLOEXEC | libc::SFD_NONBLOCK,
            )
        };
        fd as RawFd
    }
}

static RECORDED: AtomicBool = AtomicBool::new(false);
static IGNORED: AtomicU64 = AtomicU64::new(0);
static BLOCKED: AtomicU64 = AtomicU64::new(0);
static CLOSED: AtomicU8 = AtomicU8::new(0);
static ENVIRONMENT_START: AtomicPtr<c_char> = AtomicPtr::new(ptr::null_mut());
static ENVIRONMENT_BYTES: AtomicUsize = AtomicUsize::new(0);

#[used]
// SAFETY: the C library calls every pointer in this section once, before main, with the arguments that
// `record` takes.
#[unsafe(link_section = ".init_array")]
static RECORD: extern "C" fn(c_int, *const *const c_char) = record;

extern "C" fn record(argc: c_int, argv: *const *const c_char) {
    let mut ignored = 0;
    for signal in 1..=LAST_SIGNAL {
        if disposition(signal) == libc::SIG_IGN {
            ignored |= SignalSet::bit(signal);
        }
    }
    let mut blocked = 0u64;
    // SAFETY: with a null new set the kernel only writes the old one, 8 bytes.
    unsafe {
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_SETMASK,
            ptr::null::<u64>(),
            &raw mut blocked,
            KERNEL_SET_BYTES,
        )
    };
    let mut closed = 0;
    for fd in 0..3 {
        // SAFETY: reads the flags of a descriptor number.
        if unsafe { libc::fcntl(fd, libc::F_GETFD) } == -1 {
            closed |= 1 << fd;
        }
    }
    if cfg!(target_env = "gnu") {
        record_environment(argc, argv);
    }
    IGNORED.store(ignored, Relaxed);
    BLOCKED.store(blocked, Relaxed);
    CLOSED.store(closed, Relaxed);
    RECORDED.store(true, Relaxed);
}

/// The handler of `signal`, `SIG_DFL` where it cannot be read (the two that the C library keeps).
fn disposition(signal: c_int) -> libc::sighandler_t {
    // SAFETY: all zero is a valid sigaction; the call only writes it.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        if libc::sigaction(signal, ptr::null(), &raw mut action) == 0 {
            action.sa_sigaction
        } else {
            libc::SIG_DFL
        }
    }
}

/// The kernel lays the strings of the arguments, of the environment and of the executed path one after
/// the other (fs/exec.c, `do_execveat_common`), so the environment is what lies between the other two.
/// Its strings are still there when the loader, for a binary with file capabilities, has taken some out
/// of the array that points to them. `/proc/self/environ` shows the same memory, where there is a /proc.
fn record_environment(argc: c_int, argv: *const *const c_char) {
    let Some(last) = usize::try_from(argc)
        .ok()
        .and_then(|argc| argc.checked_sub(1))
    else {
        return;
    };
    // SAFETY: the C library passes main's own arguments: argc pointers to NUL-terminated strings on the
    // initial stack, and AT_EXECFN points to a string above them on the same stack.
    unsafe {
        let last = *argv.add(last);
        let start = last.add(libc::strlen(last) + 1);
        let end = libc::getauxval(libc::AT_EXECFN) as usize;
        if let Some(bytes) = end.checked_sub(start as usize) {
            ENVIRONMENT_START.store(start.cast_mut(), Relaxed);
            ENVIRONMENT_BYTES.store(bytes, Relaxed);
        }
    }
}

/// What the caller left us, as it was before Rust's runtime started.
#[derive(Clone, Copy, Debug)]
pub struct Inherited {
    /// Signals whose disposition was to be ignored.
    pub ignored: SignalSet,
    /// The signal mask.
    pub blocked: SignalSet,
    closed: u8,
}

impl Inherited {
    /// What was recorded at the start of this process.
    pub fn get() -> Result<Self> {
        ensure!(
            RECORDED.load(Relaxed),
            "this binary was linked without its start-up record (.init_array): build it with cargo"
        );
        Ok(Self {
            ignored: SignalSet(IGNORED.load(Relaxed)),
            blocked: SignalSet(BLOCKED.load(Relaxed)),
            closed: CLOSED.load(Relaxed),
        })
    }

    /// Whether the standard descriptor `fd` (0, 1 or 2) was closed.
    pub fn was_closed(&self, fd: RawFd) -> bool {
        (0..3).contains(&fd) && self.closed & (1 << fd) != 0
    }
}

/// Whether this process has rights by its executable file that its caller has not: capabilities, or the
/// set-user-ID or set-group-ID bit. The loader then takes variables out of our environment.
pub fn is_privileged_by_file() -> bool {
    // SAFETY: getauxval only reads the auxiliary vector.
    unsafe { libc::getauxval(libc::AT_SECURE) != 0 }
}

/// A variable of the caller's environment, the loader's own among them.
pub fn variable(name: &OsStr) -> Option<OsString> {
    environment().into_iter().find_map(|entry| {
        let value = entry.to_bytes().strip_prefix(name.as_bytes())?;
        Some(OsStr::from_bytes(value.strip_prefix(b"=")?).to_owned())
    })
}

/// The caller's environment, string by string, in its order, whatever the strings look like.
pub fn environment() -> Vec<&'static CStr> {
    let start = ENVIRONMENT_START.load(Relaxed);
    if is_privileged_by_file() && !start.is_null() {
        // SAFETY: the initial stack lives as long as the process, and nobody writes there.
        let bytes = unsafe {
            std::slice::from_raw_parts(start.cast::<u8>(), ENVIRONMENT_BYTES.load(Relaxed))
        };
        return strings(bytes);
    }
    unsafe extern "C" {
        static environ: *const *const c_char;
    }
    let mut found = Vec::new();
    // SAFETY: environ is null or a null-terminated array of NUL-terminated strings; memleak never changes
    // its environment, so they live as long as the process.
    unsafe {
        let mut next = environ;
        while !next.is_null() && !(*next).is_null() {
            found.push(CStr::from_ptr(*next));
            next = next.add(1);
        }
    }
    found
}

fn strings(mut bytes: &'static [u8]) -> Vec<&'static CStr> {
    let mut found = Vec::new();
    while let Ok(string) = CStr::from_bytes_until_nul(bytes) {
        bytes = &bytes[string.to_bytes_with_nul().len()..];
        found.push(string);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_caller_left_is_known_before_main() {
        assert!(Inherited::get().is_ok());
    }

    /// The test harness runs after Rust's runtime, which ignores SIGPIPE.
    #[test]
    fn sigpipe_is_recorded_as_the_caller_had_it() {
        assert_eq!(disposition(libc::SIGPIPE), libc::SIG_IGN);
        assert!(!Inherited::get().unwrap().ignored.contains(libc::SIGPIPE));
    }

    #[test]
    fn the_environment_on_the_stack_is_the_one_in_environ() {
        let start = ENVIRONMENT_START.load(Relaxed);
        let length = ENVIRONMENT_BYTES.load(Relaxed);
        // SAFETY: as in `environment`.
        let on_stack = strings(unsafe { std::slice::from_raw_parts(start.cast::<u8>(), length) });
        assert!(!on_stack.is_empty());
        // The kernel's own copy: other tests may change `environ`.
        let kernels = std::fs::read("/proc/self/environ").unwrap();
        let kernels: Vec<_> = kernels.split_inclusive(|byte| *byte == 0).collect();
        assert_eq!(
            on_stack
                .iter()
                .map(|s| s.to_bytes_with_nul())
                .collect::<Vec<_>>(),
            kernels
        );
    }

    #[test]
    fn a_variable_is_found_by_its_whole_name() {
        let path = std::env::var_os("PATH");
        assert!(path.is_some());
        assert_eq!(variable(OsStr::new("PATH")), path);
        assert_eq!(variable(OsStr::new("PAT")), None);
    }

    #[test]
    fn a_set_holds_real_time_signals_and_leaves_out_what_is_none() {
        let set = SignalSet::of(&[libc::SIGHUP, 64, 0, 65]);
        assert!(set.contains(1) && set.contains(64));
        assert!(!set.contains(2) && !set.contains(0) && !set.contains(65));
        assert!(!SignalSet::BLOCKABLE.contains(libc::SIGKILL));
        assert!(SignalSet::BLOCKABLE.contains(libc::SIGTERM));
    }
}
