//! The C programs that tests run.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

/// The program of `fixtures/NAME.c`, compiled if that is newer. Tests of several processes may do so at
/// the same time.
#[track_caller]
pub fn fixture(name: &str) -> PathBuf {
    // Threads of one process wait for each other rather than compile the same thing twice.
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);

    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("fixtures/{name}.c"));
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("launch");
    let program = directory.join(name);
    let modified = |path: &Path| {
        path.metadata()
            .and_then(|metadata| metadata.modified())
            .ok()
    };
    if modified(&program).is_some() && modified(&program) > modified(&source) {
        return program;
    }
    fs::create_dir_all(&directory).expect("target/tmp can be written");
    let unfinished = directory.join(format!("{name}.{}", std::process::id()));
    let output = Command::new("cc")
        .args(["-std=gnu11", "-O1", "-Wall", "-Wextra", "-Werror", "-o"])
        .args([&unfinished, &source])
        .output()
        .expect("a C compiler is needed as `cc`: `make install-deps`");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "cannot compile {}:\n{errors}",
        source.display()
    );
    // In one step: nobody sees half of it, and who runs the old one goes on with that.
    fs::rename(&unfinished, &program).expect("target/tmp can be written");
    program
}
