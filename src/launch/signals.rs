//! Signals while a launched command runs. memleak passes them on, stops and continues together with the command, and
//! dies by the signal that killed the command.
//!
//! memleak blocks the signals that it takes over and reads them from a descriptor. So nothing interrupts its work. A
//! signal comes with all that the kernel knows: its sender, and the value of a queued signal. No signal gets a handler.
//! A signal that the caller had ignored stays ignored.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::{process, ptr};

use anyhow::{Context, Result};
use libc::c_int;
use nix::errno::Errno;
use nix::unistd::{Pid, getpid, getsid};

use crate::launch::running::{Change, Ended, Running, reap_orphans};
use crate::os::inherited::Inherited;
use crate::os::processes;
use crate::os::signal_set::SignalSet;

/// What only the kernel's tracepoints can tell for certain. All pids are in memleak's own pid namespace.
///
/// A signal to a process group reaches its newest members first, and the command is newer than memleak. So the kernel
/// side has seen the command's signal when memleak reads its own.
pub trait Witness {
    /// Whether `sender` belongs to the tree of `command`, or belonged to it when it sent `signal`.
    ///
    /// The default has no better source than the parents of `sender` in `/proc`. It misses a sender that is gone by
    /// now, and a sender whose parent is gone.
    fn sent_by_tree(&mut self, _signal: c_int, sender: Pid, command: Pid) -> bool {
        descends_from(sender, command)
    }

    /// Whether `sender` sent `signal` to the command, too, as `kill -TERM -PGID` does. Then passing it on would make
    /// two of it. Called once for every signal that memleak would pass on otherwise.
    fn already_delivered(&mut self, signal: c_int, sender: Pid) -> bool;
}

/// Sees nothing: every signal to memleak counts as sent to memleak alone.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoWitness;

impl Witness for NoWitness {
    fn already_delivered(&mut self, _signal: c_int, _sender: Pid) -> bool {
        false
    }
}

/// What the caller of [`Signals::dispatch`] has to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The command has ended, and is reaped.
    Ended(Ended),
    /// INT, TERM, HUP or QUIT came after the command's end. Any wait that still goes on should stop.
    Interrupted(c_int),
}

/// The signals that memleak has taken over: an event source for a poll loop.
#[derive(Debug)]
pub struct Signals {
    fd: OwnedFd,
    own_pid: Pid,
    ignored: SignalSet,
}

