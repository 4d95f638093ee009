//! What memleak says of itself, beside the report.

use std::io::{self, Write};

/// Says a line on standard error. That nobody may read it changes nothing.
pub fn say(line: &str) {
    let _ = writeln!(io::stderr(), "memleak: {line}");
}
