//! The release of the running kernel.

/// The kernel's release, as uname(2) reports it. "unknown" if the call fails.
pub fn release() -> String {
    nix::sys::utsname::uname().map_or_else(
        |_| "unknown".to_owned(),
        |name| name.release().to_string_lossy().into_owned(),
    )
}

/// The first two numbers of a release.
pub fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// Whether this kernel may miss calls of a tracepoint's program (bpf/again.bpf.h). Kernels up to 6.18 do not.
pub fn may_miss_events() -> bool {
    const NEVER_MISSES: (u32, u32) = (6, 18);
    version(&release()).is_none_or(|version| version > NEVER_MISSES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_the_first_two_numbers_of_a_release() {
        for (release, expected) in [
            ("6.18.44-fc", Some((6, 18))),
            ("5.14.0-427.el9.x86_64", Some((5, 14))),
            ("6.1", Some((6, 1))),
            ("7.0-rc1", Some((7, 0))),
            ("6", None),
            ("unknown", None),
        ] {
            assert_eq!(version(release), expected, "{release}");
        }
    }
}
