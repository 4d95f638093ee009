//! Finds a file's allocator functions, and where in each its probe goes. Reads one ELF file, attaches
//! nothing.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;

use anyhow::{Context, Result, bail};
use object::elf::{
    DF_1_PIE, DT_DEBUG, DT_FLAGS_1, Dyn64, ET_EXEC, PF_X, PT_INTERP, PT_LOAD, SHT_DYNSYM,
    SHT_SYMTAB, STB_LOCAL, STT_FUNC, SectionHeader64, Sym64,
};
use object::read::ReadCache;
use object::read::elf::{
    Dyn, ElfFile64, ElfSymbol64, FileHeader, ProgramHeader, SectionHeader, Sym,
};
use object::{Architecture, Endianness, Object, ObjectSymbol};

use super::loader_hook;
use super::placement::{Placement, place_at_entry, place_x86_64};
use super::table::Row;

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

/// What a look at a file's symbols found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    pub sites: Vec<Site>,
    /// Names of required rows without a symbol.
    pub missing: Vec<&'static str>,
    /// Whether it is a static program: what it lacks, it never calls.
    pub is_static: bool,
    /// Whether it is a static program without any symbols: nothing can be found in it.
    pub is_stripped: bool,
    /// Where it tells of what it has mapped, if it is a dynamic loader: offsets in the file.
    pub loader_hooks: Vec<u64>,
}

type Elf<'data> = ElfFile64<'data, Endianness, &'data ReadCache<File>>;

impl Findings {
    /// Whether the file is an allocator: it gives blocks and takes them back. One that defines only some of
    /// the functions (a tool that intercepts malloc, say) passes its calls on to one that is.
    pub fn is_allocator(&self) -> bool {
        let has = |name| self.sites.iter().any(|site| site.row.name == name);
        has("malloc") && (has("free") || self.is_static)
    }
}

/// Looks for the functions of `rows` in an open ELF file. `path` is for messages only.
///
/// # Errors
/// The file is not a 64-bit ELF file of an architecture that memleak knows, or is damaged.
pub fn find_sites(file: File, path: &Path, rows: &[Row]) -> Result<Findings> {
    let cache = ReadCache::new(file);
    let elf: Elf<'_> = ElfFile64::parse(&cache)
        .with_context(|| format!("cannot read {} as ELF", path.display()))?;
    let role = role(&elf);
    let is_static = role == Role::Program && !has_interpreter(&elf);
    let by_address = symbols_of(&elf, role, is_static, rows)
        .with_context(|| format!("cannot read the symbols of {}", path.display()))?;
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
        let segment = text_segment(&elf, address).with_context(|| {
            format!(
                "{symbol} in {} lies outside its executable segment",
                path.display()
            )
        })?;
        let in_segment = address - segment.address;
        let code = segment.code(&cache, in_segment, size)?;
        let placement = match elf.architecture() {
            Architecture::X86_64 => place_x86_64(code, &row.action.arguments()),
            Architecture::Aarch64 => place_at_entry(),
            other => bail!(
                "{} is for {other:?}, which memleak does not know",
                path.display()
            ),
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
        is_stripped: is_static && elf.symbols().next().is_none(),
        loader_hooks: loader_hooks(&elf, &cache).unwrap_or_default(),
    })
}

/// A file that is executed says so: it has a fixed address, or asks to be told of by `_r_debug`. Libraries
/// may have an interpreter, too (libc has).
fn role(elf: &Elf<'_>) -> Role {
    let endian = elf.endian();
    let dynamic = elf
        .elf_section_table()
        .dynamic(endian, elf.data())
        .ok()
        .flatten();
    let entries = dynamic.map_or(&[][..], |(entries, _)| entries);
    let is_program = |entry: &Dyn64<Endianness>| match entry.tag(endian) {
        DT_DEBUG => true,
        DT_FLAGS_1 => entry.val(endian) & u64::from(DF_1_PIE.0) != 0,
        _ => false,
    };
    if elf.elf_header().e_type(endian) == ET_EXEC || entries.iter().any(is_program) {
        Role::Program
    } else {
        Role::Library
    }
}

