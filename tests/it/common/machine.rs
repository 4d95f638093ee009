//! What tests that run at the same time need of each other.
//!
//! A memleak that watches every process (`-a`) puts its probes into every file that some process has mapped,
//! also into the private copies of other tests. Tests that must see no probe of others cannot run beside it.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Positive: so many watch every process. Negative: so many must see no probe of others.
static USERS: Mutex<i32> = Mutex::new(0);
static CHANGED: Condvar = Condvar::new();

/// Held until it is dropped. Several of the same kind may be held at a time, also by one test; a test that holds
/// one kind must not ask for the other.
#[must_use]
pub struct Held(i32);

/// For a memleak that watches every process.
pub fn watched() -> Held {
    enter(1)
}

/// For a test that must see no probe but its own.
pub fn unwatched() -> Held {
    enter(-1)
}

fn users() -> MutexGuard<'static, i32> {
    USERS.lock().unwrap_or_else(PoisonError::into_inner)
}

fn enter(one: i32) -> Held {
    let mut users = users();
    while *users * one < 0 {
        users = CHANGED.wait(users).unwrap_or_else(PoisonError::into_inner);
    }
    *users += one;
    Held(one)
}

impl Drop for Held {
    fn drop(&mut self) {
        *users() -= self.0;
        CHANGED.notify_all();
    }
}
