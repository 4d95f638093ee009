//! From functions to the places that are probed: one for most of them; for those that may throw also where
//! they return; none for those that leave all to others. Reads the file's code.

use std::cell::{OnceCell, RefCell};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::path::Path;

use anyhow::{Context, Result, bail};
use object::elf::{PF_X, PT_LOAD};
use object::read::ReadCache;
use object::read::elf::{ElfFile64, ProgramHeader};
use object::{
    Architecture, Endianness, Object, ObjectSymbol, ObjectSymbolTable, ReadRef, RelocationTarget,
};

use super::elf::Role;
use super::follow::{self, Followed, GaveUp, Pointer, Probed, Text};
use super::placement::{Kind, Placement, Reason, WINDOW, place_at_entry, place_x86_64};
use super::spec::{Action, Verb};
use super::table::{Family, FileTable, Program, Row};

/// How much of a function is decoded at the most: enough to see the jumps that land near its entry.
const DECODED: u64 = 4096;

/// Code is read in pieces of this size, and a bit more: an instruction may reach into the next one.
const PAGE: u64 = 4096;
const OVERLAP: u64 = 16;

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
/// The file is damaged, or of an architecture that memleak does not know.
pub fn place(
    file: &File,
    path: &Path,
    role: Role,
    mut functions: BTreeMap<u64, Found>,
    table: &FileTable<'_>,
) -> Result<Vec<Site>> {
    let context = || format!("cannot read {}", path.display());
    let cache = ReadCache::new(file.try_clone().with_context(context)?);
    let elf: Elf<'_> = ElfFile64::parse(&cache).with_context(context)?;
    let decodes = match elf.architecture() {
        Architecture::X86_64 => true,
        Architecture::Aarch64 => false,
        other => bail!(
            "{} is for {other:?}, which memleak does not know",
            path.display()
        ),
    };
    // An operator belongs to the allocator of its file; where there is none it calls another file's.
    let found = || functions.values().map(|found| &found.row);
    if !is_allocator(found()) {
        functions.retain(|_, found| found.row.family != Family::Operators);
    }
    let whole_text = role == Role::Library;
    let file_text = FileText::new(&cache, &elf, &functions, table);
    let bundled = functions.values().any(|found| {
        !matches!(found.row.family, Family::Prefix("") | Family::User(_))
            || found.row.name.ends_with("allocx")
    });
    let mut sites: BTreeMap<(u64, Program), Site> = BTreeMap::new();
    for (&address, found) in &functions {
        let segment = file_text.segment(address).with_context(|| {
            format!(
                "{} in {} lies outside its executable segment",
                found.symbol,
                path.display()
            )
        })?;
        let action = found.row.action;
        let is_user = matches!(found.row.family, Family::User(_));
        let follow = |frees| match decodes {
            true => follow::follow(&file_text, address, frees),
            false => Err(GaveUp::NotDecoded),
        };
        let followed = if action.may_throw() {
            Some(follow(action.frees()))
        } else if action.verb == Verb::Free && functions.len() > 1 {
            follow(true).ok().map(Ok)
        } else {
            None
        };
        if let Some(Ok(followed)) = &followed
            && followed.delegates
            && !is_user
        {
            continue;
        }
        let placement = match decodes {
            true => place_x86_64(
                segment.code(&cache, address, found.size)?,
                &action.arguments(),
            ),
            false => place_at_entry(),
        };
        let mut own = Range::of_function(address, found.size);
        if whole_text || is_user {
            own = segment.range();
        } else if let Some(Ok(Followed { inner, .. })) = &followed {
            own.extend(inner);
        } else if bundled && decodes && action.allocates() {
            own.extend(&follow::inner_calls(&file_text, address));
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
                        add(place, file_text.placement(place, offset, reason), verb);
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
            end: address + size,
        }
    }

    /// Takes calls in, with the addresses to which they return.
    fn extend(&mut self, calls: &BTreeSet<u64>) {
        if let (Some(first), Some(last)) = (calls.first(), calls.last()) {
            self.start = self.start.min(*first);
            self.end = self.end.max(last + CALL);
        }
    }
}

type Elf<'data> = ElfFile64<'data, Endianness, &'data ReadCache<File>>;

/// An executable segment.
#[derive(Clone, Copy)]
struct Segment {
    /// Virtual address in the file, offset in the file, bytes in the file.
    address: u64,
    offset: u64,
    size: u64,
}

impl Segment {
    fn range(&self) -> Range {
        Range {
            start: self.address,
            end: self.address + self.size,
        }
    }

