//! Reads files of suppressions, in the syntax of LeakSanitizer and in that of valgrind. One file may have both, because
//! no line of the one can be taken for a line of the other.

use thiserror::Error;

use crate::model::leak_kind::{LeakKind, LeakKinds};
use crate::text::escape;
use crate::text::wildcards::Wildcard;

/// The most lines of a call stack in a suppression: as many as valgrind reads (`VG_DEEPEST_BACKTRACE`).
const MOST_LINES: usize = 500;

/// A suppression as it stands in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ReadSuppression {
    /// `leak:PATTERN`, or the name that valgrind's syntax has.
    pub name: Vec<u8>,
    /// Its first line, from 1.
    pub line: usize,
    pub rule: Rule,
}

/// Which stacks a suppression matches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Rule {
    /// LeakSanitizer's: a text of some frame matches.
    AnyFrame(Wildcard),
    /// valgrind's: the innermost frames match, one after the other.
    Frames {
        kinds: LeakKinds,
        frames: Vec<FrameRule>,
    },
}

/// A line of valgrind's syntax.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum FrameRule {
    Function(Wildcard),
    Object {
        path: Wildcard,
        /// Whether it names the library by which valgrind replaces the allocator.
        is_valgrinds: bool,
    },
    Source {
        file: Wildcard,
        line: Option<u32>,
    },
    /// `...`: any frames, or none.
    Any,
}

/// Why a file is not one of suppressions.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{}:{line}: {fault}", escape::escaped(.file.as_bytes()))]
pub struct SuppressionError {
    /// As the user named it.
    pub file: String,
    /// From 1.
    pub line: usize,
    pub fault: Fault,
}

/// What is wrong with a line.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum Fault {
    #[error(
        "'{0}' is no suppression: write leak:PATTERN (LeakSanitizer's syntax), or a line with {{ alone (valgrind's)"
    )]
    Unknown(String),
    #[error("'{0}' suppresses no leaks: memleak knows leak:PATTERN alone of the sanitizers' types")]
    Type(String),
    #[error("leak: has no pattern: to suppress every leak, write leak:*")]
    NoPattern,
    #[error("the file ends within the suppression that begins in line {0}: }} is missing")]
    Unfinished(usize),
    #[error("the suppression has no name: the line after {{ is its name")]
    NoName,
    #[error("'{0}' is not TOOL:KIND, as Memcheck:Leak")]
    NoKind(String),
    #[error("'{0}' is no kind of Memcheck: write Memcheck:Leak")]
    Misspelt(String),
    #[error("'{0}' is not definite, indirect, possible, reachable, all or none")]
    LeakKind(String),
    #[error("'{0}' is no frame: write fun:, obj:, src: or ...")]
    Frame(String),
    #[error("'{0}' is no line number: write src:FILE or src:FILE:LINE")]
    Line(String),
    #[error("the suppression has no frames")]
    NoFrames,
    #[error("the suppression has no frame beside ...: it would suppress every leak")]
    OnlyAny,
    #[error("the suppression has more than {MOST_LINES} frames")]
    TooLong,
}

/// The lines of a file that are neither empty nor comments, without the blanks around them.
struct Lines<'a> {
    rest: Option<&'a [u8]>,
    /// The number of the line before, from 1.
    last: usize,
}

impl<'a> Iterator for Lines<'a> {
    /// A line's number, and its text.
    type Item = (usize, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        while let Some(rest) = self.rest {
            let (line, rest) = match memchr::memchr(b'\n', rest) {
                Some(end) => (&rest[..end], Some(&rest[end + 1..])),
                None => (rest, None),
            };
            self.rest = rest;
            self.last += 1;
            let line = line.trim_ascii();
            if !line.is_empty() && line[0] != b'#' {
                return Some((self.last, line));
            }
        }
        None
    }
}

/// Reads the suppressions of leaks in a file. Those of other errors and of valgrind's other tools are left out.
///
/// # Errors
/// The first line that is wrong.
pub(super) fn parse(text: &[u8], file: &str) -> Result<Vec<ReadSuppression>, SuppressionError> {
    // Editors of other systems put a byte order mark before the text.
    let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
    let mut lines = Lines {
        rest: Some(text),
        last: 0,
    };
    let mut entries = Vec::new();
    loop {
        let Some((line, text)) = lines.next() else {
            return Ok(entries);
        };
        let entry = match text {
            b"{" => block(&mut lines, line),
            _ => leak(text).map(|rule| {
                Some(ReadSuppression {
                    name: text.to_vec(),
                    line,
                    rule,
                })
            }),
        };
        let entry = entry.map_err(|fault| SuppressionError {
            file: file.to_owned(),
            line: lines.last,
            fault,
        })?;
        entries.extend(entry);
    }
}

