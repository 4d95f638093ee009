//! Whether a C library is one that the code of `inside/` fits. Looks at what is in it, not at its version.

use std::collections::HashMap;

use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic, OpKind, Register};
use memchr::memmem;
use object::LittleEndian as LE;
use object::elf::{PF_W, R_X86_64_IRELATIVE, R_X86_64_RELATIVE, Rela64, SHT_RELA};
use object::pod;
use object::read::elf::FileHeader as _;

use crate::inside::libc::{CLibrary, LibrarySymbol, range};
use crate::inside::unfit::Unfit;

/// A function that is counted, with all its names.
pub(super) struct Counted {
    pub(super) name: &'static str,
    pub(super) others: &'static [&'static str],
    /// Functions that do the same and get more arguments. The code for this one stands in for them.
    pub(super) longer: &'static [&'static str],
}

/// The functions that are counted.
pub(super) const FUNCTIONS: [Counted; 10] = [
    Counted::new("malloc", &["__libc_malloc"]),
    Counted {
        // Since C23, and in glibc since 2.43.
        longer: &["free_sized", "free_aligned_sized"],
        ..Counted::new("free", &["__libc_free", "cfree"])
    },
    Counted::new("calloc", &["__libc_calloc"]),
    Counted::new("realloc", &["__libc_realloc"]),
    Counted::new("reallocarray", &["__libc_reallocarray"]),
    Counted::new("memalign", &["__libc_memalign"]),
    Counted::new("aligned_alloc", &[]),
    Counted::new("valloc", &["__libc_valloc"]),
    Counted::new("pvalloc", &["__libc_pvalloc"]),
    Counted::new("posix_memalign", &["__posix_memalign"]),
];

impl Counted {
    const fn new(name: &'static str, others: &'static [&'static str]) -> Self {
        Self {
            name,
            others,
            longer: &[],
        }
    }

    /// All names of the function.
    pub(super) fn names(&self) -> impl Iterator<Item = &'static str> {
        [self.name].into_iter().chain(self.others.iter().copied())
    }

    /// The symbols that lead to its code.
    pub(super) fn diverted(&self) -> impl Iterator<Item = &'static str> {
        self.names().chain(self.longer.iter().copied())
    }
}

/// By these variables, programs could replace functions up to glibc 2.33.
const HOOKS: [&str; 4] = [
    "__malloc_hook",
    "__free_hook",
    "__realloc_hook",
    "__memalign_hook",
];

/// What the code needs to know of a library.
#[derive(Debug)]
pub(super) struct Recognised {
    /// The counted functions, in the order of [`FUNCTIONS`].
    pub(super) functions: Vec<LibrarySymbol>,
    pub(super) usable_size: u64,
    pub(super) single_threaded: u64,
}

/// Looks whether the code fits.
pub(super) fn recognise(libc: &CLibrary<'_>) -> Result<Recognised, Unfit> {
    if let Some(hook) = HOOKS.iter().find(|hook| libc.current(hook).is_some()) {
        return Err(Unfit::Hook(hook));
    }
    let mut functions = Vec::new();
    for function in &FUNCTIONS {
        let found = function_named(libc, function.name)?;
        for name in function.names() {
            let same = |symbol: &LibrarySymbol| symbol.is_function && symbol.value == found.value;
            if !libc
                .exported
                .get(name)
                .is_none_or(|all| all.iter().all(same))
            {
                return Err(Unfit::Symbol(name.to_owned()));
            }
        }
        functions.push(found);
    }
    let usable_size = function_named(libc, "malloc_usable_size")?;
    let single_threaded = "__libc_single_threaded";
    let variable = libc
        .current(single_threaded)
        .filter(|symbol| symbol.is_object);
    let variable = variable.ok_or(Unfit::Lacks(single_threaded))?;
    let code = libc.code()?;
    if code.iter().any(|(_, code)| has_own_word(code)) {
        return Err(Unfit::Word);
    }
    has_known_chunks(&code, usable_size)?;
    let entries = Entries::new(&functions);
    entries.are_called_by_symbols(&code)?;
    entries.are_not_pointed_to(libc)?;
    Ok(Recognised {
        functions,
        usable_size: usable_size.value,
        single_threaded: variable.value,
    })
}

