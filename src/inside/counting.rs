//! The compiled code of `inside/`, and how it is placed in a library. Its references are resolved here, so the library
//! has no more relocations than before.

use std::collections::HashMap;

use object::LittleEndian as LE;
use object::elf::{
    FileHeader64, R_X86_64_PC32, R_X86_64_PLT32, Rela64, SHF_ALLOC, SHF_EXECINSTR, SHN_UNDEF,
    SHT_NOBITS, SHT_NOTE, SHT_RELA, SHT_SYMTAB, SectionHeader64, Sym64,
};
use object::pod;
use object::read::SymbolIndex;
use object::read::elf::{FileHeader as _, SymbolTable};

use crate::inside::libc::range;
use crate::inside::unfit::Unfit;

/// The code of `inside/`, compiled. `None`: there is none for this machine.
pub(super) const COUNTING: Option<&[u8]> = {
    #[cfg(target_arch = "x86_64")]
    {
        Some(include_bytes!(concat!(env!("OUT_DIR"), "/inside.o")))
    }
    #[cfg(not(target_arch = "x86_64"))]
    None
};

/// What separates the parts of the code.
const ALIGN: u64 = 64;

/// The page size that programs are linked for.
pub(super) const PAGE: u64 = 4096;

/// The end of unwind tables.
const NO_RECORD: [u8; 4] = [0; 4];

/// The next multiple of `align`, a power of two.
pub(super) fn aligned(value: u64, align: u64) -> u64 {
    value.saturating_add(align - 1) & !(align - 1)
}

/// The code, not yet at an address.
pub(super) struct Counting<'data> {
    bytes: &'data [u8],
    sections: &'data [SectionHeader64<LE>],
    symbols: SymbolTable<'data, FileHeader64<LE>>,
    /// The sections with code, by their indexes.
    code: Vec<usize>,
    unwind: usize,
    memory: usize,
}

/// The code at its address.
pub(super) struct Placed {
    /// The code, and the unwind tables behind it.
    pub(super) bytes: Vec<u8>,
    pub(super) code_size: u64,
    pub(super) unwind_at: u64,
    /// The code's own symbols.
    pub(super) symbols: HashMap<String, OwnSymbol>,
}

/// A symbol of the code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct OwnSymbol {
    pub(super) address: u64,
    pub(super) size: u64,
}

impl Placed {
    /// The unwind tables of the code.
    pub(super) fn unwind(&self) -> &[u8] {
        &self.bytes[self.code_size as usize..]
    }
}

impl<'data> Counting<'data> {
    pub(super) fn read(bytes: &'data [u8]) -> Result<Self, Unfit> {
        let header = FileHeader64::<LE>::parse(bytes)?;
        let table = header.sections(LE, bytes)?;
        let sections = header.section_headers(LE, bytes)?;
        let symbols = table.symbols(LE, bytes, SHT_SYMTAB)?;
        let (mut code, mut unwind, mut memory) = (Vec::new(), None, None);
        for (index, section) in sections.iter().enumerate() {
            let (kind, flags) = (section.sh_type.get(LE), section.sh_flags.get(LE));
            if !flags.contains(SHF_ALLOC) || kind == SHT_NOTE || section.sh_size.get(LE) == 0 {
                continue;
            }
            if table.section_name(LE, section)? == b".eh_frame" {
                unwind = Some(index);
            } else if flags.contains(SHF_EXECINSTR) {
                code.push(index);
            } else if kind == SHT_NOBITS && memory.is_none() {
                memory = Some(index);
            } else {
                return Err(Unfit::Damaged("the code to add has other data".to_owned()));
            }
        }
        Ok(Self {
            bytes,
            sections,
            symbols,
            code,
            unwind: unwind.ok_or(Unfit::Lacks("unwind tables in the code to add"))?,
            memory: memory.ok_or(Unfit::Lacks("memory in the code to add"))?,
        })
    }

    /// The bytes of memory that the code needs, all of them zero at first.
    pub(super) fn memory_size(&self) -> u64 {
        self.sections[self.memory].sh_size.get(LE)
    }

