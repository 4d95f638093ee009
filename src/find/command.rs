//! Which binary a command runs in the end: for a script, its interpreter. Which files the binary maps is left to
//! `loader`.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use nix::unistd::{AccessFlags, access};

/// The most interpreters in a row: the kernel follows a script whose interpreter is a script five times.
const MAX_INTERPRETERS: usize = 5;

/// The most bytes of a script's first line that are read (BINPRM_BUF_SIZE).
const FIRST_LINE: u64 = 256;

/// The binary that runs in the end if the first executable file of `candidates` is executed; `None` if none of
/// them is executable.
pub fn executable<'a>(candidates: impl Iterator<Item = &'a OsStr>) -> Option<PathBuf> {
    let mut path = candidates
        .map(PathBuf::from)
        .find(|path| path.is_file() && access(path, AccessFlags::X_OK).is_ok())?;
    for _ in 0..MAX_INTERPRETERS {
        match interpreter(&path) {
            Some(interpreter) => path = interpreter,
            None => break,
        }
    }
    Some(path)
}

/// The interpreter that a script's first line names.
fn interpreter(script: &Path) -> Option<PathBuf> {
    let mut line = Vec::new();
    let mut start = BufReader::new(File::open(script).ok()?.take(FIRST_LINE));
    start.read_until(b'\n', &mut line).ok()?;
    let rest = line.strip_prefix(b"#!")?;
    let mut words = rest
        .trim_ascii_start()
        .split(|byte| byte.is_ascii_whitespace());
    let word = words.next().filter(|word| !word.is_empty())?;
    Some(PathBuf::from(OsString::from_vec(word.to_vec())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    fn file(directory: &Path, name: &str, text: &str, mode: u32) -> PathBuf {
        let path = directory.join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    fn first<const N: usize>(candidates: [&Path; N]) -> Option<PathBuf> {
        executable(candidates.into_iter().map(Path::as_os_str))
    }

    #[test]
    fn a_script_stands_for_its_interpreter() {
        let directory = tempfile::tempdir().unwrap();
        let script = file(directory.path(), "script", "#! /bin/sh -e\necho\n", 0o755);
        assert_eq!(first([&script]), Some(PathBuf::from("/bin/sh")));
    }

    #[test]
    fn the_first_candidate_that_can_be_executed_is_taken() {
        let directory = tempfile::tempdir().unwrap();
        let missing = directory.path().join("missing");
        let data = file(directory.path(), "data", "", 0o644);
        let program = file(directory.path(), "program", "", 0o755);
        assert_eq!(
            first([&missing, directory.path(), &data, &program]),
            Some(program)
        );
        assert_eq!(first([&missing, &data]), None);
    }

    #[test]
    fn scripts_that_name_each_other_come_to_an_end() {
        let directory = tempfile::tempdir().unwrap();
        let script = directory.path().join("loop");
        file(
            directory.path(),
            "loop",
            &format!("#!{}\n", script.display()),
            0o755,
        );
        assert_eq!(first([&script]), Some(script.clone()));
    }
}
