//! The debug sections of a file, as `gimli` reads them.
//!
//! A section is not loaded. Its pages are read when they are needed, and only some are kept, so a file may have
//! gigabytes of debug information. They are read with `pread`: a reader that maps a file is killed when another process
//! truncates the file. Compressed sections cannot be read in part. They are unpacked into memory, up to a limit.

use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::FileExt as _;
use std::rc::Rc;

use gimli::{Error, LittleEndian, Reader, ReaderOffsetId, Result};
use object::elf::{CompressionHeader64, ELFCOMPRESS_ZLIB, ELFCOMPRESS_ZSTD, SHF_COMPRESSED};
use object::{LittleEndian as LE, pod};
use ruzstd::decoding::StreamingDecoder;

use crate::elf::file::{ElfFile, Section};

/// Bytes that are read at a time.
const PAGE: u64 = 16 << 10;

/// The most pages of a section that are kept: 1 MiB.
const MAX_PAGES: usize = 64;

/// The most bytes of one value: of a name, or of a block.
const MAX_VALUE: u64 = 1 << 20;

/// Part of a section.
#[derive(Debug)]
struct SectionPage {
    /// Offset in the section.
    start: u64,
    bytes: Vec<u8>,
}

/// A section of a file.
#[derive(Debug)]
struct SectionSource {
    file: Rc<File>,
    /// Offset in the file.
    offset: u64,
    length: u64,
    pages: RefCell<HashMap<u64, Rc<SectionPage>>>,
}

impl SectionSource {
    /// The page that has the byte at `at`.
    fn page(&self, at: u64) -> Option<Rc<SectionPage>> {
        if at >= self.length {
            return None;
        }
        let start = at - at % PAGE;
        let mut pages = self.pages.try_borrow_mut().ok()?;
        if let Some(page) = pages.get(&start) {
            return Some(Rc::clone(page));
        }
        let length = PAGE.min(self.length - start);
        let mut bytes = vec![0; usize::try_from(length).ok()?];
        let place = self.offset.checked_add(start)?;
        self.file.read_exact_at(&mut bytes, place).ok()?;
        if pages.len() >= MAX_PAGES {
            pages.clear();
        }
        let page = Rc::new(SectionPage { start, bytes });
        pages.insert(start, Rc::clone(&page));
        Some(page)
    }
}

/// A range of a section, which `gimli` reads from its start on.
#[derive(Clone, Debug)]
pub struct SectionPart {
    /// `None`: the page below holds the whole section.
    source: Option<Rc<SectionSource>>,
    page: Rc<SectionPage>,
    /// Offsets in the section.
    start: u64,
    end: u64,
}

impl SectionPart {
    /// A whole section in memory.
    pub fn in_memory(bytes: Vec<u8>) -> Self {
        Self {
            source: None,
            start: 0,
            end: bytes.len() as u64,
            page: Rc::new(SectionPage { start: 0, bytes }),
        }
    }

    /// A whole section of a file.
    fn in_file(file: &Rc<File>, section: &Section) -> Self {
        let range = section.range();
        let length = range.end - range.start;
        Self {
            source: Some(Rc::new(SectionSource {
                file: Rc::clone(file),
                offset: range.start,
                length,
                pages: RefCell::default(),
            })),
            page: Rc::new(SectionPage {
                start: 0,
                bytes: Vec::new(),
            }),
            start: 0,
            end: length,
        }
    }

    /// The bytes of the current page from the start on, at most up to the end. Not empty.
    fn ahead(&mut self) -> Result<&[u8]> {
        if self.start >= self.end {
            return Err(self.ended());
        }
        if self.in_page(1).is_none()
            && let Some(source) = &self.source
        {
            let page = source.page(self.start);
            self.page = page.ok_or_else(|| self.ended())?;
        }
        let left = usize::try_from(self.end - self.start).unwrap_or(usize::MAX);
        let at = usize::try_from(self.start.wrapping_sub(self.page.start)).unwrap_or(usize::MAX);
        let bytes = self.page.bytes.get(at..).unwrap_or_default();
        let bytes = &bytes[..bytes.len().min(left)];
        if bytes.is_empty() {
            return Err(self.ended());
        }
        Ok(bytes)
    }

    /// The next bytes, if they are in the current page.
    #[inline]
    fn in_page(&self, length: usize) -> Option<&[u8]> {
        let at = usize::try_from(self.start.wrapping_sub(self.page.start)).ok()?;
        self.page.bytes.get(at..at.checked_add(length)?)
    }

    fn ended(&self) -> Error {
        Error::UnexpectedEof(self.offset_id())
    }

    /// The text in this range, up to `limit` bytes.
    pub fn text(&self, limit: u64) -> String {
        let mut part = self.clone();
        part.end = part.end.min(part.start.saturating_add(limit));
        part.to_string_lossy()
            .map(Cow::into_owned)
            .unwrap_or_default()
    }
}

