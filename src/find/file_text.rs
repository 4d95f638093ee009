//! A file's code and pointers as [`crate::code::follow`] wants them. Reads the code in pages, bounds the work, and
//! resolves pointers through the file's relocations. [`crate::find::sites`] decides which functions are followed.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::HashMap;

use object::LittleEndian as LE;
use object::elf::{
    DT_JMPREL, DT_PLTRELSZ, DT_RELA, DT_RELASZ, DT_STRTAB, DT_SYMTAB, DynamicTag, PF_W,
    PT_GNU_RELRO, PT_LOAD, Rela64, Sym64,
};
use object::read::elf::{Rela, Sym};

use crate::code::follow::{LONGEST, Pointer, Probed, Text, TooLong};
use crate::code::placement::{self, Placement, Reason};
use crate::elf::file::{ElfFile, string_in};
use crate::find::functions::{FileTable, ProbeProgram};
use crate::find::notation::Action;

/// Code is read in pages of this size, plus the longest instruction: an instruction may reach into the next page.
const PAGE: u64 = 4096;

/// The most pages of code that are kept at one time.
const PAGES: usize = 4096;

/// The most instructions that are decoded in one file. An instruction that is decoded twice counts twice.
/// The libraries of jemalloc, mimalloc and tcmalloc take 900 to 2,100.
const MAX_DECODED: usize = 1 << 20;

/// The most relocations that are read from one table. A large library has some hundred thousand.
const RELOCATIONS: u64 = 1 << 18;
/// Relocations are read in pieces of this many.
const RELOCATIONS_AT_ONCE: u64 = 1 << 12;
/// Bytes of a relocation.
const RELOCATION: u64 = size_of::<Rela64<LE>>() as u64;

/// A longer name belongs to no function that matters here.
const LONGEST_NAME: u64 = 128;

/// How the loader fills in a pointer: the types of relocations, by machine.
#[cfg(target_arch = "x86_64")]
mod relocation {
    use object::elf::{
        R_X86_64_64, R_X86_64_GLOB_DAT, R_X86_64_JUMP_SLOT, R_X86_64_RELATIVE, RelocationType,
    };
    /// The linker's own pointers, which no code of the file writes.
    pub const SLOTS: [RelocationType; 2] = [R_X86_64_GLOB_DAT, R_X86_64_JUMP_SLOT];
    pub const ADDRESS: RelocationType = R_X86_64_64;
    pub const RELATIVE: RelocationType = R_X86_64_RELATIVE;
}
#[cfg(target_arch = "aarch64")]
mod relocation {
    use object::elf::{
        R_AARCH64_ABS64, R_AARCH64_GLOB_DAT, R_AARCH64_JUMP_SLOT, R_AARCH64_RELATIVE,
        RelocationType,
    };
    /// The linker's own pointers, which no code of the file writes.
    pub const SLOTS: [RelocationType; 2] = [R_AARCH64_GLOB_DAT, R_AARCH64_JUMP_SLOT];
    pub const ADDRESS: RelocationType = R_AARCH64_ABS64;
    pub const RELATIVE: RelocationType = R_AARCH64_RELATIVE;
}

/// A file's code for [`follow`].
pub struct FileText<'a> {
    elf: &'a ElfFile<'a>,
    /// The functions that have a row in the table, by address.
    functions: HashMap<u64, Probed>,
    table: &'a FileTable<'a>,
    /// The code that has been read, by the address of its page.
    pages: RefCell<HashMap<u64, Vec<u8>>>,
    /// How many more instructions may be decoded.
    left: Cell<usize>,
    /// Read at the first question about a pointer.
    relocations: OnceCell<HashMap<u64, Rela64<LE>>>,
}