impl Signals {
    /// Blocks every signal that the caller had not ignored, and reads these signals from now on. An ignored SIGCHLD is
    /// reset.
    ///
    /// To be called after the fork of the command. The child sets the caller's mask in any case. To be called before
    /// any thread is started, since a new thread inherits the mask of its creator.
    pub fn take_over() -> Result<Self> {
        let ignored = Inherited::get()?
            .ignored
            .without(SignalSet::of(&[libc::SIGCHLD]));
        // SAFETY: sets a default disposition, no handler.
        unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) };
        let taken = SignalSet::BLOCKABLE.without(ignored);
        let fd =
            Errno::result(taken.signalfd()).context("cannot open a signalfd (see `ulimit -n`)")?;
        // SAFETY: the descriptor was just opened and has no other owner.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        taken.block();
        Ok(Self {
            fd,
            own_pid: getpid(),
            ignored,
        })
    }

    /// Readable when [`dispatch`](Self::dispatch) has work: a signal came, or the command stopped, continued or ended.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Passes on the signals that came, and follows the command's state. Returns what the caller has to know.
    ///
    /// Never waits. But if the command has stopped, it stops memleak, and returns when memleak is continued. One call
    /// takes a bounded number of signals, so a flood of signals delays no other work.
    pub fn dispatch(
        &mut self,
        command: &mut Running,
        witness: &mut dyn Witness,
    ) -> Result<Vec<Event>> {
        let had_ended = command.ended().is_some();
        let was_stopped = command.stopped();
        let batch = self.read()?;
        let mut events = Vec::new();
        let mut stop = None;
        while let Some(change) = command.next_change()? {
            stop = None;
            match change {
                Change::Stopped(signal) => stop = Some(signal),
                Change::Continued => {}
                Change::Ended(ended) => events.push(Event::Ended(ended)),
            }
        }
        if self.own_pid == Pid::from_raw(1) {
            reap_orphans(command.pid());
        }
        let situation = Situation {
            own_pid: self.own_pid,
            command: command.pid(),
            session_leader: getsid(None).is_ok_and(|leader| leader == self.own_pid),
            continued: was_stopped && !command.stopped(),
        };
        for received in &batch {
            if !had_ended {
                if situation.is_for_command(received, witness) {
                    received.pass_on(command.pidfd());
                }
                continue;
            }
            match received.signal {
                libc::SIGINT | libc::SIGTERM | libc::SIGHUP | libc::SIGQUIT => {
                    events.push(Event::Interrupted(received.signal));
                }
                libc::SIGTSTP => self.stop_like(libc::SIGTSTP, || true),
                _ => {}
            }
        }
        if let Some(signal) = stop {
            self.stop_like(signal, || !command.has_continued_or_ended());
        }
        Ok(events)
    }

    fn read(&self) -> Result<Vec<Received>> {
        const AT_ONCE: usize = 32;
        let mut buffer = [const { MaybeUninit::<libc::signalfd_siginfo>::uninit() }; AT_ONCE];
        // SAFETY: the kernel writes whole records, at most as many as fit.
        let length = unsafe {
            libc::read(
                self.fd.as_raw_fd(),
                buffer.as_mut_ptr().cast(),
                size_of_val(&buffer),
            )
        };
        let length = match Errno::result(length) {
            Ok(length) => usize::try_from(length).unwrap_or(0),
            Err(Errno::EAGAIN | Errno::EINTR) => 0,
            Err(errno) => return Err(errno).context("cannot read the signals to memleak"),
        };
        let count = length / size_of::<libc::signalfd_siginfo>();
        // SAFETY: the kernel has filled in the first `count` records.
        Ok(buffer[..count]
            .iter()
            .map(|info| Received::from(unsafe { info.assume_init_ref() }))
            .collect())
    }

    /// Stops memleak by `signal` if that is a stop signal of a terminal, and returns when memleak is continued. SIGSTOP
    /// never stops memleak: the process that sends it to the command will continue the command, not memleak. The kernel
    /// itself does not stop an orphaned process group.
    ///
    /// `still` is called when the stop is pending. A SIGCONT to the group that comes later removes the pending stop. A
    /// SIGCONT that came earlier has continued the command, too.
    fn stop_like(&self, signal: c_int, still: impl FnOnce() -> bool) {
        if !matches!(signal, libc::SIGTSTP | libc::SIGTTIN | libc::SIGTTOU)
            || self.ignored.contains(signal)
        {
            return;
        }
        let stop = SignalSet::of(&[signal]);
        // SAFETY: sends a blocked signal to this thread.
        unsafe { libc::raise(signal) };
        if still() {
            stop.unblock();
            stop.block();
        } else {
            stop.discard_pending();
        }
    }
}

/// A signal that memleak received.
#[derive(Clone, Copy, Debug)]
struct Received {
    signal: c_int,
    /// `si_code`. Above 0: sent by the kernel. `SI_USER`: sent by kill. `SI_QUEUE`: queued with a value.
    code: c_int,
    /// 0 if memleak's pid namespace does not contain the sender.
    sender: Pid,
    sender_uid: u32,
    value: u64,
}

impl From<&libc::signalfd_siginfo> for Received {
    fn from(info: &libc::signalfd_siginfo) -> Self {
        Self {
            // Signal numbers end at 64, and the kernel's pids fit in 31 bits.
            signal: info.ssi_signo as c_int,
            code: info.ssi_code,
            sender: Pid::from_raw(info.ssi_pid as libc::pid_t),
            sender_uid: info.ssi_uid,
            value: info.ssi_ptr,
        }
    }
}

/// The start of the kernel's siginfo for a queued signal, with the size that the kernel expects.
#[repr(C)]
struct QueuedInfo {
    signo: c_int,
    errno: c_int,
    code: c_int,
    _pad: c_int,
    pid: libc::pid_t,
    uid: u32,
    value: u64,
    _rest: [u64; 12],
}

const _: () = assert!(size_of::<QueuedInfo>() == size_of::<libc::siginfo_t>());

