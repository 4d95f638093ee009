//! With what `memleak run` itself ends.
//!
//! A pure decision over how the command ended and what the gate says. Taking it (exiting, dying of a
//! signal) is for others.

use std::ffi::OsStr;

use crate::model::gate::Verdict;

/// Exit code for what memleak itself could not do, and for a gate that cannot be judged.
pub const TOOL_ERROR: u8 = 125;
/// Exit code of a command that is there and cannot be executed.
pub const NOT_EXECUTABLE: u8 = 126;
/// Exit code of a command that is not there.
pub const NOT_FOUND: u8 = 127;
/// Exit code of a failed gate, unless the user chose another.
pub const LEAK: u8 = 23;

/// How the command ended, or why it never began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It exited with this code (0–255).
    Exited(u8),
    /// It died of this signal; `core` if it left a core dump.
    Signaled { signal: u8, core: bool },
    /// The exec failed.
    ExecError(ExecError),
    /// memleak failed before the command was let go, which therefore never ran.
    ToolError,
    /// There was no command: processes were watched until they ended, or somebody asked memleak to stop.
    Watched,
}

impl Outcome {
    /// Whether the command ran, so that there is something to judge.
    pub fn ran(self) -> bool {
        matches!(self, Self::Exited(_) | Self::Signaled { .. })
    }

    /// The signal that the command died of, if it did, and whether it left a core dump.
    pub fn signal(self) -> (Option<u8>, bool) {
        match self {
            Self::Signaled { signal, core } => (Some(signal), core),
            Self::Exited(_) | Self::ExecError(_) | Self::ToolError | Self::Watched => (None, false),
        }
    }

    /// The exit code that stands for this outcome; `None` for a signal, which is passed on as one, and where
    /// there was no command.
    pub fn code(self) -> Option<u8> {
        match self {
            Self::Exited(code) => Some(code),
            Self::Signaled { .. } | Self::Watched => None,
            Self::ExecError(error) => Some(error.code()),
            Self::ToolError => Some(TOOL_ERROR),
        }
    }
}

/// Why a command cannot be executed, as far as exit codes tell it apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExecError {
    NotFound,
    NotExecutable,
}

impl ExecError {
    /// The kind behind an errno of execve. As in env, nohup and timeout, only "no such file" means that
    /// the command was not found; all else (no permission, a directory, a bad format) means that it was.
    pub fn from_errno(errno: i32) -> Self {
        if errno == libc::ENOENT {
            Self::NotFound
        } else {
            Self::NotExecutable
        }
    }

    pub fn code(self) -> u8 {
        match self {
            Self::NotFound => NOT_FOUND,
            Self::NotExecutable => NOT_EXECUTABLE,
        }
    }
}

/// What a failed gate does to the exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeakExit {
    /// The code (1–255: with 0 a failed gate would look like a passed one).
    pub code: u8,
    /// Whether it comes before the command's own non-zero code. It never comes before a signal.
    pub wins: bool,
}

impl Default for LeakExit {
    fn default() -> Self {
        Self {
            code: LEAK,
            wins: false,
        }
    }
}

/// What memleak does at its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    Exit(u8),
    /// Die of this signal, without a core dump.
    Signal(u8),
}

impl Finish {
    /// The exit code, or for a signal the one that stands for it where dying of it does not work (as
    /// pid 1, or for a signal that memleak cannot die of).
    pub fn code(self) -> u8 {
        match self {
            Self::Exit(code) => code,
            Self::Signal(signal) => 128_u8.saturating_add(signal),
        }
    }
}

/// Decides memleak's end. In this order: the command's signal, its own code if that is not 0, the failed
/// gate, the gate that cannot be judged. `leak.wins` puts the failed gate before the command's code.
/// `verdict` is `None` where no gate was asked for. A command that never ran has its error's code,
/// whatever the verdict.
pub fn finish(outcome: Outcome, verdict: Option<Verdict>, leak: LeakExit) -> Finish {
    match outcome {
        Outcome::Signaled { signal, .. } => Finish::Signal(signal),
        Outcome::ExecError(error) => Finish::Exit(error.code()),
        Outcome::ToolError => Finish::Exit(TOOL_ERROR),
        Outcome::Watched => Finish::Exit(0),
        Outcome::Exited(code) => Finish::Exit(match (code, verdict) {
            (1.., Some(Verdict::Failed)) if leak.wins => leak.code,
            (1.., _) => code,
            (0, Some(Verdict::Failed)) => leak.code,
            (0, Some(Verdict::Unknown)) => TOOL_ERROR,
            (0, Some(Verdict::Passed) | None) => 0,
        }),
    }
}

