//! What a file has to do with allocating: found before the command starts, or when a process maps it.
//!
//! Answers with files; where probes go in them is the business of `probe`.

pub mod command;
pub mod ld_cache;
pub mod loader;
pub mod mapped;

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

use crate::inherited;
use crate::probe::elf::{Findings, find_sites};
use crate::probe::table::Row;
use loader::Environment;

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

/// Whether a file can be followed at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// A 64-bit ELF file for this machine.
    Native,
    /// A 32-bit ELF file: the C library that it uses is not probed.
    ThirtyTwoBit,
    /// No ELF file: nothing that a loader maps.
    Foreign,
}

/// ELFCLASS32, in the fifth byte of an ELF file.
const ELF_CLASS_32: u8 = 1;

impl Examined {
    /// Looks for the functions of `rows` in an open file. `path` is what messages and rows call it.
    ///
    /// # Errors
    /// The file cannot be read, or is damaged.
    pub fn look(path: PathBuf, file: File, rows: &[Row]) -> Result<Self> {
        let context = || format!("cannot read {}", path.display());
        let metadata = file.metadata().with_context(context)?;
        let identity = Identity {
            device: metadata.dev(),
            inode: metadata.ino(),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        };
        let class = class(&file).with_context(context)?;
        let findings = match class {
            Class::Native => find_sites(file.try_clone().with_context(context)?, &path, rows)?,
            Class::ThirtyTwoBit | Class::Foreign => Findings::default(),
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

fn class(file: &File) -> std::io::Result<Class> {
    let mut start = [0; 5];
    match file.read_exact_at(&mut start, 0) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(Class::Foreign),
        Err(error) => return Err(error),
    }
    Ok(match start {
        [0x7f, b'E', b'L', b'F', ELF_CLASS_32] => Class::ThirtyTwoBit,
        [0x7f, b'E', b'L', b'F', _] => Class::Native,
        _ => Class::Foreign,
    })
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
    let mut files: Vec<PathBuf> = Vec::new();
    // The command may be a script, a static program, or not there at all: then its children, or
    // nobody, use the system's C library, which is the one that the shell uses.
    for program in [
        command::executable(candidates),
        Some(PathBuf::from("/bin/sh")),
    ] {
        if let Some(program) = program
            && let Ok(mapped) = loader::mapped_at_start(&program, environment)
        {
            files.extend(mapped);
        }
    }
    let mut examined: Vec<Examined> = Vec::new();
    for path in files {
        let Ok(file) = File::open(&path) else {
            continue;
        };
        let Ok(found) = Examined::look(path, file, rows) else {
            continue;
        };
        if examined.iter().any(|other| other.identity == found.identity) {
            continue;
        }
        let is_libc = found.path.file_name().is_some_and(|name| name == "libc.so.6");
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
