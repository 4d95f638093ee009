//! The files whose code was on some stack, by the numbers that frames have.

use std::fs::File;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use crate::stacks::module::{Module, Modules};

/// The most files that are kept open, so that names can be read when they are gone.
const KEPT_OPEN: usize = 256;

/// The files with code that were examined, in the order of their numbers. Number 0 stands for none.
#[derive(Debug)]
pub struct CodeFiles {
    /// For each number from 1 on, that of the module, if the file is one. A file that is examined again has another
    /// number, and may be the same module.
    numbers: Vec<Option<u32>>,
    modules: Modules,
}

impl Default for CodeFiles {
    fn default() -> Self {
        Self {
            numbers: Vec::new(),
            modules: Modules::new(KEPT_OPEN),
        }
    }
}

impl CodeFiles {
    /// Adds the file that has the next number. `pid`: a process that has mapped it at `path`, as /proc shows it.
    pub fn add(&mut self, path: &Path, file: &File, pid: Option<u32>) {
        let root = match pid {
            Some(pid) => self.modules.root_of(pid),
            None => self.modules.our_root(),
        };
        let module = self.modules.add(file, path.as_os_str().as_bytes(), &root);
        self.numbers.push(module.ok());
    }

    /// The file of this number.
    pub fn get(&self, number: u32) -> Option<&Module> {
        let module = self.numbers.get(number.checked_sub(1)? as usize)?;
        self.modules.get((*module)?)
    }
}
