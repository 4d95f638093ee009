//! Which files the dynamic loader will map when a program starts: the program, its libraries and
//! preloaded ones, searched for as ld.so(8) does.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use object::Endianness;
use object::elf::{DT_NEEDED, DT_RPATH, DT_RUNPATH};
use object::read::ReadCache;
use object::read::elf::{Dyn, ElfFile64, FileHeader, ProgramHeader};

use super::ld_cache;

/// More libraries than this no program has; a tree of files that seems to is not followed further.
const MAX_FILES: usize = 4096;

/// Where the loader looks last. Those that a system does not have do no harm.
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

/// The variables that decide what is mapped.
#[derive(Clone, Debug, Default)]
pub struct Environment {
    /// `LD_LIBRARY_PATH`
    pub library_path: OsString,
    /// `LD_PRELOAD`
    pub preload: OsString,
}

/// What a file's dynamic section asks of the loader.
#[derive(Debug, Default, PartialEq, Eq)]
struct Dynamic {
    interpreter: Option<PathBuf>,
    needed: Vec<Vec<u8>>,
    rpath: Vec<u8>,
    runpath: Vec<u8>,
}

/// The files mapped at the start of the ELF program at `program`, itself first, each once.
///
/// # Errors
/// The program cannot be read, or is no ELF file.
pub fn mapped_at_start(program: &Path, environment: &Environment) -> Result<Vec<PathBuf>> {
    let main = read_dynamic(program)?;
    let mut files = vec![program.to_owned()];
    let Some(interpreter) = main.interpreter.clone() else {
        return Ok(files);
    };
    let search = Search {
        library_path: split(environment.library_path.as_bytes()),
        cache: fs::read("/etc/ld.so.cache").unwrap_or_default(),
    };
    let main_rpath = directories(&main.rpath, program);
    let mut queue: VecDeque<(PathBuf, Dynamic)> = VecDeque::new();
    let add = |path: PathBuf, files: &mut Vec<PathBuf>, queue: &mut VecDeque<_>| {
        if files.len() < MAX_FILES
            && !files.contains(&path)
            && let Ok(dynamic) = read_dynamic(&path)
        {
            files.push(path.clone());
            queue.push_back((path, dynamic));
        }
    };
    for name in preloaded(environment) {
        if let Some(path) = search.find(&name, &main_rpath, &[]) {
            add(path, &mut files, &mut queue);
        }
    }
    queue.push_front((program.to_owned(), main));
    while let Some((path, dynamic)) = queue.pop_front() {
        let runpath = directories(&dynamic.runpath, &path);
        // A RUNPATH makes the loader ignore the RPATHs, the program's included.
        let mut rpath = Vec::new();
        if dynamic.runpath.is_empty() {
            rpath = directories(&dynamic.rpath, &path);
            rpath.extend(main_rpath.iter().cloned());
        }
        for name in &dynamic.needed {
            if let Some(found) = search.find(name, &rpath, &runpath) {
                add(found, &mut files, &mut queue);
            }
        }
    }
    // The interpreter allocates by itself only before libc is there. Musl's is libc.
    if !files.contains(&interpreter) {
        let is_libc = interpreter
            .as_os_str()
            .as_bytes()
            .windows(7)
            .any(|part| part == b"ld-musl");
        if is_libc {
            files.push(interpreter);
        }
    }
    Ok(files)
}

struct Search {
    library_path: Vec<PathBuf>,
    cache: Vec<u8>,
}

impl Search {
    fn find(&self, name: &[u8], rpath: &[PathBuf], runpath: &[PathBuf]) -> Option<PathBuf> {
        if name.contains(&b'/') {
            return Some(PathBuf::from(OsStr::from_bytes(name)));
        }
        let in_directory = |directory: &Path| {
            let path = directory.join(OsStr::from_bytes(name));
            path.is_file().then_some(path)
        };
        let listed = rpath.iter().chain(&self.library_path).chain(runpath);
        listed
            .map(PathBuf::as_path)
            .find_map(in_directory)
            .or_else(|| ld_cache::look_up(&self.cache, name))
            .or_else(|| {
                DEFAULT_DIRECTORIES
                    .iter()
                    .map(Path::new)
                    .find_map(in_directory)
            })
    }
}

fn preloaded(environment: &Environment) -> Vec<Vec<u8>> {
    let file = fs::read("/etc/ld.so.preload").unwrap_or_default();
    let separator = |byte: &u8| *byte == b':' || byte.is_ascii_whitespace();
    [environment.preload.as_bytes(), &file]
        .into_iter()
        .flat_map(|list| list.split(separator))
        .filter(|name| !name.is_empty())
        .map(<[u8]>::to_vec)
        .collect()
}

