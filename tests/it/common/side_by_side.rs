//! Runs several items of one test side by side, because each run waits most of the time.

use std::panic::resume_unwind;
use std::sync::Mutex;
use std::thread;

/// The number of items that run at the same time. Each memleak takes 44 MB of the kernel's memory, 235 MB on kernels before 6.1. While many
/// probes come and go at the same time, a run that waits for a result of its own probes waits too long.
const AT_A_TIME: usize = 2;

/// Calls `run` for each of the items. If a call fails, this function fails, once all items are done.
#[track_caller]
pub fn side_by_side<T: Send>(items: impl IntoIterator<Item = T>, run: impl Fn(T) + Sync) {
    let items: Vec<T> = items.into_iter().collect();
    assert!(!items.is_empty(), "there are no items to run");
    let items = Mutex::new(items.into_iter());
    let next = || {
        items
            .lock()
            .expect("no thread panics while it holds the lock")
            .next()
    };
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
