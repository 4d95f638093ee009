//! ELF files and their symbols. Which symbols matter is left to `find`.

pub mod file;
pub mod frames;
pub mod handlers;
pub mod symbols;
pub mod unwind;
