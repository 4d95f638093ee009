//! Reads the table by which an exception finds its way through a file's functions (`.eh_frame`). What a function's own
//! table of handlers says is left to `handlers`.
//!
//! The unwinder finds `.eh_frame` through the segment PT_GNU_EH_FRAME. In a static program without that segment, start
//! code that the compiler adds tells the unwinder where it is. The unwinder does not use `.debug_frame`.

use std::ops::Range;

use gimli::{
    BaseAddresses, CieOrFde, CommonInformationEntry, EhFrame, EhFrameHdr, LittleEndian,
    PartialFrameDescriptionEntry, Pointer, UnwindOffset, UnwindSection,
};
use object::elf::PT_GNU_EH_FRAME;

use crate::elf::file::ElfFile;
use crate::elf::handlers::Slice;

/// A file with a larger table is not looked into. That of the C++ compiler of GCC 12 (cc1plus) has 2.6 MB.
const MAX_BYTES: u64 = 4 << 20;

/// A file with more entries is not looked into. That compiler has 49,000.
const MAX_ENTRIES: usize = 1 << 18;

/// The header of the table: versions, encodings, and where the table is.
const MAX_HEADER: u64 = 32;

/// Which addresses of a file the unwinder knows.
#[derive(Debug, Default)]
pub struct UnwindTable {
    /// By address. They do not overlap.
    entries: Vec<Extent>,
    personalities: Vec<Personality>,
}

#[derive(Clone, Copy, Debug)]
struct Extent {
    start: u64,
    end: u64,
    /// Where the function's table of handlers is; 0: it has none.
    handlers: u64,
    /// An index in `personalities`.
    personality: u32,
}

/// The code that one entry of the table covers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Covered {
    pub range: Range<u64>,
    /// The address of the table of handlers, and the function that reads it when an exception comes.
    pub handlers: Option<(u64, Personality)>,
}

/// Where the address of a personality function is: the function that decides what an exception does in a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Personality {
    /// The function is at this address.
    At(u64),
    /// The pointer at this address holds the function's address.
    Pointer(u64),
}

impl UnwindTable {
    /// Reads a file's table. `None` if the table cannot be read to its end. A file without any table covers nothing.
    pub fn read(elf: &ElfFile<'_>) -> Option<Self> {
        let Some(place) = Whereabouts::of(elf)? else {
            return Some(UnwindTable::default());
        };
        let content = place.content(elf, MAX_BYTES)?;
        let mut table = UnwindTable::default();
        let end = content.each(|fde, _, _| table.add(fde))?;
        let bytes = &content.bytes;
        // Behind an early terminator there may be more. The linker puts one at the end, and may fill up with zeros.
        if place.is_whole && bytes.get(end..)?.iter().any(|&byte| byte != 0) {
            return None;
        }
        table.entries.sort_unstable_by_key(|entry| entry.start);
        let overlap = |pair: &[Extent]| pair[0].end > pair[1].start;
        (!table.entries.windows(2).any(overlap)).then_some(table)
    }

    fn add(&mut self, fde: &UnwindEntry<'_>) -> Option<()> {
        let (start, end) = (fde.initial_address(), fde.end_address());
        if start == end {
            return Some(());
        }
        if end < start || self.entries.len() == MAX_ENTRIES {
            return None;
        }
        let handlers = match fde.lsda() {
            None => 0,
            Some(Pointer::Direct(address)) => address,
            Some(Pointer::Indirect(_)) => return None,
        };
        let personality = match fde.personality() {
            // Without a personality nothing reads the table of handlers.
            None => {
                self.entries.push(Extent {
                    start,
                    end,
                    handlers: 0,
                    personality: 0,
                });
                return Some(());
            }
            Some(Pointer::Direct(address)) => Personality::At(address),
            Some(Pointer::Indirect(address)) => Personality::Pointer(address),
        };
        // Nearly every file has one or two.
        let mut recent = self.personalities.iter().rev().take(4);
        let personality = match recent.position(|&other| other == personality) {
            Some(back) => self.personalities.len() - 1 - back,
            None => {
                self.personalities.push(personality);
                self.personalities.len() - 1
            }
        };
        self.entries.push(Extent {
            start,
            end,
            handlers,
            personality: u32::try_from(personality).ok()?,
        });
        Some(())
    }