impl Reader for SectionPart {
    type Endian = LittleEndian;
    type Offset = usize;

    fn endian(&self) -> LittleEndian {
        LittleEndian
    }

    #[inline]
    fn len(&self) -> usize {
        (self.end - self.start) as usize
    }

    fn empty(&mut self) {
        self.end = self.start;
    }

    fn truncate(&mut self, length: usize) -> Result<()> {
        if length > self.len() {
            return Err(self.ended());
        }
        self.end = self.start + length as u64;
        Ok(())
    }

    fn offset_from(&self, base: &Self) -> usize {
        self.start.wrapping_sub(base.start) as usize
    }

    fn offset_id(&self) -> ReaderOffsetId {
        ReaderOffsetId(self.start)
    }

    fn lookup_offset_id(&self, id: ReaderOffsetId) -> Option<usize> {
        let within = (self.start..=self.end).contains(&id.0);
        within.then(|| (id.0 - self.start) as usize)
    }

    fn find(&self, byte: u8) -> Result<usize> {
        let mut part = self.clone();
        loop {
            let bytes = part.ahead()?;
            let found = memchr::memchr(byte, bytes);
            let length = found.unwrap_or(bytes.len()) as u64;
            part.start += length;
            if found.is_some() {
                return Ok((part.start - self.start) as usize);
            }
        }
    }

    #[inline]
    fn skip(&mut self, length: usize) -> Result<()> {
        if length > self.len() {
            return Err(self.ended());
        }
        self.start += length as u64;
        Ok(())
    }

    fn split(&mut self, length: usize) -> Result<Self> {
        let mut first = self.clone();
        first.truncate(length)?;
        self.start = first.end;
        Ok(first)
    }

    fn to_slice(&self) -> Result<Cow<'_, [u8]>> {
        if self.end - self.start > MAX_VALUE {
            return Err(self.ended());
        }
        if let Some(bytes) = self.in_page(self.len()) {
            return Ok(Cow::Borrowed(bytes));
        }
        let mut bytes = vec![0; self.len()];
        self.clone().read_slice(&mut bytes)?;
        Ok(Cow::Owned(bytes))
    }

    fn to_string(&self) -> Result<Cow<'_, str>> {
        self.to_string_lossy()
    }

    fn to_string_lossy(&self) -> Result<Cow<'_, str>> {
        let text = String::from_utf8_lossy(&self.to_slice()?).into_owned();
        Ok(Cow::Owned(text))
    }

    #[inline]
    fn read_slice(&mut self, buffer: &mut [u8]) -> Result<()> {
        if buffer.len() > self.len() {
            return Err(self.ended());
        }
        if let Some(bytes) = self.in_page(buffer.len()) {
            buffer.copy_from_slice(bytes);
            self.start += buffer.len() as u64;
            return Ok(());
        }
        let mut filled = 0;
        while filled < buffer.len() {
            let bytes = self.ahead()?;
            let length = bytes.len().min(buffer.len() - filled);
            buffer[filled..filled + length].copy_from_slice(&bytes[..length]);
            filled += length;
            self.start += length as u64;
        }
        Ok(())
    }
}

/// The debug sections of one file.
pub struct Sections<'a> {
    elf: &'a ElfFile<'a>,
    /// `None`: the file is in memory.
    file: Option<&'a Rc<File>>,
    /// How many bytes may still be unpacked.
    room: Cell<u64>,
    /// The bytes that would have to be unpacked, for the sections for which there was no room.
    pub too_large: Cell<u64>,
}

impl<'a> Sections<'a> {
    /// At most `room` bytes are unpacked.
    pub fn new(elf: &'a ElfFile<'a>, file: Option<&'a Rc<File>>, room: u64) -> Self {
        Self {
            elf,
            file,
            room: Cell::new(room),
            too_large: Cell::new(0),
        }
    }

    /// The bytes of room that are left.
    pub fn room(&self) -> u64 {
        self.room.get()
    }

    /// The section of this name. Empty if the file has none, or if it cannot be read.
    pub fn get(&self, name: &str) -> SectionPart {
        self.found(name)
            .unwrap_or_else(|| SectionPart::in_memory(Vec::new()))
    }

    fn found(&self, name: &str) -> Option<SectionPart> {
        if let Some(section) = self.elf.section_named(name) {
            let range = section.range();
            if range.end > self.elf.length() || range.is_empty() {
                return None;
            }
            if section.flags.contains(SHF_COMPRESSED) {
                return self.unpacked(section);
            }
            return Some(match self.file {
                Some(file) => SectionPart::in_file(file, section),
                None => SectionPart::in_memory(self.whole(section)?),
            });
        }
        None
    }

