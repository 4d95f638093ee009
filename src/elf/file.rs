//! Reads one ELF file: its header, segments, sections and dynamic section. Symbols are left to `symbols`.
//!
//! A process may map files from any source, and it may be held while memleak reads them. So this module checks
//! everything that it reads, and checks each size in the file before it allocates memory for it. The file is
//! read in pieces, with `pread`: a reader that maps a file is killed when another process truncates the file.

use std::borrow::Cow;
use std::cell::OnceCell;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::{fmt, io};

use object::LittleEndian as LE;
use object::elf::{
    DF_1_PIE, DT_FLAGS_1, DT_NULL, Dyn64, DynamicTag, ELFCLASS32, ELFCLASS64, ELFDATA2LSB, ELFMAG,
    ET_DYN, ET_EXEC, ET_REL, FileHeader64, FileType, Machine, NT_GNU_BUILD_ID, PF_X, PT_DYNAMIC,
    PT_INTERP, PT_LOAD, PT_NOTE, ProgramFlags, ProgramHeader64, ProgramType, SHT_NOBITS,
    SectionFlags, SectionHeader64, SectionType,
};
use object::pod::{self, Pod};

/// The bytes that are read at once on opening. In nearly every file, the first page holds the header, the program
/// headers and the interpreter's name.
const HEAD: usize = 4096;

/// The most bytes that are read in one piece.
const PIECE: usize = 1 << 20;

/// Limits for tables. No linker makes larger ones.
const MAX_SEGMENTS: usize = 1024;
const MAX_SECTIONS: usize = 1 << 16;
const MAX_DYNAMIC: usize = 4096;
const MAX_NOTES: usize = 1 << 18;
const MAX_NOTE_SEGMENTS: usize = 16;

/// The types of files that a process can map as code.
const LINKED: [FileType; 2] = [ET_EXEC, ET_DYN];

#[cfg(target_arch = "x86_64")]
const MACHINE: Machine = object::elf::EM_X86_64;
#[cfg(target_arch = "aarch64")]
const MACHINE: Machine = object::elf::EM_AARCH64;

/// What kind of file it is, judged by its first bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// 64-bit ELF for this machine.
    Native,
    /// 32-bit ELF for any machine.
    Bits32,
    OtherMachine,
    /// A script, data, an object file that is not linked, or a file that ends within the ELF header.
    NotElf,
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Class::Native => "64-bit ELF",
            Class::Bits32 => "32-bit ELF",
            Class::OtherMachine => "ELF for another machine",
            Class::NotElf => "no ELF file",
        })
    }
}

/// How a process uses a native ELF file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// Executed at fixed addresses, without a loader.
    Static,
    /// Executed at any address, without a loader: the program relocates itself.
    StaticPie,
    /// Executed through a loader. A library with an interpreter is of this shape, too, since it can be executed.
    Dynamic,
    /// A shared library without an interpreter, or a loader.
    Library,
}

