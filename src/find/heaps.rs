//! Where an allocator keeps its blocks. A process's memory is searched for pointers to blocks, and what an allocator
//! keeps for itself must not count.

use crate::lost::Allocators;

/// The functions that tell allocators apart. Each is in one of them only.
pub(super) const MARKS: [&str; 7] = [
    GLIBC,
    GLIBC_STATIC,
    "mallctl",
    "je_mallctl",
    "mi_version",
    TCMALLOC,
    "MallocExtension_GetNumericProperty",
];

/// Every release of glibc exports it.
const GLIBC: &str = "gnu_get_libc_version";

/// Every static program with glibc has it, since it sets up the first thread.
const GLIBC_STATIC: &str = "__libc_setup_tls";

/// The last two of the marks are tcmalloc's.
const TCMALLOC: &str = "tc_version";

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
        (false, true) if marks.has_malloc => {
            let tcmalloc = MARKS.iter().skip_while(|&&name| name != TCMALLOC);
            let of_tcmalloc = tcmalloc.filter(|&&name| has(name)).count();
            match of_tcmalloc {
                0 => Allocators::Mappings,
                found if found == marks.found.len() => Allocators::Pages,
                _ => Allocators::Unknown,
            }
        }
        _ => Allocators::Unknown,
    }
}

/// Where a process's blocks are that has used the allocators of these files. The C library is among them even if the
/// process has another allocator in its place. `has_unseen`: it may have blocks that memleak does not know, such as those
/// that it inherited by a fork. Only of glibc's blocks is it known where these are. They are the program's memory.
pub fn of_process(files: impl IntoIterator<Item = Allocators>, has_unseen: bool) -> Allocators {
    let mut all = Allocators::Glibc;
    for file in files {
        all = match (all, file) {
            (Allocators::Glibc, other) | (other, Allocators::Glibc) => other,
            (one, other) if one == other => one,
            _ => Allocators::Unknown,
        };
    }
    match all {
        Allocators::Mappings | Allocators::Pages if has_unseen => Allocators::Unknown,
        all => all,
    }
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
        let tcmalloc = [TCMALLOC, "MallocExtension_GetNumericProperty"];
        assert_eq!(kind(&tcmalloc, false, false, true), Allocators::Pages);
        let both = ["mallctl", TCMALLOC];
        assert_eq!(kind(&both, false, false, true), Allocators::Unknown);
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
        use Allocators::{Glibc, Mappings, Pages, Unknown};
        assert_eq!(of_process([], false), Glibc);
        assert_eq!(of_process([Glibc, Glibc], false), Glibc);
        assert_eq!(of_process([Glibc, Mappings], false), Mappings);
        assert_eq!(of_process([Pages, Glibc, Pages], false), Pages);
        assert_eq!(of_process([Mappings, Glibc, Pages], false), Unknown);
        assert_eq!(of_process([Mappings, Unknown, Glibc], false), Unknown);
    }

    #[test]
    fn blocks_that_were_not_seen_are_known_in_glibc_only() {
        use Allocators::{Glibc, Mappings, Pages, Unknown};
        assert_eq!(of_process([Glibc], true), Glibc);
        assert_eq!(of_process([Glibc, Mappings], true), Unknown);
        assert_eq!(of_process([Glibc, Pages], true), Unknown);
    }
}
