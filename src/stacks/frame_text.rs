//! A call stack as text, as suppressions are tried on it, and the forms of a function's name.

use crate::model::stack::{NamedFrame, NamedStack};

/// A frame of a call stack, with what is known of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FrameText<'a> {
    /// The function's name for people: demangled.
    pub function: Option<&'a str>,
    /// The function's name for the linker: mangled. The same as `function` in C.
    pub linkage: Option<&'a str>,
    /// The source file, as the debug information names it.
    pub file: Option<&'a str>,
    /// The line in the source file, from 1.
    pub line: Option<u32>,
    /// The path of the program or library, as its process sees it. Empty if it is not known.
    pub module: &'a str,
    /// Whether the compiler put the function into the next outer one, so that it has no frame of its own on the stack.
    pub inlined: bool,
}

/// The call stack of an allocation.
#[derive(Clone, Copy, Debug)]
pub struct StackText<'a> {
    /// The allocator's own frame, which memleak leaves out where it shows a stack. valgrind's stacks begin with it:
    /// `malloc`, `_Znwm`. Without a name: any function of an allocator.
    pub allocator: FrameText<'a>,
    /// The callers of the allocator, innermost first, with the inlined ones. Empty if the stack is unknown.
    pub frames: &'a [FrameText<'a>],
}

impl<'a> StackText<'a> {
    /// The stack as valgrind has it. memleak counts at `malloc` what the C++ library's `operator new` asks for, and that
    /// operator is then a frame. valgrind takes the operator's place, and sees no `malloc`.
    pub(super) fn as_valgrind_sees(&self) -> Self {
        let is_new = |frame: &&FrameText| {
            let name = frame.mangled();
            name.is_some_and(|name| name.starts_with("_Znw") || name.starts_with("_Zna"))
        };
        let news = self.frames.iter().take_while(is_new).count();
        match self.frames[..news].last() {
            Some(last) if news < self.frames.len() => Self {
                allocator: *last,
                frames: &self.frames[news..],
            },
            _ => *self,
        }
    }
}

/// The frames of a stack as text. A path that is not UTF-8 counts as unknown.
pub(super) fn frame_texts(stack: &NamedStack) -> Vec<FrameText<'_>> {
    stack.frames().map(frame_text).collect()
}

fn frame_text(frame: &NamedFrame) -> FrameText<'_> {
    let module = frame.module.as_ref().and_then(|path| path.to_str());
    FrameText {
        function: frame.function.as_deref(),
        linkage: frame.linkage.as_deref(),
        file: frame.file.as_ref().and_then(|path| path.to_str()),
        line: frame.line,
        module: module.unwrap_or_default(),
        inlined: frame.inlined,
    }
}

/// What valgrind calls functions that call `main`, so that no suppression depends on the C library's names.
const BELOW_MAIN: &str = "(below main)";

/// The functions of C libraries that call `main`.
const CALL_MAIN: [&str; 4] = [
    "__libc_start_main",
    "__libc_start_main_impl",
    "__libc_start_call_main",
    "generic_start_main",
];

/// What valgrind shows for a function or a file without a name.
pub(super) const NAMELESS: &str = "???";

impl<'a> FrameText<'a> {
    /// The demangled name, or the linker's where there is no other.
    pub(super) fn shown(&self) -> Option<&'a str> {
        let names = [self.function, self.linkage].into_iter().flatten();
        names.into_iter().find(|name| !name.is_empty())
    }

    /// The function's name as valgrind has it: mangled, and without a version as in `fopen@@GLIBC_2.2.5`.
    pub(super) fn mangled(&self) -> Option<&'a str> {
        let names = [self.linkage, self.function].into_iter().flatten();
        let name = names.into_iter().find(|name| !name.is_empty())?;
        match name.split_once('@') {
            Some((plain, _)) if !plain.is_empty() => Some(plain),
            _ => Some(name),
        }
    }

    /// Another name that valgrind may have for the function: for one that was inlined its name in the debug
    /// information, without namespaces and parameters, and for one that calls `main` a name that is the same
    /// everywhere.
    pub(super) fn also(&self) -> Option<&'a str> {
        match self.function {
            Some(function) if self.inlined => Some(base_name(function)),
            _ => self.calls_main().then_some(BELOW_MAIN),
        }
    }

    fn calls_main(&self) -> bool {
        self.mangled().is_some_and(|name| CALL_MAIN.contains(&name))
    }

    /// Whether the function is one of those that call `main`.
    pub(super) fn is_below_main(&self) -> bool {
        self.calls_main() || self.mangled() == Some("_start")
    }
}

