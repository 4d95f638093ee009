//! Tests that every reader of unknown bytes ends in bounded time and takes bounded memory. They are apart from the
//! other tests, because their allocator counts the memory of the whole process. So only one test runs at a time.

mod damaged;
mod debug_info;
mod found;
// A symbolic link to the file of the fuzz targets. The fuzz targets are a package of their own.
mod inputs;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// An allocator that counts the bytes held, and records the peak of that number and the longest block requested.
struct Watching;

static HELD: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);
static LONGEST: AtomicUsize = AtomicUsize::new(0);

// SAFETY: each function calls System's. Besides that it only records the size.
unsafe impl GlobalAlloc for Watching {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        asked(layout);
        // SAFETY: this function has System's conditions, and the caller fulfils them.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        asked(layout);
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Relaxed);
        // SAFETY: as above.
        unsafe { System.dealloc(block, layout) }
    }
}

fn asked(layout: Layout) {
    let held = HELD.fetch_add(layout.size(), Relaxed) + layout.size();
    MOST.fetch_max(held, Relaxed);
    LONGEST.fetch_max(layout.size(), Relaxed);
}

#[global_allocator]
static ALLOCATOR: Watching = Watching;

/// Waits until no other test runs. Each test holds the result, because the counts are those of the whole process.
fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}