    fn whole(&self, section: &Section) -> Option<Vec<u8>> {
        let range = section.range();
        let length = range.end - range.start;
        self.take(length)?;
        let mut bytes = vec![0; usize::try_from(length).ok()?];
        self.elf.fill(range.start, &mut bytes)?;
        Some(bytes)
    }

    fn take(&self, length: u64) -> Option<()> {
        match self.room.get().checked_sub(length) {
            Some(room) => self.room.set(room),
            None => {
                self.too_large
                    .set(self.too_large.get().saturating_add(length));
                return None;
            }
        }
        Some(())
    }

    fn unpacked(&self, section: &Section) -> Option<SectionPart> {
        const HEADER: usize = size_of::<CompressionHeader64<LE>>();
        let range = section.range();
        let mut head = vec![0; HEADER];
        self.elf.fill(range.start, &mut head)?;
        let header = pod::from_bytes::<CompressionHeader64<LE>>(&head).ok()?.0;
        let length = header.ch_size.get(LE);
        let packed_length = (range.end - range.start).checked_sub(HEADER as u64)?;
        // Both are in memory for a moment.
        self.take(length.checked_add(packed_length)?)?;
        let mut packed = vec![0; usize::try_from(packed_length).ok()?];
        self.elf.fill(range.start + HEADER as u64, &mut packed)?;
        let limit = usize::try_from(length).ok()?;
        let bytes = match header.ch_type.get(LE) {
            ELFCOMPRESS_ZLIB => {
                miniz_oxide::inflate::decompress_to_vec_zlib_with_limit(&packed, limit).ok()?
            }
            ELFCOMPRESS_ZSTD => {
                let mut decoder =
                    StreamingDecoder::new_with_max_window_size(&packed[..], length.max(1 << 10))
                        .ok()?;
                let mut bytes = Vec::new();
                decoder.by_ref().take(length).read_to_end(&mut bytes).ok()?;
                bytes
            }
            _ => return None,
        };
        self.room.set(self.room.get() + packed_length);
        Some(SectionPart::in_memory(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    fn of_file(bytes: &[u8]) -> SectionPart {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"head").unwrap();
        file.write_all(bytes).unwrap();
        SectionPart {
            source: Some(Rc::new(SectionSource {
                file: Rc::new(file),
                offset: 4,
                length: bytes.len() as u64,
                pages: RefCell::default(),
            })),
            page: Rc::new(SectionPage {
                start: 0,
                bytes: Vec::new(),
            }),
            start: 0,
            end: bytes.len() as u64,
        }
    }

    #[test]
    fn a_section_in_a_file_reads_like_one_in_memory() {
        let bytes: Vec<u8> = (0..3 * PAGE + 5).map(|n| (n % 251 + 1) as u8).collect();
        let mut parts = [of_file(&bytes), SectionPart::in_memory(bytes.clone())];
        let read = parts.each_mut().map(|part| {
            let whole = part.clone();
            let mut seen = Vec::new();
            part.skip(PAGE as usize - 3).unwrap();
            seen.push(part.read_u64().unwrap());
            seen.push(part.find(251).unwrap() as u64);
            seen.push(part.offset_from(&whole) as u64);
            let mut inner = part.split(2 * PAGE as usize).unwrap();
            seen.push(
                inner
                    .to_slice()
                    .unwrap()
                    .iter()
                    .map(|&byte| u64::from(byte))
                    .sum(),
            );
            assert!(inner.find(0).is_err());
            assert!(inner.skip(2 * PAGE as usize + 1).is_err());
            assert!(inner.truncate(2 * PAGE as usize + 1).is_err());
            inner.skip(2 * PAGE as usize).unwrap();
            assert!(inner.read_u8().is_err());
            seen.push(part.len() as u64);
            part.skip(part.len()).unwrap();
            assert!(part.read_u8().is_err());
            seen
        });
        assert_eq!(read[0], read[1]);
        let at = PAGE as usize - 3;
        assert_eq!(
            read[0][0],
            u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
        );
    }

    #[test]
    fn a_file_that_was_cut_off_ends_early() {
        let part = of_file(&[7; 2 * PAGE as usize]);
        part.source
            .as_ref()
            .unwrap()
            .file
            .set_len(4 + PAGE)
            .unwrap();
        let mut rest = part.clone();
        assert_eq!(rest.read_u8().unwrap(), 7);
        rest.skip(PAGE as usize - 5).unwrap();
        assert!(rest.read_u64().is_err());
    }

    #[test]
    fn only_some_pages_are_kept() {
        let part = of_file(&vec![1; PAGE as usize * (MAX_PAGES + 10)]);
        let mut rest = part.clone();
        for _ in 0..MAX_PAGES + 10 {
            assert_eq!(rest.read_u8().unwrap(), 1);
            let _ = rest.skip(PAGE as usize - 1);
        }
        assert!(part.source.unwrap().pages.borrow().len() <= MAX_PAGES);
    }
}
