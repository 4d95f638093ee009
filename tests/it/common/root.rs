//! The rights that tests on the real kernel need.

/// Fails the test with one line where it does not run as root: a test that would silently pass
/// without having loaded anything is worse than one that fails.
pub fn require_root() {
    assert!(
        nix::unistd::geteuid().is_root(),
        "this test loads BPF programs and needs root: run `make test`, which goes through sudo"
    );
}
