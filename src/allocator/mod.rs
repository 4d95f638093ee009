//! What a file has to do with allocating: found before the command starts, or when a process maps it.
//!
//! Answers with files; where probes go in them is the business of `probe`.

pub mod command;
pub mod ld_cache;
pub mod loader;
pub mod mapped;

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

use crate::elf_file::{self, Class};
use crate::inherited;
use crate::probe::elf::{Findings, find_sites};
use crate::probe::table::Row;
use crate::root::Root;
use loader::Environment;

/// Bytes of an ELF file's header.
const HEAD: usize = 64;

/// An executable file that has been looked at, open, so that it stays the one that was looked at.
#[derive(Debug)]
pub struct Examined {
    pub path: PathBuf,
    pub file: File,
    pub identity: Identity,
    pub class: Class,
    /// Whether it gives blocks and takes them back.
    pub is_allocator: bool,
    /// Nothing where the class is not [`Class::Native`].
    pub findings: Findings,
}

/// A file as stat(2) tells it from others, and whether it is still what it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Identity {
    pub device: u64,
    pub inode: u64,
    /// When it changed last (ctime), in seconds and nanoseconds.
    pub changed: (i64, i64),
}

impl Examined {
    /// Looks for the functions of `rows` in an open file. `path` is where those who map the file see it below
    /// `root`.
    ///
    /// # Errors
    /// The file cannot be read, or is damaged.
    pub fn look(path: PathBuf, file: File, root: &Root, rows: &[Row]) -> Result<Self> {
        let context = || format!("cannot read {}", path.display());
        let metadata = file.metadata().with_context(context)?;
        let identity = Identity {
            device: metadata.dev(),
            inode: metadata.ino(),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        };
        let class = class_of(&file).with_context(context)?;
        let findings = match class {
            Class::Native => find_sites(&file, &path, root, rows)?,
            Class::Bits32 | Class::OtherMachine | Class::NotElf => Findings::default(),
        };
        Ok(Examined {
            path,
            file,
            identity,
            class,
            is_allocator: findings.is_allocator(),
            findings,
        })
    }
}

fn class_of(file: &File) -> io::Result<Class> {
    let mut head = [0; HEAD];
    let length = file.read_at(&mut head, 0)?;
    Ok(elf_file::class(&head[..length]))
}

/// Looks at the files that a command, and the shell that may start for it, will map. `candidates` are the
/// paths at which the command is looked for, in order. What cannot be read is left out: the command cannot
/// map it either, or it will be looked at when it does.
///
/// # Errors
/// The C library lacks a function that it must have.
pub fn at_start<'a>(
    candidates: impl Iterator<Item = &'a OsStr>,
    environment: &Environment,
    rows: &[Row],
) -> Result<Vec<Examined>> {
    let root = Root::ours();
    let mut files: Vec<PathBuf> = Vec::new();
    // The command may be a script, a static program, or not there at all: then its children, or
    // nobody, use the system's C library, which is the one that the shell uses.
    for program in [
        command::executable(candidates),
        Some(PathBuf::from("/bin/sh")),
    ] {
        if let Some(program) = program
            && let Ok(mapped) = loader::mapped_at_start(&program, environment, &root)
        {
            files.extend(mapped);
        }
    }
    let mut examined: Vec<Examined> = Vec::new();
    for path in files {
        let Ok(file) = File::open(&path) else {
            continue;
        };
        let Ok(found) = Examined::look(path, file, &root, rows) else {
            continue;
        };
        if examined
            .iter()
            .any(|other| other.identity == found.identity)
        {
            continue;
        }
        let is_libc = found
            .path
            .file_name()
            .is_some_and(|name| name == "libc.so.6");
        ensure!(
            !is_libc || found.findings.missing.is_empty(),
            "{} has no symbol for {}: its symbol table is not the C library's; reinstall the package \
             that it belongs to",
            found.path.display(),
            found.findings.missing.join(", ")
        );
        examined.push(found);
    }
    Ok(examined)
}

impl Environment {
    /// The environment that the command will get: the caller's, which is not always ours.
    pub fn of_the_command() -> Self {
        let get = |name: &str| inherited::variable(OsStr::new(name)).unwrap_or_default();
        Environment {
            library_path: get("LD_LIBRARY_PATH"),
            preload: get("LD_PRELOAD"),
        }
    }
}
