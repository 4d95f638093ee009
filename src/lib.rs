//! memleak: what a command's process tree allocates and never frees, counted in the kernel.
//!
//! The flow is one way: kernel (`bpf/`) → `collect` → `ledger` → `report`.

pub mod allocator;
mod bpf;
pub mod cli;
pub mod collect;
pub mod gate;
pub mod image;
pub mod ledger;
pub mod probe;
pub mod report;
pub mod status;
mod text;
pub mod units;