    /// The code around an address that the table covers. `None`: the unwinder stops at this address.
    pub fn covering(&self, address: u64) -> Option<Covered> {
        let behind = self.entries.partition_point(|entry| entry.start <= address);
        let entry = self.entries.get(behind.checked_sub(1)?)?;
        if address >= entry.end {
            return None;
        }
        let personality = self.personalities.get(entry.personality as usize);
        Some(Covered {
            range: entry.start..entry.end,
            handlers: (entry.handlers != 0)
                .then(|| Some((entry.handlers, *personality?)))
                .flatten(),
        })
    }
}

/// A file's table, not yet read.
pub struct Content {
    pub bytes: Vec<u8>,
    /// Where the file has it in memory.
    pub address: u64,
}

/// The entry of a function.
pub type UnwindEntry<'a> = gimli::FrameDescriptionEntry<Slice<'a>>;

impl Content {
    /// `None` if the file has no table, or if it cannot be read.
    pub(super) fn of(elf: &ElfFile<'_>) -> Option<Self> {
        Self::within(elf, MAX_BYTES)
    }

    /// The same for a table of at most `most` bytes.
    pub fn within(elf: &ElfFile<'_>, most: u64) -> Option<Self> {
        Whereabouts::of(elf)??.content(elf, most)
    }

    /// Calls `each` with all entries of functions, up to the first one for which it returns `None`. Returns where the
    /// entries end. `None` if not all were read.
    pub(super) fn each<'a>(
        &'a self,
        mut each: impl FnMut(&UnwindEntry<'a>, &EhFrame<Slice<'a>>, &BaseAddresses) -> Option<()>,
    ) -> Option<usize> {
        let bytes = &self.bytes;
        let mut section = EhFrame::new(bytes, LittleEndian);
        section.set_address_size(8);
        #[cfg(target_arch = "aarch64")]
        section.set_vendor(gimli::Vendor::AArch64);
        let bases = BaseAddresses::default().set_eh_frame(self.address);
        let mut last = None;
        let mut entries = section.entries(&bases);
        let mut end = 0;
        while let Some(entry) = entries.next().ok()? {
            let partial = match entry {
                CieOrFde::Cie(read) => {
                    end = read.offset() + length_field(bytes, read.offset())? + read.entry_len();
                    continue;
                }
                CieOrFde::Fde(partial) => partial,
            };
            let fde = function_entry(&partial, &mut last).ok()?;
            end = fde.offset() + length_field(bytes, fde.offset())? + fde.entry_len();
            each(&fde, &section, &bases)?;
        }
        Some(end)
    }
}

/// What neighbouring entries have in common, and where it is in the table.
pub type CommonEntry<'a> = Option<(usize, CommonInformationEntry<Slice<'a>>)>;

/// The entry of a function. `last`: what the entry before had in common with others. It is read again only if it is
/// another one.
///
/// # Errors
/// The table is damaged.
pub fn function_entry<'a, S>(
    partial: &PartialFrameDescriptionEntry<'_, S, Slice<'a>>,
    last: &mut CommonEntry<'a>,
) -> gimli::Result<UnwindEntry<'a>>
where
    S: UnwindSection<Slice<'a>>,
    S::Offset: UnwindOffset<usize>,
{
    partial.parse(|section, bases, offset| {
        let at = UnwindOffset::into(offset);
        match last {
            Some((known, read)) if *known == at => Ok(read.clone()),
            _ => {
                let read = section.cie_from_offset(bases, offset)?;
                *last = Some((at, read.clone()));
                Ok(read)
            }
        }
    })
}

/// The bytes of an entry's length, which the length itself does not count.
fn length_field(bytes: &[u8], at: usize) -> Option<usize> {
    let is_long = bytes.get(at..at.checked_add(4)?)? == [0xff; 4];
    Some(if is_long { 12 } else { 4 })
}

/// Where a file's table is.
struct Whereabouts {
    offset: u64,
    address: u64,
    size: u64,
    /// Whether the size is the table's own. Without section headers only the end of the segment is known.
    is_whole: bool,
}

impl Whereabouts {
    fn content(&self, elf: &ElfFile<'_>, most: u64) -> Option<Content> {
        if self.size > most {
            return None;
        }
        Some(Content {
            bytes: elf.array(self.offset, usize::try_from(self.size).ok()?)?,
            address: self.address,
        })
    }

