//! Whether a file is a program or a library for the processes that map it.

use object::elf::DT_DEBUG;

use crate::elf::file::{ElfFile, Shape};

/// How a file gets into a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The file is executed. A static program contains its allocator, and no other file binds to its symbols.
    Program,
    /// The loader maps the file for a program, or the file is the loader.
    Library,
}

impl Role {
    pub(super) fn of(elf: &ElfFile) -> Self {
        match elf.shape() {
            Shape::Static | Shape::StaticPie => Role::Program,
            // A library may have an interpreter, too (libc has). DT_DEBUG, the place for `_r_debug`, marks a program.
            Shape::Dynamic if elf.dynamic().get(DT_DEBUG).is_some() => Role::Program,
            Shape::Dynamic | Shape::Library => Role::Library,
        }
    }
}
