//! Files that tests execute. Another process writes each of these files. While this process has a file open for
//! writing, another test may fork. The file then cannot be executed until that child executes a program itself.

use std::fs::{self, Permissions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use super::newcomers::run;

/// Creates the file `to` with the content and the mode of `from`.
#[track_caller]
pub fn copy(from: impl AsRef<Path>, to: impl AsRef<Path>) {
    run(Command::new("cp")
        .arg("--")
        .args([from.as_ref(), to.as_ref()]));
}

/// Creates a file with this text and this mode.
#[track_caller]
pub fn write_script(path: &Path, text: &str, mode: u32) {
    let mut writer = Command::new("sh")
        .args(["-c", "cat >\"$0\""])
        .arg(path)
        .stdin(Stdio::piped())
        .spawn()
        .expect("a shell can be started");
    let mut input = writer.stdin.take().expect("the stream is a pipe");
    input
        .write_all(text.as_bytes())
        .expect("the shell reads its input");
    drop(input);
    assert!(
        writer
            .wait()
            .expect("the child can be waited for")
            .success()
    );
    fs::set_permissions(path, Permissions::from_mode(mode)).expect("the test owns the file");
}
