//! What file a command word will execute: the search that execvp does, and the interpreters of scripts.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use nix::unistd::{AccessFlags, access};

use super::loader::Environment;

/// Where execvp looks if PATH is not set (confstr(_CS_PATH) in glibc).
pub const DEFAULT_PATH: &str = "/bin:/usr/bin";

/// Scripts whose interpreter is a script: the kernel follows five.
const MAX_INTERPRETERS: usize = 5;

/// The first line of a script is read this far (BINPRM_BUF_SIZE).
const FIRST_LINE: u64 = 256;

/// The binary that runs in the end when `command` is executed; `None` if there is none.
pub fn executable(command: &OsStr, environment: &Environment) -> Option<PathBuf> {
    let mut path = search(command, environment)?;
    for _ in 0..MAX_INTERPRETERS {
        match interpreter(&path) {
            Some(interpreter) => path = interpreter,
            None => break,
        }
    }
    Some(path)
}

fn search(command: &OsStr, environment: &Environment) -> Option<PathBuf> {
    if command.as_bytes().contains(&b'/') {
        return Some(PathBuf::from(command));
    }
    std::env::split_paths(&environment.path)
        .map(|directory| match directory.as_os_str().is_empty() {
            true => Path::new(".").join(command),
            false => directory.join(command),
        })
        .find(|path| path.is_file() && access(path, AccessFlags::X_OK).is_ok())
}

/// The interpreter that a script's first line names.
fn interpreter(script: &Path) -> Option<PathBuf> {
    let mut line = Vec::new();
    BufReader::new(File::open(script).ok()?.take(FIRST_LINE))
        .read_until(b'\n', &mut line)
        .ok()?;
    let rest = line.strip_prefix(b"#!")?;
    let word = rest
        .trim_ascii_start()
        .split(|byte| byte.is_ascii_whitespace())
        .next()?;
    (!word.is_empty()).then(|| PathBuf::from(OsString::from_vec(word.to_vec())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    fn environment(path: &Path) -> Environment {
        Environment {
            path: path.into(),
            ..Environment::default()
        }
    }

    #[test]
    fn a_script_is_its_interpreter() {
        let directory = tempfile::tempdir().unwrap();
        let script = directory.path().join("script");
        fs::write(&script, "#! /bin/sh -e\necho\n").unwrap();
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
        let found = executable(OsStr::new("script"), &environment(directory.path()));
        assert_eq!(found, Some(PathBuf::from("/bin/sh")));
    }

    #[test]
    fn a_file_that_may_not_be_executed_is_passed_over() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("data"), "").unwrap();
        assert_eq!(
            executable(OsStr::new("data"), &environment(directory.path())),
            None
        );
    }

    #[test]
    fn scripts_that_name_each_other_come_to_an_end() {
        let directory = tempfile::tempdir().unwrap();
        let script = directory.path().join("loop");
        fs::write(&script, format!("#!{}\n", script.display())).unwrap();
        assert_eq!(
            executable(script.as_os_str(), &Environment::default()),
            Some(script)
        );
    }
}
