//! Which of some wanted functions a file defines, and where.
//!
//! Most files define none of them, and a process may wait for the answer. So the symbols are not read one by one:
//! - Exported symbols are looked up by their hash, as the loader does (`exported`).
//! - In `.symtab`, if the file has one, the names are searched first. The symbols are read only if a wanted name is
//!   there (`symtab`).
//! - Symbols that were split off the file are read only where they can matter (`debug`).
//!
//! What the functions do is left to `find`.

pub mod debug;
mod exported;
mod names;
pub mod symtab;

pub use names::{Companions, Found, FunctionSymbol, Names, Source};

use exported::Exported;
use object::elf::{DT_SYMTAB, SHT_DYNSYM, SHT_SYMTAB};

use crate::elf::file::{ElfFile, Unreadable};

/// Finds the functions of these names.
///
/// `companions` say where to look for debug data if the file has no `.symtab` with functions. Pass `None` if only
/// exported functions can matter. That is so for a library, since its users find its functions by its exported symbols.
///
/// # Errors
/// A table that the loader would use is damaged. Damage in any other table only hides the symbols in that table.
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
        // Without a dynamic section no other file links to these symbols, but they still name functions.
        for section in symtab::of_kind(elf, SHT_DYNSYM) {
            symtab::find(elf, &section, names, Source::Exported, &mut found)?;
        }
    }
    let mut has_symtab = false;
    for section in symtab::of_kind(elf, SHT_SYMTAB) {
        // A loader does not read `.symtab`, so the file stays usable if `.symtab` is damaged.
        has_symtab |=
            symtab::find(elf, &section, names, Source::Symtab, &mut found).unwrap_or(false);
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

/// The address of the symbol of this name that the file exports, a function or not.
pub fn exported(elf: &ElfFile, name: &str) -> Option<u64> {
    Exported::of(elf)?.address(name).ok()?
}

#[cfg(test)]
pub(crate) mod built;
#[cfg(test)]
mod tests;
