//! Which of some wanted functions a file defines, and where.
//!
//! Most files define none, and a process may wait for the answer. So the symbols are not gone through: the
//! exported ones are looked up by their hash (`exported`), as the loader does; of `.symtab`, where there
//! is one, first the names are searched, and the symbols are read only if one is there (`symtab`). What was
//! split off the file (`debug`) is read only where it can matter. `hooks` finds what a loader calls when it
//! maps libraries.

mod debug;
mod exported;
mod names;
mod symtab;

pub use names::{Companions, Found, Function, Names, Source};

use exported::Exported;
use object::elf::{DT_SYMTAB, SHT_DYNSYM, SHT_SYMTAB};

use crate::elf::file::{ElfFile, Unreadable};

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
        for section in symtab::of_kind(elf, SHT_DYNSYM) {
            symtab::find(elf, &section, names, Source::Exported, &mut found)?;
        }
    }
    let mut has_symtab = false;
    for section in symtab::of_kind(elf, SHT_SYMTAB) {
        // A loader does not read it: damage in there makes the file no less usable.
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

/// Whether the file exports a symbol of this name, a function or not.
pub fn exports(elf: &ElfFile, name: &str) -> bool {
    Exported::of(elf).is_some_and(|exported| exported.defines(name).unwrap_or(false))
}

#[cfg(test)]
pub(crate) mod built;
#[cfg(test)]
mod tests;
