//! memleak: what a command's process tree allocates and never frees, counted in the kernel.
//!
//! The flow is one way: kernel (`bpf/`) → `collect` → `ledger` → `report`.

pub mod cli;
pub mod gate;
pub mod image;
pub mod ledger;
pub mod report;
pub mod status;
pub mod text;
pub mod units;
