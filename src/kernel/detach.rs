//! Removes probes. Links are closed side by side, because the kernel takes some 50 ms for each. It waits for tasks that
//! may be running the program.
//!
//! After SIGKILL, a process cannot access another process's memory (EINTR), not even from within close(2). A probe that
//! it was about to remove stays in the code of every process that has the file mapped. It has no program then, and
//! costs a trap a call until the next memleak removes it. Since 6.12 the kernel says
//! `uprobe: memleak:PID failed to unregister, leaking uprobe`. No signal reaches a worker of the kernel, nor a process
//! that has begun to exit. So these remove the probes at memleak's end, see [`at_exit`].

use std::os::fd::{BorrowedFd, RawFd};
use std::sync::mpsc::channel;
use std::thread::{self, Builder};
use std::{fs, io, mem};

use nix::sched::{CloneFlags, unshare};

use crate::kernel::pins::Pins;

/// How many threads close links side by side.
const MOST_THREADS: usize = 64;

/// Closes links while memleak continues.
pub(super) fn close<T: Send>(mut links: Vec<T>) {
    while !links.is_empty() {
        thread::scope(|scope| {
            for link in links.drain(..links.len().min(MOST_THREADS)) {
                scope.spawn(move || drop(link));
            }
        });
    }
}

/// Leaves all links of this process to workers of the kernel. Where that is not possible, leaves them to the exit of
/// this process. Nothing may use or close the links after this call, and memleak must exit soon.
///
/// `are_links`: a perf event of this process belongs to a link, or has no program.
pub(super) fn at_exit(are_links: bool) {
    let Ok(mut fds) = links_of_this_process() else {
        return;
    };
    if are_links && leave_to_workers(&fds.links).is_ok() {
        fds.links.into_iter().chain(fds.events).for_each(close_fd);
    } else {
        fds.links.append(&mut fds.events);
        leave_to_exit(&fds.links);
    }
}

/// Puts the links into a file system that goes with memleak.
fn leave_to_workers(links: &[RawFd]) -> io::Result<()> {
    let mut pins = Pins::new()?;
    for link in links {
        // SAFETY: nothing closes the descriptor during the call.
        pins.keep(unsafe { BorrowedFd::borrow_raw(*link) })?;
    }
    // The file system goes when memleak's exit closes its descriptor.
    mem::forget(pins);
    Ok(())
}

/// Leaves the links to this process's exit, which then takes hardly longer than closing one link.
///
/// Threads that share a descriptor table give its descriptors back one after another. So each thread started here gets
/// a descriptor table of its own, with a share of the links that is in no other table. Links that cannot be shared out
/// are closed later, and just as safely.
fn leave_to_exit(fds: &[RawFd]) {
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
                // The receiver may have given up.
                let _ = ready.send(share);
            }
            drop(ready);
            loop {
                thread::park();
            }
        };
        // If no more threads can be started, the last thread to exit closes these links.
        let _ = Builder::new().spawn(keep);
    }
    drop(ready);
    // No descriptor here is the last one of its link: the thread that sent it has a copy.
    are_ready.into_iter().flatten().for_each(close_fd);
}

/// Descriptors that keep probes in place.
#[derive(Default)]
struct Fds {
    links: Vec<RawFd>,
    /// Perf events.
    events: Vec<RawFd>,
}

/// The descriptors of links, and of perf events.
fn links_of_this_process() -> io::Result<Fds> {
    let mut fds = Fds::default();
    for entry in fs::read_dir("/proc/self/fd")? {
        let entry = entry?;
        let target = fs::read_link(entry.path()).unwrap_or_default();
        let target = target.to_str().unwrap_or_default();
        let list = match () {
            () if target.contains("bpf_link") => &mut fds.links,
            () if target.contains("perf_event") => &mut fds.events,
            () => continue,
        };
        list.extend(
            entry
                .file_name()
                .to_str()
                .and_then(|name| name.parse::<RawFd>().ok()),
        );
    }
    Ok(fds)
}

fn close_fd(fd: RawFd) {
    // SAFETY: takes a number only. By `at_exit`'s contract nothing uses the descriptor.
    unsafe { libc::close(fd) };
}
