//! A file that is put aside when it has grown to a size (`--rotate`): FILE becomes FILE.1, and what was FILE.1 becomes
//! FILE.2, up to FILE.4. So the report of a memleak that runs for months takes a bounded room.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::os::identity::Identity;

/// How many old files are kept.
const KEPT: u32 = 4;

/// Each write is whole lines, and goes into one file.
pub struct Rotating {
    path: PathBuf,
    /// The user with whose rights files are made and renamed. `None`: with memleak's own.
    user: Option<Identity>,
    file: File,
    size: u64,
    limit: u64,
    /// Why the file could not be put aside. It goes on to grow.
    failed: Option<io::Error>,
}

impl Rotating {
    /// Puts aside what the file has, and begins a new one.
    ///
    /// # Errors
    /// The rights of the user cannot be taken, or do not allow that.
    pub fn new(path: &Path, user: Option<Identity>, limit: u64) -> Result<io::Result<Self>> {
        let file = Identity::with_file_rights(user.as_ref(), || {
            let is_empty = fs::metadata(path).map_or(true, |file| file.len() == 0);
            if !is_empty {
                put_aside(path)?;
            }
            create(path)
        })?;
        Ok(file.map(|file| Self {
            path: path.to_owned(),
            user,
            file,
            size: 0,
            limit,
            failed: None,
        }))
    }

    /// The device and inode of the file.
    pub fn identity(&self) -> Option<(u64, u64)> {
        let file = self.file.metadata().ok()?;
        Some((file.dev(), file.ino()))
    }

    fn rotate(&mut self) -> io::Result<()> {
        let path = &self.path;
        let file = Identity::with_file_rights(self.user.as_ref(), || {
            put_aside(path)?;
            create(path)
        });
        self.file = file.map_err(|error| io::Error::other(format!("{error:#}")))??;
        self.size = 0;
        Ok(())
    }
}

/// Renames the file and the older ones. The oldest is gone then.
fn put_aside(path: &Path) -> io::Result<()> {
    let numbered = |number: u32| {
        let mut name = OsString::from(path);
        if number > 0 {
            name.push(format!(".{number}"));
        }
        PathBuf::from(name)
    };
    for number in (0..KEPT).rev() {
        match fs::rename(numbered(number), numbered(number + 1)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
    }
    Ok(())
}

/// Creates the file, or empties it. A link that another user has put there is not followed.
fn create(path: &Path) -> io::Result<File> {
    let mut options = File::options();
    options.write(true).create(true).truncate(true);
    let flags = libc::O_NOCTTY | libc::O_NOFOLLOW;
    options.custom_flags(flags).open(path)
}

impl Write for Rotating {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let length = bytes.len() as u64;
        if self.size > 0 && self.size + length > self.limit {
            self.failed = self.rotate().err();
        }
        self.file.write_all(bytes)?;
        self.size += length;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let failed = self.failed.take();
        failed.map_or(Ok(()), |error| {
            Err(io::Error::other(format!("--rotate: {error}")))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(path: &Path, suffix: &str) -> Option<String> {
        fs::read_to_string(format!("{}{suffix}", path.display())).ok()
    }

    #[test]
    fn a_file_that_is_full_is_put_aside_and_the_oldest_is_dropped() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("r.json");
        fs::write(&path, "before\n").unwrap();
        let mut file = Rotating::new(&path, None, 10).unwrap().unwrap();
        for n in 0..6 {
            // The second line of each pair finds room.
            writeln!(file, "{n}a..").unwrap();
            file.write_all(b"b...\n").unwrap();
            file.flush().unwrap();
        }
        assert_eq!(content(&path, "").unwrap(), "5a..\nb...\n");
        for (suffix, n) in [(".1", 4), (".2", 3), (".3", 2), (".4", 1)] {
            assert_eq!(content(&path, suffix).unwrap(), format!("{n}a..\nb...\n"));
        }
        assert_eq!(content(&path, ".5"), None);
    }

    #[test]
    fn what_an_earlier_memleak_wrote_is_kept() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("r.json");
        fs::write(&path, "before\n").unwrap();
        let mut file = Rotating::new(&path, None, 100).unwrap().unwrap();
        file.write_all(b"now\n").unwrap();
        assert_eq!(content(&path, "").unwrap(), "now\n");
        assert_eq!(content(&path, ".1").unwrap(), "before\n");
        // An empty file is not worth a name.
        fs::write(&path, "").unwrap();
        Rotating::new(&path, None, 100).unwrap().unwrap();
        assert_eq!(content(&path, ".1").unwrap(), "before\n");
    }

    #[test]
    fn a_write_that_is_larger_than_the_limit_has_a_file_of_its_own() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("r.json");
        let mut file = Rotating::new(&path, None, 3).unwrap().unwrap();
        file.write_all(b"longer\n").unwrap();
        file.write_all(b"x\n").unwrap();
        assert_eq!(content(&path, "").unwrap(), "x\n");
        assert_eq!(content(&path, ".1").unwrap(), "longer\n");
    }

    #[test]
    fn where_it_cannot_be_put_aside_the_file_grows_and_that_is_said() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("r.json");
        let mut file = Rotating::new(&path, None, 3).unwrap().unwrap();
        file.write_all(b"one\n").unwrap();
        for name in ["r.json.3", "r.json.4/full"] {
            fs::create_dir_all(directory.path().join(name)).unwrap();
        }
        file.write_all(b"two\n").unwrap();
        assert!(
            file.flush()
                .unwrap_err()
                .to_string()
                .starts_with("--rotate: ")
        );
        file.flush().unwrap();
        assert_eq!(content(&path, "").unwrap(), "one\ntwo\n");
    }
}
