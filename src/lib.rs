//! memleak: what a command's process tree allocates and never frees, counted in the kernel.
//!
//! The flow is one way: kernel (`bpf/`) → `collect` → `ledger` → `report`.

pub mod allocator;
mod bpf;
pub mod cli;
pub mod clock;
pub mod collect;
pub mod doctor;
pub mod elf_file;
pub mod filter;
pub mod gate;
pub mod identity;
pub mod image;
mod inherited;
pub mod kernel;
pub mod launch;
pub mod ledger;
pub mod live;
pub mod manual;
pub mod maps;
pub mod names;
pub mod output;
mod privilege;
pub mod probe;
mod prober;
pub mod report;
pub mod requests;
pub mod root;
pub mod running;
pub mod say;
pub mod session;
pub mod signals;
pub mod status;
mod text;
pub mod units;
