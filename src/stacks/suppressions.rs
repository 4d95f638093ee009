//! Which leaks are suppressed.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};

use crate::model::leak_kind::{LeakKind, LeakKinds};
use crate::stacks::frame_text::{FrameText, NAMELESS, StackText, without_parameters};
use crate::stacks::syntax::{self, FrameRule, Rule, SuppressionError};
use crate::text::escape;
use crate::text::wildcards::Wildcard;

/// The functions that a suppression may have as its first frame. Which of them a program has called is not recorded.
const ALLOCATORS: [&str; 16] = [
    "malloc",
    "calloc",
    "realloc",
    "reallocarray",
    "memalign",
    "aligned_alloc",
    "posix_memalign",
    "valloc",
    "pvalloc",
    "_Znwm",
    "_Znam",
    "_ZnwmRKSt9nothrow_t",
    "_ZnamRKSt9nothrow_t",
    "_ZnwmSt11align_val_t",
    "_ZnamSt11align_val_t",
    "???",
];

/// How many frames a [`Matcher`] remembers. A frame takes about 24 bytes.
const REMEMBERED: usize = 1 << 16;

/// Suppressions, in the order of their files.
#[derive(Clone, Debug, Default)]
pub struct Suppressions {
    list: Vec<Suppression>,
}

/// One suppression of a file.
#[derive(Clone, Debug)]
pub struct Suppression {
    /// What it is called, as printable text: `leak:PATTERN`, or the name that valgrind's syntax has.
    pub name: String,
    /// Its file, as the user named it.
    pub file: String,
    /// Its first line in the file, from 1.
    pub line: usize,
    rule: Rule,
}

impl Suppressions {
    /// Adds the suppressions of a file. `file` is what the user calls it.
    ///
    /// # Errors
    /// The first line that is wrong. Nothing is added then.
    pub fn add(&mut self, file: &str, text: &[u8]) -> Result<(), SuppressionError> {
        let entries = syntax::parse(text, file)?;
        self.list
            .extend(entries.into_iter().map(|entry| Suppression {
                name: escape::escaped(&entry.name),
                file: file.to_owned(),
                line: entry.line,
                rule: entry.rule,
            }));
        Ok(())
    }

    /// All suppressions, in the order of the files and of their lines.
    pub fn list(&self) -> &[Suppression] {
        &self.list
    }

    /// Lets every suppression that is not for all kinds also match leaks of which the kind is not known.
    pub(super) fn with_unknown_kinds(mut self) -> Self {
        for suppression in &mut self.list {
            if let Rule::Frames { kinds, .. } = &mut suppression.rule {
                *kinds = *kinds | LeakKinds::from(LeakKind::Unknown);
            }
        }
        self
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }
}

/// Tries suppressions on stacks. It remembers what it found about frames, because most stacks of a program share
/// frames.
pub struct Matcher<'a> {
    suppressions: &'a Suppressions,
    /// For a frame, the first suppression of LeakSanitizer's syntax that matches it.
    seen: HashMap<u64, Option<usize>>,
    hashes: RandomState,
}

impl<'a> Matcher<'a> {
    pub fn new(suppressions: &'a Suppressions) -> Self {
        Self {
            suppressions,
            seen: HashMap::new(),
            hashes: RandomState::new(),
        }
    }

    /// The first suppression that matches a leak of this kind, by its index in [`Suppressions::list`]. An unknown stack
    /// (without frames) is never suppressed. A suppression for certain kinds does not match a leak of unknown kind.
    pub fn find(&mut self, stack: &StackText, kind: LeakKind) -> Option<usize> {
        if stack.frames.is_empty() || self.suppressions.is_empty() {
            return None;
        }
        let by_frame = self.by_frame(stack);
        let before = &self.suppressions.list[..by_frame.unwrap_or(self.suppressions.list.len())];
        let theirs = stack.as_valgrind_sees();
        let forms = forms(stack, &theirs);
        let by_stack = (before.iter()).position(|suppression| match &suppression.rule {
            Rule::AnyFrame(_) => false,
            Rule::Frames { kinds, frames } => {
                kinds.contains(kind) && forms.iter().any(|form| begins_with(form, frames))
            }
        });
        by_stack.or(by_frame)
    }

