//! Which files the dynamic loader will map when a program starts: the program, its libraries and preloaded libraries.
//! Searches for them as ld.so(8) or musl's loader does, depending on the loader that the program names. Looking into
//! the files is left to `findings`.

use std::cell::Cell;
use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use object::elf::{DT_NEEDED, DT_RPATH, DT_RUNPATH, DT_STRTAB};

use crate::elf::file::{ElfFile, string_in};
use crate::find::ld_cache;
use crate::os::root::Root;

/// The most files that are followed. No program has more libraries.
const MAX_FILES: usize = 4096;

/// The longest list of directories in a dynamic section.
const MAX_STRING: u64 = 1 << 16;
/// The longest name in a dynamic section (`PATH_MAX`).
const MAX_NAME: u64 = 4096;

/// Limits for all files of a program together: names of needed libraries, directories to search, and look-ups of a
/// file. A library that these limits leave out is found when it is mapped.
const MAX_NAMES: usize = 1 << 14;
const MAX_DIRECTORIES: usize = 1 << 16;
const MAX_LOOKS: usize = 1 << 19;

/// The longest cache, or list of directories, of a system. No system has longer ones.
const MAX_CACHE: u64 = 64 << 20;

/// The directories that glibc's loader searches last. A directory that a system does not have does no harm.
#[cfg(target_arch = "x86_64")]
const DEFAULT_DIRECTORIES: [&str; 6] = [
    "/lib/x86_64-linux-gnu",
    "/usr/lib/x86_64-linux-gnu",
    "/lib64",
    "/usr/lib64",
    "/lib",
    "/usr/lib",
];
#[cfg(target_arch = "aarch64")]
const DEFAULT_DIRECTORIES: [&str; 6] = [
    "/lib/aarch64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/lib64",
    "/usr/lib64",
    "/lib",
    "/usr/lib",
];

/// The directories that musl's loader searches last, unless the file [`MUSL_PATHS`] lists others.
const MUSL_DIRECTORIES: &str = "/lib:/usr/local/lib:/usr/lib";
#[cfg(target_arch = "x86_64")]
const MUSL_PATHS: &str = "/etc/ld-musl-x86_64.path";
#[cfg(target_arch = "aarch64")]
const MUSL_PATHS: &str = "/etc/ld-musl-aarch64.path";

/// Libraries that are part of musl's loader itself.
const IN_MUSL: [&str; 7] = ["c", "pthread", "rt", "m", "dl", "util", "xnet"];

/// The value of `$PLATFORM`.
const PLATFORM: &str = std::env::consts::ARCH;

/// The environment variables that influence which files are mapped.
#[derive(Clone, Debug, Default)]
pub struct Environment {
    /// `LD_LIBRARY_PATH`
    pub library_path: OsString,
    /// `LD_PRELOAD`
    pub preload: OsString,
}

/// What a file's dynamic section asks of the loader.
#[derive(Debug, Default, PartialEq, Eq)]
struct LoaderNeeds {
    interpreter: Option<PathBuf>,
    needed: Vec<Vec<u8>>,
    rpath: Vec<u8>,
    runpath: Vec<u8>,
}

/// The files mapped at the start of the ELF program at `program`. Each file comes once, the program first. All paths
/// are below `root`.
///
/// # Errors
/// The program cannot be read, or is not an ELF file.
pub fn mapped_at_start(
    program: &Path,
    environment: &Environment,
    root: &Root,
) -> Result<Vec<PathBuf>> {
    let main = read_dynamic(program, root)?;
    let mut files = vec![program.to_owned()];
    let Some(interpreter) = main.interpreter.clone() else {
        return Ok(files);
    };
    let search = Search::new(&interpreter, environment, root);
    let wanted_by_main = search.wanted_by(program, &main, &[]);
    // Each entry has names of needed files, and the directories in which they are looked for.
    let mut queue: VecDeque<WantedLibraries> = VecDeque::new();
    queue.push_back(WantedLibraries {
        names: search.preloaded(environment),
        ..wanted_by_main.clone()
    });
    queue.push_back(wanted_by_main);
    while let Some(wanted) = queue.pop_front() {
        for name in &wanted.names {
            if let Some(path) = search.find(name, &wanted)
                && files.len() < MAX_FILES
                && !files.contains(&path)
                && let Ok(dynamic) = read_dynamic(&path, root)
            {
                queue.push_back(search.wanted_by(&path, &dynamic, &wanted.rpath));
                files.push(path);
            }
        }
    }
    // musl's loader is its C library, and may be in the list already. glibc's loader only maps the libraries.
    if !files.contains(&interpreter) {
        files.push(interpreter);
    }
    Ok(files)
}

