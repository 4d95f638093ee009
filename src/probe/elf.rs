//! Finds a file's allocator functions, and where in each its probe goes. Reads one ELF file, attaches
//! nothing.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;

use anyhow::{Context, Result};
use object::elf::DT_DEBUG;

use super::placement::{Placement, place_at_entry, place_x86_64};
use super::symbols::{self, Companions, Function, Names, Source};
use super::table::Row;
use crate::elf_file::{ElfFile, Segment, Shape};
use crate::root::Root;

/// How much of a function is decoded at the most: enough to see the jumps that land near its entry.
const DECODED: u64 = 4096;

/// A function to probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site {
    pub row: Row,
    /// The symbol found at this address; of several, the first in the row.
    pub symbol: String,
    /// The probe's offset in the file.
    pub file_offset: u64,
    pub placement: Placement,
    /// Bytes of the allocator's code before the probe, and from it on: of the executable segment in a
    /// library, of the function in a program, whose segment is its own code, too.
    pub text_before: u64,
    pub text_after: u64,
}

/// How a process comes by a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    /// It is what is executed. A static one has its allocator in it, and symbols that nobody binds to.
    Program,
    /// The loader maps it for a program, or it is the loader.
    Library,
}

impl Role {
    fn of(elf: &ElfFile) -> Self {
        match elf.shape() {
            Shape::Static | Shape::StaticPie => Role::Program,
            // A library may have an interpreter, too (libc has); a program wants a place for `_r_debug`.
            Shape::Dynamic if elf.dynamic().get(DT_DEBUG).is_some() => Role::Program,
            Shape::Dynamic | Shape::Library => Role::Library,
        }
    }
}

/// What a look at a file's symbols found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    pub sites: Vec<Site>,
    /// Names of required rows without a symbol.
    pub missing: Vec<&'static str>,
    /// Whether it is a static program: what it lacks, it never calls.
    pub is_static: bool,
    /// Whether it is a static program of which neither a symbol table nor debug data names any function: it
    /// may have an allocator all the same.
    pub stripped: bool,
    /// Whether it is a dynamic loader.
    pub is_loader: bool,
    /// Where a loader tells of what it has mapped before it runs any of it: offsets in the file.
    pub loader_hooks: Vec<u64>,
    /// Whether it starts programs, as the C library does.
    pub is_libc: bool,
}

impl Findings {
    /// Whether the file is an allocator: it gives blocks and takes them back. One that defines only some of
    /// the functions (a tool that intercepts malloc, say) passes its calls on to one that is.
    /// A loader's own allocator (glibc's up to 2.30 exports it) serves the loader until the C library is there;
    /// musl's loader is the C library.
    pub fn is_allocator(&self) -> bool {
        if self.is_loader && !self.is_libc {
            return false;
        }
        let has = |name| self.sites.iter().any(|site| site.row.name == name);
        has("malloc") && (has("free") || self.is_static)
    }
}

/// The name by which a C library is known: a loader that has it is one.
const START: &str = "__libc_start_main";

/// Looks for the functions of `rows` in an open ELF file. `path` is where those who map the file see it below
/// `root`, for messages and to find what was split off the file.
///
/// # Errors
/// The file is no ELF file of this machine ([`Unreadable`] says what it is), or is damaged.
///
/// [`Unreadable`]: crate::elf_file::Unreadable
pub fn find_sites(file: &File, path: &Path, root: &Root, rows: &[Row]) -> Result<Findings> {
    let elf = ElfFile::open(file).with_context(|| format!("cannot read {}", path.display()))?;
    let role = Role::of(&elf);
    let is_static = role == Role::Program && !elf.has_interpreter();
    let of_rows = rows.iter().flat_map(|row| row.symbols).copied();
    let names = Names::new(of_rows.chain([symbols::DEBUG_STATE, START]));
    // A library's users find its functions by what it exports; a program's own need no such names.
    let companions = (role == Role::Program).then_some(Companions { root, path });
    let found = symbols::find(&elf, &names, companions)
        .with_context(|| format!("cannot read the symbols of {}", path.display()))?;
    let exports = |name| {
        let mut functions = found.functions.iter();
        functions.any(|function| function.source == Source::Exported && function.name == name)
    };
    let is_loader = exports(symbols::DEBUG_STATE) || symbols::exports(&elf, "_rtld_global");
    let is_libc = exports(START);
    let by_address = by_address(&found.functions, is_static, rows);
    let missing = rows
        .iter()
        .filter(|row| {
            row.required
                && !by_address
                    .values()
                    .any(|(found, ..)| found.name == row.name)
        })
        .map(|row| row.name)
        .collect();
    let mut sites = Vec::new();
    for (address, (row, symbol, size)) in by_address {
        let segment = elf.text_segment(address).with_context(|| {
            format!(
                "{symbol} in {} lies outside its executable segment",
                path.display()
            )
        })?;
        let in_segment = address - segment.address;
        let placement = if cfg!(target_arch = "x86_64") {
            let code = code(&elf, segment, in_segment, size)?;
            place_x86_64(&code, &row.action.arguments())
        } else {
            place_at_entry()
        };
        let before = in_segment + placement.offset;
        let (text_before, text_after) = match role {
            Role::Library => (before, segment.size - before),
            Role::Program => (placement.offset, size.saturating_sub(placement.offset)),
        };
        sites.push(Site {
            row: *row,
            symbol,
            file_offset: segment.offset + before,
            text_before,
            text_after,
            placement,
        });
    }
    Ok(Findings {
        sites,
        missing,
        is_static,
        stripped: is_static && !found.has_functions,
        is_loader,
        loader_hooks: symbols::loader_hooks(&elf)?,
        is_libc,
    })
}