fn function_named(libc: &CLibrary<'_>, name: &'static str) -> Result<LibrarySymbol, Unfit> {
    let found = libc.current(name).filter(|symbol| symbol.is_function);
    found.ok_or(Unfit::Lacks(name))
}

/// Whether the code of an ELF file uses the word of a thread's control block that a copy needs. A loader's must not.
///
/// # Errors
/// The file is not a library for this machine.
pub fn uses_own_word(bytes: &[u8]) -> Result<bool, Unfit> {
    let header = object::elf::FileHeader64::<LE>::parse(bytes)?;
    for segment in header.program_headers(LE, bytes)? {
        if segment.p_flags.get(LE).contains(object::elf::PF_X) {
            let range = range(segment.p_offset.get(LE), segment.p_filesz.get(LE))?;
            if has_own_word(bytes.get(range).ok_or(Unfit::Layout)?) {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

/// The end of an instruction with the address 0x38 and no base: the byte that says so, and the address.
const WORD_ADDRESS: [u8; 5] = [0x25, 0x38, 0, 0, 0];

/// The prefix for the segment of the control block.
const FS: u8 = 0x64;

/// The most bytes from this prefix to the address.
const BEFORE_ADDRESS: usize = 6;

/// Whether code uses the word. Compares bytes, so other code may look like it.
fn has_own_word(code: &[u8]) -> bool {
    memmem::find_iter(code, &WORD_ADDRESS)
        .any(|at| code[at.saturating_sub(BEFORE_ADDRESS)..at].contains(&FS))
}

/// The most instructions of malloc_usable_size.
const MOST_INSTRUCTIONS: usize = 48;

/// Looks whether malloc_usable_size reads the header that the code expects: a word before the block, which is the size
/// with three flags, of which the second one tells chunks whose overhead is 16 bytes, not 8.
fn has_known_chunks(code: &[(u64, &[u8])], function: LibrarySymbol) -> Result<(), Unfit> {
    let (at, text) = code
        .iter()
        .find_map(|&(address, code)| {
            let offset = function.value.checked_sub(address)?;
            Some((function.value, code.get(usize::try_from(offset).ok()?..)?))
        })
        .ok_or(Unfit::Chunks)?;
    let text = &text[..text.len().min(function.size as usize)];
    let decoder = Decoder::with_ip(64, text, at, DecoderOptions::NONE);
    let instructions: Vec<Instruction> = decoder.into_iter().take(MOST_INSTRUCTIONS).collect();
    let reads_header = instructions.iter().any(|instruction| {
        instruction.mnemonic() == Mnemonic::Mov
            && instruction.op1_kind() == OpKind::Memory
            && instruction.memory_base() == Register::RDI
            && instruction.memory_displacement64() == -8_i64 as u64
            && instruction.memory_index() == Register::None
    });
    let number = |wanted: u64, mnemonics: &[Mnemonic]| {
        instructions.iter().any(|instruction| {
            mnemonics.contains(&instruction.mnemonic())
                && (1..instruction.op_count()).any(|operand| match instruction.op_kind(operand) {
                    OpKind::Memory => instruction.memory_displacement64() == wanted.wrapping_neg(),
                    kind if is_immediate(kind) => {
                        let value = instruction.immediate(operand);
                        value == wanted || value == wanted.wrapping_neg()
                    }
                    _ => false,
                })
        })
    };
    let overheads =
        [16, 8].map(|size| number(size, &[Mnemonic::Lea, Mnemonic::Sub, Mnemonic::Add]));
    let masks = number(8, &[Mnemonic::And]) && number(2, &[Mnemonic::And, Mnemonic::Test]);
    let returns = instructions
        .iter()
        .any(|instruction| instruction.flow_control() == FlowControl::Return);
    match reads_header && overheads == [true; 2] && masks && returns {
        true => Ok(()),
        false => Err(Unfit::Chunks),
    }
}

fn is_immediate(kind: OpKind) -> bool {
    matches!(
        kind,
        OpKind::Immediate8
            | OpKind::Immediate32
            | OpKind::Immediate8to32
            | OpKind::Immediate8to64
            | OpKind::Immediate32to64
    )
}

/// The entries of the counted functions.
struct Entries {
    addresses: HashMap<u64, ()>,
    /// The allocator's own code: from the first entry to the end of the last function.
    first: u64,
    end: u64,
}

/// Bytes of a distance in an instruction.
const DISTANCE: usize = 4;

impl Entries {
    fn new(functions: &[LibrarySymbol]) -> Self {
        let addresses = functions.iter().map(|function| (function.value, ()));
        let ends = functions
            .iter()
            .map(|function| function.value.saturating_add(function.size));
        Self {
            addresses: addresses.collect(),
            first: functions
                .iter()
                .map(|function| function.value)
                .min()
                .unwrap_or(0),
            end: ends.max().unwrap_or(0),
        }
    }

    fn has(&self, address: u64) -> bool {
        (self.first..self.end).contains(&address) && self.addresses.contains_key(&address)
    }

    /// Looks whether the library's other code calls the functions by their symbols only. Compares bytes, as hooks.rs of
    /// `find` does. In the allocator's own code, a call of one function is a part of another one.
    fn are_called_by_symbols(&self, code: &[(u64, &[u8])]) -> Result<(), Unfit> {
        for &(address, code) in code {
            for (offset, distance) in code.windows(DISTANCE).enumerate().skip(DISTANCE) {
                let &[a, b, c, d] = distance else { continue };
                let place = address.wrapping_add(offset as u64);
                let distance = i64::from(i32::from_le_bytes([a, b, c, d]));
                let target = place
                    .wrapping_add(DISTANCE as u64)
                    .wrapping_add_signed(distance);
                if self.has(target)
                    && refers(&code[offset - DISTANCE..offset])
                    && !(self.first..self.end).contains(&place)
                {
                    return Err(Unfit::Call(place));
                }
            }
        }
        Ok(())
    }

    /// Looks whether no pointer to the functions is in the library's data.
    fn are_not_pointed_to(&self, libc: &CLibrary<'_>) -> Result<(), Unfit> {
        for segment in libc.loaded() {
            if !segment.p_flags.get(LE).contains(PF_W) {
                continue;
            }
            let words = libc.content(segment)?.chunks_exact(8).zip(0..);
            let mut words = words.map(|(word, number)| {
                let word = word.first_chunk().copied().unwrap_or_default();
                (u64::from_le_bytes(word), number)
            });
            if let Some((_, number)) = words.find(|(word, _)| self.has(*word)) {
                return Err(Unfit::Pointer(
                    segment.p_vaddr.get(LE).wrapping_add(number * 8),
                ));
            }
        }
        for section in libc.sections {
            if section.sh_type.get(LE) != SHT_RELA {
                continue;
            }
            let range = range(section.sh_offset.get(LE), section.sh_size.get(LE))?;
            let content = libc.bytes.get(range).ok_or(Unfit::Layout)?;
            let entries: &[Rela64<LE>] =
                pod::slice_from_all_bytes(content).map_err(|()| Unfit::Layout)?;
            for entry in entries {
                let kind = entry.r_info.get(LE) as u32;
                let is_relative = [R_X86_64_RELATIVE.0, R_X86_64_IRELATIVE.0].contains(&kind);
                if is_relative && self.has(entry.r_addend.get(LE).cast_unsigned()) {
                    return Err(Unfit::Pointer(entry.r_offset.get(LE)));
                }
            }
        }
        Ok(())
    }
}

/// Whether these bytes end as an instruction with a distance does, before the distance: a call, a jump, or one that
/// takes an address.
fn refers(before: &[u8]) -> bool {
    match before {
        [.., 0xe8 | 0xe9] | [.., 0x0f, 0x80..=0x8f] => true,
        [.., 0x8d, modrm] => modrm & 0xc7 == 5,
        _ => false,
    }
}
