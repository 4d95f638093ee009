//! Names as programmers wrote them, of the names in symbol tables.
//!
//! A file decides which names it has, and a short name may stand for a very long one, so the result is bounded.

use std::fmt::{self, Write};

use cpp_demangle::{BorrowedSymbol, DemangleOptions, ParseOptions};

use crate::stacks::identity::without_suffixes;

/// The most bytes of a name that is shown. Longer names are cut.
const MAX_NAME: usize = 4096;

/// The most bytes of a mangled name that is demangled. Longer ones are shown as they are, and cut.
const MAX_MANGLED: usize = 16 << 10;

/// How deep a C++ name may be nested. Names of large programs have a depth of some 20.
const DEPTH: u32 = 96;

/// The name that a programmer knows. What is no mangled name of C++ or Rust stays as it is.
pub fn demangled(linkage: &str) -> String {
    if linkage.len() <= MAX_MANGLED {
        if let Ok(name) = rustc_demangle::try_demangle(linkage) {
            // The alternate form leaves out the hash.
            if let Some(text) = written(|out| write!(out, "{name:#}")) {
                return text;
            }
        }
        if linkage.starts_with("_Z")
            && let Some(text) = cpp(linkage)
        {
            return text;
        }
    }
    beginning(without_suffixes(linkage), MAX_NAME).to_owned()
}

fn cpp(linkage: &str) -> Option<String> {
    let parsing = ParseOptions::default().recursion_limit(DEPTH);
    let showing = DemangleOptions::default().recursion_limit(DEPTH);
    let name = without_suffixes(linkage).as_bytes();
    // If only the beginning is understood, that is still a name, without parameters.
    let (symbol, _) = BorrowedSymbol::with_tail_and_options(name, &parsing).ok()?;
    written(|out| symbol.structured_demangle(out, &showing))
}

/// What is written, if it is not too long.
fn written(write: impl FnOnce(&mut Bounded) -> fmt::Result) -> Option<String> {
    let mut out = Bounded {
        text: String::new(),
        full: false,
    };
    match write(&mut out) {
        Ok(()) => Some(out.text),
        // The beginning of a long name is worth more than a mangled name.
        Err(_) if out.full => Some(out.text),
        Err(_) => None,
    }
}

struct Bounded {
    text: String,
    full: bool,
}

impl Write for Bounded {
    fn write_str(&mut self, part: &str) -> fmt::Result {
        let room = MAX_NAME - self.text.len();
        if part.len() <= room {
            self.text.push_str(part);
            return Ok(());
        }
        self.full = true;
        self.text.push_str(beginning(part, room));
        Err(fmt::Error)
    }
}

/// The beginning of a text: as many whole characters as fit into `room` bytes.
fn beginning(text: &str, room: usize) -> &str {
    let mut end = room.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_each_language_are_those_in_the_source() {
        for (linkage, name) in [
            ("main", "main"),
            ("_Z4makei", "make(int)"),
            ("_ZN3FooC2Ev", "Foo::Foo()"),
            ("_ZN3FooC4Ev", "Foo::Foo()"),
            (
                "_ZNSt6vectorIiSaIiEE9push_backERKi",
                "std::vector<int, std::allocator<int> >::push_back(int const&)",
            ),
            ("_Znwm", "operator new(unsigned long)"),
            (
                "_ZN5alloc5alloc8box_free17h0123456789abcdefE",
                "alloc::alloc::box_free",
            ),
            (
                "_RNvCskwGfYPst2Cb_3foo16example_function",
                "foo::example_function",
            ),
            ("compute.constprop.0", "compute"),
            ("_ZL4workPv.cold", "work(void*)"),
            ("_Zbroken", "_Zbroken"),
            ("", ""),
        ] {
            assert_eq!(demangled(linkage), name, "{linkage}");
        }
    }

    #[test]
    fn names_that_grow_without_end_are_cut() {
        // Each parameter is a template of the one before, twice.
        let mut name = "_Z1fI1A".to_owned();
        for _ in 0..30 {
            name.push_str("1BIS_S_E");
        }
        name.push_str("Evv");
        assert!(demangled(&name).len() <= MAX_NAME);
        let mut nested = "_Z1f".to_owned();
        nested.push_str(&"P".repeat(MAX_MANGLED - 10));
        nested.push('i');
        assert_eq!(demangled(&nested).len(), MAX_NAME);
        assert_eq!(demangled(&"é".repeat(MAX_NAME)).len(), MAX_NAME);
    }
}
