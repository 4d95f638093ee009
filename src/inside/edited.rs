//! Adds the counting code to a C library.
//!
//! The file stays as it is, but for its header and the symbols of the allocator. Behind it come: a segment that begins
//! with the program headers, which must grow, and has the code, its unwind tables, and a new index of all unwind tables;
//! a segment for the counters, of which one page is in the file (valgrind expects that of a segment that can be
//! written); section headers, for tools. In both segments, offsets in the file equal addresses: kernels before 5.18
//! take the one for the other.

use std::collections::HashMap;

use object::LittleEndian as LE;
use object::elf::{
    FileHeader64, PF_R, PF_W, PF_X, PT_GNU_EH_FRAME, PT_LOAD, PT_PHDR, ProgramHeader64, SHF_ALLOC,
    SHF_EXECINSTR, SHF_WRITE, SHN_LORESERVE, SHT_PROGBITS, SectionFlags, SectionHeader64, Sym64,
    SymbolSection,
};
use object::pod;
use object::{U16, U32, U64};

use crate::inside::counting::{COUNTING, Counting, OwnSymbol, PAGE, Placed, aligned};
use crate::inside::libc::{CLibrary, range};
use crate::inside::recognise::{FUNCTIONS, Recognised, recognise};
use crate::inside::unfit::Unfit;
use crate::inside::unwind_index::UnwindIndex;

/// A library that counts by itself.
#[derive(Debug)]
pub struct Edited {
    pub bytes: Vec<u8>,
    /// The offset in the file of the instruction at which a process tells where it keeps its counters.
    pub announced: u64,
    /// The names of the functions that are counted, and the offset in the file of what each leads to.
    pub counted: Vec<(&'static str, u64)>,
}

/// The new segments.
const NEW: usize = 2;

/// The name of the new sections.
const SECTION: &[u8] = b".memleak\0";

/// Makes a library that counts by itself of a C library.
///
/// # Errors
/// The code does not fit the library.
pub fn edit(bytes: &[u8]) -> Result<Edited, Unfit> {
    let counting = Counting::read(COUNTING.ok_or(Unfit::Machine)?)?;
    let libc = CLibrary::read(bytes)?;
    let recognised = recognise(&libc)?;
    let plan = Plan::new(&libc, &counting)?;
    let placed = counting.place(plan.code, plan.memory, &needed(&libc, &recognised)?)?;
    let index = plan
        .index
        .with(plan.index_at, placed.unwind(), placed.unwind_at)?;
    let mut edited = Editor {
        libc: &libc,
        plan: &plan,
        bytes: bytes.to_vec(),
    };
    let counted = edited.divert(&recognised, &placed)?;
    edited.write_segments(&placed, &index, counting.memory_size())?;
    edited.write_sections(&placed, index.len() as u64)?;
    Ok(Edited {
        bytes: edited.bytes,
        announced: own_symbol(&placed, "inside_announced")?.address,
        counted,
    })
}

/// The addresses of what the code needs of the library.
fn needed(
    libc: &CLibrary<'_>,
    recognised: &Recognised,
) -> Result<HashMap<&'static str, u64>, Unfit> {
    const NEEDED: [&str; FUNCTIONS.len()] = [
        "libc_malloc",
        "libc_free",
        "libc_calloc",
        "libc_realloc",
        "libc_reallocarray",
        "libc_memalign",
        "libc_aligned_alloc",
        "libc_valloc",
        "libc_pvalloc",
        "libc_posix_memalign",
    ];
    let code = libc.code()?;
    let (code, content) = code.first().ok_or(Unfit::Layout)?;
    let functions = NEEDED.iter().zip(&recognised.functions);
    let functions = functions.map(|(name, function)| (*name, function.value));
    let others = [
        ("libc_malloc_usable_size", recognised.usable_size),
        ("libc_single_threaded", recognised.single_threaded),
        ("libc_code", *code),
        ("libc_code_end", code + content.len() as u64),
    ];
    Ok(functions.chain(others).collect())
}

fn own_symbol(placed: &Placed, name: &str) -> Result<OwnSymbol, Unfit> {
    let symbol = placed.symbols.get(name).copied();
    symbol.ok_or_else(|| Unfit::Symbol(name.to_owned()))
}

