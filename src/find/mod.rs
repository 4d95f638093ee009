//! Which files have an allocator, and which of its functions are probed where. The question comes up before the
//! command starts, and when a process maps a file.
//!
//! Answers with open files and the places in them. Attaching the probes is left to `kernel`.

pub mod command;
mod exceptions;
pub mod exit_frames;
mod file_text;
pub mod findings;
pub mod functions;
pub mod heaps;
pub mod hooks;
pub mod ld_cache;
pub mod loader;
pub mod notation;
pub mod role;
pub mod sites;

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use loader::Environment;

use crate::elf::file::{self, Class};
use crate::find::findings::{Findings, find_sites};
use crate::find::functions::Table;
use crate::os::inherited;
use crate::os::root::Root;

/// Bytes of an ELF file's header.
const HEAD: usize = 64;

/// An executable file that has been examined. It stays open, so that its path cannot come to mean another file.
#[derive(Debug)]
pub struct Examined {
    pub path: PathBuf,
    pub file: File,
    pub class: Class,
    /// Empty if the class is not [`Class::Native`].
    pub findings: Findings,
}

impl Examined {
    /// Looks for the functions of a table in an open file. `path` is the file's path below `root`, as the processes
    /// that map the file see it.
    ///
    /// # Errors
    /// The file cannot be read, or is damaged.
    pub fn look(path: PathBuf, file: File, root: &Root, table: &Table) -> Result<Self> {
        let context = || format!("cannot read {}", path.display());
        let class = class_of(&file).with_context(context)?;
        let findings = match class {
            Class::Native => find_sites(&file, &path, root, table)?,
            Class::Bits32 | Class::OtherMachine | Class::NotElf => Findings::default(),
        };
        Ok(Examined {
            path,
            file,
            class,
            findings,
        })
    }

    /// Duplicates the descriptor of the file.
    ///
    /// # Errors
    /// There are too few descriptors.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Examined {
            path: self.path.clone(),
            file: self.file.try_clone()?,
            class: self.class,
            findings: self.findings.clone(),
        })
    }
}

/// A file that has the C library's name, and lacks functions that every C library has.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {}", self.what(), Self::REMEDY)]
pub struct NotTheLibrary {
    path: PathBuf,
    missing: Vec<&'static str>,
}

impl NotTheLibrary {
    /// What the user can do about the file.
    pub const REMEDY: &str =
        "its symbol table is not the C library's; reinstall the package that it belongs to";

    /// What is wrong with the file.
    pub fn what(&self) -> String {
        format!(
            "{} has no symbol for {}",
            self.path.display(),
            self.missing.join(", ")
        )
    }
}

/// What kind of file it is, by its first bytes.
fn class_of(file: &File) -> io::Result<Class> {
    let mut head = [0; HEAD];
    let length = file.read_at(&mut head, 0)?;
    Ok(file::class(&head[..length]))
}

/// Examines the files that a command, and the shell that may start for it, will map. `candidates` are the
/// paths at which the command is looked for, in order. A file that cannot be read is left out: the command cannot
/// map it either, or the file will be examined when the command maps it.
///
/// # Errors
/// The C library lacks a function that every C library has, or a file lacks a function that the user names in it.
pub fn at_start<'a>(
    candidates: impl Iterator<Item = &'a OsStr>,
    environment: &Environment,
    table: &Table,
) -> Result<Vec<Examined>> {
    let root = Root::ours();
    let mut files: Vec<PathBuf> = Vec::new();
    // The command may be a script or a static program, or it may not exist. Its children may then use the system's
    // C library, which is the one that the shell uses.
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
    let mut seen = Vec::new();
    let mut examined = Vec::new();
    for path in files {
        // What a program names as its loader may be a FIFO. `Root::open` refuses to open one.
        let Ok(file) = root.open(&path) else {
            continue;
        };
        let Ok(metadata) = file.metadata() else {
            continue;
        };
        let identity = (metadata.dev(), metadata.ino());
        if seen.contains(&identity) {
            continue;
        }
        seen.push(identity);
        let Ok(found) = Examined::look(path, file, &root, table) else {
            continue;
        };
        let is_libc = found
            .path
            .file_name()
            .is_some_and(|name| name == "libc.so.6");
        if is_libc && !found.findings.missing.is_empty() {
            return Err(NotTheLibrary {
                path: found.path,
                missing: found.findings.missing,
            }
            .into());
        }
        if let Some((symbol, given_as)) = found.findings.user_missing.first() {
            bail!(
                "--allocator {given_as}: {} has no function '{symbol}' (nm and nm -D print those that it has)",
                found.path.display()
            );
        }
        examined.push(found);
    }
    Ok(examined)
}

impl Environment {
    /// The environment that the command will get. It is the caller's, which may differ from memleak's own.
    pub fn of_the_command() -> Self {
        let get = |name: &str| inherited::variable(OsStr::new(name)).unwrap_or_default();
        Environment {
            library_path: get("LD_LIBRARY_PATH"),
            preload: get("LD_PRELOAD"),
        }
    }
}
