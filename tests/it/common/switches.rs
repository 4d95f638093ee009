//! Options of memleak that only tests use.

/// The word of the command line that sets one of these options. `src/options/switches.rs` lists the keys.
pub fn switch(key: &str, value: &str) -> String {
    format!("--test={key}={value}")
}
