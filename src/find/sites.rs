//! From functions to the places that are probed: one for most of them; for those that may throw also where
//! they return; none for those that leave all to others. Reads the file's code.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

use anyhow::{Context, Result};
use object::LittleEndian as LE;
use object::elf::{
    DT_JMPREL, DT_PLTRELSZ, DT_RELA, DT_RELASZ, DT_STRTAB, DT_SYMTAB, DynamicTag, Rela64, Sym64,
};
use object::read::elf::{Rela, Sym};

use crate::code::follow::{self, Followed, GaveUp, LONGEST, Pointer, Probed, Text, Work};
use crate::code::placement::{self, Placement, Reason, WINDOW};
use crate::elf::file::{ElfFile, Segment, string_in};
use crate::find::functions::{Family, FileTable, ProbeProgram, Row};
use crate::find::notation::{Action, Verb};
use crate::find::role::Role;

/// How much of a function is decoded at the most: enough to see the jumps that land near its entry.
const DECODED: u64 = 4096;

/// Code is read in pieces of this size, and a bit more: an instruction may reach into the next one.
const PAGE: u64 = 4096;

/// Code that is kept at one time, in pages.
const PAGES: usize = 4096;

/// How many instructions of a file are decoded, those that are decoded again counted again. The libraries of
/// jemalloc, mimalloc and tcmalloc take 900 to 2,100.
const MAX_DECODED: usize = 1 << 20;

/// Relocations that are looked at, in pieces: a large library has some hundred thousand.
const RELOCATIONS: u64 = 1 << 18;
const RELOCATIONS_AT_ONCE: u64 = 1 << 12;
const RELOCATION: u64 = size_of::<Rela64<LE>>() as u64;

/// Names longer than this are those of no function that matters here.
const LONGEST_NAME: u64 = 128;

/// The length of a call, at the most: its return address lies so far behind its own.
const CALL: u64 = 16;

/// A function that the table has a row for.
#[derive(Clone, Debug)]
pub struct Found {
    pub row: Row,
    pub symbol: String,
    /// In bytes; 0: unknown.
    pub size: u64,
}

/// A place to probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site {
    pub row: Row,
    /// The symbol found at this address; of several, the one whose row comes first.
    pub symbol: String,
    /// The probe's offset in the file.
    pub file_offset: u64,
    pub placement: Placement,
    /// Bytes of the allocator's code before the probe, and from it on: of the executable segment in a
    /// library, of the function in a program, whose segment is its own code, too.
    pub text_before: u64,
    pub text_after: u64,
}

/// Where to probe the functions, which are named by their addresses.
///
/// # Errors
/// The file is damaged.
pub fn place(
    elf: &ElfFile<'_>,
    path: &Path,
    role: Role,
    mut functions: BTreeMap<u64, Found>,
    table: &FileTable<'_>,
) -> Result<Vec<Site>> {
    // An operator belongs to the allocator of its file; where there is none it calls another file's.
    let found = || functions.values().map(|found| &found.row);
    if !is_allocator(found()) {
        functions.retain(|_, found| found.row.family != Family::Operators);
    }
    let whole_text = role == Role::Library;
    let file_text = FileText::new(elf, &functions, table);
    let bundled = functions.values().any(|found| {
        !matches!(found.row.family, Family::Prefix("") | Family::User(_))
            || found.row.name.ends_with("allocx")
    });
    let mut sites: BTreeMap<(u64, ProbeProgram), Site> = BTreeMap::new();
    for (&address, found) in &functions {
        let segment = elf.text_segment(address).with_context(|| {
            format!(
                "{} in {} lies outside its executable segment",
                found.symbol,
                path.display()
            )
        })?;
        let mut action = found.row.action;
        let is_user = matches!(found.row.family, Family::User(_));
        let follow = |work| {
            follow::follow(&file_text, address, work)
                .and_then(|followed| file_text.whole().map(|()| followed))
        };
        let followed = if action.may_throw() {
            Some(follow(match action.frees() {
                true => Work::FreesAndThrows,
                false => Work::Allocates,
            }))
        } else if action.verb == Verb::Free && functions.len() > 1 {
            follow(Work::Frees).ok().map(Ok)
        } else {
            None
        };
        if let Some(Ok(followed)) = &followed
            && followed.delegates
            && !is_user
        {
            continue;
        }
        if action.verb == Verb::Free && follow::begins_again(&file_text, address) {
            action.verb = Verb::FreeAgain;
        }
        let placement = placement::place(
            &code(elf, segment, address, found.size)?,
            &action.arguments(),
        );
        let mut own = Range::of_function(address, found.size);
        if whole_text || is_user {
            own = Range::of_function(segment.address, segment.size);
        } else if let Some(Ok(Followed { inner, callees, .. })) = &followed {
            own.extend(inner);
            own.extend(&follow::calls_below(&file_text, callees.clone()));
        } else if bundled && action.allocates() {
            own.extend(&follow::calls_below(&file_text, BTreeSet::from([address])));
        }
        let mut add = |at: u64, placement: Placement, verb: Verb| {
            let row = Row {
                action: Action { verb, ..action },
                ..found.row.clone()
            };
            let key = (at, row.action.program());
            sites.entry(key).or_insert_with(|| Site {
                row,
                symbol: found.symbol.clone(),
                file_offset: segment.offset + (at - segment.address),
                text_before: at.saturating_sub(own.start),
                text_after: own.end.saturating_sub(at),
                placement,
            });
        };
        let at = address + placement.offset;
        match followed {
            Some(Ok(followed)) if action.may_throw() => {
                add(at, placement, action.verb);
                for (places, verb, reason) in [
                    (followed.returns, Verb::Return, Reason::Returns),
                    (followed.exits, Verb::Left, Reason::Leaves),
                ] {
                    for place in places {
                        let offset = place.wrapping_sub(address);
                        // A tail call may have left the segment.
                        if segment.address <= place && place - segment.address < segment.size {
                            add(place, file_text.placement(place, offset, reason), verb);
                        }
                    }
                }
            }
            Some(Err(_)) => {
                let reason = Reason::Unfollowed;
                add(
                    at,
                    Placement {
                        reason,
                        ..placement
                    },
                    Verb::Unfollowed,
                );
            }
            _ => add(at, placement, action.verb),
        }
    }
    Ok(sites.into_values().collect())
}