/// Where everything comes to be: addresses, and offsets in the file.
struct Plan {
    /// Where the program headers move.
    headers: u64,
    code: u64,
    index: UnwindIndex,
    index_at: u64,
    memory: u64,
}

impl Plan {
    fn new(libc: &CLibrary<'_>, counting: &Counting<'_>) -> Result<Self, Unfit> {
        let loaded: Vec<_> = libc.loaded().collect();
        let end_of = |segment: &&ProgramHeader64<LE>| {
            let size = segment.p_memsz.get(LE);
            segment.p_vaddr.get(LE).saturating_add(size)
        };
        let end = loaded.iter().map(end_of).max().ok_or(Unfit::Layout)?;
        let aligns = loaded.iter().map(|segment| segment.p_align.get(LE));
        let align = aligns.max().unwrap_or(PAGE).max(PAGE);
        if !align.is_power_of_two() || end >= 1 << 30 || align > 1 << 21 {
            return Err(Unfit::Layout);
        }
        let headers = aligned(end.max(libc.bytes.len() as u64), align);
        let size = (libc.segments.len() + NEW) * size_of::<ProgramHeader64<LE>>();
        let code = headers + size as u64;
        let segments = libc.segments.iter();
        let mut indexes = segments.filter(|segment| segment.p_type.get(LE) == PT_GNU_EH_FRAME);
        let (Some(index), None) = (indexes.next(), indexes.next()) else {
            return Err(Unfit::Layout);
        };
        let index = UnwindIndex::read(libc.content(index)?, index.p_vaddr.get(LE))?;
        let index_at = aligned(counting.end(code), 8);
        let memory = aligned(index_at + index.size_with(counting.unwind()?)?, PAGE);
        Ok(Self {
            headers,
            code,
            index,
            index_at,
            memory,
        })
    }
}

/// The file in the making.
struct Editor<'a> {
    libc: &'a CLibrary<'a>,
    plan: &'a Plan,
    bytes: Vec<u8>,
}