/// The names of the libraries that one file needs, and the directories to search for them.
#[derive(Clone, Debug, Default)]
struct WantedLibraries {
    names: Vec<Vec<u8>>,
    /// The file's own RPATH, and the RPATHs of the files that made the loader map it.
    rpath: Vec<PathBuf>,
    /// The file's own RUNPATH only.
    runpath: Vec<PathBuf>,
}

/// How the loader of one program searches for libraries.
struct Search<'root> {
    root: &'root Root,
    interpreter: PathBuf,
    is_musl: bool,
    library_path: Vec<PathBuf>,
    cache: Vec<u8>,
    last: Vec<PathBuf>,
    /// Subdirectories of `glibc-hwcaps` with libraries that this processor can run, best first.
    hwcaps: Vec<&'static str>,
    /// How many more names, directories and look-ups are allowed.
    names: Cell<usize>,
    directories: Cell<usize>,
    looks: Cell<usize>,
}

/// Takes `wanted` off what is left, or all that is left. Returns how many were taken.
fn take(left: &Cell<usize>, wanted: usize) -> usize {
    let taken = wanted.min(left.get());
    left.set(left.get() - taken);
    taken
}

impl<'root> Search<'root> {
    fn new(interpreter: &Path, environment: &Environment, root: &'root Root) -> Self {
        let name = interpreter.file_name().unwrap_or_default().as_bytes();
        let is_musl = name.starts_with(b"ld-musl");
        let read = |path: &str| root.read(Path::new(path), MAX_CACHE).ok();
        Self {
            root,
            interpreter: interpreter.to_owned(),
            is_musl,
            library_path: split(environment.library_path.as_bytes()),
            cache: (!is_musl)
                .then(|| read("/etc/ld.so.cache"))
                .flatten()
                .unwrap_or_default(),
            last: if is_musl {
                let list = read(MUSL_PATHS).unwrap_or_else(|| MUSL_DIRECTORIES.into());
                split_at(list.trim_ascii(), b":\n")
            } else {
                DEFAULT_DIRECTORIES.map(PathBuf::from).to_vec()
            },
            hwcaps: if is_musl { Vec::new() } else { hwcaps() },
            names: Cell::new(MAX_NAMES),
            directories: Cell::new(MAX_DIRECTORIES),
            looks: Cell::new(MAX_LOOKS),
        }
    }

    /// The path of the library that the loader maps for a name.
    fn find(&self, name: &[u8], wanted: &WantedLibraries) -> Option<PathBuf> {
        let path = Path::new(OsStr::from_bytes(name));
        if name.contains(&b'/') {
            return Some(path.to_owned());
        }
        if self.is_musl && is_in_musl(name) {
            return Some(self.interpreter.clone());
        }
        let in_directory = |directory: &PathBuf| {
            let variants = self
                .hwcaps
                .iter()
                .map(|variant| directory.join("glibc-hwcaps").join(variant));
            variants
                .chain([directory.clone()])
                .map(|directory| directory.join(path))
                .find(|path| self.is_library(path))
        };
        let (early, late) = if self.is_musl {
            // musl's loader treats RPATH and RUNPATH alike, and searches them after LD_LIBRARY_PATH.
            (&[][..], [&wanted.rpath[..], &wanted.runpath])
        } else {
            (&wanted.rpath[..], [&[][..], &wanted.runpath])
        };
        let listed = early.iter().chain(&self.library_path);
        listed
            .chain(late.into_iter().flatten())
            .find_map(in_directory)
            .or_else(|| ld_cache::look_up(&self.cache, name, &self.hwcaps))
            .or_else(|| self.last.iter().find_map(in_directory))
    }

    /// Whether there is an ELF file of this machine at the path. The loader skips other files.
    fn is_library(&self, path: &Path) -> bool {
        if take(&self.looks, 1) == 0 {
            return false;
        }
        let file = self.root.open(path);
        file.is_ok_and(|file| ElfFile::open(&file).is_ok())
    }

    /// What the file at `path` needs. `inherited` are the RPATHs of the files that led to this one.
    fn wanted_by(
        &self,
        path: &Path,
        dynamic: &LoaderNeeds,
        inherited: &[PathBuf],
    ) -> WantedLibraries {
        // If a file has a RUNPATH, glibc's loader ignores its RPATH and the inherited ones. A RUNPATH is not inherited
        // by the libraries that this file needs.
        let mut runpath = directories(&dynamic.runpath, path, self.root);
        let mut rpath = Vec::new();
        if runpath.is_empty() {
            rpath = directories(&dynamic.rpath, path, self.root);
            rpath.extend_from_slice(inherited);
        }
        for list in [&mut runpath, &mut rpath] {
            list.truncate(take(&self.directories, list.len()));
        }
        let names = take(&self.names, dynamic.needed.len());
        WantedLibraries {
            names: dynamic.needed[..names].to_vec(),
            rpath,
            runpath,
        }
    }

