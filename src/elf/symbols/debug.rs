//! Symbols that were split off a file when it was stripped. They are either packed into a section of the same file
//! (`.gnu_debugdata`, which Fedora and related distributions add to every program), or put into a debug file.
//! Finds and unpacks them; reading the symbol table is left to `symtab`.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use object::elf::SHT_SYMTAB;
use xz4rust::{XzDecoder, XzNextBlockResult};

use crate::elf::file::{ElfFile, string_in};
use crate::elf::symbols::names::{Companions, Found, Names, Source};
use crate::elf::symbols::symtab;
use crate::text::escape;

/// The most bytes of packed symbols.
const MAX_PACKED: u64 = 16 << 20;
/// The most bytes of unpacked symbols. Unpacking needs at most the same again for its dictionary.
const MAX_UNPACKED: usize = 64 << 20;

/// The most bytes of `.gnu_debuglink` that are read: a file name and the checksum behind it.
const MAX_LINK: u64 = 4096;

/// The directory in which distributions put debug files.
const DEBUG_DIRECTORY: &str = "/usr/lib/debug";

/// Adds the functions of these names from the symbols that were split off `elf`. Debug data that is damaged, or that
/// belongs to another build, is ignored.
pub fn find<'n>(elf: &ElfFile, names: &Names<'n>, companions: Companions, found: &mut Found<'n>) {
    if let Some(unpacked) = packed_symbols(elf)
        && let Ok(inner) = ElfFile::in_memory(unpacked)
        && find_in(&inner, names, Source::DebugData, found)
    {
        return;
    }
    let Some(id) = elf.build_id() else { return };
    for path in candidates(elf, &id, companions.path) {
        if let Ok(file) = companions.root.open(&path)
            && let Ok(debug) = ElfFile::open(&file)
            && debug.build_id().as_ref() == Some(&id)
            && find_in(&debug, names, Source::DebugFile, found)
        {
            return;
        }
    }
}

/// Adds the functions of these names from a file's `.symtab`. Returns whether it has any functions.
fn find_in<'n>(elf: &ElfFile, names: &Names<'n>, source: Source, found: &mut Found<'n>) -> bool {
    symtab::of_kind(elf, SHT_SYMTAB)
        .iter()
        .any(|ranges| symtab::find(elf, ranges, names, source, found).unwrap_or(false))
}

/// The ELF file with symbols that is packed into `.gnu_debugdata`.
pub fn packed_symbols(elf: &ElfFile) -> Option<Vec<u8>> {
    unpack(elf, elf.section_named(".gnu_debugdata")?.range())
}

/// The content of a section that names another file (`.gnu_debuglink`, `.gnu_debugaltlink`): the name, and what is
/// behind its terminating zero.
pub fn link(elf: &ElfFile, section: &str) -> Option<(Vec<u8>, Vec<u8>)> {
    let range = elf.section_named(section)?.range();
    let bytes = elf.read(range.start, (range.end - range.start).min(MAX_LINK))?;
    let name = string_in(&bytes, 0)?;
    Some((name.to_vec(), bytes[name.len() + 1..].to_vec()))
}

/// The paths at which the debug file of the file at `path` may be, in the order in which gdb tries them. `id` is the
/// build ID, empty if there is none.
pub fn candidates(elf: &ElfFile, id: &[u8], path: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = by_build_id(id).into_iter().collect();
    if let Some((name, _)) = link(elf, ".gnu_debuglink")
        && !name.is_empty()
        && !name.contains(&b'/')
        && let Some(directory) = path.parent()
    {
        let name = OsStr::from_bytes(&name);
        let mut global = PathBuf::from(DEBUG_DIRECTORY);
        global.extend(directory.strip_prefix("/"));
        paths.extend([
            directory.join(name),
            directory.join(".debug").join(name),
            global.join(name),
        ]);
    }
    paths
}

/// The path of the debug file of the build with this ID. `None` if the ID is empty.
pub fn by_build_id(id: &[u8]) -> Option<PathBuf> {
    let hex = escape::hexadecimal(id);
    let (first, rest) = hex.split_at_checked(2)?;
    let path = format!("{DEBUG_DIRECTORY}/.build-id/{first}/{rest}.debug");
    Some(PathBuf::from(path))
}

/// Unpacks a range of the file that is compressed with xz.
fn unpack(elf: &ElfFile, range: std::ops::Range<u64>) -> Option<Vec<u8>> {
    let size = range.end.checked_sub(range.start)?;
    if size > MAX_PACKED {
        return None;
    }
    let packed = elf.array::<u8>(range.start, usize::try_from(size).ok()?)?;
    let mut decoder = XzDecoder::in_heap_with_alloc_dict_size(1 << 16, MAX_UNPACKED);
    let mut unpacked = Vec::new();
    let mut chunk = vec![0; 1 << 16];
    let mut rest = &packed[..];
    loop {
        let step = decoder.decode(rest, &mut chunk).ok()?;
        let (consumed, produced) = (step.input_consumed(), step.output_produced());
        if unpacked.len() + produced > MAX_UNPACKED {
            return None;
        }
        unpacked.extend_from_slice(&chunk[..produced]);
        rest = &rest[consumed..];
        match step {
            XzNextBlockResult::EndOfStream(..) => return Some(unpacked),
            XzNextBlockResult::NeedMoreData(0, 0) => return None,
            XzNextBlockResult::NeedMoreData(..) => {}
        }
    }
}