/// Why a file cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum Unreadable {
    #[error("it is {0}, which memleak cannot look into")]
    Class(Class),
    #[error("it is damaged: {0}")]
    Damaged(&'static str),
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// A segment: what a program header says.
#[derive(Clone, Copy, Debug)]
pub struct Segment {
    pub kind: ProgramType,
    pub flags: ProgramFlags,
    /// Offset in the file.
    pub offset: u64,
    /// Bytes in the file.
    pub size: u64,
    /// The virtual address that the file gives.
    pub address: u64,
}

impl Segment {
    /// Where the segment's bytes are in the file.
    fn range(&self) -> Range<u64> {
        self.offset..self.offset.saturating_add(self.size)
    }
}

/// A section: what a section header says.
#[derive(Clone, Copy, Debug)]
pub struct Section {
    pub kind: SectionType,
    pub flags: SectionFlags,
    pub address: u64,
    pub offset: u64,
    pub size: u64,
    /// The index of a section that this one refers to.
    pub link: usize,
    name: u32,
}

impl Section {
    /// Where the section's bytes are in the file. Empty for a section without bytes in the file.
    pub fn range(&self) -> Range<u64> {
        if self.kind == SHT_NOBITS {
            return 0..0;
        }
        self.offset..self.offset.saturating_add(self.size)
    }
}

/// Where the content of an ELF file comes from.
enum Bytes<'file> {
    File(&'file File),
    Memory(Cow<'file, [u8]>),
}

/// An open native ELF file.
pub struct ElfFile<'file> {
    bytes: Bytes<'file>,
    length: u64,
    head: Vec<u8>,
    header: FileHeader64<LE>,
    segments: Vec<Segment>,
    // The rest is read when it is first needed.
    sections: OnceCell<Vec<Section>>,
    section_names: OnceCell<Vec<u8>>,
    dynamic: OnceCell<Dynamic>,
}

impl<'file> ElfFile<'file> {
    /// # Errors
    /// The file cannot be read, is not an ELF file for this machine, or ends within its headers.
    pub fn open(file: &'file File) -> Result<Self, Unreadable> {
        let length = file.metadata()?.len();
        Self::new(Bytes::File(file), length, &LINKED)
    }

    /// Opens a file with debug information, also one that several debug files share. That one is not linked.
    ///
    /// # Errors
    /// The same as `open`.
    pub fn open_debug(file: &'file File) -> Result<Self, Unreadable> {
        let length = file.metadata()?.len();
        Self::new(Bytes::File(file), length, &[ET_EXEC, ET_DYN, ET_REL])
    }

    /// An ELF file in memory, such as one that was compressed in a section of another file.
    ///
    /// # Errors
    /// The same as `open`.
    pub fn in_memory(bytes: impl Into<Cow<'file, [u8]>>) -> Result<Self, Unreadable> {
        let bytes = bytes.into();
        let length = bytes.len() as u64;
        Self::new(Bytes::Memory(bytes), length, &LINKED)
    }

    fn new(bytes: Bytes<'file>, length: u64, kinds: &[FileType]) -> Result<Self, Unreadable> {
        let mut head = vec![0; HEAD.min(usize::try_from(length).unwrap_or(HEAD))];
        bytes.read(0, &mut head)?;
        match class_among(&head, kinds) {
            Class::Native => {}
            other => return Err(Unreadable::Class(other)),
        }
        let header = *pod::from_bytes::<FileHeader64<LE>>(&head)
            .map_err(|()| Unreadable::Class(Class::NotElf))?
            .0;
        let mut elf = Self {
            bytes,
            length,
            head,
            header,
            segments: Vec::new(),
            sections: OnceCell::new(),
            section_names: OnceCell::new(),
            dynamic: OnceCell::new(),
        };
        elf.segments = elf.read_segments()?;
        Ok(elf)
    }

    fn read_segments(&self) -> Result<Vec<Segment>, Unreadable> {
        let count = usize::from(self.header.e_phnum.get(LE)).min(MAX_SEGMENTS);
        if count > 0
            && usize::from(self.header.e_phentsize.get(LE)) != size_of::<ProgramHeader64<LE>>()
        {
            return Err(Unreadable::Damaged("program headers of an unknown size"));
        }
        let headers: Vec<ProgramHeader64<LE>> = self
            .array(self.header.e_phoff.get(LE), count)
            .ok_or(Unreadable::Damaged("it ends within its program headers"))?;
        let segment = |header: &ProgramHeader64<LE>| Segment {
            kind: header.p_type.get(LE),
            flags: header.p_flags.get(LE),
            offset: header.p_offset.get(LE),
            size: header.p_filesz.get(LE),
            address: header.p_vaddr.get(LE),
        };
        let segments: Vec<Segment> = headers.iter().map(segment).collect();
        let wraps = |segment: &Segment| {
            segment.kind == PT_LOAD
                && (segment.address.checked_add(segment.size).is_none()
                    || segment.offset.checked_add(segment.size).is_none())
        };
        if segments.iter().any(wraps) {
            return Err(Unreadable::Damaged("a segment has no end"));
        }
        Ok(segments)
    }

    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    fn segment(&self, kind: ProgramType) -> Option<&Segment> {
        self.segments.iter().find(|segment| segment.kind == kind)
    }

    /// Whether the file names a loader. An executed file that names none is static.
    pub fn has_interpreter(&self) -> bool {
        self.segment(PT_INTERP).is_some()
    }

    /// The path of the loader that the file names.
    pub fn interpreter(&self) -> Option<Vec<u8>> {
        let range = self.segment(PT_INTERP)?.range();
        let text = self.read(range.start, (range.end - range.start).min(4096))?;
        Some(string_in(&text, 0)?.to_vec())
    }

    /// How a process uses the file.
    pub fn shape(&self) -> Shape {
        match self.header.e_type.get(LE) {
            _ if self.has_interpreter() => Shape::Dynamic,
            ET_EXEC => Shape::Static,
            _ if self.dynamic().get(DT_FLAGS_1).unwrap_or(0) & DF_1_PIE.0 != 0 => Shape::StaticPie,
            _ => Shape::Library,
        }
    }

    /// The address at which the file begins to run. 0: it does not.
    pub fn entry(&self) -> u64 {
        self.header.e_entry.get(LE)
    }

    /// The segments that are executed.
    pub fn code(&self) -> Vec<Segment> {
        let is_code = |segment: &&Segment| segment.kind == PT_LOAD && segment.flags.contains(PF_X);
        self.segments.iter().filter(is_code).copied().collect()
    }

    /// The segment that `address` belongs to, if that segment is executable.
    pub fn text_segment(&self, address: u64) -> Option<&Segment> {
        self.load_segment(address)
            .filter(|segment| segment.flags.contains(PF_X))
    }

    fn load_segment(&self, address: u64) -> Option<&Segment> {
        self.segments.iter().find(|segment| {
            let at = address.checked_sub(segment.address);
            segment.kind == PT_LOAD && at.is_some_and(|at| at < segment.size)
        })
    }

    /// The range in the file from the byte that is mapped at `address` to the end of its segment.
    pub fn mapped_at(&self, address: u64) -> Option<Range<u64>> {
        let segment = self.load_segment(address)?;
        let start = segment.offset.checked_add(address - segment.address)?;
        Some(start..segment.range().end.min(self.length)).filter(|range| range.start < range.end)
    }

    /// The section headers. Empty if they were removed, as `sstrip` does.
    pub fn sections(&self) -> &[Section] {
        self.sections
            .get_or_init(|| self.read_sections().unwrap_or_default())
    }

    pub fn section_named(&self, name: &str) -> Option<&Section> {
        let names = self
            .section_names
            .get_or_init(|| self.read_section_names().unwrap_or_default());
        // This does not search for the end of the name, which may be far away for many sections.
        let has_name = |section: &&Section| {
            let rest = names.get(section.name as usize..).unwrap_or_default();
            rest.strip_prefix(name.as_bytes())
                .is_some_and(|rest| rest.first() == Some(&0))
        };
        self.sections().iter().find(has_name)
    }

    fn read_section_names(&self) -> Option<Vec<u8>> {
        let sections = self.sections();
        let mut index = usize::from(self.header.e_shstrndx.get(LE).0);
        if index == usize::from(u16::MAX) {
            index = sections.first()?.link;
        }
        let range = sections.get(index)?.range();
        self.read(range.start, range.end - range.start)
    }

    fn read_sections(&self) -> Option<Vec<Section>> {
        let header = &self.header;
        let at = header.e_shoff.get(LE);
        if at == 0 || usize::from(header.e_shentsize.get(LE)) != size_of::<SectionHeader64<LE>>() {
            return None;
        }
        // If a file has more sections than the header can count, the first section, otherwise empty, has the count.
        let first = || self.array::<SectionHeader64<LE>>(at, 1)?.first().copied();
        let mut count = usize::from(header.e_shnum.get(LE));
        if count == 0 {
            count = usize::try_from(first()?.sh_size.get(LE)).ok()?;
        }
        let headers: Vec<SectionHeader64<LE>> = self.array(at, count.min(MAX_SECTIONS))?;
        let section = |header: &SectionHeader64<LE>| Section {
            kind: header.sh_type.get(LE),
            flags: header.sh_flags.get(LE),
            address: header.sh_addr.get(LE),
            offset: header.sh_offset.get(LE),
            size: header.sh_size.get(LE),
            link: header.sh_link.get(LE) as usize,
            name: header.sh_name.get(LE),
        };
        Some(headers.iter().map(section).collect())
    }

    /// The dynamic section, found through the segments as the loader finds it.
    pub fn dynamic(&self) -> &Dynamic {
        self.dynamic
            .get_or_init(|| self.read_dynamic().unwrap_or_default())
    }

    fn read_dynamic(&self) -> Option<Dynamic> {
        let segment = self.segment(PT_DYNAMIC)?;
        let count = usize::try_from(segment.size).unwrap_or(usize::MAX) / size_of::<Dyn64<LE>>();
        let entries: Vec<Dyn64<LE>> = self.array(segment.offset, count.min(MAX_DYNAMIC))?;
        let entries = entries
            .iter()
            .map(|entry| (entry.d_tag.get(LE), entry.d_val.get(LE)))
            .take_while(|(tag, _)| *tag != DT_NULL)
            .collect();
        Some(Dynamic { entries })
    }

    /// The build ID, which the linker wrote to tell this build from all others.
    pub fn build_id(&self) -> Option<Vec<u8>> {
        let notes = self
            .segments
            .iter()
            .filter(|segment| segment.kind == PT_NOTE);
        notes
            .take(MAX_NOTE_SEGMENTS)
            .flat_map(|segment| self.notes(segment.range()))
            .find(|note| note.kind == NT_GNU_BUILD_ID.0 && note.owner == b"GNU")
            .map(|note| note.content)
            .filter(|id| id.len() > 1)
    }

    /// The notes of a section or segment.
    pub fn notes(&self, range: Range<u64>) -> Vec<Note> {
        let size = range.end.saturating_sub(range.start).min(MAX_NOTES as u64);
        let bytes = self.read(range.start, size).unwrap_or_default();
        let mut rest = &bytes[..];
        std::iter::from_fn(|| Note::split_off(&mut rest)).collect()
    }

    pub fn length(&self) -> u64 {
        self.length
    }

    /// Fills `buffer` with the bytes from `offset` on.
    pub fn fill(&self, offset: u64, buffer: &mut [u8]) -> Option<()> {
        let end = offset.checked_add(buffer.len() as u64)?;
        if end > self.length {
            return None;
        }
        if end <= self.head.len() as u64 {
            buffer.copy_from_slice(&self.head[offset as usize..end as usize]);
            return Some(());
        }
        self.bytes.read(offset, buffer).ok()
    }

    /// `size` bytes from `offset` on. `None` if the file ends before that, or if `size` is more than `PIECE`.
    pub fn read(&self, offset: u64, size: u64) -> Option<Vec<u8>> {
        let within = offset.checked_add(size)? <= self.length;
        let size = usize::try_from(size).ok()?;
        if !within || size > PIECE {
            return None;
        }
        let mut bytes = vec![0; size];
        self.fill(offset, &mut bytes)?;
        Some(bytes)
    }

    /// The structure at `offset`.
    pub fn value<T: Pod + Copy>(&self, offset: u64) -> Option<T> {
        self.array(offset, 1)?.first().copied()
    }

    /// `count` adjacent structures from `offset` on.
    pub fn array<T: Pod + Copy>(&self, offset: u64, count: usize) -> Option<Vec<T>> {
        let size = count.checked_mul(size_of::<T>())?;
        let end = offset.checked_add(size as u64)?;
        // The first page has been read already.
        let bytes = if end <= self.head.len() as u64 {
            Cow::Borrowed(&self.head[offset as usize..end as usize])
        } else {
            // Section headers may take more than a piece, so their largest size is the limit here.
            if end > self.length || size > MAX_SECTIONS * size_of::<SectionHeader64<LE>>() {
                return None;
            }
            let mut bytes = vec![0; size];
            self.bytes.read(offset, &mut bytes).ok()?;
            Cow::Owned(bytes)
        };
        Some(pod::slice_from_bytes(&bytes, count).ok()?.0.to_vec())
    }
}

impl Bytes<'_> {
    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        match self {
            Bytes::File(file) => file.read_exact_at(buffer, offset),
            Bytes::Memory(bytes) => {
                let part = usize::try_from(offset)
                    .ok()
                    .and_then(|start| bytes.get(start..)?.get(..buffer.len()))
                    .ok_or(io::ErrorKind::UnexpectedEof)?;
                buffer.copy_from_slice(part);
                Ok(())
            }
        }
    }
}

