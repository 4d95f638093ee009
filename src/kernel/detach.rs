//! Takes probes off, side by side: the kernel takes some 50 ms for each link, waiting for whoever may be running
//! the program.
//!
//! A process that SIGKILL has reached gets at no page of another process any more (EINTR), not even from within
//! close(2): a probe that it was about to take off stays in the code of whoever has the file mapped, without a
//! program, and costs a trap a call until the next memleak takes it off (`uprobe: memleak:PID failed to unregister,
//! leaking uprobe`, says the kernel since 6.12). No signal reaches who has begun to end. So memleak's own end is
//! what takes the probes off, see [`at_exit`].

use std::os::fd::RawFd;
use std::sync::mpsc::channel;
use std::thread::{self, Builder};
use std::{fs, io};

use nix::sched::{CloneFlags, unshare};

/// How many threads close links side by side.
const MOST_THREADS: usize = 64;

/// Closes links while memleak goes on.
pub(super) fn close<T: Send>(mut links: Vec<T>) {
    while !links.is_empty() {
        thread::scope(|scope| {
            for link in links.drain(..links.len().min(MOST_THREADS)) {
                scope.spawn(move || drop(link));
            }
        });
    }
}

/// Leaves all links of this process to its end, which then takes hardly longer than that of one link. Nobody may
/// use or close them any more.
///
/// Who shares descriptors gives them back one after the other. So each thread here has some for itself: it has a
/// table of its own, and nobody else has those left. What cannot be shared out ends later, and as safely.
pub(super) fn at_exit() {
    let Ok(fds) = links_of_this_process() else {
        return;
    };
    let shares: Vec<Vec<RawFd>> = fds
        .chunks(fds.len().div_ceil(MOST_THREADS).max(1))
        .map(<[RawFd]>::to_vec)
        .collect();
    let (ready, are_ready) = channel();
    for share in shares {
        let others: Vec<RawFd> = fds
            .iter()
            .copied()
            .filter(|fd| !share.contains(fd))
            .collect();
        let ready = ready.clone();
        let keep = move || {
            if unshare(CloneFlags::CLONE_FILES).is_ok() {
                others.into_iter().for_each(close_fd);
                // Who waits for it may have given up.
                let _ = ready.send(share);
            }
            drop(ready);
            loop {
                thread::park();
            }
        };
        // Where there may be no more threads, the one that ends last does it.
        let _ = Builder::new().spawn(keep);
    }
    drop(ready);
    // None of these is the last one of its link: whoever told of them has them, too.
    are_ready.into_iter().flatten().for_each(close_fd);
}

/// The descriptors of links, and of the perf events that have programs.
fn links_of_this_process() -> io::Result<Vec<RawFd>> {
    let is_link = |target: &str| target.contains("bpf_link") || target.contains("perf_event");
    let mut fds = Vec::new();
    for entry in fs::read_dir("/proc/self/fd")? {
        let entry = entry?;
        let target = fs::read_link(entry.path()).unwrap_or_default();
        if target.to_str().is_some_and(is_link) {
            fds.extend(
                entry
                    .file_name()
                    .to_str()
                    .and_then(|name| name.parse::<RawFd>().ok()),
            );
        }
    }
    Ok(fds)
}

fn close_fd(fd: RawFd) {
    // SAFETY: a number only; by `at_exit`'s contract nobody uses what it names.
    unsafe { libc::close(fd) };
}
