//! The C programs that tests run.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

/// Compiles `source` (relative to the repository) to `name` below cargo's directory for such things,
/// unless that is done; tells where the result is. Tests of several processes may do so at a time.
pub fn compile(source: &str, name: &str, flags: &[&str]) -> PathBuf {
    compile_with("cc", source, name, flags)
}

/// The same with another compiler than `cc`. C++ is told by the source's name.
pub fn compile_with(compiler: &str, source: &str, name: &str, flags: &[&str]) -> PathBuf {
    // Threads of one process wait for each other rather than compile the same thing twice.
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);

    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(source);
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("built");
    let target = directory.join(name);
    let record = directory.join(format!("{name}.command"));
    fs::create_dir_all(&directory).expect("target/tmp can be written");

    let modified = |path: &Path| path.metadata().and_then(|m| m.modified()).ok();
    let newest_source = source
        .parent()
        .expect("a source has a directory")
        .read_dir()
        .expect("the sources can be listed")
        .map(|entry| entry.expect("the sources can be listed").path())
        .filter(|path| *path == source || path.extension() == Some(OsStr::new("h")))
        .filter_map(|path| modified(&path))
        .max();
    if modified(&target).is_some() && modified(&target) > newest_source && record.exists() {
        return target;
    }

    let text = fs::read_to_string(&source)
        .unwrap_or_else(|error| panic!("cannot read {}: {error}", source.display()));
    let own_flags = text
        .lines()
        .next()
        .and_then(|line| line.strip_prefix("// cflags:"))
        .unwrap_or("");
    let standard = match source.extension().and_then(OsStr::to_str) {
        Some("cc") => "-std=gnu++17",
        _ => "-std=gnu11",
    };
    let unfinished = tempfile::Builder::new()
        .prefix(&format!("{name}."))
        .tempfile_in(&directory)
        .expect("target/tmp can be written")
        .into_temp_path();
    let own_flags: Vec<_> = own_flags.split_whitespace().collect();
    let mut command = Command::new(compiler);
    command
        .args([standard, "-g", "-Wall", "-Wextra", "-Werror", "-pthread"])
        // The compiler knows what malloc is and would drop a malloc that no one uses; and these sizes
        // are nonsense on purpose.
        .args(["-fno-builtin", "-Wno-alloc-size-larger-than"])
        .args(flags)
        .args(&own_flags)
        .arg("-o")
        .arg(&unfinished)
        .arg(&source);
    if !own_flags.contains(&"-nostdlib") {
        command.arg("-ldl");
    }
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("{compiler}: {error}; see `make install-deps`"));
    assert!(
        output.status.success(),
        "cannot compile {}:\n{}",
        source.display(),
        String::from_utf8_lossy(&output.stderr)
    );
    // Tests on another machine's kernel cannot wait for its compiler (scripts/test-kernels.sh).
    let words = [command.get_program()]
        .into_iter()
        .chain(command.get_args());
    let words: Vec<_> = words
        .map(|word| match Path::new(word) == &*unfinished {
            true => "@OUTPUT@".into(),
            false => word.to_string_lossy(),
        })
        .collect();
    fs::write(&record, words.join("\n") + "\n").expect("target/tmp can be written");
    // In one step: whoever runs the old one goes on with it, nobody sees half of the new one.
    fs::rename(&unfinished, &target).expect("target/tmp can be written");
    target
}

/// The program of `fixtures/NAME.c`. Extra flags for the compiler stand in its first line, after
/// `// cflags:`.
pub fn fixture(name: &str) -> PathBuf {
    compile(&format!("fixtures/{name}.c"), name, &["-O1"])
}