/// Whether these functions are an allocator: one of them gives out blocks, another one of the same family
/// takes them back. A file that defines only some of the functions (a tool that intercepts malloc, say)
/// passes its calls on to one that is an allocator.
pub fn is_allocator<'row>(rows: impl Iterator<Item = &'row Row> + Clone) -> bool {
    rows.clone().any(|row| {
        row.action.allocates()
            && row.family != Family::Operators
            && rows
                .clone()
                .any(|other| other.family == row.family && other.action.frees())
    })
}

/// A range of addresses.
#[derive(Clone, Copy)]
struct Range {
    start: u64,
    end: u64,
}

impl Range {
    fn of_function(address: u64, size: u64) -> Self {
        Range {
            start: address,
            end: address.saturating_add(size),
        }
    }

    /// Takes calls in, with the addresses to which they return.
    fn extend(&mut self, calls: &BTreeSet<u64>) {
        if let (Some(first), Some(last)) = (calls.first(), calls.last()) {
            self.start = self.start.min(*first);
            self.end = self.end.max(last.saturating_add(CALL));
        }
    }
}

/// The function at `address`, or as much of it as is decoded.
fn code(elf: &ElfFile<'_>, segment: &Segment, address: u64, function_size: u64) -> Result<Vec<u8>> {
    let in_segment = address - segment.address;
    let wanted = if function_size == 0 {
        WINDOW as u64
    } else {
        function_size
    };
    let size = wanted.min(DECODED).min(segment.size - in_segment);
    (segment.offset.checked_add(in_segment))
        .and_then(|offset| elf.read(offset, size))
        .context("the file ends within a function")
}

/// A file's code for [`follow`].
struct FileText<'a> {
    elf: &'a ElfFile<'a>,
    functions: HashMap<u64, Probed>,
    table: &'a FileTable<'a>,
    pages: RefCell<HashMap<u64, Vec<u8>>>,
    /// How many more instructions may be decoded.
    left: Cell<usize>,
    relocations: OnceCell<HashMap<u64, Rela64<LE>>>,
}

impl<'a> FileText<'a> {
    fn new(
        elf: &'a ElfFile<'a>,
        functions: &BTreeMap<u64, Found>,
        table: &'a FileTable<'a>,
    ) -> Self {
        let functions = functions
            .iter()
            .filter_map(|(&address, found)| Some((address, probed(found.row.action)?)))
            .collect();
        FileText {
            elf,
            functions,
            table,
            pages: RefCell::default(),
            left: Cell::new(MAX_DECODED),
            relocations: OnceCell::new(),
        }
    }

    /// Whether what was decoded is all that was to be.
    fn whole(&self) -> Result<(), GaveUp> {
        (self.left.get() > 0).then_some(()).ok_or(GaveUp::TooLong)
    }

    /// A placement at this very instruction.
    fn placement(&self, address: u64, offset: u64, reason: Reason) -> Placement {
        let mut buffer = [0; LONGEST];
        let (instruction, kind) = placement::placed_on(self.code(address, &mut buffer));
        Placement {
            offset,
            instruction,
            kind,
            reason,
        }
    }

