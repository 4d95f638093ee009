//! Call stacks: how a stack is unwound.

pub mod code_files;
pub mod file_rules;
pub mod namer;
pub mod rules;
