//! The requests that a watching memleak gets by signals. `watch` decides what to do about them.

use std::os::fd::{AsFd, BorrowedFd};

use anyhow::{Context, Result};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::os::inherited::Inherited;

/// A request to memleak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// INT, TERM, HUP or QUIT: report the open window, and end.
    Stop,
    /// USR1: show the running processes.
    Show,
    /// WINCH: the terminal has another size.
    Resize,
}

const STOPS: [Signal; 4] = [
    Signal::SIGINT,
    Signal::SIGTERM,
    Signal::SIGHUP,
    Signal::SIGQUIT,
];

/// The signals that carry requests, as an event source for a poll loop.
#[derive(Debug)]
pub struct Requests {
    fd: SignalFd,
    /// Whether SIGINT ends memleak. A shell without job control ignores it in what it starts with `&`.
    pub interrupts: bool,
}

impl Requests {
    /// Reads these signals from now on. Signals that the caller ignored (for example under nohup) stay ignored, except
    /// USR1 and WINCH. Call this function before any thread is started, because a thread inherits the signal mask of the thread
    /// that starts it.
    ///
    /// # Errors
    /// There is no descriptor left.
    pub fn take_over() -> Result<Self> {
        let ignored = Inherited::get()?.ignored;
        let mut taken = SigSet::empty();
        taken.add(Signal::SIGUSR1);
        taken.add(Signal::SIGWINCH);
        for signal in STOPS {
            if !ignored.contains(signal as i32) {
                taken.add(signal);
            }
        }
        taken.thread_block().context("cannot block signals")?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        let fd = SignalFd::with_flags(&taken, flags)
            .context("cannot open a signalfd (see `ulimit -n`)")?;
        let interrupts = taken.contains(Signal::SIGINT);
        Ok(Self { fd, interrupts })
    }

    /// The requests since the last call. Does not wait.
    ///
    /// # Errors
    /// The signals cannot be read.
    pub fn take(&mut self) -> Result<Vec<Request>> {
        let mut requests = Vec::new();
        while let Some(info) = self
            .fd
            .read_signal()
            .context("cannot read the received signals")?
        {
            const SHOW: u32 = Signal::SIGUSR1 as u32;
            const RESIZE: u32 = Signal::SIGWINCH as u32;
            requests.push(match info.ssi_signo {
                SHOW => Request::Show,
                RESIZE => Request::Resize,
                _ => Request::Stop,
            });
        }
        Ok(requests)
    }
}

impl AsFd for Requests {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