/// The entries of a dynamic section, in order.
#[derive(Debug, Default)]
pub struct Dynamic {
    pub entries: Vec<(DynamicTag, u64)>,
}

impl Dynamic {
    /// The value of the last entry with this tag. Loaders take the last one.
    pub fn get(&self, tag: DynamicTag) -> Option<u64> {
        let mut reversed = self.entries.iter().rev();
        reversed.find(|entry| entry.0 == tag).map(|entry| entry.1)
    }
}

/// A note of an ELF file.
#[derive(Debug)]
pub struct Note {
    pub kind: u32,
    pub owner: Vec<u8>,
    pub content: Vec<u8>,
}

impl Note {
    /// Splits the first note off `rest`. `None` at the end, and for a damaged note.
    fn split_off(rest: &mut &[u8]) -> Option<Note> {
        let word = |at: usize| -> Option<usize> {
            let bytes = rest.get(at..at + 4)?.try_into().ok()?;
            usize::try_from(u32::from_le_bytes(bytes)).ok()
        };
        let (owner, content, kind) = (word(0)?, word(4)?, word(8)?);
        let start = 12 + owner.checked_next_multiple_of(4)?;
        let note = Note {
            kind: u32::try_from(kind).ok()?,
            owner: string_in(rest.get(12..12 + owner)?, 0)?.to_vec(),
            content: rest.get(start..start.checked_add(content)?)?.to_vec(),
        };
        let next = start + content.checked_next_multiple_of(4)?;
        *rest = rest.get(next..).unwrap_or_default();
        Some(note)
    }
}