/// The verdict as far as it counts for memleak's end: not where Slurm would take the node out of service for
/// one job's leaks, unless `allow_drain`. Slurm does so when slurmd's own prolog or epilog exits with
/// another code than 0; `slurm_context` is SLURM_SCRIPT_CONTEXT, which says what it runs.
pub fn that_counts(
    verdict: Option<Verdict>,
    slurm_context: &OsStr,
    allow_drain: bool,
) -> Option<Verdict> {
    let drains = slurm_context == "prolog_slurmd" || slurm_context == "epilog_slurmd";
    verdict.filter(|_| allow_drain || !drains)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSED: Option<Verdict> = Some(Verdict::Passed);
    const FAILED: Option<Verdict> = Some(Verdict::Failed);
    const UNKNOWN: Option<Verdict> = Some(Verdict::Unknown);
    const KEEP: LeakExit = LeakExit {
        code: 23,
        wins: false,
    };
    const WINS: LeakExit = LeakExit {
        code: 23,
        wins: true,
    };

    #[test]
    fn every_outcome_verdict_and_option_has_the_end_that_is_promised() {
        use Finish::{Exit, Signal};
        let segv = Outcome::Signaled {
            signal: 11,
            core: true,
        };
        let missing = Outcome::ExecError(ExecError::NotFound);
        let barred = Outcome::ExecError(ExecError::NotExecutable);
        // One line for each outcome and option; columns: no gate, passed, failed, unknown.
        for (outcome, leak, ends) in [
            (
                Outcome::Exited(0),
                KEEP,
                [Exit(0), Exit(0), Exit(23), Exit(125)],
            ),
            (
                Outcome::Exited(0),
                WINS,
                [Exit(0), Exit(0), Exit(23), Exit(125)],
            ),
            (
                Outcome::Exited(3),
                KEEP,
                [Exit(3), Exit(3), Exit(3), Exit(3)],
            ),
            (
                Outcome::Exited(3),
                WINS,
                [Exit(3), Exit(3), Exit(23), Exit(3)],
            ),
            (segv, KEEP, [Signal(11); 4]),
            (segv, WINS, [Signal(11); 4]),
            (missing, KEEP, [Exit(127); 4]),
            (missing, WINS, [Exit(127); 4]),
            (barred, KEEP, [Exit(126); 4]),
            (barred, WINS, [Exit(126); 4]),
            (Outcome::ToolError, KEEP, [Exit(125); 4]),
            (Outcome::ToolError, WINS, [Exit(125); 4]),
        ] {
            for (verdict, end) in [None, PASSED, FAILED, UNKNOWN].into_iter().zip(ends) {
                assert_eq!(
                    finish(outcome, verdict, leak),
                    end,
                    "{outcome:?} {verdict:?} {leak:?}"
                );
            }
        }
    }

    #[test]
    fn every_code_of_the_command_is_its_own_unless_a_gate_says_otherwise() {
        for code in 0..=255 {
            for verdict in [None, PASSED] {
                for leak in [KEEP, WINS] {
                    assert_eq!(
                        finish(Outcome::Exited(code), verdict, leak),
                        Finish::Exit(code)
                    );
                }
            }
        }
    }

    #[test]
    fn the_exit_code_of_a_failed_gate_is_the_users() {
        for leak in [
            LeakExit {
                code: 7,
                wins: false,
            },
            LeakExit {
                code: 7,
                wins: true,
            },
        ] {
            assert_eq!(finish(Outcome::Exited(0), FAILED, leak), Finish::Exit(7));
            assert_eq!(finish(Outcome::Exited(0), UNKNOWN, leak), Finish::Exit(125));
        }
        assert_eq!(LeakExit::default(), KEEP);
    }

    #[test]
    fn where_slurm_would_drain_the_node_only_the_command_decides() {
        let segv = Outcome::Signaled {
            signal: 11,
            core: false,
        };
        let missing = Outcome::ExecError(ExecError::NotFound);
        let outcomes = [
            (Outcome::Exited(0), Finish::Exit(0)),
            (Outcome::Exited(3), Finish::Exit(3)),
            (segv, Finish::Signal(11)),
            (missing, Finish::Exit(NOT_FOUND)),
            (Outcome::ToolError, Finish::Exit(TOOL_ERROR)),
        ];
        for (context, drains) in [
            ("prolog_slurmd", true),
            ("epilog_slurmd", true),
            ("prolog_slurmctld", false),
            ("epilog_slurmctld", false),
            ("prolog_task", false),
            ("srun", false),
            ("", false),
        ] {
            for (outcome, of_the_command) in outcomes {
                for (leak, verdict) in [KEEP, WINS]
                    .into_iter()
                    .flat_map(|leak| [None, PASSED, FAILED, UNKNOWN].map(|v| (leak, v)))
                {
                    let end = |allow_drain| {
                        let counts = that_counts(verdict, OsStr::new(context), allow_drain);
                        finish(outcome, counts, leak)
                    };
                    let usual = finish(outcome, verdict, leak);
                    let expected = if drains { of_the_command } else { usual };
                    let case = format!("{context} {outcome:?} {verdict:?} {leak:?}");
                    assert_eq!(end(false), expected, "{case}");
                    assert_eq!(end(true), usual, "{case}");
                }
            }
        }
    }

    #[test]
    fn only_a_missing_file_is_a_command_not_found() {
        assert_eq!(ExecError::from_errno(libc::ENOENT), ExecError::NotFound);
        for errno in [
            libc::EACCES,
            libc::ENOEXEC,
            libc::EISDIR,
            libc::ENOTDIR,
            libc::ELOOP,
            libc::E2BIG,
        ] {
            assert_eq!(ExecError::from_errno(errno), ExecError::NotExecutable);
        }
    }

    #[test]
    fn a_signal_that_cannot_be_died_of_becomes_128_and_its_number() {
        assert_eq!(Finish::Signal(15).code(), 143);
        assert_eq!(Finish::Signal(64).code(), 192);
        assert_eq!(Finish::Exit(3).code(), 3);
    }
}
