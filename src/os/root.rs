//! Opens files as a process with another root directory would see them.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::sys::stat::{Mode, SFlag, fstat};

/// A directory in which paths begin, such as `/proc/PID/root`.
#[derive(Debug)]
pub struct Root {
    /// `None`: memleak's own root.
    directory: Option<OwnedFd>,
}

impl Root {
    /// Memleak's own root.
    pub fn ours() -> Self {
        Self { directory: None }
    }

    /// The directory that a process sees as `/`. `pid` is a pid in the namespace that /proc shows.
    ///
    /// # Errors
    /// As for [`at`](Self::at).
    pub fn of_process(pid: u32) -> io::Result<Self> {
        Self::at(&PathBuf::from(format!("/proc/{pid}/root")))
    }

    /// The root at this path.
    ///
    /// # Errors
    /// The directory does not exist, or may not be opened.
    pub fn at(path: &Path) -> io::Result<Self> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        Ok(Self {
            directory: Some(open(path, flags, Mode::empty())?),
        })
    }

    /// The open directory. `None` for memleak's own root.
    pub fn directory(&self) -> Option<&OwnedFd> {
        self.directory.as_ref()
    }

    /// Opens a regular file to read it. Symbolic links cannot lead out of the root. Nothing but a regular file is
    /// opened, because opening a device or a FIFO may wait, or have effects.
    ///
    /// # Errors
    /// The file does not exist, may not be opened, or is not a regular file.
    pub fn open(&self, path: &Path) -> io::Result<File> {
        File::open(reopen(&self.found(path)?))
    }

    /// As [`open`](Self::open), but does not follow a symbolic link at the end of the path.
    ///
    /// # Errors
    /// As for [`open`](Self::open). A symbolic link is not a regular file.
    pub fn open_itself(&self, path: &Path) -> io::Result<File> {
        File::open(reopen(&self.found_by(path, OFlag::O_NOFOLLOW)?))
    }

    /// Whether a regular file of this name exists.
    pub fn is_file(&self, path: &Path) -> bool {
        self.found(path).is_ok()
    }

    /// The file's whole content, if it is not longer than `limit`.
    pub fn read(&self, path: &Path, limit: u64) -> io::Result<Vec<u8>> {
        let file = self.open(path)?;
        let mut bytes = Vec::new();
        io::Read::read_to_end(&mut io::Read::take(file, limit + 1), &mut bytes)?;
        if bytes.len() as u64 > limit {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        Ok(bytes)
    }

    /// The path of a file without symbolic links, as seen from the root.
    pub fn canonical(&self, path: &Path) -> io::Result<PathBuf> {
        let found = fs::read_link(reopen(&self.found(path)?))?;
        let Some(directory) = &self.directory else {
            return Ok(found);
        };
        // The root of another mount namespace is shown as "/", and paths in it are shown without a prefix.
        let root = fs::read_link(reopen(directory))?;
        Ok(match found.strip_prefix(&root) {
            Ok(inner) => Path::new("/").join(inner),
            Err(_) => found,
        })
    }

    fn found(&self, path: &Path) -> io::Result<OwnedFd> {
        self.found_by(path, OFlag::empty())
    }

    fn found_by(&self, path: &Path, more: OFlag) -> io::Result<OwnedFd> {
        let flags = OFlag::O_PATH | OFlag::O_CLOEXEC | more;
        let file = match &self.directory {
            None => open(path, flags, Mode::empty())?,
            Some(directory) => {
                let how = OpenHow::new()
                    .flags(flags)
                    .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
                // A relative path begins in the root, too, because the process's working directory is not known.
                let mut relative = path.as_os_str().as_bytes();
                while let Some(rest) = relative.strip_prefix(b"/") {
                    relative = rest;
                }
                openat2(directory, OsStr::from_bytes(relative), how)?
            }
        };
        let kind = SFlag::from_bits_truncate(fstat(&file)?.st_mode) & SFlag::S_IFMT;
        if kind != SFlag::S_IFREG {
            return Err(Errno::EINVAL.into());
        }
        Ok(file)
    }
}

fn reopen(file: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn links_stay_in_the_root() {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir_all(directory.path().join("etc")).unwrap();
        fs::write(directory.path().join("etc/hostname"), "inside").unwrap();
        symlink("/etc/hostname", directory.path().join("link")).unwrap();
        symlink("../../../etc/hostname", directory.path().join("up")).unwrap();
        symlink("/etc/passwd", directory.path().join("out")).unwrap();
        let root = Root::at(directory.path()).unwrap();
        for name in ["/link", "link", "/up", "//etc/hostname"] {
            assert_eq!(
                root.read(Path::new(name), 100).unwrap(),
                b"inside",
                "{name}"
            );
        }
        assert!(!root.is_file(Path::new("/out")));
        assert!(root.open_itself(Path::new("/link")).is_err());
        assert!(root.open_itself(Path::new("/etc/hostname")).is_ok());
        assert_eq!(
            root.canonical(Path::new("/link")).unwrap(),
            Path::new("/etc/hostname")
        );
    }

    #[test]
    fn only_regular_files_are_opened() {
        let directory = tempfile::tempdir().unwrap();
        let fifo = directory.path().join("fifo");
        nix::unistd::mkfifo(&fifo, Mode::S_IRWXU).unwrap();
        assert!(Root::ours().open(&fifo).is_err());
        assert!(Root::ours().open(Path::new("/dev/null")).is_err());
        let root = Root::at(directory.path()).unwrap();
        assert!(root.open(Path::new("/fifo")).is_err());
    }

    #[test]
    fn a_file_longer_than_the_limit_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        fs::write(&path, "12345").unwrap();
        assert_eq!(Root::ours().read(&path, 5).unwrap(), b"12345");
        assert!(Root::ours().read(&path, 4).is_err());
    }
}
