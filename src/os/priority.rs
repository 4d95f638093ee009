//! Lets a thread run before others, for what must not wait.

use std::ptr;
use std::time::Duration;

/// The shortest slice that the scheduler grants.
const SLICE: Duration = Duration::from_micros(100);

/// Lets the current thread run as soon as it has something to do, from now on. A real-time priority is best. Where that
/// is refused (CAP_SYS_NICE, RLIMIT_RTPRIO, no real-time budget in the control group), or would let the kernel kill
/// memleak for the time that the thread takes (RLIMIT_RTTIME), a short slice (Linux 6.12) and a low nice value are next
/// best. Nothing happens if all are refused. For threads that take hardly any processor time. Allocates nothing, so it
/// may be called after a fork.
pub fn hurry() {
    if !is_timed() && grant(&wish(libc::SCHED_FIFO, 1)) {
        return;
    }
    let mut wish = wish(libc::SCHED_OTHER, 0);
    wish.sched_runtime = SLICE.as_nanos() as u64;
    wish.sched_nice = -20;
    if !grant(&wish) {
        wish.sched_nice = 0;
        grant(&wish);
    }
}

/// Whether the time of real-time threads is limited. Beyond the limit the kernel kills their process.
fn is_timed() -> bool {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the kernel writes the limit, which outlives the call.
    let known = unsafe { libc::getrlimit(libc::RLIMIT_RTTIME, &raw mut limit) == 0 };
    !known || limit.rlim_cur != libc::RLIM_INFINITY
}

fn wish(policy: i32, priority: u32) -> libc::sched_attr {
    // SAFETY: all zeroes are a valid value.
    let mut wish: libc::sched_attr = unsafe { std::mem::zeroed() };
    wish.size = size_of::<libc::sched_attr>() as u32;
    wish.sched_policy = policy.cast_unsigned();
    wish.sched_priority = priority;
    wish
}

fn grant(wish: &libc::sched_attr) -> bool {
    // SAFETY: the structure is as long as it says, and outlives the call.
    unsafe { libc::syscall(libc::SYS_sched_setattr, 0, ptr::from_ref(wish), 0) == 0 }
}