/// A demangled name without the list of its parameters, and without what follows that list: `ns::f(int) const` is
/// `ns::f`. A name without parameters stays as it is.
pub(super) fn without_parameters(name: &str) -> &str {
    // The list is the last group in parentheses that is in no angle brackets. What comes after it are words such as
    // `const`, or ` [clone .cold]`, or nothing.
    let bytes = name.as_bytes();
    let Some(close) = name.rfind(')') else {
        return name;
    };
    let after = &name[close + 1..];
    let ends_there = after.is_empty()
        || after.starts_with([' ', '&']) && !after.contains("::") && !after.contains('>');
    if !ends_there {
        return name;
    }
    let mut depth = 0_usize;
    for at in (0..=close).rev() {
        match bytes[at] {
            b')' => depth += 1,
            b'(' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            let before = &name[..at];
            // `operator()` is a name, and `(anonymous namespace)` is none of a function.
            return match before.is_empty() || before.ends_with("operator") || before.ends_with("::")
            {
                true => name,
                false => before,
            };
        }
    }
    name
}

/// The last part of a demangled name: `ns::list<int>::add(int)` is `add`.
fn base_name(name: &str) -> &str {
    let name = without_parameters(name);
    let mut depth = 0_usize;
    let mut start = 0;
    let mut end = name.len();
    let bytes = name.as_bytes();
    for at in 0..bytes.len() {
        match bytes[at] {
            b'<' => {
                if depth == 0 {
                    end = at;
                }
                depth += 1;
            }
            b'>' => depth = depth.saturating_sub(1),
            b':' if depth == 0 && at > 0 && bytes[at - 1] == b':' => {
                start = at + 1;
                end = name.len();
            }
            _ => {}
        }
    }
    match start < end {
        true => &name[start..end],
        false => name,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_name_without_its_parameters_is_the_function() {
        for (name, without) in [
            ("malloc", "malloc"),
            ("make(int)", "make"),
            ("ns::f(int) const", "ns::f"),
            ("f(int) [clone .cold]", "f"),
            (
                "ns::list<int (*)(char)>::add(int, f(*)(int))",
                "ns::list<int (*)(char)>::add",
            ),
            ("f[abi:cxx11](int)", "f[abi:cxx11]"),
            ("(anonymous namespace)::f(int)", "(anonymous namespace)::f"),
            ("(anonymous namespace)::f", "(anonymous namespace)::f"),
            ("a::operator()(int) const", "a::operator()"),
            ("a::operator()", "a::operator()"),
            (
                "f(int)::{lambda(int)#1}::operator()(int) const",
                "f(int)::{lambda(int)#1}::operator()",
            ),
            ("operator new(unsigned long)", "operator new"),
            ("a::b() &&", "a::b"),
            (
                "core::ptr::drop_in_place<(u8, u8)>",
                "core::ptr::drop_in_place<(u8, u8)>",
            ),
            ("(", "("),
            (")", ")"),
            ("()", "()"),
            ("", ""),
        ] {
            assert_eq!(without_parameters(name), without);
        }
    }

    #[test]
    fn the_last_part_of_a_name_has_no_namespaces_templates_or_parameters() {
        for (name, base) in [
            ("make", "make"),
            ("ns::list<a::b>::add(c::d)", "add"),
            ("ns::f<int>(int)", "f"),
            ("a::", "a::"),
            ("", ""),
        ] {
            assert_eq!(base_name(name), base);
        }
    }

    #[test]
    fn a_frame_has_the_names_that_valgrind_gives_it() {
        let names = |frame: FrameText<'static>| (frame.mangled(), frame.also());
        let frame = FrameText {
            function: Some("ns::f(int)"),
            linkage: Some("_ZN2ns1fEi"),
            ..FrameText::default()
        };
        assert_eq!(names(frame), (Some("_ZN2ns1fEi"), None));
        let inlined = FrameText {
            inlined: true,
            ..frame
        };
        assert_eq!(names(inlined), (Some("_ZN2ns1fEi"), Some("f")));
        assert_eq!(names(FrameText::default()), (None, None));
        let start = FrameText {
            linkage: Some("__libc_start_main@@GLIBC_2.34"),
            ..FrameText::default()
        };
        assert_eq!(
            names(start),
            (Some("__libc_start_main"), Some("(below main)"))
        );
        assert!(start.is_below_main() && !frame.is_below_main());
    }

    proptest! {
        #[test]
        fn names_of_any_form_are_cut_without_a_panic(name: String, brackets in "[a:<>() é]{0,12}") {
            for name in [&name, &brackets] {
                prop_assert!(name.starts_with(without_parameters(name)));
                prop_assert!(name.contains(base_name(name)));
            }
        }
    }
}
