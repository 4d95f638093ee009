//! A mount namespace in which the C library and its loader are copies, so that no other test's memleak has probes in
//! them.

use std::fs;

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

/// The copies. They must live as long as the commands that use them.
pub struct Unprobed {
    /// A memleak that watches every process would put probes into the copies, too.
    _machine: Held,
    copies: TempDir,
    files: Vec<String>,
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
        }
    }

    /// The arguments of `unshare` that run `command` with the copies.
    pub fn words<'a>(&'a self, command: &[&'a str]) -> Vec<&'a str> {
        let copies = self.copies.path().to_str().expect("the path is UTF-8");
        let files = self.files.iter().map(String::as_str);
        ["--mount", "sh", "-c", ENTER, copies]
            .into_iter()
            .chain(files)
            .chain(["--"])
            .chain(command.iter().copied())
            .collect()
    }
}
