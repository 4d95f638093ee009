//! A file that is written under another name, and gets its own name when it is complete. So nobody reads a part of it,
//! and a session that fails leaves the file of the one before.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use crate::os::identity::Identity;

/// How many names are tried.
const MOST_NAMES: u32 = 1_000;

/// The name that a file gets. If it is dropped, the file is removed.
#[derive(Debug)]
pub struct Renaming {
    temporary: PathBuf,
    path: PathBuf,
    /// With whose rights. `None`: with those of this thread.
    user: Option<Identity>,
    is_done: bool,
}

impl Renaming {
    /// Creates a file in the directory of `path`. The caller has taken the user's rights.
    ///
    /// # Errors
    /// The user may not create files there.
    pub(super) fn begin(path: PathBuf, user: Option<&Identity>) -> io::Result<(File, Self)> {
        if path.file_name().is_none() {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        let pid = std::process::id();
        let mut number = 0;
        loop {
            let temporary = directory(&path).join(format!(".memleak-{pid}-{number}.part"));
            match File::create_new(&temporary) {
                Ok(file) => {
                    let renaming = Self {
                        temporary,
                        path,
                        user: user.cloned(),
                        is_done: false,
                    };
                    return Ok((file, renaming));
                }
                Err(error)
                    if error.kind() == io::ErrorKind::AlreadyExists && number < MOST_NAMES =>
                {
                    number += 1;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// The name that the file gets.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn directory(&self) -> &Path {
        directory(&self.path)
    }

    /// Gives the file its own name.
    ///
    /// # Errors
    /// The file cannot be renamed. It is then removed.
    pub fn finish(mut self) -> io::Result<()> {
        let renamed = Identity::with_file_rights(self.user.as_ref(), || {
            fs::rename(&self.temporary, &self.path)
        });
        self.is_done = matches!(renamed, Ok(Ok(())));
        renamed.map_err(|error| io::Error::other(format!("{error:#}")))?
    }
}

fn directory(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    }
}

impl Drop for Renaming {
    fn drop(&mut self) {
        if !self.is_done {
            // The file may be gone. Nothing can be done about one that cannot be removed.
            let _ =
                Identity::with_file_rights(self.user.as_ref(), || fs::remove_file(&self.temporary));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn names(directory: &Path) -> Vec<String> {
        let entries = fs::read_dir(directory).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.collect()
    }

    #[test]
    fn a_file_appears_under_its_name_when_it_is_complete() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("report.html");
        fs::write(&path, "old").unwrap();
        let (mut file, renaming) = Renaming::begin(path.clone(), None).unwrap();
        file.write_all(b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"old");
        renaming.finish().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(names(directory.path()), ["report.html"]);
    }

    #[test]
    fn a_file_that_is_never_completed_is_removed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("report.html");
        let (_, one) = Renaming::begin(path.clone(), None).unwrap();
        let (_, other) = Renaming::begin(path, None).unwrap();
        assert_eq!(names(directory.path()).len(), 2);
        drop((one, other));
        assert_eq!(names(directory.path()).len(), 0);
    }

    #[test]
    fn a_directory_is_no_file_to_write() {
        assert!(Renaming::begin("/".into(), None).is_err());
        assert!(Renaming::begin("..".into(), None).is_err());
    }
}
