//! A file whose content is replaced as a whole: it is written under another name, and renamed. So a reader never sees a
//! part of it.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::os::identity::Identity;

/// Each flush replaces the file by what was written since the last one.
pub struct Replacing {
    path: PathBuf,
    /// The same with another suffix: node_exporter reads all that ends in `.prom`.
    beside: PathBuf,
    /// The user with whose rights the file is written. `None`: with memleak's own.
    user: Option<Identity>,
    content: Vec<u8>,
}

impl Replacing {
    /// Makes sure that the file can be written. What it has stays until the first flush.
    ///
    /// # Errors
    /// The rights of the user cannot be taken, or allow no file beside it.
    pub fn new(path: &Path, user: Option<Identity>) -> Result<io::Result<Self>> {
        let mut beside: OsString = path.into();
        beside.push(".tmp");
        let replacing = Self {
            path: path.to_owned(),
            beside: beside.into(),
            user,
            content: Vec::new(),
        };
        let tried = Identity::with_file_rights(replacing.user.as_ref(), || {
            replacing.create()?;
            fs::remove_file(&replacing.beside)
        })?;
        Ok(tried.map(|()| replacing))
    }

    /// Creates the file beside it. One that an earlier memleak left there is removed, and a link is never followed.
    fn create(&self) -> io::Result<File> {
        match fs::remove_file(&self.beside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let mut options = File::options();
        options.write(true).create_new(true);
        options.custom_flags(libc::O_NOCTTY).open(&self.beside)
    }

    fn replace(&self) -> io::Result<()> {
        let written = self.create()?.write_all(&self.content);
        let renamed = written.and_then(|()| fs::rename(&self.beside, &self.path));
        if renamed.is_err() {
            // What cannot be removed is removed before the next try.
            let _ = fs::remove_file(&self.beside);
        }
        renamed
    }
}

impl Write for Replacing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.content.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let replaced = Identity::with_file_rights(self.user.as_ref(), || self.replace());
        self.content.clear();
        replaced.map_err(|error| io::Error::other(format!("{error:#}")))?
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn replacing(path: &Path) -> io::Result<Replacing> {
        Replacing::new(path, None).unwrap()
    }

    #[test]
    fn a_reader_sees_the_old_content_until_the_new_one_is_whole() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("m.prom");
        fs::write(&path, "old").unwrap();
        let mut file = replacing(&path).unwrap();
        file.write_all(b"new ").unwrap();
        file.write_all(b"content\n").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "old");
        file.flush().unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "new content\n");
        file.write_all(b"third\n").unwrap();
        file.flush().unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "third\n");
        let names = fs::read_dir(directory.path()).unwrap();
        assert_eq!(names.count(), 1, "nothing else stays in the directory");
    }

    #[test]
    fn others_may_read_the_file_as_the_umask_lets_them() {
        let directory = tempfile::tempdir().unwrap();
        let [path, plain] = ["m.prom", "plain"].map(|name| directory.path().join(name));
        fs::write(&plain, "").unwrap();
        let mut file = replacing(&path).unwrap();
        file.write_all(b"a\n").unwrap();
        file.flush().unwrap();
        let [mode, usual] = [path, plain].map(|path| fs::metadata(path).unwrap().permissions());
        assert_eq!(mode.mode(), usual.mode());
    }

    #[test]
    fn a_link_that_waits_beside_the_file_is_not_followed() {
        let directory = tempfile::tempdir().unwrap();
        let [path, victim] = ["m.prom", "victim"].map(|name| directory.path().join(name));
        fs::write(&victim, "mine").unwrap();
        symlink(&victim, directory.path().join("m.prom.tmp")).unwrap();
        let mut file = replacing(&path).unwrap();
        file.write_all(b"a\n").unwrap();
        file.flush().unwrap();
        assert_eq!(fs::read_to_string(&victim).unwrap(), "mine");
    }

    #[test]
    fn a_directory_that_does_not_exist_is_an_error_at_once() {
        let error = replacing(Path::new("/no/such/m.prom")).err().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_write_that_fails_leaves_the_old_content_and_the_next_one_is_tried() {
        let directory = tempfile::tempdir().unwrap();
        let place = directory.path().join("sub");
        fs::create_dir(&place).unwrap();
        let mut file = replacing(&place.join("m.prom")).unwrap();
        fs::remove_dir(&place).unwrap();
        file.write_all(b"lost\n").unwrap();
        assert!(file.flush().is_err());
        fs::create_dir(&place).unwrap();
        file.write_all(b"later\n").unwrap();
        file.flush().unwrap();
        let content = fs::read_to_string(place.join("m.prom")).unwrap();
        assert_eq!(content, "later\n");
    }
}