/// The functions that a row names, each address once.
fn by_address<'row>(
    functions: &[Function],
    is_static: bool,
    rows: &'row [Row],
) -> BTreeMap<u64, (&'row Row, String, u64)> {
    let mut found: BTreeMap<u64, (&Row, usize, &Function)> = BTreeMap::new();
    for function in functions {
        // In a static program the linker makes hidden functions local; elsewhere a local one of such a name
        // is a function of the file's own.
        if function.local && !is_static {
            continue;
        }
        let place = rows.iter().find_map(|row| {
            row.symbols
                .iter()
                .position(|&candidate| candidate == function.name)
                .map(|at| (row, at))
        });
        let Some((row, at)) = place else { continue };
        // An address with several of a row's names goes by the first of them.
        let better = |(_, other, _): &(_, usize, _)| at < *other;
        if found.get(&function.address).is_none_or(better) {
            found.insert(function.address, (row, at, function));
        }
    }
    let of_address = |(address, (row, _, function)): (u64, (_, _, &Function))| {
        (address, (row, function.name.to_owned(), function.size))
    };
    found.into_iter().map(of_address).collect()
}

/// The function at `address`, or as much of it as is decoded.
fn code(elf: &ElfFile, segment: &Segment, in_segment: u64, function_size: u64) -> Result<Vec<u8>> {
    let wanted = if function_size == 0 {
        super::placement::WINDOW as u64
    } else {
        function_size
    };
    let size = wanted.min(DECODED).min(segment.size - in_segment);
    (segment.offset.checked_add(in_segment))
        .and_then(|offset| elf.read(offset, size))
        .context("the file ends within a function")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::elf_file::{Class, Unreadable};
    use crate::probe::table::LIBC;
    use std::fs;

    fn findings(path: &Path) -> Result<Findings> {
        find_sites(&File::open(path)?, path, &Root::ours(), &LIBC)
    }

    /// A library with these functions.
    fn library(directory: &Path, names: &[&str]) -> Findings {
        let path = directory.join("library");
        let source: String = names
            .iter()
            .map(|name| format!("void {name}(void) {{}}\n"))
            .collect();
        let source_path = directory.join("library.c");
        fs::write(&source_path, source).unwrap();
        let output = std::process::Command::new("cc")
            .args(["-shared", "-fPIC", "-nostdlib", "-fno-builtin", "-o"])
            .args([&path, &source_path])
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        findings(&path).unwrap()
    }

    #[test]
    fn a_loader_is_an_allocator_only_if_it_is_the_c_library() {
        let directory = tempfile::tempdir().unwrap();
        let library = |names: &[&str]| library(directory.path(), names);
        assert!(library(&["malloc", "free"]).is_allocator());
        // glibc's until 2.30
        for mark in ["_dl_debug_state", "_rtld_global"] {
            let loader = library(&["malloc", "free", mark]);
            assert!(loader.is_loader && !loader.is_allocator(), "{mark}");
        }
        // musl's
        let loader = library(&["malloc", "free", "_dl_debug_state", START]);
        assert!(loader.is_loader && loader.is_libc && loader.is_allocator());
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn this_systems_loaders_are_known() {
        let glibc = findings(Path::new("/lib64/ld-linux-x86-64.so.2")).unwrap();
        assert!(glibc.is_loader && !glibc.is_allocator());
        let musl = findings(Path::new("/lib/ld-musl-x86_64.so.1")).unwrap();
        assert!(musl.is_loader && musl.is_allocator());
    }

    #[test]
    fn a_static_program_without_symbols_is_stripped() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("program");
        let script = "echo 'int main(void) { return 0; }' | cc -static -x c -o $0 -";
        let sh = |script: &str| {
            let status = std::process::Command::new("sh")
                .args(["-ec", script])
                .arg(&path)
                .status();
            assert!(status.unwrap().success());
        };
        sh(script);
        let whole = findings(&path).unwrap();
        assert!(whole.is_static && !whole.stripped && whole.is_allocator());
        sh("strip $0");
        let stripped = findings(&path).unwrap();
        assert!(stripped.is_static && stripped.stripped && !stripped.is_allocator());
    }

    #[test]
    fn what_a_file_is_can_be_told_from_the_error() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        let mut bytes = b"\x7fELF\x01\x01\x01".to_vec();
        bytes.resize(52, 0);
        for (bytes, expected) in [(&bytes[..], Class::Bits32), (b"#!/bin/sh", Class::NotElf)] {
            fs::write(&path, bytes).unwrap();
            let error = findings(&path).unwrap_err();
            let class = match error.downcast_ref::<Unreadable>() {
                Some(Unreadable::Class(class)) => *class,
                other => panic!("{other:?}"),
            };
            assert_eq!(class, expected);
        }
    }
}
