//! Opens the file that another process has mapped, even if the file's path leads to another file by now.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Where a process has mapped a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// In the pid namespace that /proc shows.
    pub pid: u32,
    pub start: u64,
    pub end: u64,
    /// The file's inode number in its file system.
    pub inode: u64,
}

/// The kernel appends this to the path of a deleted file (proc_pid_maps(5)).
const DELETED: &str = " (deleted)";

impl Mapping {
    /// Opens the file. Returns its path as the kernel shows it: in the process's own mount namespace.
    ///
    /// # Errors
    /// `NotFound`: the process is gone, or has removed the mapping. Other errors: there are no rights to the file.
    /// Its link in `map_files` needs CAP_SYS_ADMIN or CAP_CHECKPOINT_RESTORE. Without these, the file's path must
    /// still lead to it.
    pub fn open(&self) -> io::Result<(PathBuf, File)> {
        self.try_open().map_err(|error| {
            // What /proc says of a process that is ending.
            match error.raw_os_error() {
                Some(libc::ESRCH) => io::ErrorKind::NotFound.into(),
                _ => error,
            }
        })
    }

    fn try_open(&self) -> io::Result<(PathBuf, File)> {
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

    /// Opens the process's program, if that is the mapped file.
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

/// Opens a file to read it. Whatever the path leads to by now, opening it must not wait.
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
        // This is the way that is left without rights to the link.
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
