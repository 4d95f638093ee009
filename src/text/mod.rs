//! Text for people: escaped names, sizes, patterns of names, names of signals. Pure.

pub mod escape;
pub mod globs;
pub mod paths;
pub mod signal_name;
pub mod units;
pub mod wildcards;
