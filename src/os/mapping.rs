//! Opens a file that another process has mapped: the very file, wherever its path may lead by now.

use std::fs::{self, File};
use std::io::{self, BufReader};
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sched::{CloneFlags, setns, unshare};

use crate::os::maps;

/// Where a process has mapped a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// In the pid namespace that /proc shows.
    pub pid: u32,
    pub start: u64,
    pub end: u64,
    /// The file's number in its file system.
    pub inode: u64,
}

/// What a path that leads nowhere any more ends in (proc_pid_maps(5)).
const DELETED: &str = " (deleted)";

impl Mapping {
    /// Opens the file, and tells its path as the kernel does: that of the process's own mount namespace.
    ///
    /// # Errors
    /// `NotFound`: the process is gone, or has taken the mapping away. Else there are no rights to the file:
    /// its link in `map_files` takes CAP_SYS_ADMIN or CAP_CHECKPOINT_RESTORE, and without these its path
    /// must still lead to it.
    pub fn open(&self) -> io::Result<(PathBuf, File)> {
        let link = PathBuf::from(format!(
            "/proc/{}/map_files/{:x}-{:x}",
            self.pid, self.start, self.end
        ));
        let path = match fs::read_link(&link) {
            Ok(path) => path,
            Err(error) => return self.open_program().map_err(|_| error),
        };
        let file = match open(&link) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(error),
            Err(error) => self.open_by_path(&path).map_err(|_| error)?,
        };
        Ok((shown(path), file))
    }

    fn open_by_path(&self, path: &Path) -> io::Result<File> {
        let root = PathBuf::from(format!("/proc/{}/root", self.pid));
        let inside = path.strip_prefix("/").map(|path| root.join(path));
        let candidates = [inside.ok(), Some(path.to_owned())];
        candidates
            .into_iter()
            .flatten()
            .find_map(|path| self.open_same(&path))
            .map_or_else(|| self.open_program().map(|(_, file)| file), Ok)
    }

    /// The process's program, if that is what is mapped there.
    fn open_program(&self) -> io::Result<(PathBuf, File)> {
        let link = PathBuf::from(format!("/proc/{}/exe", self.pid));
        let path = fs::read_link(&link)?;
        let file = self.open_same(&link).ok_or(io::ErrorKind::NotFound)?;
        Ok((shown(path), file))
    }

    fn open_same(&self, path: &Path) -> Option<File> {
        let file = open(path).ok()?;
        (file.metadata().ok()?.ino() == self.inode).then_some(file)
    }
}

/// Whatever a path has come to lead to, opening it must not wait for anybody.
fn open(path: &Path) -> io::Result<File> {
    File::options()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
}

fn shown(path: PathBuf) -> PathBuf {
    match path.to_str().and_then(|text| text.strip_suffix(DELETED)) {
        Some(text) => PathBuf::from(text),
        None => path,
    }
}

/// An open file as seen by a mount that nobody else sees, and that goes with the last who uses it: what uprobes
/// keep of a file includes the mount that it came by, which could not be unmounted while they are there. `pid`
/// is a process in whose mount namespace the file is, if that may be another one.
///
/// # Errors
/// CAP_SYS_ADMIN is missing, or Linux is older than 5.2.
pub fn in_own_mount(file: &File, pid: Option<u32>) -> io::Result<File> {
    match (own_mount_of(file), pid) {
        // Not a mount of ours.
        (Err(Errno::EINVAL), Some(pid)) => {
            let namespace = File::open(format!("/proc/{pid}/ns/mnt"))?;
            let made = thread::scope(|scope| {
                let in_there = scope.spawn(|| {
                    unshare(CloneFlags::CLONE_FS)?;
                    setns(&namespace, CloneFlags::CLONE_NEWNS)?;
                    own_mount_of(file)
                });
                in_there.join().unwrap_or(Err(Errno::EINVAL))
            });
            Ok(made?)
        }
        (made, _) => Ok(made?),
    }
}

