//! Finds the C library that commands use on this machine, and the places of its probes. The search is that of
//! `memleak run` for a shell (`find`). What the result means is decided in `verdict`.

use std::io::Read;
use std::iter;
use std::path::PathBuf;

use anyhow::Result;

use crate::find::functions::Table;
use crate::find::loader::Environment;
use crate::find::sites::ProbeSite;
use crate::find::{self, Examined, NotTheLibrary};

/// How many bytes of a C library are searched for its version.
const SEARCHED: u64 = 16 << 20;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Libc {
    pub path: PathBuf,
    /// Its name and version, for example `glibc 2.36`.
    pub name: String,
    pub sites: Vec<ProbeSite>,
}

/// Why the C library's functions cannot be probed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unusable {
    pub found: String,
    pub remedy: &'static str,
}

/// The C library of /bin/sh. `None` if /bin/sh has no C library in a file of its own.
///
/// # Errors
/// The functions of the C library cannot be probed.
pub fn find() -> Result<Option<Libc>, Unusable> {
    look().map_err(|error| match error.downcast_ref::<NotTheLibrary>() {
        Some(error) => Unusable {
            found: error.what(),
            remedy: NotTheLibrary::REMEDY,
        },
        None => Unusable {
            found: format!("{error:#}"),
            remedy: "reinstall it",
        },
    })
}

fn look() -> Result<Option<Libc>> {
    let table = Table::new(Vec::new())?;
    let environment = Environment::of_the_command();
    let files = find::at_start(iter::empty(), &environment, &table)?;
    let libc = files
        .into_iter()
        .find(|file| file.findings.is_libc && file.findings.is_allocator());
    Ok(libc.map(|file| Libc {
        name: name(&file),
        path: file.path,
        sites: file.findings.sites,
    }))
}

fn name(file: &Examined) -> String {
    let is_musl = file.findings.is_loader;
    if is_musl {
        return "musl".to_owned();
    }
    match version(file) {
        Some(version) => format!("glibc {version}"),
        None => "glibc".to_owned(),
    }
}

/// The version in the banner of glibc: `GNU C Library (…) stable release version 2.36.`
fn version(file: &Examined) -> Option<String> {
    let mut bytes = Vec::new();
    (&file.file).take(SEARCHED).read_to_end(&mut bytes).ok()?;
    let banner = memchr::memmem::find(&bytes, b"GNU C Library ")?;
    let banner = bytes.get(banner..)?.split(|&byte| byte == b'\n').next()?;
    let banner = std::str::from_utf8(banner).ok()?;
    let version = banner.split_once("release version ")?.1;
    let other = |c: char| !c.is_ascii_digit() && c != '.';
    let version = version.split(other).next()?;
    Some(version.trim_end_matches('.').to_owned())
}
