//! The names of functions, by address, from a file's symbol tables.
//!
//! A table is read once for all addresses, and nothing but the answers is kept.

use std::cmp::Ordering;
use std::ops::Range;

use object::LittleEndian as LE;
use object::elf::{
    SHT_DYNSYM, SHT_SYMTAB, STB_LOCAL, STT_FUNC, STT_GNU_IFUNC, STT_NOTYPE, STV_HIDDEN,
    STV_INTERNAL, SectionType, Sym64,
};
use object::read::elf::Sym as _;

use crate::elf::file::{ElfFile, string_in};
use crate::elf::symbols::symtab::{self, Pieces, Ranges};
use crate::stacks::units::within;

/// The most bytes of symbols that are read: 2.8 million symbols. librustc_driver has 100,000.
const MAX_TABLE: u64 = 64 << 20;

/// The most pairs of a symbol and an address in it that are looked at. In a table that a linker made, few functions
/// overlap.
const MAX_PAIRS: usize = 1 << 24;

/// The most names of one function that are compared.
const MAX_NAMES: usize = 16;

/// The most bytes of a name.
const MAX_NAME: u64 = 16 << 10;

/// How far behind a symbol without a size an address may be.
const MAX_DISTANCE: u64 = 64 << 10;

/// A function, by its symbol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableSymbol {
    pub name: String,
    start: u64,
    has_size: bool,
    local: bool,
}

impl TableSymbol {
    /// The symbol that says more of an address comes first. Of several names for a function, that is the one that
    /// programmers use: `strdup`, not `__strdup`.
    fn compare(&self, other: &Self) -> Ordering {
        let underscores = |name: &str| name.len() - name.trim_start_matches('_').len();
        other
            .has_size
            .cmp(&self.has_size)
            .then(other.start.cmp(&self.start))
            .then(self.local.cmp(&other.local))
            .then(underscores(&self.name).cmp(&underscores(&other.name)))
            .then(self.name.len().cmp(&other.name.len()))
            .then(self.name.cmp(&other.name))
    }
}

/// The names of one function in one table.
#[derive(Clone, Debug, Default)]
struct Candidate {
    start: u64,
    has_size: bool,
    /// Offsets in the table of names, and whether the symbol is local.
    names: Vec<(u32, bool)>,
}

/// The symbols around the sorted addresses, from all tables of a file.
pub fn symbols_at(elf: &ElfFile, addresses: &[u64]) -> Vec<Option<TableSymbol>> {
    let mut found = vec![None; addresses.len()];
    for kind in [SHT_DYNSYM, SHT_SYMTAB] {
        add_table(elf, kind, addresses, &mut found);
    }
    found
}

fn add_table(
    elf: &ElfFile,
    kind: SectionType,
    addresses: &[u64],
    found: &mut [Option<TableSymbol>],
) {
    for table in symtab::of_kind(elf, kind) {
        let candidates = candidates(elf, &table, addresses);
        // Neighbours are often in the same function.
        let mut last: Option<(&Candidate, Option<TableSymbol>)> = None;
        for (at, candidate) in candidates.iter().enumerate() {
            let named = match &last {
                Some((same, named))
                    if same.start == candidate.start && same.names == candidate.names =>
                {
                    named.clone()
                }
                _ => best_name(elf, &table, candidate),
            };
            last = Some((candidate, named.clone()));
            if let Some(named) = named
                && found[at]
                    .as_ref()
                    .is_none_or(|known| named.compare(known).is_lt())
            {
                found[at] = Some(named);
            }
        }
    }
}

/// For each address, the function that it is in.
fn candidates(elf: &ElfFile, table: &Ranges, addresses: &[u64]) -> Vec<Candidate> {
    let mut best = vec![Candidate::default(); addresses.len()];
    // The last symbol without a size before each address, and the last end of a function before it. For now these are at
    // the first address behind them.
    let mut without_size = best.clone();
    let mut ends = vec![0; addresses.len()];
    let mut pairs = 0;
    let Range { start, end } = table.symbols;
    let mut symbols = Pieces::of(start..end.min(start.saturating_add(MAX_TABLE)));
    while pairs < MAX_PAIRS
        && let Some(symbols) = symbols.next(elf)
    {
        for symbol in symbols.iter().filter(|symbol| is_code(symbol)) {
            let (start, size) = (symbol.st_value.get(LE), symbol.st_size.get(LE));
            let hidden = [STV_HIDDEN, STV_INTERNAL].contains(&symbol.st_visibility());
            let name = (
                symbol.st_name.get(LE),
                hidden || symbol.st_bind() == STB_LOCAL,
            );
            let end = start.saturating_add(size);
            let inside = within(addresses, start, end);
            pairs += inside.len();
            for candidate in &mut best[inside] {
                candidate.offer(start, name, true);
            }
            if size == 0 {
                let behind = within(addresses, start, u64::MAX).start;
                if let Some(candidate) = without_size.get_mut(behind) {
                    candidate.offer(start, name, false);
                }
            } else if let Some(last) = ends.get_mut(within(addresses, end, u64::MAX).start) {
                *last = end.max(*last);
            }
        }
    }
    let (mut before, mut last_end) = (Candidate::default(), 0);
    for (at, candidate) in best.iter_mut().enumerate() {
        last_end = last_end.max(ends[at]);
        if !without_size[at].names.is_empty() {
            before = std::mem::take(&mut without_size[at]);
        }
        let near = addresses[at] - before.start.min(addresses[at]) < MAX_DISTANCE;
        if candidate.names.is_empty() && near && before.start >= last_end {
            *candidate = before.clone();
        }
    }
    best
}

impl Candidate {
    fn offer(&mut self, start: u64, name: (u32, bool), has_size: bool) {
        if self.names.is_empty() || start > self.start {
            self.start = start;
            self.has_size = has_size;
            self.names.clear();
        }
        if start == self.start && self.names.len() < MAX_NAMES {
            self.names.push(name);
        }
    }
}

/// Whether a symbol names code of this file. Labels that were written in assembler have no type.
fn is_code(symbol: &Sym64<LE>) -> bool {
    let kind = symbol.st_type();
    let is_function = kind == STT_FUNC || kind == STT_GNU_IFUNC;
    let is_label = kind == STT_NOTYPE && symbol.st_bind() != STB_LOCAL;
    (is_function || is_label)
        && !symbol.is_undefined(LE)
        && !symbol.is_absolute(LE)
        && symbol.st_value.get(LE) != 0
}

/// The best of a function's names.
fn best_name(elf: &ElfFile, table: &Ranges, candidate: &Candidate) -> Option<TableSymbol> {
    let named = |&(offset, local): &(u32, bool)| {
        let at = table.strings.start.checked_add(u64::from(offset))?;
        let length = table.strings.end.checked_sub(at)?;
        // Most names are short.
        let name = [256, MAX_NAME].into_iter().find_map(|most| {
            let bytes = elf.read(at, length.min(most))?;
            string_in(&bytes, 0).map(|name| String::from_utf8_lossy(name).into_owned())
        })?;
        // The version of a symbol is no part of its name.
        let end = name.find('@').filter(|&at| at > 0).unwrap_or(name.len());
        (end > 0).then(|| TableSymbol {
            name: name[..end].to_owned(),
            start: candidate.start,
            has_size: candidate.has_size,
            local,
        })
    };
    let names = candidate.names.iter().filter_map(named);
    names.min_by(TableSymbol::compare)
}