/// Splits a list of directories; an empty one means the current directory.
fn split(list: &[u8]) -> Vec<PathBuf> {
    if list.is_empty() {
        return Vec::new();
    }
    list.split(|&byte| byte == b':' || byte == b';')
        .map(|directory| match directory {
            b"" => PathBuf::from("."),
            _ => PathBuf::from(OsStr::from_bytes(directory)),
        })
        .collect()
}

/// The directories of an RPATH or RUNPATH, with `$ORIGIN` and `$LIB` put in.
fn directories(list: &[u8], file: &Path) -> Vec<PathBuf> {
    let origin = fs::canonicalize(file)
        .ok()
        .and_then(|path| path.parent().map(Path::to_owned))
        .unwrap_or_default();
    // On Debian $LIB is lib/<triplet>, elsewhere lib64.
    let lib = DEFAULT_DIRECTORIES[if Path::new(DEFAULT_DIRECTORIES[0]).is_dir() {
        0
    } else {
        2
    }];
    split(list)
        .into_iter()
        .map(|directory| {
            let mut text = directory.into_os_string().into_vec();
            for (token, value) in [
                (&b"$ORIGIN"[..], origin.as_os_str().as_bytes()),
                (b"${ORIGIN}", origin.as_os_str().as_bytes()),
                (b"$LIB", lib.trim_start_matches('/').as_bytes()),
                (b"${LIB}", lib.trim_start_matches('/').as_bytes()),
            ] {
                text = replace(&text, token, value);
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

fn read_dynamic(path: &Path) -> Result<Dynamic> {
    let context = || format!("cannot read {} as ELF", path.display());
    let cache = ReadCache::new(File::open(path).with_context(context)?);
    let elf: ElfFile64<'_, Endianness, _> = ElfFile64::parse(&cache).with_context(context)?;
    let endian = elf.endian();
    let header = elf.elf_header();
    let mut dynamic = Dynamic::default();
    for segment in elf.elf_program_headers() {
        if let Ok(Some(interpreter)) = segment.interpreter(endian, &cache) {
            dynamic.interpreter = Some(PathBuf::from(OsStr::from_bytes(interpreter)));
        }
    }
    let sections = header.sections(endian, &cache).with_context(context)?;
    let Some((entries, link)) = sections.dynamic(endian, &cache).with_context(context)? else {
        return Ok(dynamic);
    };
    let strings = sections
        .strings(endian, &cache, link)
        .with_context(context)?;
    for entry in entries {
        let string = || {
            entry
                .string(endian, strings)
                .map(<[u8]>::to_vec)
                .unwrap_or_default()
        };
        match entry.tag(endian) {
            DT_NEEDED => dynamic.needed.push(string()),
            DT_RPATH => dynamic.rpath = string(),
            DT_RUNPATH => dynamic.runpath = string(),
            _ => {}
        }
    }
    Ok(dynamic)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shell_maps_the_c_library() {
        let files = mapped_at_start(Path::new("/bin/sh"), &Environment::default()).unwrap();
        assert_eq!(files[0], Path::new("/bin/sh"));
        assert!(
            files.iter().any(|file| file.ends_with("libc.so.6")),
            "{files:?}"
        );
    }

    #[test]
    fn a_preloaded_library_comes_before_what_the_program_needs() {
        let directory = tempfile::tempdir().unwrap();
        let copy = directory.path().join("libpreloaded.so");
        fs::copy(
            &mapped_at_start(Path::new("/bin/sh"), &Environment::default()).unwrap()[1],
            &copy,
        )
        .unwrap();
        let environment = Environment {
            preload: copy.clone().into(),
            ..Environment::default()
        };
        let files = mapped_at_start(Path::new("/bin/sh"), &environment).unwrap();
        assert_eq!(files[1], copy);
    }

    #[test]
    fn a_library_path_is_searched_before_the_cache() {
        let directory = tempfile::tempdir().unwrap();
        let libc = mapped_at_start(Path::new("/bin/sh"), &Environment::default()).unwrap();
        let libc = libc
            .iter()
            .find(|file| file.ends_with("libc.so.6"))
            .unwrap();
        fs::copy(libc, directory.path().join("libc.so.6")).unwrap();
        let environment = Environment {
            library_path: directory.path().into(),
            ..Environment::default()
        };
        let files = mapped_at_start(Path::new("/bin/sh"), &environment).unwrap();
        assert!(
            files.contains(&directory.path().join("libc.so.6")),
            "{files:?}"
        );
    }

    #[test]
    fn origin_is_the_directory_of_the_file() {
        let found = directories(b"$ORIGIN/../lib:${ORIGIN}/x:/y", Path::new("/bin/sh"));
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

    #[test]
    fn a_file_that_is_no_elf_file_is_an_error() {
        assert!(mapped_at_start(Path::new("/etc/passwd"), &Environment::default()).is_err());
    }
}
