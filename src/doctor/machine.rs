//! Reads facts about this kernel and this process from /proc, /sys and system calls. What they mean is decided in
//! `judge`.

use std::fs;
use std::path::{Path, PathBuf};

use nix::sys::resource::{Resource, getrlimit};
use nix::sys::statfs::{SECURITYFS_MAGIC, statfs};
use nix::sys::utsname::uname;

use crate::kernel::features::BTF;
use crate::os::capabilities::Capabilities;
use crate::os::cgroup;
use crate::os::processes::{self, levels_of_proc_above};
use crate::os::ptrace::Access;

/// The inode of the first user namespace (`PROC_USER_INIT_INO`).
const FIRST_USER_NAMESPACE: &str = "user:[4026531837]";

const SECURITYFS: &str = "/sys/kernel/security";

/// The facts that are known without a trial. `None`: the fact cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    pub release: String,
    /// As in uname(2).
    pub architecture: String,
    /// Size of the kernel's type information in bytes. `None` if there is none.
    pub btf: Option<u64>,
    pub capabilities: Option<Capabilities>,
    /// Whether memleak is in the first user namespace. Only capabilities of that namespace count for BPF.
    pub first_user_namespace: Option<bool>,
    pub no_new_privs: bool,
    /// Whether memleak itself is under a seccomp filter.
    pub filtered: bool,
    pub lockdown: Lockdown,
    /// What decides whether memleak may read other processes.
    pub access: Access,
    pub unprivileged_bpf_disabled: Option<i32>,
    pub perf_event_paranoid: Option<i32>,
    /// The hard limit of descriptors. memleak raises its soft limit to it.
    pub descriptors: Option<u64>,
    /// The limit of locked memory, in bytes.
    pub memlock: Option<u64>,
    pub has_proc: bool,
    /// How many levels the pid namespace of /proc is above memleak's own.
    pub proc_above: u32,
    pub cgroup_tree: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lockdown {
    /// The kernel was built without lockdown, or lockdown is off.
    Off,
    Integrity,
    Confidentiality,
    /// securityfs is not mounted, or cannot be read.
    Hidden,
}

impl Machine {
    /// Reads all facts.
    pub fn look() -> Self {
        let name = uname().ok();
        let of_name = |part: Option<&std::ffi::OsStr>| {
            part.map_or_else(
                || "unknown".to_owned(),
                |part| part.to_string_lossy().into_owned(),
            )
        };
        let status = fs::read_to_string("/proc/self/status");
        let field = |name: &str| processes::field::<u32>(status.as_ref().ok()?, name);
        let namespace = fs::read_link("/proc/self/ns/user").ok();
        let hard = |resource| getrlimit(resource).ok().map(|(_, hard)| hard);
        Machine {
            release: of_name(name.as_ref().map(|name| name.release())),
            architecture: of_name(name.as_ref().map(|name| name.machine())),
            btf: fs::metadata(BTF).ok().map(|metadata| metadata.len()),
            capabilities: Capabilities::get().ok(),
            first_user_namespace: namespace.map(|link| link == Path::new(FIRST_USER_NAMESPACE)),
            no_new_privs: field("NoNewPrivs:") == Some(1),
            filtered: field("Seccomp:") == Some(2),
            lockdown: lockdown(),
            access: Access::of_memleak(),
            unprivileged_bpf_disabled: sysctl("unprivileged_bpf_disabled"),
            perf_event_paranoid: sysctl("perf_event_paranoid"),
            descriptors: hard(Resource::RLIMIT_NOFILE),
            memlock: hard(Resource::RLIMIT_MEMLOCK),
            has_proc: status.is_ok(),
            proc_above: levels_of_proc_above(),
            cgroup_tree: cgroup::cgroup_tree().map(Path::to_owned),
        }
    }
}

fn sysctl(name: &str) -> Option<i32> {
    let text = fs::read_to_string(format!("/proc/sys/kernel/{name}"));
    text.ok()?.trim().parse().ok()
}

fn lockdown() -> Lockdown {
    if let Ok(text) = fs::read_to_string(format!("{SECURITYFS}/lockdown")) {
        return lockdown_in(&text);
    }
    let mounted = statfs(SECURITYFS).is_ok_and(|fs| fs.filesystem_type() == SECURITYFS_MAGIC);
    // A kernel with lockdown has the file.
    match mounted && !Path::new(SECURITYFS).join("lockdown").exists() {
        true => Lockdown::Off,
        false => Lockdown::Hidden,
    }
}

/// The level in brackets, for example in `none [integrity] confidentiality`.
fn lockdown_in(text: &str) -> Lockdown {
    let level = text
        .split_once('[')
        .and_then(|(_, rest)| rest.split_once(']'));
    match level {
        Some(("none", _)) => Lockdown::Off,
        Some(("integrity", _)) => Lockdown::Integrity,
        Some(("confidentiality", _)) => Lockdown::Confidentiality,
        _ => Lockdown::Hidden,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_level_of_lockdown_is_the_one_in_brackets() {
        for (text, level) in [
            ("[none] integrity confidentiality\n", Lockdown::Off),
            ("none [integrity] confidentiality\n", Lockdown::Integrity),
            (
                "none integrity [confidentiality]\n",
                Lockdown::Confidentiality,
            ),
            ("", Lockdown::Hidden),
            ("[new]", Lockdown::Hidden),
        ] {
            assert_eq!(lockdown_in(text), level, "{text}");
        }
    }
}
