//! Programs of every kind that no memleak has examined yet, and the counts of their allocations. Each program is a
//! copy, so it is a file of its own. It is in a directory that belongs to the test.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use tempfile::TempDir;

use super::expected::counts;
use super::fixtures::compile_with;
use super::{Counts, files};

/// The way in which a program gets its C library.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Dynamic,
    Static,
    StaticPie,
    Musl,
    MuslStatic,
}

impl Kind {
    /// The kinds with an allocator in the program's own file.
    pub const STATIC: [Self; 3] = [Self::Static, Self::StaticPie, Self::MuslStatic];

    /// Compiles `fixtures/SOURCE.c` to a program of this kind.
    pub fn build(self, source: &str) -> PathBuf {
        let (compiler, name, flags): (_, _, &[_]) = match self {
            Self::Dynamic => ("cc", "dynamic", &["-O1"]),
            Self::Static => ("cc", "static", &["-O1", "-static"]),
            Self::StaticPie => ("cc", "static-pie", &["-O1", "-static-pie", "-fPIE"]),
            Self::Musl => ("musl-gcc", "musl", &["-O1"]),
            Self::MuslStatic => ("musl-gcc", "musl-static", &["-O1", "-static"]),
        };
        let from = format!("fixtures/{source}.c");
        compile_with(compiler, &from, &format!("{source}.{name}"), flags)
    }
}

/// A directory with programs. Every user can reach it.
pub struct Place {
    directory: TempDir,
}

impl Place {
    pub fn new() -> Self {
        let directory = TempDir::new().expect("a temporary directory can be created");
        fs::set_permissions(directory.path(), Permissions::from_mode(0o755))
            .expect("the test owns the directory");
        Self { directory }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Creates a directory in this one, and its parents.
    pub fn directory(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(&path).expect("the test owns the directory");
        path
    }

    /// Creates a file with the content and the mode of `from`.
    pub fn copy(&self, from: &Path, name: &str) -> PathBuf {
        let to = self.path(name);
        files::copy(from, &to);
        to
    }

    /// Creates a new copy of `allocates_from_start_to_end`.
    pub fn newcomer(&self, kind: Kind, name: &str) -> PathBuf {
        self.copy(&kind.build("allocates_from_start_to_end"), name)
    }

    /// Creates a script that every user may execute.
    pub fn script(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        files::write_script(&path, text, 0o755);
        path
    }
}

/// Runs a command that must succeed. Returns its standard output.
#[track_caller]
pub fn run(command: &mut Command) -> String {
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"));
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The counts of `allocates_from_start_to_end BYTES`, without its C library's.
pub fn own(bytes: u64) -> Counts {
    counts(bytes + 674, 6, 3, bytes + 24, 3)
}

/// The counts of the newcomer at `program` for its whole life: its own, and those of its C library at the start.
pub fn life(kind: Kind, program: &Path, bytes: u64) -> Counts {
    plus(own(bytes), start(kind, program))
}

pub fn plus(a: Counts, b: Counts) -> Counts {
    Counts {
        total_allocs_bytes: a.total_allocs_bytes + b.total_allocs_bytes,
        alloc_count: a.alloc_count + b.alloc_count,
        free_count: a.free_count + b.free_count,
        leaked_bytes: a.leaked_bytes + b.leaked_bytes,
        leaked_blocks: a.leaked_blocks + b.leaked_blocks,
        failed_allocs: a.failed_allocs + b.failed_allocs,
        unknown_frees: a.unknown_frees + b.unknown_frees,
    }
}

/// The counts of the C library at the start of a program of this kind in the directory of `program`.
///
/// A dynamic loader allocates nothing that is visible from outside, and neither does musl. In a static program, glibc
/// allocates memory at the start, some of it for the name of the program's directory. gdb measures how much.
pub fn start(kind: Kind, program: &Path) -> Counts {
    static KNOWN: Mutex<BTreeMap<(Kind, usize), Counts>> = Mutex::new(BTreeMap::new());
    if !matches!(kind, Kind::Static | Kind::StaticPie) {
        return Counts::default();
    }
    let directory = program.parent().expect("a program has a directory");
    let mut known = KNOWN
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    *known
        .entry((kind, directory.as_os_str().len()))
        .or_insert_with(|| {
            // gdb runs a copy of `program`, so that it does not find a memleak's probes.
            let copy = directory.join("for-gdb");
            run(Command::new("cp")
                .arg(kind.build("allocates_from_start_to_end"))
                .arg(&copy));
            let (bytes, allocations, frees) = traced(&copy);
            let own = own(0);
            assert_eq!(frees, own.free_count, "the start frees nothing");
            let bytes = bytes - own.total_allocs_bytes;
            let allocations = allocations - own.alloc_count;
            counts(bytes, allocations, 0, bytes, allocations)
        })
}

/// Counts a program's calls with gdb. Returns the bytes requested, the allocations, and the frees. The frees include
/// those that realloc does.
fn traced(program: &Path) -> (u64, u64, u64) {
    const FUNCTIONS: [(&str, &str); 4] = [
        ("malloc", r#""called 0 1 %lu\n", $rdi"#),
        ("calloc", r#""called 0 %lu %lu\n", $rdi, $rsi"#),
        ("realloc", r#""called %lu 1 %lu\n", $rdi, $rsi"#),
        ("free", r#""called %lu\n", $rdi"#),
    ];
    // A position-independent program has no addresses before it is started.
    let mut script = String::from("set pagination off\nset startup-with-shell off\nstarti\n");
    for (function, shown) in FUNCTIONS {
        script += &format!("break *{function}\ncommands\nsilent\nprintf {shown}\ncont\nend\n");
    }
    script += "continue\n";
    let commands = program.with_extension("gdb");
    fs::write(&commands, script).expect("the test owns the file");
    let said = run(Command::new("gdb")
        .args(["-nx", "-q", "-batch", "-x"])
        .args([commands.as_path(), program])
        .env_remove("LD_LIBRARY_PATH")
        .env("LC_ALL", "C"));
    assert!(said.contains("exited normally"), "{said}");
    let (mut bytes, mut allocations, mut frees) = (0, 0, 0);
    for line in said.lines() {
        let Some(numbers) = line.strip_prefix("called ") else {
            continue;
        };
        let numbers: Vec<u64> = numbers
            .split(' ')
            .map(|number| number.parse().expect("the word is a number"))
            .collect();
        frees += u64::from(numbers[0] != 0);
        if let [_, count, size] = numbers[..] {
            bytes += count * size;
            allocations += 1;
        }
    }
    (bytes, allocations, frees)
}

/// The file that this process has mapped and whose name starts with `beginning`, such as `libc.so.` or `ld-`.
pub fn mapped(beginning: &str) -> PathBuf {
    let maps = fs::read_to_string("/proc/self/maps").expect("/proc is mounted");
    let path = maps
        .lines()
        .filter_map(|line| line.split_whitespace().nth(5))
        .find(|path| {
            path.rsplit_once('/')
                .is_some_and(|(_, name)| name.starts_with(beginning))
        });
    PathBuf::from(path.expect("the tests run with glibc"))
}

/// Whether two paths lead to the same file.
pub fn same_file(a: &Path, b: &Path) -> bool {
    let identity = |path: &Path| path.metadata().ok().map(|file| (file.dev(), file.ino()));
    identity(a).is_some() && identity(a) == identity(b)
}
