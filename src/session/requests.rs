//! What is asked, by signals, of a memleak that watches.

use std::os::fd::{AsFd, BorrowedFd};

use anyhow::{Context, Result};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::os::inherited::Inherited;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// INT, TERM, HUP or QUIT: report what there is, and end.
    Stop,
    /// USR1: show what runs.
    Show,
}

const STOPS: [Signal; 4] = [
    Signal::SIGINT,
    Signal::SIGTERM,
    Signal::SIGHUP,
    Signal::SIGQUIT,
];

/// The signals that ask for something: an event source for a poll loop.
#[derive(Debug)]
pub struct Requests {
    fd: SignalFd,
}

impl Requests {
    /// Reads these signals from now on. What the caller had ignored, as under nohup, stays so, but for USR1. To
    /// be called before any thread is started, since a thread has the mask of the one that started it.
    ///
    /// # Errors
    /// There is no descriptor left.
    pub fn take_over() -> Result<Self> {
        let ignored = Inherited::get()?.ignored;
        let mut taken = SigSet::empty();
        taken.add(Signal::SIGUSR1);
        for signal in STOPS {
            if !ignored.contains(signal as i32) {
                taken.add(signal);
            }
        }
        taken.thread_block().context("cannot block signals")?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        let fd = SignalFd::with_flags(&taken, flags)
            .context("cannot open a signalfd (see `ulimit -n`)")?;
        Ok(Self { fd })
    }

    /// What has come since the last call, without waiting.
    ///
    /// # Errors
    /// The signals cannot be read.
    pub fn take(&mut self) -> Result<Vec<Request>> {
        let mut requests = Vec::new();
        while let Some(info) = self
            .fd
            .read_signal()
            .context("cannot read the signals that came")?
        {
            requests.push(if info.ssi_signo == Signal::SIGUSR1 as u32 {
                Request::Show
            } else {
                Request::Stop
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