    /// `Some(None)` if the file has no table, and `None` if it may have one that cannot be found.
    fn of(elf: &ElfFile<'_>) -> Option<Option<Self>> {
        let section = elf.section_named(".eh_frame");
        let mut headers = elf.segments().iter();
        let Some(header) = headers.find(|segment| segment.kind == PT_GNU_EH_FRAME) else {
            return match section {
                Some(section) => {
                    let range = section.range();
                    Some(Some(Whereabouts {
                        offset: range.start,
                        address: section.address,
                        size: range.end - range.start,
                        is_whole: true,
                    }))
                }
                None if elf.sections().is_empty() => None,
                None => Some(None),
            };
        };
        let bytes = elf.read(header.offset, header.size.min(MAX_HEADER))?;
        let bases = BaseAddresses::default().set_eh_frame_hdr(header.address);
        let read = EhFrameHdr::new(&bytes, LittleEndian).parse(&bases, 8);
        let address = read.ok()?.eh_frame_ptr().direct().ok()?;
        let range = elf.mapped_at(address)?;
        let section = section.filter(|section| section.address == address);
        let size = match section {
            Some(section) => section.size,
            None => range.end - range.start,
        };
        Some(Some(Whereabouts {
            offset: range.start,
            address,
            size,
            is_whole: section.is_some(),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::elf::samples::{library, mapped_libraries};
    use crate::elf::symbols::{self, Names};
    use std::fs;
    use std::process::Command;

    /// A library with a function that the unwinder knows, and with one that it does not know.
    fn two_functions(flags: &[&str]) -> Vec<u8> {
        let text = ".text; .globl known; .type known,@function; known: .cfi_startproc; nop; nop; .cfi_endproc
            .size known, . - known
            .globl unknown; .type unknown,@function; unknown: nop; nop; .size unknown, . - unknown\n";
        library(text, flags)
    }

    /// What the table says of the two functions. `None` if it cannot be read.
    fn knows(bytes: &[u8]) -> Option<[bool; 2]> {
        let elf = ElfFile::in_memory(bytes).unwrap();
        let found = symbols::find(&elf, &Names::new(["known", "unknown"]), None).unwrap();
        let table = UnwindTable::read(&elf)?;
        Some(["known", "unknown"].map(|name| {
            let mut functions = found.functions.iter();
            let start = functions.find(|found| found.name == name).unwrap().address;
            let covered = [start, start + 1].map(|at| table.covering(at).is_some());
            assert_eq!(covered[0], covered[1]);
            covered[0]
        }))
    }

    /// Removes the section headers.
    fn without_sections(mut bytes: Vec<u8>) -> Vec<u8> {
        bytes[40..48].fill(0);
        bytes[60..64].fill(0);
        bytes
    }

    #[test]
    fn the_unwinder_knows_the_functions_that_have_an_entry() {
        assert_eq!(knows(&two_functions(&[])), Some([true, false]));
        assert_eq!(
            knows(&without_sections(two_functions(&[]))),
            Some([true, false])
        );
        let plain = two_functions(&["-Wl,--no-eh-frame-hdr"]);
        assert_eq!(knows(&plain), Some([true, false]));
    }

    #[test]
    fn a_table_that_cannot_be_found_or_read_proves_nothing() {
        // There may be a table that only the section headers named.
        assert_eq!(
            knows(&without_sections(two_functions(&["-Wl,--no-eh-frame-hdr"]))),
            None
        );
        // The length of the first entry reaches beyond the table.
        let mut bytes = two_functions(&[]);
        let elf = ElfFile::in_memory(bytes.clone()).unwrap();
        let at = elf.section_named(".eh_frame").unwrap().offset as usize;
        bytes[at..at + 4].copy_from_slice(&0x7fff_ffff_u32.to_le_bytes());
        assert_eq!(knows(&bytes), None);
        // A terminator with entries behind it.
        bytes[at..at + 4].fill(0);
        assert_eq!(knows(&bytes), None);
    }

    #[test]
    fn a_file_without_a_table_covers_nothing() {
        let bytes = two_functions(&["-Wl,--no-eh-frame-hdr", "-Wl,--no-ld-generated-unwind-info"]);
        let directory = tempfile::tempdir().unwrap();
        let (path, out) = (directory.path().join("in"), directory.path().join("out"));
        fs::write(&path, bytes).unwrap();
        let status = Command::new("objcopy")
            .args(["-R", ".eh_frame"])
            .args([&path, &out])
            .status();
        assert!(status.unwrap().success());
        assert_eq!(knows(&fs::read(out).unwrap()), Some([false, false]));
    }

    #[test]
    fn the_tables_of_this_systems_libraries_are_read() {
        let libraries = mapped_libraries();
        for (path, file) in &libraries {
            let elf = ElfFile::open(file).unwrap();
            let table = UnwindTable::read(&elf).unwrap();
            assert!(!table.entries.is_empty(), "{path}");
        }
        assert!(!libraries.is_empty());
    }
}
