//! Which files get the probes in tests that are run for each choice. MEMLEAK_TEST_PROBES=private runs them with private
//! copies, and =inside with a C library that counts by itself. Without that, they run with the system's files.
//! MEMLEAK_TEST_STACKS=auto records call stacks in all tests, and not only where counts are compared with the truth.

/// The word `run`, with the option that the environment asks for.
pub fn run_words() -> &'static [&'static str] {
    match std::env::var("MEMLEAK_TEST_PROBES").as_deref() {
        Err(_) | Ok("shared") => &["run"],
        Ok("private") => &["run", "--probes=private"],
        Ok("inside") => &["run", "--probes=inside"],
        Ok(other) => panic!("MEMLEAK_TEST_PROBES is shared, private or inside, not {other:?}"),
    }
}

/// Whether the C library counts by itself.
pub fn are_inside() -> bool {
    run_words().contains(&"--probes=inside")
}

/// The same, for a line of a shell.
pub fn run_line() -> String {
    run_words().join(" ")
}

/// Whether all tests record call stacks.
pub fn with_stacks() -> bool {
    std::env::var_os("MEMLEAK_TEST_STACKS").is_some_and(|value| value == "auto")
}
