//! Which files hold the allocator that a command is about to use.
//!
//! Answers with files; where probes go in them is the business of `probe`.

pub mod command;
pub mod ld_cache;
pub mod loader;

use std::ffi::OsStr;
use std::fs::File;
use std::iter;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};

use crate::inherited;
use crate::probe::elf::{Findings, Role, find_sites};
use crate::probe::table::Table;
use loader::Environment;

/// A file with an allocator in it, open, so that it stays the one that was looked at.
pub struct Allocator {
    pub path: PathBuf,
    pub file: File,
    pub findings: Findings,
}

/// Finds the files whose allocator functions a command, or the shell that may start for it, will map.
/// `candidates` are the paths at which the command is looked for, in order.
///
/// # Errors
/// No file with an allocator was found, or the one that must (the C library) lacks a required function.
pub fn find<'a>(
    candidates: impl Iterator<Item = &'a OsStr>,
    environment: &Environment,
    table: &Table,
) -> Result<Vec<Allocator>> {
    let mut files = Vec::new();
    // The command may be a script, a static program, or not there at all: then its children, or
    // nobody, use the system's C library, which is the one that the shell uses.
    for program in [
        command::executable(candidates),
        Some(PathBuf::from("/bin/sh")),
    ] {
        if let Some(program) = program
            && let Ok(mapped) = loader::mapped_at_start(&program, environment)
        {
            let roles = iter::once(Role::Program).chain(iter::repeat(Role::Library));
            files.extend(mapped.into_iter().zip(roles));
        }
    }
    let mut seen = Vec::new();
    let mut found = Vec::new();
    for (path, role) in files {
        let Ok(file) = File::open(&path) else {
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
        let reading = file
            .try_clone()
            .with_context(|| format!("cannot open {}", path.display()))?;
        // What is no ELF file of ours cannot be mapped by the command either.
        let Ok(findings) = find_sites(reading, &path, role, table) else {
            continue;
        };
        let is_libc = path.file_name().is_some_and(|name| name == "libc.so.6");
        ensure!(
            !is_libc || findings.missing.is_empty(),
            "{} has no symbol for {}: its symbol table is not the C library's; reinstall the package \
             that it belongs to",
            path.display(),
            findings.missing.join(", ")
        );
        if let Some((symbol, given_as)) = findings.user_missing.first() {
            bail!(
                "--allocator {given_as}: {} has no function '{symbol}' (nm and nm -D print those that it has)",
                path.display()
            );
        }
        if findings.is_allocator() {
            found.push(Allocator {
                path,
                file,
                findings,
            });
        }
    }
    ensure!(
        !found.is_empty(),
        "no C library found: neither the command nor /bin/sh is a dynamically linked program"
    );
    Ok(found)
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