impl Editor<'_> {
    /// Lets the symbols of the counted functions lead to the code.
    fn divert(
        &mut self,
        recognised: &Recognised,
        placed: &Placed,
    ) -> Result<Vec<(&'static str, u64)>, Unfit> {
        let section = u16::try_from(self.libc.sections.len()).unwrap_or(SHN_LORESERVE);
        if section >= SHN_LORESERVE - NEW as u16 {
            return Err(Unfit::Layout);
        }
        let mut counted = Vec::new();
        let functions = &recognised.functions;
        for (function, original) in FUNCTIONS.iter().zip(functions) {
            // A function that has the names of two of them stays one.
            let same = functions
                .iter()
                .position(|other| other.value == original.value);
            let counts = same.map_or(function.name, |first| FUNCTIONS[first].name);
            let own = own_symbol(placed, &format!("inside_{counts}"))?;
            for name in function.diverted() {
                for symbol in self.libc.exported.get(name).into_iter().flatten() {
                    let entry: &mut Sym64<LE> = self.at(symbol.at as u64)?;
                    entry.st_shndx = U16::new(LE, SymbolSection(section));
                    entry.st_value = U64::new(LE, own.address);
                    entry.st_size = U64::new(LE, own.size);
                }
            }
            counted.extend(function.diverted().map(|name| (name, own.address)));
        }
        Ok(counted)
    }

    /// What is at an offset in the file.
    fn at<T: pod::Pod>(&mut self, offset: u64) -> Result<&mut T, Unfit> {
        let offset = usize::try_from(offset).map_err(|_| Unfit::Layout)?;
        let rest = self.bytes.get_mut(offset..).ok_or(Unfit::Layout)?;
        let (found, _) = pod::from_bytes_mut(rest).map_err(|()| Unfit::Layout)?;
        Ok(found)
    }

    /// Puts bytes at an offset behind the end of the file.
    fn put(&mut self, offset: u64, bytes: &[u8]) {
        self.bytes.resize(offset as usize, 0);
        self.bytes.extend(bytes);
    }

    /// Writes the new segments behind the file.
    fn write_segments(&mut self, placed: &Placed, index: &[u8], memory: u64) -> Result<(), Unfit> {
        let plan = self.plan;
        let end = plan.index_at + index.len() as u64;
        let mut headers: Vec<ProgramHeader64<LE>> = self.libc.segments.to_vec();
        let size = (headers.len() + NEW) * size_of::<ProgramHeader64<LE>>();
        for header in &mut headers {
            let (at, size) = match header.p_type.get(LE) {
                PT_PHDR => (plan.headers, size as u64),
                PT_GNU_EH_FRAME => (plan.index_at, index.len() as u64),
                _ => continue,
            };
            place_segment(header, at, size, size);
        }
        let is_loaded = |header: &ProgramHeader64<LE>| header.p_type.get(LE) == PT_LOAD;
        let last = headers.iter().rposition(is_loaded).ok_or(Unfit::Layout)?;
        let mut new = headers[last];
        new.p_align = U64::new(LE, PAGE);
        let (mut code, mut counters) = (new, new);
        code.p_flags = U32::new(LE, PF_R | PF_X);
        place_segment(
            &mut code,
            plan.headers,
            end - plan.headers,
            end - plan.headers,
        );
        counters.p_flags = U32::new(LE, PF_R | PF_W);
        place_segment(&mut counters, plan.memory, PAGE, memory);
        headers.splice(last + 1..last + 1, [code, counters]);

        self.put(plan.headers, pod::bytes_of_slice(&headers));
        self.put(plan.code, &placed.bytes);
        self.put(plan.index_at, index);
        self.put(plan.memory, &[0; PAGE as usize]);
        let header: &mut FileHeader64<LE> = self.at(0)?;
        header.e_phoff = U64::new(LE, plan.headers);
        let count = u16::try_from(headers.len()).map_err(|_| Unfit::Layout)?;
        header.e_phnum = U16::new(LE, count);
        Ok(())
    }

    /// Writes section headers behind all. The system does not need them.
    fn write_sections(&mut self, placed: &Placed, index: u64) -> Result<(), Unfit> {
        let plan = self.plan;
        let mut sections = self.libc.sections.to_vec();
        let names = self.libc.header.e_shstrndx.get(LE).0;
        let names = usize::from(names);
        let old = sections.get(names).ok_or(Unfit::Layout)?;
        let range = range(old.sh_offset.get(LE), old.sh_size.get(LE))?;
        let mut text = self.libc.bytes.get(range).ok_or(Unfit::Layout)?.to_vec();
        let name = u32::try_from(text.len()).map_err(|_| Unfit::Layout)?;
        text.extend(SECTION);
        for (number, section) in sections.iter_mut().enumerate() {
            if self.libc.section_name(number) == b".eh_frame_hdr" {
                place_section(section, plan.index_at, plan.index_at, index);
            }
        }
        let make = |flags: SectionFlags, at, size| {
            let mut section = sections[names];
            section.sh_name = U32::new(LE, name);
            section.sh_type = U32::new(LE, SHT_PROGBITS);
            section.sh_flags = U64::new(LE, flags);
            section.sh_addralign = U64::new(LE, 16);
            place_section(&mut section, at, at, size);
            section
        };
        let code = make(SHF_ALLOC | SHF_EXECINSTR, plan.code, placed.code_size);
        let counters = make(SHF_ALLOC | SHF_WRITE, plan.memory, PAGE);
        sections.extend([code, counters]);
        let text_at = self.bytes.len() as u64;
        place_section(&mut sections[names], 0, text_at, text.len() as u64);
        self.put(text_at, &text);
        let at = aligned(self.bytes.len() as u64, align_of::<u64>() as u64);
        self.put(at, pod::bytes_of_slice(&sections));
        let header: &mut FileHeader64<LE> = self.at(0)?;
        header.e_shoff = U64::new(LE, at);
        let count = u16::try_from(sections.len()).map_err(|_| Unfit::Layout)?;
        header.e_shnum = U16::new(LE, count);
        Ok(())
    }
}

/// Gives a segment its place: the same in the file and in memory.
fn place_segment(header: &mut ProgramHeader64<LE>, at: u64, in_file: u64, in_memory: u64) {
    header.p_offset = U64::new(LE, at);
    header.p_vaddr = U64::new(LE, at);
    header.p_paddr = U64::new(LE, at);
    header.p_filesz = U64::new(LE, in_file);
    header.p_memsz = U64::new(LE, in_memory);
}

fn place_section(section: &mut SectionHeader64<LE>, address: u64, offset: u64, size: u64) {
    section.sh_addr = U64::new(LE, address);
    section.sh_offset = U64::new(LE, offset);
    section.sh_size = U64::new(LE, size);
}

