//! Files that are executed. Another process writes each of them: while we have a file open for writing, another
//! test may fork, and no one can execute the file until that child executes something itself.

use std::fs::{self, Permissions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use super::newcomers::run;

/// A new file at `to` with the content and the mode of `from`.
#[track_caller]
pub fn copy(from: impl AsRef<Path>, to: impl AsRef<Path>) {
    run(Command::new("cp")
        .arg("--")
        .args([from.as_ref(), to.as_ref()]));
}

/// A new file with this text and this mode.
#[track_caller]
pub fn write_script(path: &Path, text: &str, mode: u32) {
    let mut writer = Command::new("sh")
        .args(["-c", "cat >\"$0\""])
        .arg(path)
        .stdin(Stdio::piped())
        .spawn()
        .expect("a shell");
    let mut input = writer.stdin.take().expect("a pipe");
    input.write_all(text.as_bytes()).expect("the shell reads");
    drop(input);
    assert!(writer.wait().expect("a child").success());
    fs::set_permissions(path, Permissions::from_mode(mode)).expect("a file of ours");
}
