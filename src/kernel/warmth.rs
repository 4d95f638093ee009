//! Makes the first attach quick. Before the kernel puts a uprobe in, it waits for a grace period, so that no fork is under
//! way (`dup_mmap_sem`, a percpu_rw_semaphore). If somebody else has waited just before, there is nothing to wait for.
//! So, while the verifier works, a thread puts in probes that do nothing, at a place that nobody has mapped.

use std::mem;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, Builder, JoinHandle};
use std::time::Duration;

use anyhow::Result;

use crate::kernel::empty::EmptyProbes;
use crate::kernel::method::Method;
use crate::kernel::pins::Pins;
use crate::os::memory_file::file_of;

/// How long the effect of one probe lasts, at least.
const LASTS: Duration = Duration::from_millis(5);

/// The most probes. If loading takes longer than they last, the first attach waits.
const MOST: usize = 40;

/// While this exists, attaching is quick.
pub(super) struct Warmth {
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Drop for Warmth {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // If it failed, the first attach only takes longer.
            let _ = thread.join();
        }
    }
}

impl Warmth {
    /// Begins in a thread of its own.
    pub(super) fn begin() -> Self {
        let is_over = Arc::new(AtomicBool::new(false));
        let over = Arc::clone(&is_over);
        // A user may have no more threads.
        let thread = Builder::new().spawn(move || keep_warm(&over)).ok();
        Self { is_over, thread }
    }
}

fn keep_warm(is_over: &AtomicBool) -> Result<()> {
    let file = file_of(c"memleak-warmth", &[0x90; 16])?;
    let mut probes = EmptyProbes::attach(Method::Multi, &file, &[0])?;
    // So that the links take no descriptors. Without the right to that, they do.
    let mut pins = Pins::new().ok();
    for _ in 0..MOST {
        if let Some(pins) = &mut pins {
            probes.pin(pins)?;
        }
        thread::park_timeout(LASTS);
        if is_over.load(Ordering::Relaxed) {
            break;
        }
        probes.attach_again(&file, &[0])?;
    }
    // Removing probes takes long, so it is left to memleak's end.
    mem::forget((probes, pins));
    Ok(())
}
