//! memleak's messages on standard error, beside the report. What they say is left to the callers.

use std::io::{self, Write};

use crate::text::escape;

/// Writes a line to standard error. A failed write is ignored.
pub fn say(line: &str) {
    tell(&format!("memleak: {line}"));
}

/// Like [`say`], for a line that names memleak itself. Paths in the line are not trusted. They cannot control the
/// terminal, and cannot change the number of lines.
pub fn tell(line: &str) {
    let _ = writeln!(io::stderr(), "{}", escape::line(line));
}