impl Received {
    /// Sends the signal to the command, with its value if it has one. Errors are ignored. The command may be gone, or
    /// may run as a user that memleak cannot signal. Then the sender could not have reached it either.
    fn pass_on(&self, command: BorrowedFd<'_>) {
        let queued = QueuedInfo {
            signo: self.signal,
            errno: 0,
            code: libc::SI_QUEUE,
            _pad: 0,
            pid: self.sender.as_raw(),
            uid: self.sender_uid,
            value: self.value,
            _rest: [0; 12],
        };
        let info = if self.code == libc::SI_QUEUE {
            &raw const queued
        } else {
            ptr::null()
        };
        // SAFETY: `info` is null or a siginfo that lives through the call.
        unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                command.as_raw_fd(),
                self.signal,
                info,
                0,
            )
        };
    }
}

/// What decides about a signal, besides the signal itself.
struct Situation {
    own_pid: Pid,
    command: Pid,
    session_leader: bool,
    /// The stopped command was continued since its state was last read.
    continued: bool,
}

impl Situation {
    /// Whether memleak should pass on the signal: it was meant for the command, and the command has not received it.
    fn is_for_command(&self, received: &Received, witness: &mut dyn Witness) -> bool {
        let Received {
            signal,
            code,
            sender,
            ..
        } = *received;
        match signal {
            libc::SIGCHLD | libc::SIGTTIN | libc::SIGTTOU | libc::SIGPIPE => return false,
            // `fg` continues the whole job. If the command continued before memleak passed on any signal, it has
            // received its SIGCONT.
            libc::SIGCONT if self.continued => return false,
            _ => {}
        }
        if code > 0 {
            return self.is_kernel_signal_to_memleak_alone(signal);
        }
        // memleak sent this to itself, by a write over the file size limit (SIGXFSZ).
        if sender == self.own_pid {
            return false;
        }
        // 0 means a sender outside the namespace, so the sender is not of the command's tree.
        let of_tree = sender.as_raw() != 0 && witness.sent_by_tree(signal, sender, self.command);
        !of_tree && !witness.already_delivered(signal, sender)
    }

    /// Whether the kernel sent a signal to memleak alone, and would have sent it to the command if memleak were not
    /// there.
    ///
    /// A signal from the terminal reaches the whole foreground group, which includes the command. There are two
    /// exceptions. One is an `alarm` that was set before memleak's exec (`perl -e 'alarm 10; exec @ARGV'`). The other
    /// is a hang-up for the leader of a session (`ssh -t host memleak run …`).
    fn is_kernel_signal_to_memleak_alone(&self, signal: c_int) -> bool {
        match signal {
            libc::SIGALRM | libc::SIGVTALRM | libc::SIGPROF => true,
            libc::SIGHUP | libc::SIGCONT => self.session_leader,
            _ => false,
        }
    }
}

/// Whether `ancestor` is `pid` itself or one of its ancestors, as far as `/proc` shows them.
fn descends_from(pid: Pid, ancestor: Pid) -> bool {
    let mut next = Some(pid);
    while let Some(pid) = next.filter(|pid| pid.as_raw() > 1) {
        if pid == ancestor {
            return true;
        }
        next = parent(pid);
    }
    false
}

fn parent(pid: Pid) -> Option<Pid> {
    let parent = processes::stat(pid.as_raw().cast_unsigned())?.parent;
    Some(Pid::from_raw(parent.cast_signed()))
}

