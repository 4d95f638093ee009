//! The files whose code was on some stack, by the numbers that frames have.

use std::fs::File;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use object::elf::{PF_X, PT_LOAD};

use crate::elf::file::ElfFile;
use crate::stacks::module::{Module, Modules};

/// The most files that are kept open, so that names can be read when they are gone.
const KEPT_OPEN: usize = 256;

/// The files with code that were examined, in the order of their numbers. Number 0 stands for none.
#[derive(Debug)]
pub struct CodeFiles {
    files: Vec<CodeFile>,
    modules: Modules,
}

impl Default for CodeFiles {
    fn default() -> Self {
        Self {
            files: Vec::new(),
            modules: Modules::new(KEPT_OPEN),
        }
    }
}

/// A file with code.
#[derive(Debug)]
pub struct CodeFile {
    /// The file's number among the modules, if it is one of them.
    module: Option<u32>,
    /// Segments that are executed: offset in the file, size and address.
    code: Vec<(u64, u64, u64)>,
}

impl CodeFiles {
    /// Adds the file that has the next number. `pid`: a process that has mapped it at `path`, as /proc shows it.
    pub fn add(&mut self, path: &Path, file: &File, pid: Option<u32>, elf: Option<&ElfFile<'_>>) {
        let root = match pid {
            Some(pid) => self.modules.root_of(pid),
            None => self.modules.our_root(),
        };
        let module = self.modules.add(file, path.as_os_str().as_bytes(), &root);
        let mut file = CodeFile {
            module: module.ok(),
            code: Vec::new(),
        };
        if let Some(elf) = elf {
            let segments = elf.segments().iter();
            let code =
                segments.filter(|segment| segment.kind == PT_LOAD && segment.flags.contains(PF_X));
            file.code = code
                .map(|segment| (segment.offset, segment.size, segment.address))
                .collect();
        }
        self.files.push(file);
    }

    /// The file of this number.
    pub fn get(&self, number: u32) -> Option<(&CodeFile, &Module)> {
        let file = self.files.get(number.checked_sub(1)? as usize)?;
        Some((file, self.modules.get(file.module?)?))
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
