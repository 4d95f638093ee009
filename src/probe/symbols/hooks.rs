//! Where a dynamic loader lets others know that it maps and unmaps libraries.

use object::elf::SHT_NOTE;

use super::{Names, Source, find};
use crate::elf_file::{ElfFile, Unreadable};

/// `NT_STAPSDT`: a probe of SystemTap's kind, which is a `nop` and a note of where it is.
const STAPSDT: u32 = 3;

/// Who the notes are by: glibc's loader.
const PROVIDER: &[u8] = b"rtld";

/// The empty function that debuggers break on, of every loader that knows them.
pub const DEBUG_STATE: &str = "_dl_debug_state";

/// A place in a loader's code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hook {
    /// `init_start`, `init_complete`, `map_start`, `map_complete`, `reloc_complete`, `unmap_complete` and others
    /// of glibc's probes, or `_dl_debug_state`.
    pub name: String,
    pub file_offset: u64,
}

/// The places that glibc's loader marks with notes; where it has none (or it is musl's), the function that it
/// calls before and after each change of what is mapped. None where the file is not a loader.
///
/// # Errors
/// The file's tables are damaged.
pub fn loader_hooks(elf: &ElfFile) -> Result<Vec<Hook>, Unreadable> {
    let hooks = marked(elf);
    if !hooks.is_empty() {
        return Ok(hooks);
    }
    let found = find(elf, &Names::new([DEBUG_STATE]), None)?;
    let state = found
        .functions
        .iter()
        .find(|function| function.source == Source::Exported);
    let offset = state.and_then(|function| offset_of(elf, function.address));
    Ok(offset
        .map(|file_offset| Hook {
            name: DEBUG_STATE.to_owned(),
            file_offset,
        })
        .into_iter()
        .collect())
}

/// The notes of the provider `rtld`. They lie in no segment, so without section headers there are none.
fn marked(elf: &ElfFile) -> Vec<Hook> {
    let Some(notes) = elf.section_named(".note.stapsdt") else {
        return Vec::new();
    };
    if notes.kind != SHT_NOTE {
        return Vec::new();
    }
    let base = elf.section_named(".stapsdt.base").map(|base| base.address);
    let hook = |content: &[u8]| {
        let word = |at: usize| -> Option<u64> {
            Some(u64::from_le_bytes(
                content.get(at..at + 8)?.try_into().ok()?,
            ))
        };
        // The address of the nop, that which the section .stapsdt.base then had, that of a semaphore; and
        // provider, name, arguments. Prelinking moves the sections and leaves the notes as they are.
        let (address, noted_base) = (word(0)?, word(8)?);
        let mut words = content.get(24..)?.split(|&byte| byte == 0);
        if words.next()? != PROVIDER {
            return None;
        }
        let name = std::str::from_utf8(words.next()?).ok()?.to_owned();
        let moved = base.map_or(0, |base| base.wrapping_sub(noted_base));
        Some(Hook {
            name,
            file_offset: offset_of(elf, address.wrapping_add(moved))?,
        })
    };
    elf.notes(notes.range())
        .iter()
        .filter(|note| note.kind == STAPSDT && note.owner == b"stapsdt")
        .filter_map(|note| hook(&note.content))
        .collect()
}

fn offset_of(elf: &ElfFile, address: u64) -> Option<u64> {
    elf.text_segment(address)?;
    Some(elf.mapped_at(address)?.start)
}