#[cfg(test)]
#[cfg(target_arch = "x86_64")]
pub(super) mod tests {
    use std::fs;
    use std::path::Path;
    use std::process::Command;

    use proptest::prelude::*;

    use super::*;
    use crate::elf::file::ElfFile;
    use crate::elf::symbols;
    use crate::inside::recognise::uses_own_word;

    /// The C library of this system.
    pub(crate) fn systems_library() -> Vec<u8> {
        fs::read("/lib/x86_64-linux-gnu/libc.so.6").unwrap()
    }

    /// The instruction with which a function begins that may be called by its address.
    const ENDBR64: [u8; 4] = [0xf3, 0x0f, 0x1e, 0xfa];

    fn address_of(bytes: &[u8], name: &str) -> u64 {
        let elf = ElfFile::in_memory(bytes).unwrap();
        symbols::exported(&elf, name).unwrap()
    }

    #[test]
    fn every_name_of_the_allocator_leads_to_the_code_and_no_other_one() {
        let bytes = systems_library();
        let edited = edit(&bytes).unwrap();
        let (before, after) = (
            CLibrary::read(&bytes).unwrap(),
            CLibrary::read(&edited.bytes).unwrap(),
        );
        let end = bytes.len() as u64;
        for (name, symbols) in &before.exported {
            let counted = edited.counted.iter().find(|(counted, _)| counted == name);
            for (old, new) in symbols.iter().zip(&after.exported[name]) {
                match counted {
                    Some((_, address)) => assert_eq!(new.value, *address, "{name}"),
                    None => assert_eq!(old, new, "{name}"),
                }
            }
        }
        for (name, address) in &edited.counted {
            let code = &edited.bytes[*address as usize..];
            assert!(code.starts_with(&ENDBR64), "{name}");
        }
        let counted = edited.counted.iter();
        let present = counted.filter(|(name, _)| before.exported.contains_key(name));
        let addresses: Vec<_> = present.map(|(_, address)| *address).collect();
        assert!(addresses.len() >= 17, "{addresses:x?}");
        assert!(
            addresses
                .iter()
                .all(|&address| address >= end && address < edited.announced + end)
        );
    }

    /// glibc has them since 2.43. The library has others here that are named so.
    #[test]
    fn frees_that_are_told_the_size_lead_to_the_code_of_free() {
        let mut bytes = systems_library();
        let names = [
            ("__overflow", "free_sized"),
            ("getprotobynumber_r", "free_aligned_sized"),
        ];
        for (old, new) in names {
            // The names of symbols are early in the file, and one may be the end of another.
            let ends = [old.as_bytes(), b"\0"].concat();
            let at = memchr::memmem::find(&bytes, &ends).unwrap();
            bytes[at..at + new.len()].copy_from_slice(new.as_bytes());
        }
        let edited = edit(&bytes).unwrap();
        let exported = CLibrary::read(&edited.bytes).unwrap().exported;
        let free = exported["free"][0].value;
        for (_, new) in names {
            assert_eq!(exported[new][0].value, free, "{new}");
            assert!(edited.counted.contains(&(new, free)), "{new}");
        }
    }

    #[test]
    fn nothing_else_of_the_file_changes() {
        let bytes = systems_library();
        let edited = edit(&bytes).unwrap();
        let libc = CLibrary::read(&bytes).unwrap();
        let symbols = libc.exported.iter();
        let counted = symbols.filter(|(name, _)| {
            let mut counted = edited.counted.iter();
            counted.any(|(counted, _)| counted == *name)
        });
        let counted = counted.flat_map(|(_, symbols)| symbols);
        let changed: Vec<_> = counted
            .map(|symbol| symbol.at..symbol.at + size_of::<Sym64<LE>>())
            .chain(std::iter::once(0..size_of::<FileHeader64<LE>>()))
            .collect();
        for (at, (old, new)) in bytes.iter().zip(&edited.bytes).enumerate() {
            let may_change = changed.iter().any(|range| range.contains(&at));
            assert!(old == new || may_change, "{at:#x}");
        }
        let id = |bytes: &[u8]| ElfFile::in_memory(bytes).unwrap().build_id();
        assert!(id(&bytes).is_some());
        assert_eq!(id(&edited.bytes), id(&bytes));
    }

