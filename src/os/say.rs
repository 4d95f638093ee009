//! What memleak says of itself, beside the report.

use std::io::{self, Write};

use crate::text::escape;

/// Says a line on standard error. That nobody may read it changes nothing.
pub fn say(line: &str) {
    tell(&format!("memleak: {line}"));
}

/// The same for a line that names memleak itself. Paths in it are anybody's: they change neither the terminal nor
/// the number of lines.
pub fn tell(line: &str) {
    let _ = writeln!(io::stderr(), "{}", escape::line(line));
}
