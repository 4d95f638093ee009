//! A name for a call stack that stays the same from run to run, from build to build, and from machine to machine. Pure.
//!
//! Baselines compare leaks by it, so the algorithm must never change. It is FNV-1a with 64 bits
//! (<http://www.isthe.com/chongo/tech/comp/fnv/>), over these bytes for each frame, innermost frame first:
//!
//! | part | bytes |
//! |---|---|
//! | the module | the last part of its path, up to `.so` if it has a version behind that, then a 0 |
//! | a function with a name | `n`, its linkage name as [`stable_name`] cuts it, then a 0 |
//! | a function without a name | `o`, the length of the build ID (8 bytes), the build ID, the offset (8 bytes) |
//! | code in no module | `j`, its name, then a 0 |
//!
//! Numbers are little-endian. Only physical frames count. Inlined frames, lines and addresses do not, because they
//! change from build to build, and debug files add them.

use std::fmt;

/// What the identity of a stack takes of a physical frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameKey<'a> {
    /// A function whose name the file itself has, in its own symbol tables. A name that only a separate debug file has
    /// does not belong here: with it, installing debug files would make all leaks new.
    Named {
        /// The path of the module.
        module: &'a [u8],
        /// The function's name in the symbol table.
        linkage: &'a str,
    },
    /// Code for which the file has no name.
    Unnamed {
        /// The path of the module.
        module: &'a [u8],
        /// Empty if the file has none.
        build_id: &'a [u8],
        /// The ELF virtual address.
        offset: u64,
    },
    /// Code that was made at run time. Empty if it has no name.
    Generated(&'a str),
}

/// A stack's identity: 64 bits, shown as 16 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StackIdentity(pub u64);

impl StackIdentity {
    /// The identity of a stack with these physical frames, innermost frame first.
    pub fn of<'a>(frames: impl IntoIterator<Item = FrameKey<'a>>) -> Self {
        let mut hash = Fnv1a::new();
        for frame in frames {
            match frame {
                FrameKey::Named { module, linkage } => {
                    hash.text(stable_module(module));
                    hash.bytes(b"n");
                    hash.text(stable_name(linkage).as_bytes());
                }
                FrameKey::Unnamed {
                    module,
                    build_id,
                    offset,
                } => {
                    hash.text(stable_module(module));
                    hash.bytes(b"o");
                    hash.bytes(&(build_id.len() as u64).to_le_bytes());
                    hash.bytes(build_id);
                    hash.bytes(&offset.to_le_bytes());
                }
                FrameKey::Generated(name) => {
                    hash.bytes(b"j");
                    hash.text(name.as_bytes());
                }
            }
        }
        Self(hash.0)
    }
}

impl fmt::Display for StackIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// FNV-1a with 64 bits.
struct Fnv1a(u64);

impl Fnv1a {
    fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    fn bytes(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 ^= u64::from(byte);
            self.0 = self.0.wrapping_mul(0x0000_0100_0000_01b3);
        }
    }

    /// A text, and a 0 behind it. Neither paths nor names in symbol tables contain a 0.
    fn text(&mut self, text: &[u8]) {
        self.bytes(text);
        self.bytes(&[0]);
    }
}

/// The part of a module's path that stays: its last component. `libstdc++.so.6.0.30` becomes `libstdc++.so`, because
/// the next update changes the version.
pub fn stable_module(path: &[u8]) -> &[u8] {
    let path = path.strip_suffix(b" (deleted)").unwrap_or(path);
    let start = path.iter().rposition(|&byte| byte == b'/');
    let name = &path[start.map_or(0, |at| at + 1)..];
    let so = name.windows(4).rposition(|part| part == b".so.");
    match so {
        Some(at)
            if name[at + 4..]
                .iter()
                .all(|byte| matches!(byte, b'0'..=b'9' | b'.')) =>
        {
            &name[..at + 3]
        }
        _ => name,
    }
}

/// The part of a linkage name that stays the same from build to build. This leaves out
/// - the version of a symbol (`memcpy@@GLIBC_2.14`),
/// - what compilers append to the names of copies and of parts of functions (`.constprop.0`, `.isra.0`, `.part.0`,
///   `.cold`, `.lto_priv.0`, `.llvm.1234`),
/// - the hash in Rust's older names (`17h0123456789abcdefE`).
pub fn stable_name(linkage: &str) -> &str {
    let name = linkage.split('@').next().unwrap_or_default();
    // Names that begin with a dot, or with an at sign, are left alone.
    if name.is_empty() {
        return linkage;
    }
    let name = without_suffixes(name);
    if name.starts_with("_ZN")
        && let Some((rest, hash)) = name.rsplit_once("17h")
        && let Some(digits) = hash.strip_suffix('E')
        && digits.len() == 16
        && digits.bytes().all(|byte| byte.is_ascii_hexdigit())
    {
        return rest;
    }
    name
}

