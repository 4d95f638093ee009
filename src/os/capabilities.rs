//! The capabilities of this process: memleak keeps those that it uses, and none of them reaches the command.
//!
//! A user without root's rights can run memleak if its file has capabilities (setcap). They belong to memleak and not
//! to the user. So they may only load and attach programs for the user.

use std::io;

use anyhow::{Context, Result, ensure};
use nix::unistd::{getegid, geteuid, getgid, getuid};
use rustix::thread::{CapabilitySet, CapabilitySets};

use crate::os::inherited;

pub const CAP_DAC_OVERRIDE: u32 = 1;
pub const CAP_DAC_READ_SEARCH: u32 = 2;
pub const CAP_SYS_PTRACE: u32 = 19;
pub const CAP_SYS_ADMIN: u32 = 21;
pub const CAP_PERFMON: u32 = 38;
pub const CAP_BPF: u32 = 39;

/// The capabilities that loading and attaching need. Maps and programs need CAP_BPF, and programs that trace need
/// CAP_PERFMON. Where only perf-event uprobes exist (below Linux 6.6), opening one needs CAP_SYS_ADMIN.
const USED: u64 = 1 << CAP_BPF | 1 << CAP_PERFMON | 1 << CAP_SYS_ADMIN;

/// The capability sets of a thread. Bit n is capability n.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capabilities {
    pub effective: u64,
    pub permitted: u64,
    pub inheritable: u64,
}

impl Capabilities {
    /// The sets of the calling thread.
    pub fn get() -> io::Result<Self> {
        let sets = rustix::thread::capabilities(None)?;
        Ok(Self {
            effective: sets.effective.bits(),
            permitted: sets.permitted.bits(),
            inheritable: sets.inheritable.bits(),
        })
    }

    /// Gives these sets to the calling thread. Async-signal-safe: rustix makes the system call itself, and allocates
    /// nothing.
    pub fn set(self) -> io::Result<()> {
        let sets = CapabilitySets {
            effective: CapabilitySet::from_bits_retain(self.effective),
            permitted: CapabilitySet::from_bits_retain(self.permitted),
            inheritable: CapabilitySet::from_bits_retain(self.inheritable),
        };
        Ok(rustix::thread::set_capabilities(None, sets)?)
    }

    /// Whether capability number `n` can be used now.
    pub fn has(self, n: u32) -> bool {
        self.effective & 1 << n != 0
    }

    /// These sets without any capability that can be used now. Inheritable ones have no effect by themselves.
    #[must_use]
    pub fn unusable(self) -> Self {
        Self {
            effective: 0,
            permitted: 0,
            inheritable: self.inheritable,
        }
    }
}

/// Gives up, for good, every capability that memleak's file gave it and that memleak does not use. So anything opened
/// in the user's name is opened with the user's rights only. Does nothing if the file gave no capabilities. To be
/// called while there is one thread.
///
/// # Errors
/// The file is set-user-ID or set-group-ID. The command would get the rights of the file's owner.
pub fn keep_what_is_used() -> Result<()> {
    if !inherited::is_privileged_by_file() {
        return Ok(());
    }
    ensure!(
        getuid() == geteuid() && getgid() == getegid(),
        "memleak must not be set-user-ID or set-group-ID, as the command would get these rights: remove the \
         bit (chmod ug-s), and give the file capabilities (setcap cap_bpf,cap_perfmon=ep)"
    );
    let have = Capabilities::get().context("cannot read this process's capabilities")?;
    let keep = Capabilities {
        effective: have.effective & USED,
        permitted: have.permitted & USED,
        inheritable: have.inheritable,
    };
    keep.set()
        .context("cannot give up capabilities that are not used")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Compares with what `/proc` shows of this very thread.
    #[test]
    fn capabilities_are_read_as_the_kernel_shows_them() {
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let set = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            u64::from_str_radix(line.unwrap().trim(), 16).unwrap()
        };
        assert_eq!(
            Capabilities::get().unwrap(),
            Capabilities {
                effective: set("CapEff:"),
                permitted: set("CapPrm:"),
                inheritable: set("CapInh:"),
            }
        );
    }

    #[test]
    fn capabilities_that_were_set_are_read_back() {
        std::thread::spawn(|| {
            let all = Capabilities::get().unwrap();
            let fewer = Capabilities {
                effective: all.effective & !(1 << CAP_BPF | 1),
                ..all
            };
            fewer.set().unwrap();
            assert_eq!(Capabilities::get().unwrap(), fewer);
            all.unusable().set().unwrap();
            assert_eq!(Capabilities::get().unwrap(), all.unusable());
        })
        .join()
        .unwrap();
    }
}
