//! What the kernel side saw of signals to memleak and to the command. Passing signals on is left to `launch`.

use std::thread::sleep;
use std::time::Duration;

use libbpf_rs::{MapCore, MapFlags, MapImpl, Mut};
use libc::c_int;
use nix::unistd::Pid;

use crate::kernel::rings::bytes_of;
use crate::kernel::skeletons::types::{signal_key, signal_seen};
use crate::launch::signals::Witness;
use crate::os::clock::monotonic;

/// Two signals of one sender within this time were sent at once. Either one `kill` to a group sent both (microseconds
/// apart), or the sender sent two in a row (`timeout`, and Slurm, which goes through the pids of a step). A sender that
/// means two separate signals takes longer.
const AT_ONCE: Duration = Duration::from_millis(20);

/// How long memleak's own signal may precede the command's.
const AHEAD: Duration = Duration::from_millis(10);

/// The kernel side's record of signals.
pub struct SignalsSeen<'a> {
    map: &'a MapImpl<'a, Mut>,
}

impl<'a> SignalsSeen<'a> {
    pub(super) fn new(map: &'a MapImpl<'a, Mut>) -> Self {
        Self { map }
    }

    /// `None` if nothing was recorded, as for a signal that was sent before memleak watched.
    fn of(&self, signal: c_int, sender: Pid) -> Option<signal_seen> {
        let key = signal_key {
            signal: signal.cast_unsigned(),
            sender: sender.as_raw().cast_unsigned(),
        };
        let bytes = self.map.lookup(bytes_of(&key), MapFlags::ANY).ok()??;
        let fields = |at: usize| bytes.get(at..at + 8)?.first_chunk().copied();
        Some(signal_seen {
            to_memleak_ns: u64::from_ne_bytes(fields(0)?),
            to_command_ns: u64::from_ne_bytes(fields(8)?),
            of_tree: u64::from_ne_bytes(fields(16)?),
        })
    }
}

impl Witness for SignalsSeen<'_> {
    fn sent_by_tree(&mut self, signal: c_int, sender: Pid, _command: Pid) -> bool {
        self.of(signal, sender)
            .is_some_and(|seen| seen.of_tree != 0)
    }

    fn already_delivered(&mut self, signal: c_int, sender: Pid) -> bool {
        let Some(seen) = self.of(signal, sender) else {
            return false;
        };
        if sent_at_once(&seen) {
            return true;
        }
        let age = monotonic().saturating_sub(Duration::from_nanos(seen.to_memleak_ns));
        match AHEAD.checked_sub(age) {
            Some(rest) => {
                sleep(rest);
                self.of(signal, sender)
                    .is_some_and(|seen| sent_at_once(&seen))
            }
            None => false,
        }
    }
}

fn sent_at_once(seen: &signal_seen) -> bool {
    let apart = seen.to_memleak_ns.abs_diff(seen.to_command_ns);
    seen.to_command_ns != 0 && Duration::from_nanos(apart) <= AT_ONCE
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at_once(to_memleak_ms: u64, to_command_ms: u64) -> bool {
        sent_at_once(&signal_seen {
            to_memleak_ns: to_memleak_ms * 1_000_000,
            to_command_ns: to_command_ms * 1_000_000,
            of_tree: 0,
        })
    }

    #[test]
    fn two_signals_within_20_ms_count_as_one() {
        assert!(at_once(5000, 5000));
        assert!(at_once(5000, 5015));
        assert!(at_once(5015, 5000));
    }

    #[test]
    fn an_earlier_signal_to_the_command_is_a_separate_one() {
        assert!(!at_once(5000, 4000));
        assert!(!at_once(5, 0), "never sent to the command");
    }
}
