//! Whether memleak may read the memory of other processes. The kernel's rules are those of ptrace(2), "Ptrace access mode
//! checking": the calls that read are process_vm_readv(2), and opening /proc/PID/maps and /proc/PID/pagemap.

use std::fs;

use nix::errno::Errno;
use nix::unistd::{Uid, getuid};

use crate::os::capabilities::{CAP_SYS_PTRACE, Capabilities};

const SCOPE: &str = "/proc/sys/kernel/yama/ptrace_scope";

/// What decides whether memleak may read processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// Whether memleak has CAP_SYS_PTRACE.
    pub capable: bool,
    /// kernel.yama.ptrace_scope, 0 to 3. 0 where there is no such file.
    pub scope: u8,
    /// Whether a seccomp filter lets memleak make the call that reads.
    pub callable: bool,
}

/// Why memleak may read no process of a user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Barrier {
    /// A seccomp filter refuses process_vm_readv(2).
    Filter,
    /// kernel.yama.ptrace_scope is 3.
    NobodyMay,
    /// kernel.yama.ptrace_scope is 2, and memleak has no CAP_SYS_PTRACE.
    OnlyCapable,
    /// The process belongs to another user, and memleak has no CAP_SYS_PTRACE.
    OtherUser,
}

impl Access {
    /// That of this process.
    pub fn of_memleak() -> Self {
        let scope = fs::read_to_string(SCOPE).ok();
        let scope = scope.and_then(|scope| scope.trim().parse().ok());
        Self {
            capable: Capabilities::get().is_ok_and(|sets| sets.has(CAP_SYS_PTRACE)),
            scope: scope.unwrap_or(0),
            callable: can_call(),
        }
    }

    /// What keeps memleak from reading the processes that it starts as this user. `None`: nothing that is known
    /// beforehand. `user`: memleak's own if there is none.
    pub fn barrier(self, user: Option<Uid>) -> Option<Barrier> {
        let is_other = user.is_some_and(|user| user != getuid());
        match self {
            Self {
                callable: false, ..
            } => Some(Barrier::Filter),
            Self { scope: 3.., .. } => Some(Barrier::NobodyMay),
            Self { capable: true, .. } => None,
            Self { scope: 2, .. } => Some(Barrier::OnlyCapable),
            _ if is_other => Some(Barrier::OtherUser),
            _ => None,
        }
    }
}

impl Barrier {
    /// In a few words, for people.
    pub fn phrase(self) -> &'static str {
        match self {
            Self::Filter => "a seccomp filter refuses process_vm_readv(2)",
            Self::NobodyMay => "kernel.yama.ptrace_scope is 3",
            Self::OnlyCapable => "kernel.yama.ptrace_scope is 2, and memleak lacks CAP_SYS_PTRACE",
            Self::OtherUser => "memleak lacks CAP_SYS_PTRACE for processes of another user",
        }
    }

    /// What to do about it.
    pub fn remedy(self) -> &'static str {
        match self {
            Self::Filter => {
                "run memleak outside of the container or service, or with a filter that allows process_vm_readv"
            }
            Self::NobodyMay => "boot with kernel.yama.ptrace_scope at most 2: a 3 stays until then",
            Self::OnlyCapable => "run memleak as root, or set kernel.yama.ptrace_scope to 1",
            Self::OtherUser => "run memleak as root with CAP_SYS_PTRACE",
        }
    }
}

/// Reads nothing from this process, which the kernel always allows.
fn can_call() -> bool {
    // SAFETY: without ranges, no memory is read or written.
    let read = unsafe {
        libc::process_vm_readv(libc::getpid(), std::ptr::null(), 0, std::ptr::null(), 0, 0)
    };
    Errno::result(read).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_read_only_with_the_right_for_it() {
        use Barrier::*;
        let other = Some(Uid::from_raw(getuid().as_raw() ^ 1));
        for (capable, scope, callable, own, others) in [
            (false, 0, true, None, Some(OtherUser)),
            (false, 1, true, None, Some(OtherUser)),
            (false, 2, true, Some(OnlyCapable), Some(OnlyCapable)),
            (false, 3, true, Some(NobodyMay), Some(NobodyMay)),
            (true, 0, true, None, None),
            (true, 2, true, None, None),
            (true, 3, true, Some(NobodyMay), Some(NobodyMay)),
            (true, 0, false, Some(Filter), Some(Filter)),
        ] {
            let access = Access {
                capable,
                scope,
                callable,
            };
            assert_eq!(access.barrier(None), own, "{access:?}");
            assert_eq!(access.barrier(Some(getuid())), own, "{access:?}");
            assert_eq!(access.barrier(other), others, "{access:?}");
        }
    }

    #[test]
    fn the_call_is_allowed_here() {
        assert!(can_call());
    }
}
