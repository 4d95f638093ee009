use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::PathBuf;
use std::process::Command;

use tempfile::TempDir;

use super::*;

/// Files that a test builds.
struct Built(TempDir);

impl Built {
    fn new() -> Self {
        Built(TempDir::new().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Compiles a source of this file name; the result has no extension.
    fn cc(&self, name: &str, source: &str, flags: &[&str]) -> PathBuf {
        let (source_path, target) = (self.path(name), self.path(name).with_extension(""));
        fs::write(&source_path, source).unwrap();
        let output = [OsStr::new("-o"), target.as_ref(), source_path.as_ref()];
        let flags = flags.iter().map(OsStr::new);
        self.run("cc", output.into_iter().chain(flags));
        target
    }

    #[track_caller]
    fn run<A: AsRef<OsStr>>(&self, program: &str, arguments: impl IntoIterator<Item = A>) {
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

fn hooks(path: impl AsRef<Path>) -> Vec<Hook> {
    let file = File::open(path).unwrap();
    loader_hooks(&ElfFile::open(&file).unwrap()).unwrap()
}

/// The bytes at a place in a file.
fn code(path: impl AsRef<Path>, offset: u64) -> u8 {
    fs::read(path).unwrap()[usize::try_from(offset).unwrap()]
}

/// Where a marked nop lies, told by a note that was written before the file was moved by 0x1000.
const NOTED: &str = r#"
    .text
    .globl marked
    .type marked, @function
marked: ret
990: nop
    ret
    .size marked, . - marked
    .pushsection .note.stapsdt,"?","note"
    .balign 4
    .4byte 992f-991f, 994f-993f, 3
991: .asciz "stapsdt"
992: .balign 4
993: .8byte 990b - 0x1000
    .8byte _.stapsdt.base - 0x1000
    .8byte 0
    .asciz "rtld"
    .asciz "map_complete"
    .asciz "8@%rdi"
994: .balign 4
    .popsection
    .pushsection .stapsdt.base,"aG","progbits",.stapsdt.base,comdat
    .weak _.stapsdt.base
    .hidden _.stapsdt.base
_.stapsdt.base: .space 1
    .size _.stapsdt.base, 1
    .popsection
"#;

#[test]
#[cfg(target_arch = "x86_64")]
fn a_loader_with_notes_has_the_hooks_that_they_mark() {
    let built = Built::new();
    let path = built.cc("noted.s", NOTED, &["-shared", "-nostdlib"]);
    let hooks = hooks(&path);
    assert_eq!(hooks.len(), 1, "{hooks:?}");
    assert_eq!(hooks[0].name, "map_complete");
    assert_eq!(code(&path, hooks[0].file_offset), 0x90, "nop");
}

/// Debian builds glibc without SystemTap's probes, Fedora with them.
#[test]
#[cfg(target_arch = "x86_64")]
fn glibcs_loader_has_hooks() {
    let path = Path::new("/lib64/ld-linux-x86-64.so.2");
    let hooks = hooks(path);
    assert!(!hooks.is_empty());
    for hook in hooks {
        let expected = if hook.name == DEBUG_STATE { 0xc3 } else { 0x90 };
        assert_eq!(code(path, hook.file_offset), expected, "{hook:?}");
    }
}

#[test]
#[cfg(target_arch = "x86_64")]
fn musls_loader_has_the_function_for_debuggers() {
    let hooks = hooks("/lib/ld-musl-x86_64.so.1");
    assert_eq!(hooks.len(), 1, "{hooks:?}");
    assert_eq!(hooks[0].name, DEBUG_STATE);
    assert_eq!(
        code("/lib/ld-musl-x86_64.so.1", hooks[0].file_offset),
        0xc3,
        "ret"
    );
}

#[test]
fn what_is_no_loader_has_no_hooks() {
    assert_eq!(hooks("/bin/sh"), []);
}
