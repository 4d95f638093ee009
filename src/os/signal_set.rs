//! Sets of signals.

use std::ffi::c_int;
use std::os::fd::RawFd;
use std::ptr;

/// The size of the kernel's signal set on every 64-bit Linux.
pub(super) const KERNEL_SET_BYTES: usize = size_of::<u64>();

/// The highest signal number.
pub const LAST_SIGNAL: c_int = 64;

/// A set of signals in the kernel's form: bit n-1 is signal n.
///
/// The sets of nix and libc cannot be used. nix's set has no real-time signals. libc's set silently leaves out 32 and
/// 33, which the C library keeps for its threads. A caller may well have blocked these.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SignalSet(u64);

impl SignalSet {
    /// The set that these bits of the kernel's mean: bit n-1 is signal n.
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// Every signal that can be blocked without harm. KILL and STOP cannot be blocked. The C library needs 32 and 33 to
    /// change the ids of all threads and to cancel threads.
    pub const BLOCKABLE: Self = Self::of(&[libc::SIGKILL, libc::SIGSTOP, 32, 33]).complement();

    /// The set of `signals`, which are numbers from 1 to 64.
    pub const fn of(signals: &[c_int]) -> Self {
        let mut bits = 0;
        let mut i = 0;
        while i < signals.len() {
            bits |= Self::bit(signals[i]);
            i += 1;
        }
        Self(bits)
    }

    pub(super) const fn bit(signal: c_int) -> u64 {
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

    /// Removes this set from the calling thread's mask. Async-signal-safe.
    pub fn unblock(self) {
        self.change_mask(libc::SIG_UNBLOCK);
    }

    fn change_mask(self, how: c_int) {
        // SAFETY: the kernel reads 8 bytes from a set that lives through the call. The call cannot fail: `how` is one
        // of the three values, and the size is right. libc's function is not used, because it drops 32 and 33.
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

    /// Removes one pending signal of this set without delivering it, if there is one.
    pub fn discard_pending(self) {
        let now = libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        // SAFETY: the set and the timeout live through the call. A null siginfo is allowed.
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

    /// Opens a close-on-exec, non-blocking signalfd for this set. Returns -1 and sets errno on failure.
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