    /// The names of the libraries to preload, from the environment and from `/etc/ld.so.preload`.
    fn preloaded(&self, environment: &Environment) -> Vec<Vec<u8>> {
        let list = (!self.is_musl).then(|| {
            let list = Path::new("/etc/ld.so.preload");
            self.root.read(list, MAX_STRING).unwrap_or_default()
        });
        let separator = |byte: &u8| *byte == b':' || byte.is_ascii_whitespace();
        [environment.preload.as_bytes(), &list.unwrap_or_default()]
            .into_iter()
            .flat_map(|list| list.split(separator))
            .filter(|name| !name.is_empty())
            .map(<[u8]>::to_vec)
            .collect()
    }
}

/// Whether musl's loader takes a name, such as `libc.so.6` or `libpthread.so`, to mean itself.
fn is_in_musl(name: &[u8]) -> bool {
    let stem = name
        .strip_prefix(b"lib")
        .and_then(|rest| rest.split(|&byte| byte == b'.').next());
    stem.is_some_and(|stem| {
        stem.len() + 3 < name.len() && IN_MUSL.iter().any(|known| known.as_bytes() == stem)
    })
}

/// The variants of libraries that glibc's loader uses on this processor, best first
/// (`sysdeps/x86_64/dl-hwcaps-subdirs.c`).
#[cfg(target_arch = "x86_64")]
fn hwcaps() -> Vec<&'static str> {
    use std::arch::is_x86_feature_detected as has;
    let v2 = has!("cmpxchg16b")
        && has!("popcnt")
        && has!("sse3")
        && has!("sse4.1")
        && has!("sse4.2")
        && has!("ssse3");
    let v3 = v2
        && has!("avx")
        && has!("avx2")
        && has!("bmi1")
        && has!("bmi2")
        && has!("f16c")
        && has!("fma")
        && has!("lzcnt")
        && has!("movbe");
    let v4 = v3
        && has!("avx512f")
        && has!("avx512bw")
        && has!("avx512cd")
        && has!("avx512dq")
        && has!("avx512vl");
    [(v4, "x86-64-v4"), (v3, "x86-64-v3"), (v2, "x86-64-v2")]
        .into_iter()
        .filter_map(|(has, name)| has.then_some(name))
        .collect()
}

#[cfg(not(target_arch = "x86_64"))]
fn hwcaps() -> Vec<&'static str> {
    Vec::new()
}

/// Splits a list of directories. An empty entry means the current directory.
fn split(list: &[u8]) -> Vec<PathBuf> {
    split_at(list, b":;")
}

fn split_at(list: &[u8], separators: &[u8]) -> Vec<PathBuf> {
    if list.is_empty() {
        return Vec::new();
    }
    list.split(|byte| separators.contains(byte))
        .map(|directory| match directory {
            b"" => PathBuf::from("."),
            _ => PathBuf::from(OsStr::from_bytes(directory)),
        })
        .collect()
}

/// The directories of an RPATH or RUNPATH, with `$ORIGIN`, `$LIB` and `$PLATFORM` replaced by their values.
fn directories(list: &[u8], file: &Path, root: &Root) -> Vec<PathBuf> {
    if !list.contains(&b'$') {
        return split(list);
    }
    let origin = root
        .canonical(file)
        .ok()
        .and_then(|path| path.parent().map(Path::to_owned))
        .unwrap_or_default();
    // $LIB is the name of the C library's own directory: lib/<triplet> on Debian, lib64 elsewhere.
    let lib =
        DEFAULT_DIRECTORIES[if root.is_file(&Path::new(DEFAULT_DIRECTORIES[0]).join("libc.so.6")) {
            0
        } else {
            2
        }];
    let tokens = [
        ("ORIGIN", origin.as_os_str().as_bytes()),
        ("LIB", lib.trim_start_matches('/').as_bytes()),
        ("PLATFORM", PLATFORM.as_bytes()),
    ];
    split(list)
        .into_iter()
        .map(|directory| {
            let mut text = directory.into_os_string().into_vec();
            for (token, value) in tokens {
                text = replace(&text, format!("${token}").as_bytes(), value);
                text = replace(&text, format!("${{{token}}}").as_bytes(), value);
            }
            PathBuf::from(OsString::from_vec(text))
        })
        .collect()
}

