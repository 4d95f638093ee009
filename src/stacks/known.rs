//! What the runtime of a program keeps until its end, by memleak's own suppressions.

use crate::stacks::suppressions::Suppressions;
use crate::stacks::syntax::SuppressionError;

/// What memleak's own list is called where a file's name would stand.
const NAME: &str = "memleak's own";

/// The list, with the reasons.
const LIST: &[u8] = include_bytes!("known.supp");

/// memleak's own suppressions: memory that a C library, the dynamic loader and the C++ library take once, and keep on
/// purpose. They also match where it is not known what a leak is, but never what is known to be lost.
///
/// # Errors
/// None: a test reads the list.
pub fn known() -> Result<Suppressions, SuppressionError> {
    let mut known = Suppressions::default();
    known.add(NAME, LIST)?;
    Ok(known.with_unknown_kinds())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::leak_kind::LeakKind;
    use crate::stacks::frame_text::{FrameText, StackText};
    use crate::stacks::suppressions::Matcher;

    fn frame(name: &'static str, module: &'static str) -> FrameText<'static> {
        FrameText {
            function: Some(name).filter(|name| !name.is_empty()),
            module,
            ..FrameText::default()
        }
    }

    #[test]
    fn what_is_lost_is_never_hidden_and_what_is_unknown_is_as_what_is_reachable() {
        let known = known().unwrap();
        assert!(known.list().len() > 25);
        let mut matcher = Matcher::new(&known);
        let malloc = frame("malloc", "/lib/libc.so.6");
        // The innermost function, the next one, and which of the list's entries it is.
        let libc = "/lib/libc.so.6";
        for (inner, outer, name) in [
            (
                frame("", "/lib/libstdc++.so.6.0.30"),
                frame("", "/lib/ld-linux-x86-64.so.2"),
                Some("libstdc++ pool"),
            ),
            (
                frame("_GLOBAL__sub_I_eh_alloc.cc", "/app"),
                frame("main", "/app"),
                Some("libstdc++ pool"),
            ),
            (
                frame("", "/lib/libstdc++.so.6.0.30"),
                frame("main", "/app"),
                None,
            ),
            (
                frame("_IO_file_doallocate", libc),
                frame("puts", libc),
                Some("stdio"),
            ),
            (
                frame("", "/lib/ld-2.31.so"),
                frame("dlopen", libc),
                Some("dynamic loader"),
            ),
            (
                frame("", "/lib/ld-linux-aarch64.so.1"),
                frame("dlopen", libc),
                Some("dynamic loader"),
            ),
            // musl's loader is its C library, which allocates for the program.
            (
                frame("strdup", "/lib/ld-musl-x86_64.so.1"),
                frame("main", "/app"),
                None,
            ),
            (frame("", libc), frame("setlocale", libc), Some("locale")),
            (frame("newlocale", libc), frame("main", "/app"), None),
            (frame("strdup", libc), frame("main", "/app"), None),
            (frame("getaddrinfo", libc), frame("main", "/app"), None),
            (frame("iconv_open", libc), frame("main", "/app"), None),
            (frame("__fopen_internal", libc), frame("main", "/app"), None),
            // What constructors of a library that is loaded allocate is the library's.
            (frame("init", "/lib/libx.so"), frame("dlopen", libc), None),
        ] {
            let stack = StackText {
                allocator: malloc,
                frames: &[inner, outer],
            };
            for kind in [LeakKind::Reachable, LeakKind::Unknown] {
                let found = matcher.find(&stack, kind);
                let found = found.map(|number| known.list()[number].name.as_str());
                assert_eq!(found, name, "{inner:?}");
            }
            for kind in [LeakKind::Definite, LeakKind::Indirect] {
                assert_eq!(matcher.find(&stack, kind), None, "{inner:?}");
            }
        }
    }
}
