//! Call stacks: the rules by which the kernel side unwinds them, names for their frames, and which of them are
//! suppressed.

pub mod code_files;
pub mod file_rules;
mod frame_text;
mod generated;
mod known;
mod leak_kind;
pub mod namer;
pub mod rules;
mod suppressed_sums;
mod suppressions;
mod syntax;

pub use frame_text::{FrameText, StackText};
pub use generated::{Generated, generate};
pub use known::known;
pub use leak_kind::{LeakKind, LeakKinds};
pub use suppressed_sums::{SuppressedSums, Used};
pub use suppressions::{Matcher, Suppression, Suppressions};
pub use syntax::SuppressionError;

#[cfg(test)]
mod tests;
