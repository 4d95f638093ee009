//! The dynamic symbols, looked up through the hash tables that the loader uses. A file without a hash table is searched
//! by `symtab`.

use std::ops::Range;

use object::LittleEndian as LE;
use object::elf::{
    DT_GNU_HASH, DT_HASH, DT_STRSZ, DT_STRTAB, DT_SYMTAB, GnuHashHeader, HashHeader, SHT_DYNSYM,
    Sym64,
};
use object::endian::{U32, U64};
use object::read::elf::Sym;

use crate::elf::file::{ElfFile, Unreadable};
use crate::elf::symbols::names::{FunctionSymbol, Name, Names, Source, add, is_function};
use crate::elf::symbols::symtab;

/// The most chain entries that are read in one file. A chain has a few entries, but a damaged chain may have no end.
const STEPS: usize = 1 << 17;

/// A Bloom filter of at most this many words is read as a whole.
const SMALL_FILTER: u32 = 4096;

/// The most symbols that are read to learn whether any of them is a function.
const LOOKED_AT: u64 = 4096;

const SYMBOL: u64 = size_of::<Sym64<LE>>() as u64;

/// The symbols that a file exports.
pub struct Exported<'elf, 'file> {
    elf: &'elf ElfFile<'file>,
    symbols: Range<u64>,
    strings: Range<u64>,
    index: Index,
}

/// The hash table of the symbols.
enum Index {
    Gnu(GnuIndex),
    Sysv {
        buckets: u32,
        chains: u32,
        /// The offset in the file of the buckets. The chains follow them.
        at: u64,
    },
    /// No hash table: all symbols must be read.
    None,
}

/// A hash table of `DT_GNU_HASH`.
struct GnuIndex {
    buckets: u32,
    /// The first symbol in the table. Imported symbols come before it.
    first: u32,
    shift: u32,
    words: u32,
    filter_at: u64,
    filter: Vec<U64<LE>>,
    buckets_at: u64,
    chains_at: u64,
}

impl<'elf, 'file> Exported<'elf, 'file> {
    /// `None` for a file without a dynamic section, or with a dynamic section that names no symbols.
    pub fn of(elf: &'elf ElfFile<'file>) -> Option<Self> {
        let dynamic = elf.dynamic();
        let symbols_address = dynamic.get(DT_SYMTAB)?;
        let strings_address = dynamic.get(DT_STRTAB)?;
        let mut symbols = elf.mapped_at(symbols_address)?;
        let mut strings = elf.mapped_at(strings_address)?;
        if let Some(size) = dynamic.get(DT_STRSZ) {
            strings.end = strings.end.min(strings.start.saturating_add(size));
        }
        let gnu = dynamic
            .get(DT_GNU_HASH)
            .and_then(|address| GnuIndex::read(elf, elf.mapped_at(address)?.start));
        let index = gnu.map(Index::Gnu).or_else(|| {
            let at = elf.mapped_at(dynamic.get(DT_HASH)?)?.start;
            let header: HashHeader<LE> = elf.value(at)?;
            Some(Index::Sysv {
                buckets: header.bucket_count.get(LE),
                chains: header.chain_count.get(LE),
                at: at + size_of::<HashHeader<LE>>() as u64,
            })
        });
        // Of the dynamic section's tables only DT_HASH tells the number of symbols. The section headers may tell it,
        // too. Otherwise the symbols end where the names begin, as all linkers place them.
        let section = elf
            .sections()
            .iter()
            .find(|section| section.kind == SHT_DYNSYM);
        let count = match (&index, section) {
            (Some(Index::Sysv { chains, .. }), _) => Some(u64::from(*chains)),
            (_, Some(section)) if section.address == symbols_address => Some(section.size / SYMBOL),
            (None, _) => strings_address
                .checked_sub(symbols_address)
                .map(|size| size / SYMBOL),
            _ => None,
        };
        if let Some(size) = count.and_then(|count| count.checked_mul(SYMBOL)) {
            symbols.end = symbols.end.min(symbols.start.saturating_add(size));
        }
        Some(Self {
            elf,
            symbols,
            strings,
            index: index.unwrap_or(Index::None),
        })
    }

