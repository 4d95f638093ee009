//! memleak counts in the kernel what a command's process tree allocates and never frees.
//!
//! Data flows one way: `bpf/` counts, [`kernel`] loads and attaches the programs and decodes their records,
//! [`model`] adds up the records, and [`report`] prints the result. Imports between these modules go in one direction
//! only. The test `tests/it/layout.rs` has the table of the allowed imports and checks it.

pub mod cli;
pub mod code;
pub mod doctor;
pub mod elf;
pub mod find;
pub mod inside;
pub mod kernel;
pub mod launch;
pub mod lost;
pub mod model;
pub mod options;
pub mod os;
pub mod report;
pub mod saved;
pub mod session;
pub mod stacks;
pub mod text;
