//! Makes a suppression of a leak, as `--gen-suppressions` prints it.

use std::fmt::Write;
use std::str::FromStr;

use crate::model::leak_kind::LeakKinds;
use crate::model::stack::{NamedFrame, NamedStack};
use crate::stacks::frame_text::{FrameText, StackText, frame_texts, without_parameters};
use crate::text::escape;

/// The most lines of a call stack in a suppression for valgrind, as its manual allows.
const MOST_FRAMES: usize = 24;

/// The most frames that a comment shows.
const MOST_SHOWN: usize = 12;

/// The syntax of a suppression that is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Generated {
    /// Names the whole stack, so that no other leak is suppressed with this one.
    Valgrind,
    /// Names one function: it suppresses everything that this function and its callees leak.
    Lsan,
}

impl FromStr for Generated {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        match word {
            "valgrind" => Ok(Self::Valgrind),
            "lsan" => Ok(Self::Lsan),
            _ => Err("it is valgrind or lsan".to_owned()),
        }
    }
}

/// The lines of a suppression of a leak, each with its newline. `kinds` are those of the leak's blocks. `None` if
/// nothing is known of the stack by which this leak could be told from others.
pub fn generate(syntax: Generated, stack: &StackText, kinds: LeakKinds) -> Option<String> {
    match syntax {
        Generated::Valgrind => valgrind(stack, kinds),
        Generated::Lsan => lsan(stack),
    }
}

/// The same for a stack with names.
pub fn generate_for(syntax: Generated, stack: &NamedStack, kinds: LeakKinds) -> Option<String> {
    let frames = frame_texts(stack);
    let text = StackText {
        allocator: FrameText::default(),
        frames: &frames,
    };
    generate(syntax, &text, kinds)
}

fn valgrind(stack: &StackText, kinds: LeakKinds) -> Option<String> {
    let stack = &stack.as_valgrind_sees();
    let allocator = frame_line(&stack.allocator, "").unwrap_or_else(|| "fun:*".to_owned());
    let mut lines = vec![Some(allocator)];
    for frame in stack.frames {
        // valgrind may have no frames of inlined functions, or have them under shorter names.
        let line = frame_line(frame, if is_c_library(frame) { "*" } else { "" });
        lines.push(line.filter(|_| !frame.inlined));
        let is_main = frame.shown() == Some("main");
        if is_main && !frame.inlined {
            break;
        }
    }
    // Several frames without a name are one `...`, and at the end they are nothing.
    lines.dedup_by(|next, before| next.is_none() && before.is_none());
    lines.truncate(MOST_FRAMES);
    while lines.last().is_some_and(Option::is_none) {
        lines.pop();
    }
    // The allocator alone would be every leak.
    if !lines.iter().skip(1).any(Option::is_some) {
        return None;
    }
    let mut text = format!("{{\n   {}\n   Memcheck:Leak\n", title(stack));
    let words = kinds.words();
    if !words.is_empty() {
        let _ = writeln!(text, "   match-leak-kinds: {words}");
    }
    for line in lines {
        let _ = writeln!(text, "   {}", line.as_deref().unwrap_or("..."));
    }
    text.push_str("}\n");
    Some(text)
}

/// The line for a frame. `version` stands for the version that valgrind has in some names. `None` if nothing is known of
/// the frame.
fn frame_line(frame: &FrameText, version: &str) -> Option<String> {
    match (frame.mangled(), frame.module) {
        (Some(name), _) => Some(format!("fun:{}{version}", replaced(name, "?", |_| false))),
        (None, "") => None,
        (None, module) => Some(format!("obj:{}", replaced(module, "?", |_| false))),
    }
}

fn lsan(stack: &StackText) -> Option<String> {
    let named = || stack.frames.iter().filter(|frame| frame.shown().is_some());
    // gcc's LeakSanitizer has other names for inlined functions, without namespaces and parameters.
    let physical = || named().filter(|frame| !frame.inlined);
    let own = physical().find(|frame| !is_runtime(frame) && !frame.is_below_main());
    let any = || physical().next().or_else(|| named().next());
    let (pattern, hidden) = match own.or_else(any) {
        Some(frame) => {
            let name = frame.shown().unwrap_or_default();
            let hidden = match without_parameters(name) {
                _ if frame.is_below_main() => Some("of the whole program"),
                "main" => Some("below main"),
                _ => None,
            };
            (function_pattern(name), hidden)
        }
        None => {
            let mut modules = stack.frames.iter().map(|frame| frame.module);
            let module = modules.find(|module| !module.is_empty())?;
            (
                format!("^{}$", escaped(module)),
                Some("that passes this file"),
            )
        }
    };
    let mut text = format!("# {}\n", title(stack));
    for frame in stack.frames.iter().take(MOST_SHOWN) {
        let name = frame.shown().unwrap_or(frame.module);
        let _ = writeln!(text, "#    {}", escape::escaped(name.as_bytes()));
    }
    if let Some(hidden) = hidden {
        let _ = writeln!(
            text,
            "# It hides every leak {hidden}. --gen-suppressions=valgrind names this leak alone."
        );
    }
    let _ = writeln!(text, "leak:{pattern}");
    Some(text)
}