    #[test]
    fn there_are_two_more_segments_and_one_page_of_counters_in_the_file() {
        let bytes = systems_library();
        let edited = edit(&bytes).unwrap();
        let (before, after) = (
            CLibrary::read(&bytes).unwrap(),
            CLibrary::read(&edited.bytes).unwrap(),
        );
        assert_eq!(after.segments.len(), before.segments.len() + NEW);
        let new: Vec<_> = after.loaded().skip(before.loaded().count()).collect();
        let [code, counters] = new[..] else {
            panic!("{} new segments", new.len());
        };
        assert_eq!(code.p_flags.get(LE), PF_R | PF_X);
        assert_eq!(counters.p_flags.get(LE), PF_R | PF_W);
        assert_eq!(counters.p_filesz.get(LE), PAGE);
        assert!(counters.p_memsz.get(LE) > 1 << 20);
        for segment in new {
            assert_eq!(segment.p_offset.get(LE), segment.p_vaddr.get(LE));
            assert_eq!(segment.p_vaddr.get(LE) % PAGE, 0);
            let content = after.content(segment).unwrap();
            assert_eq!(content.len() as u64, segment.p_filesz.get(LE));
        }
        assert_eq!(after.header.e_phoff.get(LE), code.p_offset.get(LE));
        let addresses: Vec<_> = after
            .loaded()
            .map(|segment| segment.p_vaddr.get(LE))
            .collect();
        assert!(addresses.is_sorted());
        // The instruction that is probed is a `nop` of one byte.
        assert_eq!(edited.bytes[edited.announced as usize], 0x90);
    }

    #[test]
    fn unwinders_find_the_old_and_the_new_functions() {
        let bytes = systems_library();
        let edited = edit(&bytes).unwrap();
        let index = |bytes: &[u8]| {
            let libc = CLibrary::read(bytes).unwrap();
            let mut segments = libc.segments.iter();
            let segment = segments.find(|segment| segment.p_type.get(LE) == PT_GNU_EH_FRAME);
            let segment = segment.unwrap();
            let content = libc.content(segment).unwrap();
            UnwindIndex::read(content, segment.p_vaddr.get(LE)).unwrap()
        };
        let (before, after) = (index(&bytes), index(&edited.bytes));
        assert!(
            before
                .functions()
                .all(|function| after.functions().any(|other| other == function))
        );
        for (name, address) in &edited.counted {
            assert!(
                after.functions().any(|function| function == *address),
                "{name}"
            );
        }
    }

    #[test]
    fn programs_run_with_the_copy() {
        let directory = tempfile::tempdir().unwrap();
        let edited = edit(&systems_library()).unwrap();
        fs::write(directory.path().join("libc.so.6"), &edited.bytes).unwrap();
        let run = |script: &str, libraries: &Path| {
            let mut sh = Command::new("sh");
            sh.args(["-ec", script]).env("LD_LIBRARY_PATH", libraries);
            let output = sh.output().unwrap();
            assert!(output.status.success(), "{script}: {output:?}");
            output.stdout
        };
        for script in [
            "ls -l /usr; seq 100000 | sort -n | tail -1",
            "perl -e 'my %h; $h{$_} = [1 .. 5] for 1 .. 1000; print scalar %h'",
            "echo 'int main(void) { return 0; }' | cc -x c -c -o /dev/null -; date +%Y",
        ] {
            let copied = run(script, directory.path());
            assert_eq!(copied, run(script, Path::new("")), "{script}");
        }
    }

    /// The error for the system's library after a change.
    fn error_after(change: impl FnOnce(&mut Vec<u8>)) -> Unfit {
        let mut bytes = systems_library();
        change(&mut bytes);
        edit(&bytes).unwrap_err()
    }

    /// Overwrites the code at an exported function, from a distance on.
    fn overwrite(bytes: &mut [u8], function: &str, distance: u64, code: &[u8]) -> u64 {
        let address = address_of(bytes, function) + distance;
        let elf = ElfFile::in_memory(&*bytes).unwrap();
        let at = elf.mapped_at(address).unwrap().start as usize;
        bytes[at..at + code.len()].copy_from_slice(code);
        address
    }

