//! Call stacks: the rules by which the kernel side unwinds them, names for their frames, what identifies a stack, and
//! which stacks are suppressed.

pub mod code_files;
mod companions;
pub mod demangle;
mod dwarf;
pub mod file_rules;
mod frame_text;
mod generated;
pub mod identity;
mod known;
mod leak_filter;
mod lines;
pub mod module;
pub mod namer;
pub mod perf_map;
pub mod rules;
mod sections;
mod suppressed_sums;
mod suppressions;
mod symbol_table;
pub mod symbols;
mod syntax;
mod time_left;
mod units;

pub use crate::model::leak_kind::{LeakKind, LeakKinds};
pub use frame_text::{FrameText, StackText};
pub use generated::{Generated, generate, generate_for, own_frame};
pub use known::known;
pub use leak_filter::{LeakFilter, SiftedLeak, passes_any};
pub use suppressed_sums::{SuppressedSums, Used};
pub use suppressions::{Matcher, Suppression, Suppressions};
pub use syntax::SuppressionError;

#[cfg(test)]
mod tests;
