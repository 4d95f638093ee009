//! The kernel side at work: loads the programs, attaches them, decodes their records and hands out images that have
//! ended. Only these modules touch libbpf. What the figures mean is left to `model`.

mod args;
mod arrivals;
pub mod attach;
pub mod automaton;
mod batch;
mod btf;
pub mod collector;
mod cookie;
mod detach;
pub mod empty;
pub mod error;
pub mod features;
pub mod files;
mod joining;
mod keeper;
mod lists;
mod load;
mod losses;
pub mod method;
pub(super) mod object;
mod pins;
mod reader;
mod readings;
pub mod records;
mod restore;
mod rings;
pub mod separate;
pub mod settings;
pub mod skeletons;
mod slots;
mod snapshot;
mod sweep;
mod verdicts;
mod warmth;
pub mod witness;