impl<'a> FileText<'a> {
    /// `functions` are the file's functions that have a row in `table`: their addresses and actions.
    pub fn new(
        elf: &'a ElfFile<'a>,
        functions: impl Iterator<Item = (u64, Action)>,
        table: &'a FileTable<'a>,
    ) -> Self {
        let functions = functions
            .filter_map(|(address, action)| Some((address, probed(action)?)))
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

    /// An error if the budget of decoded instructions is used up: the code was then not followed to its end.
    pub fn whole(&self) -> Result<(), TooLong> {
        (self.left.get() > 0).then_some(()).ok_or(TooLong)
    }

    /// A placement on the instruction at `address`, which is `offset` bytes from the function's entry.
    pub fn placement(&self, address: u64, offset: u64, reason: Reason) -> Placement {
        let mut buffer = [0; LONGEST];
        let (instruction, kind) = placement::placed_on(self.code(address, &mut buffer));
        Placement {
            offset,
            instruction,
            kind,
            reason,
        }
    }

    /// The relocations, each by the address that it fills in.
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

    /// The offset in the file of the table that the dynamic section names under this tag.
    fn table_at(&self, tag: DynamicTag) -> Option<u64> {
        let address = self.elf.dynamic().get(tag)?;
        Some(self.elf.mapped_at(address)?.start)
    }

    /// What the pointer that a relocation fills in points to.
    fn resolve(&self, address: u64, rela: &Rela64<LE>) -> Option<Pointer> {
        let kind = rela.r_type(LE, false);
        if !relocation::SLOTS.contains(&kind) && !self.is_constant(address) {
            return None;
        }
        if kind == relocation::RELATIVE {
            // The addend is an address in this file, relative to where the file is mapped.
            return Some(Pointer::Here(rela.r_addend.get(LE).cast_unsigned()));
        }
        if !relocation::SLOTS.contains(&kind) && kind != relocation::ADDRESS {
            return None;
        }
        let symbol = self.symbol(rela)?;
        if !symbol.is_undefined(LE) {
            let addend = rela.r_addend.get(LE);
            return Some(Pointer::Here(
                symbol.st_value.get(LE).wrapping_add_signed(addend),
            ));
        }
        let name = self.name(&symbol)?;
        Some(self.elsewhere(std::str::from_utf8(&name).ok()?))
    }

    /// The symbol of a relocation.
    fn symbol(&self, rela: &Rela64<LE>) -> Option<Sym64<LE>> {
        let index = rela.symbol(LE, false)?;
        let at = (index.0 as u64).checked_mul(size_of::<Sym64<LE>>() as u64)?;
        self.elf.value(self.table_at(DT_SYMTAB)?.checked_add(at)?)
    }

    fn name(&self, symbol: &Sym64<LE>) -> Option<Vec<u8>> {
        let name = u64::from(symbol.st_name.get(LE));
        let at = self.table_at(DT_STRTAB)?.checked_add(name)?;
        let length = LONGEST_NAME.min(self.elf.length().checked_sub(at)?);
        let bytes = self.elf.read(at, length)?;
        Some(string_in(&bytes, 0)?.to_vec())
    }

    fn relocation(&self, address: u64) -> Option<&Rela64<LE>> {
        let relocations = self.relocations.get_or_init(|| self.read_relocations());
        relocations.get(&address)
    }

    /// Whether the loader fills in the pointer at this address with the address of a symbol of this name.
    pub fn points_to(&self, address: u64, name: &str) -> bool {
        let symbol = self.relocation(address).and_then(|rela| self.symbol(rela));
        let found = symbol.and_then(|symbol| self.name(&symbol));
        found.is_some_and(|found| found == name.as_bytes())
    }

    /// Whether the memory at this address is read-only once the loader is done. The program may change other memory.
    fn is_constant(&self, address: u64) -> bool {
        let has = |start: u64, size: u64| address.checked_sub(start).is_some_and(|at| at < size);
        let mut segments = self.elf.segments().iter();
        segments.any(|segment| {
            let read_only = segment.kind == PT_LOAD && !segment.flags.contains(PF_W);
            (read_only || segment.kind == PT_GNU_RELRO) && has(segment.address, segment.size)
        })
    }

    /// The address of this file's code that a pointer has at the start, whether or not the program may change it.
    pub fn first_value(&self, address: u64) -> Option<u64> {
        let target = match self.relocation(address) {
            Some(rela) if rela.r_type(LE, false) == relocation::RELATIVE => {
                rela.r_addend.get(LE).cast_unsigned()
            }
            Some(_) => return None,
            // The pointer needs no relocation, or one of a kind that adds to what the file has.
            None => {
                let range = self.elf.mapped_at(address)?;
                self.elf.value::<object::U64<LE>>(range.start)?.get(LE)
            }
        };
        self.elf.text_segment(target).map(|_| target)
    }

    /// What a pointer to another file's function points to, by the function's name.
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
        let pointer = match self.relocation(address) {
            Some(rela) => self.resolve(address, rela),
            None if self.is_constant(address) => self.first_value(address).map(Pointer::Here),
            None => None,
        };
        pointer.unwrap_or(Pointer::Unknown)
    }

    fn function(&self, address: u64) -> Option<Probed> {
        self.functions.get(&address).copied()
    }
}

/// What `follow` needs to know about a function with this action; `None` if the function does no work.
fn probed(action: Action) -> Option<Probed> {
    if action.frees() {
        Some(Probed::Frees)
    } else if action.may_throw() {
        Some(Probed::MayThrow)
    } else {
        action.allocates().then_some(Probed::Allocates)
    }
}

/// Whether a function of the C or C++ library never returns: it throws an exception or ends the process.
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
