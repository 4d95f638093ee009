//! Which of some wanted functions a file defines, and where.
//!
//! Most files define none, and a process may wait for the answer. So the symbols are not gone through: the
//! exported ones are looked up by their hash (`exported`), as the loader does; of `.symtab`, where there
//! is one, first the names are searched, and the symbols are read only if one is there (`table`). What was
//! split off the file (`debug`) is read only where it can matter. `hooks` finds what a loader calls when it
//! maps libraries.

mod debug;
mod exported;
mod table;

use std::collections::HashMap;
use std::path::Path;

use exported::Exported;
use object::LittleEndian as LE;
use object::elf::{DT_SYMTAB, SHT_DYNSYM, SHT_SYMTAB, STB_LOCAL, STT_FUNC, Sym64, gnu_hash, hash};
use object::read::elf::Sym;

use crate::elf::file::{ElfFile, Unreadable};
use crate::os::root::Root;

/// The names that are looked for, prepared once for many files.
#[derive(Clone, Debug)]
pub struct Names<'n> {
    names: Vec<Name<'n>>,
    /// Which ends occur, and in which names.
    ends: Vec<bool>,
    by_end: HashMap<usize, Vec<&'n str>>,
    longest: usize,
}

#[derive(Clone, Copy, Debug)]
struct Name<'n> {
    text: &'n str,
    gnu_hash: u32,
    sysv_hash: u32,
}

impl<'n> Names<'n> {
    pub fn new(names: impl IntoIterator<Item = &'n str>) -> Self {
        let names: Vec<_> = names
            .into_iter()
            .map(|text| Name {
                text,
                gnu_hash: gnu_hash(text.as_bytes()),
                sysv_hash: hash(text.as_bytes()),
            })
            .collect();
        let mut ends = vec![false; table::ENDS];
        let mut by_end: HashMap<_, Vec<_>> = HashMap::new();
        for name in &names {
            let end = table::end_of(name.text.as_bytes());
            ends[end] = true;
            by_end.entry(end).or_default().push(name.text);
        }
        let longest = names.iter().map(|name| name.text.len()).max().unwrap_or(0);
        Self {
            names,
            ends,
            by_end,
            longest,
        }
    }
}

/// A defined function of a wanted name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Function<'n> {
    pub name: &'n str,
    /// Virtual address, as the file has it.
    pub address: u64,
    /// In bytes; 0 where it is not known.
    pub size: u64,
    /// Nothing outside the file can bind to it.
    pub local: bool,
    pub source: Source,
}

/// Where a function's name was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// The dynamic symbols: what the file exports.
    Exported,
    /// `.symtab`
    Symtab,
    /// `.gnu_debugdata`: a compressed `.symtab`, in the file itself.
    DebugData,
    /// A debug file of its own.
    DebugFile,
}

/// Where the debug file of a file may be.
#[derive(Clone, Copy, Debug)]
pub struct Companions<'a> {
    /// What the processes that map the file see as `/`.
    pub root: &'a Root,
    /// The file's path in there.
    pub path: &'a Path,
}

/// More functions of wanted names than these no file has.
const MAX_FUNCTIONS: usize = 1024;

/// What a file says of its functions.
#[derive(Debug, Default)]
pub struct Found<'n> {
    /// In the order of their sources; each address and name once.
    pub functions: Vec<Function<'n>>,
    /// Whether any function at all has a name, wanted or not. Looked into only with companions: whoever
    /// has no use for debug data has none for this.
    pub has_functions: bool,
}

/// Finds the functions of these names.
///
/// `companions` are consulted where the file has no `.symtab` with functions; pass `None` where nothing but
/// exported functions can matter: for a library, whose users find its functions by what it exports.
///
/// # Errors
/// A table that the loader would use is damaged. Damage to anything else hides what is in it.
pub fn find<'n>(
    elf: &ElfFile,
    names: &Names<'n>,
    companions: Option<Companions>,
) -> Result<Found<'n>, Unreadable> {
    let mut found = Found::default();
    if let Some(exported) = Exported::of(elf) {
        exported.find(names, &mut found.functions)?;
        found.has_functions = !found.functions.is_empty();
    } else if elf.dynamic().get(DT_SYMTAB).is_none() {
        // Without a dynamic section nobody links to these, but they are names all the same.
        for section in table::of_kind(elf, SHT_DYNSYM) {
            table::find(elf, &section, names, Source::Exported, &mut found)?;
        }
    }
    let mut has_symtab = false;
    for section in table::of_kind(elf, SHT_SYMTAB) {
        // A loader does not read it: damage in there makes the file no less usable.
        has_symtab |=
            table::find(elf, &section, names, Source::Symtab, &mut found).unwrap_or(false);
    }
    if !has_symtab && let Some(companions) = companions {
        debug::find(elf, names, companions, &mut found);
    }
    if !found.has_functions && companions.is_some() {
        found.has_functions = Exported::of(elf).is_some_and(|exported| exported.any_function());
    }
    let mut seen = Vec::new();
    found.functions.retain(|function| {
        let key = (function.address, function.name);
        let first = !seen.contains(&key);
        seen.push(key);
        first
    });
    Ok(found)
}

/// Whether the file exports a symbol of this name, a function or not.
pub fn exports(elf: &ElfFile, name: &str) -> bool {
    Exported::of(elf).is_some_and(|exported| exported.defines(name).unwrap_or(false))
}

/// Whether a symbol is a function of this file. An indirect function (`STT_GNU_IFUNC`) is not: what is
/// at its address chooses the function.
fn is_function(symbol: &Sym64<LE>) -> bool {
    symbol.st_type() == STT_FUNC && !symbol.is_undefined(LE) && symbol.st_value.get(LE) != 0
}

/// Adds a function to those found.
fn add<'n>(
    functions: &mut Vec<Function<'n>>,
    name: &'n str,
    symbol: &Sym64<LE>,
    source: Source,
) -> Result<(), Unreadable> {
    if functions.len() == MAX_FUNCTIONS {
        return Err(Unreadable::Damaged("the same functions again and again"));
    }
    functions.push(function(name, symbol, source));
    Ok(())
}

fn function<'n>(name: &'n str, symbol: &Sym64<LE>, source: Source) -> Function<'n> {
    Function {
        name,
        address: symbol.st_value.get(LE),
        size: symbol.st_size.get(LE),
        local: symbol.st_bind() == STB_LOCAL,
        source,
    }
}

#[cfg(test)]
pub(crate) mod built;
#[cfg(test)]
mod tests;
