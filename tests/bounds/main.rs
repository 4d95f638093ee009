//! Readers of unknown bytes: each ends in bounded time and takes bounded memory. Apart from the other tests, as its
//! allocator sees what the whole process takes: one test at a time.

mod damaged;
mod found;
// A link to the file of the fuzz targets, which are a package of their own.
mod inputs;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Counts the bytes that are held, and remembers the most there were, and the longest block that was asked for.
struct Watching;

static HELD: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);
static LONGEST: AtomicUsize = AtomicUsize::new(0);

// SAFETY: what System does, with a note of the size.
unsafe impl GlobalAlloc for Watching {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        asked(layout);
        // SAFETY: the caller keeps System's conditions, which are this function's.
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

/// Held by each test: what is taken is the process's.
fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}
