//! The cookie by which the BPF programs know a probed function, its file and its site.

use crate::find::notation::{Action, Verb};
use crate::kernel::skeletons::types::{cookie_bits, kind};

/// The cookie by which the BPF programs know the function (`enum cookie_bits`).
pub fn cookie(action: Action, file: u16, site: u32) -> u64 {
    let what = match action.verb {
        Verb::Alloc => kind::KIND_ALLOC,
        Verb::New | Verb::NewNothrow => kind::KIND_NEW,
        Verb::Realloc => kind::KIND_REALLOC,
        Verb::Renew => kind::KIND_RENEW,
        Verb::Reallocf => kind::KIND_REALLOCF,
        Verb::Resize => kind::KIND_RESIZE,
        Verb::Free => kind::KIND_FREE,
        Verb::FreeAgain => kind::KIND_FREE_AGAIN,
        Verb::FreeScope => kind::KIND_FREE_SCOPE,
        Verb::FreeScopeThrows => kind::KIND_FREE_SCOPE_THROWS,
        Verb::Start => kind::KIND_START,
        Verb::Inside => kind::KIND_INSIDE,
        Verb::Return => kind::KIND_RETURN,
        Verb::Left => kind::KIND_LEFT,
        Verb::Unfollowed => kind::KIND_UNFOLLOWED,
    };
    u64::from(what.0) << cookie_bits::COOKIE_KIND.0
        | u64::from(action.size) << cookie_bits::COOKIE_SIZE.0
        | u64::from(action.count) << cookie_bits::COOKIE_COUNT.0
        | u64::from(action.block) << cookie_bits::COOKIE_BLOCK.0
        | u64::from(action.out) << cookie_bits::COOKIE_OUT.0
        | u64::from(file) << cookie_bits::COOKIE_FILE.0
        | u64::from(site) << cookie_bits::COOKIE_SITE.0
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    // `assert_eq!` has a variable of its own that is called `kind`.
    use super::{Action, cookie};
    use crate::find::functions::Table;

    fn action(symbol: &str) -> Action {
        let table = Table::new(Vec::new()).unwrap();
        let null = fs::File::open("/dev/null").unwrap();
        let table = table.for_file(Path::new("/dev/null"), &null);
        table.find(symbol).unwrap().0.action
    }

    #[test]
    fn a_cookie_carries_every_argument() {
        assert_eq!(
            cookie(action("reallocarray"), 5, 7),
            7 << 32 | 5 << 20 | 1 << 12 | 2 << 8 | 3 << 4 | 2
        );
        assert_eq!(cookie(action("posix_memalign"), 0, 0), 1 << 16 | 3 << 4 | 1);
    }
}