    /// The unwind tables, which are not relocated yet.
    pub(super) fn unwind(&self) -> Result<&'data [u8], Unfit> {
        self.content(self.unwind)
    }

    fn content(&self, index: usize) -> Result<&'data [u8], Unfit> {
        let section = &self.sections[index];
        let range = range(section.sh_offset.get(LE), section.sh_size.get(LE))?;
        self.bytes.get(range).ok_or(Unfit::Layout)
    }

    /// Where each section comes to be, by its index, if the code begins at `at`, and where the last one ends.
    fn addresses(&self, at: u64) -> (HashMap<usize, u64>, u64) {
        let mut end = at;
        let mut addresses = HashMap::new();
        for &index in self.code.iter().chain([&self.unwind]) {
            let begin = aligned(end, ALIGN);
            addresses.insert(index, begin);
            end = begin + self.sections[index].sh_size.get(LE);
        }
        (addresses, end + NO_RECORD.len() as u64)
    }

    /// Where the code and the unwind tables end if they begin at `at`.
    pub(super) fn end(&self, at: u64) -> u64 {
        self.addresses(at).1
    }

    /// Places the code at an address and its memory at another one. `others` has the addresses of the symbols that the
    /// code needs.
    pub(super) fn place(
        &self,
        at: u64,
        memory: u64,
        others: &HashMap<&str, u64>,
    ) -> Result<Placed, Unfit> {
        let (mut addresses, end) = self.addresses(at);
        let mut bytes = vec![0; (end - at) as usize];
        for (&index, &address) in &addresses {
            let content = self.content(index)?;
            let start = (address - at) as usize;
            bytes[start..start + content.len()].copy_from_slice(content);
        }
        let unwind_at = addresses[&self.unwind];
        addresses.insert(self.memory, memory);
        let address_of = |symbol: &Sym64<LE>| -> Result<u64, Unfit> {
            let section = symbol.st_shndx.get(LE);
            if section == SHN_UNDEF {
                let name = self.symbols.symbol_name(LE, symbol)?;
                let known = str::from_utf8(name).ok().and_then(|name| others.get(name));
                let unknown = || Unfit::Symbol(String::from_utf8_lossy(name).into_owned());
                return known.copied().ok_or_else(unknown);
            }
            let address = addresses.get(&usize::from(section.0));
            let address = address.ok_or_else(|| Unfit::Symbol("of the code to add".to_owned()))?;
            Ok(address + symbol.st_value.get(LE))
        };
        for relocations in self.sections {
            let to = addresses.get(&(relocations.sh_info.get(LE) as usize));
            let (SHT_RELA, Some(&to)) = (relocations.sh_type.get(LE), to) else {
                continue;
            };
            let range = range(relocations.sh_offset.get(LE), relocations.sh_size.get(LE))?;
            let content = self.bytes.get(range).ok_or(Unfit::Layout)?;
            let entries: &[Rela64<LE>] =
                pod::slice_from_all_bytes(content).map_err(|()| Unfit::Layout)?;
            for entry in entries {
                let info = entry.r_info.get(LE);
                let kind = info as u32;
                if kind != R_X86_64_PC32.0 && kind != R_X86_64_PLT32.0 {
                    let text = format!("the code to add has a relocation of type {kind}");
                    return Err(Unfit::Damaged(text));
                }
                let symbol = self.symbols.symbol(SymbolIndex((info >> 32) as usize))?;
                let place = to + entry.r_offset.get(LE);
                let target = address_of(symbol)?.wrapping_add_signed(entry.r_addend.get(LE));
                let distance = i32::try_from(target.wrapping_sub(place).cast_signed());
                let distance = distance.map_err(|_| Unfit::Layout)?.to_le_bytes();
                let start = (place - at) as usize;
                let field = bytes.get_mut(start..start + distance.len());
                field.ok_or(Unfit::Layout)?.copy_from_slice(&distance);
            }
        }
        let mut symbols = HashMap::new();
        for symbol in self.symbols.iter() {
            let name = String::from_utf8_lossy(self.symbols.symbol_name(LE, symbol)?).into_owned();
            if let Ok(address) = address_of(symbol) {
                let size = symbol.st_size.get(LE);
                symbols.insert(name, OwnSymbol { address, size });
            }
        }
        Ok(Placed {
            bytes,
            code_size: unwind_at - at,
            unwind_at,
            symbols,
        })
    }
}