    /// The function at `address`, or as much of it as is decoded.
    fn code<'data>(
        &self,
        cache: &'data ReadCache<File>,
        address: u64,
        function_size: u64,
    ) -> Result<&'data [u8]> {
        let start = address - self.address;
        let wanted = if function_size == 0 {
            WINDOW as u64
        } else {
            function_size
        };
        let size = wanted.min(DECODED).min(self.size - start);
        cache
            .read_bytes_at(self.offset + start, size)
            .map_err(|()| anyhow::anyhow!("the file ends within a function"))
    }
}

/// A file's code for [`follow`].
struct FileText<'a, 'data> {
    cache: &'data ReadCache<File>,
    elf: &'a Elf<'data>,
    segments: Vec<Segment>,
    functions: HashMap<u64, Probed>,
    table: &'a FileTable<'a>,
    pages: RefCell<HashMap<u64, &'data [u8]>>,
    pointers: OnceCell<HashMap<u64, Pointer>>,
}

impl<'a, 'data> FileText<'a, 'data> {
    fn new(
        cache: &'data ReadCache<File>,
        elf: &'a Elf<'data>,
        functions: &BTreeMap<u64, Found>,
        table: &'a FileTable<'a>,
    ) -> Self {
        let endian = elf.endian();
        let segments = elf
            .elf_program_headers()
            .iter()
            .filter(|header| {
                header.p_type(endian) == PT_LOAD && header.p_flags(endian).contains(PF_X)
            })
            .map(|header| Segment {
                address: header.p_vaddr(endian),
                offset: header.p_offset(endian),
                size: header.p_filesz(endian),
            })
            .collect();
        let functions = functions
            .iter()
            .filter_map(|(&address, found)| Some((address, probed(found.row.action)?)))
            .collect();
        FileText {
            cache,
            elf,
            segments,
            functions,
            table,
            pages: RefCell::default(),
            pointers: OnceCell::new(),
        }
    }

    fn segment(&self, address: u64) -> Option<Segment> {
        let mut segments = self.segments.iter();
        segments
            .find(|segment| (segment.address..segment.address + segment.size).contains(&address))
            .copied()
    }

    /// A placement at this very instruction.
    fn placement(&self, address: u64, offset: u64, reason: Reason) -> Placement {
        let at_it = place_x86_64(self.code(address), &[]);
        let emulated = at_it.kind == Kind::Emulated && at_it.offset == 0;
        Placement {
            offset,
            instruction: super::placement::instruction_at(self.code(address)),
            kind: match emulated {
                true => Kind::Emulated,
                false => Kind::SingleStepped,
            },
            reason,
        }
    }

    /// What the loader puts where: the relocations.
    fn read_pointers(&self) -> HashMap<u64, Pointer> {
        let mut pointers = HashMap::new();
        let (Some(relocations), Some(symbols)) = (
            self.elf.dynamic_relocations(),
            self.elf.dynamic_symbol_table(),
        ) else {
            return pointers;
        };
        for (at, relocation) in relocations {
            let pointer = match relocation.target() {
                RelocationTarget::Symbol(index) => match symbols.symbol_by_index(index) {
                    Ok(symbol) if symbol.is_definition() => Pointer::Here(symbol.address()),
                    Ok(symbol) => self.elsewhere(symbol.name().unwrap_or_default()),
                    Err(_) => Pointer::Unknown,
                },
                RelocationTarget::Absolute => Pointer::Here(relocation.addend().cast_unsigned()),
                _ => Pointer::Unknown,
            };
            pointers.insert(at, pointer);
        }
        pointers
    }

    fn elsewhere(&self, name: &str) -> Pointer {
        let row = self.table.find(name).map(|(row, _)| row);
        if row.is_some_and(|row| row.action.program() == Program::EntryReturn) {
            Pointer::Probed
        } else if never_returns(name) {
            Pointer::NeverReturns
        } else {
            Pointer::Unknown
        }
    }
}

impl Text for FileText<'_, '_> {
    fn code(&self, address: u64) -> &[u8] {
        let Some(segment) = self.segment(address) else {
            return &[];
        };
        let at = address - segment.address;
        let page = at / PAGE * PAGE;
        let code = *self
            .pages
            .borrow_mut()
            .entry(segment.address + page)
            .or_insert_with(|| {
                let size = (PAGE + OVERLAP).min(segment.size - page);
                let read = self.cache.read_bytes_at(segment.offset + page, size);
                read.unwrap_or_default()
            });
        code.get((at - page) as usize..).unwrap_or_default()
    }

    fn pointer(&self, address: u64) -> Pointer {
        let pointers = self.pointers.get_or_init(|| self.read_pointers());
        pointers.get(&address).copied().unwrap_or(Pointer::Unknown)
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
