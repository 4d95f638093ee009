//! Why the BPF programs cannot be loaded.

use std::sync::{Mutex, MutexGuard, PoisonError};

use libbpf_rs::ErrorKind;
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};

use crate::kernel::features::{BTF, is_older};
use crate::os::capabilities::{CAP_BPF, CAP_SYS_ADMIN, Capabilities};
use crate::os::release;

/// Why the programs cannot be loaded. Each names its remedy.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error(
        "no right to load BPF programs: run memleak as root (sudo memleak …), or give its file the \
         capabilities CAP_BPF and CAP_PERFMON (setcap cap_bpf,cap_perfmon=ep)"
    )]
    Rights(#[source] libbpf_rs::Error),
    #[error(
        "this kernel has no type information ({BTF} is missing): use one built with CONFIG_DEBUG_INFO_BTF=y"
    )]
    NoBtf,
    #[error(
        "this kernel (Linux {release}) lacks what memleak needs: Linux 5.10 or later with CONFIG_BPF_SYSCALL, \
         CONFIG_BPF_EVENTS and CONFIG_UPROBES; -v shows what it said"
    )]
    Kernel {
        release: String,
        #[source]
        source: libbpf_rs::Error,
    },
    #[error(
        "too few descriptors for the programs and their tables: raise the hard limit (ulimit -Hn)"
    )]
    Descriptors(#[source] libbpf_rs::Error),
    #[error(
        "the limit of locked memory ({} kB), for which this kernel counts programs and their tables, is too low: \
         raise the hard limit (ulimit -Hl unlimited, as root; systemd: LimitMEMLOCK=infinity)",
        limit / 1024
    )]
    LockedMemory {
        limit: u64,
        #[source]
        source: libbpf_rs::Error,
    },
    #[error("the programs have no variables: this memleak was built wrong")]
    Variables,
    #[error("no memory for a table of {max_blocks} live blocks: give a lower --max-allocs")]
    Memory {
        max_blocks: u32,
        #[source]
        source: libbpf_rs::Error,
    },
}

impl LoadError {
    pub(super) fn ring(source: libbpf_rs::Error) -> Self {
        Self::of(source, 0)
    }

    pub(super) fn of(error: libbpf_rs::Error, max_blocks: u32) -> Self {
        match error.kind() {
            // EPERM and EACCES are one kind; only the verifier, whose no is EACCES, explains itself.
            ErrorKind::PermissionDenied if !messages().contains(VERIFIER_LOG) => {
                match locked_memory_limit() {
                    Some(limit) if is_older() => LoadError::LockedMemory {
                        limit,
                        source: error,
                    },
                    _ => LoadError::Rights(error),
                }
            }
            ErrorKind::OutOfMemory => LoadError::Memory {
                max_blocks,
                source: error,
            },
            _ if ran_out_of_descriptors(&error) => LoadError::Descriptors(error),
            _ => LoadError::Kernel {
                release: release::release(),
                source: error,
            },
        }
    }
}

/// Whether an error says that this process may open no more files. libbpf-rs keeps the number in its text only.
pub fn ran_out_of_descriptors(error: &dyn std::error::Error) -> bool {
    let number = format!("(os error {})", libc::EMFILE);
    std::iter::successors(Some(error), |error| error.source())
        .any(|error| format!("{error:#}").contains(&number))
}

/// What libbpf and the verifier said; for `-v`.
static MESSAGES: Mutex<String> = Mutex::new(String::new());

/// With this libbpf begins to quote the verifier.
const VERIFIER_LOG: &str = "BEGIN PROG LOAD LOG";

pub(super) fn messages() -> MutexGuard<'static, String> {
    MESSAGES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes what libbpf and the verifier have said so far.
pub fn take_messages() -> String {
    std::mem::take(&mut *messages())
}

/// What the limit of locked memory is where it may be what the kernel refuses programs for: who may load them
/// got the same answer, EPERM.
fn locked_memory_limit() -> Option<u64> {
    let may_load = Capabilities::get().is_ok_and(|own| own.has(CAP_BPF) || own.has(CAP_SYS_ADMIN));
    let (_, hard) = getrlimit(Resource::RLIMIT_MEMLOCK).ok()?;
    (may_load && hard != RLIM_INFINITY).then_some(hard)
}
