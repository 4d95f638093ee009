//! Reasons why the BPF programs cannot be loaded, with their remedies.

use std::ffi::{CStr, OsStr};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::{fmt, io};

use libbpf_rs::ErrorKind;
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};

use crate::kernel::features::{BTF, is_older};
use crate::os::capabilities::{CAP_BPF, CAP_SYS_ADMIN, Capabilities};
use crate::os::release;

/// A reason why the programs cannot be loaded.
#[derive(Debug)]
pub enum LoadError {
    Rights(libbpf_rs::Error),
    /// [`BTF`] is missing.
    NoBtf,
    Kernel {
        release: String,
        source: libbpf_rs::Error,
    },
    Descriptors(libbpf_rs::Error),
    LockedMemory {
        /// In bytes.
        limit: u64,
        source: libbpf_rs::Error,
    },
    /// Call stacks were asked for, and this kernel cannot unwind them.
    Stacks {
        release: String,
    },
    /// An object without its global variables.
    Variables,
    Memory {
        max_blocks: u32,
        source: libbpf_rs::Error,
    },
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what(), self.remedy())
    }
}

impl std::error::Error for LoadError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::NoBtf | Self::Stacks { .. } | Self::Variables => None,
            Self::Rights(source)
            | Self::Kernel { source, .. }
            | Self::Descriptors(source)
            | Self::LockedMemory { source, .. }
            | Self::Memory { source, .. } => Some(source),
        }
    }
}

impl LoadError {
    /// What is wrong.
    pub fn what(&self) -> String {
        match self {
            Self::Rights(_) => "no right to load BPF programs".to_owned(),
            Self::NoBtf => format!("this kernel has no type information ({BTF} is missing)"),
            Self::Kernel { release, .. } => {
                format!("this kernel (Linux {release}) lacks what memleak needs")
            }
            Self::Descriptors(_) => {
                "too few descriptors for the programs and their tables".to_owned()
            }
            Self::LockedMemory { limit, .. } => format!(
                "the limit of locked memory ({} kB), for which this kernel counts programs and their tables, is too \
                 low",
                limit / 1024
            ),
            Self::Stacks { release } => {
                format!("this kernel (Linux {release}) cannot unwind call stacks")
            }
            Self::Variables => "the BPF programs have no global variables".to_owned(),
            Self::Memory { max_blocks, .. } => {
                format!("no memory for a table of {max_blocks} live blocks")
            }
        }
    }

    /// What to do about it.
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::Rights(_) => {
                "run memleak as root (sudo memleak …), or give its file the capabilities CAP_BPF and CAP_PERFMON \
                 (setcap cap_bpf,cap_perfmon=ep)"
            }
            Self::NoBtf => "use one built with CONFIG_DEBUG_INFO_BTF=y",
            Self::Kernel { .. } => {
                "Linux 5.8 or later with CONFIG_BPF_SYSCALL, CONFIG_BPF_EVENTS and CONFIG_UPROBES; -v shows the \
                 messages of libbpf and the verifier"
            }
            Self::Descriptors(_) => "raise the hard limit (ulimit -Hn)",
            Self::LockedMemory { .. } => {
                "raise the hard limit (ulimit -Hl unlimited, as root; systemd: LimitMEMLOCK=infinity)"
            }
            Self::Stacks { .. } => {
                "Linux 6.1 or later can; --stacks=never counts without them (-v shows the messages of the verifier)"
            }
            Self::Variables => "build memleak again with cargo",
            Self::Memory { .. } => "give a lower --max-allocs",
        }
    }

    pub(super) fn ring(source: libbpf_rs::Error) -> Self {
        Self::of(source, 0)
    }

    /// A map cannot be mapped, or its descriptor not be duplicated.
    pub(super) fn mapping(source: io::Error) -> Self {
        Self::ring(source.into())
    }

    pub(super) fn of(error: libbpf_rs::Error, max_blocks: u32) -> Self {
        match error.kind() {
            // EPERM and EACCES are one kind here. Only the verifier writes a log, and it refuses with EACCES.
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
            _ if ran_out_of_descriptors(&error) || says_so(&messages()) => {
                LoadError::Descriptors(error)
            }
            _ => LoadError::Kernel {
                release: release::release(),
                source: error,
            },
        }
    }
}

/// The number of the system call's error that an error, or one of its causes, stands for.
///
/// libbpf-rs 0.27 passes an [`std::io::Error`] on as text only: its `source()` skips that error, and its kinds stand for
/// several numbers each. So this function reads the number from "(os error N)". No other place takes an error's text
/// apart.
pub fn errno_of(error: &dyn std::error::Error) -> Option<i32> {
    std::iter::successors(Some(error), |error| error.source()).find_map(|error| {
        let text = error.to_string();
        let (_, rest) = text.rsplit_once("(os error ")?;
        rest.split_once(')')?.0.parse().ok()
    })
}

/// Whether an error says that this process cannot open more files.
pub fn ran_out_of_descriptors(error: &dyn std::error::Error) -> bool {
    errno_of(error) == Some(libc::EMFILE)
}

/// Whether messages of libbpf say so, although its error does not.
fn says_so(messages: &str) -> bool {
    [NO_TABLE, NO_DESCRIPTOR]
        .iter()
        .any(|text| messages.contains(text))
}

/// The messages of libbpf and the verifier, for `-v`.
static MESSAGES: Mutex<String> = Mutex::new(String::new());

/// libbpf begins its quotation of the verifier with this text.
const VERIFIER_LOG: &str = "BEGIN PROG LOAD LOG";

/// What the kernel says of a program whose table was not created. If the last descriptor is needed for libbpf's trial of
/// tables of variables, libbpf takes it that the kernel has none.
const NO_TABLE: &str = "is not pointing to valid bpf_map";

/// libbpf's message if there was no descriptor for something that it looks up. It then takes it that the kernel has none.
const NO_DESCRIPTOR: &str = "-EMFILE";

/// Adds what the verifier says of a program that libbpf has not loaded.
pub(super) fn add_log(program: &OsStr, log: &[u8]) {
    let log = CStr::from_bytes_until_nul(log).unwrap_or_default();
    if !log.is_empty() {
        let (program, log) = (program.display(), log.to_string_lossy());
        let mut messages = messages();
        *messages +=
            &format!("program '{program}': -- {VERIFIER_LOG} --\n{log}-- END PROG LOAD LOG --\n");
    }
}

pub(super) fn messages() -> MutexGuard<'static, String> {
    MESSAGES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes the messages of libbpf and the verifier so far.
pub fn take_messages() -> String {
    std::mem::take(&mut *messages())
}

/// The limit of locked memory, if it may be the reason why the kernel refuses programs. A process that may load
/// programs gets the same error, EPERM, for it.
fn locked_memory_limit() -> Option<u64> {
    let may_load = Capabilities::get().is_ok_and(|own| own.has(CAP_BPF) || own.has(CAP_SYS_ADMIN));
    let (_, hard) = getrlimit(Resource::RLIMIT_MEMLOCK).ok()?;
    (may_load && hard != RLIM_INFINITY).then_some(hard)
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    #[test]
    fn the_number_of_a_system_calls_error_is_found_below_its_contexts() {
        let plain = libbpf_rs::Error::from_raw_os_error(libc::EMFILE);
        assert!(ran_out_of_descriptors(&plain));
        let error: Result<(), _> = Err(libbpf_rs::Error::from_raw_os_error(524));
        let error = error.context("cannot attach").context("(os error x)");
        assert_eq!(errno_of(error.unwrap_err().as_ref()), Some(524));
        assert_eq!(errno_of(&LoadError::NoBtf), None);
    }
}