    /// The relocations, by the address that they fill in.
    fn read_relocations(&self) -> HashMap<u64, Rela64<LE>> {
        let mut relocations = HashMap::new();
        for (start, size) in [(DT_JMPREL, DT_PLTRELSZ), (DT_RELA, DT_RELASZ)] {
            let (Some(mut at), Some(size)) = (self.table_at(start), self.elf.dynamic().get(size))
            else {
                continue;
            };
            let mut left = (size / RELOCATION).min(RELOCATIONS);
            while left > 0 {
                let count = left.min(RELOCATIONS_AT_ONCE);
                let Some(some) = self.elf.array::<Rela64<LE>>(at, count as usize) else {
                    break;
                };
                relocations.extend(some.iter().map(|rela| (rela.r_offset.get(LE), *rela)));
                at += count * RELOCATION;
                left -= count;
            }
        }
        relocations
    }

    /// Where in the file the table is that the dynamic section has under this tag.
    fn table_at(&self, tag: DynamicTag) -> Option<u64> {
        let address = self.elf.dynamic().get(tag)?;
        Some(self.elf.mapped_at(address)?.start)
    }

    fn resolve(&self, rela: &Rela64<LE>) -> Option<Pointer> {
        let index = rela.symbol(LE, false);
        let Some(index) = index else {
            // Relative to where the file is mapped.
            return Some(Pointer::Here(rela.r_addend.get(LE).cast_unsigned()));
        };
        let at = (index.0 as u64).checked_mul(size_of::<Sym64<LE>>() as u64)?;
        let symbol: Sym64<LE> = self.elf.value(self.table_at(DT_SYMTAB)?.checked_add(at)?)?;
        if !symbol.is_undefined(LE) {
            return Some(Pointer::Here(symbol.st_value.get(LE)));
        }
        let name = u64::from(symbol.st_name.get(LE));
        let at = self.table_at(DT_STRTAB)?.checked_add(name)?;
        let length = LONGEST_NAME.min(self.elf.length().checked_sub(at)?);
        let bytes = self.elf.read(at, length)?;
        Some(self.elsewhere(std::str::from_utf8(string_in(&bytes, 0)?).ok()?))
    }

    fn elsewhere(&self, name: &str) -> Pointer {
        let row = self.table.find(name).map(|(row, _)| row);
        if row.is_some_and(|row| row.action.program() == ProbeProgram::EntryReturn) {
            Pointer::Probed
        } else if never_returns(name) {
            Pointer::NeverReturns
        } else {
            Pointer::Unknown
        }
    }
}

impl Text for FileText<'_> {
    fn code<'b>(&self, address: u64, buffer: &'b mut [u8; LONGEST]) -> &'b [u8] {
        let left = self.left.get();
        self.left.set(left.saturating_sub(1));
        let Some(segment) = self.elf.text_segment(address).filter(|_| left > 0) else {
            return &[];
        };
        let at = address - segment.address;
        let page = at / PAGE * PAGE;
        let mut pages = self.pages.borrow_mut();
        if pages.len() == PAGES {
            pages.clear();
        }
        let code = pages.entry(segment.address + page).or_insert_with(|| {
            let size = (PAGE + LONGEST as u64).min(segment.size - page);
            let offset = segment.offset.checked_add(page);
            offset
                .and_then(|offset| self.elf.read(offset, size))
                .unwrap_or_default()
        });
        let code = code.get((at - page) as usize..).unwrap_or_default();
        let length = code.len().min(LONGEST);
        buffer[..length].copy_from_slice(&code[..length]);
        &buffer[..length]
    }

    fn pointer(&self, address: u64) -> Pointer {
        let relocations = self.relocations.get_or_init(|| self.read_relocations());
        let rela = relocations.get(&address);
        rela.and_then(|rela| self.resolve(rela))
            .unwrap_or(Pointer::Unknown)
    }

    fn function(&self, address: u64) -> Option<Probed> {
        self.functions.get(&address).copied()
    }
}

fn probed(action: Action) -> Option<Probed> {
    if action.frees() {
        Some(Probed::Frees)
    } else if action.may_throw() {
        Some(Probed::MayThrow)
    } else {
        action.allocates().then_some(Probed::Allocates)
    }
}

/// Functions of the C and C++ libraries that end a path: by an exception, or by the end of the process.
fn never_returns(name: &str) -> bool {
    const NAMES: [&str; 15] = [
        "abort",
        "exit",
        "_exit",
        "_Exit",
        "quick_exit",
        "__assert_fail",
        "__stack_chk_fail",
        "__cxa_throw",
        "__cxa_rethrow",
        "__cxa_call_terminate",
        "__cxa_call_unexpected",
        "__cxa_throw_bad_array_new_length",
        "_Unwind_Resume",
        "_ZSt9terminatev",
        "__fortify_fail",
    ];
    NAMES.contains(&name) || (name.starts_with("_ZSt") && name.contains("__throw_"))
}
