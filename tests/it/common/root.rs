//! The rights that tests on the real kernel need.

/// Fails the test with one line if it does not run as root. A test that silently passes without loading any BPF program
/// is worse than a test that fails.
pub fn require_root() {
    assert!(
        nix::unistd::geteuid().is_root(),
        "this test loads BPF programs and needs root: run `make test`, which goes through sudo"
    );
}
