//! The C programs that tests run.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

/// Compiles `source` (relative to the repository) to `name` below cargo's directory for temporary files, unless the
/// result is up to date. Returns the path of the result. Tests in several processes may do so at the same time.
pub fn compile(source: &str, name: &str, flags: &[&str]) -> PathBuf {
    compile_with("cc", source, name, flags)
}

/// As `compile`, with another compiler than `cc`. The extension of the source tells C++ from C.
pub fn compile_with(compiler: &str, source: &str, name: &str, flags: &[&str]) -> PathBuf {
    // Threads of one process wait for each other, so that they do not compile the same source twice.
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
    let text = fs::read_to_string(&source)
        .unwrap_or_else(|error| panic!("cannot read {}: {error}", source.display()));
    let directory_of_source = source.parent().expect("a source has a directory");
    // Files of other directories that the source itself includes.
    let included = text
        .lines()
        .filter_map(|line| line.strip_prefix("#include \"../")?.split('"').next())
        .map(|path| directory_of_source.join("..").join(path));
    let newest_source = directory_of_source
        .read_dir()
        .expect("the sources can be listed")
        .map(|entry| entry.expect("the sources can be listed").path())
        .filter(|path| *path == source || path.extension() == Some(OsStr::new("h")))
        .chain(included)
        // Objects that are linked in.
        .chain(
            flags
                .iter()
                .map(PathBuf::from)
                .filter(|path| path.is_absolute()),
        )
        .filter_map(|path| modified(&path))
        .max();
    if modified(&target).is_some() && modified(&target) > newest_source && record.exists() {
        return target;
    }

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
        // The compiler knows malloc and would remove a malloc whose result is unused. The warning is off because
        // some fixtures ask for impossible sizes on purpose.
        .args(["-fno-builtin", "-Wno-alloc-size-larger-than"])
        .args(flags)
        .args(&own_flags)
        .arg("-o")
        .arg(&unfinished)
        .arg(&source);
    if !own_flags.contains(&"-nostdlib") {
        command.args(["-ldl", "-Wl,--as-needed", "-lrt"]);
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
    // scripts/test-kernels.sh repeats this command, because tests on an emulated machine cannot wait for its compiler.
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
    // The rename is one step. Processes that run the old program keep it, and no process sees a half-written program.
    fs::rename(&unfinished, &target).expect("target/tmp can be written");
    target
}

/// Compiles `fixtures/NAME.c` and returns the path of the program. The first line of the source may have extra compiler
/// flags after `// cflags:`.
pub fn fixture(name: &str) -> PathBuf {
    compile(&format!("fixtures/{name}.c"), name, &["-O1"])
}

/// The words before a command that runs it without a system call, which fails with `errno`.
pub fn without_call(call: libc::c_long, errno: i32) -> [OsString; 3] {
    let numbers = [call.to_string(), errno.to_string()].map(OsString::from);
    let [call, errno] = numbers;
    [fixture("without_call").into(), call, errno]
}

/// A file of the compiler or of the system.
pub fn compiled_in(name: &str) -> PathBuf {
    let output = Command::new("cc")
        .arg(format!("-print-file-name={name}"))
        .output()
        .expect("a C compiler is needed as `cc`: `make install-deps`");
    let path = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
    assert!(path.is_absolute(), "{name} is missing: `make install-deps`");
    fs::canonicalize(path).expect("the linker's file exists")
}
