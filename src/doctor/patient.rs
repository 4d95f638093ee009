//! The child whose allocations are known: memleak itself, in several images after each other.
//!
//! Two of the images are executed in the same way. Only one of them allocates on purpose, so their difference does not
//! contain what a program allocates at its start. The last image allocates under a seccomp filter. The filter kills the
//! image if its return probes make system calls. It ends with blocks that are lost and one that is not, and is held and
//! read then. One of its blocks has a call stack that is not easy to walk up. What the counts mean is decided in
//! `verdict`.

use std::ffi::CStr;
use std::hint::black_box;
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

use libc::{c_int, c_void};
use nix::sys::prctl::set_no_new_privs;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{SigHandler, SigSet, Signal, raise, signal};
use nix::unistd::execv;

use crate::options::switches::Patient;

/// How many blocks are allocated, how many of them are freed, and the size of each block in bytes.
pub const BLOCKS: u64 = 1000;
pub const FREED: u64 = 900;
pub const BLOCK: u64 = 64;

/// The size of a block that the last image keeps, in bytes. Its blocks that are lost are smaller together.
pub const KEPT: u64 = 100_000;

/// The size of the block that the last image allocates in a handler of a signal, in bytes.
pub const IN_HANDLER: u64 = 4321;

/// The images that are compared, counted from 0.
pub const BARE: u32 = 1;
pub const MORE: u32 = 2;
/// The image under a seccomp filter.
pub const SEAL: u32 = 3;

/// The exit codes of a patient that could not execute its next image, set its filter, or send itself a signal.
pub const NOT_EXECUTED: u8 = 3;
pub const NOT_FILTERED: u8 = 4;
pub const NOT_SIGNALED: u8 = 5;

/// The program of all images: memleak itself.
pub const PROGRAM: &CStr = c"/proc/self/exe";

/// The system call that return probes make on x86_64 since Linux 6.11.
const URETPROBE: u32 = 335;

/// The argument that makes `memleak doctor` the first patient.
pub const FIRST: &str = "--test=patient=init";

/// Does the work of this image, and executes the next one. Returns an exit code if there is no next image, or if the
/// exec fails.
pub fn live(part: Patient) -> u8 {
    let next = match part {
        // This image may have other arguments and another environment than the next ones. It is not compared.
        Patient::Init => c"--test=patient=bare",
        Patient::Bare => c"--test=patient=more",
        Patient::More => c"--test=patient=seal",
        Patient::Seal => {
            if kill_at(URETPROBE).is_err() {
                return NOT_FILTERED;
            }
            allocate();
            keep();
            return match allocate_in_handler() {
                Ok(()) => 0,
                Err(_) => NOT_SIGNALED,
            };
        }
    };
    if part == Patient::More {
        allocate();
    }
    // execv returns only if it fails.
    let _ = execv(PROGRAM, &[c"memleak", c"doctor", next]);
    NOT_EXECUTED
}

fn allocate() {
    for n in 0..BLOCKS {
        // SAFETY: nothing uses the block. It is freed once or never.
        unsafe {
            let block = black_box(libc::malloc(BLOCK as usize));
            if n < FREED {
                libc::free(block);
            }
        }
    }
}

/// Allocates a block that can still be freed when the process ends.
fn keep() {
    static KEEPER: AtomicPtr<c_void> = AtomicPtr::new(ptr::null_mut());
    // SAFETY: nothing uses the block, and it is never freed.
    let block = unsafe { libc::malloc(KEPT as usize) };
    // Nothing reads it, so that the compiler would leave it out.
    black_box(&KEEPER).store(block, Ordering::Relaxed);
}

/// Allocates where the way up the stack leads through a function that the C library calls, and through the handler of a
/// signal.
fn allocate_in_handler() -> nix::Result<()> {
    extern "C" fn compare(_: *const c_void, _: *const c_void) -> c_int {
        // SAFETY: nothing uses the block, and it is never freed.
        black_box(unsafe { libc::malloc(IN_HANDLER as usize) });
        0
    }
    extern "C" fn handle(_: c_int) {
        let one = 0_u8;
        let one = (&raw const one).cast();
        // SAFETY: `one` is an array of one element of one byte, and `compare` does not look at it.
        black_box(unsafe { libc::bsearch(one, one, 1, 1, Some(compare)) });
    }
    SigSet::from(Signal::SIGUSR1).thread_unblock()?;
    // SAFETY: the signal comes below, when this thread is in no function of the allocator.
    unsafe { signal(Signal::SIGUSR1, SigHandler::Handler(handle)) }?;
    raise(Signal::SIGUSR1)
}

/// Sets a seccomp filter that kills this process, without a core file, when it makes this system call.
fn kill_at(system_call: u32) -> nix::Result<()> {
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    set_no_new_privs()?;
    let statement = |code: u32, k: u32, skip: u8| libc::sock_filter {
        code: code as u16,
        jt: 0,
        jf: skip,
        k,
    };
    let number = std::mem::offset_of!(libc::seccomp_data, nr) as u32;
    let mut program = [
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, number, 0),
        statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, system_call, 1),
        statement(
            libc::BPF_RET | libc::BPF_K,
            libc::SECCOMP_RET_KILL_PROCESS,
            0,
        ),
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW, 0),
    ];
    let program = libc::sock_fprog {
        len: program.len() as u16,
        filter: program.as_mut_ptr(),
    };
    // SAFETY: the kernel reads the filter, which lives until the call returns.
    let set = unsafe {
        libc::prctl(
            libc::PR_SET_SECCOMP,
            libc::SECCOMP_MODE_FILTER,
            &raw const program,
        )
    };
    nix::errno::Errno::result(set).map(drop)
}

#[cfg(test)]
mod tests {
    use nix::sys::wait::{WaitStatus, waitpid};
    use nix::unistd::{ForkResult, fork};

    use super::*;

    /// The end of a process that makes the system call getppid, under a filter that kills at `system_call`.
    fn end_under(system_call: i64) -> WaitStatus {
        // SAFETY: the child only makes system calls.
        match unsafe { fork() }.unwrap() {
            ForkResult::Child => {
                let filtered = kill_at(system_call as u32).is_ok();
                // SAFETY: the system call has no arguments, and this process ends here.
                unsafe {
                    libc::syscall(libc::SYS_getppid);
                    libc::_exit(if filtered { 0 } else { 1 })
                }
            }
            ForkResult::Parent { child } => waitpid(child, None).unwrap(),
        }
    }

    #[test]
    fn the_filter_kills_at_its_system_call_only() {
        assert!(matches!(
            end_under(libc::SYS_getppid),
            WaitStatus::Signaled(_, Signal::SIGSYS, false)
        ));
        assert!(matches!(
            end_under(i64::from(URETPROBE)),
            WaitStatus::Exited(_, 0)
        ));
    }
}
