//! ELF files and their symbols.

pub mod file;
pub mod symbols;
