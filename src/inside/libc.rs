//! Reads the C library that is to be edited: its segments, its sections, its exported symbols. All of it is checked
//! against the length of the file.

use std::collections::HashMap;
use std::ops::Range;

use object::LittleEndian as LE;
use object::elf::{
    EM_X86_64, ET_DYN, FileHeader64, PF_X, PT_LOAD, ProgramHeader64, SHN_UNDEF, SHT_DYNSYM,
    STT_FUNC, STT_OBJECT, SectionHeader64, Sym64,
};
use object::read::SectionIndex;
use object::read::elf::{FileHeader as _, SectionTable};

use crate::inside::unfit::Unfit;

/// A C library.
pub(super) struct CLibrary<'data> {
    pub(super) bytes: &'data [u8],
    pub(super) header: &'data FileHeader64<LE>,
    pub(super) segments: &'data [ProgramHeader64<LE>],
    pub(super) sections: &'data [SectionHeader64<LE>],
    pub(super) section_table: SectionTable<'data, FileHeader64<LE>>,
    pub(super) exported: HashMap<&'data str, Vec<LibrarySymbol>>,
}

/// An exported symbol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LibrarySymbol {
    /// Where the symbol is in the file.
    pub(super) at: usize,
    pub(super) value: u64,
    pub(super) size: u64,
    pub(super) is_function: bool,
    pub(super) is_object: bool,
    /// Only programs that were linked long ago find it.
    pub(super) is_old: bool,
}

/// The bit of a symbol's version that says so.
const OLD: u16 = 0x8000;

impl<'data> CLibrary<'data> {
    pub(super) fn read(bytes: &'data [u8]) -> Result<Self, Unfit> {
        let header = FileHeader64::<LE>::parse(bytes)?;
        if header.e_machine.get(LE) != EM_X86_64 || header.e_type.get(LE) != ET_DYN {
            return Err(Unfit::Machine);
        }
        let segments = header.program_headers(LE, bytes)?;
        let section_table = header.sections(LE, bytes)?;
        let sections = header.section_headers(LE, bytes)?;
        let symbols = section_table.symbols(LE, bytes, SHT_DYNSYM)?;
        let versions = section_table.gnu_versym(LE, bytes)?;
        let (versions, _) = versions.ok_or(Unfit::Lacks("versions of symbols"))?;
        let table = section_table.section(symbols.section())?;
        let first = usize::try_from(table.sh_offset.get(LE)).map_err(|_| Unfit::Layout)?;
        let mut exported: HashMap<_, Vec<_>> = HashMap::new();
        for (index, symbol) in symbols.iter().enumerate() {
            let name = symbols.symbol_name(LE, symbol).unwrap_or_default();
            let name = str::from_utf8(name).unwrap_or_default();
            if symbol.st_shndx.get(LE) == SHN_UNDEF || name.is_empty() {
                continue;
            }
            let version = versions.get(index).map_or(0, |version| version.0.get(LE).0);
            exported.entry(name).or_default().push(LibrarySymbol {
                at: first + index * size_of::<Sym64<LE>>(),
                value: symbol.st_value.get(LE),
                size: symbol.st_size.get(LE),
                is_function: symbol.st_type() == STT_FUNC,
                is_object: symbol.st_type() == STT_OBJECT,
                is_old: version & OLD != 0,
            });
        }
        Ok(Self {
            bytes,
            header,
            segments,
            sections,
            section_table,
            exported,
        })
    }

    /// The symbol of this name that programs are linked with.
    pub(super) fn current(&self, name: &str) -> Option<LibrarySymbol> {
        let symbols = self.exported.get(name)?;
        symbols.iter().find(|symbol| !symbol.is_old).copied()
    }

    /// The segments that are loaded.
    pub(super) fn loaded(&self) -> impl Iterator<Item = &'data ProgramHeader64<LE>> + use<'data> {
        let segments = self.segments.iter();
        segments.filter(|segment| segment.p_type.get(LE) == PT_LOAD)
    }

    /// The content of a segment in the file.
    pub(super) fn content(&self, segment: &ProgramHeader64<LE>) -> Result<&'data [u8], Unfit> {
        let range = range(segment.p_offset.get(LE), segment.p_filesz.get(LE))?;
        self.bytes.get(range).ok_or(Unfit::Layout)
    }

    /// The segments with code: the address and the content of each.
    pub(super) fn code(&self) -> Result<Vec<(u64, &'data [u8])>, Unfit> {
        let code = self
            .loaded()
            .filter(|segment| segment.p_flags.get(LE).contains(PF_X));
        code.map(|segment| Ok((segment.p_vaddr.get(LE), self.content(segment)?)))
            .collect()
    }

    /// The name of a section.
    pub(super) fn section_name(&self, index: usize) -> &'data [u8] {
        let section = self.section_table.section(SectionIndex(index));
        let name = section.and_then(|section| self.section_table.section_name(LE, section));
        name.unwrap_or_default()
    }
}

/// A range of a file.
pub(super) fn range(offset: u64, size: u64) -> Result<Range<usize>, Unfit> {
    let end = offset.checked_add(size).ok_or(Unfit::Layout)?;
    let convert = |at| usize::try_from(at).map_err(|_| Unfit::Layout);
    Ok(convert(offset)?..convert(end)?)
}