    /// Adds the functions of these names.
    pub fn find<'n>(
        &self,
        names: &Names<'n>,
        found: &mut Vec<FunctionSymbol<'n>>,
    ) -> Result<(), Unreadable> {
        if let Index::None = self.index {
            let mut all = super::Found::default();
            let ranges = symtab::Ranges {
                symbols: self.symbols.clone(),
                strings: self.strings.clone(),
            };
            symtab::find(self.elf, &ranges, names, Source::Exported, &mut all)?;
            found.append(&mut all.functions);
            return Ok(());
        }
        let mut steps = STEPS;
        for name in &names.names {
            let mut result = Ok(());
            self.look_up(name, &mut steps, &mut |symbol| {
                if is_function(symbol) && result.is_ok() {
                    result = add(found, name.text, symbol, Source::Exported);
                }
            })?;
            result?;
        }
        Ok(())
    }

    /// The address of the symbol of this name, if it is defined.
    pub fn address(&self, name: &str) -> Result<Option<u64>, Unreadable> {
        let names = Names::new([name]);
        let mut address = None;
        self.look_up(&names.names[0], &mut { STEPS }, &mut |symbol| {
            if !symbol.is_undefined(LE) {
                address = Some(symbol.st_value(LE));
            }
        })?;
        Ok(address)
    }

    /// Whether any function is defined.
    pub fn any_function(&self) -> bool {
        let start = match &self.index {
            Index::Gnu(index) => u64::from(index.first) * SYMBOL,
            _ => 0,
        };
        let start = self.symbols.start.saturating_add(start);
        let count = self.symbols.end.saturating_sub(start) / SYMBOL;
        let count = usize::try_from(count.min(LOOKED_AT)).unwrap_or(0);
        let symbols: Option<Vec<Sym64<LE>>> = self.elf.array(start, count);
        symbols.is_some_and(|symbols| symbols.iter().any(is_function))
    }

    /// Calls `found` for each symbol of this name. A name may have symbols in several versions.
    fn look_up(
        &self,
        name: &Name,
        steps: &mut usize,
        found: &mut dyn FnMut(&Sym64<LE>),
    ) -> Result<(), Unreadable> {
        match &self.index {
            Index::Gnu(index) => index.look_up(self.elf, name.gnu_hash, steps, &mut |symbol| {
                self.take(symbol, name, found);
            }),
            Index::Sysv {
                buckets,
                chains,
                at,
            } => {
                if *buckets == 0 {
                    return Ok(());
                }
                let word = |n: u64| -> Option<u32> {
                    let word: U32<LE> = self.elf.value(at.checked_add(n * 4)?)?;
                    Some(word.get(LE))
                };
                let mut symbol = word(u64::from(name.sysv_hash % buckets));
                while let Some(index) = symbol.filter(|&index| index != 0 && index < *chains) {
                    step(steps)?;
                    self.take(index, name, found);
                    symbol = word(u64::from(*buckets) + u64::from(index));
                }
                Ok(())
            }
            Index::None => Ok(()),
        }
    }

    /// Calls `found` for the symbol at `index` if the symbol has this name.
    fn take(&self, index: u32, name: &Name, found: &mut dyn FnMut(&Sym64<LE>)) {
        let at = u64::from(index) * SYMBOL;
        let symbol = || {
            let at = self.symbols.start.checked_add(at)?;
            let symbol: Sym64<LE> = self.elf.value(at)?;
            let start = self.strings.start + u64::from(symbol.st_name.get(LE));
            let length = name.text.len() as u64 + 1;
            let text = self.elf.read(start, length)?;
            let same = text.strip_suffix(&[0]) == Some(name.text.as_bytes());
            same.then_some(symbol)
        };
        if let Some(symbol) = symbol() {
            found(&symbol);
        }
    }
}

impl GnuIndex {
    fn read(elf: &ElfFile, at: u64) -> Option<Self> {
        let header: GnuHashHeader<LE> = elf.value(at)?;
        let words = header.bloom_count.get(LE);
        if !words.is_power_of_two() {
            return None;
        }
        let filter_at = at + size_of::<GnuHashHeader<LE>>() as u64;
        let filter = if words <= SMALL_FILTER {
            elf.array(filter_at, words as usize)?
        } else {
            Vec::new()
        };
        let buckets = header.bucket_count.get(LE);
        let buckets_at = filter_at + u64::from(words) * 8;
        Some(Self {
            buckets,
            first: header.symbol_base.get(LE),
            shift: header.bloom_shift.get(LE),
            words,
            filter_at,
            filter,
            buckets_at,
            chains_at: buckets_at + u64::from(buckets) * 4,
        })
    }

    fn look_up(
        &self,
        elf: &ElfFile,
        hash: u32,
        steps: &mut usize,
        found: &mut dyn FnMut(u32),
    ) -> Result<(), Unreadable> {
        let Some(mut symbol) = self.first_of(elf, hash) else {
            return Ok(());
        };
        loop {
            let n = u64::from(symbol - self.first);
            // Most chains have fewer than 8 entries.
            let chain: Vec<U32<LE>> = (elf.array(self.chains_at + n * 4, 8))
                .or_else(|| elf.array(self.chains_at + n * 4, 1))
                .ok_or(Unreadable::Damaged("it ends within its hash table"))?;
            for entry in chain {
                step(steps)?;
                let entry = entry.get(LE);
                // The lowest bit marks the last entry of a chain.
                if entry | 1 == hash | 1 {
                    found(symbol);
                }
                if entry & 1 != 0 {
                    return Ok(());
                }
                symbol = symbol
                    .checked_add(1)
                    .ok_or(Unreadable::Damaged("a hash chain has no end"))?;
            }
        }
    }

    /// The first symbol of the chain for `hash`. `None` if the filter says that no symbol has this hash.
    fn first_of(&self, elf: &ElfFile, hash: u32) -> Option<u32> {
        let at = (hash / 64) & (self.words - 1);
        let word = match self.filter.get(at as usize) {
            Some(word) => *word,
            None => elf.value(self.filter_at + u64::from(at) * 8)?,
        };
        let second = hash.checked_shr(self.shift).unwrap_or(0);
        let mask = 1_u64 << (hash % 64) | 1_u64 << (second % 64);
        if word.get(LE) & mask != mask || self.buckets == 0 {
            return None;
        }
        let bucket = u64::from(hash % self.buckets);
        let symbol: U32<LE> = elf.value(self.buckets_at + bucket * 4)?;
        // An empty bucket holds 0.
        Some(symbol.get(LE)).filter(|&symbol| symbol >= self.first.max(1))
    }
}

/// Counts a chain entry against the limit.
fn step(steps: &mut usize) -> Result<(), Unreadable> {
    *steps = steps
        .checked_sub(1)
        .ok_or(Unreadable::Damaged("its hash chains are too long"))?;
    Ok(())
}
