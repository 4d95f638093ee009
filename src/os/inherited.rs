//! The state that memleak inherited from its caller: signal dispositions and mask, standard descriptors, environment.
//!
//! Rust's runtime changes some of it before `main`: it ignores SIGPIPE, and opens `/dev/null` for a standard descriptor
//! that is closed. memleak changes more. A launched command must find all of it as the caller left it. So a function
//! in `.init_array` records the state before the runtime starts. `launch` restores it in the child.

use std::ffi::{CStr, OsStr, OsString, c_char, c_int};
use std::os::fd::RawFd;
use std::os::unix::ffi::OsStrExt;
use std::ptr;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU8, AtomicU64, AtomicUsize};

use anyhow::{Result, ensure};

use crate::os::signal_set::{KERNEL_SET_BYTES, LAST_SIGNAL, SignalSet};

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
    // SAFETY: with a null new set, the kernel only writes the old set, which is 8 bytes.
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
        // SAFETY: only reads the flags of a descriptor number.
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

/// The handler of `signal`. `SIG_DFL` for the two signals that the C library keeps, whose handlers cannot be read.
fn disposition(signal: c_int) -> libc::sighandler_t {
    // SAFETY: all zeroes are a valid sigaction, and the call only writes it.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        if libc::sigaction(signal, ptr::null(), &raw mut action) == 0 {
            action.sa_sigaction
        } else {
            libc::SIG_DFL
        }
    }
}

/// Records where the environment's strings are.
///
/// The kernel places three groups of strings one after another: the arguments, the environment, and the executed path
/// (fs/exec.c, `do_execveat_common`). So the environment lies between the other two. For a program with file
/// capabilities, the loader removes some variables from the array of pointers, but their strings stay.
/// `/proc/self/environ` shows the same memory, where there is a /proc.
fn record_environment(argc: c_int, argv: *const *const c_char) {
    let Some(last) = usize::try_from(argc)
        .ok()
        .and_then(|argc| argc.checked_sub(1))
    else {
        return;
    };
    // SAFETY: the C library passes main's own arguments: argc pointers to NUL-terminated strings on the initial stack.
    // AT_EXECFN points to a string above them on the same stack.
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

/// The inherited state, as it was before Rust's runtime started.
#[derive(Clone, Copy, Debug)]
pub struct Inherited {
    /// The signals that were ignored.
    pub ignored: SignalSet,
    /// The signal mask.
    pub blocked: SignalSet,
    closed: u8,
}

impl Inherited {
    /// The state recorded at the start of this process.
    pub fn get() -> Result<Self> {
        ensure!(
            RECORDED.load(Relaxed),
            "this binary was linked without its start-up record (.init_array): build it with cargo"
        );
        Ok(Self {
            ignored: SignalSet::from_bits(IGNORED.load(Relaxed)),
            blocked: SignalSet::from_bits(BLOCKED.load(Relaxed)),
            closed: CLOSED.load(Relaxed),
        })
    }

    /// Whether the standard descriptor `fd` (0, 1 or 2) was closed.
    pub fn was_closed(&self, fd: RawFd) -> bool {
        (0..3).contains(&fd) && self.closed & (1 << fd) != 0
    }
}

/// Whether this process has rights from its executable file that its caller does not have: capabilities, or the
/// set-user-ID or set-group-ID bit. The loader then removes variables from the environment.
pub fn is_privileged_by_file() -> bool {
    // SAFETY: getauxval only reads the auxiliary vector.
    unsafe { libc::getauxval(libc::AT_SECURE) != 0 }
}

/// A variable of the caller's environment. Variables that the loader removes are included.
pub fn variable(name: &OsStr) -> Option<OsString> {
    environment().into_iter().find_map(|entry| {
        let value = entry.to_bytes().strip_prefix(name.as_bytes())?;
        Some(OsStr::from_bytes(value.strip_prefix(b"=")?).to_owned())
    })
}

/// All strings of the caller's environment, in order, even those that are not of the form NAME=VALUE.
pub fn environment() -> Vec<&'static CStr> {
    let start = ENVIRONMENT_START.load(Relaxed);
    if is_privileged_by_file() && !start.is_null() {
        // SAFETY: the initial stack lives as long as the process, and nothing writes there.
        let bytes = unsafe {
            std::slice::from_raw_parts(start.cast::<u8>(), ENVIRONMENT_BYTES.load(Relaxed))
        };
        return strings(bytes);
    }
    unsafe extern "C" {
        static environ: *const *const c_char;
    }
    let mut found = Vec::new();
    // SAFETY: environ is null, or a null-terminated array of NUL-terminated strings. memleak never changes its
    // environment, so they live as long as the process.
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
    fn the_inherited_state_is_recorded_before_main() {
        assert!(Inherited::get().is_ok());
    }

    /// Rust's runtime ignores SIGPIPE before the test harness runs.
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
        // The kernel's own copy is used, because other tests may change `environ`.
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
    fn a_set_can_contain_real_time_signals_and_only_valid_numbers() {
        let set = SignalSet::of(&[libc::SIGHUP, 64, 0, 65]);
        assert!(set.contains(1) && set.contains(64));
        assert!(!set.contains(2) && !set.contains(0) && !set.contains(65));
        assert!(!SignalSet::BLOCKABLE.contains(libc::SIGKILL));
        assert!(SignalSet::BLOCKABLE.contains(libc::SIGTERM));
    }
}