/// Kills memleak by `signal` (1 to 64), as the command was killed, without a core dump. If that does not kill (pid 1 of
/// a namespace), memleak exits with 128 + `signal`. All output must have been written before.
pub fn die_of(signal: u8) -> ! {
    let number = c_int::from(signal);
    // SAFETY: takes numbers only, and sets a default disposition, no handler. The signal is sent to this thread, so
    // that it is delivered when the mask is removed.
    unsafe {
        libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0);
        libc::signal(number, libc::SIG_DFL);
        libc::raise(number);
    }
    SignalSet::of(&[number]).unblock();
    process::exit(128 + number)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: Pid = Pid::from_raw(100);
    const COMMAND: Pid = Pid::from_raw(101);
    const SHELL: Pid = Pid::from_raw(50);
    const OF_TREE: Pid = Pid::from_raw(102);
    const SENT_TO_BOTH: c_int = libc::SIGUSR2;

    struct FixedWitness;

    impl Witness for FixedWitness {
        fn sent_by_tree(&mut self, _signal: c_int, sender: Pid, command: Pid) -> bool {
            assert_eq!(command, COMMAND);
            sender == OF_TREE
        }

        fn already_delivered(&mut self, signal: c_int, _sender: Pid) -> bool {
            signal == SENT_TO_BOTH
        }
    }

    const SITUATION: Situation = Situation {
        own_pid: OWN,
        command: COMMAND,
        session_leader: false,
        continued: false,
    };

    fn passed_on(situation: &Situation, signal: c_int, code: c_int, sender: Pid) -> bool {
        let received = Received {
            signal,
            code,
            sender,
            sender_uid: 0,
            value: 0,
        };
        situation.is_for_command(&received, &mut FixedWitness)
    }

    fn killed(signal: c_int) -> bool {
        passed_on(&SITUATION, signal, libc::SI_USER, SHELL)
    }

    #[test]
    fn signals_sent_to_memleak_alone_are_passed_on() {
        for signal in [
            libc::SIGTERM,
            libc::SIGINT,
            libc::SIGTSTP,
            libc::SIGCONT,
            libc::SIGWINCH,
            34,
            64,
        ] {
            assert!(killed(signal), "{signal}");
        }
    }

    #[test]
    fn signals_that_concern_only_memleak_are_not_passed_on() {
        for signal in [libc::SIGCHLD, libc::SIGTTIN, libc::SIGTTOU, libc::SIGPIPE] {
            assert!(!killed(signal), "{signal}");
        }
        assert!(!passed_on(&SITUATION, libc::SIGXFSZ, libc::SI_USER, OWN));
    }

    #[test]
    fn signals_that_the_command_has_received_are_not_passed_on() {
        assert!(!killed(SENT_TO_BOTH));
        assert!(!passed_on(
            &SITUATION,
            libc::SIGINT,
            libc::SI_KERNEL,
            Pid::from_raw(0)
        ));
        assert!(!passed_on(
            &SITUATION,
            libc::SIGHUP,
            libc::SI_KERNEL,
            Pid::from_raw(0)
        ));
        let continued = Situation {
            continued: true,
            ..SITUATION
        };
        assert!(!passed_on(&continued, libc::SIGCONT, libc::SI_USER, SHELL));
    }

    #[test]
    fn signals_from_the_tree_of_the_command_are_not_passed_on() {
        assert!(!passed_on(
            &SITUATION,
            libc::SIGTERM,
            libc::SI_USER,
            OF_TREE
        ));
    }

    #[test]
    fn signals_from_outside_the_pid_namespace_are_passed_on() {
        assert!(passed_on(
            &SITUATION,
            libc::SIGTERM,
            libc::SI_USER,
            Pid::from_raw(0)
        ));
    }

    #[test]
    fn signals_of_the_kernel_to_memleak_alone_are_passed_on() {
        assert!(passed_on(
            &SITUATION,
            libc::SIGALRM,
            libc::SI_KERNEL,
            Pid::from_raw(0)
        ));
        let leader = Situation {
            session_leader: true,
            ..SITUATION
        };
        assert!(passed_on(
            &leader,
            libc::SIGHUP,
            libc::SI_KERNEL,
            Pid::from_raw(0)
        ));
        assert!(!passed_on(
            &leader,
            libc::SIGINT,
            libc::SI_KERNEL,
            Pid::from_raw(0)
        ));
    }

    #[test]
    fn a_process_descends_from_itself_and_its_parents_only() {
        let this = getpid();
        assert!(descends_from(this, this));
        assert!(descends_from(this, nix::unistd::getppid()));
        let mut other = process::Command::new("sleep").arg("10").spawn().unwrap();
        let child = Pid::from_raw(other.id() as libc::pid_t);
        assert!(descends_from(child, this));
        assert!(!descends_from(this, child));
        other.kill().unwrap();
        other.wait().unwrap();
        assert!(!descends_from(child, this), "gone");
    }
}
