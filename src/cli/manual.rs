//! What the help and the manual page say beside the options: one text for both.

/// With what `memleak run` ends: the exit code and its meaning.
pub const EXIT_CODES: [(&str, &str); 4] = [
    (
        "N",
        "The command's own. If it died of a signal, memleak dies of the same one, without a core dump; \
         where it cannot, as process 1 of a container, it exits with 128 and the signal's number.",
    ),
    (
        "23",
        "The command exited with 0 and a gate failed (--leak-exitcode chooses another code, \
         --leak-exitcode-wins puts it before a code of the command's).",
    ),
    (
        "125",
        "memleak failed or was called wrongly, and the command was not started; or the command exited with \
         0 and too much was lost to judge the gate.",
    ),
    (
        "126, 127",
        "The command cannot be executed, or was not found.",
    ),
];

/// Why a gate may fail and memleak exit with 0 all the same.
pub const SLURM: &str = "In a Slurm prolog or epilog (SLURM_SCRIPT_CONTEXT is prolog_slurmd or epilog_slurmd) a gate \
     does not change the exit code, since that would drain the node, unless --allow-drain is given.";

/// What memleak does with signals, a paragraph each.
pub const SIGNALS: [&str; 4] = [
    "Every signal sent to memleak goes on to the command, except CHLD, PIPE, TTIN and TTOU, and KILL and \
     STOP, which nobody can catch. The command gets it once: not again where it has it already, by the \
     terminal or as one of a group, nor what it or its children sent. A signal that was ignored when \
     memleak started, as by nohup, stays ignored.",
    "Ctrl-C and Ctrl-\\ are the command's: memleak goes on until the command ends, and ends as it does.",
    "Ctrl-Z stops both: when the command stops, memleak stops in the same way, and fg brings both back. A \
     command stopped by SIGSTOP leaves memleak running.",
    "If memleak is killed before the command starts, the command never runs; after that, it goes on \
     unharmed, and uncounted.",
];

/// How sizes are written.
pub const SIZES: &str = "Sizes are whole numbers: 512, 100kB, 1MB, 1GB (powers of 1000), KiB, MiB, GiB (powers of 1024).";

/// How memleak is called.
pub const USAGE: &str = "memleak run [OPTIONS] [--] COMMAND [ARGS]...\n       \
     memleak -p PID [INTERVAL] [OPTIONS]\n       \
     memleak -a [INTERVAL] [OPTIONS]\n       \
     memleak doctor [OPTIONS]";

/// What `memleak doctor` is, a paragraph each.
pub const DOCTOR: [&str; 2] = [
    "memleak doctor does what memleak run does, to a child of its own whose allocations are known, and compares. \
     It prints a line for each thing that this takes: ok, warn, fail or unknown, what was found, and what to do \
     about what is not ok. It ends with 0 if memleak run works here, else with 125.",
    "What a probe costs is measured, on an instruction that the kernel emulates and on one that it must \
     single-step. So is whether a program under a seccomp filter survives a return probe, which it does not on some \
     kernels from Linux 6.11 to 6.13. Nothing is left behind.",
];

/// What `memleak doctor --help` says after the options. The parser wraps its lines.
pub fn after_doctor_help() -> String {
    DOCTOR.join("\n\n")
}

/// What the reports of -p and -a are, a paragraph each.
pub const WATCHING: [&str; 4] = [
    "With -p and -a, the processes that have ended are reported every INTERVAL seconds, if any have. What a \
     process did before memleak came is not counted: its row says 'since attach', and its totals begin there. \
     What starts later is counted from its beginning.",
    "-p ends when the last process that it watches has ended; INT, TERM, HUP or QUIT end both, after the report \
     of the last window. The exit code is 0, or 125 for what memleak could not do.",
    "USR1 shows, once, what runs: what each process holds, and how much more than when it was last shown.",
    "Filters are decided before a process is counted, where that is possible, so that it costs the others least: \
     by what it is at that time. The rows are those of processes that the filters keep in the end.",
];

/// What `memleak --help` says after the options. The parser wraps its lines.
pub fn after_watch_help() -> String {
    WATCHING.join("\n\n") + "\n\n" + SIZES
}

/// What `memleak run --help` says after the options. The parser wraps its lines.
pub fn after_help() -> String {
    let codes = EXIT_CODES.map(|(code, meaning)| format!("{code}: {meaning}"));
    format!(
        "Exit codes:\n{}\n\n{SLURM}\n\nSignals:\n{}\n\n{SIZES}",
        codes.join("\n"),
        SIGNALS.join("\n")
    )
}
