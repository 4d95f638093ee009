//! The names that are looked for, and the functions that were found by these names. Searching is left to `exported`,
//! `symtab` and `debug`.

use std::collections::HashMap;
use std::path::Path;

use object::LittleEndian as LE;
use object::elf::{STB_LOCAL, STT_FUNC, Sym64, gnu_hash, hash};
use object::read::elf::Sym;

use crate::elf::file::Unreadable;
use crate::os::root::Root;

/// The names that are looked for, prepared once for many files.
#[derive(Clone, Debug)]
pub struct Names<'n> {
    pub(super) names: Vec<Name<'n>>,
    /// Which values of [`end_of`] occur among the names.
    pub(super) ends: Vec<bool>,
    /// The names by their [`end_of`].
    pub(super) by_end: HashMap<usize, Vec<&'n str>>,
    /// Bytes of the longest name.
    pub(super) longest: usize,
}

/// A name and its hashes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Name<'n> {
    pub(super) text: &'n str,
    pub(super) gnu_hash: u32,
    pub(super) sysv_hash: u32,
}

impl<'n> Names<'n> {
    pub fn new(names: impl IntoIterator<Item = &'n str>) -> Self {
        let names: Vec<_> = names
            .into_iter()
            .map(|text| Name {
                text,
                gnu_hash: gnu_hash(text.as_bytes()),
                sysv_hash: hash(text.as_bytes()),
            })
            .collect();
        let mut ends = vec![false; ENDS];
        let mut by_end: HashMap<_, Vec<_>> = HashMap::new();
        for name in &names {
            let end = end_of(name.text.as_bytes());
            ends[end] = true;
            by_end.entry(end).or_default().push(name.text);
        }
        let longest = names.iter().map(|name| name.text.len()).max().unwrap_or(0);
        Self {
            names,
            ends,
            by_end,
            longest,
        }
    }
}

/// A defined function with a wanted name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FunctionSymbol<'n> {
    pub name: &'n str,
    /// The virtual address that the file gives.
    pub address: u64,
    /// In bytes; 0: unknown.
    pub size: u64,
    /// No other file can bind to the function.
    pub local: bool,
    pub source: Source,
}

/// Where a function's name was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// The dynamic symbols, which the file exports.
    Exported,
    /// `.symtab`
    Symtab,
    /// `.gnu_debugdata`: a compressed `.symtab`, in the file itself.
    DebugData,
    /// A separate debug file.
    DebugFile,
}

/// Where to look for the debug file of a file.
#[derive(Clone, Copy, Debug)]
pub struct Companions<'a> {
    /// The root directory of the processes that map the file.
    pub root: &'a Root,
    /// The file's path below that root.
    pub path: &'a Path,
}

/// The most functions with wanted names in one file. No file has more.
const MAX_FUNCTIONS: usize = 1024;

/// What was found in a file's symbols.
#[derive(Debug, Default)]
pub struct Found<'n> {
    /// In the order of their sources. Each pair of address and name comes once.
    pub functions: Vec<FunctionSymbol<'n>>,
    /// Whether the file names any function, wanted or not. Complete only if `find` was given companions: a caller that
    /// needs no debug data does not need this either.
    pub has_functions: bool,
}

/// Whether a symbol is a function of this file. An indirect function (`STT_GNU_IFUNC`) is not: the code at its
/// address only chooses the function.
pub(super) fn is_function(symbol: &Sym64<LE>) -> bool {
    symbol.st_type() == STT_FUNC && !symbol.is_undefined(LE) && symbol.st_value.get(LE) != 0
}

/// Adds a function to those found.
pub(super) fn add<'n>(
    functions: &mut Vec<FunctionSymbol<'n>>,
    name: &'n str,
    symbol: &Sym64<LE>,
    source: Source,
) -> Result<(), Unreadable> {
    if functions.len() == MAX_FUNCTIONS {
        return Err(Unreadable::Damaged("the same functions again and again"));
    }
    functions.push(function(name, symbol, source));
    Ok(())
}

fn function<'n>(name: &'n str, symbol: &Sym64<LE>, source: Source) -> FunctionSymbol<'n> {
    FunctionSymbol {
        name,
        address: symbol.st_value.get(LE),
        size: symbol.st_size.get(LE),
        local: symbol.st_bind() == STB_LOCAL,
        source,
    }
}

/// The number of different values of [`end_of`].
pub const ENDS: usize = 1 << 12;

/// A number below [`ENDS`] for a name's last three bytes.
pub fn end_of(name: &[u8]) -> usize {
    let last = name.iter().rev().take(3);
    let mixed = last.fold(0_usize, |sum, &byte| sum * 37 + usize::from(byte));
    mixed % ENDS
}