fn replace(text: &[u8], token: &[u8], value: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.windows(token.len()).position(|part| part == token) {
        out.extend(&rest[..at]);
        out.extend(value);
        rest = &rest[at + token.len()..];
    }
    out.extend(rest);
    out
}

/// Reads the dynamic section through the segments, as the loader does.
fn read_dynamic(path: &Path, root: &Root) -> Result<LoaderNeeds> {
    let context = || format!("cannot read {} as ELF", path.display());
    let file = root.open(path).with_context(context)?;
    let elf = ElfFile::open(&file).with_context(context)?;
    let entries = elf.dynamic();
    let strings = entries
        .get(DT_STRTAB)
        .and_then(|address| elf.mapped_at(address));
    let string = |at: u64, longest: u64| {
        let strings = strings.clone()?;
        let start = strings.start.checked_add(at)?;
        let size = strings.end.checked_sub(start)?.min(longest);
        Some(string_in(&elf.read(start, size)?, 0)?.to_vec())
    };
    let list = |tag| {
        let at = entries.get(tag)?;
        string(at, MAX_STRING)
    };
    Ok(LoaderNeeds {
        interpreter: elf
            .interpreter()
            .map(|name| PathBuf::from(OsString::from_vec(name))),
        needed: entries
            .entries
            .iter()
            .filter(|(tag, _)| *tag == DT_NEEDED)
            .filter_map(|(_, at)| string(*at, MAX_NAME))
            .collect(),
        rpath: list(DT_RPATH).unwrap_or_default(),
        runpath: list(DT_RUNPATH).unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_shell_maps_the_c_library() {
        let files =
            mapped_at_start(Path::new("/bin/sh"), &Environment::default(), &Root::ours()).unwrap();
        assert_eq!(files[0], Path::new("/bin/sh"));
        assert!(
            files.iter().any(|file| file.ends_with("libc.so.6")),
            "{files:?}"
        );
    }

    #[test]
    fn a_preloaded_library_comes_before_the_libraries_that_the_program_needs() {
        let directory = tempfile::tempdir().unwrap();
        let copy = directory.path().join("libpreloaded.so");
        fs::copy(
            &mapped_at_start(Path::new("/bin/sh"), &Environment::default(), &Root::ours()).unwrap()
                [1],
            &copy,
        )
        .unwrap();
        let environment = Environment {
            preload: copy.clone().into(),
            ..Environment::default()
        };
        let files = mapped_at_start(Path::new("/bin/sh"), &environment, &Root::ours()).unwrap();
        assert_eq!(files[1], copy);
    }

    #[test]
    fn a_library_path_is_searched_before_the_cache() {
        let directory = tempfile::tempdir().unwrap();
        let libc =
            mapped_at_start(Path::new("/bin/sh"), &Environment::default(), &Root::ours()).unwrap();
        let libc = libc
            .iter()
            .find(|file| file.ends_with("libc.so.6"))
            .unwrap();
        fs::copy(libc, directory.path().join("libc.so.6")).unwrap();
        let environment = Environment {
            library_path: directory.path().into(),
            ..Environment::default()
        };
        let files = mapped_at_start(Path::new("/bin/sh"), &environment, &Root::ours()).unwrap();
        assert!(
            files.contains(&directory.path().join("libc.so.6")),
            "{files:?}"
        );
    }

    #[test]
    fn origin_is_the_directory_of_the_file() {
        let found = directories(
            b"$ORIGIN/../lib:${ORIGIN}/x:/y",
            Path::new("/bin/sh"),
            &Root::ours(),
        );
        let origin = fs::canonicalize("/bin/sh")
            .unwrap()
            .parent()
            .unwrap()
            .to_owned();
        assert_eq!(
            found,
            [origin.join("../lib"), origin.join("x"), PathBuf::from("/y")]
        );
    }

    /// A directory with the files that `script` builds there. `$CC` makes an empty library.
    fn built(script: &str) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        let output = std::process::Command::new("sh")
            .args(["-ec", script])
            .current_dir(&directory)
            .env(
                "CC",
                "cc -shared -nostdlib -x c /dev/null -Wl,--no-as-needed",
            )
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        directory
    }

    /// The files that a program in `directory` maps if `directory` is the root.
    fn mapped(directory: &Path, program: &str, library_path: &str) -> Vec<String> {
        let root = Root::at(directory).unwrap();
        let environment = Environment {
            library_path: library_path.into(),
            ..Environment::default()
        };
        let files = mapped_at_start(Path::new(program), &environment, &root).unwrap();
        files
            .iter()
            .map(|file| file.components().collect::<PathBuf>())
            .map(|file| file.display().to_string())
            .collect()
    }

    const PROGRAM: &str = "cc -nostdlib -nostartfiles -x c /dev/null -x none -Wl,--no-as-needed \
        -Wl,--dynamic-linker=/ld.so -Wl,-rpath-link=sub ";

    #[test]
    fn a_runpath_is_not_inherited_and_an_rpath_is() {
        let directory = built(&format!(
            "mkdir sub
            $CC -o sub/libinner.so -Wl,-soname,libinner.so
            $CC -o sub/libouter.so -Wl,-soname,libouter.so -Lsub -linner
            {PROGRAM} -o runpath -Lsub -louter -Wl,--enable-new-dtags,-rpath,'$ORIGIN/sub'
            {PROGRAM} -o rpath -Lsub -louter -Wl,--disable-new-dtags,-rpath,'$ORIGIN/sub'"
        ));
        assert_eq!(
            mapped(directory.path(), "/runpath", ""),
            ["/runpath", "/sub/libouter.so", "/ld.so"]
        );
        assert_eq!(
            mapped(directory.path(), "/rpath", ""),
            ["/rpath", "/sub/libouter.so", "/sub/libinner.so", "/ld.so"]
        );
    }

    #[test]
    fn the_libraries_of_a_file_without_section_headers_are_found() {
        let directory = built(&format!(
            "mkdir sub
            $CC -o sub/libouter.so -Wl,-soname,libouter.so
            {PROGRAM} -o program -Lsub -louter -Wl,-rpath,/sub
            # e_shoff, then e_shnum and e_shstrndx
            printf '\\0\\0\\0\\0\\0\\0\\0\\0' | dd of=program bs=1 seek=40 conv=notrunc
            printf '\\0\\0\\0\\0' | dd of=program bs=1 seek=60 conv=notrunc"
        ));
        assert_eq!(
            mapped(directory.path(), "/program", ""),
            ["/program", "/sub/libouter.so", "/ld.so"]
        );
    }

    #[test]
    fn a_file_for_another_machine_is_passed_over() {
        let directory = built(&format!(
            "mkdir sub good
            $CC -o sub/libouter.so -Wl,-soname,libouter.so
            {PROGRAM} -o program -Lsub -louter
            mv sub/libouter.so good
            echo text > sub/libouter.so"
        ));
        assert_eq!(
            mapped(directory.path(), "/program", "/sub:/good"),
            ["/program", "/good/libouter.so", "/ld.so"]
        );
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn a_variant_for_this_processor_is_taken() {
        let directory = built(&format!(
            "mkdir -p sub/glibc-hwcaps/x86-64-v2 sub/glibc-hwcaps/x86-64-v9
            $CC -o sub/libouter.so -Wl,-soname,libouter.so
            {PROGRAM} -o program -Lsub -louter
            cp sub/libouter.so sub/glibc-hwcaps/x86-64-v2
            cp sub/libouter.so sub/glibc-hwcaps/x86-64-v9"
        ));
        let expected = if hwcaps().is_empty() {
            "/sub/libouter.so"
        } else {
            "/sub/glibc-hwcaps/x86-64-v2/libouter.so"
        };
        assert_eq!(mapped(directory.path(), "/program", "/sub")[1], expected);
    }

    #[test]
    fn musls_loader_is_its_c_library() {
        let directory = built(&format!(
            "mkdir sub
            $CC -o sub/libouter.so -Wl,-soname,libouter.so
            $CC -o sub/libc.so -Wl,-soname,libc.so
            {PROGRAM} -o program -Lsub -louter -lc -Wl,--dynamic-linker=/ld-musl-test.so.1"
        ));
        let files = mapped(directory.path(), "/program", "/sub");
        assert_eq!(
            files,
            ["/program", "/sub/libouter.so", "/ld-musl-test.so.1"]
        );
        assert!(is_in_musl(b"libpthread.so.0") && is_in_musl(b"libc.so"));
        assert!(!is_in_musl(b"libcurl.so") && !is_in_musl(b"libc") && !is_in_musl(b"libm-2.so"));
    }

    #[test]
    fn the_platform_is_this_machine() {
        let found = directories(b"/x/$PLATFORM/${PLATFORM}", Path::new("/"), &Root::ours());
        let machine = std::env::consts::ARCH;
        assert_eq!(found, [Path::new("/x").join(machine).join(machine)]);
    }

    #[test]
    fn a_file_that_is_not_elf_is_an_error() {
        assert!(
            mapped_at_start(
                Path::new("/etc/passwd"),
                &Environment::default(),
                &Root::ours()
            )
            .is_err()
        );
    }
}
