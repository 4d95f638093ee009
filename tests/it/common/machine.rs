//! Coordinates tests that run at the same time.
//!
//! A memleak that watches every process (`-a`) puts its probes into every file that a process has mapped. These files
//! include the private copies of other tests. A test that must see no probes of others cannot run at the same time.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// If positive, the number of memleaks that watch every process. If negative, its absolute value is the number of
/// tests that must see no probes of others.
static USERS: Mutex<i32> = Mutex::new(0);
static CHANGED: Condvar = Condvar::new();

/// A reservation, which ends when this is dropped. Several of the same kind may be held at the same time, also by one
/// test. A test that holds one kind must not ask for the other kind.
#[must_use]
pub struct Held(i32);

/// Waits for a reservation for a memleak that watches every process.
pub fn watched() -> Held {
    enter(1)
}

/// Waits for a reservation for a test that must see no probes but its own.
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