/// A line of LeakSanitizer's syntax.
fn leak(line: &[u8]) -> Result<Rule, Fault> {
    if let Some(pattern) = line.strip_prefix(b"leak:") {
        return match pattern {
            b"" => Err(Fault::NoPattern),
            _ => Ok(Rule::AnyFrame(Wildcard::within(pattern))),
        };
    }
    let kind = line.iter().position(|byte| *byte == b':');
    let kind = kind.map(|end| &line[..end]).unwrap_or_default();
    let is_word = |byte: &u8| byte.is_ascii_alphanumeric() || b"_-".contains(byte);
    match !kind.is_empty() && kind.iter().all(is_word) {
        true => Err(Fault::Type(shown(&line[..=kind.len()]))),
        false => Err(Fault::Unknown(shown(line))),
    }
}

/// The lines of valgrind's syntax after `{`. `None` if it is not about leaks.
fn block(lines: &mut Lines, first: usize) -> Result<Option<ReadSuppression>, Fault> {
    let mut next = || match lines.next() {
        Some((_, b"}")) => Ok(None),
        Some((_, line)) => Ok(Some(line)),
        None => Err(Fault::Unfinished(first)),
    };
    let name = next()?.ok_or(Fault::NoName)?.to_vec();
    let kind = next()?.ok_or_else(|| Fault::NoKind("}".to_owned()))?;
    if !is_leak(kind)? {
        while next()?.is_some() {}
        return Ok(None);
    }
    let mut kinds = LeakKinds::ALL;
    let mut frames = Vec::new();
    let mut is_first = true;
    while let Some(line) = next()? {
        match line.strip_prefix(b"match-leak-kinds:") {
            Some(words) if is_first => kinds = leak_kinds(words)?,
            _ if frames.len() == MOST_LINES => return Err(Fault::TooLong),
            _ => frames.push(frame(line)?),
        }
        is_first = false;
    }
    if frames.is_empty() {
        return Err(Fault::NoFrames);
    }
    if frames.iter().all(|frame| *frame == FrameRule::Any) {
        return Err(Fault::OnlyAny);
    }
    let rule = Rule::Frames { kinds, frames };
    Ok(Some(ReadSuppression {
        name,
        line: first,
        rule,
    }))
}

/// Whether a line `TOOL1,TOOL2:KIND` is about leaks that Memcheck finds.
fn is_leak(line: &[u8]) -> Result<bool, Fault> {
    let colon = line.iter().position(|byte| *byte == b':');
    let colon = colon.ok_or_else(|| Fault::NoKind(shown(line)))?;
    let (tools, kind) = (&line[..colon], &line[colon + 1..]);
    if !tools
        .split(|byte| *byte == b',')
        .any(|tool| tool == b"Memcheck")
    {
        return Ok(false);
    }
    // New versions of valgrind have new kinds, which are no reason to fail. A misspelt `Leak` would never match.
    match kind {
        b"Leak" => Ok(true),
        _ if strsim::levenshtein(&String::from_utf8_lossy(kind).to_lowercase(), "leak") <= 1 => {
            Err(Fault::Misspelt(shown(line)))
        }
        _ => Ok(false),
    }
}

fn leak_kinds(words: &[u8]) -> Result<LeakKinds, Fault> {
    match words.trim_ascii() {
        b"all" => return Ok(LeakKinds::ALL),
        b"none" => return Ok(LeakKinds::NONE),
        _ => {}
    }
    let mut kinds = LeakKinds::NONE;
    for word in words.split(|byte| *byte == b',') {
        let word = word.trim_ascii();
        let mut known = LeakKind::KNOWN.iter();
        let kind = known.find(|(_, name)| name.as_bytes() == word);
        let (kind, _) = kind.ok_or_else(|| Fault::LeakKind(shown(word)))?;
        kinds = kinds | (*kind).into();
    }
    Ok(kinds)
}

