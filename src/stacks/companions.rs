//! Finds the files with a module's debug information, below the root of its process.

use std::fs::File;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::{ffi::OsStr, io};

use crate::elf::file::ElfFile;
use crate::elf::symbols::debug::{by_build_id, candidates, link};
use crate::os::root::Root;
use crate::stacks::module::Module;

/// The most bytes of a debug file whose checksum is computed. Only files without a build ID need it.
const MAX_SUMMED: u64 = 256 << 20;

/// A file with debug information, and its path below the root.
#[derive(Debug)]
pub struct DebugFile {
    pub file: File,
    pub path: PathBuf,
}

/// The debug file of a module, which `elf` reads. `None` if there is none of this build.
pub fn debug_file(module: &Module, elf: &ElfFile) -> Option<DebugFile> {
    let id = build_id(elf).unwrap_or_default();
    let sum = link(elf, ".gnu_debuglink").and_then(|(name, rest)| sum_behind(&name, &rest));
    candidates(elf, &id, module.named_path())
        .into_iter()
        .find_map(|path| {
            let file = module.root().open(&path).ok()?;
            let debug = ElfFile::open(&file).ok()?;
            let same = match build_id(&debug) {
                Some(its) if !id.is_empty() => its == id,
                _ => sum.is_some() && crc32(&file).ok() == sum,
            };
            drop(debug);
            same.then_some(DebugFile { file, path })
        })
}

/// The file that this debug file shares with others (`dwz` makes such files).
pub fn shared_file(root: &Root, debug: &ElfFile, path: &Path) -> Option<File> {
    let (name, id) = link(debug, ".gnu_debugaltlink")?;
    let named = Path::new(OsStr::from_bytes(&name));
    let beside = path.parent().unwrap_or(Path::new("/")).join(named);
    [Some(beside), by_build_id(&id)]
        .into_iter()
        .flatten()
        .find_map(|path| {
            let file = root.open(&path).ok()?;
            let same = build_id(&ElfFile::open_debug(&file).ok()?)? == id;
            same.then_some(file)
        })
}

/// The build ID, also of a file without segments, such as the files of `dwz`.
fn build_id(elf: &ElfFile) -> Option<Vec<u8>> {
    elf.build_id().or_else(|| {
        let section = elf.section_named(".note.gnu.build-id")?;
        let note = elf.notes(section.range()).into_iter().next()?;
        Some(note.content).filter(|id| id.len() > 1)
    })
}

/// The checksum behind the name in `.gnu_debuglink`, at the next multiple of four bytes.
fn sum_behind(name: &[u8], rest: &[u8]) -> Option<u32> {
    let padding = (name.len() + 1).next_multiple_of(4) - (name.len() + 1);
    let bytes = rest.get(padding..padding + 4)?;
    Some(u32::from_le_bytes(bytes.try_into().ok()?))
}

/// The checksum of a file that `.gnu_debuglink` has: CRC-32, as in zip files.
fn crc32(file: &File) -> io::Result<u32> {
    if file.metadata()?.len() > MAX_SUMMED {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    let mut table = [0_u32; 256];
    for (sum, byte) in table.iter_mut().zip(0_u32..) {
        *sum = (0..8).fold(byte, |sum, _| match sum & 1 {
            0 => sum >> 1,
            _ => sum >> 1 ^ 0xedb8_8320,
        });
    }
    let mut sum = !0_u32;
    let mut at = 0;
    let mut buffer = vec![0; 1 << 16];
    loop {
        let length = file.read_at(&mut buffer, at)?;
        if length == 0 || at > MAX_SUMMED {
            return Ok(!sum);
        }
        at += length as u64;
        for &byte in &buffer[..length] {
            sum = table[(sum as u8 ^ byte) as usize] ^ sum >> 8;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::os::memory_file::file_of;

    #[test]
    fn the_checksum_is_that_of_zip_files() {
        // The check value of CRC-32 in the catalogue of CRC algorithms.
        assert_eq!(
            crc32(&file_of(c"sum", b"123456789").unwrap()).unwrap(),
            0xcbf4_3926
        );
        assert_eq!(crc32(&file_of(c"sum", b"").unwrap()).unwrap(), 0);
    }

    #[test]
    fn the_checksum_in_a_link_is_aligned() {
        assert_eq!(sum_behind(b"abc", &[1, 0, 0, 0]), Some(1));
        assert_eq!(sum_behind(b"ab", &[9, 1, 0, 0, 0]), Some(1));
        assert_eq!(sum_behind(b"ab", &[9, 1, 0, 0]), None);
    }
}
