//! Text for people: escaped names, sizes, patterns. Pure.

pub mod escape;
pub mod globs;
pub mod units;
