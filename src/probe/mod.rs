//! Probes: which functions of which files, where in them, and attached how. With `collect`, the only
//! modules that touch libbpf.

pub mod attach;
pub mod elf;
pub mod follow;
pub mod placement;
pub mod separate;
pub mod sites;
pub mod spec;
pub mod symbols;
pub mod table;
