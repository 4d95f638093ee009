//! What part a file plays for the processes that map it.

use object::elf::DT_DEBUG;

use crate::elf::file::{ElfFile, Shape};

/// How a process comes by a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It is what is executed. A static one has its allocator in it, and symbols that nobody binds to.
    Program,
    /// The loader maps it for a program, or it is the loader.
    Library,
}

impl Role {
    pub(super) fn of(elf: &ElfFile) -> Self {
        match elf.shape() {
            Shape::Static | Shape::StaticPie => Role::Program,
            // A library may have an interpreter, too (libc has); a program wants a place for `_r_debug`.
            Shape::Dynamic if elf.dynamic().get(DT_DEBUG).is_some() => Role::Program,
            Shape::Dynamic | Shape::Library => Role::Library,
        }
    }
}