    #[test]
    fn a_library_that_uses_the_word_is_refused() {
        // mov rax, fs:0x38
        let code = [0x64, 0x48, 0x8b, 0x04, 0x25, 0x38, 0, 0, 0];
        let why = error_after(|bytes| {
            overwrite(bytes, "qsort", 0, &code);
        });
        assert_eq!(why, Unfit::Word);
        let mut bytes = systems_library();
        assert_eq!(uses_own_word(&bytes), Ok(false));
        overwrite(&mut bytes, "qsort", 0, &code);
        assert_eq!(uses_own_word(&bytes), Ok(true));
        assert!(uses_own_word(b"#!/bin/sh").is_err());
    }

    #[test]
    fn a_library_with_other_chunks_is_refused() {
        // mov rax, [rdi-16]; ret; and nothing behind it
        let mut code = vec![0x48, 0x8b, 0x47, 0xf0, 0xc3];
        code.resize(48, 0xcc);
        let why = error_after(|bytes| {
            overwrite(bytes, "malloc_usable_size", 0, &code);
        });
        assert_eq!(why, Unfit::Chunks);
    }

    #[test]
    fn a_library_that_calls_its_allocator_directly_is_refused() {
        let mut called = 0;
        let why = error_after(|bytes| {
            let (from, to) = (address_of(bytes, "qsort") + 5, address_of(bytes, "malloc"));
            let distance = to.wrapping_sub(from) as u32;
            let mut code = vec![0xe8];
            code.extend(distance.to_le_bytes());
            called = overwrite(bytes, "qsort", 0, &code) + 1;
        });
        assert_eq!(why, Unfit::Call(called));
    }

    #[test]
    fn a_library_that_points_to_its_allocator_is_refused() {
        let why = error_after(|bytes| {
            let malloc = address_of(bytes, "malloc");
            let libc = CLibrary::read(bytes).unwrap();
            let segment = libc.loaded().last().unwrap();
            let (offset, size) = (segment.p_offset.get(LE), segment.p_filesz.get(LE));
            let end = range(offset, size).unwrap().end & !7;
            bytes[end - 8..end].copy_from_slice(&malloc.to_le_bytes());
        });
        assert!(matches!(why, Unfit::Pointer(_)), "{why}");
    }

    #[test]
    fn a_library_whose_functions_can_be_replaced_is_refused() {
        let why = error_after(|bytes| {
            let libc = CLibrary::read(bytes).unwrap();
            let hook = libc.exported["__malloc_hook"][0].at;
            let table = libc
                .exported
                .values()
                .flatten()
                .map(|symbol| symbol.at)
                .min();
            let symbols = libc.sections.iter().find(|section| {
                let start = section.sh_offset.get(LE) as usize;
                start <= table.unwrap() && start + section.sh_size.get(LE) as usize > hook
            });
            let first = symbols.unwrap().sh_offset.get(LE) as usize;
            let number = (hook - first) / size_of::<Sym64<LE>>();
            let mut sections = (0..libc.sections.len()).zip(libc.sections);
            let versions = sections.find(|(at, _)| libc.section_name(*at) == b".gnu.version");
            let at = versions.unwrap().1.sh_offset.get(LE) as usize + number * 2;
            bytes[at + 1] &= 0x7f;
        });
        assert_eq!(why, Unfit::Hook("__malloc_hook"));
    }

    #[test]
    fn what_is_no_c_library_is_refused() {
        assert!(edit(b"").is_err());
        assert!(edit(b"#!/bin/sh").is_err());
        let loader = fs::read("/lib64/ld-linux-x86-64.so.2").unwrap();
        assert!(edit(&loader).is_err());
        let program = fs::read("/proc/self/exe").unwrap();
        assert!(edit(&program).is_err());
    }

    #[test]
    fn a_library_that_ends_anywhere_is_refused_or_edited() {
        let bytes = systems_library();
        for length in (0..bytes.len()).step_by(bytes.len() / 40) {
            let _ = edit(&bytes[..length]);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        /// Damage in the headers and tables, where it may lead anywhere.
        #[test]
        fn a_damaged_library_is_refused_or_edited(
            damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u64>()), 1..4),
            in_tables in any::<bool>(),
        ) {
            let mut bytes = systems_library();
            let (start, size) = match in_tables {
                true => {
                    let sections = CLibrary::read(&bytes).unwrap().header.e_shoff.get(LE) as usize;
                    (sections, bytes.len() - sections)
                }
                false => (16, 1000),
            };
            for (at, value) in damage {
                let at = start + at.index(size - 8);
                bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
            }
            let _ = edit(&bytes);
        }
    }
}
