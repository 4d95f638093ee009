//! The options of memleak that only tests use.

/// A word of the command line that sets one of them. A switch without a value has an empty one.
pub fn switch(key: &str, value: &str) -> String {
    match value {
        "" => format!("--{key}"),
        _ => format!("--{key}={value}"),
    }
}
