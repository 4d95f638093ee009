//! The operating system as memleak sees it: processes, mappings, mounts, clocks, identities. What follows from its
//! answers is decided elsewhere.

pub mod capabilities;
pub mod cgroup;
pub mod clock;
pub mod copies;
pub mod identity;
pub mod inherited;
pub mod mapping;
pub mod maps;
pub mod memory_file;
pub mod mount;
pub mod namespace;
pub mod own_files;
pub mod priority;
pub mod processes;
pub mod ptrace;
pub mod release;
pub mod room;
pub mod root;
pub mod say;
pub mod signal_set;
pub mod stages;
pub mod terminal;
