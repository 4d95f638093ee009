//! Finds a file's allocator functions, and where in each its probe goes. Reads one ELF file, attaches
//! nothing.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;

use anyhow::{Context, Result};
use object::Endianness;
use object::elf::{PT_INTERP, SHT_DYNSYM, SHT_SYMTAB, STB_LOCAL, STT_FUNC, SectionHeader64, Sym64};
use object::read::ReadCache;
use object::read::elf::{ElfFile64, ProgramHeader, SectionHeader, Sym};

use super::sites::{self, Found, Site};
use super::table::{Family, FileTable, Table};

/// How a process comes by a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It is what is executed. A static one has its allocator in it, and symbols that nobody binds to.
    Program,
    /// The loader maps it for a program.
    Library,
}

/// What a look at a file's symbols found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Findings {
    pub sites: Vec<Site>,
    /// What every C library must define, and this file does not.
    pub missing: Vec<&'static str>,
    /// The user's functions that this file should define and does not, each with the description that names
    /// it.
    pub user_missing: Vec<(String, String)>,
    /// Whether the user names functions of it.
    pub named_by_user: bool,
    allocates: bool,
    /// Whether it is a static program: what it lacks, it never calls.
    pub is_static: bool,
}

type Elf<'data> = ElfFile64<'data, Endianness, &'data ReadCache<File>>;

impl Findings {
    /// Whether the file is an allocator: see [`sites::is_allocator`]. A static program need not free.
    pub fn is_allocator(&self) -> bool {
        self.allocates
    }
}

/// Looks for the functions of a table in an open ELF file. `path` is for messages only.
///
/// # Errors
/// The file is not a 64-bit ELF file of an architecture that memleak knows, or is damaged.
pub fn find_sites(file: File, path: &Path, role: Role, table: &Table) -> Result<Findings> {
    let table = table.for_file(path, &file);
    let reading = file
        .try_clone()
        .with_context(|| format!("cannot read {}", path.display()))?;
    let cache = ReadCache::new(file);
    let elf: Elf<'_> = ElfFile64::parse(&cache)
        .with_context(|| format!("cannot read {} as ELF", path.display()))?;
    let is_static = role == Role::Program && !has_interpreter(&elf);
    let functions = symbols_of(&elf, role, is_static, &table)
        .with_context(|| format!("cannot read the symbols of {}", path.display()))?;
    let rows = functions.values().map(|found| &found.row);
    let is_users = |found: &Found| matches!(found.row.family, Family::User(_));
    let named_by_user = functions.values().any(is_users);
    let has_malloc = rows
        .clone()
        .any(|row| row.family == Family::Prefix("") && row.name == "malloc");
    Ok(Findings {
        allocates: named_by_user || sites::is_allocator(rows.clone()) || (is_static && has_malloc),
        missing: table.missing(rows.clone()),
        user_missing: table.user_missing(rows),
        named_by_user,
        is_static,
        sites: sites::place(&reading, path, role, functions, &table)?,
    })
}

/// The defined global functions that a row names, each address once.
///
/// Reads the symbols and their names in one piece each: a look at every name by itself would be thousands
/// of system calls.
fn symbols_of(
    elf: &Elf<'_>,
    role: Role,
    is_static: bool,
    table: &FileTable<'_>,
) -> object::Result<BTreeMap<u64, Found>> {
    let (endian, data) = (elf.endian(), elf.data());
    let mut found: BTreeMap<u64, (usize, Found)> = BTreeMap::new();
    let sections = elf.elf_section_table();
    let names_functions = |section: &&SectionHeader64<Endianness>| {
        matches!(section.sh_type(endian), SHT_DYNSYM | SHT_SYMTAB)
    };
    for section in sections.iter().filter(names_functions) {
        let exported = section.sh_type(endian) == SHT_DYNSYM || role == Role::Program;
        let symbols: &[Sym64<Endianness>] = section.data_as_array(endian, data)?;
        let names = sections.section(section.link(endian))?.data(endian, data)?;
        for symbol in symbols {
            let address = symbol.st_value(endian);
            let is_function = symbol.st_type() == STT_FUNC;
            if !is_function || symbol.is_undefined(endian) || address == 0 {
                continue;
            }
            let Some(name) = name_at(names, symbol.st_name(endian)) else {
                continue;
            };
            let Some((row, rank)) = table.find(name) else {
                continue;
            };
            // In a static program the linker makes hidden functions local; nobody else could have
            // such names.
            let local = symbol.st_bind() == STB_LOCAL || !exported;
            if local && !is_static && !row.may_be_local() {
                continue;
            }
            // An address with several names goes by the one whose row comes first.
            if found.get(&address).is_none_or(|(other, _)| rank < *other) {
                let function = Found {
                    row: row.clone(),
                    symbol: name.to_owned(),
                    size: symbol.st_size(endian),
                };
                found.insert(address, (rank, function));
            }
        }
    }
    Ok(found
        .into_iter()
        .map(|(address, (_, function))| (address, function))
        .collect())
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
