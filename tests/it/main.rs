//! The integration tests: memleak on the real kernel, on real processes. One module a subject. One program, so that
//! one link does for all, and that the tests run side by side. `tests/bounds` stands apart, as its allocator counts
//! what the whole process takes.

mod common;

mod accounting;
mod allocators;
mod arrivals;
mod bpf_layout;
mod cli;
mod counter;
mod doctor;
mod documents;
mod errors;
mod faults;
mod gate;
mod holds;
mod hostile;
mod launch;
mod layout;
mod links;
mod long;
mod losses;
mod older;
mod placement;
mod rights;
mod scale;
mod slurm;
mod stripped;
mod tree;
mod wait_all;
mod watch;
mod watch_all;
