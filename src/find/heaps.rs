//! Where an allocator keeps its blocks. A process's memory is searched for pointers to blocks, and what an allocator
//! keeps for itself must not count.

use crate::lost::Allocators;

/// The functions that tell allocators apart. Each is in one of them only.
pub(super) const MARKS: [&str; 7] = [
    GLIBC,
    GLIBC_STATIC,
    "mallctl",
    "je_mallctl",
    "tc_version",
    "MallocExtension_GetNumericProperty",
    "mi_version",
];

/// Every release of glibc exports it.
const GLIBC: &str = "gnu_get_libc_version";

/// Every static program with glibc has it, since it sets up the first thread.
const GLIBC_STATIC: &str = "__libc_setup_tls";

/// What is known of the functions of a file.
pub(super) struct Marks<'a> {
    /// The names of [`MARKS`] that the file has.
    pub(super) found: &'a [&'a str],
    pub(super) is_libc: bool,
    pub(super) is_static: bool,
    /// Whether it defines a function named `malloc`.
    pub(super) has_malloc: bool,
    /// Whether the user has described its allocator.
    pub(super) named_by_user: bool,
}

/// Where the allocator of a file keeps its blocks.
pub(super) fn kind(marks: &Marks<'_>) -> Allocators {
    let has = |name| marks.found.contains(&name);
    let is_glibc = match marks.is_static {
        true => has(GLIBC_STATIC),
        false => marks.is_libc && has(GLIBC),
    };
    let is_other = marks
        .found
        .iter()
        .any(|&name| name != GLIBC && name != GLIBC_STATIC);
    match (is_glibc, is_other) {
        _ if marks.named_by_user => Allocators::Unknown,
        (true, false) => Allocators::Glibc,
        // Under other names, it would stand beside the C library's.
        (false, true) if marks.has_malloc => Allocators::Mappings,
        _ => Allocators::Unknown,
    }
}

/// Where a process's blocks are that has used the allocators of these files. The C library is among them even if the
/// process has another allocator in its place.
pub fn of_process(files: impl IntoIterator<Item = Allocators>) -> Allocators {
    let mut all = Allocators::Glibc;
    for file in files {
        all = match (all, file) {
            (Allocators::Unknown, _) | (_, Allocators::Unknown) => Allocators::Unknown,
            (Allocators::Mappings, _) | (_, Allocators::Mappings) => Allocators::Mappings,
            (Allocators::Glibc, Allocators::Glibc) => Allocators::Glibc,
        };
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_allocator_is_known_by_its_functions() {
        let kind = |found: &[&str], is_libc, is_static, has_malloc| {
            kind(&Marks {
                found,
                is_libc,
                is_static,
                has_malloc,
                named_by_user: false,
            })
        };
        assert_eq!(kind(&[GLIBC], true, false, true), Allocators::Glibc);
        // musl
        assert_eq!(kind(&[], true, false, true), Allocators::Unknown);
        assert_eq!(kind(&[GLIBC_STATIC], false, true, true), Allocators::Glibc);
        assert_eq!(kind(&[], false, true, true), Allocators::Unknown);
        assert_eq!(kind(&["mallctl"], false, false, true), Allocators::Mappings);
        // A program with a jemalloc of its own beside the C library's.
        assert_eq!(
            kind(&["je_mallctl"], false, false, false),
            Allocators::Unknown
        );
        // The same in a static program.
        let both = [GLIBC_STATIC, "mallctl"];
        assert_eq!(kind(&both, false, true, true), Allocators::Unknown);
        let marks = Marks {
            found: &[GLIBC],
            is_libc: true,
            is_static: false,
            has_malloc: true,
            named_by_user: true,
        };
        assert_eq!(super::kind(&marks), Allocators::Unknown);
    }

    #[test]
    fn one_unknown_allocator_makes_a_process_unknown() {
        use Allocators::{Glibc, Mappings, Unknown};
        assert_eq!(of_process([]), Glibc);
        assert_eq!(of_process([Glibc, Glibc]), Glibc);
        assert_eq!(of_process([Glibc, Mappings]), Mappings);
        assert_eq!(of_process([Mappings, Glibc]), Mappings);
        assert_eq!(of_process([Mappings, Unknown, Glibc]), Unknown);
    }
}
