//! The options of memleak that only tests use.

/// A word of the command line that sets one of them: `src/options/switches.rs` has the keys.
pub fn switch(key: &str, value: &str) -> String {
    format!("--test={key}={value}")
}
