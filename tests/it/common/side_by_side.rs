//! Runs that wait most of the time, side by side within one test.

use std::panic::resume_unwind;
use std::sync::Mutex;
use std::thread;

/// So many at a time: each memleak takes some 200 MB of the kernel's memory, and where many probes come and go at a
/// time, those who wait for an answer of theirs wait too long.
const AT_A_TIME: usize = 2;

/// Does the same with each of the items. Fails if it fails with one of them, once all are done.
#[track_caller]
pub fn side_by_side<T: Send>(items: impl IntoIterator<Item = T>, run: impl Fn(T) + Sync) {
    let items: Vec<T> = items.into_iter().collect();
    assert!(!items.is_empty(), "there is nothing to run");
    let items = Mutex::new(items.into_iter());
    let next = || items.lock().expect("nobody panics with it").next();
    let take_turns = || {
        while let Some(item) = next() {
            run(item);
        }
    };
    let failed = thread::scope(|scope| {
        let threads = [(); AT_A_TIME].map(|()| scope.spawn(take_turns));
        let ends = threads.map(|thread| thread.join());
        ends.into_iter().find_map(Result::err)
    });
    if let Some(failure) = failed {
        resume_unwind(failure);
    }
}