fn frame(line: &[u8]) -> Result<FrameRule, Fault> {
    if line == b"..." {
        return Ok(FrameRule::Any);
    }
    if let Some(name) = line.strip_prefix(b"fun:") {
        return Ok(FrameRule::Function(Wildcard::whole(without_version(name))));
    }
    if let Some(path) = line.strip_prefix(b"obj:") {
        return Ok(FrameRule::Object {
            path: Wildcard::whole(path),
            is_valgrinds: memchr::memmem::find(path, b"vgpreload_").is_some(),
        });
    }
    let Some(source) = line.strip_prefix(b"src:") else {
        return Err(Fault::Frame(shown(line)));
    };
    let (file, line) = match source.iter().position(|byte| *byte == b':') {
        None => (source, None),
        Some(colon) => {
            let digits = &source[colon + 1..];
            let number = std::str::from_utf8(digits).ok();
            let number = number.and_then(|text| text.parse().ok());
            let number = number.filter(|number| *number > 0);
            let number: u32 = number.ok_or_else(|| Fault::Line(shown(digits)))?;
            (&source[..colon], Some(number))
        }
    };
    Ok(FrameRule::Source {
        file: Wildcard::whole(file),
        line,
    })
}

/// A pattern of functions without a version, as `dlopen@@GLIBC_2.2.5` has it. valgrind has versions in some names of the C
/// library, which depend on that library. memleak has none.
fn without_version(name: &[u8]) -> &[u8] {
    let at = memchr::memchr(b'@', name).unwrap_or(name.len());
    let (plain, _) = name.split_at(at);
    match plain.iter().all(|byte| b"*?".contains(byte)) {
        true => name,
        false => plain,
    }
}

