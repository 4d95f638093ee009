//! A value that a thread makes, while the start of a session does something else.

use std::cell::LazyCell;
use std::thread::{Builder, JoinHandle};

/// The value is waited for when it is first asked for. `None`: there could be no thread, or it has failed.
pub(super) struct Ahead<T>(LazyCell<Option<T>, Box<dyn FnOnce() -> Option<T>>>);

impl<T: Send + 'static> Ahead<T> {
    /// Begins in a thread of its own.
    pub(super) fn begin(make: impl FnOnce() -> T + Send + 'static) -> Self {
        // A user may have no more threads.
        let thread = Builder::new().spawn(make).ok();
        let wait = |thread: JoinHandle<T>| thread.join().ok();
        Self(LazyCell::new(Box::new(move || thread.and_then(wait))))
    }

    pub(super) fn get(&self) -> Option<&T> {
        self.0.as_ref()
    }
}
