//! The integration tests run memleak on the real kernel and on real processes. Each module has one subject. All modules
//! form one program, so that it is linked once and the tests run side by side. `tests/bounds` is a program of its own,
//! because its allocator counts the memory of the whole process.

mod common;

mod accounting;
mod allocators;
mod args;
mod arrivals;
mod baseline;
mod bpf_layout;
mod bystanders;
mod ci_tools;
mod cli;
mod counter;
mod crowds;
mod curve;
mod doctor;
mod documents;
mod endings;
mod ends;
mod endurance;
mod errors;
mod examples;
mod exceptions;
mod faults;
mod gate;
mod growth;
mod holds;
mod hostile;
#[cfg(target_arch = "x86_64")]
mod inside;
#[cfg(target_arch = "x86_64")]
mod inside_tools;
mod labels;
mod launch;
mod layout;
mod leak_places;
mod links;
mod live;
mod loading;
mod long;
#[cfg(target_arch = "x86_64")]
mod long_inside;
mod loss_records;
mod losses;
mod merged;
mod metrics;
mod older;
mod origins;
mod outputs;
mod placement;
mod private;
#[cfg(target_arch = "x86_64")]
mod reach_allocators;
#[cfg(target_arch = "x86_64")]
mod reach_cases;
#[cfg(target_arch = "x86_64")]
mod reach_programs;
mod released;
mod resists;
mod rights;
mod runners;
mod scale;
mod sentences;
mod shown;
mod slurm;
mod stacks;
mod stripped;
mod suppressions;
mod tree;
mod unwinder;
mod valgrind;
mod wait_all;
mod waits;
mod watch;
mod watch_all;
