//! Running processes: which exist, and which files they have mapped executable. What is done with them is left to
//! `session`.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io::{self, BufReader};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::str::FromStr;

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::process::{PidfdFlags, pidfd_open};

use crate::os::mapping::Mapping;
use crate::os::maps;

/// Marks a thread of the kernel (include/linux/sched.h).
const PF_KTHREAD: u64 = 0x0020_0000;

/// A process that memleak watches. The descriptor ensures that the process is not mistaken for another one with the same
/// pid.
#[derive(Debug)]
pub struct Process {
    pub pid: u32,
    /// The process's pid in the pid namespace that /proc shows.
    pub proc_pid: u32,
    fd: OwnedFd,
}

impl Process {
    /// Opens a process that memleak is asked to watch.
    ///
    /// # Errors
    /// The process does not exist, or it has no memory to watch.
    pub fn open(pid: u32) -> Result<Self> {
        ensure!(
            pid != std::process::id(),
            "process {pid} is memleak itself, which does not watch itself"
        );
        if let Some(process) = Self::open_living(pid)? {
            let Stat { flags, .. } = stat(process.proc_pid)
                .with_context(|| format!("process {pid} cannot be found in /proc"))?;
            ensure!(
                flags & PF_KTHREAD == 0,
                "process {pid} is a thread of the kernel, which has no memory of its own to watch"
            );
            return Ok(process);
        }
        match open_pidfd(pid) {
            Ok(_) => bail!("process {pid} has ended"),
            Err(error) if is_thread(error) => {
                let leader = status_field(pid, "Tgid:").unwrap_or_default();
                bail!("{pid} is a thread of process {leader}: watch the process with -p {leader}");
            }
            Err(_) => {}
        }
        ensure!(
            fs::exists(format!("/proc/{pid}")).is_ok_and(|there| !there),
            "process {pid} belongs to another pid namespace, the one that /proc shows: run memleak in that namespace, \
             or give the pid that the process has in memleak's own"
        );
        bail!("process {pid} does not exist");
    }

    /// Opens a process, even if /proc hides it. `None`: no process has this pid, or no thread of it is left.
    ///
    /// # Errors
    /// memleak has no descriptor left.
    pub fn open_living(pid: u32) -> Result<Option<Self>> {
        let fd = match open_pidfd(pid) {
            Ok(fd) => fd,
            Err(error) if error == Errno::ESRCH || is_thread(error) => return Ok(None),
            Err(error) => {
                return Err(error).with_context(|| format!("cannot open process {pid}"));
            }
        };
        let fdinfo = fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd()));
        let fdinfo = fdinfo.with_context(|| format!("cannot read about process {pid} in /proc"))?;
        let proc_pid = field(&fdinfo, "Pid:").unwrap_or_default();
        let process = Self { pid, proc_pid, fd };
        let is_zombie = living_thread(proc_pid).is_none() && stat(proc_pid).is_some();
        if is_zombie || process.has_ended() {
            return Ok(None);
        }
        Ok(Some(process))
    }

    /// The command name. Empty if the process has ended.
    pub fn comm(&self) -> Vec<u8> {
        let mut comm = fs::read(format!("/proc/{}/comm", self.proc_pid)).unwrap_or_default();
        comm.pop_if(|last| *last == b'\n');
        comm
    }

    /// Whether no thread of the process is left.
    pub fn has_ended(&self) -> bool {
        let mut fds = [PollFd::new(self.fd.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
    }

    /// Whether the thread that leads the process has not exited. Others may outlive it.
    pub fn has_leader(&self) -> bool {
        lives(self.proc_pid)
    }

    /// The files that the process has mapped executable.
    ///
    /// # Errors
    /// The process has ended, or there are no rights to read its mappings.
    pub fn mapped(&self) -> Result<Vec<(Mapping, String)>> {
        let pid = self.pid;
        mapped(self.proc_pid).with_context(|| {
            format!(
                "cannot read what process {pid} has mapped (/proc/{pid}/maps; processes of other users need root, or \
                 CAP_SYS_PTRACE)"
            )
        })
    }
}

impl AsFd for Process {
    /// Readable when the process has ended.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The pids of all processes that /proc shows, except memleak's own. They are pids of the namespace that /proc shows.
///
/// # Errors
/// /proc cannot be read.
pub fn all() -> Result<Vec<u32>> {
    let own = fs::read_link("/proc/self").ok();
    let own = own.and_then(|link| link.to_str()?.parse().ok());
    let mut pids = Vec::new();
    for entry in fs::read_dir("/proc").context("cannot list the processes in /proc")? {
        let name = entry
            .context("cannot list the processes in /proc")?
            .file_name();
        pids.extend(name.to_str().and_then(|name| name.parse::<u32>().ok()));
    }
    pids.retain(|pid| Some(*pid) != own);
    Ok(pids)
}

/// How many living processes descend from these, without these and without memleak.
///
/// # Errors
/// /proc cannot be read.
pub fn count_descendants(of: &[Process]) -> Result<usize> {
    let of = of.iter().map(|process| process.proc_pid).collect();
    let parents: HashMap<u32, u32> = all()?
        .into_iter()
        .filter_map(|pid| Some((pid, stat(pid).filter(|stat| stat.state != 'Z')?.parent)))
        .collect();
    Ok(descendants(&parents, &of))
}

/// The same over a map from each process to its parent.
fn descendants(parents: &HashMap<u32, u32>, of: &HashSet<u32>) -> usize {
    let descends = |pid: &u32| {
        let ancestors = std::iter::successors(parents.get(pid), |parent| parents.get(parent));
        // The map was not read in one moment, so it might have a circle.
        let mut ancestors = ancestors.take(parents.len());
        !of.contains(pid) && ancestors.any(|ancestor| of.contains(ancestor))
    };
    parents.keys().filter(|pid| descends(pid)).count()
}

/// Where a process has mapped files executable. Each file is there once, with its device. `pid` is a pid in the
/// namespace that /proc shows.
///
/// # Errors
/// The process has ended, or there are no rights to read its mappings.
pub fn mapped(pid: u32) -> io::Result<Vec<(Mapping, String)>> {
    let thread = living_thread(pid).ok_or(io::ErrorKind::NotFound)?;
    let maps = BufReader::new(File::open(format!("/proc/{thread}/maps"))?);
    let mut seen = HashSet::new();
    let mut mappings = Vec::new();
    maps::executables(maps, |found| {
        if seen.insert((found.device.clone(), found.inode)) {
            let mapping = Mapping {
                pid: thread,
                start: found.addresses.start,
                end: found.addresses.end,
                inode: found.inode,
            };
            mappings.push((mapping, found.device));
        }
        Ok(())
    })?;
    Ok(mappings)
}

/// A living thread of a process: the leader, if that is alive. A leader that has exited has nothing mapped any more,
/// even if other threads still run.
fn living_thread(pid: u32) -> Option<u32> {
    if lives(pid) {
        return Some(pid);
    }
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).ok()?;
    tasks
        .filter_map(|task| task.ok()?.file_name().to_str()?.parse().ok())
        .find(|task| lives(*task))
}

/// Whether [`open_pidfd`] failed because the pid belongs to a thread. The kernel's version decides which error comes.
fn is_thread(error: Errno) -> bool {
    matches!(error, Errno::EINVAL | Errno::ENOENT)
}

fn lives(task: u32) -> bool {
    stat(task).is_some_and(|stat| !matches!(stat.state, 'Z' | 'X'))
}

/// Opens a process, close-on-exec. The descriptor becomes readable when the process ends.
///
/// # Errors
/// The process does not exist or is a thread, or Linux is older than 5.3.
pub fn open_pidfd(pid: u32) -> nix::Result<OwnedFd> {
    let pid = i32::try_from(pid)
        .ok()
        .and_then(rustix::process::Pid::from_raw);
    let opened = pidfd_open(pid.ok_or(Errno::EINVAL)?, PidfdFlags::empty());
    opened.map_err(|error| Errno::from_raw(error.raw_os_error()))
}

/// What /proc/PID/stat says of a process or a thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// The state, such as `R` or `Z`.
    pub state: char,
    pub parent: u32,
    /// `PF_*`
    pub flags: u64,
}

