//! Counts that take minutes. `make test-long` runs them, and tests/long.txt has what it printed last.

use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use crate::launch::assert_exit_code;

#[test]
#[ignore = "takes a minute: make test-long"]
fn all_256_exit_codes_are_passed_on_from_end_to_end() {
    let next = AtomicU32::new(0);
    let take_turns = || {
        while let Ok(code) = u8::try_from(next.fetch_add(1, Ordering::Relaxed)) {
            assert_exit_code(code);
        }
    };
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(take_turns);
        }
    });
    assert!(next.into_inner() >= 256);
}