/// A linkage name without what compilers append for copies and parts of functions.
pub fn without_suffixes(mut name: &str) -> &str {
    const SUFFIXES: [&str; 8] = [
        ".constprop",
        ".isra",
        ".part",
        ".cold",
        ".lto_priv",
        ".llvm",
        ".clone",
        ".specialized",
    ];
    loop {
        let digits = name.trim_end_matches(|c: char| c.is_ascii_digit());
        let base = match digits.strip_suffix('.') {
            Some(base) if digits.len() < name.len() => base,
            _ => name,
        };
        let cut = SUFFIXES.iter().find_map(|suffix| base.strip_suffix(suffix));
        match cut {
            Some(cut) if !cut.is_empty() => name = cut,
            _ => return name,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named<'a>(module: &'a str, linkage: &'a str) -> FrameKey<'a> {
        FrameKey::Named {
            module: module.as_bytes(),
            linkage,
        }
    }

    fn of(frames: &[FrameKey]) -> String {
        StackIdentity::of(frames.iter().copied()).to_string()
    }

    /// Reports of earlier releases hold these values. They must never change.
    #[test]
    fn identities_of_known_stacks_never_change() {
        let stack = [
            named("/usr/lib/x86_64-linux-gnu/libc.so.6", "strdup"),
            named("/home/a/parser", "_Z4makei"),
            named("/home/a/parser", "main"),
        ];
        let unnamed = FrameKey::Unnamed {
            module: b"/usr/lib/libfoo.so.1",
            build_id: &[0xde, 0xad, 0xbe, 0xef],
            offset: 0x1234,
        };
        assert_eq!(of(&[]), "cbf29ce484222325");
        assert_eq!(of(&stack), "b8d6d69744f9b4aa");
        assert_eq!(of(&stack[1..]), "101b84f76dd58ed4");
        assert_eq!(of(&[unnamed, stack[2]]), "4462a41090d9420b");
        assert_eq!(
            of(&[FrameKey::Generated("LazyCompile:~f"), stack[2]]),
            "2207ca42026b8c36"
        );
    }

    /// The published test values of FNV-1a.
    #[test]
    fn the_hash_is_fnv_1a() {
        for (text, value) in [
            ("", 0xcbf2_9ce4_8422_2325),
            ("a", 0xaf63_dc4c_8601_ec8c),
            ("foobar", 0x8594_4171_f739_67e8_u64),
        ] {
            let mut hash = Fnv1a::new();
            hash.bytes(text.as_bytes());
            assert_eq!(hash.0, value, "{text}");
        }
    }

    #[test]
    fn a_rebuild_or_an_update_keeps_the_identity() {
        let one = named(
            "/old/libstdc++.so.6.0.30",
            "_ZN3foo3bar17h0123456789abcdefE",
        );
        let other = named(
            "/new/libstdc++.so.6.0.31",
            "_ZN3foo3bar17hfedcba9876543210E",
        );
        assert_eq!(of(&[one]), of(&[other]));
        let one = named("/bin/a (deleted)", "f.constprop.0.cold");
        assert_eq!(of(&[one]), of(&[named("/bin/a", "f.isra.1")]));
        let versioned = named("libc.so.6", "memcpy@@GLIBC_2.14");
        assert_eq!(of(&[versioned]), of(&[named("libc.so.6", "memcpy")]));
    }

    #[test]
    fn stacks_that_differ_have_identities_that_differ() {
        let unnamed = |build_id, offset| FrameKey::Unnamed {
            module: b"a",
            build_id,
            offset,
        };
        let stacks = [
            vec![],
            vec![named("a", "f")],
            vec![named("b", "f")],
            vec![named("a", "g")],
            vec![named("a", "f"), named("a", "f")],
            vec![named("a", "")],
            vec![unnamed(b"", 1)],
            vec![unnamed(b"", 2)],
            vec![unnamed(b"1", 1)],
            vec![FrameKey::Generated("f")],
            vec![FrameKey::Generated("")],
        ];
        for (at, one) in stacks.iter().enumerate() {
            for other in &stacks[..at] {
                assert_ne!(of(one), of(other), "{one:?} {other:?}");
            }
        }
    }

    #[test]
    fn only_a_version_is_cut_off_a_library() {
        for (path, name) in [
            ("/usr/lib/libc.so.6", "libc.so"),
            ("/usr/lib/libz.so.1.2.13 (deleted)", "libz.so"),
            ("/usr/lib/libfoo-2.so", "libfoo-2.so"),
            (
                "/x/_json.cpython-311-x86_64-linux-gnu.so",
                "_json.cpython-311-x86_64-linux-gnu.so",
            ),
            ("/x/a.so.old", "a.so.old"),
            ("a.out", "a.out"),
            ("/memfd:code (deleted)", "memfd:code"),
            ("", ""),
        ] {
            assert_eq!(stable_module(path.as_bytes()), name.as_bytes());
        }
    }

    #[test]
    fn names_that_only_look_like_copies_are_kept() {
        for name in [
            "part",
            ".part.0",
            ".cold",
            "a.b",
            "f.17",
            "@",
            "_ZN1a17hE",
            "x17h0123456789abcdefE",
        ] {
            assert_eq!(stable_name(name), name);
        }
    }
}
