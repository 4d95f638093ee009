//! The files whose code was on some stack, by the numbers that frames have.

use std::path::{Path, PathBuf};

use object::elf::{PF_X, PT_LOAD};

use crate::elf::file::ElfFile;

/// The files with code that were examined, in the order of their numbers. Number 0 stands for none.
#[derive(Debug, Default)]
pub struct CodeFiles {
    files: Vec<CodeFile>,
}

/// A file with code.
#[derive(Debug)]
pub struct CodeFile {
    /// The path as the process saw it.
    pub path: PathBuf,
    pub build_id: Option<Vec<u8>>,
    /// Segments that are executed: offset in the file, size and address.
    code: Vec<(u64, u64, u64)>,
}

impl CodeFiles {
    /// Adds the file that has this number. Numbers are given in order, from 1 on.
    pub fn add(&mut self, path: &Path, elf: Option<&ElfFile<'_>>) {
        let mut file = CodeFile {
            path: path.to_owned(),
            build_id: None,
            code: Vec::new(),
        };
        if let Some(elf) = elf {
            file.build_id = elf.build_id();
            let segments = elf.segments().iter();
            let code =
                segments.filter(|segment| segment.kind == PT_LOAD && segment.flags.contains(PF_X));
            file.code = code
                .map(|segment| (segment.offset, segment.size, segment.address))
                .collect();
        }
        self.files.push(file);
    }

    pub fn get(&self, number: u32) -> Option<&CodeFile> {
        self.files.get(number.checked_sub(1)? as usize)
    }
}

impl CodeFile {
    /// The ELF address of an offset in the file. `None` if the file gives none.
    pub fn address(&self, offset: u64) -> Option<u64> {
        let at = |(start, size, address): &(u64, u64, u64)| {
            let from_start = offset.checked_sub(*start)?;
            // A call at the end of a segment returns to its end.
            (from_start <= *size).then(|| address.checked_add(from_start))?
        };
        self.code.iter().find_map(at)
    }
}
