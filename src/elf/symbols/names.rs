//! The names that are looked for, and the functions that were found by them.

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
    /// Which ends occur, and in which names.
    pub(super) ends: Vec<bool>,
    pub(super) by_end: HashMap<usize, Vec<&'n str>>,
    pub(super) longest: usize,
}

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

/// A defined function of a wanted name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Function<'n> {
    pub name: &'n str,
    /// Virtual address, as the file has it.
    pub address: u64,
    /// In bytes; 0 where it is not known.
    pub size: u64,
    /// Nothing outside the file can bind to it.
    pub local: bool,
    pub source: Source,
}

/// Where a function's name was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// The dynamic symbols: what the file exports.
    Exported,
    /// `.symtab`
    Symtab,
    /// `.gnu_debugdata`: a compressed `.symtab`, in the file itself.
    DebugData,
    /// A debug file of its own.
    DebugFile,
}

/// Where the debug file of a file may be.
#[derive(Clone, Copy, Debug)]
pub struct Companions<'a> {
    /// What the processes that map the file see as `/`.
    pub root: &'a Root,
    /// The file's path in there.
    pub path: &'a Path,
}

/// More functions of wanted names than these no file has.
const MAX_FUNCTIONS: usize = 1024;

/// What a file says of its functions.
#[derive(Debug, Default)]
pub struct Found<'n> {
    /// In the order of their sources; each address and name once.
    pub functions: Vec<Function<'n>>,
    /// Whether any function at all has a name, wanted or not. Looked into only with companions: whoever
    /// has no use for debug data has none for this.
    pub has_functions: bool,
}

/// Whether a symbol is a function of this file. An indirect function (`STT_GNU_IFUNC`) is not: what is
/// at its address chooses the function.
pub(super) fn is_function(symbol: &Sym64<LE>) -> bool {
    symbol.st_type() == STT_FUNC && !symbol.is_undefined(LE) && symbol.st_value.get(LE) != 0
}

/// Adds a function to those found.
pub(super) fn add<'n>(
    functions: &mut Vec<Function<'n>>,
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

fn function<'n>(name: &'n str, symbol: &Sym64<LE>, source: Source) -> Function<'n> {
    Function {
        name,
        address: symbol.st_value.get(LE),
        size: symbol.st_size.get(LE),
        local: symbol.st_bind() == STB_LOCAL,
        source,
    }
}

/// How many different ends of names are told apart.
pub const ENDS: usize = 1 << 12;

/// A number for a name's last three bytes.
pub fn end_of(name: &[u8]) -> usize {
    let last = name.iter().rev().take(3);
    let mixed = last.fold(0_usize, |sum, &byte| sum * 37 + usize::from(byte));
    mixed % ENDS
}
