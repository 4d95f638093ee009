//! Builds ELF files for tests.

use std::ffi::OsStr;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use tempfile::TempDir;

/// A directory with the files that a test builds. The directory is removed with this value.
pub(crate) struct Built(pub(crate) TempDir);

impl Built {
    pub(crate) fn new() -> Self {
        Built(TempDir::new().unwrap())
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Writes `source` to a file of this name and compiles it. The result has the name without the extension.
    pub(crate) fn cc(&self, name: &str, source: &str, flags: &[&str]) -> PathBuf {
        let (source_path, target) = (self.path(name), self.path(name).with_extension(""));
        fs::write(&source_path, source).unwrap();
        let output = [OsStr::new("-o"), target.as_ref(), source_path.as_ref()];
        let flags = flags.iter().map(OsStr::new);
        self.run("cc", output.into_iter().chain(flags));
        target
    }

    #[track_caller]
    pub(crate) fn run<A: AsRef<OsStr>>(
        &self,
        program: &str,
        arguments: impl IntoIterator<Item = A>,
    ) {
        let output = Command::new(program)
            .args(arguments)
            .current_dir(self.0.path())
            .output()
            .unwrap_or_else(|error| panic!("{program} is needed (`make install-deps`): {error}"));
        assert!(
            output.status.success(),
            "{program}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
}