    /// The first suppression of LeakSanitizer's syntax that matches a frame.
    fn by_frame(&mut self, stack: &StackText) -> Option<usize> {
        // LeakSanitizer has its own allocator: no library's path matches by that frame.
        let allocator = FrameText {
            module: "",
            ..stack.allocator
        };
        let frames = std::iter::once(&allocator).chain(stack.frames);
        let mut first: Option<usize> = None;
        for frame in frames {
            let key = (frame.function, frame.linkage, frame.file, frame.module);
            let key = self.hashes.hash_one(key);
            let found = match self.seen.get(&key) {
                Some(found) => *found,
                None => {
                    let found = self.first_of(frame);
                    if self.seen.len() >= REMEMBERED {
                        self.seen.clear();
                    }
                    self.seen.insert(key, found);
                    found
                }
            };
            first = match (first, found) {
                (Some(first), Some(found)) => Some(first.min(found)),
                (first, found) => first.or(found),
            };
        }
        first
    }

    fn first_of(&self, frame: &FrameText) -> Option<usize> {
        let function = frame.shown();
        let plain = function.map(without_parameters);
        let plain = plain.filter(|plain| Some(*plain) != function);
        let texts = [function, plain, frame.file, Some(frame.module)];
        let texts = || texts.iter().flatten().filter(|text| !text.is_empty());
        (self.suppressions.list.iter()).position(|suppression| match &suppression.rule {
            Rule::AnyFrame(pattern) => texts().any(|text| pattern.matches(text.as_bytes())),
            Rule::Frames { .. } => false,
        })
    }
}

/// A frame with the names that valgrind gives it.
#[derive(Clone, Copy)]
struct ValgrindFrame<'a> {
    text: &'a FrameText<'a>,
    function: &'a str,
    also: Option<&'a str>,
    module: &'a str,
}

impl<'a> ValgrindFrame<'a> {
    fn new(text: &'a FrameText<'a>) -> Self {
        Self {
            text,
            function: text.mangled().unwrap_or(NAMELESS),
            also: text.also(),
            module: match text.module {
                "" => NAMELESS,
                module => module,
            },
        }
    }
}

/// The forms in which valgrind may have a stack: from `operator new` or from `malloc` on (which is what it has for a
/// program without a C++ library that it knows), with frames of inlined functions or without (`--read-inline-info=no`).
fn forms<'a>(stack: &'a StackText<'a>, theirs: &'a StackText<'a>) -> Vec<Vec<ValgrindFrame<'a>>> {
    let whole = |stack: &'a StackText<'a>| {
        let frames = std::iter::once(&stack.allocator).chain(stack.frames);
        frames.map(ValgrindFrame::new).collect::<Vec<_>>()
    };
    let mut forms = vec![whole(stack)];
    if theirs.frames.len() < stack.frames.len() {
        forms.push(whole(theirs));
    }
    if stack.frames.iter().any(|frame| frame.inlined) {
        for form in forms.clone() {
            let physical = form.into_iter().filter(|frame| !frame.text.inlined);
            forms.push(physical.collect());
        }
    }
    forms
}

/// Whether the innermost frames are those of a suppression in valgrind's syntax. The first frame is the allocator's.
fn begins_with(frames: &[ValgrindFrame], rule: &[FrameRule]) -> bool {
    // The parts between `...`. A part that was found need not be looked for further outside: what comes behind it has
    // most frames left then. So a line is tried on each frame at most once for each line of its part.
    let parts = rule.split(|line| *line == FrameRule::Any);
    let mut next = 0;
    for (number, part) in parts.enumerate() {
        let is_at = |at: usize| {
            let frames = frames.iter().enumerate().skip(at);
            frames.len() >= part.len()
                && (part.iter().zip(frames))
                    .all(|(line, (at, frame))| is_frame(line, frame, at == 0))
        };
        let last = match number {
            0 => 0,
            _ => frames.len(),
        };
        match (next..=last).find(|at| is_at(*at)) {
            Some(at) => next = at + part.len(),
            None => return false,
        }
    }
    true
}

fn is_frame(line: &FrameRule, frame: &ValgrindFrame, is_allocator: bool) -> bool {
    match line {
        FrameRule::Any => true,
        FrameRule::Function(name) if is_allocator && frame.text.shown().is_none() => {
            let mut functions = ALLOCATORS.iter();
            functions.any(|function| name.matches(function.as_bytes()))
        }
        FrameRule::Function(name) => {
            let also = |text: &str| name.matches(text.as_bytes());
            name.matches(frame.function.as_bytes()) || frame.also.is_some_and(also)
        }
        FrameRule::Object { path, is_valgrinds } => {
            path.matches(frame.module.as_bytes()) || *is_valgrinds && is_allocator
        }
        FrameRule::Source { file, line } => {
            line.is_none_or(|line| frame.text.line == Some(line))
                && frame.text.file.is_some_and(|path| is_file(file, path))
        }
    }
}

/// valgrind has a file's name without its directory.
fn is_file(pattern: &Wildcard, path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path);
    pattern.matches(name.as_bytes()) || pattern.matches(path.as_bytes())
}
