//! Decides how `memleak run` itself ends.
//!
//! The decision is pure, over the command's end and the gate's verdict. `main` and `launch::signals` carry it out (exit
//! or die of a signal).

use std::ffi::OsStr;

use crate::model::bounds::Verdict;

/// Exit code for a failure of memleak itself, and for a gate that cannot be judged.
pub const TOOL_ERROR: u8 = 125;
/// Exit code of a command that exists but cannot be executed.
pub const NOT_EXECUTABLE: u8 = 126;
/// Exit code of a command that does not exist.
pub const NOT_FOUND: u8 = 127;
/// Default exit code of a failed gate.
pub const LEAK: u8 = 23;

/// How the command ended, or why it never ran.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The command exited with this code (0–255).
    Exited(u8),
    /// The command died of this signal. `core`: it left a core dump.
    Signaled { signal: u8, core: bool },
    /// The exec failed.
    ExecError(ExecErrorKind),
    /// memleak failed before it released the command. The command never ran.
    ToolError,
    /// There was no command: memleak watched processes until they ended, or until a signal asked it to stop.
    Watched,
    /// There was no command: what other sessions have saved is judged.
    Saved,
}

impl Outcome {
    /// Whether the command ran.
    pub fn ran(self) -> bool {
        matches!(self, Self::Exited(_) | Self::Signaled { .. })
    }

    /// Whether there is something to judge.
    pub fn is_judged(self) -> bool {
        self.ran() || self == Self::Saved
    }

    /// The signal that killed the command, if any, and whether the command left a core dump.
    pub fn signal(self) -> (Option<u8>, bool) {
        match self {
            Self::Signaled { signal, core } => (Some(signal), core),
            Self::Exited(_)
            | Self::ExecError(_)
            | Self::ToolError
            | Self::Watched
            | Self::Saved => (None, false),
        }
    }

    /// The exit code for this outcome. `None` for a signal, because memleak dies of the signal itself, and `None` if
    /// there was no command.
    pub fn code(self) -> Option<u8> {
        match self {
            Self::Exited(code) => Some(code),
            Self::Signaled { .. } | Self::Watched | Self::Saved => None,
            Self::ExecError(error) => Some(error.code()),
            Self::ToolError => Some(TOOL_ERROR),
        }
    }
}

/// Why a command cannot be executed, as far as exit codes distinguish it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExecErrorKind {
    NotFound,
    NotExecutable,
}

impl ExecErrorKind {
    /// The kind for an errno of execve. As in env, nohup and timeout, only "no such file" means that the command was
    /// not found. All other errors (no permission, a directory, a bad format) mean that it was found.
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

/// The effect of a failed gate on the exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeakExit {
    /// The code (1–255). With 0, a failed gate would look like a passed one.
    pub code: u8,
    /// Whether `code` replaces the command's own non-zero code. It never replaces a signal.
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

/// How memleak ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    Exit(u8),
    /// Die of this signal, without a core dump.
    Signal(u8),
}

impl Finish {
    /// The exit code. For a signal, the code that stands for it if memleak cannot die of it (as pid 1, or because the
    /// signal does not kill memleak).
    pub fn code(self) -> u8 {
        match self {
            Self::Exit(code) => code,
            Self::Signal(signal) => 128_u8.saturating_add(signal),
        }
    }
}

/// Decides how memleak ends. The first of these counts: the command's signal, the command's own code if that is not 0,
/// a failed gate, a gate that cannot be judged. With `leak.wins`, a failed gate comes before the command's code.
/// `verdict` is `None` if the user asked for no gate. For a command that never ran, the code of its error counts,
/// whatever the verdict is.
pub fn finish(outcome: Outcome, verdict: Option<Verdict>, leak: LeakExit) -> Finish {
    match outcome {
        Outcome::Signaled { signal, .. } => Finish::Signal(signal),
        Outcome::ExecError(error) => Finish::Exit(error.code()),
        Outcome::ToolError => Finish::Exit(TOOL_ERROR),
        Outcome::Watched => Finish::Exit(0),
        Outcome::Saved => finish(Outcome::Exited(0), verdict, leak),
        Outcome::Exited(code) => Finish::Exit(match (code, verdict) {
            (1.., Some(Verdict::Failed)) if leak.wins => leak.code,
            (1.., _) => code,
            (0, Some(Verdict::Failed)) => leak.code,
            (0, Some(Verdict::Unknown)) => TOOL_ERROR,
            (0, Some(Verdict::Passed) | None) => 0,
        }),
    }
}

/// The verdict as far as it counts for memleak's end. Without `allow_drain`, a verdict does not count where Slurm would
/// take the node out of service because of one job's leaks. Slurm does so if slurmd's own prolog or epilog exits with
/// another code than 0. `slurm_context` is SLURM_SCRIPT_CONTEXT, which names the script that Slurm runs.
pub fn effective_verdict(
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
    fn every_outcome_verdict_and_option_has_the_promised_end() {
        use Finish::{Exit, Signal};
        let segv = Outcome::Signaled {
            signal: 11,
            core: true,
        };
        // How saved commands ended does not matter.
        let saved =
            [None, PASSED, FAILED, UNKNOWN].map(|verdict| finish(Outcome::Saved, verdict, KEEP));
        assert_eq!(saved, [Exit(0), Exit(0), Exit(23), Exit(125)]);
        let missing = Outcome::ExecError(ExecErrorKind::NotFound);
        let barred = Outcome::ExecError(ExecErrorKind::NotExecutable);
        // One line for each outcome and option. The columns are: no gate, passed, failed, unknown.
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
    fn without_a_failed_gate_every_code_of_the_command_is_kept() {
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
    fn the_user_chooses_the_exit_code_of_a_failed_gate() {
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
    fn only_the_command_decides_where_slurm_would_drain_the_node() {
        let segv = Outcome::Signaled {
            signal: 11,
            core: false,
        };
        let missing = Outcome::ExecError(ExecErrorKind::NotFound);
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
                        let counts = effective_verdict(verdict, OsStr::new(context), allow_drain);
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
    fn only_a_missing_file_means_that_the_command_was_not_found() {
        assert_eq!(
            ExecErrorKind::from_errno(libc::ENOENT),
            ExecErrorKind::NotFound
        );
        for errno in [
            libc::EACCES,
            libc::ENOEXEC,
            libc::EISDIR,
            libc::ENOTDIR,
            libc::ELOOP,
            libc::E2BIG,
        ] {
            assert_eq!(
                ExecErrorKind::from_errno(errno),
                ExecErrorKind::NotExecutable
            );
        }
    }

    #[test]
    fn the_exit_code_for_a_signal_is_128_plus_its_number() {
        assert_eq!(Finish::Signal(15).code(), 143);
        assert_eq!(Finish::Signal(64).code(), 192);
        assert_eq!(Finish::Exit(3).code(), 3);
    }
}