fn own_mount_of(file: &File) -> nix::Result<File> {
    let flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC | libc::AT_EMPTY_PATH as u32;
    // SAFETY: the path is a C string; the call reads nothing else.
    let made = unsafe { libc::syscall(libc::SYS_open_tree, file.as_raw_fd(), c"".as_ptr(), flags) };
    let descriptor = Errno::result(made)? as RawFd;
    // SAFETY: a new descriptor, which nobody else has.
    Ok(unsafe { File::from_raw_fd(descriptor) })
}

/// More than a breakpoint takes, on any architecture.
const BREAKPOINT: u64 = 16;

/// How long the kernel may take to take breakpoints out of a process.
const REMOVAL: Duration = Duration::from_secs(1);

/// Puts what `file` has at these offsets to where `pid` has mapped it executable. There were breakpoints, and the
/// kernel, which is about to take them out, puts back what the file had there before it was written over. The
/// process must be held.
///
/// # Errors
/// The process's memory cannot be read or written, or the breakpoints stay.
pub fn restore(pid: u32, file: &File, offsets: &[u64]) -> io::Result<()> {
    let inode = file.metadata()?.ino();
    let maps = BufReader::new(File::open(format!("/proc/{pid}/maps"))?);
    let memory = File::options()
        .read(true)
        .write(true)
        .open(format!("/proc/{pid}/mem"))?;
    maps::executables(maps, |found| {
        if found.inode != inode {
            return Ok(());
        }
        let size = found.addresses.end - found.addresses.start;
        let mapped = found.offset..found.offset.saturating_add(size);
        for &offset in offsets.iter().filter(|offset| mapped.contains(offset)) {
            let mut bytes = vec![0; BREAKPOINT.min(mapped.end - offset) as usize];
            let length = file.read_at(&mut bytes, offset)?;
            let address = found.addresses.start + (offset - found.offset);
            await_removal(&memory, address)?;
            memory.write_all_at(&bytes[..length], address)?;
        }
        Ok(())
    })
}

fn await_removal(memory: &File, address: u64) -> io::Result<()> {
    // int3; on aarch64 the instruction `brk` is known by its last byte.
    let (at, breakpoint) = match cfg!(target_arch = "x86_64") {
        true => (address, 0xcc),
        false => (address + 3, 0xd4),
    };
    let began = Instant::now();
    let mut byte = [0];
    loop {
        memory.read_exact_at(&mut byte, at)?;
        if byte[0] != breakpoint {
            return Ok(());
        }
        if began.elapsed() > REMOVAL {
            return Err(io::ErrorKind::TimedOut.into());
        }
        thread::sleep(Duration::from_millis(1));
    }
}

/// How many levels the pid namespace that /proc shows is above our own: more than none where ours has no
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
    fn the_file_of_a_mapping_is_found_though_its_path_leads_elsewhere() {
        let maps = fs::read_to_string("/proc/self/maps").unwrap();
        let line = maps.lines().find(|line| line.contains(" r-xp ")).unwrap();
        let words: Vec<_> = line.split_whitespace().collect();
        let (start, end) = words[0].split_once('-').unwrap();
        let number = |hex| u64::from_str_radix(hex, 16).unwrap();
        let mapping = Mapping {
            pid: std::process::id(),
            start: number(start),
            end: number(end),
            inode: words[4].parse().unwrap(),
        };
        let (path, file) = mapping.open().unwrap();
        assert_eq!(path, Path::new(words[5]));
        assert_eq!(file.metadata().unwrap().ino(), mapping.inode);
        // As without the rights to the link.
        let program = mapping.open_program().unwrap();
        assert_eq!(program.1.metadata().unwrap().ino(), mapping.inode);
        let gone = Mapping {
            end: 0,
            inode: 0,
            ..mapping
        };
        assert_eq!(gone.open().unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_deleted_file_keeps_its_name() {
        assert_eq!(shown("/tmp/x (deleted)".into()), Path::new("/tmp/x"));
        assert_eq!(shown("/memfd:x (deleted)".into()), Path::new("/memfd:x"));
        assert_eq!(shown("/tmp/x".into()), Path::new("/tmp/x"));
    }
}
