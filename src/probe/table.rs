//! Which functions are probed, and what their arguments mean: the one table that says so.

use crate::bpf::types::{cookie_bits, kind};

/// A function of an allocator. Argument numbers count from 1; 0 means "has none".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// What messages call it.
    pub name: &'static str,
    /// The symbols that have these arguments. Several at one address are one function.
    pub symbols: &'static [&'static str],
    pub action: Action,
    /// A file without it is not taken for an allocator.
    pub required: bool,
}

/// What a function does, and with which of its arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Returns a new block of `size` (times `count`) bytes, or stores its address where `out` points.
    Allocate {
        size: u8,
        count: u8,
        out: u8,
    },
    /// Replaces `block` by one of `size` (times `count`) bytes.
    Reallocate {
        block: u8,
        size: u8,
        count: u8,
    },
    Free {
        block: u8,
    },
    /// Allocates nothing, but is called once in every image that uses the file.
    Start,
}

impl Action {
    /// Whether the function's return is probed too.
    pub fn returns(self) -> bool {
        matches!(self, Action::Allocate { .. } | Action::Reallocate { .. })
    }

    /// Numbers of the arguments that its program reads.
    pub fn arguments(self) -> Vec<u8> {
        let all = match self {
            Action::Allocate { size, count, out } => [size, count, out],
            Action::Reallocate { block, size, count } => [block, size, count],
            Action::Free { block } => [block, 0, 0],
            Action::Start => [0; 3],
        };
        all.into_iter().filter(|&n| n != 0).collect()
    }

    /// The cookie by which the BPF programs know the function (`enum cookie_bits`).
    pub fn cookie(self, file: u16, site: u32) -> u64 {
        let (what, size, count, block, out) = match self {
            Action::Allocate { size, count, out } => (kind::KIND_ALLOC, size, count, 0, out),
            Action::Reallocate { block, size, count } => {
                (kind::KIND_REALLOC, size, count, block, 0)
            }
            Action::Free { block } => (kind::KIND_FREE, 0, 0, block, 0),
            Action::Start => (kind::KIND_START, 0, 0, 0, 0),
        };
        u64::from(what.0) << cookie_bits::COOKIE_KIND.0
            | u64::from(size) << cookie_bits::COOKIE_SIZE.0
            | u64::from(count) << cookie_bits::COOKIE_COUNT.0
            | u64::from(block) << cookie_bits::COOKIE_BLOCK.0
            | u64::from(out) << cookie_bits::COOKIE_OUT.0
            | u64::from(file) << cookie_bits::COOKIE_FILE.0
            | u64::from(site) << cookie_bits::COOKIE_SITE.0
    }
}

const fn allocate(
    name: &'static str,
    symbols: &'static [&'static str],
    size: u8,
    required: bool,
) -> Row {
    Row {
        name,
        symbols,
        action: Action::Allocate {
            size,
            count: 0,
            out: 0,
        },
        required,
    }
}

/// The C library's family.
pub const LIBC: [Row; 10] = [
    allocate("malloc", &["malloc"], 1, true),
    Row {
        name: "calloc",
        symbols: &["calloc"],
        action: Action::Allocate {
            size: 2,
            count: 1,
            out: 0,
        },
        required: true,
    },
    Row {
        name: "realloc",
        symbols: &["realloc"],
        action: Action::Reallocate {
            block: 1,
            size: 2,
            count: 0,
        },
        required: true,
    },
    Row {
        name: "reallocarray",
        symbols: &["reallocarray"],
        action: Action::Reallocate {
            block: 1,
            size: 3,
            count: 2,
        },
        required: false,
    },
    Row {
        name: "posix_memalign",
        symbols: &["posix_memalign"],
        action: Action::Allocate {
            size: 3,
            count: 0,
            out: 1,
        },
        required: false,
    },
    allocate("memalign", &["memalign", "aligned_alloc"], 2, false),
    allocate("valloc", &["valloc"], 1, false),
    allocate("pvalloc", &["pvalloc"], 1, false),
    Row {
        name: "free",
        // cfree: only old programs have it; the sized ones are new in C23
        symbols: &["free", "cfree", "free_sized", "free_aligned_sized"],
        action: Action::Free { block: 1 },
        required: true,
    },
    Row {
        name: "start",
        symbols: &["__libc_start_main"],
        action: Action::Start,
        required: false,
    },
];

#[cfg(test)]
mod tests {
    use super::{Action, LIBC};

    #[test]
    fn a_cookie_carries_every_argument() {
        let action = Action::Reallocate {
            block: 1,
            size: 3,
            count: 2,
        };
        assert_eq!(
            action.cookie(5, 7),
            7 << 32 | 5 << 20 | 1 << 12 | 2 << 8 | 3 << 4 | 2
        );
        assert_eq!(
            Action::Allocate {
                size: 3,
                count: 0,
                out: 1
            }
            .cookie(0, 0),
            1 << 16 | 3 << 4 | 1
        );
    }

    #[test]
    fn no_symbol_stands_in_two_rows() {
        let mut symbols: Vec<_> = LIBC.iter().flat_map(|row| row.symbols).collect();
        let all = symbols.len();
        symbols.sort();
        symbols.dedup();
        assert_eq!(symbols.len(), all);
    }
}
