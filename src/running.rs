//! Processes that run already: which they are, and what they have mapped to execute.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;

use crate::allocator::mapped::Mapping;

/// A thread of the kernel (include/linux/sched.h).
const PF_KTHREAD: u64 = 0x0020_0000;

/// A process that memleak is asked to watch, held by a descriptor: its number may not come to mean another.
#[derive(Debug)]
pub struct Process {
    pub pid: u32,
    /// Its number in the pid namespace that /proc shows.
    proc_pid: u32,
    fd: OwnedFd,
}

impl Process {
    /// # Errors
    /// There is no such process, or none that has memory to watch.
    pub fn open(pid: u32) -> Result<Self> {
        ensure!(
            pid != std::process::id(),
            "process {pid} is memleak itself, which does not watch itself"
        );
        let fd = match open_pidfd(pid) {
            Ok(fd) => fd,
            Err(Errno::ESRCH) => {
                ensure!(
                    fs::exists(format!("/proc/{pid}")).is_ok_and(|there| !there),
                    "process {pid} belongs to another pid namespace, of which /proc is: run memleak there, or \
                     give the number that the process has in memleak's own"
                );
                bail!("process {pid} does not exist");
            }
            // Which of the two depends on the kernel.
            Err(Errno::EINVAL | Errno::ENOENT) => {
                let leader = status_field(pid, "Tgid:").unwrap_or_default();
                bail!("{pid} is a thread of process {leader}: watch that with -p {leader}");
            }
            Err(error) => {
                return Err(error).with_context(|| format!("cannot open process {pid}"));
            }
        };
        let fdinfo = fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd()));
        let fdinfo = fdinfo.with_context(|| format!("cannot read of process {pid} in /proc"))?;
        let proc_pid = field(&fdinfo, "Pid:").unwrap_or_default();
        let (_, flags) =
            stat(proc_pid).with_context(|| format!("process {pid} cannot be found in /proc"))?;
        ensure!(living_thread(proc_pid).is_some(), "process {pid} has ended");
        ensure!(
            flags & PF_KTHREAD == 0,
            "process {pid} is a thread of the kernel, which has no memory of its own to watch"
        );
        Ok(Self { pid, proc_pid, fd })
    }

    /// What it has mapped to execute.
    ///
    /// # Errors
    /// It has ended, or there are no rights to look at it.
    pub fn mapped(&self) -> Result<Vec<Mapping>> {
        let pid = self.pid;
        let mapped = mapped(self.proc_pid).with_context(|| {
            format!(
                "cannot read what process {pid} has mapped (/proc/{pid}/maps; processes of other users take root, or \
                 CAP_SYS_PTRACE)"
            )
        })?;
        Ok(mapped.into_iter().map(|(mapping, _)| mapping).collect())
    }
}

impl AsFd for Process {
    /// Readable when the process has ended.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The processes that /proc shows, without memleak, by the numbers that they have there.
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

/// Where a process has mapped files to execute, each file once, with the device that it is on. `pid` is as
/// /proc has it.
///
/// # Errors
/// It has ended, or there are no rights to look at it.
pub fn mapped(pid: u32) -> io::Result<Vec<(Mapping, String)>> {
    let thread = living_thread(pid).ok_or(io::ErrorKind::NotFound)?;
    let maps = fs::read(format!("/proc/{thread}/maps"))?;
    let mut seen = HashSet::new();
    let mappings = maps
        .split(|&byte| byte == b'\n')
        .filter_map(|line| executable(thread, line))
        .filter(|(mapping, device)| seen.insert((*device, mapping.inode)))
        .map(|(mapping, device)| (mapping, device.to_owned()));
    Ok(mappings.collect())
}

/// A line of /proc/PID/maps, with its device, if it maps a file to be executed. `pid` may be a thread's.
fn executable(pid: u32, line: &[u8]) -> Option<(Mapping, &str)> {
    // The path at the end may be any bytes.
    let mut words = line
        .split(|&byte| byte == b' ')
        .filter(|word| !word.is_empty())
        .map_while(|word| std::str::from_utf8(word).ok());
    let (start, end) = words.next()?.split_once('-')?;
    let hex = |text| u64::from_str_radix(text, 16).ok();
    let access = words.next()?;
    let (_offset, device) = (words.next()?, words.next()?);
    let mapping = Mapping {
        pid,
        start: hex(start)?,
        end: hex(end)?,
        inode: words.next()?.parse().ok()?,
    };
    (access.contains('x') && mapping.inode != 0).then_some((mapping, device))
}

/// A thread of a process that has not left: the process, where that has not. Who has left has nothing mapped any
/// more, though the others go on.
fn living_thread(pid: u32) -> Option<u32> {
    let lives = |task: u32| stat(task).is_some_and(|(state, _)| !matches!(state, 'Z' | 'X'));
    if lives(pid) {
        return Some(pid);
    }
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).ok()?;
    tasks
        .filter_map(|task| task.ok()?.file_name().to_str()?.parse().ok())
        .find(|task| lives(*task))
}

fn open_pidfd(pid: u32) -> nix::Result<OwnedFd> {
    // SAFETY: the call takes two numbers.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let fd = Errno::result(fd)? as RawFd;
    // SAFETY: a new descriptor, which nobody else has.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A process's state, as `R` and `Z`, and its flags (`PF_*`), from /proc/PID/stat.
fn stat(pid: u32) -> Option<(char, u64)> {
    let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
    // The name before, in parentheses, may hold anything.
    let end = stat.iter().rposition(|&byte| byte == b')')?;
    let mut fields = std::str::from_utf8(&stat[end + 1..])
        .ok()?
        .split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    // proc_pid_stat(5): the state is the third field, the flags are the ninth.
    Some((state, fields.nth(5)?.parse().ok()?))
}

fn status_field(pid: u32, name: &str) -> Option<u32> {
    field(
        &fs::read_to_string(format!("/proc/{pid}/status")).ok()?,
        name,
    )
}

fn field(text: &str, name: &str) -> Option<u32> {
    let value = text.lines().find_map(|line| line.strip_prefix(name))?;
    value.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_that_are_executed_count() {
        let line = b"55d0c0001000-55d0c0003000 r-xp 00002000 fe:00 42       /bin/\xff b";
        let mapping = Mapping {
            pid: 7,
            start: 0x55d0_c000_1000,
            end: 0x55d0_c000_3000,
            inode: 42,
        };
        assert_eq!(executable(7, line), Some((mapping, "fe:00")));
        assert_eq!(
            executable(7, b"7ffd-7fff r-xp 00000000 00:00 0 [vdso]"),
            None
        );
        assert_eq!(executable(7, b"7ffd-7fff r--p 00000000 fe:00 42 /x"), None);
        assert_eq!(executable(7, b""), None);
    }

    #[test]
    fn we_have_mapped_our_program_and_the_c_library_once_each() {
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
