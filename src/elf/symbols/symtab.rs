//! Searches a symbol table that has no index: `.symtab`, or the dynamic symbols of a file without a hash table.
//!
//! The names are searched first, in the order of the file. The symbols are read to the end only if a wanted name is
//! among the names. So most symbols of the many files without an allocator are never read. The memory that the search
//! takes does not depend on the file.

use std::collections::HashMap;
use std::ops::Range;

use object::LittleEndian as LE;
use object::elf::{SectionType, Sym64};

use crate::elf::file::{ElfFile, Unreadable};
use crate::elf::symbols::names::{Found, Names, Source, add, end_of, is_function};

/// Bytes that are read at a time: a whole number of symbols.
const CHUNK: usize = SYMBOL * 8192;

/// Longer tables are not read. A file with holes may have tables of any length, and a process may wait meanwhile.
const MAX_TABLE: u64 = 256 << 20;

/// The most places where wanted names may be found. Linkers write a name once or twice.
const MAX_PLACES: usize = 4096;

const SYMBOL: usize = size_of::<Sym64<LE>>();

/// The most names in a table: nearly the number of symbols that fit into the longest table.
const MAX_NAMES: usize = 1 << 24;

/// The most names that are compared with wanted names because they have the same end. No program has as many, and a
/// file that is made of such names cannot keep memleak busy.
const MAX_COMPARED: usize = 1 << 19;

/// Where the symbols and their names lie in the file.
#[derive(Clone, Debug)]
pub struct Ranges {
    pub symbols: Range<u64>,
    pub strings: Range<u64>,
}

/// The symbol tables among the sections.
pub fn of_kind(elf: &ElfFile, kind: SectionType) -> Vec<Ranges> {
    let tables = elf.sections().iter().filter(|section| section.kind == kind);
    tables
        .filter_map(|section| {
            Some(Ranges {
                symbols: section.range(),
                strings: elf.sections().get(section.link)?.range(),
            })
        })
        // A file has one table of a kind. A file with many tables could keep memleak busy.
        .take(1)
        .collect()
}

/// Adds the functions of these names. Returns whether the table has functions of any name.
pub fn find<'n>(
    elf: &ElfFile,
    table: &Ranges,
    names: &Names<'n>,
    source: Source,
    found: &mut Found<'n>,
) -> Result<bool, Unreadable> {
    for range in [&table.symbols, &table.strings] {
        if range.end > elf.length() || range.end.saturating_sub(range.start) > MAX_TABLE {
            return Ok(false);
        }
    }
    let places = places_of(elf, &table.strings, names)?;
    let mut any = false;
    let mut symbols = Pieces::of(table.symbols.clone());
    while !(any && places.is_empty())
        && let Some(symbols) = symbols.next(elf)
    {
        for symbol in symbols.iter().filter(|symbol| is_function(symbol)) {
            any = true;
            if let Some(name) = places.get(&symbol.st_name.get(LE)) {
                add(&mut found.functions, name, symbol, source)?;
            }
        }
    }
    found.has_functions |= any;
    Ok(any)
}

/// The symbols of a table, which are read some at a time.
pub struct Pieces {
    rest: Range<u64>,
    buffer: Vec<u8>,
}

impl Pieces {
    /// The symbols in this range of a file.
    pub fn of(range: Range<u64>) -> Self {
        Self {
            buffer: vec![0; chunk_of(&range)],
            rest: range,
        }
    }

    /// The next ones. `None` at the end, and if they cannot be read.
    pub fn next(&mut self, elf: &ElfFile) -> Option<&[Sym64<LE>]> {
        let left = self.rest.end.saturating_sub(self.rest.start);
        let left = usize::try_from(left).unwrap_or(CHUNK);
        let count = left.min(self.buffer.len()) / SYMBOL;
        if count == 0 {
            return None;
        }
        let piece = &mut self.buffer[..count * SYMBOL];
        elf.fill(self.rest.start, piece)?;
        self.rest.start += piece.len() as u64;
        let (symbols, _) = object::pod::slice_from_bytes::<Sym64<LE>>(piece, count).ok()?;
        Some(symbols)
    }
}

/// How many bytes of a table are read at a time.
fn chunk_of(range: &Range<u64>) -> usize {
    usize::try_from(range.end.saturating_sub(range.start)).map_or(CHUNK, |size| size.min(CHUNK))
}

/// The offsets in the table of names at which the wanted names begin. A wanted name may be the end of a longer name.
fn places_of<'n>(
    elf: &ElfFile,
    strings: &Range<u64>,
    names: &Names<'n>,
) -> Result<HashMap<u32, &'n str>, Unreadable> {
    let mut places = HashMap::new();
    let (mut seen, mut compared) = (0, 0);
    // The end of the previous chunk is kept, since a name may begin in it.
    let overlap = names.longest;
    let mut buffer = vec![0; overlap + chunk_of(strings)];
    let mut kept = 0;
    let mut at = strings.start;
    while at < strings.end {
        let left = usize::try_from(strings.end - at).unwrap_or(CHUNK);
        let filled = kept + left.min(CHUNK);
        if elf.fill(at, &mut buffer[kept..filled]).is_none() {
            break;
        }
        let base = at - strings.start;
        let text = &buffer[..filled];
        for end in memchr::memchr_iter(0, &text[kept..]).map(|end| kept + end) {
            seen += 1;
            if seen > MAX_NAMES {
                return Err(Unreadable::Damaged("more names than symbols"));
            }
            let after_another = end > 0 && text[end - 1] == 0;
            let ending = end_of(&text[..end]);
            if after_another || !names.ends[ending] {
                continue;
            }
            compared += 1;
            if compared > MAX_COMPARED {
                return Err(Unreadable::Damaged("nearly the same names again and again"));
            }
            for &name in names.by_end.get(&ending).into_iter().flatten() {
                if text[..end].ends_with(name.as_bytes()) {
                    let place = base + end as u64 - kept as u64 - name.len() as u64;
                    if let Ok(place) = u32::try_from(place) {
                        places.insert(place, name);
                    }
                }
            }
            if places.len() > MAX_PLACES {
                return Err(Unreadable::Damaged("the same names again and again"));
            }
        }
        at += (filled - kept) as u64;
        let keep = filled.min(overlap);
        buffer.copy_within(filled - keep..filled, 0);
        kept = keep;
    }
    Ok(places)
}