/// The beginning of a text in an error: one line, and not a long one.
fn shown(text: &[u8]) -> String {
    const LONGEST: usize = 60;
    match text.len() > LONGEST {
        true => format!("{}\u{2026}", escape::escaped(&text[..LONGEST])),
        false => escape::escaped(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(text: &str) -> Vec<(String, usize)> {
        let entries = parse(text.as_bytes(), "x.supp").unwrap();
        let names = entries.into_iter().map(|entry| {
            let name = String::from_utf8(entry.name).unwrap();
            (name, entry.line)
        });
        names.collect()
    }

    fn error(text: &str) -> String {
        parse(text.as_bytes(), "x.supp").unwrap_err().to_string()
    }

    #[test]
    fn lines_of_leak_sanitizer_are_read_with_comments_blanks_and_carriage_returns() {
        let text = "# why\n\n  leak:one \r\n\tleak:^two$\n#leak:three\nleak:f # no comment";
        assert_eq!(
            names(text),
            [
                ("leak:one".to_owned(), 3),
                ("leak:^two$".to_owned(), 4),
                ("leak:f # no comment".to_owned(), 6),
            ]
        );
        assert_eq!(names("\u{feff}leak:a")[0].0, "leak:a");
        assert!(parse(b"leak:\xff\xfe", "x.supp").is_ok());
        assert!(names("").is_empty());
    }

    #[test]
    fn blocks_of_valgrind_are_read_and_those_of_other_errors_left_out() {
        let text = "\
# a comment
{
   a name with } and {
   Memcheck:Leak
   match-leak-kinds: definite, possible
   # a comment inside
   fun:malloc
   ...
   obj:*/libx.so.?
   src:list.c:31
   src:*.c
}
{
   other
   Memcheck:Cond
   fun:anything but a frame
   what is this
}
{
   threads
   Helgrind:Race
   fun:f
}
{ \n both \n Helgrind,Memcheck:Leak \n fun:* \n } \n\
leak:also
{
   param
   Memcheck:Param
   write(buf)
   obj:/lib/*
}
";
        let entries = parse(text.as_bytes(), "x.supp").unwrap();
        let found: Vec<_> = entries.iter().map(|entry| entry.line).collect();
        assert_eq!(found, [2, 24, 29]);
        assert_eq!(entries[0].name, b"a name with } and {");
        let Rule::Frames { kinds, frames } = &entries[0].rule else {
            panic!("{:?}", entries[0]);
        };
        assert_eq!(kinds.words(), "definite,possible");
        assert!(!kinds.contains(LeakKind::Unknown));
        assert_eq!(frames.len(), 5);
        assert_eq!(frames[1], FrameRule::Any);
        let source = |file, line| FrameRule::Source {
            file: Wildcard::whole(file),
            line,
        };
        assert_eq!(
            frames[3..],
            [source(b"list.c", Some(31)), source(b"*.c", None)]
        );
        let kinds = |words: &str| {
            let text = format!("{{\nn\nMemcheck:Leak\nmatch-leak-kinds:{words}\nfun:f\n}}");
            match parse(text.as_bytes(), "x").unwrap().remove(0).rule {
                Rule::Frames { kinds, .. } => kinds,
                rule => panic!("{rule:?}"),
            }
        };
        assert_eq!(kinds(" all "), LeakKinds::ALL);
        assert_eq!(kinds("none"), LeakKinds::NONE);
        assert_eq!(kinds("reachable"), LeakKind::Reachable.into());
    }

    #[test]
    fn a_wrong_line_is_named_with_its_file_and_number() {
        let block = |lines: &str| format!("# one\n{{\n{lines}");
        for (text, says) in [
            ("leak", "x.supp:1: 'leak' is no suppression"),
            ("\n\nleak:", "x.supp:3: leak: has no pattern"),
            ("race:f", "x.supp:1: 'race:' suppresses no leaks"),
            ("leak :f", "x.supp:1: 'leak :f' is no suppression"),
            (
                "interceptor_via_fun:f",
                "'interceptor_via_fun:' suppresses no leaks",
            ),
            ("{ name", "x.supp:1: '{ name' is no suppression"),
            ("a\x1b[2J", r"'a\x1b[2J' is no suppression"),
            ("}", "'}' is no suppression"),
            (
                &block(""),
                "x.supp:3: the file ends within the suppression that begins in line 2",
            ),
            (&block("}"), "x.supp:3: the suppression has no name"),
            (&block("n\n}"), "x.supp:4: '}' is not TOOL:KIND"),
            (&block("n\nfun\n}"), "x.supp:4: 'fun' is not TOOL:KIND"),
            (
                &block("n\nMemcheck:leak\n}"),
                "x.supp:4: 'Memcheck:leak' is no kind of Memcheck",
            ),
            (
                &block("n\nMemcheck:Leaks\n}"),
                "'Memcheck:Leaks' is no kind",
            ),
            (
                &block("n\nMemcheck:Leak\n}"),
                "x.supp:5: the suppression has no frames",
            ),
            (
                &block("n\nMemcheck:Leak\n...\n...\n}"),
                "x.supp:7: the suppression has no frame beside",
            ),
            (
                &block("n\nMemcheck:Leak\nmalloc\n}"),
                "x.supp:5: 'malloc' is no frame",
            ),
            (
                &block("n\nMemcheck:Leak\nfun:f\nmatch-leak-kinds: all\n}"),
                "x.supp:6: 'match-leak-kinds: all' is no frame",
            ),
            (
                &block("n\nMemcheck:Leak\nmatch-leak-kinds: lost\nfun:f\n}"),
                "x.supp:5: 'lost' is not definite",
            ),
            (
                &block("n\nMemcheck:Leak\nmatch-leak-kinds:\nfun:f\n}"),
                "x.supp:5: '' is not definite",
            ),
            (
                &block("n\nMemcheck:Leak\nmatch-leak-kinds: all,definite\nfun:f\n}"),
                "'all' is not definite",
            ),
            (
                &block("n\nMemcheck:Leak\nsrc:a.c:b\n}"),
                "x.supp:5: 'b' is no line number",
            ),
            (
                &block("n\nMemcheck:Leak\nsrc:a.c:0\n}"),
                "'0' is no line number",
            ),
            (
                &block("n\nHelgrind:Race\nfun:f\n"),
                "the file ends within the suppression",
            ),
            (
                &block(&format!("n\nMemcheck:Leak\n{}}}", "fun:f\n".repeat(501))),
                "more than 500 frames",
            ),
        ] {
            let said = error(text);
            assert!(said.contains(says), "{text}: {said}");
            assert!(!said.contains(char::is_control), "{said:?}");
        }
        let long = error(&"x".repeat(1_000));
        assert!(long.len() < 250, "{long}");
        let most = block(&format!("n\nMemcheck:Leak\n{}}}", "fun:f\n".repeat(500)));
        assert_eq!(names(&most).len(), 1);
    }
}
