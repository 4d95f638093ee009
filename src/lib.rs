//! memleak: what a command's process tree allocates and never frees, counted in the kernel.
//!
//! Data flows one way: `bpf/` counts, [`kernel`] loads and attaches the programs and decodes their records,
//! [`model`] adds the records up, [`report`] prints the result. An import runs down this list only; a test
//! (`tests/it/layout.rs`) has the table.

pub mod cli;
pub mod code;
pub mod doctor;
pub mod elf;
pub mod find;
pub mod kernel;
pub mod launch;
pub mod model;
pub mod options;
pub mod os;
pub mod report;
pub mod session;
pub mod text;