/// The pattern of a function with all lists of parameters. LeakSanitizer's names end in that list where the function is
/// one of C++.
fn function_pattern(name: &str) -> String {
    let plain = without_parameters(name);
    match plain.len() < name.len() {
        true => format!("^{}(", escaped(plain)),
        false => format!("^{}$", escaped(plain)),
    }
}

/// A `*` stands for what cannot be in a pattern.
fn escaped(text: &str) -> String {
    replaced(text, "*", |c| c == '$')
}

/// A text without characters that a line of a suppression cannot have: each becomes a wildcard.
fn replaced(text: &str, wildcard: &str, is_special: fn(char) -> bool) -> String {
    let mut line = String::with_capacity(text.len());
    let (first, last) = (0, text.trim_end().len());
    for (at, c) in text.char_indices() {
        let is_blank = c.is_whitespace() && (at == first || at >= last);
        match c.is_control() || is_blank || is_special(c) {
            // A wildcard may stand for a single byte.
            true => line.push_str(&wildcard.repeat(c.len_utf8())),
            false => line.push(c),
        }
    }
    line
}

/// What is leaked, in one line: `malloc in make(int), leak.cpp:7`.
fn title(stack: &StackText) -> String {
    let allocator = stack.allocator.shown().unwrap_or("memory");
    let mut title = format!("leak of {allocator}");
    let mut frames = stack.frames.iter();
    let frame = frames.find(|frame| frame.shown().is_some() && !is_runtime(frame));
    if let Some(frame) = frame.or(stack.frames.first()) {
        let _ = write!(title, " in {}", frame.shown().unwrap_or(frame.module));
        if let Some(file) = frame.file {
            let file = file.rsplit('/').next().unwrap_or(file);
            let _ = write!(title, ", {file}");
            if let Some(line) = frame.line {
                let _ = write!(title, ":{line}");
            }
        }
    }
    escape::escaped(title.as_bytes())
}

/// The files of C libraries: glibc's, by their names before glibc 2.34, too, and musl's.
const C_LIBRARY: [&str; 10] = [
    "libc.so",
    "libc-",
    "libc.musl",
    "ld-",
    "ld.so",
    "libpthread",
    "libdl",
    "librt",
    "libm.so",
    "libm-",
];

/// The files of C++'s libraries.
const CXX_LIBRARY: [&str; 4] = ["libstdc++.so", "libc++.so", "libc++abi.so", "libgcc_s.so"];

/// The innermost frame that is not one of the runtime of a language, or the innermost one.
pub fn own_frame(stack: &NamedStack) -> Option<&NamedFrame> {
    let texts = frame_texts(stack);
    let own = |frame: &FrameText| frame.shown().is_some() && !is_runtime(frame);
    stack
        .frames()
        .nth(texts.iter().position(own).unwrap_or_default())
}

fn is_c_library(frame: &FrameText) -> bool {
    let file = frame.module.rsplit('/').next().unwrap_or_default();
    C_LIBRARY.iter().any(|start| file.starts_with(start))
}

/// Whether a function belongs to the runtime of a language. Its callers say more about a leak.
fn is_runtime(frame: &FrameText) -> bool {
    const NAMESPACES: [&str; 5] = ["std::", "__gnu_cxx::", "alloc::", "core::", "operator new"];
    let file = frame.module.rsplit('/').next().unwrap_or_default();
    let name = frame.shown().unwrap_or_default();
    // A template has its return type before its name; an implementation of a trait begins with `<`.
    let name = name.strip_prefix("void ").unwrap_or(name);
    let name = name.trim_start_matches('<');
    is_c_library(frame)
        || CXX_LIBRARY.iter().any(|start| file.starts_with(start))
        || NAMESPACES.iter().any(|start| name.starts_with(start))
}