/// Reads /proc/PID/stat. `None`: the process does not exist.
pub fn stat(pid: u32) -> Option<Stat> {
    parse_stat(&fs::read(format!("/proc/{pid}/stat")).ok()?)
}

fn parse_stat(stat: &[u8]) -> Option<Stat> {
    // The name in parentheses may contain anything, so the last parenthesis is searched for.
    let end = stat.iter().rposition(|&byte| byte == b')')?;
    let mut fields = std::str::from_utf8(&stat[end + 1..])
        .ok()?
        .split_ascii_whitespace();
    // proc_pid_stat(5): the state is the third field, the parent the fourth, and the flags are the ninth.
    Some(Stat {
        state: fields.next()?.chars().next()?,
        parent: fields.next()?.parse().ok()?,
        flags: fields.nth(4)?.parse().ok()?,
    })
}

fn status_field(pid: u32, name: &str) -> Option<u32> {
    field(
        &fs::read_to_string(format!("/proc/{pid}/status")).ok()?,
        name,
    )
}

/// A number from a file of /proc, where it stands on a line of its own after its name.
pub fn field<T: FromStr>(text: &str, name: &str) -> Option<T> {
    let value = text.lines().find_map(|line| line.strip_prefix(name))?;
    value.trim().parse().ok()
}

/// How many levels the pid namespace that /proc shows is above memleak's own. It is above if memleak's namespace has no
/// /proc of its own (unshare --pid without --mount-proc).
pub fn levels_of_proc_above() -> u32 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    status
        .lines()
        .find_map(|line| line.strip_prefix("NSpid:"))
        .map_or(0, |pids| {
            pids.split_whitespace().count().saturating_sub(1) as u32
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_and_spaces_does_not_hide_the_fields() {
        let stat = b"7 (a) R 1 (b) Z 12 7 7 0 -1 4194560 100 0 0 0";
        let expected = Stat {
            state: 'Z',
            parent: 12,
            flags: 4_194_560,
        };
        assert_eq!(parse_stat(stat), Some(expected));
        assert_eq!(parse_stat(b"7 (a"), None);
        assert!(super::stat(std::process::id()).is_some());
    }

    #[test]
    fn descendants_are_counted_without_the_processes_that_they_descend_from() {
        let parents = HashMap::from([
            (10, 1),
            (11, 10),
            (12, 11),
            (13, 1),
            (14, 12),
            (20, 21),
            (21, 20),
        ]);
        for (of, count) in [
            (&[10][..], 3),
            (&[10, 12], 2),
            (&[13], 0),
            (&[1], 5),
            (&[], 0),
        ] {
            let of = of.iter().copied().collect();
            assert_eq!(descendants(&parents, &of), count, "{of:?}");
        }
    }

    #[test]
    fn each_mapped_executable_file_is_listed_once() {
        let inodes: Vec<u64> = mapped(std::process::id())
            .unwrap()
            .iter()
            .map(|(mapping, _)| mapping.inode)
            .collect();
        let program = std::os::unix::fs::MetadataExt::ino(&fs::metadata("/proc/self/exe").unwrap());
        assert_eq!(inodes.iter().filter(|inode| **inode == program).count(), 1);
        assert!(inodes.len() >= 2);
    }
}
