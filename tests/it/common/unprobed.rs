//! A mount namespace in which the C library and its loader are copies, so that no other test's memleak has probes in
//! them.

use std::fs;
use std::path::PathBuf;

use tempfile::TempDir;

use super::machine::{Held, unwatched};

/// Covers files by copies, and runs a command. `$0` is the directory of the copies.
const ENTER: &str = r#"
    while [ "$1" != -- ]; do
        cp "$1" "$0" && mount --bind "$0/${1##*/}" "$1" || exit 99
        shift
    done
    shift
    exec "$@""#;

/// As `ENTER`, with copies that are there already.
const ENTER_MADE: &str = r#"
    while [ "$1" != -- ]; do
        mount --bind "$0/${1##*/}" "$1" || exit 99
        shift
    done
    shift
    exec "$@""#;

/// The copies. They must live as long as the commands that use them.
pub struct Unprobed {
    /// A memleak that watches every process would put probes into the copies, too.
    _machine: Held,
    copies: TempDir,
    files: Vec<String>,
    enter: &'static str,
}

impl Unprobed {
    pub fn new() -> Self {
        let machine = unwatched();
        let maps = fs::read_to_string("/proc/self/maps").expect("/proc is mounted");
        let mut files: Vec<_> = maps
            .lines()
            .filter_map(|line| line.split_whitespace().nth(5))
            // Up to glibc 2.33, the names of the files contain glibc's version.
            .filter(|path| {
                ["/libc.so.", "/libc-2.", "/ld-linux", "/ld-2."]
                    .iter()
                    .any(|name| path.contains(name))
            })
            .map(str::to_owned)
            .collect();
        files.dedup();
        assert_eq!(files.len(), 2, "the tests run with glibc");
        Self {
            _machine: machine,
            copies: TempDir::new().expect("a temporary directory can be created"),
            files,
            enter: ENTER,
        }
    }

    /// With copies of other libraries, too. All copies are made once, for commands that run at the same time.
    pub fn with(libraries: impl IntoIterator<Item = PathBuf>) -> Self {
        let mut unprobed = Self::new();
        let libraries = libraries.into_iter().map(|path| {
            let path = path.to_str().expect("the path is UTF-8");
            path.to_owned()
        });
        unprobed.files.extend(libraries);
        for file in &unprobed.files {
            super::files::copy(file, unprobed.copies.path());
        }
        unprobed.enter = ENTER_MADE;
        unprobed
    }

    /// The paths of the files that have copies.
    pub fn files(&self) -> &[String] {
        &self.files
    }

    /// The arguments of `unshare` that run `command` with the copies.
    pub fn words<'a>(&'a self, command: &[&'a str]) -> Vec<&'a str> {
        let copies = self.copies.path().to_str().expect("the path is UTF-8");
        let files = self.files.iter().map(String::as_str);
        ["--mount", "sh", "-c", self.enter, copies]
            .into_iter()
            .chain(files)
            .chain(["--"])
            .chain(command.iter().copied())
            .collect()
    }
}