/// Where a dynamic loader calls the function that exists for debuggers; nowhere in other files.
fn loader_hooks(elf: &Elf<'_>, cache: &ReadCache<File>) -> Option<Vec<u64>> {
    let named = |symbol: &ElfSymbol64<'_, '_, _, _>| {
        !symbol.is_undefined() && symbol.name_bytes() == Ok(loader_hook::SYMBOL.as_bytes())
    };
    let function = elf.dynamic_symbols().find(named)?.address();
    let segment = text_segment(elf, function)?;
    let in_segment = function - segment.address;
    let text = object::ReadRef::read_bytes_at(cache, segment.offset, segment.size).ok()?;
    let mut calls = match elf.architecture() {
        Architecture::X86_64 => loader_hook::calls(text, in_segment),
        _ => Vec::new(),
    };
    if calls.is_empty() {
        calls.push(in_segment);
    }
    Some(calls.into_iter().map(|at| segment.offset + at).collect())
}

/// The defined global functions that a row names, each address once.
///
/// Reads the symbols and their names in one piece each: a look at every name by itself would be thousands
/// of system calls.
fn symbols_of<'row>(
    elf: &Elf<'_>,
    role: Role,
    is_static: bool,
    rows: &'row [Row],
) -> object::Result<BTreeMap<u64, (&'row Row, String, u64)>> {
    let (endian, data) = (elf.endian(), elf.data());
    let mut found: BTreeMap<u64, (&Row, usize, String, u64)> = BTreeMap::new();
    let sections = elf.elf_section_table();
    let names_functions = |section: &&SectionHeader64<Endianness>| match section.sh_type(endian) {
        SHT_DYNSYM => true,
        SHT_SYMTAB => role == Role::Program,
        _ => false,
    };
    for section in sections.iter().filter(names_functions) {
        let symbols: &[Sym64<Endianness>] = section.data_as_array(endian, data)?;
        let names = sections.section(section.link(endian))?.data(endian, data)?;
        for symbol in symbols {
            let address = symbol.st_value(endian);
            // In a static program the linker makes hidden functions local; nobody else could have
            // such names.
            let is_function =
                symbol.st_type() == STT_FUNC && (is_static || symbol.st_bind() != STB_LOCAL);
            if !is_function || symbol.is_undefined(endian) || address == 0 {
                continue;
            }
            let Some(name) = name_at(names, symbol.st_name(endian)) else {
                continue;
            };
            let place = rows.iter().find_map(|row| {
                row.symbols
                    .iter()
                    .position(|&candidate| candidate == name)
                    .map(|at| (row, at))
            });
            let Some((row, at)) = place else { continue };
            // An address with several of a row's names goes by the first of them.
            if found.get(&address).is_none_or(|(_, other, ..)| at < *other) {
                found.insert(address, (row, at, name.to_owned(), symbol.st_size(endian)));
            }
        }
    }
    let of_address = |(address, (row, _, name, size))| (address, (row, name, size));
    Ok(found.into_iter().map(of_address).collect())
}

fn has_interpreter(elf: &Elf<'_>) -> bool {
    let segments = elf.elf_program_headers();
    segments
        .iter()
        .any(|segment| segment.p_type(elf.endian()) == PT_INTERP)
}

fn name_at(names: &[u8], at: u32) -> Option<&str> {
    let rest = names.get(usize::try_from(at).ok()?..)?;
    std::str::from_utf8(rest.split(|&byte| byte == 0).next()?).ok()
}

struct Segment {
    /// Virtual address in the file, offset in the file, bytes in the file.
    address: u64,
    offset: u64,
    size: u64,
}

impl Segment {
    /// The function at `start` in the segment, or as much of it as is decoded.
    fn code<'data>(
        &self,
        cache: &'data ReadCache<File>,
        start: u64,
        function_size: u64,
    ) -> Result<&'data [u8]> {
        let wanted = if function_size == 0 {
            super::placement::WINDOW as u64
        } else {
            function_size
        };
        let size = wanted.min(DECODED).min(self.size - start);
        object::ReadRef::read_bytes_at(cache, self.offset + start, size)
            .map_err(|()| anyhow::anyhow!("the file ends within a function"))
    }
}

/// The executable segment that holds `address`.
fn text_segment(elf: &Elf<'_>, address: u64) -> Option<Segment> {
    let endian = elf.endian();
    elf.elf_program_headers().iter().find_map(|header| {
        let segment = Segment {
            address: header.p_vaddr(endian),
            offset: header.p_offset(endian),
            size: header.p_filesz(endian),
        };
        let holds = header.p_type(endian) == PT_LOAD
            && header.p_flags(endian).contains(PF_X)
            && address
                .checked_sub(segment.address)
                .is_some_and(|at| at < segment.size);
        holds.then_some(segment)
    })
}
