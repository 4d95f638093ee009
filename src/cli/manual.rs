//! The texts that the help and the manual page share, beside those of the options. The options' own texts are their doc
//! comments in `options`.

/// The exit codes of `memleak run` and their meanings.
pub const EXIT_CODES: [(&str, &str); 4] = [
    (
        "N",
        "The command's own exit code. If the command died of a signal, memleak dies of the same signal, without a \
         core dump. If memleak cannot (as process 1 of a container), it exits with 128 plus the signal's number.",
    ),
    (
        "23",
        "The command exited with 0 and a gate failed. --leak-exitcode chooses another code. With \
         --leak-exitcode-wins, that code also replaces a non-zero exit code of the command.",
    ),
    (
        "125",
        "memleak failed or was called wrongly, and the command was not started. Or the command exited with 0, \
         and the gate could not be judged: memleak missed too much, a process could not be scanned, or no process was chosen.",
    ),
    (
        "126, 127",
        "The command cannot be executed (126) or was not found (127).",
    ),
];

/// Why memleak may exit with 0 although a gate failed.
pub const SLURM: &str = "In a Slurm prolog or epilog (SLURM_SCRIPT_CONTEXT is prolog_slurmd or epilog_slurmd), a gate \
     does not change the exit code, because a failed script drains the node. --allow-drain lets the gate do so.";

/// What memleak does with signals, a paragraph each.
pub const SIGNALS: [&str; 4] = [
    "memleak passes every received signal on to the command, except CHLD, PIPE, TTIN and TTOU. KILL and STOP \
     cannot be passed on, since no process can catch them. The command gets each signal once. memleak does not \
     pass on a signal that the command has already received from the terminal or as a member of a process group. Nor \
     does it pass on a signal that the command or its children sent. A signal that was ignored when memleak started, for \
     example by nohup, stays ignored.",
    "Ctrl-C and Ctrl-\\ are for the command: memleak continues until the command ends, and ends in the same way.",
    "Ctrl-Z stops both: when the command stops, memleak stops in the same way, and fg continues both. If SIGSTOP \
     stops the command, memleak keeps running.",
    "If memleak is killed before the command starts, the command never runs. If memleak is killed later, the \
     command continues unharmed, but is no longer counted.",
];

/// The notation of sizes.
pub const SIZES: &str =
    "Sizes: 512, 100kB, 1.5MB or 1M, 1GB (powers of 1000), KiB, MiB, GiB (powers of 1024).";

/// The forms of the command line.
pub const USAGE: &str = "memleak run [OPTIONS] [--] COMMAND [ARGS]...\n       \
     memleak -p PID [INTERVAL] [OPTIONS]\n       \
     memleak -a [INTERVAL] [OPTIONS]\n       \
     memleak doctor [OPTIONS]\n       \
     memleak report [OPTIONS] FILE...";

/// What `memleak doctor` does, a paragraph each.
pub const DOCTOR: [&str; 2] = [
    "memleak doctor does what memleak run does, with a child process whose allocations are known, and compares the \
     figures. It prints a line for each check: ok, warn, fail or unknown, what was found, and what to do if it is \
     not ok. The exit code is 0 if memleak run works here, else 125.",
    "memleak doctor also measures what a probe costs, on an instruction that the kernel emulates and on one that it \
     must single-step. And it tests whether a program under a seccomp filter survives a return probe. On some \
     kernels from Linux 6.11 to 6.13 such a program does not. memleak doctor leaves nothing behind.",
];

/// The end of `memleak doctor --help`, after the options. The parser wraps its lines.
pub fn after_doctor_help() -> String {
    DOCTOR.join("\n\n")
}

/// What `memleak report` does, a paragraph each.
pub const REPORTING: [&str; 2] = [
    "memleak report reads files that -o json=FILE has written, adds them up as if they were one session, and writes any \
     of the formats. It needs no rights but to read the files. A file of a session that was killed is used as far as it \
     goes, and counts as incomplete. Rows of running processes (--live) are left out.",
    "The exit code is 0, 23 if a gate failed (--leak-exitcode), or 125 if a gate could not be judged or a file could not \
     be read. How the saved commands ended does not matter.",
];

/// The end of `memleak report --help`, after the options. The parser wraps its lines.
pub fn after_report_help() -> String {
    REPORTING.join("\n\n") + "\n\n" + SIZES
}

/// What -p and -a do, a paragraph each.
pub const WATCHING: [&str; 4] = [
    "Every INTERVAL seconds, -p and -a report the processes that have ended since the last report, if there are \
     any. What a process did before memleak attached is not counted: its row says 'since attach', and its totals \
     begin there. A process that starts later is counted from its beginning.",
    "memleak -p ends when the last watched process has ended, children included. INT, TERM, HUP or QUIT ends -p and -a, \
     after the report of the last window. If the table has no row by then, it shows what the running processes hold. A \
     signal that was ignored when memleak started stays ignored: a script that starts memleak with & ends it with TERM. \
     The exit code is 0, or 125 if memleak could not watch.",
    "USR1 prints the running processes once: what each process holds, and its growth since it was last shown.",
    "Where possible, the filters are applied before a process is counted, to its properties at that time. The \
     processes that they exclude then cost least. When a process is reported, the filters are applied to its row \
     again, and only rows that match are printed.",
];

/// The end of `memleak --help`, after the options. The parser wraps its lines.
pub fn after_watch_help() -> String {
    WATCHING.join("\n\n") + "\n\n" + SIZES
}

/// The end of `memleak -h`.
pub const MORE: &str = "memleak --help explains more, memleak run --help how to launch a command.";

/// The end of `memleak run -h`, which fits on a screen of forty lines.
pub fn after_short_help() -> &'static str {
    "Exit codes: the command's; 23 gate failed; 125 memleak failed, or gate unknown.\n\
     memleak run --help explains more."
}

/// The end of `memleak run --help`, after the options. The parser wraps its lines.
pub fn after_help() -> String {
    let codes = EXIT_CODES.map(|(code, meaning)| format!("{code}: {meaning}"));
    format!(
        "Exit codes:\n{}\n\n{SLURM}\n\nSignals:\n{}\n\n{SIZES}",
        codes.join("\n"),
        SIGNALS.join("\n")
    )
}
