//! Names of signals.

use std::borrow::Cow;

use libc::c_int;

/// The first real-time signal for programs. The C library reserves the two signals below it for itself.
const SIGRTMIN: u8 = 34;

const SIGRTMAX: u8 = 64;

/// A signal's name (`SIGSEGV`, `SIGRTMIN+3`), or `SIG` and its number if it has no name.
pub fn signal_name(signal: u8) -> Cow<'static, str> {
    match signal_hook::low_level::signal_name(c_int::from(signal)) {
        Some(name) => Cow::Borrowed(name),
        None if signal == SIGRTMIN => Cow::Borrowed("SIGRTMIN"),
        None if (SIGRTMIN..=SIGRTMAX).contains(&signal) => {
            Cow::Owned(format!("SIGRTMIN+{}", signal - SIGRTMIN))
        }
        None => Cow::Owned(format!("SIG{signal}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_the_names_that_people_use() {
        for (signal, name) in [
            (1, "SIGHUP"),
            (6, "SIGABRT"),
            (11, "SIGSEGV"),
            (31, "SIGSYS"),
            (32, "SIG32"),
            (34, "SIGRTMIN"),
            (37, "SIGRTMIN+3"),
            (64, "SIGRTMIN+30"),
            (0, "SIG0"),
            (65, "SIG65"),
        ] {
            assert_eq!(signal_name(signal), name);
        }
    }
}
