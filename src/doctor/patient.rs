//! The child whose allocations are known: memleak itself, image after image. Two of them were executed in the
//! same way and differ by what is allocated on purpose alone, so that what a program allocates to start does not
//! matter; the last one allocates where a seccomp filter kills it if return probes make system calls in its name.

use std::ffi::CStr;
use std::hint::black_box;

use nix::sys::prctl::set_no_new_privs;
use nix::sys::resource::{Resource, setrlimit};
use nix::unistd::execv;

use crate::options::switches::Patient;

/// How many blocks are allocated, how many of them are freed, and the bytes of each.
pub const BLOCKS: u64 = 1000;
pub const FREED: u64 = 900;
pub const BLOCK: u64 = 64;

/// The images that are compared, counted from 0.
pub const BARE: u32 = 1;
pub const MORE: u32 = 2;
/// The one under a filter.
pub const SEAL: u32 = 3;

/// The exit codes of a patient that could not go on to its next image, or set its filter.
pub const NOT_EXECUTED: u8 = 3;
pub const NOT_FILTERED: u8 = 4;

/// The program that this is.
pub const PROGRAM: &CStr = c"/proc/self/exe";

/// The system call that return probes make on x86_64 since Linux 6.11.
const URETPROBE: u32 = 335;

/// The word that makes memleak's doctor the first of its patients.
pub const FIRST: &str = "--test=patient=init";

/// Does what this image is there for, and executes the next one. Returns an exit code where there is none.
pub fn live(part: Patient) -> u8 {
    let next = match part {
        // Its parent may have had other words and another environment.
        Patient::Init => c"--test=patient=bare",
        Patient::Bare => c"--test=patient=more",
        Patient::More => c"--test=patient=seal",
        Patient::Seal => {
            if kill_at(URETPROBE).is_err() {
                return NOT_FILTERED;
            }
            allocate();
            return 0;
        }
    };
    if part == Patient::More {
        allocate();
    }
    // It returns only where it fails.
    let _ = execv(PROGRAM, &[c"memleak", c"doctor", next]);
    NOT_EXECUTED
}

fn allocate() {
    for n in 0..BLOCKS {
        // SAFETY: a block that nobody uses, freed once or never.
        unsafe {
            let block = black_box(libc::malloc(BLOCK as usize));
            if n < FREED {
                libc::free(block);
            }
        }
    }
}

/// Has this process killed, without a core file, when it makes this system call.
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
    // SAFETY: the kernel reads the filter, which lives through the call.
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
    use nix::sys::signal::Signal;
    use nix::sys::wait::{WaitStatus, waitpid};
    use nix::unistd::{ForkResult, fork};

    use super::*;

    /// How a process ends that makes the system call getppid under a filter that kills at this one.
    fn end_under(system_call: i64) -> WaitStatus {
        // SAFETY: the child only makes system calls.
        match unsafe { fork() }.unwrap() {
            ForkResult::Child => {
                let filtered = kill_at(system_call as u32).is_ok();
                // SAFETY: without arguments, and this process ends here.
                unsafe {
                    libc::syscall(libc::SYS_getppid);
                    libc::_exit(if filtered { 0 } else { 1 })
                }
            }
            ForkResult::Parent { child } => waitpid(child, None).unwrap(),
        }
    }

    #[test]
    fn the_filter_kills_at_its_system_call_and_at_no_other() {
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