/// The class of a file with these first bytes. At least 64 bytes are needed.
pub fn class(head: &[u8]) -> Class {
    class_among(head, &LINKED)
}

/// The class of a file, which is one of these kinds if it is ELF.
fn class_among(head: &[u8], kinds: &[FileType]) -> Class {
    // Reads the magic, class and byte order in e_ident, then e_type and e_machine.
    if head.get(..4) != Some(&ELFMAG) {
        return Class::NotElf;
    }
    let (Some(&width), Some(&order), Some(&[t0, t1, m0, m1])) =
        (head.get(4), head.get(5), head.get(16..20))
    else {
        return Class::NotElf;
    };
    if width == ELFCLASS32.0 {
        return Class::Bits32;
    }
    if width != ELFCLASS64.0 {
        return Class::NotElf;
    }
    if order != ELFDATA2LSB.0 || Machine(u16::from_le_bytes([m0, m1])) != MACHINE {
        return Class::OtherMachine;
    }
    let kind = FileType(u16::from_le_bytes([t0, t1]));
    if head.len() < size_of::<FileHeader64<LE>>() || !kinds.contains(&kind) {
        return Class::NotElf;
    }
    Class::Native
}

/// The string that begins at `start`, without its terminating zero. `None` if the string is not terminated.
pub fn string_in(bytes: &[u8], start: usize) -> Option<&[u8]> {
    let rest = bytes.get(start..)?;
    let end = rest.iter().position(|&byte| byte == 0)?;
    Some(&rest[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The beginning of an ELF header.
    fn header(class: u8, order: u8, kind: u16, machine: u16) -> Vec<u8> {
        let mut bytes = ELFMAG.to_vec();
        bytes.extend([class, order, 1, 0]);
        bytes.resize(16, 0);
        bytes.extend(kind.to_le_bytes());
        bytes.extend(machine.to_le_bytes());
        bytes.resize(64, 0);
        bytes
    }

    #[test]
    fn the_class_follows_from_the_header() {
        let native = header(2, 1, 3, MACHINE.0);
        assert_eq!(class(&native), Class::Native);
        assert_eq!(class(&header(1, 1, 3, 3)), Class::Bits32, "i386");
        assert_eq!(class(&header(1, 1, 2, 62)), Class::Bits32, "x32");
        assert_eq!(class(&header(2, 1, 3, 243)), Class::OtherMachine, "RISC-V");
        assert_eq!(class(&header(2, 2, 3, MACHINE.0)), Class::OtherMachine);
        assert_eq!(class(&header(2, 1, 1, MACHINE.0)), Class::NotElf, "object");
        assert_eq!(class(&header(9, 1, 3, MACHINE.0)), Class::NotElf);
        assert_eq!(class(&native[..63]), Class::NotElf);
        assert_eq!(class(b"#!/bin/sh\n"), Class::NotElf);
        assert_eq!(class(b""), Class::NotElf);
    }

    #[test]
    fn opening_a_file_of_another_class_fails_with_its_class() {
        let elf = ElfFile::in_memory(header(1, 1, 2, 3));
        assert!(matches!(elf, Err(Unreadable::Class(Class::Bits32))));
    }

    #[test]
    fn notes_are_read_up_to_the_first_damaged_note() {
        let mut bytes = Vec::new();
        for (owner, content) in [(&b"GNU\0"[..], &b"12345"[..]), (b"x\0", b"")] {
            bytes.extend((owner.len() as u32).to_le_bytes());
            bytes.extend((content.len() as u32).to_le_bytes());
            bytes.extend(3_u32.to_le_bytes());
            for part in [owner, content] {
                bytes.extend(part);
                bytes.resize(bytes.len().next_multiple_of(4), 0);
            }
        }
        let read = |mut rest: &[u8]| -> Vec<_> {
            std::iter::from_fn(|| Note::split_off(&mut rest))
                .map(|note| (note.owner, note.content))
                .collect()
        };
        let gnu = (b"GNU".to_vec(), b"12345".to_vec());
        assert_eq!(read(&bytes), [gnu.clone(), (b"x".to_vec(), Vec::new())]);
        for length in 0..bytes.len() {
            assert!(read(&bytes[..length]).len() <= 2);
        }
        bytes[28..32].fill(0xff);
        assert_eq!(read(&bytes), [gnu]);
    }
}
